"""One clip of speech with its transcript, as every source of data describes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AudioRef:
    """Where the audio of an utterance lies: a file, or row `row` of a file or split that holds many."""

    location: str
    row: int | None = None

    def __str__(self) -> str:
        return self.location if self.row is None else f"{self.location}#{self.row}"


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a transcript with its start and end in seconds from the start of the clip."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """Metadata of one clip. The audio itself is read by the source it came from: ``source.read(utterance)``.

    `id` names the clip in reports and seeds its augmentation; `text` is the transcript as the source has it,
    before any clean-up, and is empty for clips without speech; `seconds` is None where the source cannot know
    it without decoding; `language` is what the source calls it ("en", "en-GB", "English"), None where it says nothing.
    """

    id: str
    text: str
    seconds: float | None
    audio: AudioRef
    speaker: str | None = None
    words: tuple[Word, ...] | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be used, and why, in the words that a report prints.

    `utterance` is there where what is said is known and only the audio is missing or broken: training does without
    it, an evaluation counts its words as lost.
    """

    name: str
    reason: str
    utterance: Utterance | None = None

    def __str__(self) -> str:
        return self.reason if self.reason.startswith(self.name) else f"{self.name}: {self.reason}"


def utterance_key(utterance_id: str) -> int:
    """A 64-bit key of an id, the same in every process and on every machine (`hash` is not)."""
    return int.from_bytes(
        hashlib.blake2b(utterance_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(),
        "little",
    )
