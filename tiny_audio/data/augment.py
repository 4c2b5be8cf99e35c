"""Augmentation: each epoch a clip is heard as another person, room, microphone and line might have given it.

Everything is drawn from (seed, epoch, utterance id) and from nothing else, so a clip sounds the same
whichever process or batch it falls into. Room, noise and microphone share one FFT: on one core the whole
chain costs a few milliseconds a second of audio.

Legend: S samples, K frequencies of the FFT, M mel bins, L feature frames.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from tiny_audio.data.recorded import NOISE_KEY, REVERB_KEY, draw_noise, draw_room, recordings
from tiny_audio.errors import UserError, nearest
from tiny_audio.hub.asr_audio import SAMPLING_RATE

Range = tuple[float, float]

# Streams of the random numbers of one clip: a new kind of augmentation leaves the others as they were.
SPEED_STREAM, SPLICE_STREAM, WAVEFORM_STREAM, FEATURE_STREAM, NON_SPEECH_STREAM = range(5)

NOISE_SLOPE_RANGE = (
    0.0,
    2.0,
)  # power falls with frequency ** -slope: 0 white, 1 pink, 2 brown
REVERBERATION_SECONDS_RANGE = (
    0.1,
    0.7,
)  # time in which the room's echo falls by 60 dB: small room to hall
DIRECT_TO_ECHO_DB_RANGE = (
    0.0,
    15.0,
)  # a speaker at two metres to a speaker at the microphone
LOW_PASS_HZ_RANGE = (2500.0, 7000.0)
TELEPHONE_LOW_HZ_RANGE = (200.0, 400.0)
TELEPHONE_HIGH_HZ_RANGE = (3000.0, 3800.0)
TELEPHONE_SHARE = 0.4  # of the clips that are band-limited
FILTER_FLOOR = 1e-3  # -60 dB: what a real filter leaves of the band it stops
EQUALIZER_KNOTS_HZ = np.array([0.0, 125.0, 250.0, 500.0, 1000.0, 2000.0, 3000.0, 4500.0, 6000.0, 8000.0])
CURVE_HZ = np.linspace(0.0, SAMPLING_RATE / 2, 257)  # filters are drawn on this grid, then spread over K
LARGEST_TIME_MASK_SHARE = 0.2  # of the clip, so that a mask never swallows a whole short word


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a clip; the keys of ``augmentation`` in the config. By default nothing does.

    Ranges are drawn from uniformly. `speed` resamples (pitch and tempo together), `tempo` leaves the pitch as
    it is, `equalizer_db` is the spread of a smooth random frequency response, `frequency_warp` stretches the
    mel axis as another vocal tract length would. `noise_files` and `reverb_files` are noises and impulse responses,
    which are drawn from in place of synthetic ones; a config names their folders. Masks are those of SpecAugment
    (https://arxiv.org/abs/1904.08779).
    """

    speed: Range = (1.0, 1.0)
    speed_probability: float = 0.0
    tempo: Range = (1.0, 1.0)
    tempo_probability: float = 0.0
    noise_probability: float = 0.0
    noise_snr_db: Range = (5.0, 40.0)
    noise_files: tuple[Path, ...] = ()
    reverb_probability: float = 0.0
    reverb_files: tuple[Path, ...] = ()
    band_limit_probability: float = 0.0
    equalizer_probability: float = 0.0
    equalizer_db: float = 6.0
    gain_db: Range = (0.0, 0.0)
    splice_probability: float = 0.0
    non_speech_probability: float = 0.0
    frequency_warp: Range = (1.0, 1.0)
    frequency_warp_probability: float = 0.0
    time_masks: int = 0
    time_mask_seconds: float = 0.2
    frequency_masks: int = 0
    frequency_mask_bins: int = 16

    @classmethod
    def from_config(cls, settings: Mapping[str, Any] | Augmentation | None) -> Augmentation:
        """From the ``augmentation`` part of a config. Raises UserError for an unknown key or a folder without audio."""
        if settings is None or isinstance(settings, Augmentation):
            return settings or cls()
        names = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in settings.items():
            if key not in names:
                raise UserError(f"augmentation.{key}: there is no such augmentation.{nearest(key, names)}")
            if key.endswith("_files"):
                values[key] = () if value is None else recordings(value, f"augmentation.{key}")
            elif isinstance(names[key].default, tuple):
                values[key] = (float(value[0]), float(value[1]))
            else:
                values[key] = value
        made = cls(**values)
        for files, key, probability in (
            (made.noise_files, NOISE_KEY, made.noise_probability),
            (made.reverb_files, REVERB_KEY, made.reverb_probability),
        ):
            if files and probability == 0:
                raise UserError(
                    f"{key} is given, but {key.replace('files', 'probability')}=0: none would be heard"
                )
        return made


