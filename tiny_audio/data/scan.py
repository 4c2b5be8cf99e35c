"""What training has to know of every clip before it begins: found by one look at each transcript, and remembered.

Legend: a *row* is counted over all rows of all sources, a *position* over the clips that are trained on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tiny_audio.data import filters as filters_module
from tiny_audio.data import text as text_module
from tiny_audio.data.features import clip_identity
from tiny_audio.data.filters import Filters
from tiny_audio.data.mapped import RecordWriter, load_records, pieces, release, save_records
from tiny_audio.data.reader import Processor, start_worker, unchanged
from tiny_audio.data.rows import row_starts
from tiny_audio.data.source import LazySequence, Source, show_progress
from tiny_audio.data.text import clean_transcript
from tiny_audio.data.utterance import Utterance, utterance_key
from tiny_audio.errors import UserError, first_line
from tiny_audio.files import cache_folder, locked, make_room, write_files

logger = logging.getLogger(__name__)

CLIP = np.dtype(
    [
        ("row", "<u4"),
        ("group", "<i4"),  # of rows that are cheap to read together; -1: of none
        ("seconds", "<f4"),
        ("tokens", "<u4"),
        ("key", "<u8"),  # seeds what happens to it
        ("identity", "<u8"),  # what a store of encoder frames knows it by; 0 without one
    ]
)
SAME_ID_STRIDE = np.uint64(0xC2B2AE3D27D4EB4F)  # odd: the keys of clips with the same id all differ
NAMES_KEPT = 3
# A smaller set is looked at again in less time than it takes to wonder whether a cache is right.
ROWS_WORTH_KEEPING = 20_000
ROWS_OF_STRETCH = 4096
WORTH_A_BAR = 4  # stretches; each takes half a second
STRETCHES_WORTH_SHARING = 5  # with other processes
CACHE_BYTES = 1 << 32
KEYS_AT_A_TIME = 1 << 20


@dataclass
class LeftOut:
    """How many clips are not trained on for one reason, and the first of them."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if self.count <= NAMES_KEPT:
            self.names.append(name)


@dataclass
class Scan:
    """The clips that are trained on: (clips,) of `CLIP`, ascending by row, and what was left out, by reason.

    `bounds` (sources + 1,) are the positions at which the clips of each source begin, and the end. `texts` are those
    of the clips, by row, where they were asked for.
    """

    clips: np.ndarray
    bounds: np.ndarray
    left_out: dict[str, LeftOut]
    texts: dict[int, tuple[Utterance, str]]

    def __len__(self) -> int:
        return len(self.clips)

    def position(self, row: int) -> int:
        return bisect_left(self.clips, row, key=lambda clip: int(clip["row"]))

    def seconds(self, first: int = 0, end: int | None = None) -> float:
        """Of the clips from position `first` to `end`, together."""
        part = self.clips["seconds"][first:end]
        return float(sum(part[piece].sum(dtype=np.float64) for piece in pieces(len(part))))

    def fingerprint(self) -> str:
        """Of which clips there are, how long they are, and how much text they have."""
        digest = hashlib.sha256()
        for name, kind in (("key", np.uint64), ("seconds", np.float64), ("tokens", np.int32)):
            for piece in pieces(len(self.clips)):
                digest.update(np.ascontiguousarray(self.clips[name][piece], kind).tobytes())
        release(self.clips)
        return digest.hexdigest()[:16]


def scan_sources(
    sources: Sequence[Source],
    processor: Processor,
    filters: Filters,
    clean_text: bool,
    with_identities: bool,
    with_texts: bool,
) -> Scan:
    """Looks at every row once. A large set whose files are those of an earlier scan is not looked at again.

    Args:
        with_identities: for a store of encoder frames.
        with_texts: keep them, and the utterances.
    """
    look = _Look(
        list(sources), row_starts(sources), processor, filters, clean_text, with_identities, with_texts
    )
    key = None if with_texts else _scan_key(sources, processor, filters, clean_text, with_identities)
    if key is None:
        return _look_at_all(look)
    records, _ = _files(key)
    with locked(records.with_suffix(".lock")):  # of several processes on one machine, one looks
        found = _load(key, len(sources))
        if found is None:
            found = _look_at_all(look)
            _save(key, found)
    return found


def _look_at_all(look: _Look) -> Scan:
    sources = look.sources
    writer, left_out, bounds = RecordWriter(CLIP), defaultdict[str, LeftOut](LeftOut), [0]
    texts: dict[int, tuple[Utterance, str]] = {}
    stretches = [
        (number, first)
        for number, source in enumerate(sources)
        for first in range(0, len(source.utterances()), ROWS_OF_STRETCH)
    ]
    # All cores share a long look; what is kept of texts is not worth sending.
    is_long = len(stretches) >= STRETCHES_WORTH_SHARING and not look.with_texts and sys.platform == "linux"
    loader = DataLoader(
        look,
        batch_size=None,
        sampler=stretches,
        collate_fn=unchanged,
        generator=torch.Generator(),  # else it draws from the one that dropout draws from
        num_workers=os.cpu_count() or 1 if is_long else 0,
        worker_init_fn=start_worker,
        multiprocessing_context="fork" if is_long else None,
    )
    told = show_progress(loader, "reading transcripts", len(stretches), WORTH_A_BAR)
    failure = None
    for stretch, found in enumerate(told):
        failure = found.error
        if failure is not None:
            break
        bounds += [len(writer)] * (stretches[stretch][0] + 1 - len(bounds))
        writer.extend(found.clips)
        for reason, name in found.left_out:
            left_out[reason].add(name)
        texts |= found.texts
    del loader, told  # ends the workers
    if failure is not None:
        raise UserError(failure)
    bounds += [len(writer)] * (len(sources) + 1 - len(bounds))
    clips = writer.finish()
    tell_apart(clips)
    return Scan(clips, np.array(bounds), dict(left_out), texts)


