"""Audio files to waveforms: libsndfile (or ffmpeg) decodes, soxr resamples, and anything odd becomes one clear line.

Legend: S samples at the wanted sampling rate, N frames of the file, C channels of the file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import struct
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import soundfile
import soxr

from .asr_ffmpeg import FORMATS_WITH_FFMPEG, HEADER_BYTES, decode_with_ffmpeg, demuxer_for

logger = logging.getLogger(__name__)

AudioSource: TypeAlias = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO

SAMPLING_RATE = 16_000
READABLE_FORMATS = "WAV, FLAC, OGG (Vorbis or Opus), MP3, AIFF, AU, CAF or W64"

# Rates that recordings of speech have are 8-192 kHz; far beyond that a header lies, and resampling it could
# ask for any amount of memory (a header of 1 Hz turns 1 MB into 16,000 times as many samples).
LOWEST_SAMPLING_RATE = 4_000
HIGHEST_SAMPLING_RATE = 768_000
# Full scale is 1.0 and a float file may exceed it a little. 32768 means 16-bit integers stored as floats.
HIGHEST_AMPLITUDE = 100.0
# One block is read at a time: a limit in seconds then costs no more than the limit, whatever the header
# declares, and a broken end loses at most one block of what came before.
BLOCK_SAMPLES = 1 << 15
# libsndfile declares SF_COUNT_MAX, or nothing, where a stream does not know its own length.
UNKNOWN_FRAMES = 1 << 62
# What programs write into a WAV header that is sent before its length is known lies above this.
UNKNOWN_WAV_BYTES = 0x7FFF0000
WAV_HEADER_BYTES = 4096  # chunks of names and places before the samples
OGG_PAGE_BYTES = 65_307  # the largest
OGG_LAST_PAGE = 4


class AudioError(ValueError):
    """Audio that cannot be used; the message is one line that names the audio and what to do."""


@dataclass(frozen=True)
class Damage:
    """Audio that ends too early: after `seconds` in place of `declared_seconds` (None: not known), and why."""

    seconds: float
    declared_seconds: float | None
    reason: str


class _SequentialFile(soundfile.SoundFile):
    """A file that is read from start to end.

    soundfile seeks after every read of a file that can seek. FLAC that was written to a pipe, and
    so declares no length, fails at that, and it slows MP3 down.
    """

    watched: _WatchedFile | None = None

    def seekable(self) -> bool:
        return False


class _WatchedFile:
    """A file object of the caller's. libsndfile takes an error of its `read` for the end of the audio: it is kept."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: Exception | None = None
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        return self._tried(self._file.read, size) or b""

    def readinto(self, buffer: Any) -> int:
        if hasattr(self._file, "readinto"):
            return self._tried(self._file.readinto, buffer) or 0
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _tried(self, function: Any, argument: Any) -> Any:
        try:
            return None if self.error else function(argument)
        except Exception as error:  # a file object may be anything: an archive, a network
            self.error = error
            return None


