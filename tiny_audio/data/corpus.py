"""Reads the spoken-digit corpus that lies inside the package, `tiny_audio/corpus/digits.zip`.

`tiny_audio/corpus/make_corpus.py` made it. It is a zip with `index.jsonl` (a line a clip) and Ogg Opus streams,
each of which holds the clips of one voice and band one after another. libsndfile decodes them; nothing else is
needed.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from tiny_audio.errors import UserError, nearest

SPLITS = ("train", "dev", "test")
PATH = Path(__file__).resolve().parent.parent / "corpus" / "digits.zip"


@dataclass(frozen=True)
class CorpusEntry:
    """One clip. `words` are (word, start, end) in seconds from the start of the clip, or None where unknown.

    `start` and `num_samples` are samples of `stream` at its own rate, 16,000 or 8,000 a second.
    """

    id: str
    text: str
    speaker: str
    seconds: float
    split: str
    words: tuple[tuple[str, float, float], ...] | None
    stream: str
    start: int
    num_samples: int


def read_index(split: str) -> list[CorpusEntry]:
    """The clips of a split, those of a stream next to each other. No audio is decoded.

    Raises:
        UserError: there is no such split.
    """
    if split not in SPLITS:
        raise UserError(
            f'The corpus has no split "{split}".{nearest(split, SPLITS)} Its splits are {", ".join(SPLITS)}.'
        )
    return [entry for entry in _entries() if entry.split == split]


def read_audio(entry: CorpusEntry) -> tuple[np.ndarray, int]:
    """Audio of a clip, float32 (samples,) within [-1, 1], and its sampling rate.

    A stream is decoded whole when the first of its clips is read and kept as int16: all streams together take
    about 0.3 GB in a process that reads every clip.
    """
    stream, sampling_rate = _stream(entry.stream)
    clip = stream[entry.start : entry.start + entry.num_samples]
    return clip.astype(np.float32) / 32768, sampling_rate


@functools.cache
def _entries() -> tuple[CorpusEntry, ...]:
    with _open() as archive, archive.open("index.jsonl") as lines:
        return tuple(_entry(json.loads(line)) for line in lines)


def _entry(row: dict) -> CorpusEntry:
    words = None
    if row["times"] is not None:
        edges = [milliseconds / 1000 for milliseconds in row["times"]]
        words = tuple(zip(row["text"].split(), edges[::2], edges[1::2], strict=True))
    seconds = row["num_samples"] / row["sampling_rate"]
    keys = ("id", "text", "speaker", "split", "stream", "start", "num_samples")
    return CorpusEntry(**{key: row[key] for key in keys}, seconds=seconds, words=words)


@functools.cache
def _stream(name: str) -> tuple[np.ndarray, int]:
    """Decoded samples, int16 (samples,), and the sampling rate."""
    with _open() as archive:
        blob = archive.read(name)
    samples, sampling_rate = soundfile.read(io.BytesIO(blob), dtype="int16")
    return samples, sampling_rate


def _open() -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(PATH)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"The embedded corpus {PATH} cannot be read ({error}): reinstall tiny-audio."
        ) from error
