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
    source, number = find_row(sources, starts, row)
    return source, source.utterances()[number]


def find_row(sources: Sequence[Source], starts: np.ndarray, row: int) -> tuple[Source, int]:
    """The source of a row, and the row's number therein."""
    number = int(np.searchsorted(starts, row, side="right")) - 1
    return sources[number], row - int(starts[number])


def join_group_bytes(sources: Sequence[Source]) -> np.ndarray:
    """The bytes of the groups of all sources, numbered on from source to source."""
    return np.concatenate([source.group_bytes() for source in sources])
