"""deploy/skypilot.yaml without SkyPilot: its shell is run, its commands are ours, and it carries no secret."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.documented import ROOT
from tiny_audio.train.config import compose_config

TASK = yaml.safe_load((ROOT / "deploy" / "skypilot.yaml").read_text(encoding="utf-8"))


def run_script(folder: Path, **changes: str) -> str:
    """What the run script calls: `timeout` is the program that says what it was given."""
    (folder / "timeout").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    (folder / "timeout").chmod(0o755)
    environment = {**TASK["envs"], **changes, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-euc", TASK["run"]], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["+experiments=stage1", "training.resume=false"]),
        (
            {"RECIPE": "small", "HUB_MODEL_ID": "you/asr", "OVERRIDES": "peft.r=8 seed=2"},
            [
                "+experiments=small",
                "training.resume=false",
                "training.hub_model_id=you/asr",
                "peft.r=8",
                "seed=2",
            ],
        ),
    ],
)
def test_the_task_runs_our_training(tmp_path: Path, changes: dict[str, str], expected: list[str]) -> None:
    words = run_script(tmp_path, **changes).splitlines()
    assert words[:4] == ["--signal=INT", "--kill-after=300", "24h", ".venv/bin/tiny-audio"]
    assert words[4:] == ["train", *expected]
    compose_config(expected)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_second_launch_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "stage1" / "checkpoints" / "step-10").mkdir(parents=True)
    assert "training.resume=true" in run_script(tmp_path).splitlines()


def test_the_machine_stops_by_itself_and_no_secret_is_written() -> None:
    assert TASK["resources"]["autostop"]["idle_minutes"] <= 10
    assert set(TASK["secrets"].values()) == {""}
