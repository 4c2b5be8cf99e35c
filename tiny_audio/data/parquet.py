"""Parquet shards of speech as hub data sets hold them: encoded audio bytes beside the transcript."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from tiny_audio.data.known_sets import TextRules
from tiny_audio.data.source import LazySequence, Source, show_progress
from tiny_audio.data.utterance import AudioRef, Problem, Utterance
from tiny_audio.errors import UserError
from tiny_audio.files import cache_folder
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

# Row groups that stay decoded in a process. A window of batches draws from many at once, so the limit is
# generous; the least recently used leave.
AUDIO_CACHE_BYTES = 1 << 29
TEXT_CACHE_BYTES = 1 << 26


class ParquetSource(Source):
    """The rows of parquet files, local or at an fsspec address such as ``hf://datasets/...``.

    In memory stay 20 bytes a row: seconds and place. Text and audio are read a row group at a time into a
    small cache. Without a column of durations, lengths come from the header of each row's audio, once: they
    are then kept in the user's cache folder.

    Args:
        columns: role (audio, text, seconds, id, speaker) -> column, where the names are known beforehand.
        text_rules: which transcripts say that their row is not to be scored, and what to replace in others.
    """

    def __init__(
        self,
        files: Sequence[str],
        name: str,
        revision: str | None = None,
        columns: Mapping[str, str] | None = None,
        text_rules: TextRules | None = None,
    ) -> None:
        self.name = name
        self.revision = revision
        self.problems = []
        self.excluded: list[Problem] = []
        self._text_rules = text_rules
        self._files = list(files)
        self._open_files: dict[int, pyarrow.parquet.ParquetFile] = {}
        self._caches = {
            "audio": _TableCache(AUDIO_CACHE_BYTES),
            "text": _TableCache(TEXT_CACHE_BYTES),
        }
        self._process = os.getpid()
        if not self._files:
            raise UserError(f"{name}: there are no .parquet files")
        self._columns = self._find_columns(columns or {})
        self._scan()
        self.require_rows()

    def utterances(self) -> Sequence[Utterance]:
        return LazySequence(len(self._seconds), self._utterance)

    def seconds(self) -> np.ndarray:
        return self._seconds

    def groups(self) -> np.ndarray:
        return self._groups

    def read(self, utterance: Utterance, max_seconds: float | None = None) -> np.ndarray:
        file = self._files.index(utterance.audio.location)
        assert utterance.audio.row is not None
        group, row = self._place(file, utterance.audio.row)
        table = self._table(file, group, "audio", [self._columns["audio"]])
        audio = _encoded_audio(table.column(0)[row].as_py(), self._files[file])
        try:
            return load_audio(audio, max_seconds=max_seconds)
        except AudioError as error:
            raise AudioError(f"{utterance.audio}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        # Open files and cached tables stay behind when a worker is spawned.
        return {**self.__dict__, "_open_files": {}, "_process": -1}

    def _find_columns(self, given: Mapping[str, str]) -> dict[str, str]:
        names = self._file(0).schema_arrow.names
        found: dict[str, str] = {}
        wanted: list[tuple[str, Sequence[str]]] = [
            ("audio", AUDIO_COLUMNS),
            ("text", TEXT_COLUMNS),
            ("seconds", SECONDS_COLUMNS),
            ("id", ID_COLUMNS),
            ("speaker", SPEAKER_COLUMNS),
        ]
        wanted = [(role, [given[role]] if role in given else usual) for role, usual in wanted]
        for role, candidates in wanted:
            match = next((name for name in candidates if name in names), None)
            if match is not None:
                found[role] = match
        for role, candidates in wanted:
            if role in ("audio", "text") and role not in found:
                raise UserError(
                    f"{self.name}: no column of {role}; its columns are {', '.join(names)}, "
                    f"and one must be called {', '.join(candidates)}"
                )
        return found

    def _scan(self) -> None:
        """Finds the usable rows: `_row_files`, `_rows` (within the file), `_seconds`, `_groups`."""
        row_files, rows, seconds, groups = [], [], [], []
        self._group_starts: list[np.ndarray] = []  # of each file: the first row of each row group
        num_groups = 0
        for file in show_progress(range(len(self._files)), "reading shards", len(self._files)):
            parquet = self._file(file)
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            self._group_starts.append(np.cumsum([0, *sizes]))
            lengths = self._lengths(file)
            usable = np.isfinite(lengths) & (lengths > 0) & ~self._missing_text(file)
            usable &= ~self._excluded_by_rule(file, usable)
            kept = np.flatnonzero(usable)
            row_files.append(np.full(len(kept), file, np.int32))
            rows.append(kept.astype(np.int32))
            seconds.append(lengths[kept])
            groups.append(num_groups + np.repeat(np.arange(len(sizes)), sizes)[kept])
            num_groups += len(sizes)
        self._row_files, self._rows = np.concatenate(row_files), np.concatenate(rows)
        self._seconds, self._groups = (
            np.concatenate(seconds).astype(np.float32),
            np.concatenate(groups),
        )

    def _lengths(self, file: int) -> np.ndarray:
        """Seconds of each row of a file, NaN with a problem noted where there are none."""
        column = self._columns.get("seconds")
        if column is None:
            return self._measured_lengths(file)
        table = self._file(file).read(columns=[column], use_threads=False)
        values = pyarrow.compute.cast(table.column(0), pyarrow.float64(), safe=False)
        lengths = values.to_numpy(zero_copy_only=False).astype(np.float64)
        if column.endswith("_ms"):
            lengths = lengths / 1000
        for row in np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0))):
            reason = f"its {column} is {lengths[row]:g}, not a positive number of seconds"
            self._note(file, int(row), reason, self._unheard(file, int(row)))
        return lengths

    def _measured_lengths(self, file: int) -> np.ndarray:
        """Seconds by the header of each row's audio, from the user's cache folder where they are known."""
        cache = _lengths_cache(self._files[file])
        if cache is not None and cache.is_file():
            try:
                lengths = np.load(cache, allow_pickle=False)
                if len(lengths) == self._file(file).metadata.num_rows:
                    self._note_unmeasured(file, lengths)
                    return lengths
            except (OSError, ValueError):
                logger.warning("%s: not a readable cache of lengths; measuring again", cache)
        measured: list[float] = []
        num_rows = self._file(file).metadata.num_rows
        for value in show_progress(
            self._audio_values(file),
            f"reading audio headers of {self._files[file]}",
            num_rows,
        ):
            try:
                measured.append(audio_seconds(_encoded_audio(value, self._files[file])))
            except AudioError:
                measured.append(float("nan"))
        lengths = np.array(measured, dtype=np.float64)
        self._note_unmeasured(file, lengths)
        if cache is not None:
            _save_lengths(cache, lengths)
        return lengths

    def _audio_values(self, file: int) -> Any:
        for group in range(self._file(file).num_row_groups):
            yield from (
                value.as_py() for value in self._read_group(file, group, [self._columns["audio"]]).column(0)
            )

    def _note_unmeasured(self, file: int, lengths: np.ndarray) -> None:
        for row in np.flatnonzero(np.isnan(lengths)):
            self._note(file, int(row), "holds no audio that can be read", self._unheard(file, int(row)))

    def _missing_text(self, file: int) -> np.ndarray:
        """Which rows have no transcript at all (an empty one is a clip without speech)."""
        table = self._file(file).read(columns=[self._columns["text"]], use_threads=False)
        missing = table.column(0).is_null().to_numpy()
        for row in np.flatnonzero(missing):
            self._note(file, int(row), "has no transcript")
        return missing

    def _excluded_by_rule(self, file: int, usable: np.ndarray) -> np.ndarray:
        """Which usable rows the rules of the set leave out; notes each in `excluded`."""
        excluded = np.zeros(len(usable), bool)
        if self._text_rules is None:
            return excluded
        table = self._file(file).read(columns=[self._columns["text"]], use_threads=False)
        texts = table.column(0).to_pylist()
        for row in show_progress(np.flatnonzero(usable), "reading transcripts", int(usable.sum())):
            reason = self._text_rules.reason_to_leave_out(str(texts[row]))
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
        names = {role: self._columns[role] for role in ("text", "id", "speaker") if role in self._columns}
        table = self._table(file, group, "text", list(names.values()))
        values = {role: table.column(name)[row_of_group].as_py() for role, name in names.items()}
        if values["text"] is None:
            return None
        reference = AudioRef(self._files[file], row)
        return Utterance(
            id=str(values["id"]) if values.get("id") is not None else f"{Path(self._files[file]).stem}-{row}",
            text=self._text_rules.clean(str(values["text"])) if self._text_rules else str(values["text"]),
            seconds=seconds,
            audio=reference,
            speaker=None if values.get("speaker") is None else str(values["speaker"]),
        )

    def _place(self, file: int, row: int) -> tuple[int, int]:
        """The row group of a row, and its number therein."""
        starts = self._group_starts[file]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return group, row - int(starts[group])

    def _table(self, file: int, group: int, kind: str, columns: list[str]) -> pyarrow.Table:
        self._start_over_after_fork()
        cache = self._caches[kind]
        table = cache.get((file, group))
        if table is None:
            table = self._read_group(file, group, columns)
            cache.put((file, group), table)
        return table

    def _read_group(self, file: int, group: int, columns: list[str]) -> pyarrow.Table:
        # Arrow's own threads do not survive a fork.
        return self._file(file).read_row_group(group, columns=columns, use_threads=False)

    def _file(self, file: int) -> pyarrow.parquet.ParquetFile:
        self._start_over_after_fork()
        if file not in self._open_files:
            self._open_files[file] = _open_parquet(self._files[file])
        return self._open_files[file]

    def _start_over_after_fork(self) -> None:
        """A file that a parent process opened shares its position with it: open it anew."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._open_files = {}


