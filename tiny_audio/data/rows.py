"""The rows of several sources, numbered as those of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tiny_audio.data.source import Source
from tiny_audio.data.utterance import Utterance


def row_starts(sources: Sequence[Source]) -> np.ndarray:
    """Where the rows of each source begin among the rows of all, and after them where they end."""
    return np.cumsum([0, *(len(source.utterances()) for source in sources)])


def find_utterance(sources: Sequence[Source], starts: np.ndarray, row: int) -> tuple[Source, Utterance]:
    """A row by its number within all sources together; `starts` are their `row_starts`."""
    number = int(np.searchsorted(starts, row, side="right")) - 1
    return sources[number], sources[number].utterances()[row - int(starts[number])]


def times_before(keys: np.ndarray) -> np.ndarray:
    """uint64 (rows,): how often each key was there in earlier rows; of rows left out, with key 0, nobody asks."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    times = np.empty(len(keys), np.uint64)
    times[order] = np.arange(len(keys)) - np.searchsorted(ordered, ordered)
    return times


def join_groups(sources: Sequence[Source]) -> tuple[np.ndarray | None, np.ndarray]:
    """The groups of all sources with numbers that do not clash, -1 for rows read in any order; and their bytes."""
    parts = [source.groups() for source in sources]
    num_bytes = [source.group_bytes() for source in sources]
    if all(part is None for part in parts):
        return None, np.zeros(0, np.int64)
    joined, first = [], 0
    for source, part, sizes in zip(sources, parts, num_bytes, strict=True):
        rows = len(source.utterances())
        joined.append(np.full(rows, -1, np.int64) if part is None else part.astype(np.int64) + first)
        first += len(sizes)
    return np.concatenate(joined), np.concatenate(num_bytes)
