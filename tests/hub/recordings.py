"""Recordings whose words are known, and what hears them: tones that stand for words, and a model trained on noises.

A recording of tone words has no pause to cut at, unless it is asked for, and each of its words can be told from the
waveform alone: `ToneRecogniser` cuts, merges and retries as the real one does, and only its ears are simple.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tests.tiny_models import CLIPS, SAMPLING_RATE, examples, noise, overfit, tiny_model
from tiny_audio.hub.asr_alignment import TimedWord
from tiny_audio.hub.asr_longform import Recogniser
from tiny_audio.hub.asr_merging import Piece
from tiny_audio.hub.asr_windows import Window

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FRAME_SAMPLES = SAMPLING_RATE // 100
LEAST_FRAMES = 5  # of a word to be heard; a shorter rest of one at the edge of a window is lost


@functools.cache
def trained_model() -> tuple[Any, Any]:
    """A model with an alignment head that writes the four `CLIPS` when it hears their noises, and its processor."""
    model, processor = tiny_model()
    batch = processor.collate(examples(processor))
    overfit(model, batch)
    return model.eval().requires_grad_(False), processor


def known_clips() -> tuple[list[np.ndarray], list[str]]:
    """The waveforms that `trained_model` knows, and their texts."""
    return [noise(seconds, seed) for seed, (seconds, _) in enumerate(CLIPS)], [text for _, text in CLIPS]


def hertz(word: str) -> int:
    return 400 + 400 * WORDS.index(word)


def tone_words(words: Sequence[str], seconds: float = 0.32, gap: float = 0.07, seed: int = 0) -> np.ndarray:
    """Each word as a tone of its own for about `seconds`, with about `gap` between: float32 (S,)."""
    generator = np.random.default_rng(seed)
    parts: list[np.ndarray] = [np.zeros(round(0.05 * SAMPLING_RATE))]
    for word in words:
        length = round(seconds * generator.uniform(0.7, 1.3) * SAMPLING_RATE)
        parts.append(0.3 * np.sin(2 * np.pi * hertz(word) * np.arange(length) / SAMPLING_RATE))
        parts.append(np.zeros(round(gap * generator.uniform(0.7, 1.3) * SAMPLING_RATE)))
    sound = np.concatenate(parts)
    return (sound + 1e-4 * generator.standard_normal(len(sound))).astype(np.float32)


def hear_tones(waveform: np.ndarray) -> list[TimedWord]:
    """The tone words of a waveform (S,), in seconds from its beginning."""
    frames = waveform[: len(waveform) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    loud = np.concatenate([[False], np.sqrt(np.mean(frames**2, axis=1)) > 0.1, [False]])
    edges = np.flatnonzero(np.diff(loud.astype(int)))
    found = []
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if last - first < LEAST_FRAMES:
            continue
        spectrum = np.abs(np.fft.rfft(frames[first:last], axis=1)).sum(axis=0)
        pitch = spectrum.argmax() * SAMPLING_RATE / FRAME_SAMPLES
        word = min(WORDS, key=lambda name: abs(hertz(name) - pitch))
        found.append(TimedWord(word, first / 100, last / 100, 0.9))
    return found


class ToneRecogniser(Recogniser):
    """Hears tone words. `fails` says which batches of windows raise, and `batches` remembers what was tried."""

    def __init__(
        self,
        *args: Any,
        fails: Callable[[Sequence[Window]], Exception | None] = lambda _: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.fails = fails
        self.batches: list[list[Window]] = []

    def _attempt(self, windows: Sequence[Window]) -> list[Piece]:
        self.batches.append(list(windows))
        error = self.fails(windows)
        if error is not None:
            raise error
        pieces = []
        for window in windows:
            offset = window.start / SAMPLING_RATE
            words = [
                TimedWord(word.text, word.start + offset, word.end + offset, word.confidence)
                for word in hear_tones(window.waveform)
            ]
            pieces.append(Piece(window, " ".join(word.text for word in words), words, decoded=True))
        return pieces


def in_blocks(waveform: np.ndarray, num_samples: int = 8000) -> Iterator[np.ndarray]:
    for first in range(0, len(waveform), num_samples):
        yield waveform[first : first + num_samples]


def random_words(count: int, seed: int = 0) -> list[str]:
    """Words of which every third is said twice or more: text alone cannot tell them from a doubled one."""
    generator = np.random.default_rng(seed)
    words: list[str] = []
    while len(words) < count:
        words += [WORDS[generator.integers(10)]] * int(generator.choice([1, 1, 2, 3]))
    return words[:count]
