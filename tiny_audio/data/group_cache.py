"""Row groups of parquet files that stay while they are in use: in the memory of a process, or on the disk for all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow

from tiny_audio.files import locked, make_room

# So many files stand for the locks of all entries; two entries that share one only wait for each other.
NUM_LOCKS = 64


class MemoryCache:
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


class DiskCache:
    """Tables by name in a folder that all processes of this machine share, within a limit of bytes.

    Batches of a window go to all workers, and each of them needs nearly every row group of it: what one has fetched,
    the others read here. Tables are mapped into memory, so that they cost none of it that is needed elsewhere.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes

    def table(self, name: str, fetch: Callable[[], pyarrow.Table]) -> pyarrow.Table:
        """The table of that name, fetched where there is none.

        Raises OSError where the folder cannot be used, and whatever `fetch` raises.
        """
        key = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        path = self._folder / f"{key[:32]}.arrow"
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder / f"{int(key, 16) % NUM_LOCKS}.lock"):
            table = _mapped(path)
            if table is None:
                table = fetch()
                self._write(path, table)
        return table

    def _write(self, path: Path, table: pyarrow.Table) -> None:
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            with (
                pyarrow.OSFile(str(partial), "wb") as file,
                pyarrow.ipc.new_file(file, table.schema) as writer,
            ):
                writer.write_table(table)
            with contextlib.suppress(
                PermissionError
            ):  # on Windows, another process may be reading what it wrote first
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        make_room(self._folder, self._limit, "*.[ap]*")  # a killed process may have left a .partial


def _mapped(path: Path) -> pyarrow.Table | None:
    """A written table, None where there is none; one that a crash of the machine cut short is none."""
    try:
        with pyarrow.memory_map(str(path)) as file:
            table = pyarrow.ipc.open_file(file).read_all()
        os.utime(path)  # used now
    except (OSError, pyarrow.ArrowInvalid):
        return None
    return table
