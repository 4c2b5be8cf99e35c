"""From sources to batches: filters rows, plans epochs, lets stateless workers decode, augment and collate.

The main process decides everything (which rows, how fast, spliced from what); a worker is handed a finished
list and returns a batch. So the batches of (epoch, batch number) are the same for every number of workers,
and after every restart.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tiny_audio.data.augment import (
    FEATURE_STREAM,
    NON_SPEECH_STREAM,
    WAVEFORM_STREAM,
    Augmentation,
    augment_features,
    augment_waveform,
    clip_generator,
    draw_rates,
)
from tiny_audio.data.batching import EpochPlan, plan_epoch
from tiny_audio.data.non_speech import random_non_speech
from tiny_audio.data.source import Source, check_problems, show_progress
from tiny_audio.data.splice import Recipe, Splicer, join_pieces
from tiny_audio.data.text import clean_transcript
from tiny_audio.data.utterance import Problem, Utterance, utterance_key
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_audio import SAMPLING_RATE

NAMES_IN_A_SUMMARY = 3
BATCHES_AHEAD_OF_A_WORKER = 4


class Processor(Protocol):
    """What the loader asks of ``TinyAudioProcessor``."""

    def features(self, waveform: np.ndarray) -> Tensor: ...

    def assemble(self, features: Tensor, text: str | None) -> dict[str, Any]: ...

    def collate(self, examples: list[dict[str, Any]]) -> Mapping[str, Any]: ...

    def num_text_tokens(self, text: str) -> int: ...


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """All that a worker needs to make one example; rows are numbers within all sources together."""

    row: int
    key: int
    seconds: float  # as heard
    speed: float
    tempo: float
    recipe: Recipe | None


@dataclass(frozen=True, slots=True)
class BatchPlan:
    epoch: int
    index: int
    clips: tuple[ClipPlan, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What comes back from a worker. `batch` is None when none of its rows could be read."""

    index: int
    batch: dict[str, Any] | None
    problems: list[Problem]
    error: str | None = None


