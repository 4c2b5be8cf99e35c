"""From sources to batches: filters rows, plans epochs, lets stateless workers decode, augment and collate.

The main process decides everything (which rows, how fast, spliced from what); a worker is handed a finished
list and returns a batch. So the batches of (epoch, batch number) are the same for every number of workers,
and after every restart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from tiny_audio.data.augment import Augmentation, draw_rates
from tiny_audio.data.batching import Budget, LengthBucket, WindowPlan, dense_texts, plan_window
from tiny_audio.data.epoch import EpochPlan, Heard, Turns
from tiny_audio.data.features import FrameStore, audio_fingerprints, joined_fingerprint
from tiny_audio.data.filters import Filters
from tiny_audio.data.mapped import release
from tiny_audio.data.reader import (
    BatchPlan,
    BatchReader,
    ClipPlan,
    PlannedOrder,
    Processor,
    start_worker,
    unchanged,
)
from tiny_audio.data.rows import find_utterance, join_group_bytes, row_starts
from tiny_audio.data.scan import NAMES_KEPT, LeftOut, scan_sources
from tiny_audio.data.source import Source, check_problems
from tiny_audio.data.splice import Recipe, Splicer
from tiny_audio.data.text import clean_transcript
from tiny_audio.data.utterance import Problem, Utterance, utterance_key
from tiny_audio.data.windows import cut_blocks
from tiny_audio.errors import UserError

BATCHES_AHEAD_OF_A_WORKER = 4
REPEAT_STRIDE = np.uint64(0x9E3779B97F4A7C15)  # odd: the keys of a clip's repetitions all differ
WINDOWS_OF_LENGTHS = 16  # at most, to know how long clips are


class TrainData:
    """Training batches from `sources`, the same for the same seed whatever reads them.

    Args:
        sources: see `open_sources`.
        processor: ``TinyAudioProcessor``, or anything that keeps the `Processor` protocol.
        seed: of the order and of the augmentation.
        batch_seconds: audio in a batch, padding included, or a `Budget` for each length; see `plan_window`.
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
        left_out: how many rows are left out, by reason.
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
        self.note_problem: Callable[[Problem], None] = lambda problem: None
        self._look_at_rows()
        self._planned: tuple[int, EpochPlan] | None = None
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
        return len(self._scan)

    @property
    def hours(self) -> float:
        return self._scan.seconds() / 3600

    @property
    def fingerprint(self) -> str:
        """Of what is trained on: which clips, how long, how much text. Files that come, go or change change it."""
        return self._scan.fingerprint()

    @property
    def problems(self) -> list[Problem]:
        """Rows found unusable so far, by the scan or by reading them."""
        return list(self._problems.values())

    def plan_by(self, batch_seconds: float | Sequence[Budget]) -> None:
        """Sets another `batch_seconds`, for all epochs."""
        self._batch_seconds, self._planned = batch_seconds, None

    def length_buckets(self) -> list[LengthBucket]:
        """The lengths that the first epoch has, ascending."""
        some = list(islice(self._plan(0).windows(), WINDOWS_OF_LENGTHS))
        positions, lengths, tokens = (
            np.concatenate([getattr(heard, name) for heard in some])
            for name in ("positions", "lengths", "tokens")
        )
        recipes = some[0].recipes
        buckets = []
        for longest, number in dense_texts(lengths, tokens, self._max_seconds):
            row = int(self._scan.clips["row"][positions[number]])
            text = recipes[row].text if row in recipes else self._utterance(row)[1].text
            text = clean_transcript(text) if self._clean_text else text
            buckets.append(LengthBucket(longest, text, float(lengths[number])))
        return buckets

    def num_batches(self, epoch: int) -> int:
        return len(self._plan(epoch))

    def padding_share(self, epoch: int) -> float:
        """The share of the epoch's padded seconds that is padding."""
        return self._plan(epoch).padding_share

    def summary(self) -> list[str]:
        """Lines for people: what is trained on, and what was left out and why."""
        content = f"{self.num_clips:,} clips, {self.hours:.2f} hours of {self._name}"
        batches = f"{self.num_batches(0):,} batches an epoch, {self.padding_share(0):.1%} of them padding"
        lines = [f"training data: {content}; {batches}"]
        if len(self._sources) > 1 or self._weights != [1.0]:
            lines += self._shares()
        lines += [_left_out_line(reason, some) for reason, some in sorted(self.left_out.items())]
        if self._problems:
            names = [str(problem) for problem in self.problems[:NAMES_KEPT]]
            lines.append(_left_out_line("unusable", LeftOut(len(self._problems), names)))
        return lines

    def _shares(self) -> Iterator[str]:
        """A line for each source: what it holds, and how much of it is heard."""
        bounds = self._scan.bounds.tolist()
        for source, weight, first, end in zip(self._sources, self._weights, bounds, bounds[1:], strict=False):
            hours = self._scan.seconds(first, end) / 3600
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
        seconds = sum(
            float(heard.lengths[lacking[heard.positions]].sum()) for heard in self._plan(hearing).windows()
        )
        return self._known_by(hearing)[0][lacking], seconds

    def batches_to_encode(self, hearing: int, store: FrameStore) -> Iterator[dict[str, Any]]:
        """Batches of those clips, with `identities` and `audio`, the fingerprints of their files (lists of int).

        Raises:
            UserError: as `batches` does.
        """
        lacking = self._lacks_frames(hearing, store)
        identities, audio = self._known_by(hearing)
        plans = (
            replace(plan, clips=tuple(clip for clip in plan.clips if lacking[self._scan.position(clip.row)]))
            for plan in self._batch_plans(hearing, 0)
        )
        for batch in self._load(plan for plan in plans if plan.clips):
            positions = [self._scan.position(clip.row) for clip in batch["clips"]]
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

    def _look_at_rows(self) -> None:
        """Looks at the metadata of every row once; 32 bytes of each are kept, in a file where they are many."""
        self._starts = row_starts(self._sources)
        splice = self._augmentation.splice_probability > 0
        self._scan = scan_sources(
            self._sources,
            self._processor,
            self._filters,
            self._clean_text,
            self._variants is not None,
            splice,
        )
        self.left_out = self._scan.left_out
        self._fingerprints: np.ndarray | None = None
        self._num_seen = int(self._starts[-1]) + len(self._problems)
        self._check_problems()
        if len(self._scan) == 0:
            reasons = "; ".join(
                _left_out_line(reason, some) for reason, some in sorted(self.left_out.items())
            )
            raise UserError(f"{self._name}: no clip is left to train on ({reasons})")
        clips, bounds = self._scan.clips, self._scan.bounds
        self._blocks = cut_blocks(clips["group"], join_group_bytes(self._sources), bounds, self._weights)
        release(clips)
        self._splicer = None
        if splice:
            self._splicer = Splicer(self._scan.texts, self._max_seconds)
            self._scan.texts = {}
            self._keys = np.zeros(int(self._starts[-1]), np.uint64)  # by row, as recipes name them
            self._keys[clips["row"]] = clips["key"]

    def _check_problems(self) -> None:
        check_problems(self.problems, self._num_seen, self._max_bad_fraction, self._name)

    # What is stored of it -----------------------------------------------------------------------------------

    def _known_by(self, hearing: int) -> tuple[np.ndarray, np.ndarray]:
        """What each clip of `_rows` is known by in a store, as it sounds in `hearing`, and fingerprints of its files.

        Both are uint64 (clips,); a fingerprint is 0 where a file is gone.
        """
        if self._fingerprints is None:
            utterances = (self._utterance(int(row))[1] for row in self._scan.clips["row"])
            self._fingerprints = audio_fingerprints(utterances, np.array(self._scan.clips["identity"]))
        known, audio = self._scan.clips["identity"], self._fingerprints.copy()
        identities = np.array(known)
        for row, recipe in self._recipes(hearing).items():
            places = [self._scan.position(piece.row) for piece in recipe.pieces]
            pieces = [
                (int(known[place]), piece.start, piece.end)
                for place, piece in zip(places, recipe.pieces, strict=True)
            ]
            files = [int(self._fingerprints[place]) for place in places]
            position = self._scan.position(row)
            name = f"{identities[position]} {pieces} {recipe.gaps} {recipe.text}"
            identities[position], audio[position] = utterance_key(name), joined_fingerprint(files)
        return identities, audio

    def _lacks_frames(self, hearing: int, store: FrameStore) -> np.ndarray:
        numbers = store.find(hearing, *self._known_by(hearing))
        return (numbers < 0) | (store.entries["num_frames"][numbers] == 0 if len(store.entries) else True)

    def _find_stored(self, store: FrameStore, hearing: int) -> np.ndarray:
        """int64 (clips,): the entries of all clips. Raises UserError where one has none, or of other audio."""
        numbers = store.find(hearing, *self._known_by(hearing))
        missing = np.flatnonzero(numbers < 0)
        if len(missing):
            example = self._utterance(int(self._scan.clips["row"][missing[0]]))[1].id
            raise UserError(
                f"data.features_cache: {len(missing):,} of {len(numbers):,} clips, such as {example}, have no frames "
                f"there{f' of variant {hearing}' if hearing else ''}, or their audio has changed since: run tiny-audio "
                "cache-features with the same overrides as tiny-audio train"
            )
        return numbers

    def _utterance(self, row: int) -> tuple[Source, Utterance]:
        return find_utterance(self._sources, self._starts, row)

    # What an epoch consists of ------------------------------------------------------------------------------

    def _hearing(self, epoch: int) -> int:
        return epoch if self._variants is None else epoch % self._variants

    def _recipes(self, hearing: int) -> dict[int, Recipe]:
        if self._splicer is None:
            return {}
        return self._splicer.draw(self._seed, hearing, self._keys, self._augmentation.splice_probability)

    def _plan(self, epoch: int) -> EpochPlan:
        if self._planned is None or self._planned[0] != epoch:
            self._planned = None  # there is room for one
            windows = self._blocks.windows(self._seed, epoch)
            turns = Turns(self._scan.bounds, self._weights, self._seed, epoch)
            hearing = self._hearing(epoch)
            recipes = self._recipes(hearing)

            def plan(number: int) -> tuple[Heard, WindowPlan]:
                heard = self._hear(self._blocks.positions(windows[number]), turns, hearing, recipes)
                return heard, plan_window(
                    heard.lengths,
                    heard.tokens,
                    seed=[self._seed, epoch, number] if len(windows) > 1 else [self._seed, epoch],
                    batch_seconds=self._batch_seconds,
                    max_clips=self._max_clips,
                    short_first=self._short_first and epoch == 0,
                )

            self._planned = (epoch, EpochPlan(len(windows), plan))
        return self._planned[1]

    def _rows_ahead(self, place: tuple[int, int, int], windows: list[np.ndarray]) -> tuple[int, ...]:
        """A row of each group of the next window that is to be fetched beside the batch at a `place` of its epoch.

        Each batch of a window has its share, so that nothing has to be waited for when the next one begins.
        """
        number, batch, count = place
        blocks = windows[number + 1]
        share = blocks[batch * len(blocks) // count : (batch + 1) * len(blocks) // count]
        rows = self._scan.clips["row"]
        return tuple(int(rows[self._blocks.bounds[block]]) for block in share)

    def _hear(self, positions: np.ndarray, turns: Turns, hearing: int, recipes: dict[int, Recipe]) -> Heard:
        """How the clips of a window sound."""
        positions, repeats = turns.heard(positions)
        clips = self._scan.clips[positions]
        release(self._scan.clips)
        seconds, tokens, keys = (
            clips["seconds"].astype(np.float64),
            clips["tokens"].astype(np.int64),
            clips["key"],
        )
        if recipes:
            for number in np.flatnonzero(np.isin(clips["row"], list(recipes))).tolist():
                recipe = recipes[int(clips["row"][number])]
                seconds[number] = recipe.seconds
                tokens[number] = self._processor.num_text_tokens(recipe.text)
        if self._variants is None:  # a clip that is heard again sounds otherwise
            keys = keys + repeats.astype(np.uint64) * REPEAT_STRIDE
        rates = np.stack(
            draw_rates(self._augmentation, self._seed, hearing, keys, seconds, self._max_seconds), axis=1
        )
        return Heard(
            clips["row"].astype(np.int64),
            positions,
            keys,
            rates,
            seconds / rates.prod(axis=1),
            tokens,
            recipes,
        )

    def _batch_plans(self, epoch: int, start_batch: int, every: int = 1) -> Iterator[BatchPlan]:
        plan, hearing = self._plan(epoch), self._hearing(epoch)
        stored = self._found[hearing] if self._store is not None else None
        windows = self._blocks.windows(self._seed, epoch)
        looks_ahead = len(windows) > 1 and self._blocks.in_groups and self._store is None
        if looks_ahead:
            windows.append(self._blocks.windows(self._seed, epoch + 1)[0])
        for index in range(start_batch, len(plan), every):
            heard, numbers = plan.batch(index)
            clips = []
            for number in numbers:
                row = int(heard.rows[number])
                speed, tempo = heard.rates[number].tolist()
                clips.append(
                    ClipPlan(
                        row,
                        int(heard.keys[number]),
                        float(heard.lengths[number]),
                        speed,
                        tempo,
                        heard.recipes.get(row),
                        -1 if stored is None else int(stored[heard.positions[number]]),
                    )
                )
            ahead = self._rows_ahead(plan.place(index), windows) if looks_ahead else ()
            yield BatchPlan(hearing, index, tuple(clips), ahead)


def _left_out_line(reason: str, some: LeftOut) -> str:
    listed = ", ".join(some.names)
    more = f" and {some.count - len(some.names):,} more" if some.count > len(some.names) else ""
    return f"left out {some.count:,} clip{'s' if some.count != 1 else ''}, {reason}: {listed}{more}"
