"""`tiny-audio compare`: which of several recognisers is better, and whether that is more than luck."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from tiny_audio.evaluate.command import check_output_dir
from tiny_audio.evaluate.comparison import (
    LETTERS,
    NUM_SHOWN,
    Comparison,
    Pair,
    check_number,
    compare,
    comparison_record,
    format_p_value,
    verdict,
)
from tiny_audio.evaluate.normalize import NORMALIZERS, get_normalizer
from tiny_audio.evaluate.page import audio_reader, write_page
from tiny_audio.evaluate.providers import printable
from tiny_audio.evaluate.report import RULE, aligned_lines, in_columns
from tiny_audio.evaluate.results import PAGE_FILE, read_evaluation
from tiny_audio.files import write_folder

COMPARISON_TEXT_FILE, COMPARISON_FILE = "comparison.txt", "comparison.json"


def compare_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of evaluations or of training runs; the others are compared with the first.",
            show_default=False,
        ),
    ],
    normalizer: Annotated[
        str | None,
        typer.Option(
            help=f"Score all runs anew with one of: {', '.join(NORMALIZERS)}. Left out: the one that they were"
            " scored with.",
            show_default=False,
        ),
    ] = None,
    common: Annotated[
        bool,
        typer.Option("--common", help="Compare on the utterances that all runs have, rather than refuse."),
    ] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help=f"Also write {COMPARISON_TEXT_FILE}, {COMPARISON_FILE} and, of two runs, {PAGE_FILE} there.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Tell whether one evaluated model beats another, and where.

    Every RUN is a folder that tiny-audio eval (or train) wrote. All must have been scored on the same
    utterances, with the same normaliser. The first is what the others are measured against.

    \b
    What is printed, for each run against the first:
      verdict     in a sentence: how many fewer errors, and whether that may be chance
      difference  of WER with its 95% interval (paired bootstrap): an interval
                  that holds 0 means that either may be the better one
      p           how often luck alone makes such a difference (matched-pairs
                  test); below 0.05 is taken to be real. With several pairs
                  it is corrected for their number (Holm).
      wins        utterances on which the second makes fewer errors; the
                  largest wins and losses are listed with their audio

    \b
    Utterances count as independent. Where a few speakers or recordings make up
    the set, the true uncertainty is larger than stated.

    \b
    Examples:
      tiny-audio compare outputs/eval_nano_corpus-test outputs/eval_better_corpus-test
      tiny-audio compare outputs/nano outputs/small --common
      tiny-audio compare outputs/eval_* --normalizer leaderboard --output-dir outputs/comparison
    """
    if normalizer is not None:
        get_normalizer(normalizer)
    if output_dir is not None:
        check_output_dir(output_dir)
    check_number(len(runs))
    comparison = compare([read_evaluation(folder) for folder in runs], runs, normalizer, common)
    typer.echo(format_comparison(comparison, max(60, shutil.get_terminal_size((100, 24)).columns)))
    if output_dir is not None:
        write_comparison(comparison, output_dir)
        typer.echo(f"Written: {output_dir / COMPARISON_TEXT_FILE} and {COMPARISON_FILE}")
        if len(comparison.runs) == 2:
            write_page(comparison.runs, output_dir / PAGE_FILE, audio_reader(comparison.runs[0]))
            typer.echo(f"To look at and listen to: {output_dir / PAGE_FILE}")


def format_comparison(comparison: Comparison, width: int | None = None) -> str:
    """The content of comparison.txt; with a `width` aligned texts go on in further lines."""
    first = comparison.runs[0]
    parts = [
        f"{first.metrics.num_samples:,} utterances, {first.metrics.reference_words:,} words,"
        f" normaliser {first.normalizer}",
        _table(comparison),
    ]
    notes = _notes(comparison)
    if notes:
        parts.append("\n".join(notes))
    for pair in comparison.pairs:
        parts.append(_pair_summary(comparison, pair))
    for pair in comparison.pairs:
        for title, better, indices in (
            ("wins", pair.second, pair.wins),
            ("losses", pair.first, pair.losses),
        ):
            if indices:
                shown = indices[:NUM_SHOWN]
                parts.append(
                    f"{RULE}\n{LETTERS[pair.second]} against {LETTERS[pair.first]}: the largest {title}"
                    f" ({len(shown)} of {len(indices)}; {LETTERS[better]} is better)"
                )
                parts += [_format_utterance(comparison, pair, index, width) for index in shown]
    return "\n\n".join(parts) + "\n"


