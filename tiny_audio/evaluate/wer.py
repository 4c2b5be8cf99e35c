"""Word and character error rates: exact edit distances, their alignments, and how sure we can be of them.

Legend: N pairs aligned at once, R reference tokens, H hypothesis tokens.

The dynamic programme is Wagner & Fischer's (1974), one numpy operation per reference token for many pairs at
once. Several alignments can be equally cheap and differ in substitutions, deletions and insertions; the
choice made here (common ends first, then backwards: a deletion where one is optimal, an insertion only where
the neighbouring cell demands it, else the diagonal) is that of rapidfuzz, hence of jiwer, so that the counts
agree with theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HIT, SUBSTITUTION, DELETION, INSERTION = "=SDI"
_OPERATIONS = np.frombuffer(b"=SDI.", dtype=np.uint8)
_STOP = 4
_REFERENCE_STEP = np.array([1, 1, 1, 0, 0])
_HYPOTHESIS_STEP = np.array([1, 1, 0, 1, 0])
# Cells of one batch of dynamic programmes: about 16 MB of 32-bit rows and 4 MB of directions.
_MAX_CELLS = 4_000_000

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class EditCounts:
    """Edits that turn a hypothesis into its reference, summed over any number of utterances."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_length: int = 0

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference token, a fraction.

        Without any reference token it is the number of errors itself (as jiwer has it): 0 for silence
        recognised as silence, and never a division by zero.
        """
        return self.errors / max(self.reference_length, 1)

    def __add__(self, other: EditCounts) -> EditCounts:
        return EditCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_length + other.reference_length,
        )


@dataclass(frozen=True)
class Alignment:
    """The edits of one pair in order: ``=SDI`` for each hit, substitution, deletion and insertion."""

    operations: str

    @property
    def counts(self) -> EditCounts:
        """The edits counted; hits, substitutions and deletions make up the reference."""
        substitutions, deletions, insertions = (self.operations.count(letter) for letter in "SDI")
        return EditCounts(substitutions, deletions, insertions, len(self.operations) - insertions)


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """The cheapest alignment of two token sequences (words, or the characters of a string)."""
    return align_many([(reference, hypothesis)])[0]


def align_many(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Alignment]:
    """The cheapest alignment of every pair of token sequences, in the order given.

    Ten thousand pairs of twenty words take about a second. Memory grows with R x H bytes for a single pair:
    an hour of speech (10,000 words) needs 100 MB.
    """
    encoded = _encode_pairs(pairs)
    alignments = [""] * len(encoded)
    for chosen in _batches(encoded):
        cores = [encoded[index] for index in chosen]
        for index, core in zip(chosen, _align_batch(cores), strict=True):
            pair = encoded[index]
            alignments[index] = HIT * pair.prefix_length + core + HIT * pair.suffix_length
    return [Alignment(operations) for operations in alignments]


def edit_distances(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[int]:
    """The edit distance of every pair, without alignments.

    Memory grows with H only, as characters of long texts need.
    """
    encoded = _encode_pairs(pairs)
    distances = [0] * len(encoded)
    for chosen in _batches(encoded):
        references, hypotheses, reference_lengths, hypothesis_lengths = _pad(
            [encoded[index] for index in chosen]
        )
        found = np.zeros(len(chosen), dtype=np.int64)
        row = np.zeros((len(chosen), hypotheses.shape[1] + 1), dtype=np.int32)
        for step in range(references.shape[1] + 1):
            if step:
                row, _ = _next_row(row, references[:, step - 1], hypotheses)
            ends = np.flatnonzero(reference_lengths == step)
            found[ends] = row[ends, hypothesis_lengths[ends]] + hypothesis_lengths[ends]
        for index, distance in zip(chosen, found, strict=True):
            distances[index] = int(distance)
    return distances


def bootstrap_interval(
    errors: Sequence[int],
    reference_lengths: Sequence[int],
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the corpus error rate when utterances are drawn anew with replacement.

    Source: Bisani & Ney (2004), "Bootstrap estimates for confidence intervals in ASR performance evaluation".
    Utterances count as independent, so with few speakers the true uncertainty is wider. The same seed gives
    the same interval.
    """
    if not errors:
        return (0.0, 0.0)
    totals = resampled_totals(np.array([errors, reference_lengths]), num_resamples, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(totals[0] / np.maximum(totals[1], 1), [tail, 1 - tail])
    return float(low), float(high)


def resampled_totals(columns: NDArray[Any], num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Sums of every column over utterances drawn with replacement, the same draw for all columns.

    Args:
        columns: (columns, utterances), at least one utterance.
        num_resamples: how often as many utterances are drawn as there are.
        seed: of the draws; the same one gives the same sums.

    Returns:
        (columns, num_resamples).
    """
    columns = np.asarray(columns, dtype=np.float64)
    num_utterances = columns.shape[1]
    generator = np.random.default_rng(seed)
    totals: list[NDArray[np.float64]] = []
    rows_at_once = max(1, _MAX_CELLS // num_utterances)
    for start in range(0, num_resamples, rows_at_once):
        num_rows = min(rows_at_once, num_resamples - start)
        drawn = generator.integers(0, num_utterances, size=(num_rows, num_utterances))
        totals.append(np.stack([column[drawn].sum(axis=1) for column in columns]))
    return np.concatenate(totals, axis=1)


@dataclass(frozen=True)
class _EncodedPair:
    """A pair as numbers without its common beginning and end, which every optimal alignment can match."""

    reference: Tokens
    hypothesis: Tokens
    prefix_length: int
    suffix_length: int


def _encode_pairs(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[_EncodedPair]:
    vocabulary: dict[str, int] = {}
    encoded = []
    for reference, hypothesis in pairs:
        left, right = (_encode(tokens, vocabulary) for tokens in (reference, hypothesis))
        prefix = _common_prefix(left, right)
        left, right = left[prefix:], right[prefix:]
        suffix = _common_prefix(left[::-1], right[::-1])
        encoded.append(_EncodedPair(left[: len(left) - suffix], right[: len(right) - suffix], prefix, suffix))
    return encoded


def _encode(tokens: Sequence[str], vocabulary: dict[str, int]) -> Tokens:
    if isinstance(tokens, str):  # characters: their code points serve as they are
        return np.frombuffer(tokens.encode("utf-32-le", "surrogatepass"), dtype="<i4").astype(np.int32)
    return np.array([vocabulary.setdefault(token, len(vocabulary)) for token in tokens], dtype=np.int32)


def _common_prefix(left: Tokens, right: Tokens) -> int:
    shorter = min(len(left), len(right))
    different = left[:shorter] != right[:shorter]
    return int(different.argmax()) if different.any() else shorter


def _batches(encoded: Sequence[_EncodedPair]) -> list[list[int]]:
    """Indices of pairs in batches of like length: `_MAX_CELLS` padded cells at most, one pair at least."""
    order = sorted(
        range(len(encoded)), key=lambda index: (len(encoded[index].reference), len(encoded[index].hypothesis))
    )
    batches: list[list[int]] = []
    widest = 0
    for index in order:
        height, width = len(encoded[index].reference) + 1, len(encoded[index].hypothesis) + 1
        widest = max(widest, width)
        if not batches or (len(batches[-1]) + 1) * height * widest > _MAX_CELLS:
            batches.append([])
            widest = width
        batches[-1].append(index)
    return batches


def _pad(cores: Sequence[_EncodedPair]) -> tuple[Tokens, Tokens, NDArray[np.int64], NDArray[np.int64]]:
    """References (N, R) and hypotheses (N, H) padded with numbers that never match, and both lengths (N,).

    A cell depends only on cells before it, so padding needs no mask: results are read at each pair's own
    corner.
    """
    reference_lengths = np.array([len(core.reference) for core in cores], dtype=np.int64)
    hypothesis_lengths = np.array([len(core.hypothesis) for core in cores], dtype=np.int64)
    references = np.full((len(cores), int(reference_lengths.max())), -1, dtype=np.int32)
    hypotheses = np.full((len(cores), int(hypothesis_lengths.max())), -2, dtype=np.int32)
    for row, core in enumerate(cores):
        references[row, : len(core.reference)] = core.reference
        hypotheses[row, : len(core.hypothesis)] = core.hypothesis
    return references, hypotheses, reference_lengths, hypothesis_lengths


def _next_row(row: Tokens, reference_tokens: Tokens, hypotheses: Tokens) -> tuple[Tokens, NDArray[np.bool_]]:
    """One step of the dynamic programme for all pairs: (N, H + 1) -> (N, H + 1), and the matches (N, H).

    Rows hold distance minus column. In that form a run of insertions costs nothing from one column to the
    next, which turns the only sequential part of the recurrence into a running minimum.
    """
    equal = hypotheses == reference_tokens[:, None]
    following = row + 1  # a deletion: straight down
    np.minimum(
        following[:, 1:], row[:, :-1] - equal, out=following[:, 1:]
    )  # the diagonal: hit or substitution
    np.minimum.accumulate(following, axis=1, out=following)
    return following, equal


def _align_batch(cores: Sequence[_EncodedPair]) -> list[str]:
    """The operations of every pair of a batch."""
    references, hypotheses, reference_lengths, hypothesis_lengths = _pad(cores)
    num_pairs, height, width = len(cores), references.shape[1] + 1, hypotheses.shape[1] + 1

    # The operation that leads into each cell, as an index into `_OPERATIONS`: (N, R + 1, H + 1).
    directions = np.empty((num_pairs, height, width), dtype=np.uint8)
    directions[:, 0, :] = 3
    directions[:, :, 0] = 2
    directions[:, 0, 0] = _STOP
    row = np.zeros((num_pairs, width), dtype=np.int32)
    for step in range(1, height):
        following, equal = _next_row(row, references[:, step - 1], hypotheses)
        inserted = following[:, :-1] == row[:, :-1] - 1
        deleted = following[:, 1:] == row[:, 1:] + 1
        directions[:, step, 1:] = np.where(deleted, 2, np.where(inserted, 3, np.where(equal, 0, 1)))
        row = following

    # All paths are walked backwards together; one that has arrived stays at (0, 0) and adds stops.
    pair_indices = np.arange(num_pairs)
    rows, columns = reference_lengths.copy(), hypothesis_lengths.copy()
    walked = np.full((height + width, num_pairs), _STOP, dtype=np.uint8)
    for step in range(height + width):
        operations = directions[pair_indices, rows, columns]
        if (operations == _STOP).all():
            break
        walked[step] = operations
        rows -= _REFERENCE_STEP[operations]
        columns -= _HYPOTHESIS_STEP[operations]
    letters = _OPERATIONS[walked.T[:, ::-1]]
    return [line.tobytes().decode("ascii").strip(".") for line in letters]
