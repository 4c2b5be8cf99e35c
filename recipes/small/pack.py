"""Puts a trained adapter into models/small, in half the bytes. The code there is links to tiny_audio/hub.

    python -m recipes.small.pack outputs/small/model models/small

Weights go into bfloat16 files, and are float32 again once loaded: that is what a CPU computes in quickly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tiny_audio.hub.asr_checkpoint import WEIGHTS_FILE
from tiny_audio.publish.staging import cast_weights, stage_weights


def pack(source: Path, folder: Path) -> None:
    """Replaces the weights, config and tokenizer in `folder`, and nothing else there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)  # staging links it to the source where it can
    stage_weights(source, folder, merged=False)
    cast_weights(folder / WEIGHTS_FILE, torch.bfloat16)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
