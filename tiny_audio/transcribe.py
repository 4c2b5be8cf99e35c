"""`tiny-audio transcribe`: audio files of any length to text, subtitles or JSON, on standard output or in files."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from tiny_audio.devices import DeviceOption, Dtype, DtypeOption
from tiny_audio.errors import UserError
from tiny_audio.evaluate.providers import TinyAudioProvider, describe_failure, find_model

STANDARD_INPUT = "-"


class Timestamps(StrEnum):
    word = "word"
    segment = "segment"


@dataclass(frozen=True)
class Format:
    """How transcripts are written."""

    name: str = "txt"  # txt, json, srt or vtt: also the ending of files
    timestamps: Timestamps | None = None
    min_confidence: float | None = None

    @property
    def needs_words(self) -> bool:
        return self.timestamps == Timestamps.word or self.min_confidence is not None

    def render(self, audio: str, recognition: Any) -> str:
        """A recognition as a document; it ends in a newline unless it is empty."""
        from tiny_audio import subtitles

        if self.name == "json":
            words = self.timestamps == Timestamps.word
            return subtitles.to_json(audio, recognition, words, self.min_confidence) + "\n"
        if self.name == "srt":
            return subtitles.to_srt(recognition, self.min_confidence)
        if self.name == "vtt":
            return subtitles.to_vtt(recognition, self.min_confidence)
        if self.timestamps is None:
            return subtitles.to_text(recognition, self.min_confidence) + "\n"
        parts = recognition.words if self.timestamps == Timestamps.word else recognition.segments
        return "".join(f"{part.start:.3f}\t{part.end:.3f}\t{subtitles.clean(part.text)}\n" for part in parts)


@dataclass(frozen=True)
class Transcript:
    """What became of one file: a `Recognition`, or why there is none."""

    audio: str
    recognition: Any = None
    error: str | None = None


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
            "--json",
            help='A line of JSON for each file: {"audio", "seconds", "text", "segments", "problems"},'
            ' with "words" by --timestamps word, or {"audio", "error"}.',
        ),
    ] = False,
    srt: Annotated[bool, typer.Option("--srt", help="SubRip subtitles.")] = False,
    vtt: Annotated[bool, typer.Option("--vtt", help="WebVTT subtitles.")] = False,
    timestamps: Annotated[
        Timestamps | None,
        typer.Option(help="Lines of START<TAB>END<TAB>TEXT in seconds.", show_default=False),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Mark words that are less sure than this: [word?].", show_default=False
        ),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it is written.")] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Write NAME.txt (.json, .srt, .vtt) files here instead.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows of audio in one pass.")] = 8,
    window_seconds: Annotated[
        float | None,
        typer.Option(
            help="The longest window that long audio is cut into. Left out: what reads best.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The most tokens written for one window. Left out: grows with its length.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
) -> None:
    """Write down what is said in audio files.

    Standard output holds transcripts only: the text for one file, PATH<TAB>TEXT lines for several. A file
    that cannot be transcribed costs a line on standard error, not the other files; the exit code is then 2.
    Audio may be of any length; stretches without speech give no words.

    \b
    Examples:
      tiny-audio transcribe outputs/nano/model recording.wav
      tiny-audio transcribe outputs/nano/model interview.mp3 --srt > interview.srt
      tiny-audio transcribe outputs/nano/model recordings/ --json > transcripts.jsonl
      cat recording.flac | tiny-audio transcribe outputs/nano/model - --stream
    """
    format = choose_format(as_json, srt, vtt, timestamps, min_confidence)
    find_model(model)
    output = sys.stdout
    # Libraries that print must not end up between the transcripts.
    with contextlib.redirect_stdout(sys.stderr):
        paths, several = expand_files(files)
        if stream and (several or output_dir is not None or format != Format()):
            raise UserError("--stream prints the plain text of one file: leave the other formats out.")
        if format.name in ("srt", "vtt") and several and output_dir is None:
            raise UserError(
                f"Subtitles of several files: name a folder for them with --output-dir ({len(paths)} files)."
            )
        targets = None if output_dir is None else output_files(output_dir, paths, format.name)

        def load() -> Any:
            from tiny_audio.hub.asr_longform import Recogniser

            provider = TinyAudioProvider.load(model, device, dtype)
            has_head = provider.model.ctc_head is not None
            try:
                return Recogniser(
                    provider.model,
                    provider.processor,
                    window_seconds=window_seconds,
                    batch_size=batch_size,
                    # Subtitles do without word times where there are none.
                    word_times=format.needs_words or (format.name in ("srt", "vtt") and has_head),
                    generate={} if max_new_tokens is None else {"max_new_tokens": max_new_tokens},
                )
            except ValueError as error:
                raise UserError(f"{model}: {error}") from error

        if stream:
            stream_file(load, paths[0], output)
            return
        num_failed = 0
        with _progress(paths, output) as advance:
            for number, transcript in enumerate(transcribe_files(load, paths, advance)):
                num_failed += transcript.error is not None
                target = None if targets is None else targets[number]
                print_transcript(transcript, format, output, several=several, target=target)
    if num_failed:
        raise typer.Exit(2)


def choose_format(
    as_json: bool, srt: bool, vtt: bool, timestamps: Timestamps | None, min_confidence: float | None
) -> Format:
    """The one format that the options ask for. Raises UserError for two."""
    asked = [name for name, is_asked in (("json", as_json), ("srt", srt), ("vtt", vtt)) if is_asked]
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]} are two formats: ask for one.")
    return Format(asked[0] if asked else "txt", timestamps, min_confidence)


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


def output_files(folder: Path, paths: Sequence[str], suffix: str) -> list[Path]:
    """The file of each transcript. Raises UserError where two would have the same, or the folder cannot be made."""
    targets = [
        folder / f"{'stdin' if path == STANDARD_INPUT else Path(path).stem}.{suffix}" for path in paths
    ]
    firsts: dict[Path, str] = {}
    for path, target in zip(paths, targets, strict=True):
        if target in firsts:
            raise UserError(f"{firsts[target]} and {path} would both be written to {target}.")
        firsts[target] = path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    return targets


def transcribe_files(
    load: Callable[[], Any],
    paths: Sequence[str],
    advance: Callable[[float], None] | None = None,
) -> Iterator[Transcript]:
    """Transcribe files, giving each result in the order of `paths`.

    Args:
        load: returns the `Recogniser`. Not called where no file exists: a mistyped name should not wait for
            gigabytes of weights.
        paths: audio files, `-` for standard input.
        advance: called with seconds of audio done.
    """
    from tiny_audio.hub.asr_audio import read_blocks

    # Before anything else can read from it.
    standard_input = read_standard_input() if STANDARD_INPUT in paths else b""
    recordings = (read_blocks(standard_input if path == STANDARD_INPUT else path) for path in paths)
    if any(path == STANDARD_INPUT or os.path.exists(path) for path in paths):
        results = load().recognise(recordings, advance)
    else:
        results = (_failure_of(recording) for recording in recordings)
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, UserError):
            raise result
        if isinstance(result, Exception):
            yield Transcript(path, error=describe_failure(result).removeprefix(f"{path}: "))
        else:
            yield Transcript(path, result)


def read_standard_input() -> bytes:
    """All of it. Raises UserError where it is closed."""
    if sys.stdin is None:
        raise UserError("Standard input (-) is closed; nothing can be read from it.")
    return sys.stdin.buffer.read()


def _failure_of(recording: Iterator[Any]) -> Exception:
    """Why a recording that does not exist cannot be read."""
    try:
        next(recording)
    except (OSError, ValueError) as error:
        return error
    return OSError("appeared while it was being looked for; try again")


def stream_file(load: Callable[[], Any], path: str, output: TextIO) -> None:
    """Print the text of one file piece by piece."""
    from tiny_audio.evaluate.providers import printable
    from tiny_audio.hub.asr_audio import read_blocks

    source = read_standard_input() if path == STANDARD_INPUT else path
    if isinstance(source, str) and not os.path.exists(source):
        raise UserError(f"{source}: no such file")
    try:
        for piece in load().stream(read_blocks(source)):
            output.write(printable(piece))
            output.flush()
    except ValueError as error:  # AudioError is one
        raise UserError(describe_failure(error)) from error
    finally:
        output.write("\n")
        output.flush()


def print_transcript(
    transcript: Transcript, format: Format, output: TextIO, *, several: bool, target: Path | None = None
) -> None:
    """Write one result to `target`, or to `output`; its error and its gaps (if any) to standard error."""
    from tiny_audio.evaluate.providers import printable
    from tiny_audio.files import write_files

    name = printable(transcript.audio)  # a file may be called anything
    if transcript.error is not None:
        print(f"error: {name}: {transcript.error}", file=sys.stderr, flush=True)
        if format.name == "json" and target is None:
            from tiny_audio.subtitles import to_json_line

            line = to_json_line({"audio": transcript.audio, "error": transcript.error})
            print(line, file=output, flush=True)
        return
    for problem in transcript.recognition.problems:
        print(f"warning: {name}: {problem}", file=sys.stderr, flush=True)
    text = format.render(transcript.audio, transcript.recognition)
    if target is not None:
        write_files({target: text})
    elif several and format.name == "txt":
        lines = text.splitlines() or [""]
        print("\n".join(f"{name}\t{line}" for line in lines), file=output, flush=True)
    else:
        output.write(text)
        output.flush()


@contextlib.contextmanager
def _progress(paths: Sequence[str], output: TextIO) -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error, where somebody watches it and transcripts go elsewhere."""
    if output.isatty() or not sys.stderr.isatty():
        yield lambda seconds: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from tiny_audio.hub.asr_audio import declared_seconds

    lengths = [declared_seconds(path) for path in paths]
    total = sum(length for length in lengths if length is not None)
    columns = (
        TextColumn("transcribing"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("", total=None if None in lengths else total, done="")
        heard = 0.0

        def advance(seconds: float) -> None:
            nonlocal heard
            heard += seconds
            progress.update(task, completed=heard, done=f"{heard / 60:.1f} min of audio")

        yield advance
