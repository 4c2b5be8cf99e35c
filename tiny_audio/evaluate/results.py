"""A finished evaluation: in memory, as the lines and keys of its files, and read back from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tiny_audio.data.utterance import Problem
from tiny_audio.errors import UserError
from tiny_audio.evaluate.scoring import Metrics, ScoredText, score_texts

METRICS_FILE, RESULTS_TEXT_FILE, RESULTS_LINES_FILE = "metrics.json", "results.txt", "results.jsonl"
PAGE_FILE = "report.html"


@dataclass(frozen=True)
class UtteranceResult:
    """One utterance of an evaluation. `error` is why it could not be transcribed, else None."""

    id: str
    audio: str
    seconds: float | None
    speaker: str | None
    reference: str
    hypothesis: str
    score: ScoredText
    error: str | None = None


@dataclass(frozen=True)
class EvalResult:
    """A whole evaluation.

    `utterances` are in the order of the source, `left_out` are rows that hold no usable speech. `details` is what
    else metrics.json says: date, hardware, commit, sample, cost.
    """

    metrics: Metrics
    utterances: list[UtteranceResult]
    normalizer: str
    model: str
    data: str
    left_out: list[Problem] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[UtteranceResult]:
        """The utterances that could not be transcribed."""
        return [utterance for utterance in self.utterances if utterance.error is not None]


def metrics_record(result: EvalResult) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        **result.metrics.as_dict(),
        "normalizer": result.normalizer,
        "model": result.model,
        "data": result.data,
        "failed": len(result.failed),
        "left_out": len(result.left_out),
        **result.details,
    }


def utterance_record(utterance: UtteranceResult) -> dict[str, Any]:
    """A line of results.jsonl.

    `error` is there for utterances that could not be transcribed, `speaker` where it is known.
    """
    counts = utterance.score.alignment.counts
    record: dict[str, Any] = {
        "id": utterance.id,
        "audio": utterance.audio,
        "seconds": utterance.seconds,
        "reference": utterance.reference,
        "hypothesis": utterance.hypothesis,
        "reference_normalized": utterance.score.reference_normalized,
        "hypothesis_normalized": utterance.score.hypothesis_normalized,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
    }
    if utterance.speaker is not None:
        record["speaker"] = utterance.speaker
    if utterance.error is not None:
        record["error"] = utterance.error
    return record


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl."""
    text = (folder / RESULTS_LINES_FILE).read_text(encoding="utf-8")
    # Not by `splitlines`, which takes characters that JSON leaves inside a text for ends of lines.
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def read_evaluation(folder: Path) -> EvalResult:
    """The evaluation whose files lie in a folder, its texts normalised and aligned anew.

    `metrics` are those that metrics.json states; `summarize` of the scores tells whether they are right.

    Raises:
        UserError: no such files, or something else is in them.
    """
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        rows = read_records(folder)
        normalizer, model, data = (str(metrics.pop(key)) for key in ("normalizer", "model", "data"))
        stated = {item.name: metrics.pop(item.name) for item in fields(Metrics)}
        for key in ("failed", "left_out"):  # counted anew
            metrics.pop(key, None)
        if stated["num_samples"] != len(rows):
            raise ValueError(f"{len(rows)} lines for {stated['num_samples']} utterances")
        references, hypotheses = ([str(row[key]) for row in rows] for key in ("reference", "hypothesis"))
        scores = score_texts(references, hypotheses, normalizer)
        return EvalResult(
            metrics=Metrics(**{**stated, "wer_ci95": tuple(stated["wer_ci95"])}),
            utterances=[
                UtteranceResult(
                    id=str(row["id"]),
                    audio=str(row["audio"]),
                    seconds=None if row["seconds"] is None else float(row["seconds"]),
                    speaker=row.get("speaker"),
                    reference=row["reference"],
                    hypothesis=row["hypothesis"],
                    score=score,
                    error=row.get("error"),
                )
                for row, score in zip(rows, scores, strict=True)
            ],
            normalizer=normalizer,
            model=model,
            data=data,
            details=metrics,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no evaluation: {error.filename} is missing. tiny-audio eval makes one."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The evaluation in {folder} cannot be read ({type(error).__name__}: {error}); make it again with"
            " tiny-audio eval."
        ) from error