class TrainData:
    """Training batches from `sources`, the same for the same seed whatever reads them.

    Args:
        sources: see `open_sources`.
        processor: ``TinyAudioProcessor``, or anything that keeps the `Processor` protocol.
        seed: of the order and of the augmentation.
        batch_seconds: audio in a batch, padding included; a longer clip is a batch by itself.
        max_clips: most clips of a batch.
        num_workers: processes that decode and augment; 0: this one does.
        augmentation: the ``augmentation`` part of the config, or an `Augmentation`; None: none.
        min_seconds, max_seconds: shorter and longer clips are left out and reported.
        max_bad_fraction: share of rows that may be unusable (at least 3 rows) before the run stops.
        clean_text: apply `clean_transcript`.
        short_first: the first epoch goes from short clips to long ones, where alignment is easier to find.

    Attributes:
        num_clips, hours: of what is trained on in an epoch, before augmentation.
        left_out: ids of the rows left out, by reason.

    Raises:
        UserError: too many unusable rows, or none that can be trained on.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        processor: Processor,
        *,
        seed: int,
        batch_seconds: float,
        max_clips: int,
        num_workers: int = 0,
        augmentation: Mapping[str, Any] | Augmentation | None = None,
        min_seconds: float = 0.0,
        max_seconds: float = 30.0,
        max_bad_fraction: float = 0.01,
        clean_text: bool = True,
        short_first: bool = False,
    ) -> None:
        self._sources = [sources] if isinstance(sources, Source) else list(sources)
        self._processor = processor
        self._seed = seed
        self._batch_seconds = batch_seconds
        self._max_clips = max_clips
        self._num_workers = num_workers
        self._augmentation = Augmentation.from_config(augmentation)
        self._max_seconds = max_seconds
        self._max_bad_fraction = max_bad_fraction
        self._clean_text = clean_text
        self._short_first = short_first
        self._name = ", ".join(source.name for source in self._sources)
        self._problems = {str(problem): problem for source in self._sources for problem in source.problems}
        self.left_out: dict[str, list[str]] = defaultdict(list)
        self.batches_lost = 0
        self._scan(min_seconds)
        self._planned: tuple[int, EpochPlan, np.ndarray, np.ndarray, dict[int, Recipe]] | None = None
        self._order = _PlannedOrder()
        self._loader = self._make_loader()
        if num_workers == 0 or sys.platform == "linux":  # elsewhere workers share nothing with this process
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
                "worker_init_fn": _start_worker,
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
        )
        return DataLoader(
            reader,
            batch_size=None,
            sampler=self._order,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
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
    def problems(self) -> list[Problem]:
        """Rows found unusable so far, by the scan or by reading them."""
        return list(self._problems.values())

    def num_batches(self, epoch: int) -> int:
        return len(self._plan(epoch)[1])

    def padding_share(self, epoch: int) -> float:
        """The share of the epoch's padded seconds that is padding."""
        _, plan, _, lengths, _ = self._plan(epoch)
        return plan.padding_share(lengths)

    def summary(self) -> list[str]:
        """Lines for people: what is trained on, and what was left out and why."""
        content = f"{self.num_clips:,} clips, {self.hours:.2f} hours of {self._name}"
        batches = f"{self.num_batches(0):,} batches an epoch, {self.padding_share(0):.1%} of them padding"
        lines = [f"training data: {content}; {batches}"]
        lines += [_left_out_line(reason, names) for reason, names in sorted(self.left_out.items())]
        if self._problems:
            lines.append(_left_out_line("unusable", [str(problem) for problem in self.problems]))
        return lines

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[dict[str, Any]]:
        """The batches of `epoch` from number `start_batch` on.

        Each is ``processor.collate(...)`` with `audio_seconds` (float, as heard), `utterance_ids` (list of
        str), `epoch` and `batch_index`: after a batch, the place to go on from is (epoch, batch_index + 1).

        Raises:
            UserError: more rows turned out unreadable than `max_bad_fraction` allows.
        """
        self._order.batches = self._batch_plans(epoch, start_batch)
        failure: str | None = None
        for loaded in self._loader:
            failure = loaded.error or self._note_problems(loaded.problems)
            if failure is not None:
                break
            if loaded.batch is None:
                self.batches_lost += 1
                continue
            yield {**loaded.batch, "epoch": epoch, "batch_index": loaded.index}
        if failure is not None:
            # Left to the garbage collector, workers take 10 s to end.
            self.close()
            raise UserError(failure)

    def _note_problems(self, problems: Sequence[Problem]) -> str | None:
        """Keeps `problems`; returns the report of too many."""
        if not problems:
            return None
        self._problems.update((str(problem), problem) for problem in problems)
        try:
            self._check_problems()
        except UserError as error:
            return str(error)
        return None

    # What is trained on -------------------------------------------------------------------------------------

    def _scan(self, min_seconds: float) -> None:
        """Looks at the metadata of every row once and keeps about 30 bytes of it."""
        starts = np.cumsum([0, *(len(source.utterances()) for source in self._sources)])
        num_rows = int(starts[-1])
        self._seconds = np.concatenate([source.seconds() for source in self._sources]).astype(np.float64)
        self._tokens = np.zeros(num_rows, np.int32)
        self._keys = np.zeros(num_rows, np.uint64)
        self._groups = _join_groups(self._sources)
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
                reason = self._reason_to_leave_out(self._seconds[row], min_seconds, utterance.text, text)
                if reason is not None:
                    self.left_out[reason].append(utterance.id)
                    continue
                keep[row] = True
                self._keys[row] = utterance_key(utterance.id)
                self._tokens[row] = self._processor.num_text_tokens(text)
                if splice:
                    speakers[row], texts[row] = utterance, text
        self._rows = np.flatnonzero(keep)
        self._num_seen = num_rows + len(self._problems)
        self._check_problems()
        if len(self._rows) == 0:
            reasons = "; ".join(
                _left_out_line(reason, names) for reason, names in sorted(self.left_out.items())
            )
            raise UserError(f"{self._name}: no clip is left to train on ({reasons})")
        self._splicer = Splicer(speakers, texts, self._max_seconds) if splice else None

    def _reason_to_leave_out(self, seconds: float, min_seconds: float, text: str, cleaned: str) -> str | None:
        if seconds > self._max_seconds:
            return f"longer than data.max_seconds={self._max_seconds:g}"
        if seconds < min_seconds:
            return f"shorter than data.min_seconds={min_seconds:g}"
        # An empty transcript says that there is no speech; one that clean-up emptied says that nobody wrote
        # it down.
        if text.strip() and not cleaned:
            return "nothing but markup in the transcript"
        return None

    def _check_problems(self) -> None:
        check_problems(self.problems, self._num_seen, self._max_bad_fraction, self._name)

    # What an epoch consists of ------------------------------------------------------------------------------

    def _plan(self, epoch: int) -> tuple[int, EpochPlan, np.ndarray, np.ndarray, dict[int, Recipe]]:
        """(epoch, plan of positions in `_rows`, their speeds and tempos, their seconds as heard, recipes)."""
        if self._planned is None or self._planned[0] != epoch:
            rows = self._rows
            seconds, tokens = self._seconds[rows], self._tokens[rows]
            recipes: dict[int, Recipe] = {}
            if self._splicer is not None:
                probability = self._augmentation.splice_probability
                recipes = self._splicer.draw(self._seed, epoch, self._keys, probability)
                for row, recipe in recipes.items():
                    position = int(np.searchsorted(rows, row))
                    seconds[position] = recipe.seconds
                    tokens[position] = self._processor.num_text_tokens(recipe.text)
            rates = np.stack(
                draw_rates(
                    self._augmentation,
                    self._seed,
                    epoch,
                    self._keys[rows],
                    seconds,
                    self._max_seconds,
                ),
                axis=1,
            )
            lengths = seconds / rates.prod(axis=1)
            plan = plan_epoch(
                lengths,
                tokens,
                seed=self._seed,
                epoch=epoch,
                batch_seconds=self._batch_seconds,
                max_clips=self._max_clips,
                groups=None if self._groups is None else self._groups[rows],
                short_first=self._short_first and epoch == 0,
            )
            self._planned = (epoch, plan, rates, lengths, recipes)
        return self._planned

    def _batch_plans(self, epoch: int, start_batch: int) -> Iterator[BatchPlan]:
        _, plan, rates, lengths, recipes = self._plan(epoch)
        for index in range(start_batch, len(plan)):
            clips = []
            for position in plan[index]:
                row = int(self._rows[position])
                speed, tempo = rates[position].tolist()
                clips.append(
                    ClipPlan(
                        row,
                        int(self._keys[row]),
                        float(lengths[position]),
                        speed,
                        tempo,
                        recipes.get(row),
                    )
                )
            yield BatchPlan(epoch, index, tuple(clips))


