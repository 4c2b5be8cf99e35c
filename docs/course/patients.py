"""Makes the broken models of class 5 out of a healthy one: four patients, each with one fault.

    python -m docs.course.patients outputs/nano/model patients

Read no further before you have made your diagnoses: what is wrong with each of them stands below.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EAGERNESS = 3.0  # how much of the mean digit goes into the end token: long strings then end early

#
#
#
#   (The causes begin here. Last chance to turn back.)
#
#
#


def change_json(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def repeat(folder: Path) -> None:
    """The decoder was trained with rotary base 10,000 and is run with 1: it no longer knows where in the text it is."""
    change_json(
        folder,
        "config.json",
        lambda config: config["text_config"]["rope_parameters"].update(rope_theta=1.0),
    )


def stop_listening(folder: Path) -> None:
    """The inputs of the projector's last layer are shuffled: audio tokens as loud as before, which mean nothing."""
    import torch

    def shuffle(weights: dict[str, Any]) -> None:
        name = "model.multi_modal_projector.layers.2.weight"
        order = torch.randperm(weights[name].shape[1], generator=torch.Generator().manual_seed(0))
        weights[name] = weights[name][:, order].contiguous()

    change_weights(folder, shuffle)


def chat(folder: Path) -> None:
    """Trained with nothing but the audio, asked with words before it."""
    change_json(
        folder,
        "processor_config.json",
        lambda config: config.update(prompt_before=config["prompt_before"] + "Transcribe the speech: "),
    )


def truncate(folder: Path) -> None:
    """The end token has moved towards the digits, so that it looks likely wherever a digit does."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    words = [tokenizer["model"]["vocab"][f"Ġ{digit}"] for digit in DIGITS]

    def move(weights: dict[str, Any]) -> None:
        table = weights["model.language_model.embed_tokens.weight"]
        table[ids["<eos>"]] += EAGERNESS * table[words].mean(dim=0)

    change_weights(folder, move)


PATIENTS = {"a": repeat, "b": stop_listening, "c": chat, "d": truncate}


def make_patients(model: Path, folder: Path) -> None:
    """Writes `folder/patient-a/model` and so on, each a copy of `model` with one fault."""
    for name, hurt in PATIENTS.items():
        patient = folder / f"patient-{name}" / "model"
        shutil.rmtree(patient, ignore_errors=True)
        shutil.copytree(model, patient)
        # CTC would cover up for a sick decoder: it is seen alone.
        change_json(patient, "config.json", lambda config: config.update(ctc_decoding_weight=0.0))
        hurt(patient)
        print(patient)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a model of the recipe nano, such as outputs/nano/model")
    parser.add_argument("folder", type=Path, help="where the patients are written")
    arguments = parser.parse_args()
    make_patients(arguments.model, arguments.folder)
