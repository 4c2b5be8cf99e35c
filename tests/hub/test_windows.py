"""Windows: every sample in one core, cuts in pauses, overlaps where there is none, and memory for one window."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hub.recordings import in_blocks, random_words, tone_words
from tests.tiny_models import SAMPLING_RATE, noise
from tiny_audio.data.sources import open_source
from tiny_audio.hub.asr_windows import (
    DIGITAL_SILENCE_DB,
    LARGEST_OVERLAP,
    Window,
    cut_windows,
    level_db,
    split_window,
)


def cut(blocks: Iterable[np.ndarray], seconds: float = 10.0, **options: bool) -> list[Window]:
    return list(cut_windows(blocks, seconds, **options))


def check_partition(windows: list[Window], recording: np.ndarray, longest_seconds: float) -> None:
    """Cores side by side from the first sample to the last; what no window holds of its core is digital silence."""
    assert windows[0].core_start == 0 and windows[-1].core_end == len(recording)
    assert not windows[0].forced_start and not windows[-1].forced_end
    left_out = np.ones(len(recording), bool)
    for window in windows:
        end = window.start + len(window.waveform)
        assert window.core_start < window.core_end
        assert np.array_equal(window.waveform, recording[window.start : end])
        assert len(window.waveform) <= longest_seconds * SAMPLING_RATE
        left_out[max(window.start, window.core_start) : min(end, window.core_end)] = False
    assert (
        np.abs(recording[left_out]).max(initial=0.0) < 10 ** (DIGITAL_SILENCE_DB / 20) * 5
    )  # peak above the mean
    for before, after in pairwise(windows):
        assert before.core_end == after.core_start
        assert before.forced_end == after.forced_start


def speech_like(gaps: list[float], floor: float, generator: np.random.Generator) -> np.ndarray:
    """Bursts of noise with these pauses behind them, over a floor of noise."""
    parts = []
    for gap in gaps:
        burst = generator.standard_normal(int(generator.uniform(0.1, 0.8) * SAMPLING_RATE)) * 0.1
        parts += [burst, np.zeros(int(gap * SAMPLING_RATE))]
    sound = np.concatenate(parts)
    return (sound + floor * generator.standard_normal(len(sound))).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(
    gaps=st.lists(st.sampled_from([0.0, 0.05, 0.2, 0.3, 0.7, 2.0]), min_size=1, max_size=7),
    floor=st.sampled_from([0.0, 1e-4, 0.05]),
    window_seconds=st.sampled_from([0.06, 0.5, 1.0, 3.3, 30.0]),
    overlaps=st.tuples(*[st.sampled_from([0.0, 0.1, 1.0, 5.0])] * 2),
    can_merge=st.booleans(),
    block_samples=st.lists(st.integers(0, 20000), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_cores_partition_any_recording_however_it_is_read(
    gaps: list[float],
    floor: float,
    window_seconds: float,
    overlaps: tuple[float, float],
    can_merge: bool,
    block_samples: list[int],
    seed: int,
) -> None:
    recording = speech_like(gaps, floor, np.random.default_rng(seed))

    def blocks() -> Iterator[np.ndarray]:
        place = turn = 0
        while place < len(recording):
            size = max(block_samples[turn % len(block_samples)], turn % 2)  # some are empty
            yield recording[place : place + size]
            place, turn = place + size, turn + 1

    windows = list(cut_windows(blocks(), window_seconds, overlaps, can_merge))
    check_partition(windows, recording, window_seconds)
    whole = list(cut_windows([recording], window_seconds, overlaps, can_merge))
    assert [(w.start, w.core_start, w.core_end, w.forced_end, len(w.waveform)) for w in windows] == [
        (w.start, w.core_start, w.core_end, w.forced_end, len(w.waveform)) for w in whole
    ]


def joined_speech(pause_seconds: float, floor: float) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """About a minute of corpus clips over a floor of noise, and when somebody speaks, in seconds."""
    source = open_source("corpus:dev")
    utterances = [row for row in source.utterances() if row.words][::20][:16]
    parts, spans, place = [], [], 0
    for row in utterances:
        clip = source.read(row)
        assert row.words is not None
        first, last = (round(edge * SAMPLING_RATE) for edge in (row.words[0].start, row.words[-1].end))
        clip = clip[first:last] / max(np.abs(clip).max(), 1e-3) * 0.3
        spans.append((place / SAMPLING_RATE, (place + len(clip)) / SAMPLING_RATE))
        pause = np.zeros(round(pause_seconds * SAMPLING_RATE), np.float32)
        parts += [clip, pause]
        place += len(clip) + len(pause)
    recording = np.concatenate(parts)
    hiss = np.random.default_rng(0).standard_normal(len(recording)) * floor
    return (recording + hiss).astype(np.float32), spans


@pytest.mark.parametrize("floor", [0.0, 1e-4, 3e-3], ids=["digital silence", "quiet room", "noisy room"])
@pytest.mark.parametrize("pause_seconds", [0.4, 1.2])
def test_real_speech_is_cut_where_nobody_speaks(pause_seconds: float, floor: float) -> None:
    recording, spans = joined_speech(pause_seconds, floor)
    windows = cut(in_blocks(recording), 12.0)
    check_partition(windows, recording, 12.0)
    assert len(windows) >= 4
    for window in windows[:-1]:
        assert not window.forced_end
        cut_at = window.core_end / SAMPLING_RATE
        inside = [span for span in spans if span[0] + 0.02 < cut_at < span[1] - 0.02]
        if inside:  # then in a pause between two words of one clip
            around = recording[window.core_end - 1600 : window.core_end + 1600]
            assert level_db(around).max() < level_db(recording).max() - 25
        else:  # in the middle of the pause, not at its edge
            nearest = min(abs(cut_at - edge) for span in spans for edge in span)
            assert nearest > 0.1


def test_one_pause_is_cut_in_its_middle() -> None:
    recording = noise(8.0, 1)
    recording[6 * SAMPLING_RATE : 7 * SAMPLING_RATE] *= 1e-3
    first, second = cut([np.concatenate([recording, noise(3.0, 2)])], 10.0)
    assert first.core_end == second.start == pytest.approx(6.5 * SAMPLING_RATE, abs=0.1 * SAMPLING_RATE)


def test_without_a_pause_windows_overlap_around_the_border_of_their_cores() -> None:
    recording = tone_words(random_words(150))
    windows = cut(in_blocks(recording), 12.0)
    check_partition(windows, recording, 12.0)
    overlap = int(12 * SAMPLING_RATE * LARGEST_OVERLAP)
    assert len(windows) > 3
    for before, after in pairwise(windows):
        assert before.forced_end
        assert after.core_start - after.start == overlap
        assert before.start + len(before.waveform) - before.core_end == overlap
    narrow = list(cut_windows([recording], 12.0, (0.5, 1.0)))
    assert narrow[1].core_start - narrow[1].start == 0.5 * SAMPLING_RATE
    assert narrow[0].start + len(narrow[0].waveform) - narrow[0].core_end == 1.0 * SAMPLING_RATE


def test_without_merging_forced_cuts_meet_at_a_quiet_point() -> None:
    recording = tone_words(random_words(150), gap=0.1)
    windows = cut(in_blocks(recording), 12.0, can_merge=False)
    check_partition(windows, recording, 12.0)
    for before, after in pairwise(windows):
        assert before.forced_end and after.start == before.core_end
        assert level_db(recording[after.start - 160 : after.start + 160]).max() < -50, "cut inside a word"


@pytest.mark.parametrize("num_samples", [1, 159, 160, 161, 16000, 10 * 16000])
def test_what_fits_one_window_is_one_window(num_samples: int) -> None:
    recording = noise(10.0)[:num_samples]
    (window,) = cut([recording])
    assert (window.start, window.core_start, window.core_end) == (0, 0, num_samples)
    assert np.array_equal(window.waveform, recording)
    assert not window.forced_start and not window.forced_end


def test_nothing_gives_no_window() -> None:
    assert cut([]) == cut([np.zeros(0, np.float32)]) == []


@pytest.mark.parametrize("can_merge", [False, True])
@pytest.mark.parametrize("level", [1e-6, 1e-4, 0.1])
def test_steady_noise_is_cut_into_few_windows(level: float, can_merge: bool) -> None:
    recording = noise(35.0) * np.float32(level / 0.1)
    windows = cut(in_blocks(recording), 10.0, can_merge=can_merge)
    check_partition(windows, recording, 10.0)
    assert len(windows) <= 8


def test_what_is_quiet_is_kept_and_what_was_never_recorded_is_not() -> None:
    """Whether somebody whispers is for the model to say; zeros of a muted line are nothing to listen to."""
    whisper = noise(4.0) * np.float32(0.003)  # 70 dB below full scale
    silence = np.zeros(3 * SAMPLING_RATE, np.float32)
    (window,) = cut([np.concatenate([silence, whisper, silence])])
    assert (window.core_start, window.core_end) == (0, 10 * SAMPLING_RATE)
    assert 2.5 < window.start / SAMPLING_RATE <= 3.0
    assert 4.0 <= len(window.waveform) / SAMPLING_RATE < 4.7
    (nothing,) = cut([silence])
    assert len(nothing.waveform) == 0
    assert (nothing.core_start, nothing.core_end) == (0, 3 * SAMPLING_RATE)


@pytest.mark.parametrize("floor", [0.0, 1e-4], ids=["digital silence", "faint noise"])
def test_a_long_silence_is_a_silence(floor: float) -> None:
    """A word in a minute of silence: no cut has to be forced, and nobody is warned of a split word."""
    recording = noise(60.0) * np.float32(floor / 0.1)
    recording[20 * SAMPLING_RATE : 20 * SAMPLING_RATE + 8000] = noise(0.5, 1)
    windows = cut(in_blocks(recording), 10.0)
    check_partition(windows, recording, 10.0)
    assert not any(window.forced_end for window in windows)


def test_two_hours_are_read_a_window_at_a_time() -> None:
    """No window may be kept, nor may more be read ahead than one window needs."""
    speech = tone_words(random_words(100, 1), gap=0.35)
    block_samples, num_read = 32_768, 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal num_read
        while num_read < 2 * 3600 * SAMPLING_RATE:
            first = num_read % (len(speech) - block_samples)
            num_read += block_samples
            yield speech[first : first + block_samples]

    waveforms: list[weakref.ref] = []
    done = 0
    for window in cut_windows(blocks(), 30.0):
        assert num_read - window.start <= 30 * SAMPLING_RATE + 2 * block_samples
        waveforms.append(weakref.ref(window.waveform))
        done = window.core_end
        assert sum(reference() is not None for reference in waveforms) == 1
    assert done == num_read
    assert len(waveforms) > 240


@pytest.mark.parametrize("seconds", [4.0, 9.0])
def test_a_window_is_split_into_two_that_meet(seconds: float) -> None:
    recording = tone_words(random_words(200))
    for window in cut([recording], seconds):
        first, second = split_window(window)
        assert np.array_equal(np.concatenate([first.waveform, second.waveform]), window.waveform)
        assert first.start == window.start
        assert second.start == first.start + len(first.waveform)
        assert len(window.waveform) / 5 < len(first.waveform) < len(window.waveform) * 4 / 5
        assert (first.core_start, second.core_end) == (window.core_start, window.core_end)
        assert first.core_end == second.core_start
        for half in (first, second):
            assert half.core_start <= half.core_end
            assert half.forced_start == window.forced_start and half.forced_end == window.forced_end


def test_the_cut_of_a_split_window_lies_in_its_core() -> None:
    """Beyond the core, words that the neighbour has too would be kept by both."""
    recording = tone_words(random_words(75))
    for window in cut([recording], 12.0):
        first, second = split_window(window)
        for part in (window, *split_window(first), *split_window(second)):
            assert part.core_start <= part.core_end
        assert window.core_start <= second.start <= window.core_end


def test_a_window_is_split_at_its_pause() -> None:
    recording = noise(9.0, 3)
    recording[5 * SAMPLING_RATE : 6 * SAMPLING_RATE] *= 1e-3
    first, _ = split_window(Window(recording, 0, 0, len(recording)))
    assert len(first.waveform) == pytest.approx(5.5 * SAMPLING_RATE, abs=0.15 * SAMPLING_RATE)
