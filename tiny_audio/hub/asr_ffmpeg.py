"""Audio that libsndfile does not read (M4A, MP4, WebM, AAC, WMA ...), through an ffmpeg program where there is one."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

# First bytes to ffmpeg's demuxer, which is then told to use that one and no other: a playlist dressed up as audio
# could otherwise make it fetch URLs and read files.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mov"),  # MP4, M4A, 3GP, QuickTime
    (0, b"\x1a\x45\xdf\xa3", "matroska"),  # WebM, MKV
    (0, b"\xff\xf1", "aac"),
    (0, b"\xff\xf9", "aac"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),  # WMA
    (0, b"#!AMR", "amr"),
)
HEADER_BYTES = 16
BLOCK_BYTES = 1 << 17
ERROR_BYTES = 1 << 12
COMPONENT = re.compile(r"^\[[^]]* @ 0x[0-9a-f]+\] ")  # which part of ffmpeg speaks
FORMATS_WITH_FFMPEG = "M4A, MP4, WebM, Matroska, AAC, WMA and AMR"


def demuxer_for(header: bytes) -> str | None:
    """ffmpeg's demuxer for a file that begins with `header`; None for what libsndfile is to try."""
    for offset, signature, demuxer in SIGNATURES:
        if header[offset : offset + len(signature)] == signature:
            return demuxer
    return None


def decode_with_ffmpeg(
    source: str | bytes | BinaryIO, demuxer: str, sampling_rate: int
) -> Iterator[np.ndarray]:
    """Blocks of the mono waveform at `sampling_rate`: float32 (N,).

    Args:
        source: a path, or the encoded bytes or a file object from its place on (laid into a temporary file, block by
            block: MP4 has to be read back and forth).
        demuxer: as `demuxer_for` returned it.

    Raises:
        OSError: there is no ffmpeg; the message says how to get one.
        ValueError: ffmpeg cannot decode the audio; the message is its own first line.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise OSError(
            f"{FORMATS_WITH_FFMPEG} need the program ffmpeg, and there is none on this machine: install it "
            "(apt install ffmpeg, brew install ffmpeg, winget install ffmpeg), or convert the file elsewhere to FLAC"
        )
    with contextlib.ExitStack() as stack:
        if isinstance(source, str):
            path = source
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path = str(folder / "audio")
            with open(path, "wb") as copy:
                shutil.copyfileobj(
                    io.BytesIO(source) if isinstance(source, bytes) else source, copy, BLOCK_BYTES
                )
        command = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file", "-f", demuxer]
        command += ["-i", f"file:{path}", "-map", "0:a:0", "-ac", "1", "-ar", str(sampling_rate)]
        process = subprocess.Popen(
            [*command, "-f", "f32le", "pipe:1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        words = bytearray()
        listener = threading.Thread(target=_keep_beginning, args=(process.stderr, words), daemon=True)
        listener.start()
        try:
            while data := process.stdout.read(BLOCK_BYTES):
                yield np.frombuffer(data[: len(data) // 4 * 4], dtype="<f4")
            failed = process.wait() != 0
        finally:  # also where the caller stops reading
            process.kill()
            process.wait()
            process.stdout.close()
            listener.join()
            process.stderr.close()
        if failed:
            first, *_ = [*words.decode(errors="replace").strip().splitlines(), "ffmpeg failed without a word"]
            raise ValueError(COMPONENT.sub("", first).removeprefix(f"file:{path}: "))


def _keep_beginning(stream: IO[bytes], kept: bytearray) -> None:
    """Reads a stream to its end, and keeps the first of it: a damaged file has more complaints than audio."""
    while data := stream.read(BLOCK_BYTES):
        kept += data[: max(0, ERROR_BYTES - len(kept))]
