"""`tiny-audio push`: a trained model to the hub, tried out before and after."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiny_audio.errors import UserError
from tiny_audio.publish.given import Given

if TYPE_CHECKING:
    from tiny_audio.hub.asr_config import TinyAudioConfig


def push_command(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="The model: outputs/run/model, or the run around it. Left out with --code-only.",
            show_default=False,
        ),
    ] = None,
    repo_id: Annotated[
        str, typer.Option(help="Where to: USER/NAME or ORGANISATION/NAME.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    private: Annotated[
        bool, typer.Option("--private", help="Only you (or the organisation) can see it.")
    ] = False,
    merged: Annotated[
        bool,
        typer.Option(
            "--merged", help="All weights inside, LoRA folded in: for endpoints and servers. Gigabytes."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write and try out what would be published, and publish nothing."),
    ] = False,
    code_only: Annotated[
        bool,
        typer.Option(
            "--code-only", help="Bring the code of a published model up to date, and change nothing else."
        ),
    ] = False,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of an evaluation of this model for the card; may be given several times. Those beside the"
            " run are found.",
            show_default=False,
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            help="Of the weights, as the hub calls it: apache-2.0, cc-by-4.0... Left out: that of the base models.",
            show_default=False,
        ),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the speech, such as en; may be given several times. Left out: that of a known training set.",
            show_default=False,
        ),
    ] = None,
    usd_per_hour: Annotated[
        float | None, typer.Option(min=0, help="What the machine cost, for the card.", show_default=False)
    ] = None,
    watts: Annotated[
        float | None, typer.Option(min=0, help="What the machine drew, for the card.", show_default=False)
    ] = None,
    co2_grams_per_kwh: Annotated[
        float | None,
        typer.Option(
            min=0, help="What its electricity emits, for the card; needs --watts.", show_default=False
        ),
    ] = None,
) -> None:
    """Publish a trained model on the Hugging Face hub, with code, handler, requirements and a model card.

    The card is written from the run itself. The folder is loaded and transcribes a clip in a process without Tiny Audio
    before anything is sent, and again from the hub afterwards. It goes up in one commit: all of it, or nothing.

    Log in with `hf auth login`, or set HF_TOKEN.

    \b
    Examples:
      tiny-audio push outputs/nano/model --repo-id you/digits --dry-run
      tiny-audio push outputs/nano/model --repo-id you/digits --private
      tiny-audio push outputs/stage1/model --repo-id you/asr --merged --usd-per-hour 0.5 --watts 300
      tiny-audio push --repo-id you/digits --code-only
    """
    from tiny_audio.publish import upload

    upload.check_repo_id(repo_id)
    given = Given(license, tuple(language or ()), usd_per_hour, watts, co2_grams_per_kwh)
    if code_only:
        if folder is not None or private or merged or dry_run or evaluation or given != Given():
            raise UserError(
                "--code-only changes the code of what is published: it takes --repo-id and nothing else"
            )
        push_code(repo_id)
        return
    if folder is None:
        raise UserError(
            "Which model? Give its folder: tiny-audio push outputs/nano/model --repo-id you/digits"
        )
    model_folder = find_folder(folder)
    connection = None if dry_run else upload.connect()  # before seconds of imports and minutes of the rest
    push(model_folder, repo_id, given, evaluation or [], connection, private=private, merged=merged)


def push(
    model_folder: Path,
    repo_id: str,
    given: Given,
    evaluations: list[Path],
    connection: tuple[Any, str] | None,
    *,
    private: bool = False,
    merged: bool = False,
) -> None:
    """Stage, verify, publish, verify again; says each on standard output. Without a `connection` nothing is published.

    Raises:
        UserError: any of it went wrong. Before publishing: nothing has been sent. After: which commit it is in.
    """
    from transformers.utils import logging

    from tiny_audio.publish import staging, upload
    from tiny_audio.publish.staging import CARD_FILE, OUR_FILES, describe_folder
    from tiny_audio.publish.verify import verify

    logging.disable_progress_bar()
    staged = Path("outputs") / f"push_{repo_id.replace('/', '_')}"
    staging.check_place(staged, model_folder)
    architecture, bases = stage(model_folder, staged, repo_id, given, evaluations, merged=merged)
    heard = verify(str(staged.resolve()), bases=bases)
    typer.echo(f"{staged}: loads and transcribes without Tiny Audio.   {heard}")
    if not heard.heard:
        typer.echo("(it heard nothing in English digits: is it trained, and on what?)")
    if connection is None:
        typer.echo(f"Would go to {repo_id}:\n{describe_folder(staged)}\nThe card: {staged / CARD_FILE}")
        typer.echo("Nothing was published: leave --dry-run out to do it.")
        return
    api, user = connection
    is_private = upload.create(api, repo_id, private)
    form = "whole" if architecture.is_merged else "adapter"
    commit = upload.commit_folder(api, repo_id, staged, OUR_FILES, f"Publish a Tiny Audio model ({form})")
    seen = "private" if is_private else "public"
    typer.echo(f"Published as {user}: {api.endpoint}/{repo_id} ({seen}), commit {commit}")
    check_published(repo_id, commit, bases, heard)
    shutil.rmtree(staged)
    typer.echo(f"next:  tiny-audio transcribe {repo_id} my.wav")


def stage(
    model_folder: Path,
    staged: Path,
    repo_id: str,
    given: Given,
    evaluations: list[Path],
    *,
    merged: bool = False,
    in_training: bool = False,
) -> tuple[TinyAudioConfig, list[str]]:
    """Write the folder that is to be published; returns its architecture and the base models that others must fetch.

    It appears whole or not at all, in place of what an earlier command has left there.
    """
    from tiny_audio.publish import record as records
    from tiny_audio.publish import staging

    source = staging.read_architecture(model_folder)
    staging.check_bases(source, merged)
    run_folder = records.find_run_folder(model_folder)
    record = records.read_record(run_folder, source, given, in_training)
    if not in_training:
        record = replace(record, evaluations=_evaluations(model_folder, run_folder, evaluations, repo_id))
    partial = staged.with_name(f".{staged.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        architecture, left_out = staging.stage_weights(model_folder, partial, merged)
        staging.stage_code(partial, architecture.is_merged)
        staging.stage_card(partial, replace(record, stands_alone=architecture.is_merged), repo_id)
        staging.check_nothing_private(partial)
        shutil.rmtree(staged, ignore_errors=True)
        partial.rename(staged)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if left_out:
        typer.echo(f"(not published, left at home: {', '.join(left_out)})")
        if "README.md" in left_out and not record.run:
            typer.echo(
                "(no run lies around this folder, so the card knows less than the folder's own README.md may say)"
            )
    if record.licence == records.NOT_STATED:
        typer.echo("(no licence is known for the weights, and the card says so: state one with --license)")
    return architecture, [] if architecture.is_merged else _outside_bases(architecture)


def _outside_bases(architecture: TinyAudioConfig) -> list[str]:
    both: list[Any] = []
    if not architecture.encoder_in_checkpoint:
        both.append(architecture.encoder_base)
    if not architecture.decoder_in_checkpoint:
        both.append(architecture.decoder_base)
    return [base["name"] for base in both]


def _evaluations(model_folder: Path, run_folder: Path | None, given: list[Path], repo_id: str) -> list[Any]:
    from tiny_audio.publish.record import check_evaluation_of, find_evaluations, load_evaluation

    found, stale = find_evaluations(model_folder, run_folder)
    for folder in stale:
        if folder.resolve() not in [each.resolve() for each in given]:
            typer.echo(
                f"({folder} is older than the weights and not in the card; --evaluation {folder} puts it there)"
            )
    results = [load_evaluation(folder) for folder in found]
    for folder in given:
        if folder.resolve() not in [each.resolve() for each in found]:
            result = load_evaluation(folder)
            check_evaluation_of(result, folder, model_folder, repo_id)
            results.append(result)
    return results


def check_published(repo_id: str, commit: str, bases: list[str], expected: Any) -> None:
    """Raises UserError unless the published commit hears what the staged folder heard."""
    from tiny_audio.publish.verify import verify

    try:
        heard = verify(repo_id, commit, bases)
    except UserError as error:
        raise UserError(f"{repo_id} is published as commit {commit}, but: {error}") from error
    if heard != expected:
        raise UserError(
            f'{repo_id} is published as commit {commit}, but hears "{heard.heard}" where the staged folder heard'
            f' "{expected.heard}"'
        )
    typer.echo(
        "Fetched from there at that commit: loads and transcribes without Tiny Audio, with the same text."
    )


def push_code(repo_id: str) -> None:
    """Bring the code of a published model up to date. Raises UserError for a model of another kind or newer format."""
    import tempfile

    from tiny_audio import __version__
    from tiny_audio.publish import staging, upload
    from tiny_audio.publish.verify import verify

    api, user = upload.connect()
    with tempfile.TemporaryDirectory(prefix="tiny-audio-push-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        before = upload.fetch(api, repo_id, folder)
        try:
            architecture = staging.read_architecture(folder)
        except UserError as error:
            raise UserError(str(error).replace(str(folder), repo_id)) from error
        staging.stage_code(folder, architecture.is_merged)
        bases = _outside_bases(architecture)
        heard = verify(str(folder.resolve()), bases=bases)
        typer.echo(f"Its weights work with the code of this version.   {heard}")
        patterns = (*staging.CODE_FILES, staging.REQUIREMENTS_FILE)
        message = f"Code of Tiny Audio {__version__}"
        commit = upload.commit_folder(api, repo_id, folder, patterns, message)
    if commit == before:
        typer.echo(f"The code of {repo_id} is up to date already: nothing was published.")
        return
    typer.echo(f"Published as {user}: the code of {api.endpoint}/{repo_id}, commit {commit}")
    check_published(repo_id, commit, bases, heard)


def find_folder(folder: Path) -> Path:
    """The model folder that DIR means. Raises UserError where there is none."""
    from tiny_audio.evaluate.providers import find_model

    if not folder.expanduser().exists():
        raise UserError(f"There is no folder {folder}. Train a model with: tiny-audio train")
    return Path(find_model(str(folder)))
