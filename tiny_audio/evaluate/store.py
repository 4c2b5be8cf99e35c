"""Transcripts kept on disk: what was recognised once is not paid for again, in minutes or in money.

A store is a file of JSON lines, appended to as transcripts come in, so that an evaluation which was stopped,
even by `kill -9`, goes on where it stood. A key is a hash of the recogniser's identity and of the audio itself:
another model, another option or another sound is another key, and a stale transcript cannot be found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiny_audio.files import cache_folder


@dataclass(frozen=True)
class StoredTranscript:
    """A transcript with the audio seconds it is of and its share of the time that its batch took."""

    text: str
    audio_seconds: float
    wall_seconds: float


class TranscriptStore:
    """The transcripts of one recogniser.

    Args:
        path: the file; made when the first transcript is kept. A last line that was cut short is left out.
        identity: `Provider.identity`.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._identity = _hash(identity)
        rows = _read_lines(path)
        self._transcripts = {key: row for key, row in rows if key.startswith(self._identity)}

    def __len__(self) -> int:
        return len(self._transcripts)

    def key(self, waveform: NDArray[np.float32]) -> str:
        """The key of a waveform float32 (S,)."""
        return f"{self._identity}-{hashlib.blake2b(waveform.tobytes(), digest_size=16).hexdigest()}"

    def get(self, key: str) -> StoredTranscript | None:
        """What is known of a key."""
        return self._transcripts.get(key)

    def add(self, transcripts: Sequence[tuple[str, StoredTranscript]]) -> None:
        """Keep transcripts under their keys. Raises OSError when they cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"key": key, **asdict(transcript)}) for key, transcript in transcripts]
        # The newline in front ends a line that an earlier process could not finish.
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write("".join(f"\n{line}" for line in lines))
        self._transcripts.update(transcripts)

    def remove(self) -> None:
        """Delete the file and forget what was in it."""
        self.path.unlink(missing_ok=True)
        self._transcripts = {}


def cached_store(identity: str) -> TranscriptStore:
    """The store of a recogniser whose transcripts are kept for good, in the user's cache folder."""
    return TranscriptStore(cache_folder() / "transcripts" / f"{_hash(identity)}.jsonl", identity)


def _hash(identity: str) -> str:
    return hashlib.blake2b(identity.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _read_lines(path: Path) -> list[tuple[str, StoredTranscript]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
            transcript = StoredTranscript(
                str(row["text"]), float(row["audio_seconds"]), float(row["wall_seconds"])
            )
            found.append((str(row["key"]), transcript))
        except (ValueError, KeyError, TypeError):  # the line a process was killed in
            continue
    return found
