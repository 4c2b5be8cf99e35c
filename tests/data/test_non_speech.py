"""Sounds that are not speech: of every kind, in bounds, the same for the same seed, and with an empty transcript."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.clips import MelProcessor, spoken, write_manifest
from tiny_audio.data.loader import TrainData
from tiny_audio.data.non_speech import random_non_speech
from tiny_audio.data.sources import open_sources

RATE = 16000


def sounds(count: int = 200, seconds: float = 1.0) -> list[np.ndarray]:
    return [random_non_speech(round(seconds * RATE), np.random.default_rng(seed)) for seed in range(count)]


def test_sounds_are_float32_of_the_length_asked_for_and_in_bounds() -> None:
    for sound in sounds():
        assert sound.dtype == np.float32 and sound.shape == (RATE,)
        assert np.isfinite(sound).all()
        assert np.abs(sound).max() <= 10 ** (-3 / 20) + 1e-6


@pytest.mark.parametrize("num_samples", [1, 2, 159, 401, 48_001])
def test_any_length_can_be_asked_for(num_samples: int) -> None:
    for seed in range(40):
        sound = random_non_speech(num_samples, np.random.default_rng(seed))
        assert len(sound) == num_samples and np.isfinite(sound).all()


def test_the_same_seed_makes_the_same_sound_and_another_one_another() -> None:
    for seed in range(10):
        first, again = (random_non_speech(8000, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first, again)
    different = {sound.tobytes() for sound in sounds(100) if sound.any()}
    assert len(different) > 85


def flatness(sound: np.ndarray) -> float:
    """1 for white noise, near 0 for a tone: geometric by arithmetic mean of the power spectrum."""
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2 + 1e-20
    return float(np.exp(np.log(power).mean()) / power.mean())


def test_silence_noise_tones_and_knocks_all_occur() -> None:
    everything = sounds(300)
    peaks = np.array([np.abs(sound).max() for sound in everything])
    assert 0.01 < np.mean(peaks == 0) < 0.1, "digital silence"
    assert np.mean((peaks > 0) & (peaks < 10 ** (-60 / 20))) > 0.05, "what a silent room still records"
    assert np.mean(peaks > 0.1) > 0.2, "loud ones"
    loud = [sound for sound, peak in zip(everything, peaks, strict=True) if peak > 1e-3]
    flat = np.array([flatness(sound) for sound in loud])
    assert np.mean(flat < 1e-3) > 0.15, "tones"
    assert np.mean(flat > 0.05) > 0.1, "noises"
    crest = np.array([np.abs(sound).max() / np.std(sound) for sound in loud])
    assert np.mean(crest > 8) > 0.03, "knocks"
    assert np.mean(crest < 2) > 0.03, "held tones"


LENGTHS = [0.4 + 0.1 * (number % 6) for number in range(40)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("clips"), LENGTHS, speaker="s")


def epoch_of(manifest: Path, epoch: int = 0, **augmentation: Any) -> dict[str, tuple[str, torch.Tensor]]:
    """Transcript and features of each clip by its id, read one at a time."""
    data = TrainData(
        open_sources(manifest),
        MelProcessor(),
        seed=3,
        batch_seconds=6.0,
        max_clips=1,
        augmentation=augmentation,
    )
    return {
        batch["utterance_ids"][0]: (spoken(batch)[0], batch["input_features"][0])
        for batch in data.batches(epoch)
    }


def test_a_share_of_the_clips_becomes_other_sounds_without_a_word(manifest: Path) -> None:
    plain, mixed = epoch_of(manifest), epoch_of(manifest, non_speech_probability=0.4)
    assert sorted(plain) == sorted(mixed)
    replaced = {name for name, (text, _) in mixed.items() if text == ""}
    assert 8 <= len(replaced) <= 24
    for name, (text, features) in plain.items():
        longer = mixed[name][1].shape[-1] - features.shape[-1]
        assert longer in (-1, 0), "as long as the clip that the planner counted on"
        if name in replaced:
            assert not torch.equal(mixed[name][1], features)
        else:  # the others are left as they were
            assert mixed[name][0] == text and torch.equal(mixed[name][1], features)


def test_other_epochs_replace_other_clips_and_the_same_one_the_same(manifest: Path) -> None:
    first, again, other = (
        epoch_of(manifest, epoch, non_speech_probability=0.4, speed=[0.8, 1.2], speed_probability=0.5)
        for epoch in (0, 0, 1)
    )
    assert all(torch.equal(first[name][1], again[name][1]) for name in first)
    assert {n for n, (text, _) in first.items() if not text} != {
        n for n, (text, _) in other.items() if not text
    }


def test_all_and_none(manifest: Path) -> None:
    assert all(text == "" for text, _ in epoch_of(manifest, non_speech_probability=1.0).values())
    assert all(text for text, _ in epoch_of(manifest, non_speech_probability=0.0).values())
