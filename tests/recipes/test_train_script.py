"""The command of recipes/small/train.sh is one that tiny-audio takes, and goes on with what was begun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.small import real_speech

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script is one for bash")

ROOT = Path(__file__).parents[2]

# Takes the command line as tiny-audio does, up to the point where it would read speech.
CHECKER = """import sys
from pathlib import Path
from tiny_audio.train.config import compose_config
command, *overrides = sys.argv[1:]
config = compose_config(overrides)
sources = [source.removeprefix("speech/") for source in [*config.data.train, config.data.eval, config.data.test]]
how = "resumed" if config.training.resume is True else "anew"
print(command, Path(config.output_dir).name, how, *sources)
"""


def run_script(folder: Path) -> str:
    program = folder / "bin" / "tiny-audio"
    program.parent.mkdir(exist_ok=True)
    checker = folder / "checker.py"
    checker.write_text(CHECKER, encoding="utf-8")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{checker}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", str(ROOT / "recipes/small/train.sh"), "speech", "out here"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_trains_on_what_make_speech_writes_and_on_nothing_to_judge_with(tmp_path: Path) -> None:
    sources = [source.partition("*")[0] for source in run_script(tmp_path).split()[4:]]
    people = {f"real/{one.name}/train" for one in real_speech.COLLECTIONS if not one.judge_only}
    assert set(sources[:-2]) == {"train", "words/train", "corpus:train"} | people
    assert all(source.startswith("real/") and source.endswith("/test") for source in sources[-2:])
    assert {one.name for one in real_speech.COLLECTIONS if one.judge_only} == {"librivox", "drascula"}


def test_a_run_that_was_begun_is_gone_on_with(tmp_path: Path) -> None:
    assert run_script(tmp_path).startswith("train out here anew ")
    (tmp_path / "out here/checkpoints/step-50").mkdir(parents=True)
    assert run_script(tmp_path).startswith("train out here resumed ")
