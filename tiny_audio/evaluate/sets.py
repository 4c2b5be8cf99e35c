"""Several sets in one evaluation: the average of their rates, a table of them, and a page over all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_audio.errors import UserError
from tiny_audio.evaluate.clips import AudioReader
from tiny_audio.evaluate.leaderboard_page import percent
from tiny_audio.evaluate.page import write_page
from tiny_audio.evaluate.report import in_columns
from tiny_audio.evaluate.results import METRICS_FILE, PAGE_FILE, EvalResult
from tiny_audio.evaluate.scoring import summarize
from tiny_audio.files import write_folder

TABLE_FILE = "summary.txt"


def macro_average(results: Sequence[EvalResult]) -> float:
    """The plain mean of the sets' word error rates, whatever their sizes, as the Open ASR Leaderboard averages.

    (That one rounds each rate to 0.01% first.) Raises UserError for no results.
    """
    if not results:
        raise UserError("There is no average of no sets.")
    return sum(result.metrics.wer for result in results) / len(results)


def format_macro_table(results: Sequence[EvalResult]) -> str:
    """A line a set with its rate, interval and size, and the average of the rates."""
    cells = [
        [
            result.data,
            percent(result.metrics.wer),
            f"({percent(result.metrics.wer_ci95[0])} to {percent(result.metrics.wer_ci95[1])})",
            f"{result.metrics.num_samples:,} utterances",
            f"{result.metrics.reference_words:,} words",
            f"{len(result.failed):,} failed" if result.failed else "",
        ]
        for result in results
    ]
    number = f"{len(results)} set{'s' * (len(results) != 1)}"
    return in_columns([*cells, ["average", percent(macro_average(results)), "", number, "", ""]])


def write_summary(
    results: Mapping[str, EvalResult], readers: Mapping[str, AudioReader], folder: Path
) -> None:
    """Write metrics.json, summary.txt and report.html of an evaluation on several sets.

    Args:
        results: by the name of the folder, beside these files, that holds the set's own.
        readers: of each set's audio.

    Raises OSError when the folder cannot be written.
    """
    table = format_macro_table(list(results.values()))
    record: dict[str, Any] = {
        "model": next(iter(results.values())).model,
        "macro_average_wer": macro_average(list(results.values())),
        "sets": [
            {"data": result.data, "normalizer": result.normalizer, **result.metrics.as_dict()}
            | {"failed": len(result.failed), "left_out": len(result.left_out)}
            for result in results.values()
        ],
    }
    write_folder(
        folder,
        {
            TABLE_FILE: table + "\n",
            METRICS_FILE: json.dumps(record, indent=2, ensure_ascii=False) + "\n",
        },
    )

    def read_audio(utterance_id: str) -> Any:
        name, _, own_id = utterance_id.partition("/")
        return readers[name](own_id)

    write_page([join_sets(results)], folder / PAGE_FILE, read_audio)


def join_sets(results: Mapping[str, EvalResult]) -> EvalResult:
    """All utterances as one evaluation, whose rate is that of all words together; ids become NAME/ID."""
    parts = list(results.values())
    utterances = [
        replace(utterance, id=f"{name}/{utterance.id}")
        for name, result in results.items()
        for utterance in result.utterances
    ]
    seconds = {
        key: sum(part.details.get(key) or 0.0 for part in parts) for key in ("audio_seconds", "wall_seconds")
    }
    shared = ("date", "hardware", "git_hash", "max_samples", "batch_size")  # the first set's are those of all
    return EvalResult(
        metrics=summarize([utterance.score for utterance in utterances], **seconds),
        utterances=utterances,
        normalizer=", ".join(dict.fromkeys(part.normalizer for part in parts)),
        model=parts[0].model,
        data=f"{len(parts)} sets",
        left_out=[problem for part in parts for problem in part.left_out],
        details={key: parts[0].details.get(key) for key in shared}
        | seconds
        | {"macro_average_wer": percent(macro_average(parts))},
    )
