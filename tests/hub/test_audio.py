"""Audio in every shape it comes in, and everything that can be wrong with it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.tiny_models import noise
from tiny_audio.hub.asr_audio import SAMPLING_RATE, AudioError, audio_seconds, load_audio, read_blocks

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "8bit.wav": ("WAV", "PCM_U8"),
    "ulaw.wav": ("WAV", "ULAW"),
    "24bit.wav": ("WAV", "PCM_24"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
}


def tone(seconds: float, rate: int, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def loudest_hertz(waveform: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(waveform)).argmax()) * SAMPLING_RATE / len(waveform)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_tone_that_was_written(suffix: str, tmp_path: Path) -> None:
    kind, subtype = FORMATS[suffix]
    path = tmp_path / f"a tone.{suffix}"
    path.write_bytes(encoded(tone(1.0, 16000), 16000, kind, subtype))
    waveform = load_audio(path)
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert abs(len(waveform) - 16000) <= 2400  # MP3 pads with whole frames of 72 ms
    assert abs(loudest_hertz(waveform) - 440) < 2
    assert 0.2 < float(np.sqrt(np.mean(waveform**2))) < 0.32  # 0.4 / sqrt(2) = 0.283
    assert audio_seconds(path) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_number_of_channels_becomes_16_khz_mono(rate: int, channels: int) -> None:
    waveform = load_audio(encoded(tone(0.5, rate, channels=channels), rate))
    assert abs(len(waveform) - 8000) <= 1
    middle = slice(800, -800)  # away from the ringing of the resampler at the ends
    np.testing.assert_allclose(waveform[middle], tone(0.5, 16000)[: len(waveform), 0][middle], atol=2e-3)


def test_channels_are_averaged() -> None:
    left_only = tone(0.1, 16000, channels=2) * np.array([1.0, 0.0], np.float32)
    np.testing.assert_allclose(load_audio(encoded(left_only, 16000)), tone(0.1, 16000)[:, 0] / 2, atol=1e-4)


def test_resampling_in_blocks_equals_resampling_at_once() -> None:
    import soxr

    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 44100).astype(np.float32)
    at_once = soxr.resample(noise, 44100, 16000)
    np.testing.assert_allclose(load_audio(encoded(noise, 44100, "WAV", "FLOAT")), at_once, atol=1e-6)


class Pipe(io.RawIOBase):
    """A file object that cannot seek, such as standard input."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def test_paths_bytes_and_file_objects_are_the_same(tmp_path: Path) -> None:
    data = encoded(tone(0.2, 22050), 22050, "FLAC")
    path = tmp_path / "höhe 1.flac"
    path.write_bytes(data)
    expected = load_audio(path)
    file = io.BytesIO(data)
    assert audio_seconds(file) == pytest.approx(0.2)
    for source in (str(path), data, bytearray(data), memoryview(data), file, Pipe(data)):
        np.testing.assert_array_equal(load_audio(source), expected)
    with path.open("rb") as opened:
        np.testing.assert_array_equal(load_audio(opened), expected)
        assert not opened.closed


def wav_with_header(rate: int = 16000, declared_bytes: int = 0xFFFFFFFF, num_samples: int = 16000) -> bytes:
    samples = (tone(num_samples / 16000, 16000)[:, 0] * 32767).astype("<i2").tobytes()
    chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate & 0xFFFFFFFF, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 0xFFFFFFFF)
        + b"WAVE"
        + chunk
        + struct.pack("<4sI", b"data", declared_bytes)
        + samples
    )


def test_a_huge_declared_size_costs_nothing() -> None:
    assert len(load_audio(wav_with_header())) == 16000
    assert audio_seconds(wav_with_header()) == pytest.approx(1.0)


def flac_that_declares(num_samples: int) -> bytes:
    data = bytearray(encoded(tone(1.0, 16000), 16000, "FLAC"))
    # STREAMINFO after 4 bytes of magic and 4 of block header: the total is the last 36 bits before the MD5 at
    # 26.
    data[21] = (data[21] & 0xF0) | (num_samples >> 32)
    data[22:26] = struct.pack(">I", num_samples & 0xFFFFFFFF)
    return bytes(data)


def test_a_flac_written_to_a_pipe_declares_no_length_and_is_read() -> None:
    assert len(load_audio(flac_that_declares(0))) == 16000
    assert audio_seconds(flac_that_declares(0)) == pytest.approx(1.0)


def test_a_flac_that_declares_a_thousand_hours_is_read_to_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(load_audio(flac_that_declares((1 << 36) - 1))) == 16000
    assert "ends after 1.00 s of its 4294967.30 s" in caplog.text


def no_samples() -> bytes:
    return encoded(np.zeros((0, 1), np.float32), 16000)


def with_sample(value: float) -> bytes:
    samples = tone(0.5, 16000)
    samples[4000] = value
    return encoded(samples, 16000, "WAV", "FLOAT")


