"""Parquet shards of speech as hub data sets hold them: encoded audio bytes beside the transcript."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute

from tiny_audio.data.known_sets import TextRules
from tiny_audio.data.shards import Shards
from tiny_audio.data.source import LazySequence, Source, show_progress
from tiny_audio.data.utterance import AudioRef, Problem, Utterance
from tiny_audio.errors import UserError
from tiny_audio.files import cache_folder, file_identity, flush
from tiny_audio.hub.asr_audio import AudioError, audio_seconds, load_audio

logger = logging.getLogger(__name__)

# Names that public sets use, in order of preference; LoquaciousSet has ID, duration, wav, spk_id, text.
AUDIO_COLUMNS = ("audio", "wav", "speech", "recording", "file")
TEXT_COLUMNS = (
    "text",
    "sentence",
    "transcription",
    "transcript",
    "normalized_text",
    "raw_text",
)
SECONDS_COLUMNS = (
    "seconds",
    "duration",
    "duration_seconds",
    "audio_duration",
    "duration_ms",
)
ID_COLUMNS = ("id", "ID", "utt_id", "segment_id", "audio_id", "utterance_id")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "spk_id", "client_id")
LANGUAGE_COLUMNS = ("language", "lang", "locale")
ROLES_OF_TEXT = ("text", "id", "speaker", "language")


class ParquetSource(Source):
    """The rows of parquet files, local or at an fsspec address such as ``hf://datasets/...``.

    In memory stay 20 bytes a row: seconds and place. Text and audio are read a row group at a time, see `Shards`.
    Without a column of durations, lengths come from the header of each row's audio, once: they are then kept in
    the user's cache folder.

    Args:
        columns: role (audio, text, seconds, id, speaker, language) -> column, known beforehand; None: there is none.
        text_rules: which transcripts say that their row is not to be scored, and what to replace in others.
        files_within: a row that holds only the path of its audio may name files of this folder; None: any file.
            Data that somebody else has written must not choose among all files of this machine.

    Raises:
        UserError: no such column, one of another type, a row group too large to be read for one clip, or no usable row.
    """

    def __init__(
        self,
        files: Sequence[str],
        name: str,
        revision: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        text_rules: TextRules | None = None,
        files_within: Path | None = None,
    ) -> None:
        self.name = name
        self.revision = revision
        self.problems = []
        self.excluded: list[Problem] = []
        self._text_rules = text_rules
        self._files_within = files_within
        self._shards = Shards(files)
        self._files = self._shards.files
        if not self._files:
            raise UserError(f"{name}: there are no .parquet files")
        self._columns = self._find_columns(columns or {})
        small = [name for role, name in self._columns.items() if role != "audio"]
        self._shards.fetch_outlines(self._columns["audio"], small)
        self._scan()
        self.require_rows()

    def utterances(self) -> Sequence[Utterance]:
        return LazySequence(len(self._seconds), self._utterance)

    def seconds(self) -> np.ndarray:
        return self._seconds

    def groups(self) -> np.ndarray:
        return self._groups

    def group_bytes(self) -> np.ndarray:
        return self._group_bytes

    def fetch(self, row: int) -> None:
        file = int(self._row_files[row])
        group, _ = self._place(file, int(self._rows[row]))
        self._shards.fetch(file, group, [self._columns["audio"]])

    def identity(self) -> str | None:
        try:
            return repr([list(map(_identity, self._files)), self._columns, self._text_rules])
        except OSError:  # it has gone since: reading will say so
            return None

    def read(self, utterance: Utterance, max_seconds: float | None = None) -> np.ndarray:
        file = self._files.index(utterance.audio.location)
        assert utterance.audio.row is not None
        group, row = self._place(file, utterance.audio.row)
        table = self._shards.table(file, group, "audio", [self._columns["audio"]])
        try:
            audio = self._encoded_audio(table.column(0)[row].as_py(), file)
            return load_audio(audio, max_seconds=max_seconds)
        except AudioError as error:
            raise AudioError(f"{utterance.audio}: {error}") from error

    def _find_columns(self, given: Mapping[str, str | None]) -> dict[str, str]:
        """Role -> column, by the first file; all others must have the same."""
        schema = self._shards.schema(0)
        found: dict[str, str] = {}
        wanted: list[tuple[str, Sequence[str]]] = [
            ("audio", AUDIO_COLUMNS),
            ("text", TEXT_COLUMNS),
            ("seconds", SECONDS_COLUMNS),
            ("id", ID_COLUMNS),
            ("speaker", SPEAKER_COLUMNS),
            ("language", LANGUAGE_COLUMNS),
        ]
        wanted = [(role, [given[role] or ""] if role in given else usual) for role, usual in wanted]
        for role, candidates in wanted:
            match = next((name for name in candidates if name in schema.names), None)
            if match is not None:
                found[role] = match
            elif role in ("audio", "text"):
                raise UserError(
                    f"{self.name}: no column of {role}; its columns are {', '.join(schema.names)}, "
                    f"and one must be called {', '.join(candidates)}"
                )
        if "seconds" in found and not _holds_seconds(schema.field(found["seconds"]).type):
            logger.warning(
                "%s: its column %s holds %s, which is no number of seconds: lengths are measured",
                self.name,
                found["seconds"],
                schema.field(found["seconds"]).type,
            )
            del found["seconds"]
        if "language" in found and not _holds_text(schema.field(found["language"]).type):
            del found["language"]  # numbers of languages: nobody could ask for them
        return found

    def _check_columns(self, file: int) -> None:
        schema = self._shards.schema(file)
        holds = {"text": _holds_text, "seconds": _holds_seconds, "id": _holds_name, "speaker": _holds_name}
        for role, name in self._columns.items():
            if name not in schema.names:
                raise UserError(
                    f"{self._files[file]}: has no column {name}, as {self._files[0]} has (only "
                    f"{', '.join(schema.names)}): the files of a set must have the same columns; name one of them alone"
                )
            if role in holds and not holds[role](schema.field(name).type):
                kind = "numbers" if role == "seconds" else "text"
                raise UserError(
                    f"{self._files[file]}: its column {name} ({role}) holds {schema.field(name).type}, not {kind}: "
                    "convert it, or rename it if it means something else"
                )

    def _scan(self) -> None:
        """Finds the usable rows: `_row_files`, `_rows` (within the file), `_seconds`, `_groups`."""
        row_files, rows, seconds, groups, group_bytes = [], [], [], [], []
        self._group_starts: list[np.ndarray] = []  # of each file: the first row of each row group
        num_groups = 0
        for file in show_progress(range(len(self._files)), "reading shards", len(self._files)):
            self._check_columns(file)
            sizes, num_bytes = self._shards.group_sizes(file, self._columns["audio"])
            self._group_starts.append(np.cumsum([0, *sizes]))
            try:
                lengths = self._lengths(file)
                usable = np.isfinite(lengths) & (lengths > 0) & ~self._missing_text(file)
                usable &= ~self._excluded_by_rule(file, usable)
            except (OSError, ValueError) as error:  # what pyarrow raises
                raise UserError(
                    f"{self._files[file]}: is damaged ({' '.join(str(error).split())})"
                ) from error
            kept = np.flatnonzero(usable)
            row_files.append(np.full(len(kept), file, np.int32))
            rows.append(kept.astype(np.int32))
            seconds.append(lengths[kept])
            groups.append(num_groups + np.repeat(np.arange(len(sizes)), sizes)[kept])
            group_bytes.append(num_bytes)
            num_groups += len(sizes)
        self._row_files, self._rows = np.concatenate(row_files), np.concatenate(rows)
        self._seconds, self._groups = np.concatenate(seconds).astype(np.float32), np.concatenate(groups)
        self._group_bytes = np.concatenate(group_bytes)

    def _lengths(self, file: int) -> np.ndarray:
        """Seconds of each row of a file, NaN with a problem noted where there are none."""
        column = self._columns.get("seconds")
        if column is None:
            return self._measured_lengths(file)
        values = self._shards.column(file, column)
        lengths = _seconds(values)
        if column.endswith("_ms") and not pyarrow.types.is_duration(values.type):
            lengths = lengths / 1000
        for row in np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0))):
            written = _text(values[int(row)]) if _holds_text(values.type) else None
            found = f"{lengths[row]:g}" if written is None else written
            reason = f"its {column} is {found}, not a positive number of seconds"
            self._note(file, int(row), reason, self._unheard(file, int(row)))
        return lengths

    def _measured_lengths(self, file: int) -> np.ndarray:
        """Seconds by the header of each row's audio, from the user's cache folder where they are known.

        What could not be read is tried again each time, and so is a file that a row only names: it may be there now,
        or be another one.
        """
        cache = _lengths_cache(self._files[file])
        num_rows = int(self._group_starts[file][-1])
        kept = _load_lengths(cache, num_rows)
        lengths = kept.copy()
        unknown = np.flatnonzero(np.isnan(kept))
        table, read_group = None, -1
        description = f"reading audio headers of {self._files[file]}"
        for row in show_progress(unknown.tolist(), description, len(unknown)):
            group, row_of_group = self._place(file, row)
            if table is None or group != read_group:
                table, read_group = self._shards.read_group(file, group, [self._columns["audio"]]), group
            try:
                audio = self._encoded_audio(table.column(0)[row_of_group].as_py(), file)
                lengths[row] = audio_seconds(audio)
            except AudioError:
                continue
            if isinstance(audio, bytes):
                kept[row] = lengths[row]
        if len(unknown) and np.isfinite(kept[unknown]).any():
            _save_lengths(cache, kept)
        for row in np.flatnonzero(np.isnan(lengths)).tolist():
            self._note(file, row, "holds no audio that can be read", self._unheard(file, row))
        return lengths

    def _missing_text(self, file: int) -> np.ndarray:
        """Which rows have no transcript at all (an empty one is a clip without speech)."""
        column = self._shards.column(file, self._columns["text"])
        missing = column.is_null().to_numpy().copy()
        for row in np.flatnonzero(missing):
            self._note(file, int(row), "has no transcript")
        try:
            # Parquet files need not hold what they promise. Not every cast looks at the characters.
            column.cast(pyarrow.large_string()).validate(full=True)
        except pyarrow.ArrowInvalid:
            for row in np.flatnonzero(~missing):
                if _text(column[int(row)]) is None:
                    missing[row] = True
                    self._note(file, int(row), "its transcript is not UTF-8 text")
        return missing

    def _excluded_by_rule(self, file: int, usable: np.ndarray) -> np.ndarray:
        """Which usable rows the rules of the set leave out; notes each in `excluded`."""
        excluded = np.zeros(len(usable), bool)
        if self._text_rules is None:
            return excluded
        texts = self._shards.column(file, self._columns["text"])
        for row in show_progress(np.flatnonzero(usable), "reading transcripts", int(usable.sum())):
            reason = self._text_rules.reason_to_leave_out(_text(texts[int(row)]) or "")
            if reason is not None:
                excluded[row] = True
                self.excluded.append(Problem(str(AudioRef(self._files[file], int(row))), reason))
        return excluded

    def _note(self, file: int, row: int, reason: str, unheard: Utterance | None = None) -> None:
        self.problems.append(Problem(str(AudioRef(self._files[file], row)), reason, unheard))

    def _unheard(self, file: int, row: int) -> Utterance | None:
        """A row without usable audio, if its transcript is one that counts."""
        utterance = self._row_utterance(file, row, None)
        rules = self._text_rules
        left_out = utterance is None or (rules and rules.reason_to_leave_out(utterance.text) is not None)
        return None if left_out else utterance

    def _utterance(self, index: int) -> Utterance:
        file, row = int(self._row_files[index]), int(self._rows[index])
        utterance = self._row_utterance(file, row, float(self._seconds[index]))
        assert utterance is not None, "rows without a transcript were left out by the scan"
        return utterance

    def _row_utterance(self, file: int, row: int, seconds: float | None) -> Utterance | None:
        """None where the row has no transcript."""
        group, row_of_group = self._place(file, row)
        names = {role: self._columns[role] for role in ROLES_OF_TEXT if role in self._columns}
        table = self._shards.table(file, group, "text", list(names.values()))
        scalars = {role: table.column(name)[row_of_group] for role, name in names.items()}
        text = _text(scalars["text"])
        if text is None:
            return None
        row_id, speaker, language = (
            _text(scalars[role], "replace") if role in scalars else None for role in ROLES_OF_TEXT[1:]
        )
        return Utterance(
            id=f"{Path(self._files[file]).stem}-{row}" if row_id is None else row_id,
            text=self._text_rules.clean(text) if self._text_rules else text,
            seconds=seconds,
            audio=AudioRef(self._files[file], row),
            speaker=speaker,
            language=language,
        )

    def _place(self, file: int, row: int) -> tuple[int, int]:
        """The row group of a row, and its number therein."""
        starts = self._group_starts[file]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return group, row - int(starts[group])

    def _encoded_audio(self, value: Any, file: int) -> bytes | str:
        """Audio bytes of a row, or the path of its audio where the row holds only that."""
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict):
            if value.get("bytes"):
                return value["bytes"]
            value = value.get("path")
        if not isinstance(value, str) or not value:
            raise AudioError("the row holds no audio")
        if self._shards.is_elsewhere(file):
            raise AudioError(f"the row holds only the path of its audio, {value}, and no audio")
        # As written: what the hub keeps locally is links to a store beside it.
        path = os.path.normpath(Path(self._files[file]).parent / value)
        if self._files_within is not None and not Path(path).is_relative_to(
            os.path.normpath(self._files_within)
        ):
            raise AudioError(f"the row names a file outside the data set, {value}")
        return path


def _holds_text(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    strings = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    encoded = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return strings or encoded or types.is_null(kind)


def _holds_name(kind: pyarrow.DataType) -> bool:
    """Numbers name a speaker, too."""
    return _holds_text(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)


def _holds_seconds(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    return is_number or types.is_duration(kind) or _holds_text(kind)


def _text(scalar: pyarrow.Scalar, errors: str = "strict") -> str | None:
    """A text, or a number in words; None for a null and for what is not UTF-8."""
    if isinstance(scalar, pyarrow.DictionaryScalar):
        scalar = scalar.value
    if not scalar.is_valid:
        return None
    if not isinstance(scalar, pyarrow.BinaryScalar):
        return str(scalar.as_py())
    try:
        return scalar.as_buffer().to_pybytes().decode("utf-8", errors)
    except UnicodeDecodeError:
        return None


def _seconds(values: pyarrow.ChunkedArray) -> np.ndarray:
    """float64 (rows,): a column of numbers, of durations or of numbers as text; NaN for all else."""
    if pyarrow.types.is_duration(values.type):
        nanoseconds = values.cast(pyarrow.duration("ns"), safe=False).cast(pyarrow.int64())
        return nanoseconds.cast(pyarrow.float64(), safe=False).to_numpy().astype(np.float64) / 1e9
    if not _holds_text(values.type):
        numbers = pyarrow.compute.cast(values, pyarrow.float64(), safe=False)
        return numbers.to_numpy().astype(np.float64)
    lengths = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        with contextlib.suppress(ValueError):
            lengths[row] = float(_text(value) or "nan")
    return lengths


def _lengths_cache(file: str) -> Path:
    """Where the measured lengths of a shard are kept."""
    return cache_folder() / "lengths" / f"{hashlib.sha256(_identity(file).encode()).hexdigest()[:32]}.npy"


def _identity(file: str) -> str:
    """Of the content of a shard: an address on the hub holds a revision."""
    return file if "://" in file else file_identity(Path(file))


def _load_lengths(cache: Path, num_rows: int) -> np.ndarray:
    """float64 (rows,): what is kept, NaN for what is not."""
    try:
        lengths = np.load(cache, allow_pickle=False)
        if lengths.shape == (num_rows,) and lengths.dtype == np.float64:
            return lengths
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError):
        logger.warning("%s: not a readable cache of lengths; measuring again", cache)
    return np.full(num_rows, np.nan)


def _save_lengths(cache: Path, lengths: np.ndarray) -> None:
    partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, lengths)
        partial.write_bytes(buffer.getvalue())
        flush(partial)
        partial.replace(cache)
    except OSError as error:  # it is only a cache
        logger.warning("%s: lengths could not be kept (%s)", cache, error.strerror)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
