"""The planner: every row once, within budget, in an order that only seed and epoch decide."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_audio.data.batching import Budget, LengthBucket, WindowPlan, dense_texts, plan_window

lengths = st.lists(st.floats(0.01, 40.0), max_size=120)


def plan(seconds: Any, **changes: Any) -> WindowPlan:
    arguments = {"seed": [1, 0], "batch_seconds": 60.0, "max_clips": 16} | changes
    seconds = np.array(seconds)
    return plan_window(seconds, np.ceil(3 * seconds), **arguments)


@settings(max_examples=150, deadline=None)
@given(
    seconds=lengths,
    budget=st.floats(0.5, 100.0),
    max_clips=st.integers(1, 40),
    epoch=st.integers(0, 5),
)
def test_every_row_once_and_never_over_the_budget(
    seconds: list[float], budget: float, max_clips: int, epoch: int
) -> None:
    batches = plan(seconds, batch_seconds=budget, max_clips=max_clips, seed=[1, epoch])
    assert sorted(row for batch in batches for row in batch) == list(range(len(seconds)))
    for batch in batches:
        assert 1 <= len(batch) <= max_clips
        assert len(batch) == 1 or max(seconds[row] for row in batch) * len(batch) <= budget


@settings(max_examples=50, deadline=None)
@given(seconds=st.lists(st.floats(0.5, 30.0), min_size=60, max_size=120), seed=st.integers(0, 2**32 - 1))
def test_the_order_is_a_function_of_seed_and_epoch(seconds: list[float], seed: int) -> None:
    def batches(**changes: Any) -> list[list[int]]:
        return list(plan(seconds, **({"seed": [seed, 0]} | changes)))

    assert batches() == batches()
    assert batches() != batches(seed=[seed, 1])
    assert batches() != batches(seed=[seed + 1, 0])


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_rows_without_words_are_among_those_with(share: float) -> None:
    """A step of noise alone would teach the model to write nothing, and look like a spike."""
    seconds = speech_lengths(20_000)
    generator = np.random.default_rng(1)
    tokens = np.where(generator.random(len(seconds)) < share, 1, np.ceil(3.5 * seconds) + 1)
    batches = plan_window(seconds, tokens, seed=[0], batch_seconds=100.0, max_clips=64)
    assert not any((tokens[batch] == 1).all() for batch in batches)
    assert batches.padding_share(seconds) < 0.05


def speech_lengths(num: int, seed: int = 0) -> np.ndarray:
    """Log-normal with a mean of 7 s, between 1 and 25 s."""
    drawn = np.random.default_rng(seed).lognormal(np.log(7) - 0.18, 0.6, num)
    return drawn.clip(1, 25)


def test_little_padding() -> None:
    for num, most in ((3500, 0.05), (30_000, 0.045)):
        seconds = speech_lengths(num)
        batches = plan(seconds, batch_seconds=200, max_clips=64)
        by_hand = 1 - seconds.sum() / sum(seconds[batch].max() * len(batch) for batch in batches)
        assert batches.padding_share(seconds) == pytest.approx(by_hand)
        assert by_hand < most
        at_random = np.random.default_rng(0).permutation(num).reshape(-1, 25)
        assert 1 - seconds.sum() / sum(seconds[batch].max() * 25 for batch in at_random) > 0.4


def test_texts_of_a_batch_are_alike_where_lengths_are() -> None:
    seconds = speech_lengths(30_000)
    tokens = seconds * np.random.default_rng(1).uniform(2.0, 4.5, len(seconds))
    batches = plan_window(seconds, tokens, seed=[1, 0], batch_seconds=200, max_clips=64)
    blind = plan_window(seconds, np.zeros(len(seconds)), seed=[1, 0], batch_seconds=200, max_clips=64)
    assert batches.padding_share(tokens) < 0.08 < 0.2 < blind.padding_share(tokens)


def test_batches_have_other_members_and_another_order_each_epoch() -> None:
    seconds = speech_lengths(4000)
    first, second = plan(seconds), plan(seconds, seed=[1, 1])
    repeated = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}
    assert len(repeated) < 0.02 * len(first)  # pairs of the longest clips may meet again
    longest = np.array([seconds[batch].max() for batch in first])
    neighbours = np.corrcoef(longest[:-1], longest[1:])[0, 1]
    assert abs(neighbours) < 0.2  # short and long batches follow one another at random


def test_a_plan_is_a_sequence() -> None:
    batches = plan(speech_lengths(200))
    listed = list(batches)
    assert batches[0] == listed[0] and batches[-1] == listed[-1] and batches[1:3] == listed[1:3]
    assert len(batches) == len(listed)
    with pytest.raises(IndexError):
        batches[len(batches)]
    assert len(plan([])) == 0 and list(plan([])) == [] and plan([]).padding_share(np.zeros(0)) == 0.0


def test_short_first_goes_from_short_to_long_with_the_same_batches() -> None:
    seconds = speech_lengths(400)
    usual, ordered = plan(seconds), plan(seconds, short_first=True)
    assert sorted(map(sorted, usual)) == sorted(map(sorted, ordered))
    longest = [max(seconds[row] for row in batch) for batch in ordered]
    assert all(later > 0.9 * earlier for earlier, later in pairwise(longest))
    assert longest[-1] > 4 * longest[0]


def test_each_length_has_its_own_budget() -> None:
    seconds = speech_lengths(2000)
    budgets = [Budget(2.0, 20.0), Budget(5.0, 60.0), Budget(20.0, 40.0)]
    batches = plan(seconds, batch_seconds=budgets, max_clips=100)
    assert sorted(row for batch in batches for row in batch) == list(range(2000))
    fullest = dict.fromkeys((2.0, 5.0, 20.0), 0.0)
    for batch in batches:
        longest = float(seconds[batch].max())
        bound = next(
            (bound for bound in fullest if longest <= bound), 20.0
        )  # the last holds beyond its length
        if len(batch) > 1:
            fullest[bound] = max(fullest[bound], longest * len(batch))
    for budget in budgets:
        assert 0.8 * budget.batch_seconds < fullest[budget.longest_seconds] <= budget.batch_seconds
    # One budget for all lengths is the plain number.
    assert list(plan(seconds, batch_seconds=[Budget(1.0, 60.0)])) == list(plan(seconds, batch_seconds=60.0))
    assert list(plan(seconds, batch_seconds=[Budget(3.0, 60.0), Budget(9.0, 60.0)])) == list(plan(seconds))


def test_dense_texts_of_the_lengths_that_are_there() -> None:
    seconds = np.concatenate([np.linspace(0.2, 0.9, 50), np.linspace(5.0, 8.0, 3000), [21.0]])
    tokens = 3.0 * seconds
    tokens[[10, 70, 80, 90, 100]] *= 2, 9, 8, 7, 6  # two of 3000 lie above the quantile
    buckets = dense_texts(seconds, tokens, 20.0)
    assert [round(bound, 2) for bound, _ in buckets] == [1.17, 5.93, 8.89, 20.0]
    assert [row for _, row in buckets][::3] == [10, 3050]
    assert dense_texts(seconds[50:3050], tokens[50:3050], 0.5) == [(0.5, 40)]


def test_a_dense_text_is_repeated_or_cut() -> None:
    bucket = LengthBucket(6.0, "so it is", 2.0)
    assert bucket.text_of(6.0) == "so it is so it is so it "
    assert bucket.text_of(1.0) == "so i" and bucket.shortest_seconds == 4.0
    assert LengthBucket(6.0, "", 2.0).text_of(6.0).strip() == ""
