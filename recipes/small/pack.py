"""Puts a trained adapter into models/small, in half the bytes. The code there is links to tiny_audio/hub.

    python -m recipes.small.pack outputs/small/mean models/small

Weights go into bfloat16 files, and are float32 again once loaded: that is what every CPU computes in quickly. The
tokenizer's file loses its line breaks, which are half of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tiny_audio.hub.asr_checkpoint import WEIGHTS_FILE
from tiny_audio.publish.staging import CONFIG_FILE, cast_weights, stage_weights

TOKENIZER_FILE = "tokenizer.json"


def pack(source: Path, folder: Path) -> None:
    """Replaces the weights, config and tokenizer in `folder`, and nothing else there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)  # staging links it to the source where it can
    stage_weights(source, folder, merged=False)
    cast_weights(folder / WEIGHTS_FILE, torch.bfloat16)
    rewrite(folder / CONFIG_FILE, {"dtype": "float32"}, indent=2)
    rewrite(folder / TOKENIZER_FILE, {}, separators=(",", ":"))


def rewrite(file: Path, changes: dict[str, Any], **style: Any) -> None:
    """Writes a JSON file anew, and not into one that it is linked to."""
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.unlink()
    file.write_text(json.dumps(content, ensure_ascii=False, **style) + "\n", encoding="utf-8")


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
