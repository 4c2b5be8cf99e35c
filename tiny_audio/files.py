"""Where files go, and writing them so that none is ever half there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

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


def cache_folder() -> Path:
    """Where this user's programs keep what they could make again; $TINY_AUDIO_CACHE names another folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "tiny-audio"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tiny-audio"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiny-audio"