def load_audio(
    source: AudioSource,
    sampling_rate: int = SAMPLING_RATE,
    max_seconds: float | None = None,
) -> np.ndarray:
    """Decode audio to a mono waveform: float32 (S,).

    Arguments and errors are those of `read_blocks`.
    """
    blocks = list(read_blocks(source, sampling_rate, max_seconds))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def read_blocks(
    source: AudioSource,
    sampling_rate: int = SAMPLING_RATE,
    max_seconds: float | None = None,
) -> Generator[np.ndarray, None, Damage | None]:
    """Decode audio block by block, so that memory does not grow with its length.

    Args:
        source: path, encoded bytes, or binary file object (read from its start where it can seek; left open).
        sampling_rate: of the result, in Hz.
        max_seconds: longest audio that is accepted. Reading stops as soon as it is passed.

    Yields:
        Parts of the mono waveform, the mean of all channels: float32, at least one sample; full scale is 1.0.

    Returns:
        What is missing at the end (`damage = yield from read_blocks(...)`), or None.

    Raises:
        AudioError: missing, not audio, no samples, non-finite or unscaled samples, or too long. Audio whose
            end is missing is yielded as far as it reads.
    """
    name = describe_source(source)
    if hasattr(source, "read") and not _can_seek(source):  # the format is to be seen before it is read
        source = _read_whole(source, name)
    demuxer = demuxer_for(_header(source))
    if demuxer is not None:
        return (yield from _read_with_ffmpeg(source, name, demuxer, sampling_rate, max_seconds))
    num_samples = 0
    with _open(source, name) as file:
        rate = file.samplerate
        resample = (
            None if rate == sampling_rate else soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32")
        )
        num_frames = 0
        decoded = Reading(_decode(file, name))
        for mono in decoded:
            num_frames += len(mono)
            if max_seconds is not None and num_frames > max_seconds * rate:
                raise AudioError(_too_long(name, max(num_frames, file.frames), rate, max_seconds))
            block = mono if resample is None else resample.resample_chunk(mono)
            num_samples += len(block)
            if len(block):
                yield np.ascontiguousarray(block, dtype=np.float32)
        if num_frames and resample is not None:
            block = resample.resample_chunk(np.zeros(0, np.float32), last=True)
            num_samples += len(block)
            if len(block):
                yield block
    if num_frames == 0:
        raise AudioError(f"{name}: holds no samples (0 s of audio)")
    if num_samples == 0:
        raise AudioError(f"{name}: holds only {num_frames} samples at {rate} Hz, too few to resample")
    damage = decoded.damage
    if damage is None:
        with contextlib.suppress(Exception):  # all was read, and what is gone since need not be asked
            reason = _cut_off(source)
            damage = None if reason is None else Damage(num_frames / rate, None, reason)
    return _noted(damage, name)


class Reading:
    """A recording's blocks and, when they have been read, what is missing at its end."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self._blocks = blocks
        self.damage: Damage | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        if isinstance(self._blocks, Generator):  # of `read_blocks`
            self.damage = yield from self._blocks
        else:
            yield from self._blocks


def _noted(damage: Damage | None, name: str) -> Damage | None:
    if damage is not None:
        of = "" if damage.declared_seconds is None else f" of its {damage.declared_seconds:.2f} s"
        logger.warning("%s: ends after %.2f s%s (%s)", name, damage.seconds, of, damage.reason)
    return damage


def _cut_off(source: AudioSource) -> str | None:
    """Why the file must have been longer, where libsndfile reads what is there as if it were all."""
    header = _header(source, WAV_HEADER_BYTES)
    if header[:4] == b"RIFF":
        declared = _declared_wav_bytes(header)
        if declared is not None and declared > (num_bytes := _num_bytes(source)):
            return f"the file is cut off: {num_bytes:,} of {declared:,} bytes"
    elif header[:4] == b"OggS":
        tail = _tail(source, OGG_PAGE_BYTES)
        last = tail.rfind(b"OggS")
        if last >= 0 and len(tail) > last + 5 and not tail[last + 5] & OGG_LAST_PAGE:
            return "the file is cut off: its last page is missing"
    return None


def _declared_wav_bytes(header: bytes) -> int | None:
    """How long a WAV file is by its header; None where that was not known when it was written."""
    place = 12  # behind "RIFF", a length, "WAVE"
    while place + 8 <= len(header):
        name, length = header[place : place + 4], struct.unpack("<I", header[place + 4 : place + 8])[0]
        if name == b"data":
            return place + 8 + length if length < UNKNOWN_WAV_BYTES else None
        place += 8 + length + length % 2
    return None


def _num_bytes(source: Any) -> int:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return memoryview(source).nbytes
    if isinstance(source, (str, os.PathLike)):
        return os.stat(source).st_size
    return int(source.seek(0, os.SEEK_END))


def _tail(source: Any, length: int) -> bytes:
    """The last bytes of the audio."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(memoryview(source).cast("B")[-length:])
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            return _tail(file, length)
    source.seek(max(0, source.seek(0, os.SEEK_END) - length))
    return bytes(source.read(length))


