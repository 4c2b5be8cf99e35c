"""Arrays with a record for each row of a data set: in memory while they are short, in a mapped file beyond that.

What is mapped takes memory only while it is looked at, and all worker processes share it.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from tiny_audio.errors import first_line
from tiny_audio.files import CACHE_VARIABLE, cache_folder

logger = logging.getLogger(__name__)

RECORDS_IN_MEMORY = 65_536
PIECE_ROWS = 65_536


class RecordWriter:
    """Collects records of a structured `dtype`; in a nameless file of the user's cache folder once there are many.

    Where nothing can be written there, they stay in memory.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._rows: list[tuple[Any, ...]] = []
        self._pieces: list[np.ndarray] = []  # that are not in the file
        self._file: IO[bytes] | None = None
        self._may_write = True
        self._count = 0

    def __len__(self) -> int:
        return self._count + len(self._rows)

    def append(self, *values: Any) -> None:
        """One record: its fields in the order of the dtype."""
        self._rows.append(values)
        if len(self._rows) >= PIECE_ROWS:
            self._flush_rows()

    def extend(self, records: np.ndarray) -> None:
        """Records (n,) of the dtype."""
        self._flush_rows()
        self._count += len(records)
        self._pieces.append(records)
        if self._may_write and self._count > RECORDS_IN_MEMORY:
            self._write()

    def finish(self) -> np.ndarray:
        """All records (n,), which may be changed in place."""
        self._flush_rows()
        if self._file is None:
            return np.concatenate([np.zeros(0, self._dtype), *self._pieces])
        with self._file:
            return np.memmap(self._file, self._dtype, "r+", shape=(self._count,))

    def _flush_rows(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self.extend(np.array(rows, self._dtype))

    def _write(self) -> None:
        try:
            if self._file is None:
                cache_folder().mkdir(parents=True, exist_ok=True)
                # A buffer would try again what did not fit. (`finish` closes it.)
                self._file = tempfile.TemporaryFile(dir=cache_folder(), buffering=0)  # noqa: SIM115
            written = self._file.tell()
            for piece in self._pieces:
                left = memoryview(piece.tobytes())
                while left:
                    left = left[self._file.write(left) :]
            self._pieces = []
        except OSError as error:
            self._may_write = False
            logger.warning(
                "%s: what is known of the rows cannot be kept there (%s), so it stays in memory; %s names a folder "
                "with more room",
                cache_folder(),
                first_line(error),
                CACHE_VARIABLE,
            )
            if self._file is not None:
                self._file.seek(0)
                self._pieces.insert(0, np.frombuffer(self._file.read(written), self._dtype))
                self._file.close()
                self._file = None


def pieces(num_rows: int) -> Iterator[slice]:
    """The rows of a long array, some at a time."""
    return (slice(start, min(start + PIECE_ROWS, num_rows)) for start in range(0, num_rows, PIECE_ROWS))


def release(records: np.ndarray) -> None:
    """Gives back the memory that a mapped array takes; what is in it will be read from its file again."""
    mapped = getattr(records, "_mmap", None)
    if mapped is not None and sys.platform == "linux":
        mapped.madvise(mmap.MADV_DONTNEED)


def load_records(path: Path, dtype: np.dtype) -> np.ndarray:
    """What `save_records` wrote, mapped. Raises OSError or ValueError where it is not there, or not whole."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r")


def save_records(path: Path, records: np.ndarray) -> None:
    """Writes an array whole or not at all. Raises OSError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for piece in pieces(len(records)):
                file.write(records[piece].tobytes())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