def write_comparison(comparison: Comparison, output_dir: Path) -> None:
    """Write comparison.txt and comparison.json, each whole or not at all.

    Raises OSError when the folder cannot be written.
    """
    record = json.dumps(comparison_record(comparison), indent=2, ensure_ascii=False)
    write_folder(
        output_dir, {COMPARISON_TEXT_FILE: format_comparison(comparison), COMPARISON_FILE: record + "\n"}
    )


def _table(comparison: Comparison) -> str:
    rows: list[tuple[str, ...]] = [("", "model", "WER", "95% interval", "S", "D", "I", "RTFx", "folder")]
    for letter, run, folder in zip(LETTERS, comparison.runs, comparison.folders, strict=False):
        metrics = run.metrics
        low, high = metrics.wer_ci95
        counts = (metrics.substitutions, metrics.deletions, metrics.insertions)
        rows.append(
            (
                letter,
                printable(run.model),
                f"{metrics.wer:.4f}",
                f"{low:.4f}-{high:.4f}",
                *(f"{count:,}" for count in counts),
                f"{metrics.rtfx:.1f}" if metrics.rtfx else "-",
                printable(str(folder)),
            )
        )
    return in_columns(rows, figures=range(2, len(rows[0]) - 1))


def _notes(comparison: Comparison) -> list[str]:
    notes = []
    named = list(zip(LETTERS, comparison.runs, comparison.num_left_out, strict=False))
    if any(comparison.num_left_out):
        outside = ", ".join(f"{count:,} of {letter}" for letter, _, count in named if count)
        notes.append(f"Compared on the utterances that all have; left out: {outside}.")
    for letter, run, _ in named:
        if run.failed:
            notes.append(
                f"{letter} failed on {len(run.failed):,} utterances, which count as all words deleted."
            )
    if len({run.data for run in comparison.runs}) > 1:
        each = ", ".join(f"{letter} {printable(run.data)}" for letter, run, _ in named)
        notes.append(f"The data was named differently, though its utterances are the same: {each}.")
    return notes


def _pair_summary(comparison: Comparison, pair: Pair) -> str:
    bootstrap = pair.bootstrap
    p_text = "too few to test" if pair.p_value is None else format_p_value(pair.p_value)
    if len(comparison.pairs) > 1 and pair.p_value_holm is not None:
        p_text += f"; corrected for {len(comparison.pairs)} pairs (Holm): {format_p_value(pair.p_value_holm)}"
    second = LETTERS[pair.second]
    rows = [
        (
            "WER difference",
            f"{pair.wer_difference:+.4f}   (95% interval {bootstrap.low:+.4f} to {bootstrap.high:+.4f},"
            " paired bootstrap)",
        ),
        (f"{second} is better", f"in {bootstrap.probability_of_improvement:.1%} of the bootstrap's draws"),
        ("matched-pairs test", p_text),
        (
            "utterances",
            f"{len(pair.wins):,} wins of {second}, {pair.ties:,} ties, {len(pair.losses):,} losses",
        ),
    ]
    return "\n".join([verdict(comparison, pair), *(f"  {name:<20} {value}" for name, value in rows)])


def _format_utterance(comparison: Comparison, pair: Pair, index: int, width: int | None) -> str:
    utterances = {letter: comparison.runs[run].utterances[index] for letter, run in pair.names.items()}
    counts = ", ".join(
        f"{letter} {utterance.score.alignment.counts.errors}" for letter, utterance in utterances.items()
    )
    heard = comparison.runs[pair.first].utterances[index]
    lines = [f"{printable(heard.id)}   errors: {counts}   {printable(heard.audio)}"]
    for letter, utterance in utterances.items():
        score = utterance.score
        aligned = aligned_lines(
            score.alignment, score.reference_normalized, score.hypothesis_normalized, width
        )
        lines += [line.replace("  HYP:", f"    {letter}:", 1) for line in aligned]
        if utterance.error is not None:
            lines.append(f"  failed: {printable(utterance.error)}")
    return "\n".join(lines)
