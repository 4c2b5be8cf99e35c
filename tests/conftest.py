"""Settings of all tests: no network, one thread, no progress bars.

Set before torch and transformers are imported. `HF_HUB_OFFLINE=0 pytest -m hub` asks the hub.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("TINY_AUDIO_MODELS", None)

import torch
from transformers.utils import logging

torch.set_num_threads(1)
logging.disable_progress_bar()
