"""Writing files so that none is ever half there."""

from __future__ import annotations

import os
from pathlib import Path


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
