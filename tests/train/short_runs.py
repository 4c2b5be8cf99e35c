"""Runs of a few steps on a few clips of noise, shared by the tests of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from tests.tiny_models import noise, tiny_config
from tiny_audio.hub.asr_checkpoint import WEIGHTS_FILE
from tiny_audio.hub.asr_processing import TinyAudioProcessor

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
BROKEN_REMAINDER = 7  # samples over a hundred of a clip that `break_features` spoils


def write_speech(folder: Path) -> Path:
    """Thirty short clips with texts, as a manifest."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(30):
        seconds = 0.4 + 0.1 * (number % 7)
        soundfile.write(folder / f"{number}.wav", noise(seconds, number), 16000)
        text = " ".join(WORDS[(number + i) % 10] for i in range(1 + number % 3))
        lines.append(
            json.dumps(
                {"audio": f"{number}.wav", "text": text, "speaker": str(number % 3), "seconds": seconds}
            )
        )
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def break_clip(folder: Path, number: int) -> None:
    """Marks a clip by its length, for `break_features` to know it by."""
    seconds = 0.4 + 0.1 * (number % 7)
    samples = np.append(noise(seconds, number), np.zeros(BROKEN_REMAINDER))
    soundfile.write(folder / f"{number}.wav", samples, 16000)


def break_features(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Features of marked clips are no numbers from now on. (Samples that are none are refused when they are read.)"""
    stock = TinyAudioProcessor.features

    def features(self: Any, waveform: np.ndarray) -> torch.Tensor:
        made = stock(self, waveform)
        return made * float("nan") if len(waveform) % 100 == BROKEN_REMAINDER else made

    set_attribute(TinyAudioProcessor, "features", features)


def settings(speech: Path, folder: Path, *overrides: str) -> Any:
    return tiny_config(
        f"output_dir={folder}",
        f"data.train={speech}",
        f"data.eval={speech}",
        f"data.test={speech}",
        "training.max_steps=6",
        "training.batch_seconds=4",
        "training.save_steps=2",
        "training.save_total_limit=10",
        "training.logging_steps=1",
        "training.eval_steps=3",
        "training.eval_samples=4",
        "training.warmup_steps=2",
        "training.tracker=none",
        *overrides,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_FILE)


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
