"""Several evaluations side by side: matched utterance by utterance, with what the differences are worth."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiny_audio.errors import UserError
from tiny_audio.evaluate.results import EvalResult, UtteranceResult
from tiny_audio.evaluate.scoring import score_texts, summarize
from tiny_audio.evaluate.significance import (
    MIN_DIFFERING,
    MIN_UTTERANCES,
    SIGNIFICANCE_LEVEL,
    BootstrapDifference,
    holm,
    matched_pairs_p_value,
    paired_bootstrap,
)

LETTERS = string.ascii_uppercase
NUM_SHOWN = 10  # of the wins, and of the losses


@dataclass(frozen=True)
class Pair:
    """The first run against another, by their indices among the runs."""

    first: int
    second: int
    wer_difference: float  # second minus first
    bootstrap: BootstrapDifference
    p_value: float | None  # None: too few utterances to say
    p_value_holm: float | None  # corrected for the number of pairs
    wins: list[
        int
    ]  # indices of the utterances on which the second makes fewer errors, the largest gain first
    losses: list[int]  # and of those on which it makes more, the largest loss first
    ties: int

    @property
    def names(self) -> dict[str, int]:
        """The two runs by the letters they are called by."""
        return {LETTERS[run]: run for run in (self.first, self.second)}


@dataclass(frozen=True)
class Comparison:
    """Runs scored alike on the same utterances, in the same order, and the first against each other one."""

    folders: list[Path]
    runs: list[EvalResult]
    num_left_out: list[int]  # of each run, utterances that not all of the runs have
    pairs: list[Pair]

    def errors(self, run: int) -> list[int]:
        """The number of errors of a run on each utterance."""
        return [utterance.score.alignment.counts.errors for utterance in self.runs[run].utterances]


def check_number(num_runs: int) -> None:
    """Raise UserError unless there are runs to compare, and letters to call them by."""
    if not 2 <= num_runs <= len(LETTERS):
        raise UserError(
            f"Compare takes 2 to {len(LETTERS)} runs, not {num_runs}: name the folders of evaluations, such as"
            " outputs/eval_nano_corpus-test. tiny-audio eval makes one."
        )


def compare(
    runs: Sequence[EvalResult], folders: Sequence[Path], normalizer: str | None = None, common: bool = False
) -> Comparison:
    """The first run against each of the others, utterance by utterance.

    Args:
        runs: two evaluations or more, and the folders that they were read from.
        normalizer: scores all of them anew; None where all were scored with the same one.
        common: compares on the utterances (id and normalised reference) that all have.

    Raises:
        UserError: different normalisers or utterances, an id twice in a run, or nothing in common.
    """
    check_number(len(runs))
    runs = _scored_alike(runs, folders, normalizer)
    matched = _matched(runs, folders, common)
    left_out = [len(run.utterances) - len(match.utterances) for run, match in zip(runs, matched, strict=True)]
    comparison = Comparison(list(folders), matched, left_out, [])
    lengths = [
        utterance.score.alignment.counts.reference_length for utterance in comparison.runs[0].utterances
    ]
    first_errors = comparison.errors(0)
    others = range(1, len(runs))
    p_values = [matched_pairs_p_value(first_errors, comparison.errors(run)) for run in others]
    for run, p_value, corrected in zip(others, p_values, holm(p_values), strict=True):
        gains = [
            first - second for first, second in zip(first_errors, comparison.errors(run), strict=True)
        ]  # positive: the second is better
        by_gain = sorted(range(len(gains)), key=lambda index: -abs(gains[index]))
        wins = [index for index in by_gain if gains[index] > 0]
        losses = [index for index in by_gain if gains[index] < 0]
        comparison.pairs.append(
            Pair(
                first=0,
                second=run,
                wer_difference=matched[run].metrics.wer - matched[0].metrics.wer,
                bootstrap=paired_bootstrap(first_errors, comparison.errors(run), lengths),
                p_value=p_value,
                p_value_holm=corrected,
                wins=wins,
                losses=losses,
                ties=len(gains) - len(wins) - len(losses),
            )
        )
    return comparison


def verdict(comparison: Comparison, pair: Pair) -> str:
    """One line that says what the pair's figures mean."""
    first, second = LETTERS[pair.first], LETTERS[pair.second]
    first_errors, second_errors = sum(comparison.errors(pair.first)), sum(comparison.errors(pair.second))
    what = _what_differs(first, second, first_errors, second_errors)
    if not pair.wins and not pair.losses:
        return f"No difference: {second} and {first} make as many errors on every utterance."
    if pair.p_value_holm is None:
        num_utterances, num_differing = len(comparison.runs[0].utterances), len(pair.wins) + len(pair.losses)
        return (
            f"Too few utterances to tell: {what}, but they differ on {num_differing} of {num_utterances}, and the"
            f" test wants {MIN_DIFFERING} of {MIN_UTTERANCES} at least."
        )
    p_value = format_p_value(pair.p_value_holm)
    if pair.p_value_holm < SIGNIFICANCE_LEVEL:
        return f"{what}; this is unlikely to be chance ({p_value})."
    return f"No difference that this set can show: {what}, which may well be chance ({p_value})."


def format_p_value(p_value: float) -> str:
    """Two digits of it, or what it is below."""
    return (
        "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}" if p_value < 0.01 else f"p = {p_value:.2f}"
    )


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """The content of comparison.json."""
    return {
        "utterances": comparison.runs[0].metrics.num_samples,
        "normalizer": comparison.runs[0].normalizer,
        "runs": [
            {
                "name": LETTERS[index],
                "folder": str(folder),
                "model": run.model,
                "data": run.data,
                **run.metrics.as_dict(),
                "failed": len(run.failed),
                "not_in_common": left_out,
            }
            for index, (folder, run, left_out) in enumerate(
                zip(comparison.folders, comparison.runs, comparison.num_left_out, strict=True)
            )
        ],
        "pairs": [_pair_record(comparison, pair) for pair in comparison.pairs],
    }


