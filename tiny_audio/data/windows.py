"""Which rows of an epoch are mixed with which: windows of neighbouring rows, drawn at random from the whole set.

Batches of similar lengths are made inside of a window, so what planning an epoch takes of memory is bounded by the
window and not by the set. Where rows lie in groups that are cheap to read together (row groups of parquet shards),
a window also bounds what has been read at a time: it ends at a number of rows or of bytes, whichever comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tiny_audio.data.mapped import pieces

# Rows that are read one by one: 500 hours of speech.
WINDOW_ROWS = 1 << 18
# Rows in groups: a window is what a process keeps of them.
WINDOW_ROWS_OF_GROUPS = 16_384
# Nearly every batch draws from every group of its window, so a window has to fit what is kept of groups at a time.
# For 16-bit WAV, 100 s a batch are padded by 2.5% with this, 400 s by 5%; half as much costs the latter 2% more,
# twice as much saves it 1%.
WINDOW_BYTES = 640_000_000
# Rows without a group are cut into blocks of this many neighbours.
ROWS_OF_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Blocks:
    """Neighbouring rows that stay together: `bounds` (blocks + 1,) are positions; of each block, the bytes to be read
    for any row of it, and how often its rows are heard in an epoch."""

    bounds: np.ndarray
    num_bytes: np.ndarray
    weights: np.ndarray
    in_groups: bool

    def windows(self, seed: int, epoch: int) -> list[np.ndarray]:
        """The blocks of each window. A set without groups that fits into one window is one, in its own order."""
        heard = np.diff(self.bounds) * self.weights
        if not self.in_groups and heard.sum() <= WINDOW_ROWS:
            return [np.arange(len(heard))] if len(heard) else []
        most_rows = WINDOW_ROWS_OF_GROUPS if self.in_groups else WINDOW_ROWS
        order = np.random.default_rng([seed, epoch]).permutation(len(heard))
        windows, first, rows, num_bytes = [], 0, 0.0, 0
        for place, block in enumerate(order.tolist()):
            if place > first and num_bytes + self.num_bytes[block] > WINDOW_BYTES:
                windows.append(order[first:place])
                first, rows, num_bytes = place, 0.0, 0
            rows += heard[block]
            num_bytes += int(self.num_bytes[block])
            if rows >= most_rows:
                windows.append(order[first : place + 1])
                first, rows, num_bytes = place + 1, 0.0, 0
        return [*windows, order[first:]] if first < len(order) else windows

    def positions(self, window: np.ndarray) -> np.ndarray:
        """Of all rows of some blocks, block by block."""
        return np.concatenate([np.arange(self.bounds[block], self.bounds[block + 1]) for block in window])


def cut_blocks(
    groups: np.ndarray,
    group_bytes: np.ndarray,
    source_bounds: np.ndarray,
    weights: list[float],
) -> Blocks:
    """Blocks of rows: those of a group, and `ROWS_OF_BLOCK` neighbours where there are none.

    Args:
        groups: (rows,) rows of one number follow one another; negative: none.
        group_bytes: (groups,) how much is read and kept for the sake of any row of a group.
        source_bounds: (sources + 1,) the first row of each source, and the end. No block lies in two.
        weights: of each source.
    """
    changes = [source_bounds]
    for piece in pieces(len(groups)):
        first = max(piece.start - 1, 0)
        changes.append(first + 1 + np.flatnonzero(np.diff(groups[first : piece.stop])))
    cuts = np.unique(np.concatenate(changes))
    in_group = groups[cuts[:-1]]  # (stretches,)
    counts = np.where(in_group >= 0, 1, -(-np.diff(cuts) // ROWS_OF_BLOCK))
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # within their stretch
    starts = np.repeat(cuts[:-1], counts) + ROWS_OF_BLOCK * numbers
    group = np.repeat(in_group, counts).astype(np.int64)
    known = (group >= 0) & (group < len(group_bytes))
    num_bytes = np.zeros(len(starts), np.int64)
    num_bytes[known] = group_bytes[group[known]]
    source = np.searchsorted(source_bounds, starts, side="right") - 1
    return Blocks(
        np.append(starts, source_bounds[-1]),
        num_bytes,
        np.asarray(weights)[source],
        bool((in_group >= 0).any()),
    )