@dataclass
class _Found:
    """Of a stretch of rows: records of the clips, reasons and ids of what is left out, and texts by row."""

    clips: np.ndarray
    left_out: list[tuple[str, str]]
    texts: dict[int, tuple[Utterance, str]]
    error: str | None = None


@dataclass
class _Look(Dataset):
    """What is done with a stretch of rows: the number of its source, and its first row therein."""

    sources: list[Source]
    starts: np.ndarray
    processor: Processor
    filters: Filters
    clean_text: bool
    with_identities: bool
    with_texts: bool

    def __getitem__(self, stretch: tuple[int, int]) -> _Found:
        try:
            return self._look(*stretch)
        except UserError as error:  # as a value: a traceback of another process helps nobody
            return _Found(np.zeros(0, CLIP), [], {}, str(error))

    def _look(self, number: int, first: int) -> _Found:
        source = self.sources[number]
        rows, groups = source.utterances(), source.groups()
        in_turn = rows.starting_at(first) if isinstance(rows, LazySequence) else iter(rows[first:])
        first_group = sum(len(earlier.group_bytes()) for earlier in self.sources[:number])
        clips, left_out, texts = [], [], {}
        for index, utterance in enumerate(islice(in_turn, ROWS_OF_STRETCH), start=first):
            row = int(self.starts[number]) + index
            seconds = np.float32(np.nan if utterance.seconds is None else utterance.seconds)
            text = clean_transcript(utterance.text) if self.clean_text else utterance.text
            reason = self.filters.reason_to_leave_out(utterance, float(seconds), text)
            if reason is not None:
                left_out.append((reason, utterance.id))
                continue
            group = -1 if groups is None else first_group + int(groups[index])
            tokens = self.processor.num_text_tokens(text)
            identity = clip_identity(source, utterance) if self.with_identities else 0
            clips.append((row, group, seconds, tokens, utterance_key(utterance.id), identity))
            if self.with_texts:
                texts[row] = (utterance, text)
        return _Found(np.array(clips, CLIP), left_out, texts)


def tell_apart(clips: np.ndarray) -> None:
    """Gives clips of one id keys that differ: each has that of the first and a multiple of `SAME_ID_STRIDE`."""
    parts = len(clips) // KEYS_AT_A_TIME + 1
    for part in range(parts):
        places = np.concatenate(
            [np.zeros(0, np.int64)]
            + [
                piece.start + np.flatnonzero(clips["key"][piece] % np.uint64(parts) == part)
                for piece in pieces(len(clips))
            ]
        )
        keys = clips["key"][places]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        times_before = np.arange(len(keys)) - np.searchsorted(ordered, ordered)
        again = np.flatnonzero(times_before)
        clips["key"][places[order[again]]] = (
            ordered[again] + times_before[again].astype(np.uint64) * SAME_ID_STRIDE
        )
    release(clips)


# What an earlier run found -------------------------------------------------------------------------------------


def _scan_key(
    sources: Sequence[Source], processor: Any, filters: Filters, clean_text: bool, with_identities: bool
) -> str | None:
    """A name for all that decides a scan; None where there is no telling, or where it is quick."""
    if sum(len(source.utterances()) for source in sources) < ROWS_WORTH_KEEPING:
        return None
    tokenizer = getattr(getattr(processor, "tokenizer", None), "backend_tokenizer", None)
    identities = [(source.name, source.identity()) for source in sources]
    if tokenizer is None or any(identity is None for _, identity in identities):
        return None
    # A row whose audio has gone is a problem, and all that follow it have other numbers.
    rows = [(len(source.utterances()), [str(problem) for problem in source.problems]) for source in sources]
    digest = hashlib.sha256()
    rules = (Path(str(module.__file__)).read_bytes() for module in (filters_module, text_module))
    parts = (identities, rows, tokenizer.to_str(), filters, clean_text, with_identities, CLIP.descr)
    for value in (*rules, repr(parts).encode("utf-8", "surrogatepass")):
        digest.update(hashlib.sha256(value).digest())
    return digest.hexdigest()[:32]


def _files(key: str) -> tuple[Path, Path]:
    folder = cache_folder() / "scans"
    return folder / f"{key}.clips", folder / f"{key}.json"


def _load(key: str, num_sources: int) -> Scan | None:
    records, notes = _files(key)
    try:
        state = json.loads(notes.read_text(encoding="utf-8"))
        clips = load_records(records, CLIP)
        bounds = np.array(state["bounds"], np.int64)
        left_out = {reason: LeftOut(count, names) for reason, (count, names) in state["left_out"].items()}
        if len(bounds) != num_sources + 1 or bounds[-1] != len(clips):
            raise ValueError("its parts do not belong together")
        os.utime(records)  # used now
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning(
            "%s: cannot be used (%s); looking at the transcripts again", records, first_line(error)
        )
        return None
    logger.info("the transcripts are known from an earlier run (%s)", records)
    return Scan(clips, bounds, left_out, {})


def _save(key: str, found: Scan) -> None:
    records, notes = _files(key)
    left_out = {reason: (some.count, some.names) for reason, some in found.left_out.items()}
    try:
        save_records(records, found.clips)
        write_files({notes: json.dumps({"bounds": found.bounds.tolist(), "left_out": left_out})})
        make_room(records.parent, CACHE_BYTES, "*.[cj]*")
    except OSError as error:  # it is only a cache
        logger.warning("%s: what is known of the transcripts cannot be kept (%s)", records, first_line(error))
    release(found.clips)
