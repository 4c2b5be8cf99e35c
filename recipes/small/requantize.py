"""A copy of a language model whose linear layers are rounded to a few bits: how much does an adapter mind?

    python -m recipes.small.requantize BASES/HuggingFaceTB/SmolLM2-135M-Instruct \\
        ROUNDED/HuggingFaceTB/SmolLM2-135M-Instruct --bits 4 --group 64
    mkdir ROUNDED/openai && cp -R BASES/openai/whisper-base ROUNDED/openai/    # else it comes from the hub
    TINY_AUDIO_MODELS=ROUNDED tiny-audio eval models/small --data speech/real/prompts/test

Weights are rounded to the nearest of 2^bits - 1 steps, with one scale for each group of a row's weights.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"


def round_weights(weights: Tensor, bits: int, group: int) -> Tensor:
    """`weights (rows, columns)` rounded in groups of `group` columns."""
    rows, columns = weights.shape
    grouped = weights.float().reshape(rows, columns // group, group)
    scale = grouped.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    return ((grouped / scale).round() * scale).reshape(rows, columns).to(weights.dtype)


def requantize(source: Path, target: Path, bits: int, group: int) -> float:
    """Writes the copy. Returns the root mean square of the change, as a share of that of the weights."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(WEIGHTS), dirs_exist_ok=True)
    state = load_file(source / WEIGHTS)
    change = total = 0.0
    for name, weights in state.items():
        if weights.ndim != 2 or "embed" in name or "lm_head" in name:
            continue
        state[name] = round_weights(weights, bits, group)
        change += float((state[name].float() - weights.float()).square().sum())
        total += float(weights.float().square().sum())
    save_file(state, target / WEIGHTS, metadata={"format": "pt"})
    return (change / total) ** 0.5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--bits", type=int, default=4, choices=range(2, 9))
    parser.add_argument("--group", type=int, default=32, help="weights that share a scale")
    arguments = parser.parse_args()
    share = requantize(arguments.source, arguments.target, arguments.bits, arguments.group)
    print(f"wrote {arguments.target}: weights changed by {share:.1%} (root mean square)")
