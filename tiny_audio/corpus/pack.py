"""Writes clips as a zip of Ogg Opus streams with an index. Generator only; `tiny_audio/data/corpus.py` reads it.

The clips of a voice and band share one stream, because an Ogg file of its own costs each clip about as much as
half a second of speech. Opus as libsndfile writes and reads it keeps the sample count and adds no delay at 8 and
16 kHz (pre-skip is cut off by the reader), so a clip is found again by its first sample and its length.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import soundfile

from tiny_audio.corpus.compose import NARROW_RATE, Clip
from tiny_audio.corpus.inventory import SAMPLING_RATE
from tiny_audio.corpus.voices import Voice

SEPARATOR_SECONDS = 0.04  # silence between clips: a codec frame straddling two of them says nothing of either
# libsndfile's compression_level, measured on Kokoro's voices (mean error of the spectrum in dB below 1, 2, 4, 7 kHz):
# 16 kHz 0.9875: 9.2 kbit/s, 3.6 4.2 4.5 3.7; from 0.989 on the encoder drops everything above 4 kHz.
#  8 kHz 0.996:  6.9 kbit/s, 3.2 3.9 3.8, as good below 4 kHz as the wide one; 0.98 with 10.2 kbit/s: 2.0 2.9 3.3.
WIDE_LEVEL, NARROW_LEVEL = 0.9875, 0.996


def encode(voice: Voice, clips: list[Clip]) -> tuple[dict[str, bytes], list[dict]]:
    """Streams by name, and one index row a clip."""
    streams: dict[str, bytes] = {}
    rows: list[dict] = []
    for band, narrow, rate, level in (
        ("wide", False, SAMPLING_RATE, WIDE_LEVEL),
        ("narrow", True, NARROW_RATE, NARROW_LEVEL),
    ):
        name = f"{voice.id}-{band}.opus"
        silence = np.zeros(int(SEPARATOR_SECONDS * rate), np.float32)
        pieces: list[np.ndarray] = []
        position = 0
        for clip in (clip for clip in clips if clip.narrow == narrow):
            audio = np.clip(clip.recording.audio, -1, 1)
            times = clip.recording.words
            rows.append(
                {
                    "id": f"{voice.id}-{len(rows):03d}",
                    "text": clip.text,
                    "speaker": voice.speaker,
                    "split": voice.split,
                    "stream": name,
                    "start": position,
                    "num_samples": len(audio),
                    "sampling_rate": rate,
                    # start, end, start, end ... of the words of `text`, in milliseconds
                    "times": times
                    and [round(1000 * edge) for word in times for edge in (word.start, word.end)],
                }
            )
            pieces += [audio, silence]
            position += len(audio) + len(silence)
        if pieces:
            buffer = io.BytesIO()
            soundfile.write(
                buffer, np.concatenate(pieces), rate, format="OGG", subtype="OPUS", compression_level=level
            )
            streams[name] = buffer.getvalue()
    return streams, rows


def write(path: Path, streams: dict[str, bytes], rows: list[dict]) -> None:
    """Replaces `path` in one step: a reader sees the old corpus or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
            _add(archive, "index.jsonl", lines.encode(), zipfile.ZIP_DEFLATED)
            for name, blob in sorted(streams.items()):
                _add(archive, name, blob, zipfile.ZIP_STORED)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, blob: bytes, method: int) -> None:
    """With a fixed date: the time of making is no part of the contents."""
    entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
    entry.compress_type = method
    archive.writestr(entry, blob)
