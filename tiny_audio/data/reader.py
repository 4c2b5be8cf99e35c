"""What a worker does: a finished plan in, a batch out.

It holds no state that changes, so any process may make any batch, in any order, any number of times.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tiny_audio.data.augment import (
    FEATURE_STREAM,
    NON_SPEECH_STREAM,
    WAVEFORM_STREAM,
    Augmentation,
    augment_features,
    augment_waveform,
    clip_generator,
)
from tiny_audio.data.features import FrameStore
from tiny_audio.data.non_speech import random_non_speech
from tiny_audio.data.rows import find_row, find_utterance, row_starts
from tiny_audio.data.source import Source
from tiny_audio.data.splice import Recipe, join_pieces
from tiny_audio.data.text import clean_transcript
from tiny_audio.data.utterance import Problem, Utterance
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_audio import SAMPLING_RATE

STATED_TOLERANCE_SECONDS, STATED_TOLERANCE = 0.5, 0.1


class Processor(Protocol):
    """What the loader asks of ``TinyAudioProcessor``."""

    def features(self, waveform: np.ndarray) -> Tensor: ...

    def assemble(self, features: Tensor, text: str | None, encoded: bool = False) -> dict[str, Any]: ...

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
    stored: int = -1  # the number of its entry in the store of encoder frames


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """`hearing` seeds the augmentation: the epoch, or one of the variants that are encoded once and for all.

    `ahead` are rows that will be read soon, to be fetched where that takes time.
    """

    hearing: int
    index: int
    clips: tuple[ClipPlan, ...]
    ahead: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What comes back from a worker. `batch` is None when none of its rows could be read."""

    index: int
    batch: dict[str, Any] | None
    problems: list[Problem]
    error: str | None = None