def _read_with_ffmpeg(
    source: AudioSource, name: str, demuxer: str, sampling_rate: int, max_seconds: float | None
) -> Generator[np.ndarray, None, Damage | None]:
    """`read_blocks` of what libsndfile does not know."""
    encoded: Any = os.fspath(source) if isinstance(source, os.PathLike) else source
    if isinstance(source, (bytearray, memoryview)):
        encoded = bytes(source)
    elif not isinstance(encoded, (str, bytes)):
        encoded.seek(0)
    num_samples = 0
    damage = None
    try:
        for block in decode_with_ffmpeg(encoded, demuxer, sampling_rate):
            check_samples(block, num_samples / sampling_rate, name)
            num_samples += len(block)
            if max_seconds is not None and num_samples > max_seconds * sampling_rate:
                raise AudioError(_too_long(name, UNKNOWN_FRAMES, sampling_rate, max_seconds))
            yield block
    except AudioError:
        raise
    except (OSError, ValueError) as error:
        if num_samples == 0:
            raise AudioError(f"{name}: cannot be decoded ({_reason(error)})") from error
        damage = Damage(num_samples / sampling_rate, None, _reason(error))
    if num_samples == 0:
        raise AudioError(f"{name}: holds no samples (0 s of audio)")
    return _noted(damage, name)


def _header(source: AudioSource, length: int = HEADER_BYTES) -> bytes:
    """The first bytes of the audio, as far as they can be had without consuming it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source[:length])
    if isinstance(source, (str, os.PathLike)):
        try:
            if not Path(source).is_file():  # a pipe would keep it waiting
                return b""
            with open(source, "rb") as file:
                return file.read(length)
        except (OSError, ValueError):
            return b""  # `_open` says what is the matter
    if not hasattr(source, "read") or not _can_seek(source):
        return b""
    source.seek(0)
    header = source.read(length)
    source.seek(0)
    return header if isinstance(header, bytes) else b""


def _decode(file: _SequentialFile, name: str) -> Generator[np.ndarray, None, Damage | None]:
    """The file's blocks at its own rate, channels averaged: float32 (N,), checked. Returns what is missing."""
    rate, declared_frames = file.samplerate, file.frames
    declared_seconds = declared_frames / rate if 0 < declared_frames < UNKNOWN_FRAMES else None
    block_frames = max(1, BLOCK_SAMPLES // file.channels)
    num_frames = 0
    while True:
        try:
            block = file.read(block_frames, dtype="float32", always_2d=True)  # (N, C)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            if num_frames == 0:
                raise AudioError(f"{name}: cannot be decoded ({_reason(error)}); is it damaged?") from error
            return Damage(num_frames / rate, declared_seconds, f"broken: {_reason(error)}")
        failure = file.watched.error if file.watched else None
        if failure is not None:
            raise AudioError(
                f"{name}: cannot be read after {num_frames / rate:.2f} s ({_reason(failure)})"
            ) from failure
        if len(block) == 0:
            missing = declared_frames - num_frames
            if num_frames and declared_seconds is not None and missing > rate // 10:
                return Damage(num_frames / rate, declared_seconds, "the end is missing")
            return None
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)  # (N,)
        check_samples(mono, num_frames / rate, name)
        num_frames += len(mono)
        yield mono


def audio_seconds(source: AudioSource) -> float:
    """Length of the audio in seconds by its header; streams that do not declare one are decoded to find it.

    Raises:
        AudioError: missing, not audio, or no samples.
    """
    name = describe_source(source)
    if demuxer_for(_header(source)) is not None:
        return sum(len(block) for block in read_blocks(source)) / SAMPLING_RATE
    with _open(source, name) as file:
        frames = file.frames
        if not 0 < frames < UNKNOWN_FRAMES:
            frames = sum(len(mono) for mono in _decode(file, name))
        if frames == 0:
            raise AudioError(f"{name}: holds no samples (0 s of audio)")
        return frames / file.samplerate


def declared_seconds(source: AudioSource) -> float | None:
    """Length of the audio as its header has it; None where it does not, or cannot be read."""
    try:
        if demuxer_for(_header(source)) is not None:
            return None
        with _open(source, describe_source(source)) as file:
            return file.frames / file.samplerate if 0 < file.frames < UNKNOWN_FRAMES else None
    except AudioError:
        return None


