"""From pairs of texts to the score of a set: normalise, align, count, and say how sure the figure is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from tiny_audio.evaluate.normalize import get_normalizer
from tiny_audio.evaluate.wer import Alignment, EditCounts, align_many, bootstrap_interval, edit_distances

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Metrics:
    """The score of a set.

    Rates are fractions, over the whole set and never means of utterances; rtfx is seconds of audio
    transcribed in a second (0 where no time was taken).
    """

    wer: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    num_samples: int
    wer_ci95: tuple[float, float]
    rtfx: float

    def as_dict(self) -> dict[str, Any]:
        """The keys and values of metrics.json."""
        return {**asdict(self), "wer_ci95": list(self.wer_ci95)}


@dataclass(frozen=True)
class ScoredText:
    """A reference and a hypothesis as they were compared."""

    reference_normalized: str
    hypothesis_normalized: str
    alignment: Alignment
    character_errors: int


def score_texts(references: Sequence[str], hypotheses: Sequence[str], normalizer: str) -> list[ScoredText]:
    """Normalise and align every pair. `normalizer` is a name of `NORMALIZERS`."""
    normalize = get_normalizer(normalizer)
    pairs = [
        (normalize(reference), normalize(hypothesis))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    alignments = align_many([(reference.split(), hypothesis.split()) for reference, hypothesis in pairs])
    distances = edit_distances(pairs)
    return [
        ScoredText(reference, hypothesis, alignment, distance)
        for (reference, hypothesis), alignment, distance in zip(pairs, alignments, distances, strict=True)
    ]


def summarize(
    scores: Sequence[ScoredText], *, audio_seconds: float = 0.0, wall_seconds: float = 0.0
) -> Metrics:
    """The metrics of a set of scored texts.

    Characters are those of the normalised text, spaces between words among them.
    """
    counts = [score.alignment.counts for score in scores]
    total = sum(counts, EditCounts())
    return Metrics(
        wer=total.rate,
        cer=sum(score.character_errors for score in scores)
        / max(sum(len(score.reference_normalized) for score in scores), 1),
        substitutions=total.substitutions,
        deletions=total.deletions,
        insertions=total.insertions,
        reference_words=total.reference_length,
        num_samples=len(scores),
        wer_ci95=bootstrap_interval(
            [count.errors for count in counts], [count.reference_length for count in counts]
        ),
        rtfx=audio_seconds / wall_seconds if wall_seconds > 0 else 0.0,
    )


def evaluate_batches(
    transcribe: Callable[[Batch], list[str]],
    batches: Iterable[tuple[Batch, Sequence[str]]],
    normalizer: str,
) -> tuple[Metrics, list[tuple[str, str]]]:
    """Score prepared batches in memory, without files or progress, as a trainer does every few hundred steps.

    Args:
        transcribe: turns a batch, of whatever type, into one transcript per clip. What it raises is
            passed on.
        batches: each batch with its references.
        normalizer: a name of `NORMALIZERS`.

    Returns:
        The metrics (without rtfx) and the (reference, hypothesis) pairs as they were before normalisation.
    """
    pairs: list[tuple[str, str]] = []
    for batch, references in batches:
        pairs.extend(zip(references, transcribe(batch), strict=True))
    scores = score_texts(
        [reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs], normalizer
    )
    return summarize(scores), pairs