# Random numbers ---------------------------------------------------------------------------------------------


def clip_generator(seed: int, epoch: int, key: int, stream: int) -> np.random.Generator:
    """The random numbers of one clip in one epoch; `key` is ``utterance_key(id)``."""
    # SFC64 is the quickest to seed and to draw normals from.
    return np.random.Generator(np.random.SFC64([seed, epoch, key & 0xFFFFFFFF, key >> 32, stream]))


def hashed_uniform(seed: int, epoch: int, keys: np.ndarray, stream: int, draw: int) -> np.ndarray:
    """Numbers in [0, 1) for many clips at once, each a function of (seed, epoch, key, stream, draw) alone.

    SplitMix64 (https://prng.di.unimi.it/splitmix64.c) over the key: the planner computes ten million of them
    in a second.
    """
    salt = np.random.SeedSequence([seed, epoch, stream, draw]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        mixed = keys.astype(np.uint64) + salt
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_rates(
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    keys: np.ndarray,
    seconds: np.ndarray,
    max_seconds: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Speed and tempo factors of many clips: float64 (rows,) each; above 1 is faster.

    The planner needs them because they decide how long a clip is; one that would outgrow `max_seconds`
    keeps its length.
    """
    factors = []
    for draw, (bounds, probability) in enumerate(
        [
            (augmentation.speed, augmentation.speed_probability),
            (augmentation.tempo, augmentation.tempo_probability),
        ]
    ):
        chosen = hashed_uniform(seed, epoch, keys, SPEED_STREAM, 2 * draw) < probability
        value = bounds[0] + (bounds[1] - bounds[0]) * hashed_uniform(
            seed, epoch, keys, SPEED_STREAM, 2 * draw + 1
        )
        factors.append(np.where(chosen, value.round(3), 1.0))
    speed, tempo = factors
    # The margin keeps rounding to whole samples below the limit.
    too_long = seconds / speed / tempo > max_seconds - 0.01
    return np.where(too_long, 1.0, speed), np.where(too_long, 1.0, tempo)


# Waveforms --------------------------------------------------------------------------------------------------


def augment_waveform(
    waveform: np.ndarray,
    augmentation: Augmentation,
    generator: np.random.Generator,
    speed: float,
    tempo: float,
) -> np.ndarray:
    """Another hearing of `waveform` (S,): speed, tempo, then room, noise, microphone and line, then level."""
    if speed != 1.0:
        waveform = change_speed(waveform, speed)
    if tempo != 1.0:
        waveform = change_tempo(waveform, tempo)
    # Every number is drawn whether or not it is used: probabilities then do not shift each other's draws.
    reverb, noise, equalizer, band_limit, telephone = generator.random(5)
    snr_db = generator.uniform(*augmentation.noise_snr_db)
    gain_db = generator.uniform(*augmentation.gain_db)
    room = None
    if reverb < augmentation.reverb_probability:
        files = augmentation.reverb_files
        room = draw_room(files, generator) if files else make_room(generator)
    curve = None
    if equalizer < augmentation.equalizer_probability:
        curve = random_equalizer(generator, augmentation.equalizer_db)
    if band_limit < augmentation.band_limit_probability:
        band = random_band(generator, telephone < TELEPHONE_SHARE)
        curve = band if curve is None else curve * band
    noise_curve = recorded = None
    if noise < augmentation.noise_probability:
        if augmentation.noise_files:
            recorded = draw_noise(augmentation.noise_files, len(waveform), generator)
        else:
            noise_curve = random_noise_color(generator)
    if room is not None or curve is not None or noise_curve is not None or recorded is not None:
        waveform = filter_and_add_noise(waveform, room, noise_curve, snr_db, curve, generator, recorded)
    if gain_db != 0.0:
        waveform = waveform * np.float32(10.0 ** (gain_db / 20.0))
    peak = float(np.abs(waveform).max(initial=0.0))
    return waveform if peak <= 1.0 else waveform / np.float32(peak)


def change_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Play `factor` times as fast: (S,) to (S / factor,), pitch times `factor`."""
    return soxr.resample(waveform, factor * SAMPLING_RATE, SAMPLING_RATE, quality="LQ")


def change_tempo(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Speak `factor` times as fast at the same pitch: (S,) to about (S / factor,).

    Waveform-similarity overlap-add (Verhelst and Roelands, 1993): frames are laid down at an even pace and
    taken from where, within a pitch period of the wanted place, they continue the previous one best.
    """
    half = 320  # 20 ms: a frame holds at least two pitch periods of a low voice
    reach = 54  # coarse samples, 10 ms: one pitch period at 100 Hz
    coarse = 3  # the search looks at every third sample: enough to match pitch periods
    overlap = half // coarse
    margin = coarse * reach
    window = np.hanning(2 * half + 1)[:-1].astype(np.float32)
    num_frames = math.ceil(len(waveform) / factor / half) + 1
    padded = np.pad(waveform, (margin + half, margin + 4 * half + math.ceil(half * factor)))
    sparse = np.ascontiguousarray(padded[::coarse])
    last = len(padded) - 2 * half - 2 * margin - coarse
    result = np.zeros((num_frames + 1) * half, np.float32)
    start = margin
    for frame in range(num_frames):
        result[frame * half : (frame + 2) * half] += padded[start : start + 2 * half] * window
        continuation = (start + half) // coarse
        region = min(round((frame + 1) * half * factor), last) // coarse  # `reach` before the wanted place
        similarity = np.correlate(
            sparse[region : region + 2 * reach + overlap],
            sparse[continuation : continuation + overlap],
            "valid",
        )
        start = coarse * (region + int(similarity.argmax()))
    return result[half : half + max(1, round(len(waveform) / factor))]


def make_room(generator: np.random.Generator) -> np.ndarray:
    """A room's impulse response with unit energy: the direct sound, then decaying noise."""
    decay_seconds = generator.uniform(*REVERBERATION_SECONDS_RANGE)
    direct_db = generator.uniform(*DIRECT_TO_ECHO_DB_RANGE)
    first_echo = int(generator.uniform(0.001, 0.01) * SAMPLING_RATE)
    length = int(0.6 * decay_seconds * SAMPLING_RATE)  # down to -36 dB
    echo = generator.standard_normal(length, dtype=np.float32)
    echo *= np.exp(np.linspace(0.0, -0.6 * math.log(1000.0), length, dtype=np.float32))
    echo *= 10.0 ** (-direct_db / 20.0) / math.sqrt(float(echo @ echo))
    room = np.concatenate([np.ones(1, np.float32), np.zeros(first_echo, np.float32), echo])
    return room / np.float32(math.sqrt(float(room @ room)))


def random_equalizer(generator: np.random.Generator, spread_db: float) -> np.ndarray:
    """A smooth random frequency response on `CURVE_HZ`, as microphones and rooms have one; mean gain 0 dB."""
    levels = generator.normal(0.0, spread_db, len(EQUALIZER_KNOTS_HZ))
    return 10.0 ** (np.interp(CURVE_HZ, EQUALIZER_KNOTS_HZ, levels - levels.mean()) / 20.0)


def random_band(generator: np.random.Generator, telephone: bool) -> np.ndarray:
    """The gain on `CURVE_HZ` of a telephone line, or of a low-pass filter."""
    if telephone:
        low, high = (
            generator.uniform(*TELEPHONE_LOW_HZ_RANGE),
            generator.uniform(*TELEPHONE_HIGH_HZ_RANGE),
        )
    else:
        low, high = 0.0, generator.uniform(*LOW_PASS_HZ_RANGE)
    return band_curve(low, high)


def band_curve(low_hz: float, high_hz: float) -> np.ndarray:
    """The gain on `CURVE_HZ` of a band-pass filter with soft skirts."""
    gain = np.clip((1.1 * high_hz - CURVE_HZ) / (0.1 * high_hz), 0.0, 1.0)
    if low_hz > 0:
        gain = gain * np.clip((CURVE_HZ - 0.5 * low_hz) / (0.5 * low_hz), 0.0, 1.0)
    return np.maximum(gain, FILTER_FLOOR)


def random_noise_color(generator: np.random.Generator) -> np.ndarray:
    """The amplitude of a random noise on `CURVE_HZ`: white to brown, with bumps as real noises have."""
    slope = generator.uniform(*NOISE_SLOPE_RANGE)
    return np.maximum(CURVE_HZ, 60.0) ** (-slope / 2) * random_equalizer(generator, 4.0)


def filter_and_add_noise(
    waveform: np.ndarray,
    room: np.ndarray | None,
    noise_curve: np.ndarray | None,
    snr_db: float,
    microphone_curve: np.ndarray | None,
    generator: np.random.Generator,
    recorded_noise: np.ndarray | None = None,
) -> np.ndarray:
    """(speech * room + noise) * microphone, in one FFT; `snr_db` is that of the whole clip.

    The noise has the amplitudes `noise_curve` on `CURVE_HZ`, or is `recorded_noise` (S,).
    """
    length = len(waveform)
    fft_length = fast_fft_length(length + (0 if room is None else len(room)))
    spectrum = np.fft.rfft(waveform, fft_length)  # (K,) complex64
    num_frequencies = len(spectrum)
    frequencies = np.linspace(0.0, SAMPLING_RATE / 2, num_frequencies)
    if room is not None:
        spectrum *= np.fft.rfft(room, fft_length)
    noise, noise_power = None, 0.0
    if recorded_noise is not None:
        noise = np.fft.rfft(recorded_noise, fft_length)
        noise_power = max(float(np.vdot(recorded_noise, recorded_noise)) / length, 1e-12)
    elif noise_curve is not None:
        noise = generator.standard_normal(2 * num_frequencies, dtype=np.float32).view(np.complex64)
        noise *= np.interp(frequencies, CURVE_HZ, noise_curve).astype(np.float32)
        # Parseval: mean power a sample; the speech fills `length` samples, the noise all of them.
        noise_power = 2.0 * float(np.vdot(noise, noise).real) / fft_length**2
    if noise is not None:
        speech_power = max(float(np.vdot(waveform, waveform)) / length, 1e-8)
        noise *= np.float32(math.sqrt(speech_power / noise_power * 10.0 ** (-snr_db / 10.0)))
        spectrum += noise
    if microphone_curve is not None:
        spectrum *= np.interp(frequencies, CURVE_HZ, microphone_curve).astype(np.float32)
    return np.fft.irfft(spectrum, fft_length)[:length].astype(np.float32, copy=False)


def fast_fft_length(length: int) -> int:
    """The smallest product of 2s, 3s and 5s, even, that is at least `length`: what an FFT is quick at."""
    best = 1 << max(1, (length - 1).bit_length())
    power_of_five = 1
    while power_of_five < best:
        product = power_of_five
        while product < best:
            twos = max(1, (-(-length // product) - 1).bit_length())
            best = min(best, product << twos)
            product *= 3
        power_of_five *= 5
    return best


# Features ---------------------------------------------------------------------------------------------------


def augment_features(
    features: Tensor,
    seconds: float,
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> Tensor:
    """Vocal-tract warp and SpecAugment masks on mel features (M, L); time masks alone on waveforms (S,).

    Masked parts become the mean of the clip, so that they say nothing.
    """
    warp, warp_factor = (
        generator.random(),
        generator.uniform(*augmentation.frequency_warp),
    )
    is_mel = features.dim() == 2
    if is_mel and warp < augmentation.frequency_warp_probability:
        features = warp_frequencies(features, warp_factor)
    num_masks = augmentation.time_masks + (augmentation.frequency_masks if is_mel else 0)
    if num_masks == 0:
        return features
    features = features.clone()
    mean = float(features.mean())
    length = features.shape[-1]
    longest = min(augmentation.time_mask_seconds / max(seconds, 1e-3), LARGEST_TIME_MASK_SHARE) * length
    for _ in range(augmentation.time_masks):
        width = int(generator.uniform(0.0, longest + 1))
        start = int(generator.integers(0, max(1, length - width + 1)))
        features[..., start : start + width] = mean
    if is_mel:
        num_bins = features.shape[0]
        for _ in range(augmentation.frequency_masks):
            width = int(generator.integers(0, min(augmentation.frequency_mask_bins, num_bins // 2) + 1))
            start = int(generator.integers(0, num_bins - width + 1))
            features[start : start + width] = mean
    return features


def warp_frequencies(features: Tensor, factor: float) -> Tensor:
    """Stretch the mel axis (M, L) by `factor`: above 1 formants rise, as from a shorter vocal tract.

    The top of the axis stays where it is, with a bend at four fifths of it (Jaitly and Hinton, 2013).
    """
    num_bins = features.shape[0]
    top = num_bins - 1
    bend = 0.8 * top
    bins = torch.arange(num_bins, dtype=torch.float32)
    inner = bins / factor
    outer = top - (top - bins) * (top - bend / factor) / (top - bend)
    places = torch.where(bins <= bend, inner, outer).clamp(0, top)
    low = places.floor().long().clamp(max=top - 1)
    share = (places - low).unsqueeze(1)  # (M, 1)
    return features[low] * (1 - share) + features[low + 1] * share
