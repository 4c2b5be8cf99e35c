"""Recordings to try things with: clips of the embedded corpus, always; of people from the network, where there is one.

They lie in two folders, because the model of the nano recipe reads digits alone, and its error rate on both together
would say nothing.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_audio.data.sources import MANIFEST_NAME
from tiny_audio.errors import UserError, first_line
from tiny_audio.files import write_files, write_folder
from tiny_audio.setup.download import SILENCE_SECONDS, Refused, RemoteFile, Unavailable, fetch

if TYPE_CHECKING:
    from rich.progress import Progress

TABLE = Path(__file__).parents[1] / "facts" / "samples.yaml"
SAMPLES_FOLDER = Path("samples")
DIGITS, SPEECH = "digits", "speech"
NUM_DIGIT_CLIPS = 8
SOURCES_FILE = "SOURCES.txt"
MOST_BYTES = 20_000_000
RECORDING_KEYS = {"url", "sha256", "bytes", "text", "speaker", "licence", "attribution"}


@dataclass(frozen=True)
class Recording:
    """A recording on the network, with what is said in it and who may use it."""

    file: RemoteFile
    text: str
    speaker: str
    licence: str
    attribution: str


@dataclass(frozen=True)
class Outcome:
    """What came of a recording: where it is, or why it is not."""

    recording: Recording
    path: Path | None
    problem: str | None = None
    refused: bool = False


def read_table(path: Path = TABLE) -> list[Recording]:
    """The table of recordings. Raises UserError for a file that is not one: names, lengths, checksums are checked."""
    from omegaconf import OmegaConf

    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        return [_recording(str(name), values) for name, values in content["recordings"].items()]
    except Exception as error:  # a file of any content
        raise UserError(f"{path} is not a table of recordings like {TABLE} ({first_line(error)}).") from error


def _recording(name: str, values: dict[str, Any]) -> Recording:
    if set(values) != RECORDING_KEYS:
        raise ValueError(f"{name} needs {', '.join(sorted(RECORDING_KEYS))}")
    if not re.fullmatch(r"[A-Za-z0-9_]+\.(wav|flac|mp3|ogg)", name):
        raise ValueError(f"{name} is not a plain name of an audio file")
    if not re.fullmatch(r"https?://[!-~]+", values["url"]) or not re.fullmatch(
        r"[0-9a-f]{64}", values["sha256"]
    ):
        raise ValueError(f"{name}: url or sha256 is none")
    if type(values["bytes"]) is not int or not 0 < values["bytes"] <= MOST_BYTES:
        raise ValueError(f"{name}: bytes must be between 1 and {MOST_BYTES:,}")
    file = RemoteFile(name, values["url"], values["sha256"], values["bytes"])
    return Recording(file, *(str(values[key]) for key in ("text", "speaker", "licence", "attribution")))


def write_corpus_samples(folder: Path, number: int = NUM_DIGIT_CLIPS) -> list[Path]:
    """Write clips of unseen voices (corpus:test) as WAV files with a manifest, which makes the folder a SOURCE.

    The clips are spread over the voices. Returns their paths. Raises OSError, UserError.
    """
    import soundfile

    from tiny_audio.data import corpus

    entries = corpus.read_index("test")
    chosen = [entries[index * len(entries) // number] for index in range(number)]
    contents: dict[str, str | bytes] = {}
    rows = []
    for entry in chosen:
        name = re.sub(r"[^A-Za-z0-9_-]", "-", entry.id) + ".wav"
        waveform, rate = corpus.read_audio(entry)
        encoded = io.BytesIO()
        soundfile.write(encoded, waveform, rate, format="WAV", subtype="PCM_16")
        contents[name] = encoded.getvalue()
        rows.append({"audio": name, "text": entry.text, "speaker": entry.speaker, "seconds": entry.seconds})
    names = list(contents)
    contents[MANIFEST_NAME] = _lines(rows)
    write_folder(folder, contents)
    return [folder / name for name in names]


def download_recordings(recordings: Sequence[Recording], folder: Path) -> list[Outcome]:
    """Fetch what is not there yet, and write the manifest of all that is. Raises OSError: disk full, no permission.

    Once nothing answers at all, the rest is not asked for.
    """
    import httpx

    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    silent: str | None = None
    with httpx.Client(timeout=SILENCE_SECONDS) as client, _progress() as bars:
        for recording in recordings:
            bar = bars.add_task(recording.file.name, total=recording.file.num_bytes)
            try:
                if silent is not None and not (folder / recording.file.name).is_file():
                    raise Unavailable(silent)
                path = fetch(client, recording.file, folder, partial(_show_size, bars, bar))
                outcomes.append(Outcome(recording, path))
            except Refused as error:
                outcomes.append(Outcome(recording, None, str(error), refused=True))
            except Unavailable as error:
                outcomes.append(Outcome(recording, None, str(error)))
                silent = silent or (None if error.has_answered else str(error))
    there = [outcome.recording for outcome in outcomes if outcome.path is not None]
    if there:
        _describe(there, folder)
    else:
        _remove_if_empty(folder)
    return outcomes


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _describe(recordings: Sequence[Recording], folder: Path) -> None:
    rows = [{"audio": each.file.name, "text": each.text, "speaker": each.speaker} for each in recordings]
    sources = [
        f"{each.file.name}\n  {each.attribution}\n  licence: {each.licence}\n  from: {each.file.url}\n"
        for each in recordings
    ]
    write_files({folder / MANIFEST_NAME: _lines(rows), folder / SOURCES_FILE: "\n".join(sources)})


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _show_size(bars: Progress, bar: Any, num_bytes: int) -> None:
    bars.update(bar, completed=num_bytes)


def _progress() -> Progress:
    """A bar for each file, on a terminal; nothing in a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
