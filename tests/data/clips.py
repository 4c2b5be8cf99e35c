"""Small recordings on disk and a tiny real processor, shared by the tests of the data pipeline."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

RATE = 16000


def clip(seconds: float, seed: int = 0) -> np.ndarray:
    """Something like a vowel: a buzz of harmonics that swells and fades, with a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = generator.uniform(90, 220)
    wave = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 20))
    envelope = 0.15 * np.sin(np.pi * np.minimum(time / seconds, 1.0)) ** 0.5
    return (envelope * wave + 0.001 * generator.standard_normal(len(time))).astype(np.float32)


def wav_bytes(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def write_manifest(folder: Path, lengths: list[float], **extra: Any) -> Path:
    """`len(lengths)` clips, c0.wav saying "clip number zero" and so on, with a manifest that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, seconds in enumerate(lengths):
        soundfile.write(folder / f"c{number}.wav", clip(seconds, number), RATE)
        row = {"audio": f"c{number}.wav", "text": "clip " + "na " * number, "seconds": seconds, **extra}
        lines.append(json.dumps(row))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], rows_of_group: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=rows_of_group)
    return path


def loquacious_row(number: int, seconds: float = 0.5, **changes: Any) -> dict[str, Any]:
    """A row with the columns of speechbrain/LoquaciousSet."""
    name = f"clip_{number}.wav"
    return {
        "ID": f"clip_{number}",
        "duration": seconds,
        "start": 0.0,
        "wav": {"bytes": wav_bytes(clip(seconds, number)), "path": name},
        "spk_id": f"speaker_{number % 3}",
        "sex": "f",
        "text": f"CLIP NUMBER {number}",
        **changes,
    }


class MelProcessor:
    """Features by an STFT, one token a character: what the loader asks of a processor."""

    max_seconds = 30.0

    def features(self, waveform: np.ndarray) -> Tensor:
        window = torch.hann_window(400)
        spectrum = torch.stft(torch.from_numpy(waveform), 400, 160, window=window, return_complex=True)
        bands = spectrum.abs()[:200].reshape(20, 10, -1).mean(dim=1)  # (n_mels, L)
        return torch.log10(bands.clamp(min=1e-6))

    def num_text_tokens(self, text: str) -> int:
        return len(text) + 1

    def assemble(self, features: Tensor, text: str | None, encoded: bool = False) -> dict[str, Any]:
        return {"input_features": features, "labels": [ord(character) for character in text or ""] + [0]}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        features = pad_sequence([example["input_features"].T for example in examples], batch_first=True)
        labels = pad_sequence([torch.tensor(example["labels"]) for example in examples], True, -100)
        return {"input_features": features.transpose(1, 2), "labels": labels}


def spoken(batch: dict[str, Any]) -> list[str]:
    """The transcripts of a batch, read back from its labels."""
    return ["".join(chr(code) for code in row if code > 0) for row in batch["labels"].tolist()]
