"""What every source of speech offers, and what happens to the rows of one that cannot be used."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, overload

import numpy as np

from tiny_audio.data.utterance import Problem, Utterance
from tiny_audio.errors import UserError

Item = TypeVar("Item")

# A small folder is not refused for one or two bad files.
ALWAYS_ALLOWED_PROBLEMS = 3
PROBLEMS_IN_A_MESSAGE = 5


class Source(ABC):
    """Rows of speech with transcripts. Opening one scans its metadata; audio is read row by row.

    A source is picklable and safe to use after a fork, so that worker processes can read from it.

    Attributes:
        name: the SOURCE as the user wrote it.
        revision: the version of the data where the place it came from states one.
        problems: rows that the scan found unusable, with reasons.
        excluded: good rows that the rules of a known set leave out ("do not score this"), with reasons.
        weight: how often each row is heard in an epoch of training.
    """

    name: str
    revision: str | None = None
    problems: list[Problem]
    excluded: Sequence[Problem] = ()
    weight: float = 1.0

    @abstractmethod
    def utterances(self) -> Sequence[Utterance]:
        """The usable rows in a fixed order. Large sources build each `Utterance` when it is asked for."""

    @abstractmethod
    def read(self, utterance: Utterance, max_seconds: float | None = None) -> np.ndarray:
        """The waveform of one row: float32 (S,) at 16 kHz.

        Raises:
            AudioError: unreadable, empty, or longer than `max_seconds`.
        """

    def seconds(self) -> np.ndarray:
        """Length of each row in seconds, float32 (rows,); NaN where unknown."""
        lengths = (float("nan") if row.seconds is None else row.seconds for row in self.utterances())
        return np.fromiter(lengths, np.float32, len(self.utterances()))

    def groups(self) -> np.ndarray | None:
        """int64 (rows,): rows of one number are cheap to read together; None: all are read one by one."""
        return None

    def group_bytes(self) -> np.ndarray:
        """int64 (groups,): what has to be read for the sake of any row of each group; empty without groups."""
        return np.zeros(0, np.int64)

    def fetch(self, row: int) -> None:  # noqa: B027 (most sources are near)
        """Gets what reading this row, or any of its group, will need, where that lies elsewhere."""

    def identity(self) -> str | None:
        """Another one where the files that hold the transcripts may have changed; None: there is no telling."""
        return None

    def prepare(self) -> None:  # noqa: B027 (most sources have nothing to prepare)
        """Do once, before worker processes start, what they would otherwise each do at first reading."""

    def require_rows(self) -> None:
        """Raise UserError if no row is usable."""
        if len(self.utterances()) == 0:
            reasons = f": {list_problems(self.problems)}" if self.problems else ""
            raise UserError(f"{self.name}: no usable speech with transcript found{reasons}")


class LazySequence(Sequence[Item]):
    """A sequence whose items are built by `build(index)` each time they are asked for."""

    def __init__(
        self,
        length: int,
        build: Callable[[int], Item],
        in_turn: Callable[[int], Iterator[Item]] | None = None,
    ) -> None:
        """`in_turn(first)`: the items from `first` on, where that is quicker than one by one."""
        self._length = length
        self._build = build
        self._in_turn = in_turn

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._build(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        return self._build(index % self._length)

    def __iter__(self) -> Iterator[Item]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[Item]:
        if self._in_turn is not None:
            return self._in_turn(first)
        return (self._build(i) for i in range(first, self._length))


def allowed_problems(num_rows: int, max_bad_fraction: float) -> int:
    """How many of `num_rows` rows may be unusable before a run stops; none where the fraction is 0."""
    if max_bad_fraction == 0:
        return 0
    return max(ALWAYS_ALLOWED_PROBLEMS, int(max_bad_fraction * num_rows))


def check_problems(problems: Sequence[Problem], num_rows: int, max_bad_fraction: float, where: str) -> None:
    """Raise UserError if more rows are unusable than allowed. `num_rows` counts good and bad."""
    allowed = allowed_problems(num_rows, max_bad_fraction)
    if len(problems) > allowed:
        raise UserError(
            f"{where}: {len(problems)} of {num_rows} rows cannot be used, more than the {allowed} that "
            f"data.max_bad_fraction={max_bad_fraction:g} allows: {list_problems(problems)}"
        )


def list_problems(problems: Sequence[Problem]) -> str:
    """The first few problems as one line."""
    listed = "; ".join(str(problem) for problem in problems[:PROBLEMS_IN_A_MESSAGE])
    more = len(problems) - PROBLEMS_IN_A_MESSAGE
    return listed + (f"; and {more} more" if more > 0 else "")


def show_progress(
    items: Iterable[Item], description: str, total: int, at_least: int = 2000
) -> Iterable[Item]:
    """`items`, with a progress bar on standard error where a person has to wait for `at_least` so many."""
    if total < at_least or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(
        items,
        description=description,
        total=total,
        console=Console(stderr=True),
        transient=True,
    )
