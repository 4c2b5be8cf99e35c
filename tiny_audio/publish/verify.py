"""Does a model load and transcribe where Tiny Audio is not installed? Asked before and after it is published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.errors import UserError
from tiny_audio.files import MODELS_VARIABLE

OUTSIDER = Path(__file__).with_name("outsider.py")
CLIP_WORDS = 4  # at least: the first such clip of the test split is read


@dataclass(frozen=True)
class Heard:
    """What is said in the bundled clip, and what the model heard."""

    said: str
    heard: str

    def __str__(self) -> str:
        return f'said: "{self.said}"   heard: "{self.heard}"'


def verify(model: str, revision: str | None = None, bases: Iterable[str] = ()) -> Heard:
    """Load a model and transcribe a bundled clip in a process without our package and without cached code.

    Args:
        model: a folder, or with `revision` a hub id, which is then fetched into an empty cache.
        bases: hub ids that the model needs as well; copies of this machine's cache are used for them.

    Raises:
        UserError: it does not load, or does not transcribe.
    """
    with tempfile.TemporaryDirectory(prefix="tiny-audio-verify-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        said = write_clip(folder / "clip.wav")
        variables = {}
        if revision is not None:
            variables["HF_HUB_CACHE"] = str(folder / "hub")
            _link_bases(folder / "hub", bases)
        arguments = (model, revision or "", str(folder / "clip.wav"))
        return Heard(said, run_outside(OUTSIDER, *arguments, folder=folder, what=model, **variables))


def run_outside(program: Path, *arguments: str, folder: Path, what: str, **variables: str) -> Any:
    """What a program prints last, as JSON, in a process in `folder` without our package and without cached code.

    Raises UserError, which says that `what` does not work there, when the program fails.
    """
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), **variables}
    if MODELS_VARIABLE in environment:  # it may be relative to where the user is
        environment[MODELS_VARIABLE] = str(Path(environment[MODELS_VARIABLE]).expanduser().resolve())
    done = subprocess.run(
        [sys.executable, "-P", str(program), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        env=environment,
    )
    if done.returncode != 0:
        raise UserError(f"{what} does not work where Tiny Audio is not installed: {_last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def write_clip(path: Path) -> str:
    """A clip of the embedded corpus as a WAV file; returns what is said in it."""
    import soundfile

    from tiny_audio.data.corpus import read_audio, read_index

    entry = next(entry for entry in read_index("test") if len(entry.text.split()) >= CLIP_WORDS)
    waveform, sampling_rate = read_audio(entry)
    soundfile.write(path, waveform, sampling_rate)
    return entry.text


def _link_bases(cache: Path, bases: Iterable[str]) -> None:
    """Let the empty cache see base models that were fetched before; without links they are fetched again."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache.mkdir()
    for base in bases:
        name = f"models--{base.replace('/', '--')}"
        if (Path(HF_HUB_CACHE) / name).is_dir():
            try:
                (cache / name).symlink_to(Path(HF_HUB_CACHE).resolve() / name, target_is_directory=True)
            except OSError:  # Windows without the right to make links
                return


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
