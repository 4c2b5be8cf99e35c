"""A recogniser that is a program: it gets the name of a WAV file and prints what it hears."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import numpy as np

from tiny_audio.errors import UserError
from tiny_audio.evaluate.providers import SAMPLING_RATE, Waveform, printable

FILE_MARK = "{file}"
MAX_OUTPUT_BYTES = 2**20
MAX_SHOWN_CHARACTERS = 300
POLL_SECONDS = 0.05


class CommandProvider:
    """A command line, run once a clip without a shell.

    `{file}` in it is replaced by the path of a 16 kHz mono 16-bit WAV file, which is appended where there is no
    such mark. What the program prints is the transcript; lines are joined by spaces. Anything but exit status 0,
    more than a megabyte, or a time limit that has passed is a failure of that clip. A program that has passed the
    limit before it ever gave a transcript is taken to hang, which ends the evaluation.

    Args:
        command: for instance `whisper-cli -m model.bin -nt {file}`.
        limit_seconds: for a clip of no length; each second of audio adds `limit_seconds_per_second`.
    """

    max_seconds: float | None = None
    costs_money = False
    price_usd_per_hour: float | None = None
    limit_seconds_per_second = 20.0

    def __init__(self, command: str, limit_seconds: float = 60.0) -> None:
        self.limit_seconds = limit_seconds
        self._has_answered = False
        try:
            self.arguments = shlex.split(command)
        except ValueError as error:
            raise UserError(f"Cannot read the command {printable(command)}: {error}.") from None
        if not self.arguments:
            raise UserError('The command is empty; write --provider "cmd: PROGRAM ARGUMENTS {file}".')
        program = shutil.which(self.arguments[0])
        if program is None:
            raise UserError(f"There is no program {printable(self.arguments[0])} to run; give its path.")
        self.arguments[0] = program
        if not any(FILE_MARK in argument for argument in self.arguments):
            self.arguments.append(FILE_MARK)

    @property
    def identity(self) -> str:
        """The command, and size and time of each file that it names: a changed script is another recogniser."""
        files = [Path(argument) for argument in self.arguments if os.path.isfile(argument)]
        stamps = [f"{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
        return f"cmd: {shlex.join(self.arguments)} [{' '.join(stamps)}]"

    def transcribe(self, waveforms: list[Waveform]) -> list[str | Exception]:
        results: list[str | Exception] = []
        with tempfile.TemporaryDirectory(prefix="tiny-audio-", ignore_cleanup_errors=True) as folder:
            for waveform in waveforms:
                try:
                    results.append(self._run(waveform, Path(folder)))
                except (OSError, ValueError, subprocess.SubprocessError) as error:
                    results.append(error)
        return results

    def _run(self, waveform: Waveform, folder: Path) -> str:
        import soundfile

        path = folder / "clip.wav"
        soundfile.write(path, np.clip(waveform, -1.0, 1.0), SAMPLING_RATE, subtype="PCM_16")
        limit_seconds = self.limit_seconds + self.limit_seconds_per_second * len(waveform) / SAMPLING_RATE
        # Into files: a pipe stays open as long as any grandchild of the program holds it.
        with (folder / "output").open("w+b") as output, (folder / "errors").open("w+b") as errors:
            process = subprocess.Popen(
                [argument.replace(FILE_MARK, str(path)) for argument in self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
            try:
                status = watch(process, limit_seconds, (output, errors))
            except TimeoutError as error:
                if self._has_answered:
                    raise
                raise UserError(
                    f"{error} for its first clip ({len(waveform) / SAMPLING_RATE:.1f} s of sound). Does it wait for"
                    f" something? Try it by hand: {printable(shlex.join(self.arguments))}"
                ) from None
            finally:  # Ctrl-C as well
                end(process)
            if status != 0:
                lines = read_back(errors).splitlines()
                reason = f": {lines[-1].strip()[:MAX_SHOWN_CHARACTERS]}" if lines else ""
                raise ValueError(f"the command failed with exit status {status}{printable(reason)}")
            self._has_answered = True
            return " ".join(read_back(output).split())


def watch(process: subprocess.Popen[bytes], limit_seconds: float, files: tuple[IO[bytes], ...]) -> int:
    """The exit status. Raises TimeoutError after `limit_seconds`, ValueError for a program that writes too much."""
    deadline = time.monotonic() + limit_seconds
    while True:
        try:
            status = process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        if any(os.fstat(file.fileno()).st_size > MAX_OUTPUT_BYTES for file in files):
            raise ValueError(f"the command printed more than {MAX_OUTPUT_BYTES:,} bytes for one clip")
        if status is not None:
            return status
        if time.monotonic() > deadline:
            raise TimeoutError(f"the command did not end within {limit_seconds:.0f} s")


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program that still runs, with what it has started (on Windows the program alone), and wait for it."""
    if process.poll() is None:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def read_back(file: IO[bytes]) -> str:
    """What was written; bytes that are no UTF-8 become replacement characters."""
    file.seek(0)
    return file.read().decode("utf-8", errors="replace").strip()
