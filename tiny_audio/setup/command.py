"""`tiny-audio verify-setup` and `tiny-audio download-samples`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tiny_audio.errors import UserError


def verify_setup(
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: the verdict and all findings.")
    ] = False,
) -> None:
    """Tell whether this machine is ready, what is missing, and the line to type for each.

    Checks Python, packages, devices, memory, disk, audio formats, the embedded corpus, the recipes, a training run of
    two steps, the hub and your token (which is never shown). Needs no network. Exit code 0: ready; 1: not ready.

    \b
    Examples:
      tiny-audio verify-setup
      python -m tiny_audio.setup          the same, where tiny-audio itself does not start
    """
    from tiny_audio.setup.report import verify

    if not verify(as_json):
        raise typer.Exit(1)


def download_samples(
    output_dir: Annotated[Path, typer.Option(help="Where the recordings go.")] = Path("samples"),
) -> None:
    """Get a few recordings with transcripts, to try things with.

    OUTPUT_DIR/digits: digit strings from the corpus inside Tiny Audio, which need no network and which a model of the
    nano recipe can read. OUTPUT_DIR/speech: recordings of people, fetched from the network, with their licences in
    SOURCES.txt; each is checked by its checksum, and a broken download goes on where it stopped. Both folders can be
    given to transcribe and eval.

    \b
    Examples:
      tiny-audio download-samples
      tiny-audio transcribe outputs/nano/model samples/digits
      tiny-audio eval outputs/nano/model --data samples/digits
    """
    from tiny_audio.setup.samples import DIGITS, SPEECH, download_recordings, read_table, write_corpus_samples

    digits, speech = output_dir / DIGITS, output_dir / SPEECH
    clips = write_corpus_samples(digits)
    typer.echo(
        f"{digits}: {len(clips)} digit strings of synthetic voices, from the corpus inside Tiny Audio (CC0)"
    )
    outcomes = download_recordings(read_table(), speech)
    for outcome in outcomes:
        if outcome.path is not None:
            file = outcome.recording.file
            typer.echo(
                f"{outcome.path}: {file.num_bytes:,} bytes, checksum right; {outcome.recording.licence}"
            )
    missing = [outcome for outcome in outcomes if outcome.path is None]
    for outcome in missing:
        typer.echo(f"{outcome.recording.file.name}: not fetched: {outcome.problem}", err=True)
    if missing:
        typer.echo(
            f"{len(missing)} of {len(outcomes)} recordings of people could not be had; the course needs "
            f"{digits} alone. Later: tiny-audio download-samples goes on from here."
        )
    typer.echo(f"next:  tiny-audio transcribe outputs/nano/model {digits}")
    if any(outcome.refused for outcome in missing):
        raise UserError(
            "some addresses do not hold what they should (above); a newer Tiny Audio may know better ones"
        )
