"""A shard: a parquet file of clips as every part of this recipe writes them. Whole or not there."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
import soxr

SAMPLING_RATE = 16_000
ROW_GROUP_ROWS = 32
SECONDS_A_CHARACTER = (0.03, 0.30)  # outside of it something else than the sentence was said
COLUMNS = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("audio", pyarrow.binary()),
        ("text", pyarrow.string()),
        ("speaker", pyarrow.string()),
        ("seconds", pyarrow.float64()),
        ("source", pyarrow.string()),
    ]
)


@dataclass(frozen=True)
class Line:
    """What somebody says. `audio`: float32 (samples,) at 16 kHz. None: not recorded, or by nobody knows whom."""

    name: str
    audio: np.ndarray | None
    text: str
    speaker: str | None


def at_16_khz(audio: np.ndarray, rate: int) -> np.ndarray:
    return audio if rate == SAMPLING_RATE else soxr.resample(audio, rate, SAMPLING_RATE)


def make_row(identity: str, audio: np.ndarray, text: str, speaker: str | None, source: str) -> dict:
    """One clip: `audio` is float32 (samples,) at 16 kHz; `source` the synthesiser or collection it comes from."""
    return {
        "id": identity,
        "audio": encode(audio),
        "text": text,
        "speaker": speaker,
        "seconds": len(audio) / SAMPLING_RATE,
        "source": source,
    }


def out_of_pace(seconds: float, num_characters: int) -> str | None:
    """Why a recording cannot be what its text says, or None."""
    low, high = SECONDS_A_CHARACTER
    if seconds > high * num_characters + 1.0:
        return "far slower than speech"
    if seconds < low * num_characters:
        return "far quicker than speech"
    return None


def encode(audio: np.ndarray) -> bytes:
    """As FLAC, 65 MB an hour. Opus would be a fifth, but takes longer than the quick synthesisers themselves."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def write_shard(path: Path, rows: list[dict], dropped: Counter[str]) -> None:
    """Under another name first: a shard that is there is whole. `dropped`: why clips were left out -> how often."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows, COLUMNS).replace_schema_metadata({"dropped": json.dumps(dropped)})
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # The audio is compressed already.
        pyarrow.parquet.write_table(table, partial, row_group_size=ROW_GROUP_ROWS, compression="none")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_dropped(path: Path) -> Counter[str]:
    return Counter(json.loads(pyarrow.parquet.read_metadata(path).metadata[b"dropped"]))
