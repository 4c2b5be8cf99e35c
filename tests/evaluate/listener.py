"""A recogniser that knows clips by their length in samples, and the recordings to try it on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

SAMPLING_RATE = 16_000


class Listener:
    """A `Provider` by hand.

    It answers by the length of a clip, fails where the answer is an exception, and counts its calls.
    """

    costs_money = False
    price_usd_per_hour: float | None = None

    def __init__(self, answers: dict[int, str | Exception], max_seconds: float | None = 30.0) -> None:
        self.answers = answers
        self.max_seconds = max_seconds
        self.calls: list[list[int]] = []

    @property
    def identity(self) -> str:
        return f"listener {self.answers!r}"

    def transcribe(self, waveforms: list[np.ndarray]) -> list[str]:
        self.calls.append([len(waveform) for waveform in waveforms])
        answers = [self.answers[len(waveform)] for waveform in waveforms]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [str(answer) for answer in answers]


def write_clip(path: Path, num_samples: int) -> None:
    """A quiet tone of so many samples at 16 kHz."""
    samples = 0.1 * np.sin(np.arange(num_samples) * 0.2)
    soundfile.write(path, samples.astype(np.float32), SAMPLING_RATE, subtype="PCM_16")


def write_manifest(folder: Path, rows: list[tuple[str, int, str]]) -> Path:
    """Clips `name.wav` of so many samples with their texts, and the manifest.jsonl that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, num_samples, text in rows:
        write_clip(folder / f"{name}.wav", num_samples)
        row = {
            "audio": f"{name}.wav",
            "text": text,
            "speaker": name[0],
            "seconds": num_samples / SAMPLING_RATE,
        }
        lines.append(json.dumps(row))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
