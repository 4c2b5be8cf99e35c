"""What an evaluation leaves behind: results.txt for people, results.jsonl and metrics.json for programs."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path

from rich.cells import cell_len

from tiny_audio.evaluate.providers import printable
from tiny_audio.evaluate.results import (
    METRICS_FILE,
    RESULTS_LINES_FILE,
    RESULTS_TEXT_FILE,
    EvalResult,
    UtteranceResult,
    metrics_record,
    utterance_record,
)
from tiny_audio.evaluate.scoring import score_texts
from tiny_audio.evaluate.wer import DELETION, HIT, INSERTION, Alignment
from tiny_audio.files import write_files, write_folder

RULE = "-" * 78


def write_results(result: EvalResult, output_dir: Path) -> None:
    """Write the three files of an evaluation; each appears whole or not at all, metrics.json last.

    Raises OSError when the folder cannot be written; what was there before is then still there.
    """
    lines = (json.dumps(utterance_record(utterance), ensure_ascii=False) for utterance in result.utterances)
    write_folder(
        output_dir,
        {
            RESULTS_TEXT_FILE: format_report(result),
            RESULTS_LINES_FILE: "".join(f"{line}\n" for line in lines),
            METRICS_FILE: json.dumps(metrics_record(result), indent=2, ensure_ascii=False) + "\n",
        },
    )


def write_samples(path: Path, pairs: Sequence[tuple[str, str]], normalizer: str, heading: str = "") -> None:
    """Write (reference, hypothesis) pairs one above the other, aligned word by word, as in samples.txt."""
    scores = score_texts(
        [reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs], normalizer
    )
    blocks = [
        "\n".join(aligned_lines(score.alignment, score.reference_normalized, score.hypothesis_normalized))
        for score in scores
    ]
    write_files({path: "\n\n".join([heading, *blocks] if heading else blocks) + "\n"})


def format_summary(result: EvalResult) -> str:
    """The headline and its counts, a line each."""
    metrics = result.metrics
    low, high = metrics.wer_ci95
    rows = [
        ("WER", f"{metrics.wer:.4f}   (95% interval {low:.4f} to {high:.4f})"),
        ("CER", f"{metrics.cer:.4f}"),
        ("reference words", f"{metrics.reference_words:,}"),
        ("substitutions", f"{metrics.substitutions:,}"),
        ("deletions", f"{metrics.deletions:,}"),
        ("insertions", f"{metrics.insertions:,}"),
        ("utterances", f"{metrics.num_samples:,}"),
        ("failed", f"{len(result.failed):,}   (counted as all words deleted)" if result.failed else "0"),
        ("speed", f"{metrics.rtfx:.1f} seconds of audio a second (RTFx)"),
        ("normaliser", result.normalizer),
    ]
    if result.left_out:
        number = f"{len(result.left_out)} row{'s' * (len(result.left_out) != 1)}"
        rows.append(("left out", f"{number} without usable speech and transcript"))
    body = "\n".join(f"  {name:<16} {value}" for name, value in rows)
    return f"{result.model} on {result.data}\n\n{body}"


def format_report(result: EvalResult) -> str:
    """The content of results.txt: summary, what failed, and every utterance, the most costly first."""
    parts = [format_summary(result)]
    if result.failed:
        failures = "\n".join(f"  {utterance.id}: {utterance.error}" for utterance in result.failed)
        parts.append(f"{RULE}\nFailed\n\n{failures}")
    if result.left_out:
        parts.append(f"{RULE}\nLeft out\n\n" + "\n".join(f"  {problem}" for problem in result.left_out))
    wrong = [utterance for utterance in result.utterances if utterance.score.alignment.counts.errors]
    wrong.sort(
        key=lambda utterance: (-_errors(utterance), -utterance.score.alignment.counts.rate, utterance.id)
    )
    parts.append(
        f"{RULE}\nWith errors: {len(wrong)} of {len(result.utterances)}, the most costly first"
        " (S substituted, D deleted, I inserted)"
    )
    parts.extend(_format_utterance(utterance) for utterance in wrong)
    right = [utterance for utterance in result.utterances if not _errors(utterance)]
    listed = "\n".join(f"  {utterance.id}: {utterance.score.reference_normalized}" for utterance in right)
    parts.append(f"{RULE}\nWithout errors: {len(right)}\n\n{listed}")
    return "\n\n".join(parts).rstrip() + "\n"


def format_samples(result: EvalResult, num_samples: int, width: int) -> str:
    """Some utterances from all over the set, reference above hypothesis, `width` characters wide at most."""
    chosen = result.utterances[:: max(1, len(result.utterances) // max(num_samples, 1))][:num_samples]
    return "\n\n".join("\n".join(_utterance_lines(utterance, width)) for utterance in chosen)


def in_columns(rows: Sequence[Sequence[str]], figures: Container[int] = ()) -> str:
    """A table as text: columns of `figures` to the right, others to the left, those without a word left out."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in figures else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ).rstrip()
        for row in rows
    )


def aligned_lines(
    alignment: Alignment, reference: str, hypothesis: str, width: int | None = None
) -> list[str]:
    """A reference above its hypothesis, equal words in equal columns, and a mark under every error.

    `reference` and `hypothesis` are the normalised texts that were aligned. With a `width` long texts go on
    in further groups of lines.
    """
    groups: list[list[list[str]]] = [[[], [], []]]
    used = 0
    reference_words, hypothesis_words = (
        iter(printable(reference).split()),
        iter(printable(hypothesis).split()),
    )
    for operation in alignment.operations:
        above = "*" if operation == INSERTION else next(reference_words)
        below = "*" if operation == DELETION else next(hypothesis_words)
        column = max(cell_len(above), cell_len(below))
        if width is not None and groups[-1][0] and used + column > width - len("  REF: "):
            groups.append([[], [], []])
            used = 0
        used += column + 1
        for line, word in zip(
            groups[-1], (above, below, " " if operation == HIT else operation), strict=True
        ):
            line.append(word + " " * (column - cell_len(word)))
    lines = []
    for above_words, below_words, marks in groups:
        lines.append(("  REF: " + " ".join(above_words)).rstrip())
        lines.append(("  HYP: " + " ".join(below_words)).rstrip())
        if "".join(marks).strip():
            lines.append(("       " + " ".join(marks)).rstrip())
    return lines


def _errors(utterance: UtteranceResult) -> int:
    return utterance.score.alignment.counts.errors


def _format_utterance(utterance: UtteranceResult) -> str:
    counts = utterance.score.alignment.counts
    seconds = "" if utterance.seconds is None else f", {utterance.seconds:.1f} s"
    words = (
        f"{counts.errors} of {counts.reference_length} words"
        if counts.reference_length
        else "no words spoken"
    )
    kinds = f"S {counts.substitutions}, D {counts.deletions}, I {counts.insertions}"
    heading = f"{utterance.id}   {words} ({kinds}){seconds}"
    return "\n".join([heading, *_utterance_lines(utterance, None)])


def _utterance_lines(utterance: UtteranceResult, width: int | None) -> list[str]:
    score = utterance.score
    lines = aligned_lines(score.alignment, score.reference_normalized, score.hypothesis_normalized, width)
    return lines if utterance.error is None else [*lines, f"  failed: {utterance.error}"]