class BatchReader(Dataset):
    """Makes batches out of plans. Holds no state that changes, so any process may make any batch."""

    def __init__(
        self,
        sources: Sequence[Source],
        processor: Processor,
        augmentation: Augmentation,
        seed: int,
        max_seconds: float,
        clean_text: bool,
    ) -> None:
        self._sources = sources
        self._starts = np.cumsum([0, *(len(source.utterances()) for source in sources)])
        self._processor = processor
        self._augmentation = augmentation
        self._seed = seed
        self._max_seconds = max_seconds
        self._clean_text = clean_text

    def __getitem__(self, plan: BatchPlan) -> Loaded:
        examples: list[dict[str, Any]] = []
        ids: list[str] = []
        problems: list[Problem] = []
        audio_seconds = 0.0
        try:
            for clip in plan.clips:
                read = self._read_clip(clip, plan.epoch)
                if isinstance(read, Problem):
                    problems.append(read)
                    continue
                utterance_id, waveform, text = read
                features = self._processor.features(waveform)
                generator = clip_generator(self._seed, plan.epoch, clip.key, FEATURE_STREAM)
                seconds = len(waveform) / SAMPLING_RATE
                features = augment_features(features, seconds, self._augmentation, generator)
                examples.append(self._processor.assemble(features, text))
                ids.append(utterance_id)
                audio_seconds += seconds
        except UserError as error:  # as a value: a traceback of another process helps nobody
            return Loaded(plan.index, None, problems, str(error))
        if not examples:
            return Loaded(plan.index, None, problems)
        batch = dict(self._processor.collate(examples))
        return Loaded(
            plan.index,
            {**batch, "audio_seconds": audio_seconds, "utterance_ids": ids},
            problems,
        )

    def _read_clip(self, clip: ClipPlan, epoch: int) -> tuple[str, np.ndarray, str] | Problem:
        generator = clip_generator(self._seed, epoch, clip.key, WAVEFORM_STREAM)
        source, utterance = self._utterance(clip.row)
        other = clip_generator(self._seed, epoch, clip.key, NON_SPEECH_STREAM)
        if other.random() < self._augmentation.non_speech_probability:
            return utterance.id, random_non_speech(max(1, round(clip.seconds * SAMPLING_RATE)), other), ""
        if clip.recipe is None:
            read = self._read_row(source, utterance)
            if isinstance(read, Problem):
                return read
            waveform = read
            text = clean_transcript(utterance.text) if self._clean_text else utterance.text
        else:
            waveforms: list[np.ndarray] = []
            for piece in clip.recipe.pieces:
                read = self._read_row(*self._utterance(piece.row))
                if isinstance(read, Problem):
                    return read
                waveforms.append(read)
            waveform = join_pieces(waveforms, clip.recipe, generator)
            text = clip.recipe.text
        speed, tempo = clip.speed, clip.tempo
        # Planned by the length that the metadata states; the audio itself may be longer.
        if len(waveform) / speed / tempo > self._max_seconds * SAMPLING_RATE:
            speed = tempo = 1.0
        return utterance.id, augment_waveform(waveform, self._augmentation, generator, speed, tempo), text

    def _read_row(self, source: Source, utterance: Utterance) -> np.ndarray | Problem:
        try:
            return source.read(utterance, self._max_seconds)
        # OSError and ValueError: what decoders and parquet readers raise for damaged data.
        except (OSError, ValueError) as error:
            return Problem(utterance.id, " ".join(str(error).split()))

    def _utterance(self, row: int) -> tuple[Source, Utterance]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        source = self._sources[number]
        return source, source.utterances()[row - int(self._starts[number])]


