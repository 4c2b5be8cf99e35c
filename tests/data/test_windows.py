"""Which rows are mixed: each once an epoch, neighbours together, within what may be kept at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_batching import plan, speech_lengths
from tiny_audio.data import windows
from tiny_audio.data.epoch import Turns
from tiny_audio.data.windows import ROWS_OF_BLOCK, Blocks, cut_blocks

NO_BYTES = np.zeros(0, np.int64)


def blocks_of(groups: np.ndarray, sizes: np.ndarray = NO_BYTES) -> Blocks:
    return cut_blocks(groups, sizes, np.array([0, len(groups)]), [1.0])


def all_positions(blocks: Blocks, epoch: int = 0) -> list[np.ndarray]:
    return [blocks.positions(window) for window in blocks.windows(1, epoch)]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 700), st.booleans()), max_size=12),
    num_sources=st.integers(1, 4),
    epoch=st.integers(0, 3),
    window_rows=st.integers(1, 3000),
    piece=st.integers(1, 50),
)
def test_every_row_once_an_epoch(
    sizes: list[tuple[int, bool]], num_sources: int, epoch: int, window_rows: int, piece: int
) -> None:
    groups = np.repeat(
        np.array([n if grouped else -1 for n, (_, grouped) in enumerate(sizes)], np.int64),
        [size for size, _ in sizes],
    )
    bounds = np.linspace(0, len(groups), num_sources + 1).astype(int)
    # A source that ends inside of a group would be two groups.
    groups = groups + 100 * (np.searchsorted(bounds, np.arange(len(groups)), side="right") - 1) * (
        groups >= 0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_ROWS", window_rows)
        patch.setattr("tiny_audio.data.mapped.PIECE_ROWS", piece)
        blocks = cut_blocks(groups, NO_BYTES, bounds, [1.0] * num_sources)
        rows = [row for part in all_positions(blocks, epoch) for row in part.tolist()]
    assert sorted(rows) == list(range(len(groups)))
    for start, end in zip(blocks.bounds, blocks.bounds[1:], strict=False):
        assert len(set(groups[start:end].tolist())) == 1
        assert groups[start] >= 0 or end - start <= ROWS_OF_BLOCK
        assert not any(start < bound < end for bound in bounds)


def test_a_set_without_groups_is_one_window_until_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(np.full(20_000, -1))
    (everything,) = all_positions(blocks)
    assert everything.tolist() == list(range(20_000))
    monkeypatch.setattr(windows, "WINDOW_ROWS", 5_000)
    parts = all_positions(blocks)
    assert [5_000 <= len(part) < 5_000 + ROWS_OF_BLOCK for part in parts] == [True, True, True, False]
    assert np.std([part.mean() for part in parts]) < 3_000  # each from all over the set
    assert [part.tolist() for part in parts] == [part.tolist() for part in all_positions(blocks)]
    assert parts[0].tolist() != all_positions(blocks, epoch=1)[0].tolist()


def test_reading_stays_inside_a_window_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = speech_lengths(20_000)
    groups = np.arange(20_000) // 100  # 200 row groups
    monkeypatch.setattr(windows, "WINDOW_ROWS_OF_GROUPS", 1000)
    parts = all_positions(blocks_of(groups))
    assert [len(set(groups[part].tolist())) for part in parts] == [10] * 20
    assert all(plan(seconds[part]).padding_share(seconds[part]) < 0.1 for part in parts)
    order = [int(groups[part[0]]) for part in parts]
    assert order != sorted(order)  # in random order


def test_a_window_of_groups_ends_at_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.repeat([*range(50), -1], [100] * 50 + [1000])  # and rows that are read one by one
    sizes = np.random.default_rng(0).integers(5, 20, 60)  # the last groups hold none of the rows
    blocks = blocks_of(groups, sizes)
    monkeypatch.setattr(windows, "WINDOW_BYTES", 60)
    taken = [sizes[sorted(set(groups[part].tolist()) - {-1})].sum() for part in all_positions(blocks)]
    assert 40 < max(taken) <= 60 and sum(taken) == sizes[:50].sum()
    monkeypatch.setattr(windows, "WINDOW_BYTES", 1)
    one_each = all_positions(blocks)
    assert all(len(set(groups[part].tolist()) - {-1}) <= 1 for part in one_each)
    assert sorted(row for part in one_each for row in part.tolist()) == list(range(6000))
    monkeypatch.setattr(windows, "WINDOW_BYTES", 10**9)
    monkeypatch.setattr(windows, "WINDOW_ROWS_OF_GROUPS", 1000)
    by_rows = [part.tolist() for part in all_positions(blocks)]
    assert by_rows == [part.tolist() for part in all_positions(blocks_of(groups))]


def test_little_padding_in_a_window_of_long_recordings() -> None:
    seconds = speech_lengths(20_000)
    groups = np.arange(len(seconds)) // 100
    sizes = np.bincount(groups, seconds * 32_000).astype(np.int64)  # WAV of 16 bit
    parts = all_positions(blocks_of(groups, sizes))
    for batch_seconds, most in ((100, 0.03), (200, 0.04), (300, 0.05)):
        padded = sum(
            plan(seconds[part], batch_seconds=batch_seconds, max_clips=256).padded(seconds[part])
            for part in parts
        )
        assert 1 - seconds.sum() / padded < most


def test_windows_count_what_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 1024)
    bounds, weights = np.array([0, 8192, 8704]), [0.125, 4.0]
    blocks = cut_blocks(np.full(8704, -1), NO_BYTES, bounds, weights)
    turns = Turns(bounds, weights, 1, 0)
    heard = [len(turns.heard(part)[0]) for part in all_positions(blocks)]
    assert sum(heard) == 1024 + 2048 and all(size < 2 * 1024 + 256 for size in heard) and len(heard) <= 4
