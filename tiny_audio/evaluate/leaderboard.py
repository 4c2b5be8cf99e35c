"""`tiny-audio leaderboard`: rows that can be reproduced, and the page and the drawing that are made from them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiny_audio.errors import UserError, nearest
from tiny_audio.evaluate.leaderboard_page import (
    PAGE_FILE,
    PLOT_FILE,
    format_page,
    format_plot,
    grouped,
    percent,
    table_cells,
)
from tiny_audio.evaluate.leaderboard_rows import (
    CORPUS_TEST,
    DATA_FILE,
    RATE_TOLERANCE,
    VERIFIED,
    Row,
    dump_rows,
    key_of,
    read_rows,
    required_samples,
    row_problems,
    set_name_of,
)
from tiny_audio.files import write_files

if TYPE_CHECKING:
    from tiny_audio.evaluate.results import EvalResult

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
RTFX_TOLERANCE = 0.01  # of the stated speed
COUNTS = ("substitutions", "deletions", "insertions", "reference_words", "num_samples")

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings=HELP_OPTIONS,
    help="Put an evaluation on docs/LEADERBOARD.md, check its rows, or show them.",
)


@app.command("add", context_settings=HELP_OPTIONS)
def add_command(
    run: Annotated[
        Path, typer.Argument(help="Folder of an evaluation, with metrics.json and results.jsonl.")
    ],
    contributor: Annotated[str, typer.Option(help="Who ran it: a GitHub name such as @ada, or a name.")],
    model: Annotated[
        str | None,
        typer.Option(help="What the row calls the model. Left out: its hub id.", show_default=False),
    ] = None,
    cost: Annotated[
        float | None, typer.Option(min=0, help="What training it cost, in US dollars.", show_default=False)
    ] = None,
    set_name: Annotated[
        str | None, typer.Option(help="Name of a public set that is not in our table.", show_default=False)
    ] = None,
    set_url: Annotated[
        str | None, typer.Option(help="Where that set can be had, an https address.", show_default=False)
    ] = None,
) -> None:
    """Add the row of an evaluation, if its files give its figures again.

    \b
    Example:
      tiny-audio leaderboard add outputs/eval_nano_corpus-test --contributor @ada --model nano
    """
    root = find_root()
    rows = _good_rows(root)
    check_clean(root)
    row = make_row(run, contributor, model, cost, set_name, set_url)
    if is_in_history(root, row["git_hash"]) is False:
        raise UserError(
            f"{run}: {root} has no commit {row['git_hash']}, so nobody could repeat this figure. Evaluate with a commit"
            " of this repository, or fetch the one that was used."
        )
    if any(key_of(row) == key_of(other) for other in rows):
        raise UserError(
            f"{row['model']} by {row['contributor']} at {row['git_hash']} already has a row on {row['set']};"
            f" change or remove its line in {DATA_FILE} first."
        )
    write_all(root, [*rows, row])
    typer.echo(
        f"{row['model']} on {row['set']}: {percent(row['wer'])}, in {DATA_FILE}, {PAGE_FILE} and {PLOT_FILE}."
    )


@app.command("check", context_settings=HELP_OPTIONS)
def check_command() -> None:
    """Check every row, and that the page and the drawing are what the rows give."""
    root = find_root()
    rows, problems = read_rows(root / DATA_FILE)
    verified = [row for row in rows if row["state"] == VERIFIED]
    strange = [row for row in verified if is_in_history(root, row["git_hash"]) is False]
    if len(strange) < len(verified):  # else this is a copy of the files in another repository
        problems += [
            f"{row['model']} on {row['set']}: the repository has no commit {row['git_hash']}"
            for row in strange
        ]
    if not problems:
        for path, content in generated(rows).items():
            if path != DATA_FILE and _read_bytes(root / path) != content.encode():
                problems.append(f"{path} is not what {DATA_FILE} gives; run tiny-audio leaderboard build")
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise UserError(
            f"{DATA_FILE}: {len(problems)} thing{'s' * (len(problems) > 1)} to mend, listed above."
        )
    typer.echo(f"{len(rows)} row{'s' * (len(rows) != 1)}, all in order.")


@app.command("build", context_settings=HELP_OPTIONS)
def build_command() -> None:
    """Make the page and the drawing again, after a row was changed or merged by hand."""
    root = find_root()
    write_all(root, _good_rows(root))
    typer.echo(f"Wrote {PAGE_FILE} and {PLOT_FILE}.")


@app.command("show", context_settings=HELP_OPTIONS)
def show_command(
    set_name: Annotated[str | None, typer.Option("--set", help="Only this set.", show_default=False)] = None,
) -> None:
    """Print the leaderboard."""
    from tiny_audio.evaluate.report import in_columns

    tables = grouped(_good_rows(find_root()))
    if set_name is not None:
        wanted, names = set_name_of(set_name) or set_name, [name for name, _ in tables]
        if wanted not in names:
            raise UserError(
                f"{set_name}: no row of that set.{nearest(wanted, names)} There are {', '.join(names)}"
            )
        tables = [table for table in tables if table[0] == wanted]
    for name, rows in tables:
        typer.echo(f"{name}\n{in_columns(table_cells(rows, links=False))}\n")


def make_row(
    run: Path,
    contributor: str,
    model: str | None = None,
    cost: float | None = None,
    set_name: str | None = None,
    set_url: str | None = None,
) -> Row:
    """The row of an evaluation, its score computed anew from its texts.

    Raises:
        UserError: the files do not give the stated figures, or the evaluation is not one for the leaderboard.
    """
    from tiny_audio.evaluate.results import read_evaluation

    result = read_evaluation(run)
    check_reproduces(run, result)
    details, metrics = result.details, result.metrics
    commit = details.get("git_hash")
    if not isinstance(commit, str) or commit.endswith("-dirty"):
        state = "of a tree with changes that no commit holds" if isinstance(commit, str) else "not known"
        raise UserError(
            f"{run}: the commit it was made with is {state} ({commit}). Commit, and evaluate again."
        )
    known_name = set_name_of(result.data)
    if known_name is None and (set_name is None or set_url is None):
        raise UserError(
            f"{run}: {result.data} is not a set that others can get, so nobody could repeat this figure. Evaluate on"
            f" {CORPUS_TEST} or a known set such as LoquaciousSet; or name a public one by --set-name and --set-url."
        )
    if known_name is not None and (set_name or set_url):
        raise UserError(
            f"{run}: {known_name} has its name and address already; leave out --set-name and --set-url."
        )
    num_rows = details.get("num_rows")
    if not isinstance(num_rows, int):
        raise UserError(
            f"{run}: metrics.json does not say how many rows the set has (num_rows). Evaluate again."
        )
    name = known_name or str(set_name)
    if name == CORPUS_TEST:
        check_references(run, result)
    needed = required_samples(name, num_rows)
    if metrics.num_samples < needed:
        raise UserError(
            f"{run}: {metrics.num_samples:,} samples; a row of {name} needs {needed:,}. Evaluate again."
        )
    row = {
        "set": name,
        "set_url": set_url,
        "model": model or _model_name(run, result.model),
        "contributor": contributor,
        "state": VERIFIED,
        "wer": metrics.wer,
        "wer_ci95": list(metrics.wer_ci95),
        "substitutions": metrics.substitutions,
        "deletions": metrics.deletions,
        "insertions": metrics.insertions,
        "reference_words": metrics.reference_words,
        "samples": metrics.num_samples,
        "rows": num_rows,
        "failed": len(result.failed),
        "normalizer": result.normalizer,
        "rtfx": metrics.rtfx or None,
        "hardware": details.get("hardware"),
        "git_hash": commit,
        "data_revision": details.get("data_revision"),
        "date": str(details.get("date"))[:10],
        "cost_usd": details.get("cost_usd") if cost is None else cost,
    }
    problems = row_problems(row)
    if problems:
        raise UserError(f"{run} gives a row that cannot be taken: {'; '.join(problems)}.")
    return row


def check_reproduces(run: Path, result: EvalResult) -> None:
    """Raise UserError unless the texts of an evaluation give what its metrics.json states."""
    from tiny_audio.evaluate.results import METRICS_FILE, read_records, utterance_record
    from tiny_audio.evaluate.scoring import summarize

    stated, again = result.metrics, summarize([utterance.score for utterance in result.utterances])
    pairs: list[tuple[str, Any, Any]] = [(key, getattr(stated, key), getattr(again, key)) for key in COUNTS]
    pairs += [("wer", stated.wer, again.wer), ("cer", stated.cer, again.cer)]
    pairs += [("wer_ci95", *bounds) for bounds in zip(stated.wer_ci95, again.wer_ci95, strict=True)]
    # Read once more: `failed` is not in the metrics that a finished evaluation keeps in memory.
    pairs.append(
        (
            "failed",
            json.loads((run / METRICS_FILE).read_text(encoding="utf-8")).get("failed"),
            len(result.failed),
        )
    )
    for key, value, computed in pairs:
        if not isinstance(value, (int, float)) or not abs(value - computed) <= RATE_TOLERANCE:
            raise UserError(
                f"{run}: metrics.json says {key} {value!r:.40}, its results.jsonl gives {computed}."
            )
    audio, wall = (result.details.get(key) for key in ("audio_seconds", "wall_seconds"))
    speed = (
        audio / wall if isinstance(audio, (int, float)) and isinstance(wall, (int, float)) and wall else None
    )
    if speed is not None and not abs(stated.rtfx - speed) <= RTFX_TOLERANCE * speed:
        raise UserError(f"{run}: metrics.json says rtfx {stated.rtfx!r:.40}; its seconds give {speed:.2f}.")
    for utterance in result.failed:
        if not utterance.error or utterance.hypothesis:
            raise UserError(
                f"{run}: {utterance.id} failed, so it must have a reason and no transcript; it has"
                f" {utterance.error!r:.40} and {utterance.hypothesis!r:.40}."
            )
    for utterance, line in zip(result.utterances, read_records(run), strict=True):
        again_line = utterance_record(utterance)
        wrong = [key for key in {**again_line, **line} if again_line.get(key) != line.get(key)]
        if wrong:
            raise UserError(
                f"{run}: {utterance.id}: results.jsonl says {wrong[0]} {line.get(wrong[0])!r:.40}, its texts give"
                f" {again_line.get(wrong[0])!r:.40}."
            )
    ids = [utterance.id for utterance in result.utterances]
    if len(set(ids)) < len(ids):
        raise UserError(f"{run}: {len(ids) - len(set(ids))} of its utterances are there twice.")


def check_references(run: Path, result: EvalResult) -> None:
    """Raise UserError unless the references are those of the embedded corpus."""
    from tiny_audio.data.corpus import read_index

    texts = {entry.id: entry.text for entry in read_index(CORPUS_TEST.removeprefix("corpus:"))}
    for utterance in result.utterances:
        if texts.get(utterance.id) != utterance.reference:
            raise UserError(
                f"{run}: the reference of {utterance.id} is {utterance.reference!r:.60}; {CORPUS_TEST} has"
                f" {texts.get(utterance.id)!r:.60}."
            )


def find_root() -> Path:
    """The checkout whose leaderboard is meant: around the working folder, or else the one that holds this code."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / DATA_FILE).is_file():
            return folder
    raise UserError(f"There is no {DATA_FILE} in {here} or above it; run this in a checkout of Tiny Audio.")


