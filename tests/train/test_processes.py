"""Two processes train as one does that takes two batches a step, and go on where another number of them stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.train.short_runs import settings
from tiny_audio.train.batch_budget import BUDGETS_FILE, read_budgets
from tiny_audio.train.build import build_model
from tiny_audio.train.loop import seed_process
from tiny_audio.train.records import read_metrics
from tiny_audio.train.run import run, save_model

# A run whose config is a file: the tiny towers of the tests are no experiment.
SCRIPT = """
import sys
from omegaconf import OmegaConf
from tiny_audio.train.run import run
run(OmegaConf.load(sys.argv[1]))
"""


def train(
    num_processes: int, speech: Path, folder: Path, *overrides: str, script: str = SCRIPT
) -> list[float]:
    """The losses of a run of steps of two batches, which the processes share."""
    config = settings(
        speech,
        folder,
        f"training.gradient_accumulation_steps={2 // num_processes}",
        "ctc.alone_share=0",
        *overrides,
    )
    if num_processes == 1 and script == SCRIPT:
        run(config)
        return losses(folder)
    file = folder.with_suffix(".yaml")
    file.write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    program = folder.with_suffix(".py")
    program.write_text(script, encoding="utf-8")
    command = [sys.executable, str(program), str(file)]
    if num_processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={num_processes}"]
        command = [*launcher, f"--master-port={port}", str(program), str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return losses(folder)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


# Out of memory: the first process with more than 600 frames in a batch, the second one with half as many.
SCRIPT_WITH_LIMITS = (
    """
import os, torch
from tiny_audio.hub.asr_modeling import TinyAudioForConditionalGeneration
from tiny_audio.train import batch_budget
stock = TinyAudioForConditionalGeneration.forward
most = 300 if os.environ.get("RANK", "1") == "1" else 600
def forward(self, *arguments, **named):
    if self.training and named["input_features_mask"].numel() > most:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return stock(self, *arguments, **named)
TinyAudioForConditionalGeneration.forward = forward
batch_budget.says_no = lambda device: True
"""
    + SCRIPT
)


def test_all_processes_take_the_batches_that_the_smallest_holds(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    auto = ("training.batch_seconds=auto", "training.max_steps=3", "training.eval_steps=100")
    alone = train(1, speech, tmp_path / "alone", *auto, script=SCRIPT_WITH_LIMITS)
    together = train(2, speech, tmp_path / "together", *auto, script=SCRIPT_WITH_LIMITS)
    assert len(alone) == 3 and together == pytest.approx(alone, rel=1e-4)
    budgets = [read_budgets(tmp_path / name / BUDGETS_FILE) for name in ("alone", "together")]
    assert budgets[0] == budgets[1]
    kept = sorted((tmp_path / "cache" / "batch_budgets").iterdir())
    assert [read_budgets(file) for file in kept] == budgets


@pytest.mark.parametrize("final_weight", ["null", "0.5"])
def test_two_processes_with_a_head_that_gets_no_gradient(
    final_weight: str, speech: Path, tmp_path: Path
) -> None:
    """None at all, or none in the first step, where the weight of its loss is still 0."""
    save_model(*build_model(settings(speech, tmp_path / "first")), tmp_path / "first")
    weights = ("ctc.weight=0", f"ctc.final_weight={final_weight}")
    overrides = (*weights, f"init_from={tmp_path}/first", "training.max_steps=3", "training.eval_steps=100")
    assert len(train(2, speech, tmp_path / "second", *overrides)) == 3


def test_two_processes_train_as_one_and_go_on_as_one(speech: Path, tmp_path: Path) -> None:
    # 7 batches of 4 s an epoch: three steps and a half, so that a step reaches across the border of the epochs.
    alone = train(1, speech, tmp_path / "alone")
    together = train(2, speech, tmp_path / "together")
    assert len(alone) == 6
    assert together == pytest.approx(alone, rel=1e-4)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("alone", "together"))
    for figure in ("epoch", "lm_loss", "ctc_loss", "padding_share", "infeasible_ctc_targets"):
        assert two[figure] == pytest.approx(one[figure], rel=1e-4), figure
    assert two["dev_wer"] == one["dev_wer"]
    # One process stopped after four steps; two go on.
    resume = f"training.resume={tmp_path / 'alone' / 'checkpoints' / 'step-4'}"
    assert train(2, speech, tmp_path / "resumed", resume)[-2:] == pytest.approx(alone[4:], rel=1e-4)


def test_processes_drop_out_other_values() -> None:
    def draw(process_index: int, step: int) -> float:
        torch.manual_seed(1)
        seed_process(42, process_index, step)
        return float(torch.rand(()))

    torch.manual_seed(1)
    alone = float(torch.rand(()))
    assert draw(0, 0) == draw(0, 5) == alone  # goes on with the random state that it has
    assert len({alone, draw(1, 0), draw(2, 0), draw(1, 5)}) == 4
    assert draw(1, 5) == draw(1, 5)