class _PlannedOrder(Sampler[BatchPlan]):
    """Hands the loader the plans of the epoch that is under way."""

    def __init__(self) -> None:
        self.batches: Iterable[BatchPlan] = ()

    def __iter__(self) -> Iterator[BatchPlan]:
        return iter(self.batches)


def _unchanged(loaded: Any) -> Any:
    return loaded


def _start_worker(worker: int) -> None:
    """One thread each, and signals left to the main process: Ctrl-C then prints nothing from here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The trainer's own handler would keep a forked worker alive.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # `timeout` ends the whole group, but the trainer finishes its step and saves first
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


def _join_groups(sources: Sequence[Source]) -> np.ndarray | None:
    """The groups of all sources with numbers that do not clash; -1 for rows that may be read in any order."""
    parts = [source.groups() for source in sources]
    if all(part is None for part in parts):
        return None
    joined, first = [], 0
    for source, part in zip(sources, parts, strict=True):
        if part is None:
            joined.append(np.full(len(source.utterances()), -1, np.int64))
        else:
            joined.append(part.astype(np.int64) + first)
            first += int(part.max(initial=-1)) + 1
    return np.concatenate(joined)


def _left_out_line(reason: str, names: Sequence[str]) -> str:
    listed = ", ".join(names[:NAMES_IN_A_SUMMARY])
    more = f" and {len(names) - NAMES_IN_A_SUMMARY:,} more" if len(names) > NAMES_IN_A_SUMMARY else ""
    return f"left out {len(names):,} clip{'s' if len(names) != 1 else ''}, {reason}: {listed}{more}"
