"""`tiny-audio data`: look at speech before training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tiny_audio.files import safe_name, write_folder

app = typer.Typer(
    help="Look at speech before training on it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PICTURE_FILE, JSON_FILE, SUSPECTS_FILE, TEXT_FILE = (
    "inspection.png",
    "inspection.json",
    "suspects.jsonl",
    "inspection.txt",
)


@app.callback()
def data() -> None:
    """Look at speech before training on it."""


@app.command("inspect")
def inspect_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="corpus:SPLIT, a folder, a manifest.jsonl, a .parquet file, hub:NAME[/CONFIG]:SPLIT, or a known set.",
            metavar="SOURCE...",
        ),
    ],
    listen: Annotated[int, typer.Option(min=0, help="Rows to decode, the same ones every time.")] = 200,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Where files go. Left out: outputs/inspect_SOURCE.", show_default=False),
    ] = None,
) -> None:
    """Tell what a set of speech holds, and which of its rows look wrong, before a cent is spent on it.

    Prints hours, lengths, speaking rates, characters, what training would tidy and leave out, duplicates and
    suspects; writes the same as inspection.txt and .json, pictures (inspection.png), and the rows to look at
    (suspects.jsonl).

    \b
    Examples:
      tiny-audio data inspect recordings
      tiny-audio data inspect corpus:train --listen 1000
      tiny-audio data inspect hub:speechbrain/LoquaciousSet/small:train
    """
    import dataclasses
    import io

    from tiny_audio.data.inspection import draw_inspection, format_inspection, inspect_source
    from tiny_audio.data.sources import open_source
    from tiny_audio.train.config import compose_config

    defaults = compose_config([])
    limits = (float(defaults.data.min_seconds), float(defaults.data.max_seconds))
    for spec in sources:
        found = inspect_source(open_source(spec, default_split="train"), listen)
        text = format_inspection(found, defaults.ctc.vocabulary, limits)
        typer.echo(text)
        folder = output_dir or Path("outputs") / f"inspect_{_safe(spec)}"
        if output_dir is not None and len(sources) > 1:
            folder = output_dir / _safe(spec)
        picture = io.BytesIO()
        draw_inspection(found, picture)
        suspects = [json.dumps(dataclasses.asdict(each), ensure_ascii=False) for each in found.suspects]
        write_folder(
            folder,
            {
                TEXT_FILE: text + "\n",
                JSON_FILE: json.dumps(found.as_json(), ensure_ascii=False, indent=2) + "\n",
                SUSPECTS_FILE: "".join(f"{line}\n" for line in suspects),
                PICTURE_FILE: picture.getvalue(),
            },
        )
        typer.echo(f"\npictures: {folder / PICTURE_FILE}   rows to look at: {folder / SUSPECTS_FILE}\n")


def _safe(name: str) -> str:
    return safe_name(name)[-60:]  # the end of a path says most
