"""Recognition of recordings of any length: windows in, words merged by their times out, nothing dropped in silence.

Legend: B batch of windows, F encoder frames, S samples at 16 kHz.

A recording is read block by block and cut into windows (`asr_windows`). Windows of several recordings share
batches, longest first; what is written in them is put together by `asr_merging`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch

from .asr_alignment import align_words
from .asr_audio import SAMPLING_RATE, Damage, Reading
from .asr_generation import TokenScores, word_scores
from .asr_guard import has_speech
from .asr_merging import Piece, Problem, Recognition, merge, separate
from .asr_windows import Window, cut_windows, split_window

logger = logging.getLogger(__name__)

Blocks = Iterable[np.ndarray]

# Windows wait until there are so many batches of them, so that each batch holds windows of about one length.
BATCHES_COLLECTED = 4
# A window that fails is halved down to this length before it is given up.
SHORTEST_RETRY_SECONDS = 2.0
# A model that fails on its first windows fails on all: its error is raised instead of being reported for each.
FAILURES_TO_GIVE_UP = 3


class Recogniser:
    """A model and its processor as a recogniser of recordings.

    Args:
        model, processor: of a checkpoint; the model is in eval mode.
        window_seconds: the longest window; None for what the model has been trained on.
        overlap_seconds: before and after the border of two windows where no silence was found to cut at.
        batch_size: windows in one pass.
        word_times: whether every segment gets its words with times. Needs an alignment head.
        guard: whether windows without speech are kept from the decoder (`asr_guard`). Needs an alignment head.
        generate: options of `generate` (num_beams, temperature, max_new_tokens for each window ...).

    Raises:
        ValueError: windows longer than the model takes, or times of a model without an alignment head.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        window_seconds: float | None = None,
        overlap_seconds: tuple[float, float] = (5.0, 5.0),
        batch_size: int = 8,
        word_times: bool = False,
        guard: bool = True,
        generate: dict[str, Any] | None = None,
    ):
        if window_seconds is not None and not 0 < window_seconds <= processor.max_seconds:
            raise ValueError(
                f"windows must be longer than 0 s and at most {processor.max_seconds:g} s, got {window_seconds:g} s"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if min(overlap_seconds) < 0:
            raise ValueError(f"overlaps must not be negative, got {overlap_seconds}")
        self.model, self.processor = model, processor
        self.has_times = model.ctc_head is not None
        if word_times and not self.has_times:
            raise ValueError(
                "this checkpoint has no alignment head (ctc_vocabulary is null), so its words have no times; "
                "train with ctc.weight > 0 to have them"
            )
        self.window_seconds = window_seconds or processor.window_seconds
        self.overlap_seconds = overlap_seconds
        self.batch_size = batch_size
        self.word_times = word_times
        self.guard = guard and self.has_times
        self.generate = dict(generate or {})
        num_beams = self.generate.get("num_beams")
        if num_beams is not None and num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, got {num_beams}")
        if self.generate.get("num_return_sequences", 1) != 1:
            raise ValueError("num_return_sequences must be 1: a recording has one transcript")
        self._succeeded, self._failures = False, 0

    # Whole recordings --------------------------------------------------------------------------------------------

    def recognise(
        self, recordings: Iterable[Blocks], progress: Callable[[float], None] | None = None
    ) -> Iterator[Recognition | Exception]:
        """Recognises recordings, given as blocks of 16 kHz float32 audio, in their order.

        A recording that cannot be read, or of which nothing could be recognised, gives its exception
        instead: one bad file does not cost the others. `progress` is called with seconds of audio done.
        """
        waiting: list[tuple[int, Window]] = []  # (recording, window) not yet recognised
        pieces: dict[int, dict[int, list[Piece]]] = {}  # recording to start of the core to pieces
        readings: dict[int, Reading] = {}
        ended: dict[int, Exception | None] = {}  # recordings that are read to their end, or to an error
        unfinished: dict[int, int] = {}  # windows under way
        delivered = 0
        for number, blocks in enumerate(recordings):
            pieces[number], unfinished[number] = {}, 0
            readings[number] = Reading(blocks)
            windows = self.windows(readings[number])
            while True:
                try:  # reading alone: what the model raises is not the recording's fault
                    window = next(windows, None)
                except (OSError, ValueError) as error:  # AudioError is a ValueError
                    ended[number] = error
                    break
                if window is None:
                    ended[number] = None
                    break
                waiting.append((number, window))
                unfinished[number] += 1
                if len(waiting) >= self.batch_size * BATCHES_COLLECTED:
                    self._work_off(waiting, pieces, unfinished, progress)
            while delivered in ended and not unfinished[delivered]:
                yield self.result(pieces.pop(delivered), ended.pop(delivered), readings.pop(delivered).damage)
                delivered += 1
        self._work_off(waiting, pieces, unfinished, progress)
        while delivered in ended:
            yield self.result(pieces.pop(delivered), ended.pop(delivered), readings.pop(delivered).damage)
            delivered += 1

    def windows(self, blocks: Blocks) -> Iterator[Window]:
        for window in cut_windows(blocks, self.window_seconds, self.overlap_seconds, self.has_times):
            if window.forced_end and not self.has_times:
                logger.warning(
                    "no silence near %.1f s to cut at, and this checkpoint has no alignment head: a word may be split",
                    window.core_end / SAMPLING_RATE,
                )
            yield window

    def prepare(self, window: Window) -> Window:
        """The window with its features, which another thread can make while the model is busy."""
        if not len(window.waveform):
            return window
        return replace(window, example=self.processor.encode(window.waveform))

    def _work_off(
        self,
        waiting: list[tuple[int, Window]],
        pieces: dict[int, dict[int, list[Piece]]],
        unfinished: dict[int, int],
        progress: Callable[[float], None] | None,
    ) -> None:
        """Recognises all that waits, in batches of windows of about one length."""
        waiting.sort(key=lambda item: len(item[1].waveform), reverse=True)
        for first in range(0, len(waiting), self.batch_size):
            batch = waiting[first : first + self.batch_size]
            results = self.recognise_windows([window for _, window in batch])
            for (number, window), result in zip(batch, results, strict=True):
                # Of hours of audio no more is held than what waits for its turn.
                pieces[number][window.core_start] = [
                    replace(piece, window=piece.window.without_audio()) for piece in result
                ]
                unfinished[number] -= 1
                if progress is not None:
                    progress((window.core_end - window.core_start) / SAMPLING_RATE)
        waiting.clear()

    def result(
        self, pieces: dict[int, list[Piece]], error: Exception | None, damage: Damage | None = None
    ) -> Recognition | Exception:
        """Of one recording, from the pieces of its windows by the start of their cores.

        `error` is that of reading it, `damage` what is missing at its end.
        """
        if error is not None:
            return error
        ordered = [piece for start in sorted(pieces) for piece in pieces[start]]
        failures = [piece.failure for piece in ordered if piece.failure is not None]
        if failures and not any(piece.decoded for piece in ordered):  # nothing of what was said
            return failures[0]
        recognition = merge(ordered)
        if damage is not None:
            start, end = damage.seconds, max(damage.seconds, damage.declared_seconds or 0.0)
            recognition.problems.append(Problem(start, end, f"the audio ends too early ({damage.reason})"))
        return recognition

    # Windows -----------------------------------------------------------------------------------------------------

    def recognise_windows(self, windows: list[Window]) -> list[list[Piece]]:
        """The pieces of each window: one, or several narrower ones where the whole has failed."""
        if not all(len(window.waveform) for window in windows):  # digital silence needs no model
            heard = iter(self.recognise_windows([window for window in windows if len(window.waveform)]))
            return [next(heard) if len(window.waveform) else [Piece(window)] for window in windows]
        if not windows:
            return []
        found = self._try(windows)
        if not isinstance(found, Exception):
            return [[piece] for piece in found]
        if len(windows) > 1:
            middle = len(windows) // 2
            return self.recognise_windows(windows[:middle]) + self.recognise_windows(windows[middle:])
        pieces = self._narrower(windows[0], found)
        if all(piece.failure is not None for piece in pieces):
            self._failures += 1
            if not self._succeeded and self._failures >= FAILURES_TO_GIVE_UP:
                raise found
        return [pieces]

    def _narrower(self, window: Window, failure: Exception) -> list[Piece]:
        """The pieces of a window that has failed as a whole: of its halves, and of theirs where those fail, too."""
        if len(window.waveform) < 2 * SHORTEST_RETRY_SECONDS * SAMPLING_RATE:
            logger.warning("%.1f s could not be recognised: %s", window.start / SAMPLING_RATE, failure)
            return [Piece(window, failure=failure)]
        logger.warning("a window of %.1f s is tried in two halves: %s", _seconds(window), failure)
        pieces: list[Piece] = []
        for half in split_window(window):
            found = self._try([half])
            pieces += self._narrower(half, found) if isinstance(found, Exception) else found
        return pieces

    def _try(self, windows: Sequence[Window]) -> list[Piece] | Exception:
        """The pieces of a batch of windows in one pass, or what it raised."""
        try:
            pieces = self._attempt(windows)
            self._succeeded |= any(piece.decoded for piece in pieces)
            return pieces
        except Exception as error:
            failure = error
        # Behind the `except`, and without the frames of the failed pass: they hold its tensors, and narrower windows
        # would run out of the same memory again.
        traceback.clear_frames(failure.__traceback__)
        torch.cuda.empty_cache()  # nothing without a GPU
        return failure

    @torch.inference_mode()
    def _attempt(self, windows: Sequence[Window]) -> list[Piece]:
        """One pass over a batch of windows."""
        inputs, audio = self._encode(windows)
        log_probabilities = self.model.alignment(audio)  # (B, F, V)
        pieces = [Piece(window) for window in windows]
        rows = torch.arange(len(windows), device=audio.frame_lengths.device)
        if self.guard:
            rows = rows[has_speech(log_probabilities, audio.frame_lengths)]
        if len(rows) == 0:
            return pieces
        if len(rows) < len(windows):
            inputs = {name: tensor[rows] for name, tensor in inputs.items()}
            audio = audio.select(rows)
        scores = None if self._searches() else TokenScores()
        options = self.generate if scores is None else {"logits_processor": scores.as_list(), **self.generate}
        ids = self.model.generate(
            **inputs, audio_features=audio, tokenizer=self.processor.tokenizer, **options
        )
        ids = getattr(ids, "sequences", ids)  # (B, T)
        texts = self.processor.batch_decode(ids)
        for row, text in zip(rows.tolist(), texts, strict=True):
            pieces[row].text, pieces[row].decoded = text, True
        timed = [i for i, row in enumerate(rows.tolist()) if self._needs_times(windows[row])]
        if timed:
            written = None
            if scores is not None and "logits_processor" not in self.generate:
                chances = scores.finish(ids).tolist()
                tokenizer, lists = self.processor.tokenizer, self._without_end(ids.tolist())
                written = [word_scores(tokenizer, lists[i], chances[i][: len(lists[i])]) for i in timed]
            chosen = rows[timed]
            words = align_words(
                log_probabilities[chosen],
                audio.frame_lengths[timed],
                [texts[i] for i in timed],
                self.model.config.ctc_vocabulary,
                self.model.config.frame_seconds,
                waveforms=[windows[row].waveform for row in chosen.tolist()],
                word_log_probabilities=written,
            )
            logs_of_words: Sequence[Sequence[float | None]]
            logs_of_words = written or [[None] * len(found) for found in words]
            for row, found, logs in zip(chosen.tolist(), words, logs_of_words, strict=True):
                offset = windows[row].start / SAMPLING_RATE
                pieces[row].words = [
                    replace(word, start=word.start + offset, end=word.end + offset, log_probability=log)
                    for word, log in zip(found, logs, strict=True)
                ]
        return pieces

    def _encode(self, windows: Sequence[Window]) -> tuple[dict[str, Any], Any]:
        """Prompts and encoded audio of a batch of windows."""
        examples = [window.example or self.processor.encode(window.waveform) for window in windows]
        batch = self.processor.collate(examples)
        batch = batch.to(self.model.device)
        features = batch.pop("input_features").to(self.model.dtype)
        audio = self.model.get_audio_features(features, batch.pop("input_features_mask"))
        return dict(batch), audio

    def _needs_times(self, window: Window) -> bool:
        return self.has_times and (self.word_times or window.forced_start or window.forced_end)

    def _without_end(self, rows: list[list[int]]) -> list[list[int]]:
        """Token ids up to the one that ends the text: a clip that is done waits for its batch with padding."""
        settings = self.generate.get("generation_config") or self.model.generation_config
        ends = settings.eos_token_id
        ends = {self.processor.pad_token_id, *(ends if isinstance(ends, list) else [ends])}
        return [list(takewhile(lambda token: token not in ends, row)) for row in rows]

    def _searches(self) -> bool:
        """Whether several beams are kept, whose tokens' scores cannot be followed."""
        return (self.model.setting(self.generate, "num_beams") or 1) > 1

    # Streaming ---------------------------------------------------------------------------------------------------

    def stream(self, blocks: Blocks) -> Iterator[str]:
        """Pieces of the text as they are written; joined they are the text of `recognise`.

        Windows that had to be cut where somebody speaks are held until they are merged with the next one. An
        exception reaches the caller; closing the iterator early stops the work.
        """
        text = TextStream(self)
        for window in self.windows(blocks):
            yield from text.write(window)

    def _stream_window(self, window: Window) -> Iterator[str]:
        if not len(window.waveform):
            return
        if self._searches():
            yield from filter(None, [self._attempt([window])[0].text])
            return
        with torch.inference_mode():
            inputs, audio = self._encode([window])
        yield from self.model.generate_stream(
            self.processor.tokenizer, audio_features=audio, guard=self.guard, **inputs, **self.generate
        )


class TextStream:
    """The text of one recording in pieces, from its windows in their order; joined they are that of `recognise`."""

    def __init__(self, recogniser: Recogniser):
        self.recogniser = recogniser
        self.held: Piece | None = None  # whose end waits for the window behind it
        self.begun = False

    def write(self, window: Window) -> Generator[str, None, None]:
        """The text of the next window, as it is written if nothing has to be merged."""
        told = False
        if not (window.forced_start or window.forced_end):
            try:
                for piece in self._spaced(self.recogniser._stream_window(window)):
                    told = True
                    yield piece
                return
            except Exception as error:
                if told:  # nothing can be taken back
                    raise
                logger.warning("a window of %.1f s could not be streamed: %s", _seconds(window), error)
        yield from self.add(window, self.recogniser.recognise_windows([window])[0])

    def add(self, window: Window, pieces: Iterable[Piece]) -> Generator[str, None, None]:
        """The text of the next window, which was recognised in a batch: what is sure of it, and of what was held."""
        for piece in pieces:
            if piece.failure is not None:
                raise piece.failure
            if not piece.text:
                continue  # and what is held still waits: the window behind a pause may overlap it
            current = piece
            if self.held is not None:
                self.held, current = separate(self.held, piece)
                yield from self._spaced(filter(None, [self.held.text]))
            self.held = current
        if self.held is not None and not window.forced_end:
            yield from self._spaced(filter(None, [self.held.text]))
            self.held = None

    def _spaced(self, pieces: Iterable[str]) -> Iterator[str]:
        blank = " " if self.begun else ""
        for piece in pieces:
            yield blank + piece
            blank, self.begun = "", True


def transcribe_waveforms(
    model: Any, processor: Any, waveforms: Sequence[np.ndarray], guard: bool = True, **generate: Any
) -> list[str]:
    """16 kHz float32 waveforms (S,), of any length, to texts. Raises what recognition of one of them raised."""
    recogniser = Recogniser(
        model, processor, batch_size=max(len(waveforms), 1), guard=guard, generate=generate
    )
    texts = []
    for result in recogniser.recognise([waveform] for waveform in waveforms):
        if isinstance(result, Exception):
            raise result
        texts.append(result.text)
    return texts


def _seconds(window: Window) -> float:
    return len(window.waveform) / SAMPLING_RATE
