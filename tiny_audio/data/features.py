"""Encoder frames on the disk: what a frozen encoder makes of each clip, computed once and read in every epoch.

A store is a folder of shards: `NAME.frames` holds the frames of clip after clip and `NAME.npy` an entry for each of
them. The entries are written last, so a shard without them is one that was never finished: it is removed, and its
clips are encoded again. So are those of a shard that is damaged or that an earlier version wrote in another format, and
clips whose audio has changed.

Legend: F encoder frames of a clip, D_e encoder width.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterable, Sequence
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

logger = logging.getLogger(__name__)

SHARD_BYTES = 32 * 2**20
SHARD_SECONDS = 30.0  # what a killed run may lose
ABANDONED_SECONDS = 600.0  # an unfinished shard that was not written to for so long is nobody's
MAPPED_SHARDS = 64  # at a time: each holds a file descriptor
ABOUT_FILE = "about.json"
# Of a file, so much is read at its head and tail and at even distances between, to tell it from others.
FINGERPRINT_BYTES, FINGERPRINT_DISTANCE = 4096, 16 * 2**20
# `clip` is the clip's identity and `hearing` the variant of its sound; `num_samples` is its length as heard, and
# `audio` the fingerprint of its file, 0 where it has none. Frames begin at frame `start` of the shard; a clip that
# could not be read has none.
ENTRY = np.dtype(
    [
        ("clip", "<u8"),
        ("hearing", "<i4"),
        ("num_frames", "<i4"),
        ("num_samples", "<i8"),
        ("audio", "<u8"),
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
    for folder in _folders(os.path.expanduser(name), os.environ.get(MODELS_VARIABLE)):
        if location.startswith(folder):
            return location.removeprefix(folder).replace(os.sep, "/")
    return location


@lru_cache
def _folders(name: str, models: str | None) -> list[str]:
    """Where the files of a source may lie: in its folder, or in that of models and sets."""
    root = Path(name) if os.path.isdir(name) else Path(name).parent
    return [f"{folder}{os.sep}" for folder in (root, models and Path(models)) if folder]


def file_fingerprint(location: str) -> int:
    """64 bits that change with a file, though not with its place; 0 where there is none, here or any more.

    They come of its size, head, middle and tail, and of more of its middle where it is large.
    """
    try:
        with open(location, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(str(size).encode(), digest_size=8)
            last, parts = max(0, size - FINGERPRINT_BYTES), 2 + size // FINGERPRINT_DISTANCE
            for part in range(parts + 1):
                file.seek(part * last // parts)
                digest.update(file.read(FINGERPRINT_BYTES))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(digest.digest(), "little") or 1


def audio_fingerprints(rows: Iterable[Utterance], identities: np.ndarray) -> np.ndarray:
    """The fingerprints of the files of clips, uint64 (rows,), to tell whether what is stored of them is still theirs.

    Raises UserError where clips of different audio have one identity.
    """
    counted, times = np.unique(identities, return_counts=True)
    shared = set(counted[times > 1].tolist())
    first: dict[int, Utterance] = {}
    known: dict[str, int] = {}  # a shard is looked at once for all of its rows
    fingerprints = np.zeros(len(identities), np.uint64)
    for number, (row, identity) in enumerate(zip(rows, identities.tolist(), strict=True)):
        if identity in shared and first.setdefault(identity, row).audio != row.audio:
            raise UserError(
                f"data.features_cache cannot tell {first[identity].audio} from {row.audio}: give them other ids, or "
                "train without it"
            )
        location = row.audio.location
        if row.audio.row is None:
            fingerprints[number] = file_fingerprint(location)
        else:
            if location not in known:
                known[location] = file_fingerprint(location)
            fingerprints[number] = known[location]
    return fingerprints


def joined_fingerprint(fingerprints: Sequence[int]) -> int:
    """The fingerprint of a clip that is spliced from others."""
    return utterance_key(str(fingerprints)) or 1 if all(fingerprints) else 0


def store_folder(cache: Path, about: dict[str, Any]) -> Path:
    """The store inside `cache` for what `about` describes: other encoders and settings get folders of their own."""
    return cache / hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(cache: Path, about: dict[str, Any]) -> list[str]:
    """What the stores in `cache` were made with that is not as in `about`: one text for each store."""
    texts = []
    for file in sorted(cache.glob(f"*/{ABOUT_FILE}")):
        try:
            other = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # the next writer writes it anew
            continue
        texts.append(", ".join(name for name in about if other.get(name) != about[name]))
    return texts


class FrameStore:
    """The finished shards of a store. The names of those that cannot be read are in `broken`."""

    def __init__(self, folder: Path, dtype: torch.dtype, width: int) -> None:
        """`dtype` and `width` (D_e) are those of the frames."""
        self._folder, self.dtype, self._width = folder, dtype, width
        names = sorted(path.stem for path in folder.glob("*.npy"))
        read = {name: _read_entries(folder, name, width * dtype.itemsize) for name in names}
        parts = {name: entries for name, entries in read.items() if entries is not None}
        self._names = list(parts)
        self.broken = [name for name in names if name not in parts]
        if self.broken:
            logger.warning(
                "%s: %d of %d shards are damaged or of an earlier version; tiny-audio cache-features encodes anew what "
                "they held",
                folder,
                len(self.broken),
                len(names),
            )
        self.entries = np.concatenate([np.zeros(0, ENTRY), *parts.values()])
        lengths = [len(entries) for entries in parts.values()]
        self._shards = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)
        # Of a clip that was encoded more than once, the last time comes last, and before it those without frames: it
        # could not be read then. (Names of shards begin with their time, and the sort is stable.)
        has_frames = self.entries["num_frames"] > 0
        order = np.lexsort([has_frames, self.entries["clip"], self.entries["hearing"]])
        self._order = order.astype(np.int64)

    def find(self, hearing: int, clips: np.ndarray, audio: np.ndarray | None = None) -> np.ndarray:
        """The numbers of the entries of `clips` (rows,) uint64: int64 (rows,), -1 where there is none.

        `audio` (rows,) uint64 are the fingerprints of their files: entries of other audio are not theirs. 0 (None: for
        all) stands for a file that is not there: what was encoded last is taken.
        """
        hearings = self.entries["hearing"][self._order]
        first, last = np.searchsorted(hearings, [hearing, hearing + 1])
        order = self._order[first:last]
        known = self.entries["clip"][order]
        begin, end = np.searchsorted(known, clips, "left"), np.searchsorted(known, clips, "right")
        numbers = np.full(len(clips), -1, np.int64)
        found = begin < end
        numbers[found] = order[end[found] - 1]
        if audio is not None:
            stored = self.entries["audio"]
            differs = found.copy()
            differs[found] = (stored[numbers[found]] != audio[found]) & (stored[numbers[found]] > 0)
            for row in np.flatnonzero(differs & (audio > 0)):
                same = [n for n in order[begin[row] : end[row]] if stored[n] in (0, audio[row])]
                numbers[row] = same[-1] if same else -1
        return numbers

    def read(self, number: int) -> Tensor:
        """The frames (D_e, F) of entry `number`."""
        entry = self.entries[number]
        shard = _map_shard(
            self._folder / f"{self._names[self._shards[number]]}.frames", self.dtype, self._width
        )
        start = int(entry["start"])
        frames = shard[start : start + int(entry["num_frames"])]  # (F, D_e)
        return torch.from_numpy(frames.T.copy()).view(self.dtype)


def _read_entries(folder: Path, name: str, frame_bytes: int) -> np.ndarray | None:
    """The entries of a shard; None where they cannot be read or are not those of its frames."""
    try:
        entries = np.load(folder / f"{name}.npy", allow_pickle=False)
        num_bytes = (folder / f"{name}.frames").stat().st_size
    except (OSError, ValueError, EOFError):
        return None
    if entries.dtype != ENTRY:
        return None
    num_frames = int((entries["start"] + entries["num_frames"]).max(initial=0))
    return entries if num_bytes == num_frames * frame_bytes else None


@lru_cache(maxsize=MAPPED_SHARDS)
def _map_shard(path: Path, dtype: torch.dtype, width: int) -> np.ndarray:
    """All frames of a shard, as integers of the same size: numpy knows no bfloat16."""
    return np.memmap(path, f"<i{dtype.itemsize}", "r").reshape(-1, width)


class FrameWriter:
    """Adds shards to a store, beside other writers if need be. What a killed one left unfinished is removed later."""

    def __init__(self, folder: Path, about: dict[str, Any], broken: Iterable[str] = ()) -> None:
        """`broken` shards, as a `FrameStore` names them, are removed."""
        self._folder = folder
        self.bytes_written = 0
        self._entries: list[tuple[int, ...]] = []
        self._file: Any = None
        self._name: str | None = None  # of the shard that is not finished
        self._frame_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        for name in broken:
            for suffix in (".npy", ".frames"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
        finished = {path.stem for path in folder.glob("*.npy")}
        for path in [*folder.glob("*.partial"), *folder.glob("*.frames")]:
            with contextlib.suppress(FileNotFoundError):  # another writer was faster
                if path.stem not in finished and time.time() - path.stat().st_mtime >= ABANDONED_SECONDS:
                    path.unlink()
        write_files({folder / ABOUT_FILE: json.dumps(about, indent=2, sort_keys=True) + "\n"})

    def add(
        self, clip: int, hearing: int, frames: Tensor | None, num_samples: int = 0, audio: int = 0
    ) -> None:
        """Frames (F, D_e) of a clip, or None for one that cannot be read. Raises OSError when the disk is full.

        `audio` is the fingerprint of its file.
        """
        if self._file is None:
            self._name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"
            self._partial = self._folder / f"{self._name}.partial"
            self._file = self._partial.open("wb")
            self._began = time.monotonic()
        start = self._entries[-1][-1] + self._entries[-1][2] if self._entries else 0
        num_frames = 0 if frames is None else len(frames)
        if frames is not None and num_frames:
            self._frame_bytes = frames[:1].nbytes
            self._file.seek(start * self._frame_bytes)
            self._file.write(frames.contiguous().view(torch.uint8).numpy().data)
        # Ctrl-C before this line leaves frames that no entry has: what comes next is written over them.
        self._entries.append((clip, hearing, num_frames, num_samples, audio, start))
        if self._file.tell() >= SHARD_BYTES or time.monotonic() - self._began >= SHARD_SECONDS:
            self.finish_shard()

    def finish_shard(self) -> None:
        """Makes what was added since the last shard part of the store."""
        if self._file is None:
            return
        # Interrupted from here on, the shard is one that was never finished.
        file, entries = self._file, np.array(self._entries, ENTRY)
        self._file, self._entries = None, []
        num_frames = int((entries["start"] + entries["num_frames"]).max(initial=0))
        file.truncate(num_frames * self._frame_bytes)
        _close_flushed(file)
        self.bytes_written += self._partial.stat().st_size
        os.replace(self._partial, self._folder / f"{self._name}.frames")
        with self._partial.open("wb") as file:
            np.save(file, entries)
            _close_flushed(file)
        os.replace(self._partial, self._folder / f"{self._name}.npy")
        self._name = None

    def abandon_shard(self) -> None:
        """Removes what was added since the last shard: after a disk that is full."""
        if self._name is None:
            return
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        for suffix in (".partial", ".frames"):
            (self._folder / f"{self._name}{suffix}").unlink(missing_ok=True)
        self._file, self._entries, self._name = None, [], None


def _close_flushed(file: Any) -> None:
    """Forces a written file onto the disk, so that a rename never points at bytes that are not there yet."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
