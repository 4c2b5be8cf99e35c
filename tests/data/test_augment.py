"""Each augmentation does what it says, by measurement, and the same every time."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.clips import RATE, clip
from tiny_audio.data.augment import (
    CURVE_HZ,
    Augmentation,
    augment_features,
    augment_waveform,
    band_curve,
    change_speed,
    change_tempo,
    clip_generator,
    draw_rates,
    fast_fft_length,
    filter_and_add_noise,
    hashed_uniform,
    make_room,
    random_equalizer,
    random_noise_color,
    warp_frequencies,
)
from tiny_audio.data.utterance import utterance_key
from tiny_audio.errors import UserError

EVERYTHING = Augmentation(
    speed=(0.8, 1.25), speed_probability=1, tempo=(0.8, 1.25), tempo_probability=1, noise_probability=1,
    reverb_probability=1, band_limit_probability=1, equalizer_probability=1, gain_db=(-10, 5),
    frequency_warp=(0.9, 1.1), frequency_warp_probability=1, time_masks=2, frequency_masks=2,
)  # fmt: skip


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tone(hertz: float, seconds: float = 2.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def loudest_hertz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax()) * RATE / len(waveform)


def band_energy(waveform: np.ndarray, low: float, high: float) -> float:
    power = np.abs(np.fft.rfft(waveform)) ** 2
    hertz = np.fft.rfftfreq(len(waveform), 1 / RATE)
    return float(power[(hertz >= low) & (hertz < high)].sum())


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform))))


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.1, 1.25])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    faster = change_speed(tone(300), factor)
    assert len(faster) == pytest.approx(32000 / factor, abs=2)
    assert loudest_hertz(faster) == pytest.approx(300 * factor, rel=0.01)
    assert rms(faster) == pytest.approx(rms(tone(300)), rel=0.02)


@pytest.mark.parametrize("factor", [0.75, 0.9, 1.1, 1.3])
@pytest.mark.parametrize("hertz", [110, 300])
def test_tempo_changes_length_but_neither_pitch_nor_level(factor: float, hertz: float) -> None:
    faster = change_tempo(tone(hertz), factor)
    assert len(faster) == round(32000 / factor)
    assert loudest_hertz(faster) == pytest.approx(hertz, rel=0.02)
    assert rms(faster[400:-400]) == pytest.approx(rms(tone(hertz)), rel=0.05)
    # No clicks where frames meet: no step larger than the tone's own.
    assert np.abs(np.diff(faster)).max() < 1.3 * np.abs(np.diff(tone(hertz))).max()


def test_tempo_keeps_the_order_of_events() -> None:
    three = np.concatenate([tone(200, 0.5), tone(400, 0.5), tone(800, 0.5)])
    slower = change_tempo(three, 0.8)
    thirds = np.array_split(slower, 3)
    assert [loudest_hertz(third[1000:-1000]) for third in thirds] == pytest.approx([200, 400, 800], rel=0.02)


@pytest.mark.parametrize("snr_db", [5.0, 15.0, 40.0])
def test_noise_is_as_loud_as_asked_for(snr_db: float) -> None:
    speech = clip(3.0)
    for seed in range(5):
        noisy = filter_and_add_noise(
            speech, None, random_noise_color(generator(seed)), snr_db, None, generator(seed)
        )
        assert len(noisy) == len(speech)
        assert 20 * np.log10(rms(speech) / rms(noisy - speech)) == pytest.approx(snr_db, abs=1.0)


def test_a_silent_clip_gets_quiet_noise_and_no_nan() -> None:
    noisy = filter_and_add_noise(
        np.zeros(8000, np.float32), None, random_noise_color(generator()), 10, None, generator()
    )
    assert np.isfinite(noisy).all() and 0 < rms(noisy) < 1e-3


def test_noise_colours_differ() -> None:
    slopes = []
    for seed in range(20):
        color = random_noise_color(generator(seed))
        slopes.append(color[CURVE_HZ < 1000].mean() / color[CURVE_HZ > 4000].mean())
    assert min(slopes) < 2 and max(slopes) > 10


@pytest.mark.parametrize(("low", "high"), [(0.0, 4000.0), (300.0, 3400.0)])
def test_a_band_limit_removes_what_lies_outside(low: float, high: float) -> None:
    noise = generator().standard_normal(32000).astype(np.float32) * np.float32(0.1)
    limited = filter_and_add_noise(noise, None, None, 0, band_curve(low, high), generator())
    assert band_energy(limited, 1.15 * high, 8000) < 1e-4 * band_energy(noise, 1.15 * high, 8000)
    inside = (1.1 * low + 50, 0.9 * high)
    assert band_energy(limited, *inside) == pytest.approx(band_energy(noise, *inside), rel=0.02)
    if low:
        assert band_energy(limited, 10, 0.4 * low) < 1e-4 * band_energy(noise, 10, 0.4 * low)


def test_an_equalizer_bends_the_spectrum_smoothly() -> None:
    curve = 20 * np.log10(random_equalizer(generator(), 6.0))
    assert 3 < curve.std() < 12
    assert np.abs(np.diff(curve)).max() < 5  # dB from one 31 Hz step to the next
    noise = generator().standard_normal(32000).astype(np.float32) * np.float32(0.1)
    bent = filter_and_add_noise(noise, None, None, 0, 10 ** (curve / 20), generator())
    for low in (500, 2000, 6000):
        gain_db = 10 * np.log10(band_energy(bent, low, low + 60) / band_energy(noise, low, low + 60))
        assert gain_db == pytest.approx(np.interp(low + 30, CURVE_HZ, curve), abs=1.0)


def test_a_room_echoes_after_the_sound_and_decays() -> None:
    click = np.zeros(16000, np.float32)
    click[4000] = 1.0
    for seed in range(5):
        room = make_room(generator(seed))
        assert rms(room) * np.sqrt(len(room)) == pytest.approx(1.0, rel=1e-3)
        echo = filter_and_add_noise(click, room, None, 0, None, generator())
        assert np.abs(echo[:4000]).max() < 1e-4  # nothing comes before its cause, nor wraps around
        assert abs(int(np.abs(echo).argmax()) - 4000) == 0
        early, late = rms(echo[4010:4300]), rms(echo[4000 + len(room) - 300 : 4000 + len(room)])
        assert late < 0.3 * early


def test_gain_and_no_clipping() -> None:
    quiet = Augmentation(gain_db=(-20.0, -20.0))
    assert rms(augment_waveform(clip(1.0), quiet, generator(), 1, 1)) == pytest.approx(
        0.1 * rms(clip(1.0)), rel=1e-3
    )
    loud = augment_waveform(clip(1.0), Augmentation(gain_db=(40.0, 40.0)), generator(), 1, 1)
    assert np.abs(loud).max() == pytest.approx(1.0)
    assert np.corrcoef(loud, clip(1.0))[0, 1] > 0.9999  # scaled down, not cut off


def test_nothing_happens_by_default() -> None:
    waveform = clip(0.5)
    np.testing.assert_array_equal(augment_waveform(waveform, Augmentation(), generator(), 1.0, 1.0), waveform)
    features = torch.randn(20, 50)
    assert torch.equal(augment_features(features, 0.5, Augmentation(), generator()), features)


@pytest.mark.parametrize("num_samples", [1, 2, 100, 401, 16000])
def test_clips_of_any_length_survive_everything(num_samples: int) -> None:
    for seed in range(5):
        waveform = augment_waveform(clip(num_samples / RATE), EVERYTHING, generator(seed), 1.1, 0.9)
        assert waveform.dtype == np.float32 and len(waveform) >= 1 and np.isfinite(waveform).all()
        features = torch.randn(8, max(1, num_samples // 160))
        assert torch.isfinite(
            augment_features(features, num_samples / RATE, EVERYTHING, generator(seed))
        ).all()


def test_masks_are_as_wide_as_allowed_and_hide_the_clip() -> None:
    settings = Augmentation(time_masks=2, time_mask_seconds=0.3, frequency_masks=2, frequency_mask_bins=10)
    features = torch.randn(40, 400)
    untouched = features.clone()
    widths, heights = [], []
    for seed in range(200):
        changed = augment_features(features, 4.0, settings, generator(seed)) != features
        widths.append(int(changed.all(dim=0).sum()))  # frames masked whole
        heights.append(int(changed.all(dim=1).sum()))
    assert torch.equal(features, untouched)
    assert 40 < max(widths) <= 2 * 31 and min(widths) < 15  # 0.3 s is 30 frames
    assert 12 < max(heights) <= 2 * 10 and min(heights) < 5
    short = augment_features(torch.randn(40, 50), 0.5, settings, generator(3))
    assert int((short.std(dim=0) == 0).sum()) <= 2 * 11  # at most a fifth of a short clip each


def test_waveform_features_get_time_masks_alone() -> None:
    features = torch.randn(16000)
    masked = augment_features(features, 1.0, EVERYTHING, generator(1))
    changed = masked != features
    assert 0 < int(changed.sum()) < 8000
    assert torch.allclose(masked[changed], features.mean())


def test_warping_moves_formants() -> None:
    features = torch.zeros(80, 3)
    features[30] = 1.0
    assert int(warp_frequencies(features, 1.1)[:, 0].argmax()) == 33
    assert int(warp_frequencies(features, 0.9)[:, 0].argmax()) == 27
    ramp = torch.arange(80.0).unsqueeze(1).expand(80, 2)
    for factor in (0.9, 1.1):
        warped = warp_frequencies(ramp, factor)
        assert warped[0, 0] == 0 and warped[-1, 0] == pytest.approx(79)
        assert bool((warped.diff(dim=0) > 0).all())
    torch.testing.assert_close(warp_frequencies(ramp, 1.0), ramp)


def test_numbers_are_drawn_by_seed_epoch_clip_and_nothing_else() -> None:
    key = utterance_key("a clip")
    waveforms = []
    for seed, epoch, name in [
        (1, 2, "a clip"),
        (1, 2, "a clip"),
        (1, 3, "a clip"),
        (2, 2, "a clip"),
        (1, 2, "b"),
    ]:
        draws = clip_generator(seed, epoch, utterance_key(name), 2)
        waveforms.append(augment_waveform(clip(0.5), EVERYTHING, draws, 1.1, 1.0))
    np.testing.assert_array_equal(waveforms[0], waveforms[1])
    for other in waveforms[2:]:
        assert not np.array_equal(other, waveforms[0])
    program = (
        "from tiny_audio.data.augment import clip_generator, hashed_uniform; import numpy as np;"
        "from tiny_audio.data.utterance import utterance_key; key = utterance_key('a clip');"
        "draws = hashed_uniform(1, 2, np.array([key], np.uint64), 0, 0);"
        "print(key, clip_generator(1, 2, key, 3).random(), draws[0])"
    )
    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    here = [
        key,
        clip_generator(1, 2, key, 3).random(),
        hashed_uniform(1, 2, np.array([key], np.uint64), 0, 0)[0],
    ]
    assert there == [str(value) for value in here]


def test_hashed_numbers_are_uniform_and_independent() -> None:
    keys = np.arange(100_000, dtype=np.uint64)
    first, second = (hashed_uniform(5, 1, keys, 0, draw) for draw in (0, 1))
    histogram = np.histogram(first, bins=20, range=(0, 1))[0]
    assert first.min() >= 0 and first.max() < 1
    assert np.abs(histogram - 5000).max() < 5 * np.sqrt(5000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first, hashed_uniform(5, 2, keys, 0, 0))[0, 1]) < 0.02


def test_rates_are_known_before_a_clip_is_read() -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    settings = Augmentation(speed=(0.8, 1.25), speed_probability=0.5, tempo=(0.9, 1.1), tempo_probability=0.3)
    seconds = np.linspace(0.5, 20.0, len(keys))
    speed, tempo = draw_rates(settings, 1, 0, keys, seconds, max_seconds=20.0)
    half = seconds < 10
    assert (speed[half] != 1).mean() == pytest.approx(0.5, abs=0.02)
    assert (tempo[half] != 1).mean() == pytest.approx(0.3, abs=0.02)
    assert 0.8 <= speed.min() < 0.81 and 1.24 < speed.max() <= 1.25
    assert (seconds / speed / tempo).max() <= 20.0  # nothing outgrows the limit


def test_settings_from_a_config() -> None:
    settings: dict[str, Any] = {"speed": [0.9, 1.1], "speed_probability": 0.5, "time_masks": 2}
    assert Augmentation.from_config(settings) == Augmentation(
        speed=(0.9, 1.1), speed_probability=0.5, time_masks=2
    )
    assert Augmentation.from_config(None) == Augmentation()
    with pytest.raises(UserError, match=r'augmentation.reverb_probabilty.*Did you mean "reverb_probability"'):
        Augmentation.from_config({"reverb_probabilty": 0.1})


def test_fft_lengths_are_smooth_and_near() -> None:
    for length in [1, 2, 7, 1000, 12345, 64001, 480_001]:
        best = fast_fft_length(length)
        assert length <= best <= max(8, 1.1 * length) and best % 2 == 0
        rest = best
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
