"""From sources to batches: filters rows, plans epochs, lets stateless workers decode, augment and collate.

The main process decides everything (which rows, how fast, spliced from what); a worker is handed a finished
list and returns a batch. So the batches of (epoch, batch number) are the same for every number of workers,
and after every restart.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from tiny_audio.data.augment import Augmentation, draw_rates
from tiny_audio.data.batching import Budget, EpochPlan, LengthBucket, dense_texts, plan_epoch
from tiny_audio.data.features import FrameStore, audio_fingerprints, clip_identity, joined_fingerprint
from tiny_audio.data.filters import Filters
from tiny_audio.data.reader import (
    BatchPlan,
    BatchReader,
    ClipPlan,
    PlannedOrder,
    Processor,
    start_worker,
    unchanged,
)
from tiny_audio.data.rows import find_utterance, join_groups, row_starts, times_before
from tiny_audio.data.source import Source, check_problems, show_progress
from tiny_audio.data.splice import Recipe, Splicer
from tiny_audio.data.text import clean_transcript
from tiny_audio.data.utterance import Problem, Utterance, utterance_key
from tiny_audio.errors import UserError

NAMES_IN_A_SUMMARY = 3
BATCHES_AHEAD_OF_A_WORKER = 4
REPEAT_STRIDE = np.uint64(0x9E3779B97F4A7C15)  # odd: the keys of a clip's repetitions all differ
SAME_ID_STRIDE = np.uint64(0xC2B2AE3D27D4EB4F)  # and those of clips with the same id


@dataclass(frozen=True, slots=True)
class Heard:
    """The clips of one epoch, as arrays (clips,): their positions among all clips, and how they sound."""

    positions: np.ndarray
    keys: np.ndarray  # seed their augmentation
    rates: np.ndarray  # (clips, 2) speed and tempo
    lengths: np.ndarray  # seconds
    recipes: dict[int, Recipe]  # by row


class TrainData:
    """Training batches from `sources`, the same for the same seed whatever reads them.

    Args:
        sources: see `open_sources`.
        processor: ``TinyAudioProcessor``, or anything that keeps the `Processor` protocol.
        seed: of the order and of the augmentation.
        batch_seconds: audio in a batch, padding included, or a `Budget` for each length; see `plan_epoch`.
        max_clips: most clips of a batch.
        num_workers: processes that decode and augment; 0: this one does.
        augmentation: the ``augmentation`` part of the config, or an `Augmentation`; None: none.
        min_seconds, max_seconds: shorter and longer clips are left out and reported.
        languages: clips whose source says another language are left out and reported; None: none are.
        max_characters_per_second: clips with more text than that are left out and reported; None: none are.
        max_bad_fraction: share of rows that may be unusable (at least 3 rows) before the run stops.
        clean_text: apply `clean_transcript`.
        short_first: the first epoch goes from short clips to long ones, where alignment is easier to find.
        variants: each clip has this many sounds, taken in turn by the epochs; None: another one every epoch.
        store: encoder frames to read in place of audio; needs `variants`.

    Attributes:
        num_clips, hours: of what is trained on, before augmentation, each clip once.
        left_out: ids of the rows left out, by reason.
        note_problem: called with each row that turns out unusable while it is read.

    Raises:
        UserError: too many unusable rows, or none that can be trained on.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        processor: Processor,
        *,
        seed: int,
        batch_seconds: float | Sequence[Budget],
        max_clips: int,
        num_workers: int = 0,
        augmentation: Mapping[str, Any] | Augmentation | None = None,
        min_seconds: float = 0.0,
        max_seconds: float = 30.0,
        languages: Sequence[str] | None = None,
        max_characters_per_second: float | None = None,
        max_bad_fraction: float = 0.01,
        clean_text: bool = True,
        short_first: bool = False,
        variants: int | None = None,
        store: FrameStore | None = None,
    ) -> None:
        self._sources = [sources] if isinstance(sources, Source) else list(sources)
        self._processor = processor
        self._seed = seed
        self._batch_seconds = batch_seconds
        self._max_clips = max_clips
        self._num_workers = num_workers
        self._augmentation = Augmentation.from_config(augmentation)
        self._max_seconds = max_seconds
        self._filters = Filters(min_seconds, max_seconds, max_characters_per_second, languages)
        self._max_bad_fraction = max_bad_fraction
        self._clean_text = clean_text
        self._short_first = short_first
        self._variants = variants
        self._store = store
        # What is encoded for a store is encoded once.
        fills_store = variants is not None and store is None
        self._weights = [1.0 if fills_store else source.weight for source in self._sources]
        self._name = ", ".join(source.name for source in self._sources)
        self._problems = {str(problem): problem for source in self._sources for problem in source.problems}
        self.left_out: dict[str, list[str]] = defaultdict(list)
        self.note_problem: Callable[[Problem], None] = lambda problem: None
        self._scan()
        self._planned: tuple[int, EpochPlan, Heard] | None = None
        self._found = [self._find_stored(store, hearing) for hearing in range(variants or 0)] if store else []
        self._order = PlannedOrder()
        self._loader = self._make_loader()
        shares_memory = (
            num_workers == 0 or sys.platform == "linux"
        )  # elsewhere workers have all by themselves
        if shares_memory and store is None:
            for source in self._sources:
                source.prepare()

    def _make_loader(self) -> DataLoader:
        """Workers start with its first batch, live through all epochs, and end with it."""
        workers: dict[str, Any] = {}
        if self._num_workers > 0:
            workers = {
                "num_workers": self._num_workers,
                "persistent_workers": True,
                "prefetch_factor": BATCHES_AHEAD_OF_A_WORKER,
                "worker_init_fn": start_worker,
                # A fork starts at once and shares what is in memory; elsewhere it is unsafe or missing.
                "multiprocessing_context": "fork" if sys.platform == "linux" else "spawn",
            }
        reader = BatchReader(
            self._sources,
            self._processor,
            self._augmentation,
            self._seed,
            self._max_seconds,
            self._clean_text,
            self._store,
        )
        return DataLoader(
            reader,
            batch_size=None,
            sampler=self._order,
            collate_fn=unchanged,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each epoch draws from the one that dropout draws from
            **workers,
        )

    def close(self) -> None:
        """End the worker processes. `batches` would start them again."""
        self._loader = self._make_loader()

    @property
    def num_clips(self) -> int:
        return len(self._rows)

    @property
    def hours(self) -> float:
        return float(self._seconds[self._rows].sum(dtype=np.float64)) / 3600

    @property
    def fingerprint(self) -> str:
        """Of what is trained on: which clips, how long, how much text. Files that come, go or change change it."""
        digest = hashlib.sha256()
        for values in (self._keys[self._rows], self._seconds[self._rows], self._tokens[self._rows]):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    @property
    def problems(self) -> list[Problem]:
        """Rows found unusable so far, by the scan or by reading them."""
        return list(self._problems.values())

    def plan_by(self, batch_seconds: float | Sequence[Budget]) -> None:
        """Sets another `batch_seconds`, for all epochs."""
        self._batch_seconds, self._planned = batch_seconds, None

    def length_buckets(self) -> list[LengthBucket]:
        """The lengths that the first epoch has, ascending."""
        heard, tokens = self._hear(0)
        buckets = []
        for longest, number in dense_texts(heard.lengths, tokens, self._max_seconds):
            row = int(self._rows[heard.positions[number]])
            text = heard.recipes[row].text if row in heard.recipes else self._utterance(row)[1].text
            text = clean_transcript(text) if self._clean_text else text
            buckets.append(LengthBucket(longest, text, float(heard.lengths[number])))
        return buckets

    def num_batches(self, epoch: int) -> int:
        return len(self._plan(epoch)[1])

    def padding_share(self, epoch: int) -> float:
        """The share of the epoch's padded seconds that is padding."""
        _, plan, heard = self._plan(epoch)
        return plan.padding_share(heard.lengths)

    def summary(self) -> list[str]:
        """Lines for people: what is trained on, and what was left out and why."""
        content = f"{self.num_clips:,} clips, {self.hours:.2f} hours of {self._name}"
        batches = f"{self.num_batches(0):,} batches an epoch, {self.padding_share(0):.1%} of them padding"
        lines = [f"training data: {content}; {batches}"]
        if len(self._sources) > 1 or self._weights != [1.0]:
            lines += self._shares()
        lines += [_left_out_line(reason, names) for reason, names in sorted(self.left_out.items())]
        if self._problems:
            lines.append(_left_out_line("unusable", [str(problem) for problem in self.problems]))
        return lines

    def _shares(self) -> Iterator[str]:
        """A line for each source: what it holds, and how much of it is heard."""
        bounds = np.searchsorted(self._rows, self._starts)
        for source, weight, first, end in zip(self._sources, self._weights, bounds, bounds[1:], strict=False):
            hours = float(self._seconds[self._rows[first:end]].sum(dtype=np.float64)) / 3600
            times = "once" if weight == 1 else f"{weight:g} times"
            yield (
                f"   {source.name}: {end - first:,} clips, {hours:.2f} hours, each heard {times} an epoch: "
                f"{weight * hours:.2f} hours"
            )

    def batches(self, epoch: int, start_batch: int = 0, every: int = 1) -> Iterator[dict[str, Any]]:
        """The batches of `epoch` from number `start_batch` on, or each `every`-th of them, without reading the others.

        Each is ``processor.collate(...)`` with `audio_seconds` (float, as heard), `utterance_ids` (list of
        str), `epoch` and `batch_index`: after a batch, the place to go on from is (epoch, batch_index + 1).

        Raises:
            UserError: more rows turned out unreadable than `max_bad_fraction` allows.
        """
        for batch in self._load(self._batch_plans(epoch, start_batch, every)):
            yield {**batch, "epoch": epoch}

    def clips_to_encode(self, hearing: int, store: FrameStore) -> tuple[np.ndarray, float]:
        """The clips without frames in `store`, as they sound in `hearing`: identities (clips,), and their seconds."""
        lacking = self._lacks_frames(hearing, store)
        return self._known_by(hearing)[0][lacking], float(self._plan(hearing)[2].lengths[lacking].sum())

    def batches_to_encode(self, hearing: int, store: FrameStore) -> Iterator[dict[str, Any]]:
        """Batches of those clips, with `identities` and `audio`, the fingerprints of their files (lists of int).

        Raises:
            UserError: as `batches` does.
        """
        lacking = self._lacks_frames(hearing, store)
        identities, audio = self._known_by(hearing)
        plans = (
            replace(plan, clips=tuple(clip for clip in plan.clips if lacking[self._position(clip.row)]))
            for plan in self._batch_plans(hearing, 0)
        )
        for batch in self._load(plan for plan in plans if plan.clips):
            positions = [self._position(clip.row) for clip in batch["clips"]]
            yield {**batch, "identities": identities[positions].tolist(), "audio": audio[positions].tolist()}

    def utterance(self, row: int) -> Utterance:
        """A clip by its number within all sources, which each of a batch's `clips` has."""
        return self._utterance(row)[1]

    def _load(self, plans: Iterable[BatchPlan]) -> Iterator[dict[str, Any]]:
        self._order.batches = plans
        failure: str | None = None
        for loaded in self._loader:
            failure = loaded.error or self._note_problems(loaded.problems)
            if failure is not None:
                break
            if loaded.batch is None:
                continue
            yield {**loaded.batch, "batch_index": loaded.index}
        if failure is not None:
            # Left to the garbage collector, workers take 10 s to end.
            self.close()
            raise UserError(failure)

    def _note_problems(self, problems: Sequence[Problem]) -> str | None:
        """Keeps `problems`; returns the report of too many."""
        if not problems:
            return None
        for problem in problems:
            if str(problem) not in self._problems:
                self._problems[str(problem)] = problem
                self.note_problem(problem)
        try:
            self._check_problems()
        except UserError as error:
            return str(error)
        return None

    # What is trained on -------------------------------------------------------------------------------------

    def _scan(self) -> None:
        """Looks at the metadata of every row once and keeps about 30 bytes of it."""
        self._starts = starts = row_starts(self._sources)
        num_rows = int(starts[-1])
        self._seconds = np.concatenate([source.seconds() for source in self._sources]).astype(np.float64)
        self._tokens = np.zeros(num_rows, np.int32)
        self._keys = np.zeros(num_rows, np.uint64)
        self._identities = np.zeros(0 if self._variants is None else num_rows, np.uint64)
        self._fingerprints: np.ndarray | None = None
        self._groups, self._group_bytes = join_groups(self._sources)
        keep = np.zeros(num_rows, bool)
        splice = self._augmentation.splice_probability > 0
        speakers: dict[int, Utterance] = {}
        texts: dict[int, str] = {}
        for source, start in zip(self._sources, starts, strict=False):
            rows = source.utterances()
            for row, utterance in enumerate(
                show_progress(rows, "reading transcripts", len(rows)), start=int(start)
            ):
                text = clean_transcript(utterance.text) if self._clean_text else utterance.text
                reason = self._filters.reason_to_leave_out(utterance, self._seconds[row], text)
                if reason is not None:
                    self.left_out[reason].append(utterance.id)
                    continue
                keep[row] = True
                self._keys[row] = utterance_key(utterance.id)
                if self._variants is not None:
                    self._identities[row] = clip_identity(source, utterance)
                self._tokens[row] = self._processor.num_text_tokens(text)
                if splice:
                    speakers[row], texts[row] = utterance, text
        self._rows = np.flatnonzero(keep)
        self._keys += times_before(self._keys) * SAME_ID_STRIDE
        self._num_seen = num_rows + len(self._problems)
        self._check_problems()
        if len(self._rows) == 0:
            reasons = "; ".join(
                _left_out_line(reason, names) for reason, names in sorted(self.left_out.items())
            )
            raise UserError(f"{self._name}: no clip is left to train on ({reasons})")
        self._splicer = Splicer(speakers, texts, self._max_seconds) if splice else None

    def _check_problems(self) -> None:
        check_problems(self.problems, self._num_seen, self._max_bad_fraction, self._name)

    # What is stored of it -----------------------------------------------------------------------------------

    def _known_by(self, hearing: int) -> tuple[np.ndarray, np.ndarray]:
        """What each clip of `_rows` is known by in a store, as it sounds in `hearing`, and fingerprints of its files.

        Both are uint64 (clips,); a fingerprint is 0 where a file is gone.
        """
        if self._fingerprints is None:
            utterances = (self._utterance(int(row))[1] for row in self._rows)
            self._fingerprints = audio_fingerprints(utterances, self._identities[self._rows])
        identities, audio = self._identities[self._rows], self._fingerprints.copy()
        for row, recipe in self._recipes(hearing).items():
            pieces = [(int(self._identities[piece.row]), piece.start, piece.end) for piece in recipe.pieces]
            files = [int(self._fingerprints[self._position(piece.row)]) for piece in recipe.pieces]
            position = self._position(row)
            known = f"{identities[position]} {pieces} {recipe.gaps} {recipe.text}"
            identities[position], audio[position] = utterance_key(known), joined_fingerprint(files)
        return identities, audio

    def _lacks_frames(self, hearing: int, store: FrameStore) -> np.ndarray:
        numbers = store.find(hearing, *self._known_by(hearing))
        return (numbers < 0) | (store.entries["num_frames"][numbers] == 0 if len(store.entries) else True)

    def _find_stored(self, store: FrameStore, hearing: int) -> np.ndarray:
        """int64 (clips,): the entries of all clips. Raises UserError where one has none, or of other audio."""
        numbers = store.find(hearing, *self._known_by(hearing))
        missing = np.flatnonzero(numbers < 0)
        if len(missing):
            example = self._utterance(int(self._rows[missing[0]]))[1].id
            raise UserError(
                f"data.features_cache: {len(missing):,} of {len(numbers):,} clips, such as {example}, have no frames "
                f"there{f' of variant {hearing}' if hearing else ''}, or their audio has changed since: run tiny-audio "
                "cache-features with the same overrides as tiny-audio train"
            )
        return numbers

    def _position(self, row: int) -> int:
        return int(np.searchsorted(self._rows, row))

    def _utterance(self, row: int) -> tuple[Source, Utterance]:
        return find_utterance(self._sources, self._starts, row)

    # What an epoch consists of ------------------------------------------------------------------------------

    def _hearing(self, epoch: int) -> int:
        return epoch if self._variants is None else epoch % self._variants

    def _recipes(self, hearing: int) -> dict[int, Recipe]:
        if self._splicer is None:
            return {}
        return self._splicer.draw(self._seed, hearing, self._keys, self._augmentation.splice_probability)

    def _heard(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """What an epoch hears: positions in `_rows`, ascending, and how often each was there before in this epoch.

        A source of n clips with weight w gives the clips from w n epoch to w n (epoch + 1) of an endless repetition of
        its clips in one seeded order. So after any number of epochs, no clip was heard twice more than another.
        """
        bounds = np.searchsorted(self._rows, self._starts)
        parts = []
        for number, weight in enumerate(self._weights):
            first, num_clips = int(bounds[number]), int(bounds[number + 1] - bounds[number])
            if weight == 1 or num_clips == 0:
                parts.append(np.arange(first, first + num_clips))
                continue
            share = Fraction(str(weight)) * num_clips  # exact, however many epochs
            order = np.random.default_rng([self._seed, number]).permutation(num_clips)
            turns = np.arange(math.floor(share * epoch), math.floor(share * (epoch + 1))) % num_clips
            parts.append(first + np.sort(order[turns]))
        positions = np.concatenate(parts)
        return positions, np.arange(len(positions)) - np.searchsorted(positions, positions)

    def _plan(self, epoch: int) -> tuple[int, EpochPlan, Heard]:
        """(epoch, plan of numbers in what it hears, what it hears)."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = None  # there is room for one: a plan has some 50 bytes a clip
            heard, tokens = self._hear(epoch)
            plan = plan_epoch(
                heard.lengths,
                tokens,
                seed=self._seed,
                epoch=epoch,
                batch_seconds=self._batch_seconds,
                max_clips=self._max_clips,
                groups=None if self._groups is None else self._groups[self._rows[heard.positions]],
                group_bytes=self._group_bytes,
                short_first=self._short_first and epoch == 0,
            )
            self._planned = (epoch, plan, heard)
        return self._planned

    def _hear(self, epoch: int) -> tuple[Heard, np.ndarray]:
        """The clips of an epoch, and the text tokens (clips,) of each."""
        hearing = self._hearing(epoch)
        positions, repeats = self._heard(epoch)
        seconds, tokens = self._seconds[self._rows], self._tokens[self._rows]
        recipes = self._recipes(hearing)
        for row, recipe in recipes.items():
            position = self._position(row)
            seconds[position] = recipe.seconds
            tokens[position] = self._processor.num_text_tokens(recipe.text)
        seconds, keys = seconds[positions], self._keys[self._rows[positions]]
        if self._variants is None:  # a clip that is heard again sounds otherwise
            keys += repeats.astype(np.uint64) * REPEAT_STRIDE
        rates = np.stack(
            draw_rates(self._augmentation, self._seed, hearing, keys, seconds, self._max_seconds), axis=1
        )
        return Heard(positions, keys, rates, seconds / rates.prod(axis=1), recipes), tokens[positions]

    def _batch_plans(self, epoch: int, start_batch: int, every: int = 1) -> Iterator[BatchPlan]:
        _, plan, heard = self._plan(epoch)
        hearing = self._hearing(epoch)
        stored = self._found[hearing] if self._store is not None else None
        for index in range(start_batch, len(plan), every):
            clips = []
            for number in plan[index]:
                position = int(heard.positions[number])
                row = int(self._rows[position])
                speed, tempo = heard.rates[number].tolist()
                clips.append(
                    ClipPlan(
                        row,
                        int(heard.keys[number]),
                        float(heard.lengths[number]),
                        speed,
                        tempo,
                        heard.recipes.get(row),
                        -1 if stored is None else int(stored[position]),
                    )
                )
            yield BatchPlan(hearing, index, tuple(clips))


def _left_out_line(reason: str, names: Sequence[str]) -> str:
    listed = ", ".join(names[:NAMES_IN_A_SUMMARY])
    more = f" and {len(names) - NAMES_IN_A_SUMMARY:,} more" if len(names) > NAMES_IN_A_SUMMARY else ""
    return f"left out {len(names):,} clip{'s' if len(names) != 1 else ''}, {reason}: {listed}{more}"
