"""What every engine returns and what is done to it: cutting, joining, shifting, filtering. Generator only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import soxr

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Word:
    """A spoken word with its start and end in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Recording:
    """Mono audio, float32 (samples,), with its word times, or None where the engine does not tell them."""

    audio: np.ndarray
    sampling_rate: int
    words: list[Word] | None

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sampling_rate


def envelope(audio: np.ndarray, sampling_rate: int, step: float = 0.005) -> np.ndarray:
    """Root mean square of every `step` seconds, (steps,)."""
    size = round(step * sampling_rate)
    frames = audio[: len(audio) // size * size].reshape(-1, size)  # (samples,) -> (steps, size)
    return np.sqrt((frames.astype(np.float64) ** 2).mean(axis=1))


def trim_words(recording: Recording, step: float = 0.005, floor: float = 0.02) -> Recording:
    """Tightens every word to where its energy is above `floor` of its own peak: silence belongs to no word."""
    level = envelope(recording.audio, recording.sampling_rate, step)
    words = []
    for word in recording.words or []:
        first, last = int(word.start / step), max(int(word.end / step), int(word.start / step) + 1)
        loud = np.flatnonzero(level[first:last] > floor * max(level[first:last].max(initial=0.0), 1e-9))
        if len(loud):
            word = Word(
                word.text, (first + int(loud[0])) * step, min((first + int(loud[-1]) + 1) * step, word.end)
            )
        words.append(word)
    return replace(recording, words=words)


def resample(recording: Recording, sampling_rate: int) -> Recording:
    if recording.sampling_rate == sampling_rate:
        return recording
    audio = soxr.resample(recording.audio, recording.sampling_rate, sampling_rate).astype(np.float32)
    return Recording(audio, sampling_rate, recording.words)


def cut_word(recording: Recording, index: int, before: float = 0.03, after: float = 0.06) -> Recording:
    """One word with a little of what surrounds it, never reaching into its neighbours, edges faded."""
    words = recording.words
    assert words is not None
    word = words[index]
    first = max(word.start - before, words[index - 1].end if index else 0.0)
    last = min(word.end + after, words[index + 1].start if index + 1 < len(words) else recording.seconds)
    rate = recording.sampling_rate
    audio = fade(recording.audio[int(first * rate) : max(int(last * rate), int(first * rate) + 1)], rate)
    return Recording(
        audio, rate, [Word(word.text, word.start - first, min(word.end - first, len(audio) / rate))]
    )


def fade(audio: np.ndarray, sampling_rate: int, seconds: float = 0.004) -> np.ndarray:
    """Raised-cosine edges, so that a cut makes no click."""
    size = min(int(seconds * sampling_rate), len(audio) // 2)
    ramp = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, size, dtype=np.float32))
    audio = audio.copy()
    audio[:size] *= ramp
    audio[len(audio) - size :] *= ramp[::-1]
    return audio


def join(parts: list[Recording], gaps: list[float]) -> Recording:
    """Parts one after another; `gaps[i]` seconds of silence stand before part i, the last ones after the end."""
    rate = parts[0].sampling_rate
    pieces: list[np.ndarray] = []
    words: list[Word] | None = []
    position = 0
    for part, gap in zip([*parts, None], gaps, strict=True):
        silence = np.zeros(int(gap * rate), np.float32)
        pieces.append(silence)
        position += len(silence)
        if part is not None:
            if part.words is None or words is None:
                words = None
            else:
                shift = position / rate
                words += [Word(word.text, word.start + shift, word.end + shift) for word in part.words]
            pieces.append(part.audio)
            position += len(part.audio)
    return Recording(np.concatenate(pieces), rate, words)


def scale_times(words: list[Word] | None, factor: float) -> list[Word] | None:
    return (
        None if words is None else [Word(word.text, word.start * factor, word.end * factor) for word in words]
    )


