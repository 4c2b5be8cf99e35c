"""The mean of the weights of adapters that were trained one from another, and how strongly the encoder's LoRA counts.

    python -m recipes.small.mean OUT MODEL [MODEL ...] [--encoder-strength 0.75] [--encoder-alpha 32]

Weights that lie on one path of training are often better in the middle than at its ends (arXiv:1803.05407), above all
for what is not like the training data (arXiv:2109.01903); so is an encoder that is moved less far from its base.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tiny_audio.files import replace_folder
from tiny_audio.hub.asr_checkpoint import ENCODER_PREFIX, WEIGHTS_FILE
from tiny_audio.hub.asr_lora import LORA_MARK
from tiny_audio.publish.staging import CONFIG_FILE


def mean(models: Sequence[Path], out: Path, strength: float, alpha: float | None = None) -> None:
    """Writes `out`: the first of `models`, in float32, with the mean of all their weights.

    Args:
        strength: Of the LoRA on the encoder, as a share of what it is now.
        alpha: Its `lora_alpha` from now on, which says how much a step of training moves it; as it is, if None. What
            this does to its strength is undone in its weights.

    Raises:
        ValueError: Their configs differ, there is no LoRA on the encoder, or `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} is there already")
    configs = [json.loads((model / CONFIG_FILE).read_text(encoding="utf-8")) for model in models]
    keys = {*itertools.chain(*configs)} - {"transformers_version"}
    different = sorted(key for key in keys if any(one.get(key) != configs[0].get(key) for one in configs))
    if different:
        raise ValueError(
            f"{', '.join(map(str, models))} differ in {', '.join(different)}, so their weights have no mean"
        )
    if not configs[0].get("encoder_lora"):
        raise ValueError(f"{models[0]} has no LoRA on its encoder")

    states = [load_file(model / WEIGHTS_FILE) for model in models]
    weights = {name: torch.stack([state[name].float() for state in states]).mean(dim=0) for name in states[0]}
    lora = configs[0]["encoder_lora"]
    alpha = alpha or lora["lora_alpha"]
    for name, weight in weights.items():
        if name.startswith(ENCODER_PREFIX) and f"{LORA_MARK}B." in name:
            weight *= strength * lora["lora_alpha"] / alpha
    lora["lora_alpha"] = alpha

    with replace_folder(out, "free some, and repeat the command") as partial:
        shutil.copytree(models[0], partial, ignore=shutil.ignore_patterns(WEIGHTS_FILE), dirs_exist_ok=True)
        save_file(weights, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        (partial / CONFIG_FILE).write_text(json.dumps(configs[0], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--encoder-strength", type=float, default=1.0, help="of its LoRA, as a share of now")
    parser.add_argument(
        "--encoder-alpha", type=float, help="of its LoRA, in OUT's config; its strength stays"
    )
    arguments = parser.parse_args()
    mean(arguments.models, arguments.out, arguments.encoder_strength, arguments.encoder_alpha)
