"""A run that is killed at any moment, again and again, ends with the very weights of one that never was."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.short_runs import assert_same, settings, weights, write_speech
from tiny_audio.train.config import config_to_yaml
from tiny_audio.train.records import read_metrics

NUM_KILLS = 3
# One process imports everything and then is copied for each life of the run, which saves the seconds of starting it.
LIVES = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from omegaconf import OmegaConf
from tiny_audio.train.checkpoints import list_checkpoints
from tiny_audio.train.config import check_config
from tiny_audio.train.run import run

def newest(folder):
    checkpoints = list_checkpoints(folder / "checkpoints")
    return int(checkpoints[-1].name.partition("-")[2]) if checkpoints else 0

def live(config, folder, last_step, pause):
    '''Runs in a process of its own, killed `pause` seconds after `last_step` is saved; whether it came to its end.'''
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        config.output_dir = str(folder)
        config.training.resume = newest(folder) > 0
        try:
            run(check_config(config))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    end = None
    while end is None or time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        if end is None and newest(folder) >= last_step:
            end = time.monotonic() + pause
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False

config, folder, kills = OmegaConf.load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
assert live(config, folder / "whole", 10**6, 0)
chance = random.Random(int(sys.argv[4]))
done = 0
for number in range(kills):  # at a random moment of a random step or of its saving, spread over the run
    last_step = 1 + (number * config.training.max_steps) // (kills + 1) + chance.randrange(2)
    done += not live(config, folder / "killed", last_step, chance.uniform(0, 0.2))
if not (folder / "killed/metrics.json").exists():
    assert live(config, folder / "killed", 10**6, 0)
print(done)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path: Path, num_workers: int) -> None:
    speech = write_speech(tmp_path / "speech")
    config = settings(
        speech,
        tmp_path,
        f"training.num_workers={num_workers}",
        "training.max_steps=12",
        "training.save_steps=1",
        "training.save_total_limit=2",
        "training.eval_steps=100",
        "augmentation.noise_probability=0.5",
        "augmentation.speed_probability=0.5",
    )
    (tmp_path / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    seed = random.randrange(10**6)
    arguments = [str(tmp_path / "config.yaml"), str(tmp_path), str(NUM_KILLS), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    lives = subprocess.run(
        [sys.executable, "-c", LIVES, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert lives.returncode == 0, f"seed {seed}: {lives.stderr[-2000:]}"
    assert int(lives.stdout.split()[-1]) >= 2, "hardly a life was cut short"  # a busy machine may miss one
    assert_same(weights(tmp_path / "killed/model"), weights(tmp_path / "whole/model"))
    heard = [
        [
            (line["step"], line["epoch"], line["loss"])
            for line in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "killed")
    ]
    assert heard[0] == heard[1]
    ends = [
        json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))
        for name in ("whole", "killed")
    ]
    assert ends[0]["audio_hours"] == ends[1]["audio_hours"]