class _TableCache:
    """Tables by (file, row group), the most recently used within a limit of bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._tables: OrderedDict[tuple[int, int], pyarrow.Table] = OrderedDict()
        self._bytes = 0

    def get(self, place: tuple[int, int]) -> pyarrow.Table | None:
        if place in self._tables:
            self._tables.move_to_end(place)
        return self._tables.get(place)

    def put(self, place: tuple[int, int], table: pyarrow.Table) -> None:
        self._tables[place] = table
        self._bytes += table.nbytes
        while self._bytes > self._limit and len(self._tables) > 1:
            self._bytes -= self._tables.popitem(last=False)[1].nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit, "_tables": OrderedDict(), "_bytes": 0}


def _open_parquet(file: str) -> pyarrow.parquet.ParquetFile:
    try:
        if "://" in file:
            import fsspec

            return pyarrow.parquet.ParquetFile(fsspec.open(file, "rb").open(), pre_buffer=True)
        return pyarrow.parquet.ParquetFile(file)
    except (
        OSError,
        ValueError,
    ) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise UserError(f"{file}: not a readable parquet file ({' '.join(str(error).split())})") from error


def _encoded_audio(value: Any, file: str) -> bytes | str:
    """Audio bytes of a row, or the path of its audio where the row holds only that."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        if value.get("bytes"):
            return value["bytes"]
        value = value.get("path")
    if isinstance(value, str) and value:
        return str(Path(file).parent / value)
    raise AudioError("the row holds no audio")


def _lengths_cache(file: str) -> Path | None:
    """Where the measured lengths of a shard are kept; its name depends on their path, size and time."""
    if "://" in file:
        identity = file  # an address on the hub holds a revision
    else:
        stat = Path(file).stat()
        identity = f"{Path(file).resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    return cache_folder() / "lengths" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"


def _save_lengths(cache: Path, lengths: np.ndarray) -> None:
    partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, lengths)
        partial.write_bytes(buffer.getvalue())
        partial.replace(cache)
    except OSError as error:  # it is only a cache
        logger.warning("%s: lengths could not be kept (%s)", cache, error.strerror)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
