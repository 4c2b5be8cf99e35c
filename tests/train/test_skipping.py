"""A step that would do harm is left out, written down and counted; one after another of them stops the run."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train.short_runs import assert_same, break_clip, break_features, settings, weights, write_speech
from tests.train.test_processes import SCRIPT, train
from tiny_audio.data.sources import open_sources
from tiny_audio.errors import UserError
from tiny_audio.train.build import build_data, build_model
from tiny_audio.train.checkpoints import Progress, list_checkpoints
from tiny_audio.train.loop import Trainer
from tiny_audio.train.records import read_metrics
from tiny_audio.train.run import run
from tiny_audio.train.skipping import (
    LEAST_REMEMBERED,
    MOST_SKIPPED,
    OF_STEPS,
    REMEMBERED_STEPS,
    SKIPPED_FILE,
    judge_step,
    spike_limit,
)

NO_RATES = ["augmentation.speed_probability=0", "augmentation.tempo_probability=0"]  # a clip keeps its length


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_speech(tmp_path / "speech")
    break_clip(folder, 17)
    break_features(monkeypatch.setattr)
    return folder


def trainer_of(config: Any, folder: Path, lines: list[dict[str, Any]]) -> Trainer:
    model, processor = build_model(config)
    data = build_data(config, open_sources(config.data.train), processor)
    return Trainer(config, model, data, folder, report=lines.append)


def watch_steps(trainer: Trainer, look: Callable[[], Any]) -> list[tuple[Any, Any]]:
    """What `look` sees before and after each step."""
    seen, stock = [], trainer._step

    def step(*arguments: Any) -> None:
        before = copy.deepcopy(look())
        stock(*arguments)
        seen.append((before, copy.deepcopy(look())))

    trainer._step = step
    return seen


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_broken_clip_costs_its_step_and_nothing_else(
    broken: Path, tmp_path: Path, accumulated: int, caplog: pytest.LogCaptureFixture
) -> None:
    # 7 batches of 4 s an epoch
    accumulation = f"training.gradient_accumulation_steps={accumulated}"
    config = settings(broken, tmp_path, "training.max_steps=7", accumulation, *NO_RATES)
    lines: list[dict[str, Any]] = []
    trainer = trainer_of(config, tmp_path, lines)
    seen = watch_steps(
        trainer,
        lambda: [
            dict(trainer.bare_model.state_dict()),
            {id(key): state for key, state in trainer.optimizer.state.items()},
        ],
    )
    trainer.run()
    records = [json.loads(line) for line in (tmp_path / SKIPPED_FILE).read_text().splitlines()]
    skipped = [record["step"] for record in records]
    assert len(skipped) == accumulated  # once an epoch
    assert [number for number, (before, after) in enumerate(seen, 1) if same(before, after)] == skipped
    assert all(bool(p.isfinite().all()) for p in trainer.bare_model.parameters())
    for record in records:
        assert record["loss"] == "nan" and "loss is nan" in record["reason"]
        by_id = {clip["id"]: clip for clip in record["clips"]}
        assert by_id["17"] == {
            "id": "17",
            "audio": str(broken / "17.wav"),
            "text": "seven eight nine",
            "seconds": 0.7,
            "loss": "nan",
        }
        assert [clip["id"] for clip in record["clips"] if isinstance(clip["loss"], str)] == ["17"]
        assert len(by_id) > 3
    assert trainer.progress.skipped_steps == lines[-1]["skipped_steps"] == accumulated
    assert [line["step"] for line in lines if "loss" not in line] == skipped
    assert all(math.isfinite(value) for line in lines for value in line.values())
    (told, *_) = [record.getMessage() for record in caplog.records if "is skipped" in record.getMessage()]
    assert told.startswith(f"step {skipped[0]} is skipped: its loss is nan") and SKIPPED_FILE in told


def test_a_run_with_a_skipped_step_resumes_bit_equal(broken: Path, tmp_path: Path) -> None:
    options = ["training.max_steps=8", "training.save_steps=1", *NO_RATES]
    whole = run(settings(broken, tmp_path / "whole", *options))
    assert whole is not None and whole.metrics["skipped_steps"] == 1
    record = json.loads((tmp_path / "whole" / SKIPPED_FILE).read_text())
    saved = [
        int(path.name.removeprefix("step-")) for path in list_checkpoints(tmp_path / "whole/checkpoints")
    ]
    assert saved == [step for step in range(1, 9) if step != record["step"]]

    def resume_from(step: int) -> str:
        return f"training.resume={tmp_path}/whole/checkpoints/step-{step}"

    for start in (saved[0], saved[-2]):
        again = tmp_path / f"from-{start}"
        resumed = run(settings(broken, again, *options, resume_from(start)))
        assert resumed is not None and resumed.metrics["skipped_steps"] == 1
        assert_same(weights(again / "model"), weights(tmp_path / "whole/model"))
        assert (again / SKIPPED_FILE).is_file() == (start < record["step"])
        assert read_metrics(again / "metrics.jsonl")[-1]["skipped_steps"] == 1
    # Going on in the same folder from before the step writes it down once.
    resumed = run(settings(broken, tmp_path / "whole", *options, resume_from(saved[0])))
    assert len((tmp_path / "whole" / SKIPPED_FILE).read_text().splitlines()) == 1


def test_step_after_step_that_fails_stops_with_a_diagnosis(speech: Path, tmp_path: Path) -> None:
    config = settings(
        speech,
        tmp_path / "run",
        "training.learning_rate=1e30",
        "training.warmup_steps=0",
        "training.max_grad_norm=1e30",
        "training.max_steps=20",
        "training.save_steps=1",
    )
    with pytest.raises(UserError) as caught:
        run(config)
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "the 5th of the last 50",
        "weights have run away",
        "lower training.learning_rate",
        SKIPPED_FILE,
    ):
        assert words in message
    records = read_metrics(tmp_path / "run" / SKIPPED_FILE)
    assert len(records) == MOST_SKIPPED + 1
    # No checkpoint of the broken weights drove out those from before.
    last_saved = int(list_checkpoints(tmp_path / "run/checkpoints")[-1].name.removeprefix("step-"))
    assert last_saved < records[0]["step"]


def test_many_broken_clips_are_named(broken: Path, tmp_path: Path) -> None:
    for number in range(0, 30, 3):
        break_clip(broken, number)
    with pytest.raises(
        UserError, match=r"of its \d+ clips have no finite loss by themselves, look at them: "
    ):
        run(settings(broken, tmp_path / "run", "training.max_steps=40", *NO_RATES))


def test_a_spike_is_skipped_and_named(speech: Path, tmp_path: Path) -> None:
    """A loss that is thousands of times too large in one step, long after the first ones."""
    config = settings(
        speech, tmp_path, "training.max_steps=45", "ctc.alone_share=0", "training.save_steps=100"
    )
    lines: list[dict[str, Any]] = []
    trainer = trainer_of(config, tmp_path, lines)

    def explode(module: Any, given: Any, named: Any, output: Any) -> Any:
        if trainer.progress.step + 1 == 40 and module.training:
            output.loss = output.loss * 3000
        return output

    trainer.model.register_forward_hook(explode, with_kwargs=True)
    seen = watch_steps(trainer, lambda: dict(trainer.bare_model.state_dict()))
    trainer.run()
    (record,) = read_metrics(tmp_path / SKIPPED_FILE)
    assert record["step"] == 40 and "usually" in record["reason"]
    assert record["gradient_norm"] > 10 * max(
        line["gradient_norm"] for line in lines if "gradient_norm" in line
    )
    assert [number for number, (before, after) in enumerate(seen, 1) if same(before, after)] == [40]


def test_processes_skip_together(broken: Path, tmp_path: Path) -> None:
    # Only one of the two has the clip in its batch.
    script = f"from tests.train.short_runs import break_features\nbreak_features()\n{SCRIPT}"
    alone = train(1, broken, tmp_path / "alone", *NO_RATES, script=script)
    together = train(2, broken, tmp_path / "together", *NO_RATES, script=script)
    one, two = (read_metrics(tmp_path / name / SKIPPED_FILE) for name in ("alone", "together"))
    assert len(alone) == 6 - len(one) and together == pytest.approx(alone, rel=1e-4)
    assert [record["step"] for record in one] == [record["step"] for record in two]
    clips = [
        {clip["id"]: float(clip["loss"]) for record in records for clip in record["clips"]}
        for records in (one, two)
    ]
    assert clips[0] == pytest.approx(clips[1], rel=1e-4, nan_ok=True) and len(clips[0]) > 5
    assert math.isnan(clips[0]["17"])


def history(seed: int, spread: float = 0.3, trend: float = 0.0) -> list[float]:
    generator = random.Random(seed)
    return [math.exp(trend * step + generator.gauss(0, spread)) for step in range(2000)]


def steps_skipped(norms: list[float], max_grad_norm: float = 1e-3) -> list[int]:
    progress, skipped = Progress(), []
    for norm in norms:
        if judge_step(progress, 1.0, norm, max_grad_norm) is not None:
            skipped.append(progress.step + 1)
        progress.step += 1
    return skipped


def test_the_rule_leaves_ordinary_norms_alone() -> None:
    for seed in range(5):
        assert steps_skipped(history(seed)) == []
        assert steps_skipped(history(seed, spread=1.0)) == []  # a restless run
        assert steps_skipped(history(seed, trend=0.02)) == []  # e times as large every 50 steps
        assert steps_skipped(history(seed, trend=-0.02)) == []
    # Heavy tails: Student's t with 4 degrees of freedom on the logarithm
    norms = np.exp(0.3 * np.random.default_rng(0).standard_t(4, 5000)).tolist()
    assert len(steps_skipped(norms)) <= 10


def test_the_rule_finds_spikes_but_not_in_the_first_steps() -> None:
    norms = history(0)
    norms[20], norms[500], norms[501], norms[1500] = 1e4, 1e3, 1e3, 30.0
    assert steps_skipped(norms) == [501, 502, 1501]
    assert steps_skipped(norms, max_grad_norm=100.0) == [501, 502]  # what is not even clipped is no spike
    assert spike_limit([1.0] * (LEAST_REMEMBERED - 1), 1.0) == math.inf
    assert spike_limit([1.0] * LEAST_REMEMBERED, 1.0) == pytest.approx(10.0)


def test_what_is_remembered_is_bounded() -> None:
    progress = Progress()
    for step in range(500):
        judge_step(progress, math.nan if step % 60 == 59 else 1.0, 1.0, 1.0)
        progress.step += 1
    assert len(progress.gradient_norms) == REMEMBERED_STEPS and len(progress.last_skipped) == MOST_SKIPPED + 1
    assert progress.skipped_steps == 8 and progress.last_skipped[-1] == 480 < 480 + OF_STEPS
