"""`tiny-audio transcribe`: audio files to text, on standard output and nothing else there."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from tiny_audio.errors import UserError
from tiny_audio.evaluate.providers import TinyAudioProvider, describe_failure, find_model, printable

STANDARD_INPUT = "-"
SAMPLING_RATE = 16_000
Transcribe = Callable[[list[Any]], list[str]]


@dataclass(frozen=True)
class Transcript:
    """What became of one file: its text and length in seconds, or why there is none."""

    audio: str
    text: str | None = None
    seconds: float | None = None
    error: str | None = None

    def as_json(self) -> str:
        """One line: {"audio", "seconds", "text"} or {"audio", "error"}."""
        record: dict[str, Any] = {"audio": self.audio}
        if self.error is not None:
            record["error"] = self.error
        else:
            record.update(seconds=round(self.seconds or 0.0, 3), text=self.text)
        return json.dumps(record, ensure_ascii=False)


def transcribe_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the model, such as outputs/nano/model.")],
    files: Annotated[
        list[str],
        typer.Argument(
            help="Audio files, folders (every audio file below them), patterns such as *.wav,"
            " or - for standard input."
        ),
    ],
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help='A line of JSON for each file: {"audio", "seconds", "text"} or {"audio", "error"}.'
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Files transcribed at a time.")] = 8,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The longest transcript in tokens. Left out: the model's own limit.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Write down what is said in audio files.

    Standard output holds transcripts only: the text for one file, PATH<TAB>TEXT lines for several. A file
    that cannot be transcribed costs a line on standard error, not the other files; the exit code is then 2.

    \b
    Examples:
      tiny-audio transcribe outputs/nano/model recording.wav
      tiny-audio transcribe outputs/nano/model recordings/ --json > transcripts.jsonl
      cat recording.flac | tiny-audio transcribe outputs/nano/model -
    """
    find_model(model)
    options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    output = sys.stdout
    # Libraries that print must not end up between the transcripts.
    with contextlib.redirect_stdout(sys.stderr):
        paths, several = expand_files(files)

        def load() -> tuple[Transcribe, float | None]:
            provider = TinyAudioProvider.load(model, device, **options)
            return provider.transcribe, provider.max_seconds

        num_failed = 0
        for transcript in _with_progress(transcribe_files(load, paths, batch_size), len(paths), output):
            num_failed += transcript.error is not None
            print_transcript(transcript, output, several=several, as_json=as_json)
    if num_failed:
        raise typer.Exit(2)


def expand_files(files: Sequence[str]) -> tuple[list[str], bool]:
    """The audio files that the arguments mean, and whether they can be several (a folder's always can).

    A folder stands for every audio file below it, in order; a pattern that the shell has left alone (as on
    Windows) for what it matches. A name that is nothing of the kind stays as it is and is reported when it is
    read.

    Raises UserError for a folder without audio, a pattern without match, and standard input named twice.
    """
    from tiny_audio.data.folder import AUDIO_SUFFIXES

    paths: list[str] = []
    several = len(files) > 1
    for name in files:
        if name == STANDARD_INPUT:
            paths.append(name)
        elif os.path.isdir(name):
            several = True
            found = sorted(
                str(path)
                for path in Path(name).rglob("*")
                if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".") and path.is_file()
            )
            if not found:
                raise UserError(
                    f"{name}: no audio in this folder; known are files ending in"
                    f" {' '.join(sorted(AUDIO_SUFFIXES))}"
                )
            paths.extend(found)
        elif glob.has_magic(name) and not os.path.lexists(name):
            several = True
            found = sorted(glob.glob(name, recursive=True))
            if not found:
                raise UserError(f"{name}: no file matches this pattern")
            paths.extend(found)
        else:
            paths.append(name)
    if paths.count(STANDARD_INPUT) > 1:
        raise UserError("Standard input (-) can be read only once; name it once.")
    return paths, several


def transcribe_files(
    load: Callable[[], tuple[Transcribe, float | None]],
    paths: Sequence[str],
    batch_size: int,
) -> Iterator[Transcript]:
    """Transcribe files in batches, giving each result in the order of `paths` as soon as its batch is done.

    Args:
        load: returns the function from 16 kHz waveforms to texts, and the longest clip it takes in
            seconds. Not called where no file exists: a mistyped name should not wait for gigabytes of
            weights.
        paths: audio files, `-` for standard input.
        batch_size: files transcribed at a time. A batch that fails is repeated file by file.
    """
    from tiny_audio.hub.asr_audio import load_audio

    # Before anything else can read from it.
    standard_input = sys.stdin.buffer.read() if STANDARD_INPUT in paths else b""
    transcribe: Transcribe = _nothing
    max_seconds = None
    if any(path == STANDARD_INPUT or os.path.exists(path) for path in paths):
        transcribe, max_seconds = load()
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        results: dict[int, Transcript] = {}
        waveforms: dict[int, Any] = {}
        for index, path in enumerate(batch):
            try:
                source = standard_input if path == STANDARD_INPUT else path
                waveforms[index] = load_audio(source, max_seconds=max_seconds)
            except (OSError, ValueError) as error:  # AudioError is a ValueError
                results[index] = Transcript(path, error=describe_failure(error).removeprefix(f"{path}: "))
        for index, outcome in zip(
            waveforms, _transcribe_batch(transcribe, list(waveforms.values())), strict=True
        ):
            if isinstance(outcome, Exception):
                results[index] = Transcript(batch[index], error=describe_failure(outcome))
            else:
                seconds = len(waveforms[index]) / SAMPLING_RATE
                results[index] = Transcript(batch[index], text=outcome, seconds=seconds)
        yield from (results[index] for index in range(len(batch)))


def _nothing(waveforms: list[Any]) -> list[str]:
    return []


def _transcribe_batch(transcribe: Transcribe, waveforms: list[Any]) -> Sequence[str | Exception]:
    if not waveforms:
        return []
    try:
        return transcribe(waveforms)
    except UserError:
        raise
    except Exception as error:  # one odd file must not stop the others
        if len(waveforms) == 1:
            return [error]
        return [_transcribe_batch(transcribe, [waveform])[0] for waveform in waveforms]


def print_transcript(transcript: Transcript, output: TextIO, *, several: bool, as_json: bool) -> None:
    """Write one result to `output`, its error (if any) to standard error.

    Plain transcripts take exactly one line.
    """
    if transcript.error is not None:
        print(f"error: {transcript.audio}: {transcript.error}", file=sys.stderr, flush=True)
    if as_json:
        print(transcript.as_json(), file=output, flush=True)
    elif transcript.error is None:
        text = printable(" ".join((transcript.text or "").split()))
        print(f"{transcript.audio}\t{text}" if several else text, file=output, flush=True)


def _with_progress(transcripts: Iterator[Transcript], total: int, output: TextIO) -> Iterator[Transcript]:
    """A progress bar on standard error, where somebody watches it and transcripts go elsewhere."""
    if total < 2 or output.isatty() or not sys.stderr.isatty():
        return transcripts
    from rich.console import Console
    from rich.progress import track

    shown = track(
        transcripts, description="transcribing", total=total, console=Console(file=sys.stderr), transient=True
    )
    return iter(shown)
