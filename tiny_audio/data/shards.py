"""Parquet files, on this machine or elsewhere: opened when they are needed, read a row group at a time."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow
import pyarrow.parquet

from tiny_audio.data.group_cache import DiskCache, MemoryCache
from tiny_audio.data.outlines import Outline, fetch_outlines, read_outline
from tiny_audio.data.windows import WINDOW_BYTES
from tiny_audio.errors import UserError, first_line
from tiny_audio.files import cache_folder

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# What a process keeps of row groups: a window of batches, and the beginning of the next.
AUDIO_CACHE_BYTES = WINDOW_BYTES * 5 // 4
TEXT_CACHE_BYTES = 1 << 26
# What all processes together keep on the disk of row groups from elsewhere: the windows of two runs, and more.
SHARED_CACHE_BYTES = 1 << 31
# A row group is read as a whole for any row of it, by each process, and takes three times its size in that moment.
LARGEST_GROUP_BYTES = 1 << 29
# The system allows a process some 1,000, and the footer of each takes memory.
MOST_OPEN_FILES = 128
NETWORK_TRIES = 5
FIRST_WAIT_SECONDS = 2.0  # twice as long each time: half a minute in all
# Their errors are not always OSErrors.
NETWORK_LIBRARIES = ("aiohttp", "botocore", "httpcore", "httpx", "httpx2", "requests", "urllib3")
REWRITE = (
    'python -c "import pyarrow.parquet as p; f = p.ParquetFile({file!r}, buffer_size=1 << 20); '
    "w = p.ParquetWriter('rewritten.parquet', f.schema_arrow); "
    '[w.write_batch(b) for b in f.iter_batches(100)]; w.close()"'
)


class Shards:
    """Files by number: local paths, or fsspec addresses such as ``hf://datasets/...``.

    Safe to use after a fork; open files and cached tables stay behind when it is pickled.

    Reading raises `UserError` where the network fails for good, and pyarrow's errors (ValueError, OSError) where a
    file is damaged.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = list(files)
        self._open_files: OrderedDict[int, pyarrow.parquet.ParquetFile] = OrderedDict()
        self._caches = {"audio": MemoryCache(AUDIO_CACHE_BYTES), "text": MemoryCache(TEXT_CACHE_BYTES)}
        self._disk: DiskCache | None = DiskCache(cache_folder() / "row_groups", SHARED_CACHE_BYTES)
        self._process = os.getpid()
        self._outline_paths: dict[str, Path] = {}
        self._outlines: dict[int, Outline] = {}

    def is_elsewhere(self, file: int) -> bool:
        return "://" in self.files[file]

    def fetch_outlines(self, audio: str, columns: Sequence[str]) -> None:
        """Gets `columns` of all files that lie elsewhere: what is wanted of them beside the column `audio`."""

        def fetch(file: str) -> Outline:
            one = Shards([file])
            outline = one._try(
                0,
                lambda parquet: Outline(
                    parquet.read(columns=list(columns), use_threads=False),
                    parquet.schema_arrow,
                    *_group_sizes(parquet.metadata, audio),
                ),
            )
            one._file(0).close(force=True)
            return outline

        files = [file for number, file in enumerate(self.files) if self.is_elsewhere(number)]
        self._outline_paths = fetch_outlines(files, columns, fetch)

    def schema(self, file: int) -> pyarrow.Schema:
        outline = self._outline(file)
        return outline.schema if outline else self._try(file, lambda parquet: parquet.schema_arrow)

    def group_sizes(self, file: int, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Of each row group its rows, and the bytes of a column: int64 (groups,) twice.

        Raises UserError where one is too large.
        """
        outline = self._outline(file)
        if outline:
            rows, num_bytes = outline.group_rows, outline.group_bytes
        else:
            rows, num_bytes = self._try(file, lambda parquet: _group_sizes(parquet.metadata, column))
        largest = int(num_bytes.max(initial=0))
        if largest > LARGEST_GROUP_BYTES:
            copy = Path(self.files[file]).name if self.is_elsewhere(file) else self.files[file]
            raise UserError(
                f"{self.files[file]}: one of its row groups holds {largest / 1e9:.1f} GB of {column}, and each worker "
                f"would have to read all of it for one clip (at most {LARGEST_GROUP_BYTES / 1e9:.1f} GB). Rewrite "
                f"{'a copy of it' if self.is_elsewhere(file) else 'it'}: {REWRITE.format(file=copy)}"
            )
        return rows, num_bytes

    def column(self, file: int, name: str) -> pyarrow.ChunkedArray:
        """A column of a whole file."""
        outline = self._outline(file)
        if outline:
            return outline.table.column(name)
        # Arrow's own threads do not survive a fork.
        return self._try(file, lambda parquet: parquet.read(columns=[name], use_threads=False)).column(0)

    def read_group(self, file: int, group: int, columns: list[str]) -> pyarrow.Table:
        return self._try(
            file, lambda parquet: parquet.read_row_group(group, columns=columns, use_threads=False)
        )

    def table(self, file: int, group: int, kind: str, columns: list[str]) -> pyarrow.Table:
        """`read_group` with a memory: of this process, or on the disk for audio from elsewhere.

        Args:
            kind: ``audio`` or ``text``; what is asked for under one name must always be the same columns.
        """
        outline = self._outline(file) if kind == "text" else None
        if outline:
            first = int(outline.group_rows[:group].sum())
            return outline.table.slice(first, int(outline.group_rows[group])).select(columns)
        self._start_over_after_fork()
        cache = self._caches[kind]
        table = cache.get((file, group))
        if table is not None:
            return table
        if kind == "audio" and self._disk is not None and self.is_elsewhere(file):
            try:
                name = f"{self.files[file]} {group} {' '.join(columns)}"
                return self._disk.table(name, lambda: self.read_group(file, group, columns))
            except OSError as error:
                self._disk = None
                logger.warning(
                    "%s: what is fetched cannot be kept there (%s), so each worker fetches everything itself; "
                    "TINY_AUDIO_CACHE names a folder with more room",
                    cache_folder(),
                    first_line(error),
                )
        table = self.read_group(file, group, columns)
        cache.put((file, group), table)
        return table

    def fetch(self, file: int, group: int, columns: list[str]) -> None:
        """Audio from elsewhere onto the disk, for any process that asks for it later."""
        if self.is_elsewhere(file) and self._disk is not None:
            self.table(file, group, "audio", columns)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_files": OrderedDict(), "_process": -1, "_outlines": {}}

    def _outline(self, file: int) -> Outline | None:
        if file not in self._outlines and self.files[file] in self._outline_paths:
            outline = read_outline(self._outline_paths[self.files[file]])
            if outline is None:  # it has gone, or was damaged, since
                del self._outline_paths[self.files[file]]
                return None
            self._outlines[file] = outline
        return self._outlines.get(file)

    def _try(self, file: int, action: Callable[[pyarrow.parquet.ParquetFile], Result]) -> Result:
        """`action` of an open file; tried again where the network fails."""
        for attempt in range(1, NETWORK_TRIES + 1):
            try:
                return action(self._file(file))
            except Exception as error:
                if not self.is_elsewhere(file) or not _is_of_network(error):
                    raise
                self._open_files.pop(file, None)
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                if attempt == NETWORK_TRIES or not _may_pass(error):
                    raise UserError(
                        f"{self.files[file]}: cannot be fetched ({reason}; tried {attempt} times): look at the network "
                        "and start again; a training run goes on from its last checkpoint"
                    ) from error
                wait = FIRST_WAIT_SECONDS * 2 ** (attempt - 1)
                logger.warning("%s: %s; trying again in %g s", self.files[file], reason, wait)
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _file(self, file: int) -> pyarrow.parquet.ParquetFile:
        self._start_over_after_fork()
        if file not in self._open_files:
            self._open_files[file] = _open_parquet(self.files[file])
            if len(self._open_files) > MOST_OPEN_FILES:
                self._open_files.popitem(last=False)[1].close(force=True)
        self._open_files.move_to_end(file)
        return self._open_files[file]

    def _start_over_after_fork(self) -> None:
        """A file that a parent process opened shares its position with it: open it anew."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._open_files = OrderedDict()


def _open_parquet(file: str) -> pyarrow.parquet.ParquetFile:
    try:
        if "://" not in file:
            return pyarrow.parquet.ParquetFile(file)
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(file)
        # fsspec would read 5 MB ahead of everything. Arrow knows what it wants, and asks for it in large pieces.
        return pyarrow.parquet.ParquetFile(filesystem.open(path, "rb", cache_type="none"), pre_buffer=True)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        if "://" in file and _is_of_network(error):
            raise
        raise UserError(f"{file}: not a readable parquet file ({' '.join(str(error).split())})") from error


def _group_sizes(metadata: pyarrow.parquet.FileMetaData, column: str) -> tuple[np.ndarray, np.ndarray]:
    rows, sizes = [], []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows.append(group.num_rows)
        leaves = (group.column(leaf) for leaf in range(group.num_columns))
        sizes.append(
            # Uncompressed, as it is kept; `audio.bytes` and `audio.path` are leaves of the column `audio`.
            sum(
                leaf.total_uncompressed_size
                for leaf in leaves
                if leaf.path_in_schema == column or leaf.path_in_schema.startswith(f"{column}.")
            )
        )
    return np.array(rows, np.int64), np.array(sizes, np.int64)


def _is_of_network(error: Exception) -> bool:
    if type(error) is OSError and error.errno is None:  # Arrow's own, of bytes that mean nothing
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in NETWORK_LIBRARIES


def _may_pass(error: Exception) -> bool:
    """False where the answer was that the file is not there, or not for us."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or not 400 <= status < 500 or status in (408, 429)
