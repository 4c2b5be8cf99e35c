"""Noises and rooms that somebody recorded, in place of synthetic ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.data.clips import RATE, clip
from tests.train.short_runs import settings, write_speech
from tiny_audio.data.augment import Augmentation, augment_waveform, clip_generator
from tiny_audio.data.recorded import LONGEST_NOISE_SECONDS, draw_noise, draw_room
from tiny_audio.errors import UserError
from tiny_audio.train.records import read_metrics
from tiny_audio.train.run import run


def power(waveform: np.ndarray) -> float:
    return float(np.mean(waveform.astype(np.float64) ** 2))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def hum(tmp_path: Path) -> Path:
    """A folder with a hum of 200 Hz at 8 kHz, shorter than most clips, below another one."""
    folder = tmp_path / "noises" / "inner"
    folder.mkdir(parents=True)
    soundfile.write(folder / "hum.FLAC", 0.1 * np.sin(2 * np.pi * 200 * np.arange(4000) / 8000), 8000)
    (folder / "read.me").write_text("no audio")
    return tmp_path / "noises"


def test_a_recorded_noise_is_added_at_the_level_that_was_drawn(hum: Path) -> None:
    noisy = Augmentation.from_config(
        {"noise_probability": 1.0, "noise_snr_db": [10.0, 10.0], "noise_files": str(hum)}
    )
    speech = clip(2.0, 3) * np.float32(0.3)
    heard = augment_waveform(speech, noisy, generator(), 1.0, 1.0)
    noise = heard - speech
    assert 10 * np.log10(power(speech) / power(noise)) == pytest.approx(10.0, abs=0.1)
    loudest = np.fft.rfftfreq(len(noise), 1 / RATE)[np.abs(np.fft.rfft(noise)).argmax()]
    assert loudest == pytest.approx(200, abs=2)
    np.testing.assert_array_equal(heard, augment_waveform(speech, noisy, generator(), 1.0, 1.0))


def test_long_noises_are_heard_from_different_places(tmp_path: Path) -> None:
    seconds = LONGEST_NOISE_SECONDS + 5
    ramp = np.linspace(0.1, 0.9, round(seconds * RATE)).astype(np.float32)
    soundfile.write(tmp_path / "ramp.wav", ramp, RATE, subtype="FLOAT")
    parts = [draw_noise([tmp_path / "ramp.wav"], RATE, clip_generator(0, 0, key, 2)) for key in range(20)]
    assert all(len(part) == RATE for part in parts) and len({float(part[0]) for part in parts}) > 15
    most = ramp[round(LONGEST_NOISE_SECONDS * RATE)]
    assert max(part.max() for part in parts) <= most


def test_a_recorded_room_echoes_and_leaves_speech_in_its_place(tmp_path: Path) -> None:
    response = np.zeros(RATE // 2, np.float32)
    response[800], response[800 + 1600] = 0.8, 0.4  # the direct sound after 50 ms, an echo 100 ms later
    soundfile.write(tmp_path / "room.wav", response, RATE, subtype="FLOAT")
    room = draw_room([tmp_path / "room.wav"], generator())
    assert (
        room.argmax() == 0
        and room[1600] == pytest.approx(room[0] / 2)
        and power(room) * len(room) == pytest.approx(1)
    )
    echoing = Augmentation(reverb_probability=1.0, reverb_files=(tmp_path / "room.wav",))
    click = np.zeros(RATE, np.float32)
    click[1000] = 0.5
    heard = augment_waveform(click, echoing, generator(), 1.0, 1.0)
    assert np.flatnonzero(np.abs(heard) > 0.1).tolist() == [1000, 2600]


def test_a_run_hears_them_in_its_workers(hum: Path, tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech")
    noisy = ["augmentation.noise_probability=1", f"augmentation.noise_files={hum}"]
    losses = []
    for name, options in (("plain", []), ("alone", noisy), ("workers", [*noisy, "training.num_workers=2"])):
        run(settings(speech, tmp_path / name, "data.test=null", "training.max_steps=2", *options))
        losses.append(
            [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        )
    assert losses[0] != losses[1] == losses[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"noise_files": "nowhere", "noise_probability": 1.0},
            "augmentation.noise_files=nowhere is no folder",
        ),
        (
            {"reverb_files": "empty", "reverb_probability": 1.0},
            "augmentation.reverb_files=empty holds no audio",
        ),
        ({"noise_files": "broken"}, "but augmentation.noise_probability=0: none would be heard"),
    ],
)
def test_what_cannot_be_heard_is_said_at_the_start(
    changes: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/x.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=message):
        Augmentation.from_config(changes)


@pytest.mark.parametrize("content", [b"RIFF", None])
def test_a_file_that_is_none_is_named(content: bytes | None, tmp_path: Path) -> None:
    if content is None:
        soundfile.write(tmp_path / "x.wav", np.zeros(100), RATE)
    else:
        (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(UserError, match=r"augmentation.reverb_files: .*x.wav (cannot be read|is silent)"):
        draw_room([tmp_path / "x.wav"], generator())