BAD_AUDIO: dict[str, tuple[Any, str]] = {
    "no samples": (no_samples(), "holds no samples"),
    "no bytes": (b"", r"is empty \(0 bytes\)"),
    "text": (b"this is not audio at all, but a shopping list", "is not audio that can be read"),
    "NaN": (with_sample(float("nan")), "NaN or infinite samples"),
    "infinity": (with_sample(float("-inf")), "NaN or infinite samples"),
    "integers as floats": (with_sample(-32768.0), r"samples reach 32,768 where full scale is 1\.0"),
    "rate of 1 Hz": (wav_with_header(rate=1), "declares 1 samples a second"),
    "rate of 3 GHz": (wav_with_header(rate=2_000_000_000), "declares 2,000,000,000 samples a second"),
    "one sample at 192 kHz": (encoded(tone(1 / 192000, 192000), 192000), "too few to resample"),
    "opened as text": (io.StringIO("RIFF"), "is open as text"),
    "a number": (7, "must be a path, bytes or a binary file object, not int"),
    "missing": ("nowhere/at all.wav", "nowhere/at all.wav: no such file"),
    "a folder": (Path(__file__).parent, "is a folder"),
    "a null byte": ("a\0b.wav", "cannot be read"),
}


@pytest.mark.parametrize("what", BAD_AUDIO)
def test_bad_audio_is_one_clear_line(what: str) -> None:
    source, message = BAD_AUDIO[what]
    with pytest.raises(AudioError, match=message) as caught:
        load_audio(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["notes.wav", "notes.raw", "notes.mp3"])
def test_text_under_an_audio_name_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("just words", encoding="utf-8")
    with pytest.raises(AudioError, match=f"{name}: is not audio that can be read.*ffmpeg"):
        load_audio(path)


def test_the_limit_in_seconds_stops_reading() -> None:
    class Counting(io.BytesIO):
        num_read = 0

        def readinto(self, buffer: Any) -> int:
            num = super().readinto(buffer)
            Counting.num_read += num
            return num

    data = encoded(np.zeros((600 * 16000, 1), np.float32), 16000)
    with pytest.raises(AudioError, match=r"lasts 600\.0 s, longer than the limit of 5 s"):
        load_audio(Counting(data), max_seconds=5)
    assert 0 < Counting.num_read < 0.05 * len(data)
    assert len(load_audio(encoded(tone(5.0, 44100), 44100), max_seconds=5)) == 80000


def test_exactly_silent_audio_is_audio() -> None:
    assert not load_audio(encoded(np.zeros((160, 1), np.float32), 16000)).any()


@pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg", "wav"])
def test_a_missing_end_leaves_the_beginning_and_a_warning(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"cut.{suffix}"
    data = encoded(tone(20.0, 16000), 16000, *FORMATS[suffix])
    path.write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.WARNING):
        waveform = load_audio(path)
    assert 5 * 16000 < len(waveform) <= 11 * 16000
    assert abs(loudest_hertz(waveform) - 440) < 2
    if suffix in ("flac", "mp3"):  # the headers of the others have no say in how long they are
        assert "cut." in caplog.text and "after" in caplog.text


def test_an_empty_file_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError) as caught:
        load_audio(tmp_path / "empty.wav")
    assert str(caught.value) == f"{tmp_path / 'empty.wav'}: is empty (0 bytes)"


class Breaks(io.BytesIO):
    """A file object whose connection is lost half way. A subclass, so that it is not taken for bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.half = len(data) // 2

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > self.half:
            raise OSError("connection reset")
        return super().read(size)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", None), ("FLAC", None), ("OGG", "VORBIS")])
def test_a_file_object_that_breaks_is_an_error_and_not_a_shorter_recording(kind: str, subtype: str) -> None:
    data = encoded(tone(60.0, 16000), 16000, kind, subtype)
    with pytest.raises(AudioError, match=r"cannot be read after .* s \(connection reset\)"):
        load_audio(Breaks(data))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (load_audio, audio_seconds):
        with pytest.raises(AudioError, match="is a pipe or a device"):
            read(tmp_path / "pipe")


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_name_that_is_no_text_can_be_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.flac"
    Path(os.fsdecode(path)).write_bytes(encoded(tone(1.0, 16000), 16000, "FLAC"))
    assert len(load_audio(os.fsdecode(path))) == 16000 and audio_seconds(os.fsdecode(path)) == 1.0


def test_a_length_that_has_to_be_counted_stops_at_the_damage() -> None:
    data = bytearray(encoded(tone(20.0, 16000) + 0.1 * noise(20.0)[:, None], 16000, "FLAC"))
    data[21] &= 0xF0  # the number of samples in STREAMINFO: 36 bits of zeros say that nobody knows
    data[22:26] = bytes(4)
    whole = audio_seconds(bytes(data))
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    assert whole == pytest.approx(20.0, abs=0.3) and 5 < audio_seconds(bytes(data)) <= whole


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_what_ffmpeg_cannot_do_is_said_in_its_first_words(tmp_path: Path) -> None:
    silent = tmp_path / "silent.mp4"
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        "color=s=16x16:d=1",
        "-c:v",
        "mpeg4",
        str(silent),
    ]
    subprocess.run(command, check=True)
    with pytest.raises(
        AudioError, match=r"silent.mp4: cannot be decoded \(Stream map '' ?matches no streams|0:a:0"
    ):
        load_audio(silent)
    junk = b"\xff\xf1\x50\x80\x02\x1f\xfc" * 200_000  # frames of AAC with nothing right in them
    tracemalloc.start()
    with contextlib.suppress(AudioError):
        load_audio(io.BytesIO(junk))
    assert tracemalloc.get_traced_memory()[1] < 30e6, "what it complains of is not kept"
    tracemalloc.stop()


def test_a_file_that_is_gone_when_it_has_been_read_was_read(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    soundfile.write(file, np.zeros(100_000, np.float32) + 0.1, 16_000)
    blocks = read_blocks(file)
    read = len(next(blocks))
    file.unlink()
    assert read + sum(map(len, blocks)) == 100_000
