import itertools
import math

import numpy as np
import pytest

from tiny_audio.evaluate.significance import (
    MIN_DIFFERING,
    MIN_UTTERANCES,
    holm,
    matched_pairs_p_value,
    paired_bootstrap,
)


def simulate(generator: np.random.Generator, second_rate: float) -> tuple[list[int], list[int], list[int]]:
    """Errors of two recognisers on 200 utterances, hard ones hard for both; the first errs at 0.2 on average."""
    lengths = generator.integers(1, 20, size=200)
    hardness = generator.uniform(0.2, 1.8, size=200)
    first, second = (generator.binomial(lengths, rate * hardness) for rate in (0.2, second_rate))
    return first.tolist(), second.tolist(), lengths.tolist()


def test_the_matched_pairs_test_by_hand() -> None:
    # 100 utterances, differences +1 on 30 and -1 on 10: mean 0.2, sum of squares 40,
    # variance (40 - 100 * 0.04) / 99 = 0.363636, W = 0.2 / sqrt(0.00363636) = 3.316625, p = 2 * (1 - Phi(W)).
    first = [1] * 30 + [0] * 10 + [2] * 60
    second = [0] * 30 + [1] * 10 + [2] * 60
    assert matched_pairs_p_value(first, second) == pytest.approx(0.000911119, rel=1e-5)


def test_the_matched_pairs_test_agrees_with_the_t_test_of_its_statistic() -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second, _ = simulate(np.random.default_rng(3), 0.25)
    statistic = stats.ttest_rel(first, second).statistic
    assert matched_pairs_p_value(first, second) == pytest.approx(2 * stats.norm.sf(abs(statistic)))


def test_the_order_of_the_two_does_not_matter() -> None:
    first, second, lengths = simulate(np.random.default_rng(1), 0.25)
    assert matched_pairs_p_value(first, second) == matched_pairs_p_value(second, first)
    forth, back = paired_bootstrap(first, second, lengths), paired_bootstrap(second, first, lengths)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert forth.probability_of_improvement == pytest.approx(1 - back.probability_of_improvement)


def test_too_few_utterances_or_differences_give_no_p_value() -> None:
    few = MIN_UTTERANCES - 1
    assert matched_pairs_p_value([1] * few, [0] * few) is None
    assert matched_pairs_p_value([], []) is None
    rest = [0] * MIN_UTTERANCES
    assert matched_pairs_p_value([1] * (MIN_DIFFERING - 1) + rest, [0] * (MIN_DIFFERING - 1) + rest) is None
    assert matched_pairs_p_value([1] * MIN_DIFFERING + rest, [0] * MIN_DIFFERING + rest) == pytest.approx(
        0.000590,
        rel=0.01,  # W = 3.436
    )


def test_the_edges() -> None:
    assert matched_pairs_p_value([3] * 60, [3] * 60) == 1.0
    assert matched_pairs_p_value([3] * 60, [1] * 60) == 0.0
    assert paired_bootstrap([], [], []).probability_of_improvement == 0.5
    same = paired_bootstrap([1, 2], [1, 2], [3, 4])
    assert (same.low, same.high, same.probability_of_improvement) == (0, 0, 0.5)
    silence = paired_bootstrap([1, 1], [0, 0], [0, 0])  # words written where nothing was said
    assert silence.high < 0 and silence.probability_of_improvement == 1
    with pytest.raises(ValueError, match="2 utterances of one against 1"):
        matched_pairs_p_value([1, 2], [1])
    with pytest.raises(ValueError, match="1 reference lengths for 2"):
        paired_bootstrap([1, 2], [1, 2], [1])


def test_the_paired_bootstrap_by_enumeration() -> None:
    """Of three utterances there are 27 draws, each as likely as any other."""
    first, second, lengths = [2, 0, 1], [1, 1, 0], [4, 2, 6]
    better = sum(
        (total < 0) + 0.5 * (total == 0)
        for draw in itertools.product(range(3), repeat=3)
        for total in [sum(second[index] - first[index] for index in draw)]
    )
    found = paired_bootstrap(first, second, lengths, num_resamples=40_000)
    assert found.probability_of_improvement == pytest.approx(better / 27, abs=0.01)
    assert (found.low, found.high) == pytest.approx(
        (-0.25, 0.5)
    )  # thrice the first (-3/12), thrice the second (3/6)


def test_where_there_is_no_difference_one_in_twenty_is_called_one() -> None:
    generator = np.random.default_rng(0)
    p_values, covered = [], 0
    for seed in range(400):
        first, second, lengths = simulate(generator, 0.2)
        p_value = matched_pairs_p_value(first, second)
        assert p_value is not None
        p_values.append(p_value)
        interval = paired_bootstrap(first, second, lengths, num_resamples=400, seed=seed)
        covered += interval.low <= 0 <= interval.high
    spread = math.sqrt(400 * 0.05 * 0.95)  # of the number of false alarms: 20 of 400, give or take 4.4
    assert abs(sum(p_value < 0.05 for p_value in p_values) - 20) < 3 * spread
    assert abs(covered - 380) < 3.5 * spread
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)


def test_a_real_difference_is_found_and_pairing_finds_it_sooner() -> None:
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(100):
        first, second, _ = simulate(generator, 0.26)
        p_value = matched_pairs_p_value(first, second)
        found += p_value is not None and p_value < 0.05
    assert found >= 90
    # The second always makes one error fewer where the first makes any: no two intervals would show it.
    first, _, lengths = simulate(generator, 0.2)
    second = [max(0, errors - (index % 4 == 0)) for index, errors in enumerate(first)]
    assert paired_bootstrap(first, second, lengths).high < 0


def test_holm() -> None:
    # Holm (1979): 0.01 * 4, 0.013 * 3, 0.03 * 2 and 0.04, none smaller than the one before it.
    assert holm([0.04, 0.01, 0.03, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.02]) == [0.02]
    assert holm([None, 0.02, None, 0.9]) == [None, pytest.approx(0.04), None, 0.9]
    assert holm([0.8, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
