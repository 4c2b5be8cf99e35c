"""How long recordings are best cut for a model: measured on dev clips that are joined to one recording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tiny_audio.evaluate.scoring import score_texts, summarize
from tiny_audio.hub.asr_audio import SAMPLING_RATE
from tiny_audio.hub.asr_longform import Recogniser

WINDOW_SECONDS = (2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)
PAUSE_SECONDS_RANGE = (0.0, 2.0)
# A longer window is preferred where it costs no more words than this: it has more context and fewer borders.
NEGLIGIBLE_WER = 0.003
ORDER_SEED, PAUSES_SEED = 0, 1


def choose_window(
    model: Any,
    processor: Any,
    clips: Sequence[tuple[np.ndarray, str]],
    normalizer: str,
    batch_size: int,
) -> tuple[float, dict[float, float]]:
    """The longest window that reads joined clips about as well as any.

    A model that has heard short clips only loses its place in long windows, one that has heard long ones needs
    their context; the data's lengths alone do not tell.

    Args:
        clips: waveforms (S,) at 16 kHz with their transcripts.
        normalizer: for the word error rate.

    Returns:
        The window in seconds, and the word error rate of each candidate.
    """
    clips = [clips[index] for index in np.random.default_rng(ORDER_SEED).permutation(len(clips))]
    reference = " ".join(text for _, text in clips)
    total = sum(len(waveform) for waveform, _ in clips) / SAMPLING_RATE
    rates: dict[float, float] = {}
    for seconds in WINDOW_SECONDS:
        # A window that holds all of the recording twice over measures nothing.
        if seconds > processor.max_seconds or (rates and seconds > total / 2):
            continue
        recogniser = Recogniser(model, processor, window_seconds=seconds, batch_size=batch_size)
        (result,) = recogniser.recognise([joined(clips)])
        if isinstance(result, Exception):
            raise result
        rates[seconds] = summarize(score_texts([reference], [result.text], normalizer)).wer
    best = min(rates.values())
    return max(seconds for seconds, rate in rates.items() if rate <= best + NEGLIGIBLE_WER), rates


def joined(clips: Sequence[tuple[np.ndarray, str]]) -> Iterator[np.ndarray]:
    """The clips one after another with pauses of 0 to 2 s, as blocks of audio."""
    generator = np.random.default_rng(PAUSES_SEED)
    for waveform, _ in clips:
        yield waveform
        yield np.zeros(int(generator.uniform(*PAUSE_SECONDS_RANGE) * SAMPLING_RATE), np.float32)
