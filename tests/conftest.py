"""Settings of all tests: no network, one thread, no progress bars, and nothing left in the user's cache.

Set before torch and transformers are imported. `HF_HUB_OFFLINE=0 pytest -m hub` asks the hub.
"""

import atexit
import os
import shutil
import signal
import tempfile

if "HF_MODULES_CACHE" not in os.environ:  # the code of checkpoints that tests load
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="tiny-audio-modules-")
    atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("TINY_AUDIO_MODELS", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background, which programs inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from transformers.utils import logging

torch.set_num_threads(1)
logging.disable_progress_bar()

pytest_plugins = ["tests.browser"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pages of the course take longest: begun first, they leave no processor idle at the end."""
    items.sort(key=lambda item: item.path.name != "test_course.py")
