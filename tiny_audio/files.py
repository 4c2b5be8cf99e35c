"""Where files go, and writing them so that none is ever half there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tiny_audio.errors import UserError

CACHE_VARIABLE = "TINY_AUDIO_CACHE"
MODELS_VARIABLE = "TINY_AUDIO_MODELS"  # a folder of models for machines without a hub: OWNER/NAME below it


def safe_name(text: str) -> str:
    """`text` as a name for a file or folder on every system; the caller cuts what is too long."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "unnamed"


def write_files(contents: Mapping[Path, str | bytes]) -> None:
    """Write files, text or bytes, so that none is ever half there: under temporary names, then renamed in order.

    Raises OSError (no space, no permission) with every temporary file removed.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            if isinstance(content, bytes):
                temporary[path].write_bytes(content)
                continue
            # A lone surrogate (a file name that is not UTF-8) must not cost the whole report.
            temporary[path].write_text(content, encoding="utf-8", errors="backslashreplace", newline="\n")
        for path in contents:
            os.replace(temporary[path], path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def write_folder(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write files by name into a folder, which is made where there is none; see `write_files`.

    Raises OSError, which names the folder where the system did not say what was full; a new folder is gone then.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_files({folder / name: content for name, content in contents.items()})
    except OSError as error:
        if is_new:
            folder.rmdir()
        if error.filename is None:  # a full disk does not say where it was noticed
            error.filename = str(folder)
        raise


@contextmanager
def replace_folder(target: Path, advice: str) -> Iterator[Path]:
    """A new folder to fill, flushed to the disk and put in the place of `target` when the block is done.

    After an error nothing is left of it and `target` is as it was; after a crash at least one of the two is whole.
    Raises UserError, which ends with `advice`, where the disk was full.
    """
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not target.exists():  # a crash came between the two renames below
            os.replace(old, target)
        shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                flush(file)
        flush_folder(partial)
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(partial, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
        flush_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:  # libraries have errors of their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        if is_disk_full(error):
            raise UserError(f"no space left for {target}: {advice}") from error
        raise


def check_space(folder: Path, num_bytes: float, what: str, advice: str) -> None:
    """Raises UserError, which begins with `what` and ends with `advice`, where `folder` has no room for so much."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if num_bytes > free:
        raise UserError(
            f"{what}: {size_in_words(num_bytes)} are needed and {size_in_words(free)} are free; {advice}"
        )


def size_in_words(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def flush(file: Path) -> None:
    """Forces a written file onto the disk, so that a rename never points at bytes that are not there yet."""
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def flush_folder(folder: Path) -> None:
    """Forces the names in a folder onto the disk, where the system has a way: a rename is safe from then on."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network disks know nothing of it
                os.fsync(handle)
        finally:
            os.close(handle)


def file_identity(file: Path) -> str:
    """Another one when the file is another, or has been written to. Raises OSError where there is none."""
    stat = file.stat()
    return f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process, and one thread of it, at a time: what the first one leaves behind, the others find.

    Where there can be no lock (Windows; a folder that cannot be written to), all do the work.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("wb"))
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, or its process killed
        yield


def make_room(folder: Path, most_bytes: int, pattern: str = "*") -> None:
    """Removes the files of a cache that were used least recently, until no more than so many bytes are left.

    Whoever still reads one keeps it until they are done. The last one to be used always stays.
    """
    entries = []
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process may be removing it, too
            stat = path.stat()
            entries.append((stat.st_mtime_ns, stat.st_size, path))
    entries.sort()
    excess = sum(size for _, size, _ in entries) - most_bytes
    for _, size, path in entries[:-1]:
        if excess <= 0:
            break
        with suppress(OSError):  # Windows keeps files that are being read
            path.unlink()
        excess -= size


def is_disk_full(error: BaseException) -> bool:
    """Also where a library, such as safetensors, has wrapped the system's error in one of its own."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


def cache_folder() -> Path:
    """Where this user's programs keep what they could make again; $TINY_AUDIO_CACHE names another folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "tiny-audio"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tiny-audio"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiny-audio"
