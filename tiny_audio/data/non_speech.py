"""Sounds that are not speech, made on the spot: a model that has never heard any writes words for all of them.

Legend: S samples.
"""

from __future__ import annotations

import numpy as np

from tiny_audio.data.augment import CURVE_HZ, fast_fft_length, random_band, random_noise_color
from tiny_audio.hub.asr_audio import SAMPLING_RATE

LEVEL_DB_RANGE = (-60.0, -3.0)  # of the loudest sample
FAINT_DB_RANGE = (-100.0, -60.0)  # what a microphone in a silent room still records
BAND_SHARE = 0.3  # of the sounds that come through a telephone or a low-pass filter


def random_non_speech(num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Silence, noise, hum, tones, music-like notes, knocks, or two of these together: float32 (S,) within [-1, 1]."""
    kinds = [_noise, _noise, _bursts, _hum, _glide, _notes, _notes, _knocks]
    sound = np.zeros(num_samples)
    if generator.random() < 0.15:  # digital silence, or nearly
        if generator.random() < 0.7:
            sound = _noise(num_samples, generator)
        return _scale(sound, generator.uniform(*FAINT_DB_RANGE))
    for share in (1.0, generator.choice([0.0, 0.0, 0.03, 0.3])):
        if share:
            sound = sound + share * _scale(kinds[generator.integers(len(kinds))](num_samples, generator), 0.0)
    if generator.random() < BAND_SHARE:
        sound = _filter(sound, random_band(generator, bool(generator.random() < 0.5)))
    return _scale(sound, generator.uniform(*LEVEL_DB_RANGE))


def _scale(sound: np.ndarray, peak_db: float) -> np.ndarray:
    peak = max(float(np.abs(sound).max(initial=0.0)), 1e-12)
    return (sound * (10.0 ** (peak_db / 20.0) / peak if sound.any() else 0.0)).astype(np.float32)


def _filter(sound: np.ndarray, curve: np.ndarray) -> np.ndarray:
    length = fast_fft_length(len(sound))
    gains = np.interp(np.linspace(0.0, SAMPLING_RATE / 2, length // 2 + 1), CURVE_HZ, curve)
    return np.fft.irfft(np.fft.rfft(sound, length) * gains, length)[: len(sound)]


def _noise(num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Steady noise of any colour, with a slow change of level half of the time."""
    noise = _filter(generator.standard_normal(num_samples), random_noise_color(generator))
    return noise * _slow_curve(num_samples, generator) if generator.random() < 0.5 else noise


def _slow_curve(num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """A gain that wanders by up to 20 dB, with knots between 0.1 and 2 s apart."""
    num_knots = 2 + int(num_samples / SAMPLING_RATE / generator.uniform(0.1, 2.0))
    levels = generator.uniform(-20.0, 0.0, num_knots)
    return 10.0 ** (
        np.interp(np.linspace(0, num_knots - 1, num_samples), np.arange(num_knots), levels) / 20.0
    )


def _events(num_samples: int, generator: np.random.Generator, mean_seconds: float) -> list[tuple[int, int]]:
    """Begin and end of events that follow each other, evenly or at random."""
    evenly = generator.random() < 0.5
    events, start = [], 0
    while start < num_samples:
        seconds = mean_seconds * (1.0 if evenly else generator.uniform(0.3, 2.0))
        end = min(num_samples, start + max(1, int(seconds * SAMPLING_RATE)))
        events.append((start, end))
        start = end
    return events


def _bursts(num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Noises with pauses between them, about as long as syllables."""
    sound = _noise(num_samples, generator)
    for start, end in _events(num_samples, generator, generator.uniform(0.1, 0.8)):
        rest = start + int((end - start) * generator.uniform(0.2, 1.0))
        sound[rest:end] *= 0.01
    return sound


def _hum(num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Mains, motors, a held tone: harmonics of one pitch."""
    pitch = generator.choice([50.0, 60.0, np.exp(generator.uniform(np.log(40.0), np.log(2000.0)))])
    return _harmonics(np.full(num_samples, pitch), generator)


def _glide(num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Sirens and whistles: a pitch that rises and falls."""
    num_knots = 2 + int(num_samples / SAMPLING_RATE * generator.uniform(0.2, 3.0))
    knots = generator.uniform(np.log(80.0), np.log(3000.0), num_knots)
    return _harmonics(
        np.exp(np.interp(np.linspace(0, num_knots - 1, num_samples), np.arange(num_knots), knots)), generator
    )


def _harmonics(pitch: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A tone of pitch (S,) in Hz with up to eight harmonics below half the sampling rate."""
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    slope, count = generator.uniform(0.5, 3.0), int(generator.integers(1, 9))
    sound = np.zeros(len(pitch))
    for number in range(1, count + 1):
        if number * pitch.max() < SAMPLING_RATE / 2:
            sound += np.sin(number * phase + generator.uniform(0, 2 * np.pi)) / number**slope
    return sound


def _notes(num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Music of a kind: notes or chords of one scale, struck or blown, some with a beat of noise."""
    scale = generator.choice([[0, 2, 4, 5, 7, 9, 11], [0, 2, 3, 5, 7, 8, 10], [0, 2, 4, 7, 9, 12, 14]])
    root, decay = 55.0 * 2.0 ** generator.uniform(0, 3), generator.uniform(0.5, 12.0)
    voices, sound = int(generator.integers(1, 4)), np.zeros(num_samples)
    for start, end in _events(num_samples, generator, generator.uniform(0.1, 1.0)):
        seconds = np.arange(end - start) / SAMPLING_RATE
        shape = np.minimum(1.0, seconds / 0.01) * np.exp(-decay * seconds)
        for _ in range(voices):
            pitch = root * 2.0 ** ((generator.choice(scale) + 12 * generator.integers(0, 2)) / 12)
            sound[start:end] += shape * _harmonics(np.full(end - start, pitch), generator)
    if generator.random() < 0.4:
        sound = sound + generator.uniform(0.3, 2.0) * _knocks(num_samples, generator)
    return sound


def _knocks(num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Clicks, steps, drums: bursts of noise that die away."""
    sound = generator.standard_normal(num_samples) * 10.0 ** generator.uniform(-4.0, -1.5)
    decay = generator.uniform(20.0, 400.0)
    for start, end in _events(num_samples, generator, generator.uniform(0.1, 1.5)):
        seconds = np.arange(end - start) / SAMPLING_RATE
        sound[start:end] += generator.standard_normal(end - start) * np.exp(-decay * seconds)
    return sound
