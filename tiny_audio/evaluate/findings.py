"""What an evaluation shows beyond its headline: where errors gather, what they are, and which look odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tiny_audio.evaluate.results import EvalResult, UtteranceResult
from tiny_audio.evaluate.wer import (
    DELETION,
    HIT,
    INSERTION,
    SUBSTITUTION,
    Alignment,
    EditCounts,
    bootstrap_interval,
)

# Below this many utterances a group's rate says little, and resampling them says even less.
FEW_UTTERANCES = 10
LENGTH_EDGES_SECONDS = (0, 1, 2, 3, 5, 8, 12, 20, 30)
RATE_EDGES_WORDS_PER_SECOND = (0, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5)
MAX_SETS = 30

# When something is odd enough to be shown. Each catches what a person would stop at; none proves anything.
FEWEST_EXTRA_WORDS = 5
FEWEST_REPEATS = 4
LONGEST_REPEATED_PHRASE = 8
FEWEST_MISSING_WORDS = 3
# Conversation is mostly 2 to 4 words a second; hardly anyone says more than 6, or less than one in three seconds.
FASTEST_WORDS_PER_SECOND = 6.0
SLOWEST_WORDS_PER_SECOND = 1 / 3
FAR_OFF = 0.8
GOOD_SET = 0.3
MOST_AGREEMENT = 0.5
HALLUCINATION, TRUNCATION, REFERENCE_ERROR = "hallucination", "truncation", "reference error"


@dataclass(frozen=True)
class DiffToken:
    """One step of an alignment with its words; None where a side has no word there."""

    operation: str
    reference: str | None
    hypothesis: str | None


@dataclass(frozen=True)
class Group:
    """Utterances that have something in common. `interval` is None where they are too few for one."""

    name: str
    num_utterances: int
    counts: EditCounts
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class WordCost:
    """What became of one word: how often it was said, and how often it was lost, replaced or made up."""

    word: str
    spoken: int
    deleted: int
    substituted: int
    inserted: int

    @property
    def errors(self) -> int:
        """Edits that this word has a part in, as a reference word or as an inserted one."""
        return self.deleted + self.substituted + self.inserted


@dataclass(frozen=True)
class Suspicion:
    """An utterance that looks odd, and why, in one line. It may well be in order."""

    kind: str
    utterance: UtteranceResult
    reason: str


def diff_tokens(utterance: UtteranceResult) -> list[DiffToken]:
    """The normalised words of an utterance as they were aligned."""
    score = utterance.score
    return list(_walk(score.alignment, score.reference_normalized, score.hypothesis_normalized))


def _walk(alignment: Alignment, reference: str, hypothesis: str) -> Iterator[DiffToken]:
    reference_words, hypothesis_words = iter(reference.split()), iter(hypothesis.split())
    for operation in alignment.operations:
        yield DiffToken(
            operation,
            None if operation == INSERTION else next(reference_words),
            None if operation == DELETION else next(hypothesis_words),
        )


def most_costly(utterances: Sequence[UtteranceResult]) -> list[UtteranceResult]:
    """The utterances with errors: those with most first, among equals the highest rate first."""
    wrong = [utterance for utterance in utterances if utterance.score.alignment.counts.errors]
    return sorted(
        wrong,
        key=lambda utterance: (
            -utterance.score.alignment.counts.errors,
            -utterance.score.alignment.counts.rate,
            utterance.id,
        ),
    )


def words_per_second(utterance: UtteranceResult) -> float | None:
    """The speaking rate that the reference states, or None where no words or no length are known."""
    length = utterance.score.alignment.counts.reference_length
    return length / utterance.seconds if length and utterance.seconds else None


def by_length(utterances: Sequence[UtteranceResult]) -> list[Group]:
    """Groups by seconds of audio, the shortest first; those of unknown length are in none."""
    return _by_edges(utterances, lambda utterance: utterance.seconds, LENGTH_EDGES_SECONDS)


def by_rate(utterances: Sequence[UtteranceResult]) -> list[Group]:
    """Groups by reference words a second, the slowest first."""
    return _by_edges(utterances, words_per_second, RATE_EDGES_WORDS_PER_SECOND)


def by_speaker(utterances: Sequence[UtteranceResult]) -> list[Group]:
    """Groups by speaker, the highest rate first; empty where fewer than two are known."""
    return _by_name(utterances, lambda utterance: utterance.speaker)


def by_set(utterances: Sequence[UtteranceResult]) -> list[Group]:
    """Groups by what stands before the first slash of an id, as in `digits/jackson-001`.

    Empty unless that makes a few groups: ids may hold slashes for other reasons.
    """
    groups = _by_name(
        utterances, lambda utterance: utterance.id.split("/", 1)[0] if "/" in utterance.id else None
    )
    return groups if len(groups) <= MAX_SETS else []


def _by_edges(
    utterances: Sequence[UtteranceResult],
    measure: Callable[[UtteranceResult], float | None],
    edges: Sequence[float],
) -> list[Group]:
    names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    names = [f"under {edges[1]:g}", *names[1:], f"{edges[-1]:g} and more"]
    members: list[list[UtteranceResult]] = [[] for _ in names]
    for utterance in utterances:
        value = measure(utterance)
        if value is not None:
            members[int(np.searchsorted(edges, value, side="right")) - 1].append(utterance)
    return [_group(name, chosen) for name, chosen in zip(names, members, strict=True) if chosen]


def _by_name(
    utterances: Sequence[UtteranceResult], name_of: Callable[[UtteranceResult], str | None]
) -> list[Group]:
    members: dict[str, list[UtteranceResult]] = {}
    for utterance in utterances:
        name = name_of(utterance)
        if name is not None:
            members.setdefault(name, []).append(utterance)
    groups = [_group(name, chosen) for name, chosen in members.items()] if len(members) > 1 else []
    return sorted(groups, key=lambda group: (-group.counts.rate, group.name))


def _group(name: str, utterances: Sequence[UtteranceResult]) -> Group:
    counts = [utterance.score.alignment.counts for utterance in utterances]
    interval = None
    if len(counts) >= FEW_UTTERANCES:
        interval = bootstrap_interval(
            [count.errors for count in counts], [count.reference_length for count in counts]
        )
    return Group(name, len(counts), sum(counts, EditCounts()), interval)


def word_costs(utterances: Sequence[UtteranceResult]) -> list[WordCost]:
    """Every word that has a part in an error, the most costly first."""
    spoken: Counter[str] = Counter()
    edits: dict[str, Counter[str]] = {kind: Counter() for kind in (SUBSTITUTION, DELETION, INSERTION)}
    for utterance in utterances:
        for token in diff_tokens(utterance):
            if token.reference is not None:
                spoken[token.reference] += 1
            if token.operation != HIT:
                edits[token.operation][token.reference or token.hypothesis or ""] += 1
    words = set().union(*edits.values())
    costs = [
        WordCost(word, spoken[word], edits[DELETION][word], edits[SUBSTITUTION][word], edits[INSERTION][word])
        for word in words
    ]
    return sorted(costs, key=lambda cost: (-cost.errors, cost.spoken, cost.word))


def confusions(utterances: Sequence[UtteranceResult]) -> list[tuple[str, str, int]]:
    """(word said, word written, times), the most frequent first."""
    pairs = Counter(
        (token.reference or "", token.hypothesis or "")
        for utterance in utterances
        for token in diff_tokens(utterance)
        if token.operation == SUBSTITUTION
    )
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [(said, written, times) for (said, written), times in ordered]


def suspicions(result: EvalResult, baseline: EvalResult | None = None) -> list[Suspicion]:
    """What looks like a hallucination, a truncation or a wrong reference, in the order of the set.

    An utterance that could not be transcribed is none of these. With a `baseline` utterances on which both runs
    agree against the reference are found too.
    """
    heard = [item for item in result.utterances if item.error is None and item.score.alignment.counts.errors]
    agreed = set() if baseline is None else _agreed(baseline, heard)
    found = []
    for utterance in heard:
        reasons = {
            HALLUCINATION: _hallucination(utterance),
            TRUNCATION: _truncation(utterance),
            REFERENCE_ERROR: _reference_error(utterance, utterance.id in agreed, result.metrics.wer),
        }
        found += [Suspicion(kind, utterance, reason) for kind, reason in reasons.items() if reason]
    return found


def _agreed(baseline: EvalResult, wrong: Sequence[UtteranceResult]) -> set[str]:
    """Ids of wrong utterances for which both runs wrote the same words.

    None where that holds for most of them: such runs are too much alike for their agreement to mean anything.
    """
    texts = {item.id: item.score.hypothesis_normalized for item in baseline.utterances}
    agreed = {item.id for item in wrong if (texts.get(item.id) or None) == item.score.hypothesis_normalized}
    return agreed if len(agreed) <= MOST_AGREEMENT * len(wrong) else set()


def _hallucination(utterance: UtteranceResult) -> str | None:
    score = utterance.score
    counts = score.alignment.counts
    if not counts.reference_length:
        return f"The reference is empty, yet {_words(counts.insertions)} written."
    phrase, repeats = longest_loop(score.hypothesis_normalized.split())
    _, repeats_said = longest_loop(score.reference_normalized.split())
    if repeats >= max(FEWEST_REPEATS, 2 * repeats_said):
        return f"“{phrase}” is written {repeats} times in a row."
    if counts.insertions >= max(FEWEST_EXTRA_WORDS, counts.reference_length / 2):
        return f"{counts.insertions} words were added to a reference of {counts.reference_length}."
    return None


def _truncation(utterance: UtteranceResult) -> str | None:
    operations = utterance.score.alignment.operations
    length = utterance.score.alignment.counts.reference_length
    missing = len(operations) - len(operations.rstrip(DELETION))
    if missing < FEWEST_MISSING_WORDS:
        return None
    if missing == len(operations):
        return f"Nothing was written, though the reference has {length} words."
    return f"The last {missing} of {length} words are missing."


def _reference_error(utterance: UtteranceResult, both_agree: bool, set_rate: float) -> str | None:
    counts = utterance.score.alignment.counts
    written = utterance.score.hypothesis_normalized
    if both_agree:
        return (
            "Both runs wrote the same, and not what the reference says: it may be wrong, or both erred alike."
        )
    rate = words_per_second(utterance)
    if rate is None or counts.rate < FAR_OFF:
        return None
    if not SLOWEST_WORDS_PER_SECOND <= rate <= FASTEST_WORDS_PER_SECOND:
        return (
            f"{counts.errors} errors in {_count(counts.reference_length, 'word')}, and the reference would mean"
            f" {rate:.1f} words a second."
        )
    num_written = len(written.split())
    alike = abs(num_written - counts.reference_length) <= 0.3 * counts.reference_length
    if counts.reference_length >= 4 and alike and set_rate <= GOOD_SET:
        return (
            f"{num_written} words were written for {counts.reference_length}, but hardly any agrees, while the"
            " rest of the set fares far better: it may be the transcript of another clip."
        )
    return None


def longest_loop(words: Sequence[str]) -> tuple[str, int]:
    """The phrase that is said most often in a row without a pause, and how often; ("", 0) for no words.

    Of equally frequent ones the shortest. Time grows with the words times `LONGEST_REPEATED_PHRASE`.
    """
    best, most = "", 0
    for length in range(1, min(LONGEST_REPEATED_PHRASE, len(words)) + 1):
        same = 0  # how many words in a row equal the one `length` before
        for end in range(length, len(words) + 1):
            repeats = 1 + same // length
            if repeats > most:
                best, most = " ".join(words[end - length : end]), repeats
            if end < len(words):
                same = same + 1 if words[end] == words[end - length] else 0
    return best, most


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _words(number: int) -> str:
    return f"{_count(number, 'word')} {'was' if number == 1 else 'were'}"


@dataclass(frozen=True)
class Change:
    """One utterance in two runs. `errors_saved` is positive where the second run is better."""

    before: UtteranceResult
    after: UtteranceResult

    @property
    def errors_saved(self) -> int:
        """Errors of the first run less those of the second."""
        return self.before.score.alignment.counts.errors - self.after.score.alignment.counts.errors


def changes(baseline: EvalResult, result: EvalResult) -> list[Change]:
    """The utterances that both runs have, paired by id, in the order of the second."""
    before = {utterance.id: utterance for utterance in baseline.utterances}
    return [
        Change(before[utterance.id], utterance) for utterance in result.utterances if utterance.id in before
    ]
