"""Where files go, and writing them so that none is ever half there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "TINY_AUDIO_CACHE"


def write_files(contents: dict[Path, str]) -> None:
    """Write several text files so that none is ever half there: under temporary names, then renamed in order.

    Raises OSError (no space, no permission) with every temporary file removed.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, text in contents.items():
            # A lone surrogate (a file name that is not UTF-8) must not cost the whole report.
            temporary[path].write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        for path in contents:
            os.replace(temporary[path], path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def write_folder(folder: Path, contents: dict[str, str]) -> None:
    """Write text files by name into a folder, which is made where there is none; see `write_files`.

    Raises OSError, which names the folder where the system did not say what was full; a new folder is gone then.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_files({folder / name: text for name, text in contents.items()})
    except OSError as error:
        if is_new:
            folder.rmdir()
        if error.filename is None:  # a full disk does not say where it was noticed
            error.filename = str(folder)
        raise


def cache_folder() -> Path:
    """Where this user's programs keep what they could make again; $TINY_AUDIO_CACHE names another folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "tiny-audio"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tiny-audio"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiny-audio"
