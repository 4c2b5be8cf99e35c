"""Puts a trained adapter into models/small: half the bytes, with the code that loads it.

    python -m recipes.small.pack outputs/small/3-vary/model models/small

Weights go into bfloat16 files, and are float32 again once loaded: that is what a CPU computes in quickly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tiny_audio.hub.asr_checkpoint import WEIGHTS_FILE
from tiny_audio.publish.staging import cast_weights, stage_code, stage_weights


def pack(source: Path, folder: Path) -> None:
    """Fills `folder`, whose model card stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.suffix != ".md":
            file.unlink()
    architecture, _ = stage_weights(source, folder, merged=False)
    cast_weights(folder / WEIGHTS_FILE, torch.bfloat16)
    stage_code(folder, architecture.is_merged)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
