"""Whether one recogniser is better than another, or has only been lucky with these utterances.

Everything here is paired: both have transcribed the same utterances, so what makes an utterance hard for both
cancels, and far smaller differences show than from two intervals laid side by side.

The utterance is the unit, taken to be independent of the others. That is right for separate recordings and
too hopeful for the sentences of one speaker or the pieces of one meeting: then the true uncertainty is larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiny_audio.evaluate.wer import resampled_totals

SIGNIFICANCE_LEVEL = 0.05
# The test's normal approximation wants many segments (Gillick & Cox suggest 50). It also wants enough that are not
# ties: with 10 that differ, all one way, it says p = 0.0015 where an exact sign test says 0.002.
MIN_UTTERANCES = 50
MIN_DIFFERING = 10


@dataclass(frozen=True)
class BootstrapDifference:
    """The interval of a difference of error rates, second minus first, and how often the second was better."""

    low: float
    high: float
    probability_of_improvement: float


def paired_bootstrap(
    first_errors: Sequence[int],
    second_errors: Sequence[int],
    reference_lengths: Sequence[int],
    *,
    num_resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> BootstrapDifference:
    """Percentile interval of the difference of two corpus error rates, second minus first.

    Utterances are drawn anew with replacement, the same ones for both. The probability of improvement is the
    share of draws in which the second has the lower rate; a draw in which they are equal counts half, so that
    exchanging the two turns p into 1 - p.

    Source: Bisani & Ney (2004), "Bootstrap estimates for confidence intervals in ASR performance evaluation",
    section 4.

    Args:
        first_errors, second_errors, reference_lengths: one entry an utterance, in the same order.

    Raises:
        ValueError: their lengths differ.
    """
    difference = _differences(second_errors, first_errors)
    if len(difference) != len(reference_lengths):
        raise ValueError(f"{len(reference_lengths)} reference lengths for {len(difference)} utterances")
    if not len(difference):
        return BootstrapDifference(0.0, 0.0, 0.5)
    errors, words = resampled_totals(np.stack([difference, reference_lengths]), num_resamples, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(errors / np.maximum(words, 1), [tail, 1 - tail])
    return BootstrapDifference(float(low), float(high), float(np.mean((errors < 0) + 0.5 * (errors == 0))))


def matched_pairs_p_value(first_errors: Sequence[int], second_errors: Sequence[int]) -> float | None:
    """Two-sided p-value of the matched-pairs test: how often chance alone makes so large a difference.

    With z_i the difference in errors on segment i of n, W = mean(z) / (std(z) / sqrt(n)) is compared with the
    standard normal distribution. This is the matched-pairs test of Gillick & Cox (1989), "Some statistical
    issues in the comparison of speech recognition algorithms", which NIST calls MAPSSWE. NIST's programme cuts
    connected speech into segments between words that both recognised rightly; here a segment is a whole
    utterance, as the paper has it where utterances are separate recordings. Longer and so fewer segments make the
    test a little less sensitive.

    Returns:
        None where the normal approximation has too little to go by: fewer than `MIN_UTTERANCES` utterances, or
        fewer than `MIN_DIFFERING` on which the numbers of errors differ. 1.0 where none differs at all.

    Raises:
        ValueError: not the same number of utterances.
    """
    difference = _differences(first_errors, second_errors)
    num_differing = int(np.count_nonzero(difference))
    if len(difference) < MIN_UTTERANCES:
        return None
    if num_differing == 0:
        return 1.0
    if num_differing < MIN_DIFFERING:
        return None
    mean, deviation = float(difference.mean()), float(difference.std(ddof=1))
    if deviation == 0:  # better by the same number of errors everywhere
        return 0.0
    statistic = mean / (deviation / math.sqrt(len(difference)))
    return math.erfc(abs(statistic) / math.sqrt(2))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for there being several: the chance of any false alarm among them stays at the level.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure". A None (no test was made) stays
    None and does not count as one of them.
    """
    made = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, index) in enumerate(made):
        largest = max(largest, min(1.0, value * (len(made) - rank)))
        corrected[index] = largest
    return corrected


def _differences(left: Sequence[int], right: Sequence[int]) -> np.ndarray:
    if len(left) != len(right):
        raise ValueError(f"{len(left)} utterances of one against {len(right)} of the other")
    return np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