def describe_source(source: Any) -> str:
    """The name by which messages call `source`: its path, or what it is."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"audio of {len(source):,} bytes"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"audio from a {type(source).__name__}"


def _open(source: AudioSource, name: str) -> _SequentialFile:
    opened: Any
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not os.fspath(source):
            raise AudioError("the path of the audio is empty")
        if path.is_dir():
            raise AudioError(f"{name}: is a folder, not an audio file")
        try:
            num_bytes = path.stat().st_size
        except FileNotFoundError:
            raise AudioError(f"{name}: no such file") from None
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            raise AudioError(f"{name}: cannot be read ({_reason(error)})") from error
        if not path.is_file():
            raise AudioError(f"{name}: is a pipe or a device, not an audio file")
        if num_bytes == 0:
            raise AudioError(f"{name}: is empty (0 bytes)")
        opened = os.fsencode(path) if os.name == "posix" else str(path)  # a name need not be UTF-8
    elif isinstance(source, (bytes, bytearray, memoryview)):
        opened = io.BytesIO(source)
    elif hasattr(source, "read"):
        opened = source if _can_seek(source) else _read_whole(source, name)
        if isinstance(opened, io.TextIOBase):
            raise AudioError(f'{name}: is open as text; open it with mode "rb"')
        opened.seek(0)
        if type(opened) is not io.BytesIO:
            opened = _WatchedFile(opened)
    else:
        raise AudioError(
            f"{name}: audio must be a path, bytes or a binary file object, not {type(source).__name__}"
        )
    if isinstance(opened, io.BytesIO) and opened.getbuffer().nbytes == 0:
        raise AudioError(f"{name}: is empty (0 bytes)")
    try:
        file = _SequentialFile(opened)
        file.watched = opened if isinstance(opened, _WatchedFile) else None
    # soundfile takes a name that ends in .raw for headerless samples and asks for a rate with TypeError.
    except (soundfile.LibsndfileError, RuntimeError, TypeError, OSError) as error:
        raise AudioError(
            f"{name}: is not audio that can be read ({_reason(error)}); it must be {READABLE_FORMATS}, or with "
            f"ffmpeg {FORMATS_WITH_FFMPEG}"
        ) from error
    if not LOWEST_SAMPLING_RATE <= file.samplerate <= HIGHEST_SAMPLING_RATE:
        rate = file.samplerate
        file.close()
        raise AudioError(
            f"{name}: declares {rate:,} samples a second; between {LOWEST_SAMPLING_RATE:,} and "
            f"{HIGHEST_SAMPLING_RATE:,} are supported"
        )
    return file


def _can_seek(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return seekable is not None and seekable()


def _read_whole(file: Any, name: str) -> io.BytesIO:
    data = file.read()
    if not isinstance(data, (bytes, bytearray)):
        raise AudioError(f'{name}: is open as text; open it with mode "rb"')
    return io.BytesIO(data)


def check_samples(mono: np.ndarray, start_seconds: float, name: str) -> None:
    # One pass in the good case: the largest magnitude is NaN or infinite where any sample is.
    peak = max(float(mono.max()), -float(mono.min()))
    if not np.isfinite(peak):
        raise AudioError(f"{name}: has NaN or infinite samples (first seen at {start_seconds:.1f} s)")
    if peak > HIGHEST_AMPLITUDE:
        raise AudioError(
            f"{name}: samples reach {peak:,.0f} where full scale is 1.0; were integers written as floats?"
        )


def _too_long(name: str, frames: int, rate: int, max_seconds: float) -> str:
    length = f"lasts {frames / rate:,.1f} s" if frames < UNKNOWN_FRAMES else f"lasts over {max_seconds:g} s"
    return f"{name}: {length}, longer than the limit of {max_seconds:g} s"


def _reason(error: Exception) -> str:
    """The cause alone: libsndfile's own words without the path, which the message already names."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).removeprefix("Error : ").split()).rstrip(". ")