class BatchReader(Dataset):
    """Makes batches out of plans: from audio, or from the encoder frames of a store."""

    def __init__(
        self,
        sources: Sequence[Source],
        processor: Processor,
        augmentation: Augmentation,
        seed: int,
        max_seconds: float,
        clean_text: bool,
        store: FrameStore | None,
    ) -> None:
        self._sources = sources
        self._starts = row_starts(sources)
        self._processor = processor
        self._augmentation = augmentation
        self._seed = seed
        self._max_seconds = max_seconds
        self._clean_text = clean_text
        self._store = store

    def __getitem__(self, plan: BatchPlan) -> Loaded:
        examples: list[dict[str, Any]] = []
        clips: list[ClipPlan] = []
        ids: list[str] = []
        lengths: list[int] = []
        problems: list[Problem] = []
        try:
            for clip in plan.clips:
                source, utterance = self._utterance(clip.row)
                try:
                    read = self._read_example(clip, plan.hearing, source, utterance)
                except ValueError as error:  # of the processor, on audio that is not what its row says
                    read = _problem(utterance, error)
                if isinstance(read, Problem):
                    problems.append(read)
                    continue
                example, num_samples = read
                examples.append(example)
                clips.append(clip)
                ids.append(utterance.id)
                lengths.append(num_samples)
        except UserError as error:  # as a value: a traceback of another process helps nobody
            return Loaded(plan.index, None, problems, str(error))
        self._fetch(plan.ahead)
        if not examples:
            return Loaded(plan.index, None, problems)
        batch = dict(self._processor.collate(examples))
        if self._store is not None:
            batch["encoder_frames"] = batch.pop("input_features")
        return Loaded(
            plan.index,
            {
                **batch,
                "audio_seconds": sum(lengths) / SAMPLING_RATE,
                "utterance_ids": ids,
                "clips": clips,
                "num_samples": lengths,
            },
            problems,
        )

    def _fetch(self, rows: Sequence[int]) -> None:
        for row in rows:
            source, number = find_row(self._sources, self._starts, row)
            # Reading it will meet the same error, and say so.
            with suppress(UserError, OSError, ValueError):
                source.fetch(number)

    def _read_example(
        self, clip: ClipPlan, hearing: int, source: Source, utterance: Utterance
    ) -> tuple[dict[str, Any], int] | Problem:
        """An example and the number of its samples as heard."""
        non_speech = clip_generator(self._seed, hearing, clip.key, NON_SPEECH_STREAM)
        is_speech = non_speech.random() >= self._augmentation.non_speech_probability
        text = self._text(clip, utterance) if is_speech else ""
        if self._store is not None:
            entry = self._store.entries[clip.stored]
            if not entry["num_frames"]:
                return Problem(utterance.id, "could not be read when its features were cached")
            example = self._processor.assemble(self._store.read(clip.stored), text, encoded=True)
            return example, int(entry["num_samples"])
        if is_speech:
            read = self._read_clip(clip, hearing, source, utterance)
            if isinstance(read, Problem):
                return read
            waveform = read
        else:
            waveform = random_non_speech(max(1, round(clip.seconds * SAMPLING_RATE)), non_speech)
        features = self._processor.features(waveform)
        generator = clip_generator(self._seed, hearing, clip.key, FEATURE_STREAM)
        seconds = len(waveform) / SAMPLING_RATE
        features = augment_features(features, seconds, self._augmentation, generator)
        return self._processor.assemble(features, text), len(waveform)

    def _text(self, clip: ClipPlan, utterance: Utterance) -> str:
        if clip.recipe is not None:
            return clip.recipe.text
        return clean_transcript(utterance.text) if self._clean_text else utterance.text

    def _read_clip(
        self, clip: ClipPlan, hearing: int, source: Source, utterance: Utterance
    ) -> np.ndarray | Problem:
        generator = clip_generator(self._seed, hearing, clip.key, WAVEFORM_STREAM)
        if clip.recipe is None:
            read = self._read_row(source, utterance)
            if isinstance(read, Problem):
                return read
            waveform = read
        else:
            waveforms: list[np.ndarray] = []
            for piece in clip.recipe.pieces:
                read = self._read_row(*self._utterance(piece.row))
                if isinstance(read, Problem):
                    return read
                waveforms.append(read)
            waveform = join_pieces(waveforms, clip.recipe, generator)
        speed, tempo = clip.speed, clip.tempo
        # Planned by the length that the metadata states; the audio itself may be longer.
        if len(waveform) / speed / tempo > self._max_seconds * SAMPLING_RATE:
            speed = tempo = 1.0
        return augment_waveform(waveform, self._augmentation, generator, speed, tempo)

    def _read_row(self, source: Source, utterance: Utterance) -> np.ndarray | Problem:
        try:
            waveform = source.read(utterance, self._max_seconds)
        # OSError and ValueError: what decoders and parquet readers raise for damaged data.
        except (OSError, ValueError) as error:
            return _problem(utterance, error)
        seconds = len(waveform) / SAMPLING_RATE
        if utterance.seconds is not None and differs(seconds, utterance.seconds):
            # Batches and splices are planned by what is stated, and half a recording has half of its transcript.
            return Problem(
                utterance.id, f"lasts {seconds:.2f} s, not the {utterance.seconds:.2f} s that are stated"
            )
        return waveform

    def _utterance(self, row: int) -> tuple[Source, Utterance]:
        return find_utterance(self._sources, self._starts, row)


def _problem(utterance: Utterance, error: Exception) -> Problem:
    """On one line: reports and `unusable.txt` have one for each."""
    return Problem(utterance.id, " ".join(str(error).split()))


def differs(seconds: float, stated: float) -> bool:
    """Whether a clip is longer or shorter than stated, by more than rounding and codecs explain."""
    return abs(seconds - stated) > max(STATED_TOLERANCE_SECONDS, STATED_TOLERANCE * stated)


class PlannedOrder(Sampler[BatchPlan]):
    """Hands the loader the plans of the epoch that is under way."""

    def __init__(self) -> None:
        self.batches: Iterable[BatchPlan] = ()

    def __iter__(self) -> Iterator[BatchPlan]:
        return iter(self.batches)


def unchanged(loaded: Any) -> Any:
    return loaded


def start_worker(worker: int) -> None:
    """One thread each, and signals left to the main process: Ctrl-C then prints nothing from here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The trainer's own handler would keep a forked worker alive.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # `timeout` ends the whole group, but the trainer finishes its step and saves first
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