def change_size(recording: Recording, ratio: float) -> Recording:
    """Plays the recording `ratio` times as fast: pitch, formants and tempo move together, as in a smaller body."""
    rate = recording.sampling_rate
    audio = soxr.resample(recording.audio, rate * ratio, rate).astype(np.float32)
    return Recording(audio, rate, scale_times(recording.words, 1 / ratio))


def change_voice(
    recording: Recording, pitch: float, formants: float, tempo: float, liveliness: float
) -> Recording:
    """Pitch, formants, tempo and the range of the melody, each by its own factor (WORLD vocoder).

    The recording must have 16,000 samples a second. Morise et al. 2016, WORLD: a vocoder-based high-quality
    speech synthesis system.
    """
    import pyworld

    rate, period = recording.sampling_rate, 5.0
    audio = recording.audio.astype(np.float64)
    rough, times = pyworld.dio(audio, rate, f0_floor=60.0, f0_ceil=500.0, frame_period=period)
    melody = pyworld.stonemask(audio, rough, times, rate)
    spectrum = pyworld.cheaptrick(audio, melody, times, rate)  # (frames, bins)
    noisiness = pyworld.d4c(audio, melody, times, rate)
    voiced = melody > 0
    if voiced.any():
        centre = np.exp(np.log(melody[voiced]).mean())
        melody[voiced] = centre * pitch * (melody[voiced] / centre) ** liveliness
    bins = np.arange(spectrum.shape[1])
    source = np.clip(bins / formants, 0, len(bins) - 1)
    low = source.astype(int)
    weight = source - low
    high = np.minimum(low + 1, len(bins) - 1)
    spectrum = np.ascontiguousarray(spectrum[:, low] * (1 - weight) + spectrum[:, high] * weight)
    noisiness = np.ascontiguousarray(noisiness[:, low] * (1 - weight) + noisiness[:, high] * weight)
    speech = pyworld.synthesize(melody, spectrum, noisiness, rate, period / tempo).astype(np.float32)
    return Recording(speech, rate, scale_times(recording.words, 1 / tempo))


def band_limit(audio: np.ndarray, sampling_rate: int, low: float, high: float) -> np.ndarray:
    """A band-pass with raised-cosine edges 15% wide, in the frequency domain; `low` 0 means a low-pass."""
    size = _fast_length(len(audio))
    spectrum = np.fft.rfft(audio, size)
    frequencies = np.fft.rfftfreq(size, 1 / sampling_rate)
    gain = 1 / (1 + np.exp(np.clip((frequencies - high) / (0.03 * high), -50, 50)))
    if low > 0:
        gain *= 1 / (1 + np.exp(np.clip((low - frequencies) / (0.15 * low), -50, 50)))
    return np.fft.irfft(spectrum * gain, size)[: len(audio)].astype(np.float32)


def _fast_length(samples: int) -> int:
    """A length for which the Fourier transform is quick, with room so that the end does not ring into the start."""
    return -(-(samples + 400) // 4096) * 4096


def tilt(audio: np.ndarray, sampling_rate: int, decibels: float) -> np.ndarray:
    """The colour of a microphone: a straight line over log frequency, `decibels` from 100 Hz to 8 kHz."""
    size = _fast_length(len(audio))
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / sampling_rate), 50) / 1000)
    shaped = np.fft.irfft(np.fft.rfft(audio, size) * 10 ** (decibels * octaves / 6.3 / 20), size)
    return shaped[: len(audio)].astype(np.float32)


def mu_law(audio: np.ndarray) -> np.ndarray:
    """Through the 8-bit companding of a telephone line (G.711) and back."""
    companded = np.sign(audio) * np.log1p(255 * np.abs(audio)) / np.log(256)
    steps = np.round(companded * 127) / 127
    return (np.sign(steps) * np.expm1(np.abs(steps) * np.log(256)) / 255).astype(np.float32)


def coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit power whose power falls with frequency to the `exponent`: 0 white, 1 pink, 2 brown."""
    size = _fast_length(samples)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum *= np.maximum(np.fft.rfftfreq(size), 1e-3) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, size)[:samples]
    return (noise / np.sqrt((noise**2).mean() + 1e-12)).astype(np.float32)
