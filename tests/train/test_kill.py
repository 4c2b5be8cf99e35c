"""A run that is killed at any moment, again and again, ends with the very weights of one that never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize(("source", "num_workers"), [("folder", 0), ("streamed", 2)])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(source: str, num_workers: int) -> None:
    """`make kills` does the same with 20 kills."""
    options = ["--source", source, "--workers", str(num_workers), "--kills", "3", "--steps", "12"]
    lives = subprocess.run(
        [sys.executable, "-m", "tests.train.kills", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert lives.returncode == 0, lives.stderr[-2000:]
    figures = json.loads(lives.stdout.splitlines()[-1])
    assert figures["kills"] >= 2, "hardly a life was cut short"  # a busy machine may miss one
    assert figures["epochs"] > 1 and figures["weights"] > 20