def check_clean(root: Path) -> None:
    """Raise UserError if files of the checkout differ from its commit, but for the leaderboard's own."""
    own = [f":(exclude){path.as_posix()}" for path in (DATA_FILE, PAGE_FILE, PLOT_FILE)]
    command = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", ".", *own]
    try:
        changed = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"{root}: git cannot say whether this checkout is clean ({type(error).__name__})."
        ) from error
    if changed:
        raise UserError(
            f"{root} has changes that no commit holds ({changed[0][3:]}"
            f"{f' and {len(changed) - 1} more' if len(changed) > 1 else ''}); commit or undo them first."
        )


def is_in_history(root: Path, commit: str) -> bool | None:
    """Whether a commit is known to the repository of `root`; None where its history is not here to look it up."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=60
        )

    try:
        if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
            return None
        return git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0
    except (OSError, subprocess.SubprocessError):
        return None


def generated(rows: list[Row]) -> dict[Path, str]:
    """The three files of the leaderboard, relative to the checkout."""
    return {DATA_FILE: dump_rows(rows), PAGE_FILE: format_page(rows), PLOT_FILE: format_plot(rows)}


def write_all(root: Path, rows: list[Row]) -> None:
    """Write the three files, none of them ever half there."""
    write_files({root / path: content for path, content in generated(rows).items()})


def _good_rows(root: Path) -> list[Row]:
    rows, problems = read_rows(root / DATA_FILE)
    # Lines out of order are what a merge leaves; writing puts them right.
    broken = [problem for problem in problems if problem.startswith("line ")]
    if broken:
        raise UserError(f"{DATA_FILE}: {broken[0]}. See tiny-audio leaderboard check.")
    return rows


def _model_name(run: Path, model: str) -> str:
    if Path(model).expanduser().exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(f"{run}: {model} is a name on your machine only; give the row's by --model NAME.")
    return model


def _read_bytes(path: Path) -> bytes | None:
    return path.read_bytes().replace(b"\r\n", b"\n") if path.is_file() else None
