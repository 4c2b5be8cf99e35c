"""Utilisation is counted work over measured speed; padding and waiting are shares of what the trainer has counted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from tests.tiny_models import tiny_config
from tests.train.short_runs import settings, write_speech
from tiny_audio.hub.asr_losses import LossWeights
from tiny_audio.train.build import build_model
from tiny_audio.train.records import read_metrics
from tiny_audio.train.run import DevEvaluation, run
from tiny_audio.train.speed import SpeedMeter, matmul_flops_per_second

TOTALS = {"audio_seconds": 100.0, "waited": 0.5, "valid": 900.0, "padded": 1000.0}


def test_shares() -> None:
    meter = SpeedMeter(tiny_config(), 7.0, peak_flops=1e9)
    work = meter.cost(LossWeights(ctc=1.0)).flops_per_audio_second
    figures = meter.figures(TOTALS, 10.0, LossWeights(ctc=1.0))
    assert figures["utilization"] == pytest.approx(100 * work / (10 * 1e9))
    assert figures["padding_share"] == pytest.approx(0.1)
    assert figures["data_wait_share"] == pytest.approx(0.05)


def test_what_does_not_run_is_not_counted() -> None:
    whole = SpeedMeter(tiny_config(), 7.0, 1e9).cost(LossWeights(ctc=1.0)).flops_per_audio_second
    resting = SpeedMeter(tiny_config(), 7.0, 1e9).cost(LossWeights(0.0, ctc=1.0)).flops_per_audio_second
    config = tiny_config("model.freeze_encoder=true")
    frozen = SpeedMeter(config, 7.0, 1e9).cost(LossWeights(ctc=1.0)).flops_per_audio_second
    config.data.features_cache = "features"
    cached = SpeedMeter(config, 7.0, 1e9).cost(LossWeights(ctc=1.0)).flops_per_audio_second
    assert resting < whole and cached < frozen < whole


def test_what_is_left_is_more_than_the_pace_so_far_while_the_decoder_rests() -> None:
    meter = SpeedMeter(tiny_config("ctc.alone_share=0.45", "training.max_steps=10"), 7.0, 1e9)
    resting, whole = (meter.cost(LossWeights(share, ctc=1.0)).flops_per_audio_second for share in (0.0, 1.0))
    assert meter.seconds_left(8.0, 0, 2) == pytest.approx(4 * (3 + 5 * whole / resting))
    assert meter.seconds_left(5.0, 6, 7) == pytest.approx(15.0)
    assert meter.seconds_left(9.0, 4, 6) == pytest.approx(9 * 4 * whole / (resting + whole))
    assert meter.seconds_left(60.0, 0, 10) == 0
    alone = SpeedMeter(tiny_config("ctc.alone_share=1", "training.max_steps=10"), 7.0, 1e9)
    assert alone.seconds_left(1.0, 0, 1) == pytest.approx(9.0)


def test_a_model_that_is_built_is_counted_without_its_files() -> None:
    config = tiny_config()
    model, _ = build_model(config)
    attention = model.model.language_model.config._attn_implementation
    described = SpeedMeter(config, 7.0, 1e9).cost(LossWeights(ctc=1.0)).flops_per_audio_second
    config.init_from = "./was/moved"
    built = SpeedMeter(config, 7.0, 1e9, model.config).cost(LossWeights(ctc=1.0)).flops_per_audio_second
    assert built == described
    assert model.model.language_model.config._attn_implementation == attention  # the model goes on as it was


def test_the_speed_of_this_machine_is_of_the_right_order() -> None:
    assert 1e8 < matmul_flops_per_second(torch.device("cpu"), torch.float32) < 1e14


def test_measuring_takes_no_random_number_of_the_run() -> None:
    before = torch.get_rng_state()
    matmul_flops_per_second(torch.device("cpu"), torch.float32)
    SpeedMeter(tiny_config(), 7.0, 1e9).cost(LossWeights(ctc=1.0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_says_how_it_uses_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine costs also while it evaluates and starts, before and after the run was stopped."""
    stock = DevEvaluation.__call__
    monkeypatch.setattr(DevEvaluation, "__call__", lambda self: (time.sleep(1), stock(self))[1])
    options = ("training.usd_per_hour=3600", "augmentation.splice_probability=0", "ctc.alone_share=0")
    speech = write_speech(tmp_path)
    folder = tmp_path / "run"
    began = time.perf_counter()
    run(settings(speech, folder, *options))
    between = time.perf_counter()
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 6
    for line in lines:
        assert 0 < line["utilization"] < 1.5
        assert 0 <= line["padding_share"] < 1 and 0 <= line["data_wait_share"] <= 1
    last = lines[-1]
    assert last["train_seconds"] + 2 < last["dollars"] < between - began
    figures = json.loads((folder / "metrics.json").read_text())
    assert last["dollars"] < figures["dollars"] < between - began
    assert figures["dollars"] == pytest.approx(figures["run_seconds"]), "a dollar a second"
    computed = figures["audio_seconds"] / figures["rtfx"]
    assert figures["wall_seconds"] == pytest.approx(computed, abs=0.01), "those of the evaluation alone"

    run(settings(speech, folder, *options, "training.resume=true", "training.max_steps=7"))
    again = json.loads((folder / "metrics.json").read_text())
    assert last["dollars"] + 1 < again["dollars"] < last["dollars"] + time.perf_counter() - between + 0.5
