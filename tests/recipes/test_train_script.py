"""The commands of recipes/small/train.sh are ones that tiny-audio takes; each stage begins where the last ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script is one for bash")

ROOT = Path(__file__).parents[2]

# Takes the command line as tiny-audio does, up to the point where it would read speech.
CHECKER = """import sys
from pathlib import Path
from tiny_audio.train.config import compose_config
command, *overrides = sys.argv[1:]
config = compose_config(overrides)
start = Path(config.init_from).parent.name if config.init_from else "nothing"
print(command, Path(config.output_dir).name, "from", start)
if command == "train":
    (Path(config.output_dir) / "model").mkdir(parents=True)
"""


def run_script(folder: Path) -> list[str]:
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
    return done.stdout.splitlines()


def test_the_stages_follow_each_other(tmp_path: Path) -> None:
    lines = run_script(tmp_path)
    trained = [line for line in lines if line.startswith("train ")]
    assert trained == ["train 1-align from nothing", "train 2-read from 1-align"]
    assert lines[-1] == "the model: out here/2-read/model"


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    run_script(tmp_path)
    assert not [line for line in run_script(tmp_path) if line.startswith("train ")]
