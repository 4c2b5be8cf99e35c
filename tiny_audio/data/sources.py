"""Opens a SOURCE as users write it: corpus split, folder, manifest, parquet or hub data set."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soxr

from tiny_audio.data.folder import FolderSource, walk_files
from tiny_audio.data.known_sets import find_set, groups, is_set_name, names_to_suggest, open_known_set
from tiny_audio.data.manifest import ManifestSource
from tiny_audio.data.source import Source
from tiny_audio.data.utterance import AudioRef, Utterance, Word
from tiny_audio.errors import UserError, nearest
from tiny_audio.hub.asr_audio import SAMPLING_RATE, AudioError

logger = logging.getLogger(__name__)

SOURCE_FORMS = (
    "corpus:SPLIT, a folder, a manifest.jsonl, a .parquet file, hub:NAME[/CONFIG]:SPLIT, or the name of a known"
    " set such as LoquaciousSet:test"
)
MANIFEST_NAME = "manifest.jsonl"
# Words in the names of shards, and of the folders they lie in, as the hub reads them
# (https://huggingface.co/docs/hub/datasets-file-names-and-splits).
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
LARGEST_WEIGHT = 1000


def open_source(spec: str | os.PathLike, default_split: str | None = None, with_audio: bool = True) -> Source:
    """Open one SOURCE and scan its metadata.

    Args:
        spec: ``corpus:train``, ``hub:NAME[/CONFIG]:SPLIT``, a folder (a ``manifest.jsonl``, parquet shards,
            LibriSpeech layout, or audio beside ``.txt``), ``FOLDER:SPLIT`` where its shards are of several splits,
            a ``manifest.jsonl``, a parquet file, or the name of a known set (``NAME[/CONFIG][:SPLIT]``, see
            known_sets.yaml), which a file or folder of that name hides.
        default_split: what the name of a known set without a split means; None: its test split.
        with_audio: False leaves it to reading to find out whether a manifest's files are there.

    Raises:
        UserError: no such source, or nothing usable in it.
    """
    name = os.fspath(spec)
    if name.startswith("corpus:"):
        return CorpusSource(name.removeprefix("corpus:"))
    if name.startswith("hub:"):
        known = find_set(name)
        if known is not None:  # the rules of a known set hold by whichever name it is called
            return open_known_set(known, label=name)
        from tiny_audio.data.hub import open_hub_source

        return open_hub_source(name)
    path = Path(name).expanduser()
    if not path.exists():
        known = find_set(name, default_split)
        if known is not None:
            return open_known_set(known)
        folder, _, split = name.rpartition(":")
        if split and folder and Path(folder).expanduser().is_dir():
            return _open_split(Path(folder).expanduser(), split, name)
        raise UserError(f"{name}: no such source.{_hint(name, path)} A source is {SOURCE_FORMS}")
    if is_set_name(name):
        logger.warning("%s: the %s of that name is meant, not the public set", name, _kind(path))
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return ManifestSource(path / MANIFEST_NAME, name, with_audio)
        splits = _shards_by_split(path)
        if not splits:
            return FolderSource(path, name)
        known_splits = sorted(split for split in splits if split)
        if len(known_splits) > 1:
            raise UserError(
                f"{name}: its .parquet files are of several splits ({', '.join(known_splits)}); name one of them, "
                f"as in {name}:{known_splits[0]}"
            )
        return _open_parquet(sorted(file for files in splits.values() for file in files), name)
    if path.suffix.lower() in (".jsonl", ".json"):
        return ManifestSource(path, name, with_audio)
    if path.suffix.lower() == ".parquet":
        return _open_parquet([path], name)
    raise UserError(
        f"{name}: a file ending in {path.suffix or 'nothing'} is not a source. A source is {SOURCE_FORMS}"
    )


def open_sources(
    specs: str | os.PathLike | Sequence[str | os.PathLike],
    with_audio: bool = True,
) -> list[Source]:
    """Open a SOURCE or a list of them, as ``data.train`` holds.

    A known set without a split is its train split, and the rows of ``SOURCE*3`` are heard three times an epoch.
    """
    if isinstance(specs, (str, os.PathLike)):
        specs = [specs]
    if not specs:
        raise UserError(f"no source of data given. A source is {SOURCE_FORMS}")
    sources = []
    for spec in specs:
        name, weight = split_weight(os.fspath(spec))
        source = open_source(name, default_split="train", with_audio=with_audio)
        source.weight = weight
        sources.append(source)
    return sources


def split_weight(spec: str) -> tuple[str, float]:
    """``recordings*2.5`` as ("recordings", 2.5); 1 where there is none, or where a file has that very name.

    Raises:
        UserError: what follows the last asterisk is no weight.
    """
    name, star, written = spec.rpartition("*")
    if not star or Path(spec).expanduser().exists():
        return spec, 1.0
    try:
        weight = float(written)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= LARGEST_WEIGHT:
        raise UserError(
            f"data.train={spec}: after * goes how often each clip is heard in an epoch, above 0 and at most "
            f"{LARGEST_WEIGHT}, such as {name}*2 or {name}*0.5"
        )
    return name, weight


class CorpusSource(Source):
    """A split of the corpus embedded in the package."""

    def __init__(self, split: str) -> None:
        from tiny_audio.data import corpus

        self.name = f"corpus:{split}"
        self.problems = []
        self._entries = list(corpus.read_index(split))
        self._utterances = [
            Utterance(
                id=entry.id,
                text=entry.text,
                seconds=entry.seconds,
                audio=AudioRef(self.name, row),
                speaker=entry.speaker,
                words=None if entry.words is None else tuple(Word(*word) for word in entry.words),
            )
            for row, entry in enumerate(self._entries)
        ]

    def utterances(self) -> Sequence[Utterance]:
        return self._utterances

    def prepare(self) -> None:
        """Decode the streams that hold the clips, on all cores: random batches want all of them at once."""
        from tiny_audio.data import corpus

        one_of_each_stream = {entry.stream: entry for entry in self._entries}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(corpus.read_audio, one_of_each_stream.values()))

    def read(self, utterance: Utterance, max_seconds: float | None = None) -> np.ndarray:
        from tiny_audio.data import corpus

        assert utterance.audio.row is not None
        waveform, rate = corpus.read_audio(self._entries[utterance.audio.row])
        if max_seconds is not None and len(waveform) > max_seconds * rate:
            raise AudioError(f"{utterance.id}: longer than the limit of {max_seconds:g} s")
        if rate != SAMPLING_RATE:
            waveform = soxr.resample(waveform, rate, SAMPLING_RATE)
        return np.ascontiguousarray(waveform, dtype=np.float32)


def _open_split(folder: Path, split: str, name: str) -> Source:
    splits = _shards_by_split(folder)
    wanted = next((ours for ours, words in SPLIT_WORDS.items() if split.lower() in words), split)
    if not split or wanted not in splits:
        known = ", ".join(sorted(split for split in splits if split)) or "none"
        raise UserError(
            f"{name}: {folder} has no .parquet files of a split {split!r}; its splits are {known}"
        )
    return _open_parquet(splits[wanted], name)


def _shards_by_split(folder: Path) -> dict[str, list[Path]]:
    """The parquet files below a folder by the split that their names speak of; an empty name for those of none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in walk_files(folder) if path.suffix == ".parquet"):
        # The file's own name first, then the nearest folder.
        parts = [path.stem, *reversed(path.parent.relative_to(folder).parts)]
        words = [word for part in parts for word in re.split(r"[^a-z]+", part.lower())]
        of_word = {word: split for split, known in SPLIT_WORDS.items() for word in known}
        found.setdefault(next((of_word[word] for word in words if word in of_word), ""), []).append(path)
    return found


def _open_parquet(files: list[Path], name: str) -> Source:
    from tiny_audio.data.parquet import ParquetSource

    return ParquetSource([str(file) for file in files], name)


def _kind(path: Path) -> str:
    return "folder" if path.is_dir() else "file"


def _hint(name: str, path: Path) -> str:
    """What the user may have meant: a group of sets, a file nearby, or the name of a known set."""
    if name in groups():
        return f" {name} stands for {', '.join(groups()[name])}; here one of them is wanted."
    try:
        nearby = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        nearby = []
    set_name = name.partition(":")[0].partition("/")[0]
    return nearest(path.name, nearby) or nearest(set_name, names_to_suggest())
