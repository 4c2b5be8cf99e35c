"""Long audio to windows that one pass of the model takes, cut where it is silent.

Legend: S samples at 16 kHz, N level frames (10 ms each).

Every sample of a recording lies in the core of exactly one window. At a silence two windows meet; where no silence
is found they overlap, the border of their cores lies inside the overlap, and the merging decides by the words'
times which of the two a word belongs to. Nothing is left out for being quiet (what is not speech is for the model's
alignment head to say, which knows more than an energy does), but for digital silence at the ends of a window: a
muted line carries no speech, and its zeros would upset features that are normalised over the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .asr_audio import SAMPLING_RATE

FRAME_SAMPLES = SAMPLING_RATE // 100  # 10 ms
SILENCE_DB = -100.0  # the level of digital silence

# Below this nothing was recorded: the noise of 16-bit samples lies at -98 dB, of a quiet room's microphone above -70.
DIGITAL_SILENCE_DB = -85.0
ANY_SILENCE_DB = -70.0  # a silence in any recording, however quiet the rest of the window is
SILENCE_KEPT_SECONDS = 0.15  # at either end

# A stretch counts as silent when its loudest frame lies this far below the loud parts of the window, or in the lowest
# quarter of the window's range where noise leaves no such depth.
SILENCE_DEPTH_DB = 30.0
SILENCE_SHARE = 0.25
# Longer pauses are looked for first: between sentences rather than between words. Closures of stop consonants last
# up to about 0.15 s and are hardly ever taken for a pause.
PAUSE_SECONDS = (0.5, 0.25, 0.15)
# A window is not ended in its first third, which would only multiply the windows.
EARLIEST_CUT = 1 / 3
# Overlap on either side, as a share of the window: the core keeps half of it or more.
LARGEST_OVERLAP = 1 / 4


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of a recording for one pass.

    Attributes:
        waveform: float32 (S,), without the digital silence at its ends; empty where there is nothing else.
        start: where it begins in the recording, in samples.
        core_start, core_end: the part whose words are this window's; `core_start` is 0 for the first window of a
            recording, and `core_end` the recording's end for the last.
        forced_start, forced_end: whether no silence was found at that end of the core.
        example: what the processor made of the waveform, where that was done beforehand (`Recogniser.prepare`).
    """

    waveform: np.ndarray
    start: int
    core_start: int
    core_end: int
    forced_start: bool = False
    forced_end: bool = False
    example: dict[str, Any] | None = None

    @property
    def end(self) -> int:
        """The first sample behind the waveform."""
        return self.start + len(self.waveform)

    def without_audio(self) -> Window:
        """The same stretch without its samples: zeros of its length that take no memory."""
        return replace(self, waveform=np.broadcast_to(np.float32(0), self.waveform.shape), example=None)


