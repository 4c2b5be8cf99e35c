"""What was recognised in the windows of a recording, put together by its times.

Where two windows overlap, a word belongs to the window whose core holds its middle: times decide, since text cannot
tell "five five", said twice, from one "five" heard in both windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .asr_alignment import TimedWord
from .asr_audio import SAMPLING_RATE
from .asr_windows import Window

MOST_PARTS = 32  # of two neighbouring windows, when both have failed and were cut into the shortest


@dataclass(frozen=True)
class Problem:
    """A stretch of a recording, in seconds, of which something is missing or doubtful, and why."""

    start: float
    end: float
    reason: str

    def __str__(self) -> str:
        return f"{self.start:.1f}-{self.end:.1f} s: {self.reason}"


@dataclass(frozen=True)
class Segment:
    """The text of one window with its start and end in seconds; `words` where times were asked for."""

    text: str
    start: float
    end: float
    words: list[TimedWord] | None = None


@dataclass
class Recognition:
    """What was said in a recording of `seconds`, and what could not be recognised of it."""

    segments: list[Segment] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)

    @property
    def words(self) -> list[TimedWord]:
        """All words with their times, where times were asked for; else those of windows that overlap others."""
        return [word for segment in self.segments for word in segment.words or []]


@dataclass
class Piece:
    """A window and what was recognised in it: `words` are timed from the beginning of the recording."""

    window: Window
    text: str = ""
    words: list[TimedWord] | None = None
    failure: Exception | None = None
    decoded: bool = False  # windows without speech never reach the decoder


def merge(pieces: Sequence[Piece]) -> Recognition:
    """The pieces of one recording, in order, to its text. Where windows overlap, times decide."""
    pieces = list(pieces)
    for first in range(len(pieces)):  # several parts of a window that has failed may reach into the next one
        for second in range(first + 1, min(first + 1 + MOST_PARTS, len(pieces))):
            pieces[first], pieces[second] = separate(pieces[first], pieces[second])
    result = Recognition(seconds=pieces[-1].window.core_end / SAMPLING_RATE if pieces else 0.0)
    for piece in pieces:
        start, end = piece.window.core_start / SAMPLING_RATE, piece.window.core_end / SAMPLING_RATE
        if piece.failure is not None:
            reason = " ".join(str(piece.failure).split()) or type(piece.failure).__name__
            result.problems.append(Problem(start, end, f"could not be recognised ({reason})"))
        elif piece.text:
            words = piece.words
            if words:
                start, end = words[0].start, words[-1].end
            result.segments.append(Segment(piece.text, start, end, words))
    return result


def separate(first: Piece, second: Piece) -> tuple[Piece, Piece]:
    """Two pieces that follow each other, each with its own words alone."""
    if second.window.start >= first.window.end:
        return first, second  # they meet at a cut
    if not first.words or not second.words:
        return first, second  # one has failed, or wrote nothing: the other keeps all that it has
    border = _border(first, second)
    return _cut(first, None, border), _cut(second, border, None)


def _border(first: Piece, second: Piece) -> float:
    """Where in the overlap of two windows, in seconds, the one's words end and the other's begin.

    The middle, or the nearest time to it that lies in no word of either: a word across the border could have its
    middle on one side in the one window, and on the other in the other.
    """
    begin = second.window.start / SAMPLING_RATE
    end = first.window.end / SAMPLING_RATE
    middle = min(max(second.window.core_start / SAMPLING_RATE, begin), end)
    words = [*(first.words or []), *(second.words or [])]
    candidates = [middle, *(word.start for word in words), *(word.end for word in words)]
    free = [
        time
        for time in candidates
        if begin <= time <= end and not any(word.start < time < word.end for word in words)
    ]
    return min(free, key=lambda time: abs(time - middle), default=middle)


def _cut(piece: Piece, after: float | None, before: float | None) -> Piece:
    """The piece with the words alone whose middle lies at `after` or later, and before `before`."""
    kept = [
        word
        for word in piece.words or []
        if (after is None or (word.start + word.end) / 2 >= after)
        and (before is None or (word.start + word.end) / 2 < before)
    ]
    return replace(piece, words=kept, text=" ".join(word.text for word in kept))
