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


def join_groups(sources: Sequence[Source]) -> np.ndarray | None:
    """The groups of all sources with numbers that do not clash; -1 for rows that may be read in any order."""
    parts = [source.groups() for source in sources]
    if all(part is None for part in parts):
        return None
    joined, first = [], 0
    for source, part in zip(sources, parts, strict=True):
        if part is None:
            joined.append(np.full(len(source.utterances()), -1, np.int64))
        else:
            joined.append(part.astype(np.int64) + first)
            first += int(part.max(initial=-1)) + 1
    return np.concatenate(joined)