def _scored_alike(
    runs: Sequence[EvalResult], folders: Sequence[Path], normalizer: str | None
) -> list[EvalResult]:
    used = {run.normalizer for run in runs}
    if normalizer is None and len(used) > 1:
        each = ", ".join(f"{folder} {run.normalizer}" for folder, run in zip(folders, runs, strict=True))
        raise UserError(
            f"The runs were scored with different normalisers ({each}): their errors cannot be compared."
            " Score all anew with --normalizer NAME."
        )
    return [run if normalizer in (None, run.normalizer) else _rescored(run, normalizer) for run in runs]


def _rescored(run: EvalResult, normalizer: str) -> EvalResult:
    scores = score_texts(
        [utterance.reference for utterance in run.utterances],
        [utterance.hypothesis for utterance in run.utterances],
        normalizer,
    )
    utterances = [
        replace(utterance, score=score) for utterance, score in zip(run.utterances, scores, strict=True)
    ]
    return replace(run, normalizer=normalizer, utterances=utterances)


def _matched(runs: Sequence[EvalResult], folders: Sequence[Path], common: bool) -> list[EvalResult]:
    """The runs with the same utterances in the first run's order, their metrics counted anew."""
    by_key = [_by_key(run, folder) for run, folder in zip(runs, folders, strict=True)]
    shared = [key for key in by_key[0] if all(key in other for other in by_key[1:])]
    if not shared:
        raise UserError(
            "The runs have no utterance in common (same id, same reference): evaluate the models on the same"
            " --data."
        )
    if not common:
        for folder, other in zip(folders[1:], by_key[1:], strict=True):
            _check_same(by_key[0], other, folders[0], folder, len(shared))
    matched = []
    for run, utterances in zip(runs, by_key, strict=True):
        kept = [utterances[key] for key in shared]
        metrics = replace(summarize([utterance.score for utterance in kept]), rtfx=run.metrics.rtfx)
        matched.append(replace(run, utterances=kept, metrics=metrics))
    return matched


Key = tuple[str, str]


def _by_key(run: EvalResult, folder: Path) -> dict[Key, UtteranceResult]:
    """The utterances by id and by the reference as it was scored."""
    times = Counter(utterance.id for utterance in run.utterances)
    repeated = [name for name, count in times.items() if count > 1]
    if repeated:
        raise UserError(
            f"{folder} has {times[repeated[0]]} utterances called {repeated[0]!r}, so they cannot be told apart:"
            " evaluate on data whose ids are unique."
        )
    return {(utterance.id, utterance.score.reference_normalized): utterance for utterance in run.utterances}


def _check_same(
    first: dict[Key, UtteranceResult],
    other: dict[Key, UtteranceResult],
    first_folder: Path,
    other_folder: Path,
    num_common: int,
) -> None:
    if first.keys() == other.keys():
        return
    first_ids, other_ids = {name for name, _ in first}, {name for name, _ in other}
    num_other_texts = len(first_ids & other_ids) - len(first.keys() & other.keys())
    parts = [
        (len(first_ids - other_ids), f"only in {first_folder}"),
        (len(other_ids - first_ids), f"only in {other_folder}"),
        (num_other_texts, "with other references"),
    ]
    described = ", ".join(f"{count} {where}" for count, where in parts if count)
    raise UserError(
        f"The runs were not scored on the same utterances: {described}. --common compares the {num_common} that"
        " all runs have."
    )


def _what_differs(first: str, second: str, first_errors: int, second_errors: int) -> str:
    if first_errors == second_errors:
        return f"{second} and {first} make {_count_errors(first_errors)} each"
    if not first_errors:
        return f"{second} makes {_count_errors(second_errors)} and {first} none"
    change = (second_errors - first_errors) / first_errors
    size = f"{abs(change):.0%}" if abs(change) >= 0.01 else f"{abs(change):.1%}"
    return f"{second} makes {size} {'more' if change > 0 else 'fewer'} errors than {first}"


def _count_errors(count: int) -> str:
    return "1 error" if count == 1 else f"{count:,} errors"


def _pair_record(comparison: Comparison, pair: Pair) -> dict[str, Any]:

    def listed(indices: list[int]) -> list[dict[str, Any]]:
        return [
            {
                "id": comparison.runs[pair.first].utterances[index].id,
                "audio": comparison.runs[pair.first].utterances[index].audio,
                "reference": comparison.runs[pair.first].utterances[index].reference,
                "hypotheses": {
                    letter: comparison.runs[run].utterances[index].hypothesis
                    for letter, run in pair.names.items()
                },
                "errors": {letter: comparison.errors(run)[index] for letter, run in pair.names.items()},
            }
            for index in indices
        ]

    return {
        "first": LETTERS[pair.first],
        "second": LETTERS[pair.second],
        "verdict": verdict(comparison, pair),
        "wer_difference": pair.wer_difference,
        "wer_difference_ci95": [pair.bootstrap.low, pair.bootstrap.high],
        "probability_of_improvement": pair.bootstrap.probability_of_improvement,
        "p_value": pair.p_value,
        "p_value_holm": pair.p_value_holm,
        "wins": len(pair.wins),
        "ties": pair.ties,
        "losses": len(pair.losses),
        "largest_wins": listed(pair.wins[:NUM_SHOWN]),
        "largest_losses": listed(pair.losses[:NUM_SHOWN]),
    }
