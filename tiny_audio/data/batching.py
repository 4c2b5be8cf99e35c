"""The batches of a window of rows: a pure function of (metadata, seed).

Rows of similar length go into one batch, so that little of it is padding; the batch takes as many rows as its
budget of seconds holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from tiny_audio.data.mapped import pieces

# Lengths are blurred by this share either way before sorting: batches then have other members each epoch, at
# a cost in padding of about a third of it.
LENGTH_JITTER = 0.03
# Rows whose blurred lengths agree within this ratio are sorted by tokens, so that text is padded little, too.
LENGTH_RATIO_OF_BUCKET = 1.04
END_TOKEN = 1  # the tokens of a row without words
# Lengths are told apart for `training.batch_seconds=auto` by buckets: each ends at this multiple of the one before.
BUCKET_RATIO = 1.5
SHORTEST_BUCKET_SECONDS = 1.0
# A text is tried that is denser than this share of a bucket's texts: a transcript of another clip may be denser still.
DENSE_QUANTILE = 0.999


@dataclass(frozen=True, slots=True)
class Budget:
    """What a batch may hold whose longest row has up to `longest_seconds`, and more than those of the budget before."""

    longest_seconds: float
    batch_seconds: float
    peak_bytes: int = 0  # of memory, when it was found; 0: not known


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """Rows up to `longest_seconds`, and a text that is dense for them: one of `text_seconds`, to be repeated or cut."""

    longest_seconds: float
    text: str
    text_seconds: float

    @property
    def shortest_seconds(self) -> float:
        return self.longest_seconds / BUCKET_RATIO

    def text_of(self, seconds: float) -> str:
        """As dense as `text`, for so many seconds."""
        share = seconds / max(self.text_seconds, 1e-3)
        return (f"{self.text} " * math.ceil(share))[: math.ceil(len(self.text) * share)]


class WindowPlan(Sequence[list[int]]):
    """The batches of one window as lists of row numbers, held as two arrays."""

    def __init__(self, order: np.ndarray, bounds: np.ndarray) -> None:
        self._order = order  # (rows,) row numbers
        self._bounds = bounds  # (batches + 1,) where each batch begins in `order`

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...

    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        index %= len(self)
        return self._order[self._bounds[index] : self._bounds[index + 1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[i] for i in range(len(self)))

    def padded(self, lengths: np.ndarray) -> float:
        """The sum of all batches with their padding, when rows have `lengths` (rows,) in any unit."""
        if len(self) == 0:
            return 0.0
        longest = np.maximum.reduceat(lengths[self._order].astype(np.float64), self._bounds[:-1])
        return float((longest * np.diff(self._bounds)).sum())

    def padding_share(self, lengths: np.ndarray) -> float:
        """The share of that which is padding."""
        padded = self.padded(lengths)
        return 1.0 - float(lengths[self._order].sum(dtype=np.float64)) / padded if padded > 0 else 0.0


def plan_window(
    seconds: np.ndarray,
    token_counts: np.ndarray,
    *,
    seed: Sequence[int],
    batch_seconds: float | Sequence[Budget],
    max_clips: int,
    short_first: bool = False,
) -> WindowPlan:
    """Cut a window into batches: every row once, in an order that depends on nothing but the arguments.

    Args:
        seconds: (rows,) length of each row as the model will hear it.
        token_counts: (rows,) text tokens of each row, the one that ends a text included.
        batch_seconds: longest row x rows of a batch is at most this; a longer row is a batch by itself. Budgets of
            ascending `longest_seconds`: the longest row decides which of them holds, the last one for all beyond.
        max_clips: most rows of a batch.
        short_first: batches go from short to long instead of at random (SortaGrad, arXiv:1512.02595).
    """
    seconds = np.asarray(seconds, dtype=np.float64)
    if len(seconds) == 0:
        return WindowPlan(np.zeros(0, np.int64), np.zeros(1, np.int64))
    generator = np.random.default_rng(seed)
    rows = _sort_by_length(seconds, np.asarray(token_counts, dtype=np.float64), generator)
    starts = _cut(seconds[rows], _allowed(seconds[rows], batch_seconds), max_clips)
    turns = generator.permutation(len(starts))
    order, sizes = _take_turns(rows, starts, np.arange(len(starts)) if short_first else turns)
    return WindowPlan(order, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))


def _sort_by_length(
    seconds: np.ndarray, token_counts: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """The order of rows by blurred length, and among rows of about the same length by blurred tokens.

    Rows without a text stand among those with one: a batch of nothing else would teach silence alone for a step.
    """
    num_rows = len(seconds)
    step = np.log(LENGTH_RATIO_OF_BUCKET)
    blurred = np.log(np.maximum(seconds, 1e-3)) + generator.uniform(-LENGTH_JITTER, LENGTH_JITTER, num_rows)
    bucket = np.floor(blurred / step + generator.random())
    silent, spoken = np.flatnonzero(token_counts <= END_TOKEN), np.flatnonzero(token_counts > END_TOKEN)
    if len(silent) and len(spoken):
        by_length = spoken[np.argsort(blurred[spoken])]
        neighbours = np.searchsorted(blurred[by_length], blurred[silent]).clip(max=len(spoken) - 1)
        token_counts = token_counts.copy()
        token_counts[silent] = token_counts[by_length[neighbours]]
    tokens = (token_counts + 1.0) * np.exp(generator.uniform(-LENGTH_JITTER, LENGTH_JITTER, num_rows))
    # Tokens rise in one bucket and fall in the next: a batch across a border holds similar texts.
    return np.lexsort([np.where(bucket % 2 == 0, tokens, -tokens), bucket])


def dense_texts(
    seconds: np.ndarray, token_counts: np.ndarray, longest_seconds: float
) -> list[tuple[float, int]]:
    """Buckets of lengths up to `longest_seconds`: (where it ends, a row of it with many tokens a second), ascending.

    A bucket without rows is part of the next longer one; so is what is longer than the last of the longest.
    """
    count = max(0, int(np.log(longest_seconds / SHORTEST_BUCKET_SECONDS) / np.log(BUCKET_RATIO)))
    bounds = longest_seconds / BUCKET_RATIO ** np.arange(count, -1, -1)
    bucket = np.minimum(np.searchsorted(bounds, seconds), count)  # (rows,)
    density = token_counts / np.maximum(seconds, 1e-3)
    found = []
    for number in np.unique(bucket).tolist():
        rows = np.flatnonzero(bucket == number)
        place = math.ceil(DENSE_QUANTILE * (len(rows) - 1))
        found.append((float(bounds[number]), int(rows[np.argpartition(density[rows], place)[place]])))
    return found


def _allowed(seconds: np.ndarray, batch_seconds: float | Sequence[Budget]) -> np.ndarray:
    """(rows,) the budget of a batch that each row is the longest of."""
    if isinstance(batch_seconds, int | float):
        return np.broadcast_to(float(batch_seconds), len(seconds))
    bounds = [budget.longest_seconds for budget in batch_seconds]
    numbers = np.minimum(np.searchsorted(bounds, seconds), len(bounds) - 1)
    return np.array([budget.batch_seconds for budget in batch_seconds])[numbers]


def _cut(seconds: np.ndarray, allowed: np.ndarray, max_clips: int) -> np.ndarray:
    """Where batches begin in a sequence of rows, each as full as its longest row's budget allows."""
    starts = [0]
    longest = budget = 0.0
    size = 0
    for row, (length, own_budget) in enumerate(zip(_numbers(seconds), _numbers(allowed), strict=True)):
        if length > longest:
            longest, budget = length, own_budget
        if size > 0 and (size >= max_clips or longest * (size + 1) > budget):
            starts.append(row)
            longest, budget, size = length, own_budget, 0
        size += 1
    return np.array(starts, dtype=np.int64)


def _numbers(values: np.ndarray) -> Iterator[float]:
    """Python's own numbers, which are fast one by one and large all at once."""
    return itertools.chain.from_iterable(values[piece].tolist() for piece in pieces(len(values)))


def _take_turns(rows: np.ndarray, starts: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The batches that begin at `starts` in the order of `turns`: their rows one after another, and their sizes."""
    sizes = np.diff(starts, append=len(rows))[turns]
    moved = starts[turns] - (np.cumsum(sizes) - sizes)  # how far each batch moves to the left
    return rows[np.repeat(moved, sizes) + np.arange(len(rows))], sizes
