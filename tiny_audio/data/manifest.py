"""Manifests: a JSON object a line, ``{"audio": path, "text": ...}``, optionally speaker, seconds, words, language."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiny_audio.data.folder import FileSource
from tiny_audio.data.mapped import RecordWriter
from tiny_audio.data.source import LazySequence
from tiny_audio.data.utterance import AudioRef, Problem, Utterance, Word
from tiny_audio.errors import UserError
from tiny_audio.files import file_identity
from tiny_audio.hub.asr_audio import AudioError, audio_seconds

MOST_SECONDS = 1_000_000  # eleven days; a number of 400 digits is no length
LONGEST_SHOWN = 40  # characters of what a line holds instead
LINE = np.dtype([("offset", "<i8"), ("seconds", "<f8")])


class ManifestSource(FileSource):
    """The rows of a ``manifest.jsonl``; paths are relative to the manifest, or absolute.

    What is kept is where each line begins and its seconds (16 bytes a row, see `RecordWriter`); a row is parsed again
    when it is asked for. Rows without ``seconds`` get them from the header of their audio.
    """

    def __init__(self, path: Path, name: str, with_audio: bool = True) -> None:
        """`with_audio`: look whether the files are there."""
        self.name = name
        self._with_audio = with_audio
        self.problems = []
        self._path = path
        lines = RecordWriter(LINE)
        try:
            self._identity = file_identity(path)
            with path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file, start=1):
                    seconds = self._scan_line(line, number) if line.strip() else None
                    if seconds is not None:
                        lines.append(offset, seconds)
                    offset += len(line)
        except OSError as error:
            raise UserError(f"{path}: the manifest cannot be read ({error.strerror})") from error
        self._lines = lines.finish()
        self.require_rows()

    def utterances(self) -> Sequence[Utterance]:
        return LazySequence(len(self._lines), self._utterance, self._in_turn)

    def seconds(self) -> np.ndarray:
        return self._lines["seconds"].astype(np.float32)

    def identity(self) -> str:
        return self._identity

    def _scan_line(self, line: bytes, number: int) -> float | None:
        """The seconds of a row; None, with a problem noted, where it cannot be used."""
        where = f"{self._path.name} line {number}"
        try:
            row = parse_row(line)
        except ValueError as error:
            self.problems.append(Problem(where, str(error)))
            return None
        audio = self._path.parent / row["audio"]
        seconds = row.get("seconds")
        try:
            if seconds is None:
                seconds = audio_seconds(audio)
            elif self._with_audio and not audio.is_file():
                raise AudioError("no such file")
        except (AudioError, OSError) as error:
            reason = str(error).removeprefix(f"{audio}: ")
            unheard = self._row_utterance(row, seconds)
            self.problems.append(Problem(where, f"{row['audio']}: {reason}", unheard))
            return None
        return float(seconds)

    def _utterance(self, index: int) -> Utterance:
        return next(self._in_turn(index))

    def _in_turn(self, first: int = 0) -> Iterator[Utterance]:
        """The rows from number `first` on."""
        try:
            with self._path.open("rb") as file:
                for line in self._lines[first:]:
                    file.seek(line["offset"])
                    yield self._row_utterance(parse_row(file.readline()), float(line["seconds"]))
        except (OSError, ValueError) as error:  # it was in order when it was opened
            raise UserError(
                f"{self._path} was changed or taken away while it was read: start again ({error})"
            ) from error

    def _row_utterance(self, row: dict[str, Any], seconds: float | None) -> Utterance:
        file = Path(row["audio"])
        named = (file.with_suffix("") if file.name else file).as_posix()  # "." has no name
        return Utterance(
            id=named if row.get("id") is None else str(row["id"]),
            text=row["text"],
            seconds=seconds,
            audio=AudioRef(str(self._path.parent / row["audio"])),
            speaker=None if row.get("speaker") is None else str(row["speaker"]),
            words=parse_words(row.get("words")),
            language=None if row.get("language") is None else str(row["language"]),
        )


def parse_row(line: bytes) -> dict[str, Any]:
    """One line of a manifest as a checked dictionary.

    Raises:
        ValueError: says what is wrong with the line.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = (
            f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
        )
        raise ValueError(f"is not valid JSON ({reason})") from None
    if type(row) is not dict:
        raise ValueError(
            f'must be an object such as {{"audio": "a.wav", "text": "hello"}}, not {_json_type(row)}'
        )
    for key in ("audio", "text"):
        if key not in row:
            raise ValueError(f'has no "{key}"; its keys are {", ".join(sorted(row)) or "none"}')
        if type(row[key]) is not str:
            raise ValueError(f'"{key}" must be a string, not {_json_type(row[key])}')
        if any("\ud800" <= character <= "\udfff" for character in row[key]):
            raise ValueError(f'"{key}" holds half a character, such as a cut emoji')
    if not row["audio"].strip() or "\0" in row["audio"]:
        raise ValueError('"audio" is not a path')
    if "://" in row["audio"]:
        raise ValueError(f'"audio" must be a local path, not the address {row["audio"]}')
    seconds = row.get("seconds")
    if seconds is not None:
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not number or not 0 < seconds <= MOST_SECONDS:
            shown = json.dumps(seconds)[:LONGEST_SHOWN]
            raise ValueError(f'"seconds" must be a positive number of at most {MOST_SECONDS:,}, not {shown}')
    parse_words(row.get("words"))
    return row


def parse_words(words: Any) -> tuple[Word, ...] | None:
    """``[["word", start seconds, end seconds], ...]`` as words; None where there are none."""
    if words is None:
        return None
    try:
        return tuple(Word(str(text), float(start), float(end)) for text, start, end in words)
    except (TypeError, ValueError, OverflowError):
        raise ValueError('"words" must be a list of ["word", start seconds, end seconds]') from None


def _json_type(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")
