"""A place elsewhere for tests: ``far:///path`` reads a local file as a remote one is read, and can fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


class FarFileSystem(AbstractFileSystem):
    """What is fetched is written down, a line of bytes a request, so that it can be counted over all workers.

    Attributes:
        log: where that is written.
        failures: the errors of the next requests of this process.
    """

    protocol = "far"
    cachable = False
    log: Path
    failures: list[Exception] = []  # noqa: RUF012 (a test sets it)

    @classmethod
    def bytes_fetched(cls) -> int:
        return sum(map(int, cls.log.read_text(encoding="utf-8").split())) if cls.log.exists() else 0

    @classmethod
    def num_requests(cls) -> int:
        return len(cls.log.read_text(encoding="utf-8").split()) if cls.log.exists() else 0

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": os.path.getsize(self._strip_protocol(path)), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> AbstractBufferedFile:
        kwargs.pop("autocommit", None)
        return FarFile(self, path, mode, **kwargs)


class FarFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        if FarFileSystem.failures:
            raise FarFileSystem.failures.pop(0)
        with FarFileSystem.log.open("a", encoding="utf-8") as log:
            log.write(f"{end - start}\n")
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


fsspec.register_implementation("far", FarFileSystem, clobber=True)