def level_db(waveform: np.ndarray) -> np.ndarray:
    """Level of each 10 ms frame, dB below full scale: (S,) to (N,). A last frame that is not full is left out."""
    frames = waveform[: len(waveform) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    power = np.square(frames, dtype=np.float64).mean(axis=1)  # (N,)
    return 10 * np.log10(np.maximum(power, 10 ** (SILENCE_DB / 10)))


def find_silence(waveform: np.ndarray, earliest: int, latest: int) -> int | None:
    """The sample between `earliest` and `latest` in the middle of the longest clear pause there; None without one."""
    levels = level_db(waveform)  # (N,)
    first, last = -(-earliest // FRAME_SAMPLES), min(latest // FRAME_SAMPLES, len(levels))
    if last - first < 1:
        return None
    loud, floor = np.percentile(levels, 99), np.percentile(levels, 10)
    threshold = max(loud - SILENCE_DEPTH_DB, floor + SILENCE_SHARE * (loud - floor), ANY_SILENCE_DB)
    for seconds in PAUSE_SECONDS:
        length = round(seconds * 100)
        if len(levels) < length:
            continue
        loudest = sliding_window_view(levels, length).max(axis=1)  # of each stretch, by its first frame
        centres = np.arange(len(loudest)) + length // 2
        candidates = loudest[(centres >= first) & (centres <= last)]
        if len(candidates) and candidates.min() < threshold:
            offset = int(np.argmax(centres >= first))
            quietest = np.flatnonzero(candidates <= candidates.min() + 1.0)
            # digital silence has many equally quiet frames: the middle of the last run of them
            runs = np.split(quietest, np.flatnonzero(np.diff(quietest) > 1) + 1)
            middle = int(runs[-1][len(runs[-1]) // 2])
            return int(centres[offset + middle]) * FRAME_SAMPLES
    return None


def quietest_point(waveform: np.ndarray, earliest: int, latest: int) -> int:
    """The sample in that range around which 50 ms are quietest: where a cut that has to be made hurts least."""
    levels = level_db(waveform)
    first, last = earliest // FRAME_SAMPLES, max(earliest // FRAME_SAMPLES + 1, latest // FRAME_SAMPLES)
    smooth = np.convolve(levels, np.ones(5) / 5, mode="same")[first:last]
    return (first + int(np.argmin(smooth))) * FRAME_SAMPLES if len(smooth) else earliest


def cut_windows(
    blocks: Iterable[np.ndarray],
    window_seconds: float,
    overlap_seconds: tuple[float, float] = (5.0, 5.0),
    can_merge: bool = True,
) -> Iterator[Window]:
    """Windows of a recording, each as soon as it has been read.

    Args:
        blocks: the recording, 16 kHz float32, in parts of any length.
        window_seconds: the longest window.
        overlap_seconds: of two windows where no silence is found, before and after the border of their cores; at
            most a quarter of the window each.
        can_merge: whether the words will have times, so that overlapping windows can be merged. Without, the
            windows meet at the quietest point instead.

    Holds one window and one block at a time, whatever the length of the recording.
    """
    longest = max(round(window_seconds * SAMPLING_RATE), FRAME_SAMPLES)
    before, after = (
        min(round(seconds * SAMPLING_RATE), int(longest * LARGEST_OVERLAP)) for seconds in overlap_seconds
    )
    pending = np.zeros(0, np.float32)  # from `start` on
    start = core_start = 0
    forced = False
    for block in blocks:
        pending = np.concatenate([pending, block])
        while len(pending) > longest:
            earliest = max(int(longest * EARLIEST_CUT), core_start - start + FRAME_SAMPLES)
            head = pending[:longest]
            cut = find_silence(head, earliest, longest)
            if cut is not None:
                end, next_start, next_forced = cut, cut, False
            elif can_merge:
                end, next_start, next_forced = longest - after, longest - after - before, True
            else:
                end = next_start = quietest_point(head, max(earliest, longest * 2 // 3), longest)
                next_forced = True
            waveform = head if next_forced and can_merge else head[:end]
            yield _trimmed(waveform, start, core_start, start + end, forced, next_forced)
            core_start, start, forced = start + end, start + next_start, next_forced
            pending = pending[next_start:]
    if len(pending):
        yield _trimmed(pending, start, core_start, start + len(pending), forced, False)


def _trimmed(waveform: np.ndarray, start: int, *others: Any) -> Window:
    """The window without the digital silence at its ends, in memory of its own."""
    sounding = np.flatnonzero(level_db(waveform) > DIGITAL_SILENCE_DB)
    if not len(sounding) and len(waveform) >= FRAME_SAMPLES:
        return Window(waveform[:0].copy(), start, *others)
    kept = round(SILENCE_KEPT_SECONDS * SAMPLING_RATE)
    first = max(0, int(sounding[0]) * FRAME_SAMPLES - kept) if len(sounding) else 0
    last = (int(sounding[-1]) + 2) * FRAME_SAMPLES + kept if len(sounding) else len(waveform)
    return Window(waveform[first:last].copy(), start + first, *others)


def split_window(window: Window) -> list[Window]:
    """Two narrower windows in place of one that failed, meeting at a silence or else at the quietest point."""
    length = len(window.waveform)
    # Inside the core: beyond it the neighbour writes the words, who knows of one border alone.
    core_start, core_end = window.core_start - window.start, window.core_end - window.start
    earliest, latest = max(length // 4, core_start), min(length * 3 // 4, core_end)
    cut = find_silence(window.waveform, earliest, latest) or quietest_point(window.waveform, earliest, latest)
    cut = min(max(cut, core_start, FRAME_SAMPLES), max(core_end, FRAME_SAMPLES), length - FRAME_SAMPLES)
    border = min(max(window.start + cut, window.core_start), window.core_end)
    first = Window(
        window.waveform[:cut], window.start, window.core_start, border, window.forced_start, window.forced_end
    )
    second = Window(
        window.waveform[cut:],
        window.start + cut,
        border,
        window.core_end,
        window.forced_start,
        window.forced_end,
    )
    return [first, second]
