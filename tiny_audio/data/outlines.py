"""What a parquet file from elsewhere holds beside its audio, kept on this machine.

The audio of a set is read all through a run, a row group at a time. Its transcripts and lengths are wanted at once,
before the first step, and they lie between the audio: a request for each row group. So they are fetched once, from many
files at a time, and the next run has them without the network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow

from tiny_audio.data.source import show_progress
from tiny_audio.errors import first_line
from tiny_audio.files import CACHE_VARIABLE, cache_folder, locked, make_room

logger = logging.getLogger(__name__)

FILES_AT_A_TIME = 16
CACHE_BYTES = 1 << 33
NOTES_KEY = b"outline"
WORTH_A_BAR = 8
NUM_LOCKS = 64  # two files that share one only wait for each other


@dataclass(frozen=True)
class Outline:
    """Columns of a file that are no audio, its whole schema, and of each row group the rows and the bytes of audio."""

    table: pyarrow.Table
    schema: pyarrow.Schema
    group_rows: np.ndarray
    group_bytes: np.ndarray


def fetch_outlines(
    files: Sequence[str], columns: Sequence[str], fetch: Callable[[str], Outline]
) -> dict[str, Path]:
    """Where the outlines of the files lie, after a `fetch` of those that are not there, many at a time.

    Some may be missing: where nothing can be written, which is said, and where a file is damaged, which reading it
    will say. Raises the UserErrors of `fetch`.
    """
    paths = {file: _path(file, columns) for file in files}
    missing = [file for file in files if read_outline(paths[file]) is None]
    unwritten: list[OSError] = []

    def fetch_one(file: str) -> None:
        if unwritten:
            return
        path = paths[file]
        with locked(path.parent / f"{int(path.stem, 16) % NUM_LOCKS}.lock"):
            if read_outline(path) is not None:  # another process was quicker
                return
            try:
                outline = fetch(file)
            except (OSError, ValueError):
                return
            try:
                _write(path, outline)
            except OSError as error:
                unwritten.append(error)

    with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
        results = [pool.submit(fetch_one, file) for file in missing]
        try:
            for result in show_progress(results, "fetching transcripts", len(results), WORTH_A_BAR):
                result.result()
        finally:
            for result in results:
                result.cancel()
    if unwritten:
        logger.warning(
            "%s: transcripts cannot be kept there (%s), so they are fetched one by one, and at each start; %s names a "
            "folder with more room",
            cache_folder(),
            first_line(unwritten[0]),
            CACHE_VARIABLE,
        )
    elif missing:
        make_room(paths[missing[0]].parent, CACHE_BYTES, "*.arrow*")
    return {file: path for file, path in paths.items() if path.exists()}


def read_outline(path: Path) -> Outline | None:
    """An outline, mapped; None where it is not there, or was cut short."""
    try:
        with pyarrow.memory_map(str(path)) as file:
            table = pyarrow.ipc.open_file(file).read_all()
        notes = json.loads(table.schema.metadata[NOTES_KEY])
        schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(base64.b64decode(notes["schema"])))
        rows, num_bytes = (np.array(notes[key], np.int64) for key in ("rows", "bytes"))
        os.utime(path)  # used now
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's errors are ValueErrors
        return None
    return Outline(table, schema, rows, num_bytes)


def _path(file: str, columns: Sequence[str]) -> Path:
    """Its address holds a revision, so what it holds does not change."""
    name = json.dumps([file, *columns])
    return cache_folder() / "outlines" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.arrow"


def _write(path: Path, outline: Outline) -> None:
    notes = {
        "schema": base64.b64encode(outline.schema.serialize().to_pybytes()).decode(),
        "rows": outline.group_rows.tolist(),
        "bytes": outline.group_bytes.tolist(),
    }
    table = outline.table.combine_chunks().replace_schema_metadata({NOTES_KEY: json.dumps(notes)})
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            pyarrow.OSFile(str(partial), "wb") as file,
            pyarrow.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
