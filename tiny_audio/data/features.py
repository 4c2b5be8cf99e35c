"""Encoder frames on the disk: what a frozen encoder makes of each clip, computed once and read in every epoch.

A store is a folder of shards: `NAME.frames` holds the frames of clip after clip and `NAME.npy` an entry for each of
them. The entries are written last, so a shard without them is one that was never finished: it is removed, and its clips
are encoded again.

Legend: F encoder frames of a clip, D_e encoder width.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiny_audio.data.source import Source
from tiny_audio.data.utterance import Utterance, utterance_key
from tiny_audio.errors import UserError
from tiny_audio.files import MODELS_VARIABLE, write_files

SHARD_BYTES = 32 * 2**20
SHARD_SECONDS = 30.0  # what a killed run may lose
ABANDONED_SECONDS = 600.0  # an unfinished shard that was not written to for so long is nobody's
MAPPED_SHARDS = 64  # at a time: each holds a file descriptor
ABOUT_FILE = "about.json"
# `clip` is the clip's identity and `hearing` the variant of its sound; `num_samples` is its length as heard. Frames
# begin at frame `start` of the shard; a clip that could not be read has none.
ENTRY = np.dtype(
    [
        ("clip", "<u8"),
        ("hearing", "<i4"),
        ("num_frames", "<i4"),
        ("num_samples", "<i8"),
        ("audio_bytes", "<i8"),
        ("start", "<i8"),
    ]
)


def clip_identity(source: Source, utterance: Utterance) -> int:
    """64 bits that tell a clip from all others, found in its metadata alone.

    Of the place of its audio counts what lies within the source: a folder may lie elsewhere on the machine that
    trains.
    """
    place = f"{_place_in_source(source.name, utterance.audio.location)}#{utterance.audio.row}"
    return utterance_key(f"{source.name}\0{utterance.id}\0{utterance.seconds}\0{place}")


def _place_in_source(name: str, location: str) -> str:
    """The path of a file within the source called `name`; the whole place where it lies outside.

    An address is whole: the revision of the data is part of it.
    """
    root = Path(name).expanduser()
    for folder in (root, root.parent, Path(os.environ.get(MODELS_VARIABLE) or root)):
        if "://" not in location and Path(location).is_relative_to(folder):
            return Path(location).relative_to(folder).as_posix()
    return location


def file_bytes(location: str) -> int:
    """The size of the file that holds a clip; 0 where there is none, here or any more."""
    try:
        return os.path.getsize(location)
    except (OSError, ValueError):
        return 0


def store_folder(cache: Path, about: dict[str, Any]) -> Path:
    """The store inside `cache` for what `about` describes: other encoders and settings get folders of their own."""
    return cache / hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(cache: Path, about: dict[str, Any]) -> list[str]:
    """What the stores in `cache` were made with that is not as in `about`: one text for each store."""
    texts = []
    for file in sorted(cache.glob(f"*/{ABOUT_FILE}")):
        other = json.loads(file.read_text(encoding="utf-8"))
        texts.append(", ".join(name for name in about if other.get(name) != about[name]))
    return texts


class FrameStore:
    """The finished shards of a store."""

    def __init__(self, folder: Path, dtype: torch.dtype, width: int) -> None:
        """`dtype` and `width` (D_e) are those of the frames."""
        self._folder, self.dtype, self._width = folder, dtype, width
        self._names = sorted(path.stem for path in folder.glob("*.npy"))
        parts = [np.load(folder / f"{name}.npy") for name in self._names]
        self.entries = np.concatenate([np.zeros(0, ENTRY), *parts])
        self._shards = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        # Of a clip that was encoded twice (it could not be read the first time), the one with frames is found.
        order = np.lexsort([-self.entries["num_frames"], self.entries["clip"], self.entries["hearing"]])
        self._order = order.astype(np.int64)

    def find(self, hearing: int, clips: np.ndarray) -> np.ndarray:
        """The numbers of the entries of `clips` (rows,) uint64: int64 (rows,), -1 where there is none."""
        hearings = self.entries["hearing"][self._order]
        first, last = np.searchsorted(hearings, [hearing, hearing + 1])
        order = self._order[first:last]
        known = self.entries["clip"][order]
        places = np.searchsorted(known, clips)
        places[places == len(known)] = 0
        found = known[places] == clips if len(known) else np.zeros(len(clips), bool)
        return np.where(found, order[places] if len(known) else -1, -1)

    def read(self, number: int) -> Tensor:
        """The frames (D_e, F) of entry `number`."""
        entry = self.entries[number]
        shard = _map_shard(
            self._folder / f"{self._names[self._shards[number]]}.frames", self.dtype, self._width
        )
        start = int(entry["start"])
        frames = shard[start : start + int(entry["num_frames"])]  # (F, D_e)
        return torch.from_numpy(frames.T.copy()).view(self.dtype)


@lru_cache(maxsize=MAPPED_SHARDS)
def _map_shard(path: Path, dtype: torch.dtype, width: int) -> np.ndarray:
    """All frames of a shard, as integers of the same size: numpy knows no bfloat16."""
    return np.memmap(path, f"<i{dtype.itemsize}", "r").reshape(-1, width)


class FrameWriter:
    """Adds shards to a store, beside other writers if need be. What a killed one left unfinished is removed later."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder = folder
        self.bytes_written = 0
        self._entries: list[tuple[int, ...]] = []
        self._file: Any = None
        self._num_frames = 0
        folder.mkdir(parents=True, exist_ok=True)
        finished = {path.stem for path in folder.glob("*.npy")}
        for path in [*folder.glob("*.partial"), *folder.glob("*.frames")]:
            if path.stem not in finished and time.time() - path.stat().st_mtime >= ABANDONED_SECONDS:
                path.unlink()
        write_files({folder / ABOUT_FILE: json.dumps(about, indent=2, sort_keys=True) + "\n"})

    def add(
        self, clip: int, hearing: int, frames: Tensor | None, num_samples: int = 0, audio_bytes: int = 0
    ) -> None:
        """Frames (F, D_e) of a clip, or None for one that cannot be read. Raises OSError when the disk is full."""
        if self._file is None:
            self._name = uuid.uuid4().hex
            self._partial = self._folder / f"{self._name}.partial"
            self._file = self._partial.open("wb")
            self._began = time.monotonic()
        num_frames = 0 if frames is None else len(frames)
        self._entries.append((clip, hearing, num_frames, num_samples, audio_bytes, self._num_frames))
        if frames is not None:
            self._file.write(frames.contiguous().view(torch.uint8).numpy().data)
            self._num_frames += num_frames
        if self._file.tell() >= SHARD_BYTES or time.monotonic() - self._began >= SHARD_SECONDS:
            self.finish_shard()

    def finish_shard(self) -> None:
        """Makes what was added since the last shard part of the store."""
        if self._file is None:
            return
        _close_flushed(self._file)
        self.bytes_written += self._partial.stat().st_size
        os.replace(self._partial, self._folder / f"{self._name}.frames")
        with self._partial.open("wb") as file:
            np.save(file, np.array(self._entries, ENTRY))
            _close_flushed(file)
        os.replace(self._partial, self._folder / f"{self._name}.npy")
        self._file, self._entries, self._num_frames = None, [], 0

    def abandon_shard(self) -> None:
        """Removes what was added since the last shard: after a disk that is full."""
        if self._file is not None:
            self._file = None
            for suffix in (".partial", ".frames"):
                (self._folder / f"{self._name}{suffix}").unlink(missing_ok=True)


def _close_flushed(file: Any) -> None:
    """Forces a written file onto the disk, so that a rename never points at bytes that are not there yet."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def check_sizes(store: FrameStore, numbers: np.ndarray, rows: Iterable[Utterance]) -> None:
    """Raises UserError where the file of a clip is not the one that was encoded. Files that are gone are no fault."""
    known = store.entries["audio_bytes"][numbers]
    for utterance, size in zip(rows, known.tolist(), strict=True):
        now = file_bytes(utterance.audio.location)
        if size and now and now != size:
            raise UserError(
                f"{utterance.audio}: {now:,} bytes, but {size:,} when its features were cached; empty "
                "data.features_cache or name another folder, and run tiny-audio cache-features again"
            )
