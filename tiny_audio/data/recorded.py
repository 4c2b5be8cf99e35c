"""Noises and rooms that somebody recorded, for the augmentation: folders of audio files in any format."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiny_audio.data.folder import AUDIO_SUFFIXES
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_audio import SAMPLING_RATE, read_blocks

# What is kept in memory of each process: 16 files of at most this length are 38 MB.
LONGEST_NOISE_SECONDS = 38.0
FILES_IN_MEMORY = 16
NOISE_KEY, REVERB_KEY = "augmentation.noise_files", "augmentation.reverb_files"
# An echo that comes later than this is 60 dB down in all but churches.
LONGEST_ROOM_SECONDS = 1.0


def recordings(folder: str, key: str) -> tuple[Path, ...]:
    """The audio files below `folder`, which the config names by `key`. Raises UserError where there are none."""
    path = Path(folder).expanduser()
    found = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()
    )
    if not found:
        there = "holds no audio" if path.is_dir() else "is no folder"
        raise UserError(f"{key}={folder} {there}: it wants a folder of .wav, .flac or other audio files")
    return tuple(found)


def draw_noise(files: Sequence[Path], length: int, generator: np.random.Generator) -> np.ndarray:
    """A part of one of the noises, float32 (length,); a short one is heard again and again.

    Raises:
        UserError: the file that was drawn cannot be decoded, or is silent.
    """
    noise = _decoded(files[int(generator.integers(len(files)))], NOISE_KEY)
    start = int(generator.integers(max(1, len(noise) - length + 1)))
    return np.resize(noise[start : start + length], length)


def draw_room(files: Sequence[Path], generator: np.random.Generator) -> np.ndarray:
    """One of the impulse responses, float32 (S,) with unit energy, from its loudest moment on: speech keeps its place.

    Raises:
        UserError: as `draw_noise`.
    """
    response = _decoded(files[int(generator.integers(len(files)))], REVERB_KEY)
    direct = int(np.abs(response).argmax())
    room = response[direct : direct + round(LONGEST_ROOM_SECONDS * SAMPLING_RATE)]
    return room / np.float32(np.sqrt(float(room @ room)))


@functools.lru_cache(maxsize=FILES_IN_MEMORY)
def _decoded(file: Path, key: str) -> np.ndarray:
    try:
        waveform = _beginning(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {file} cannot be read: {error}") from error
    if not np.any(waveform):
        raise UserError(f"{key}: {file} is silent")
    return waveform


def _beginning(file: Path) -> np.ndarray:
    """As much as is kept: half a minute that comes again is noise enough."""
    blocks, wanted = [], round(LONGEST_NOISE_SECONDS * SAMPLING_RATE)
    for block in read_blocks(file):
        blocks.append(block[:wanted])
        wanted -= len(blocks[-1])
        if wanted == 0:
            break
    return np.concatenate(blocks)
