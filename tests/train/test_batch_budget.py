"""`training.batch_seconds=auto`: the most that fits, nothing else changed, and what was found is found again.

A CPU does not run out of memory, so the tests set a limit: the model may keep so many bytes for its backward pass.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.tiny_models import noise
from tests.train.short_runs import assert_same, settings, weights
from tiny_audio.data.batching import Budget
from tiny_audio.data.sources import open_sources
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_modeling import TinyAudioForConditionalGeneration
from tiny_audio.train import batch_budget
from tiny_audio.train.batch_budget import (
    BUDGETS_FILE,
    KEPT_SHARE,
    RESOLUTION,
    find_budgets,
    largest,
    read_budgets,
    settle_batches,
    silent_batch,
)
from tiny_audio.train.build import build_data, build_model, fixed_batch_seconds, loss_weights
from tiny_audio.train.loop import MODEL_INPUTS, Trainer
from tiny_audio.train.run import run

MOST_CLIPS = 12
ENOUGH, LESS = 24_000_000, 2_500_000  # bytes
SHORT = ("data.max_seconds=2", "training.max_steps=4", "ctc.alone_share=0")  # two buckets: less to try
STOCK_FORWARD = TinyAudioForConditionalGeneration.forward


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips from 0.5 s to 5.5 s; the longer ones are denser."""
    folder = tmp_path_factory.mktemp("talk")
    lines = []
    for number in range(40):
        seconds = 0.5 + number * 5 / 39
        soundfile.write(folder / f"{number}.wav", noise(seconds, number), 16000)
        text = " ".join(["word"] * round(seconds * (1 + seconds / 5)))
        lines.append(json.dumps({"audio": f"{number}.wav", "text": text, "seconds": seconds}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "batch_budgets"


def limit_memory(patch: pytest.MonkeyPatch, num_bytes: float) -> None:
    """The device now says no where the model keeps more than this; and the model draws from all random numbers."""

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        kept = random.random() + np.random.rand()

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.nbytes
            if kept > num_bytes:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return STOCK_FORWARD(self, *arguments, **named)

    patch.setattr(TinyAudioForConditionalGeneration, "forward", forward)
    patch.setattr(batch_budget, "says_no", lambda device: True)


def config_of(talk: Path, folder: Path, *overrides: str) -> Any:
    config = settings(
        talk,
        folder,
        "training.batch_seconds=auto",
        f"training.per_device_train_batch_size={MOST_CLIPS}",
        "data.max_seconds=6",
        "training.eval_steps=1000",
        *overrides,
    )
    config.model.encoder_config = {**config.model.encoder_config, "dropout": 0.1}  # draws random numbers
    return config


def trainer_of(config: Any) -> tuple[Trainer, Any, list[dict[str, Any]]]:
    model, processor = build_model(config)
    data = build_data(config, open_sources(config.data.train), processor)
    lines: list[dict[str, Any]] = []
    folder = Path(config.output_dir)
    folder.mkdir(exist_ok=True)
    return Trainer(config, model, data, folder, report=lines.append), processor, lines


def settle(config: Any) -> tuple[list[Budget], list[str]]:
    """The budgets of a new run, and what it says."""
    trainer, processor, _ = trainer_of(config)
    notes: list[str] = []
    settle_batches(trainer, processor, None, notes.append)
    return read_budgets(trainer.folder / BUDGETS_FILE), notes


def kept_bytes(trainer: Trainer, batch: dict[str, Any]) -> int:
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    inputs = {key: batch[key] for key in MODEL_INPUTS if key in batch}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.bare_model.train()(**inputs, loss_weights=loss_weights(trainer.config, 5))
    return kept


def test_the_largest_batches_that_fit_are_found(talk: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        limit_memory(patch, ENOUGH)
        budgets, notes = settle(config_of(talk, tmp_path / "run"))
    assert [round(budget.longest_seconds, 2) for budget in budgets] == [1.19, 1.78, 2.67, 4.0, 6.0]
    assert sum("clips up to" in note for note in notes) == 5 and "found in" in notes[-1]
    trainer, processor, _ = trainer_of(config_of(talk, tmp_path / "run"))
    buckets = trainer.data.length_buckets()
    numbers = [
        round(budget.batch_seconds / KEPT_SHARE / bucket.longest_seconds)
        for budget, bucket in zip(budgets, buckets, strict=True)
    ]
    assert all(longer <= shorter for shorter, longer in pairwise(numbers)) and numbers[-1] < numbers[1]
    most = -(-MOST_CLIPS // KEPT_SHARE)
    assert numbers[0] == most

    def needed(bucket: Any, num_clips: int) -> int:
        """By as many seconds of the bucket's longest clips or of its shortest, whatever is more."""
        shorter = min(int(num_clips * bucket.longest_seconds / bucket.shortest_seconds), most)
        ends = [(num_clips, bucket.longest_seconds), (int(shorter), bucket.shortest_seconds)]
        return max(
            kept_bytes(trainer, silent_batch(trainer, processor, clips, seconds, bucket.text_of(seconds)))
            for clips, seconds in ends
        )

    for bucket, number in zip(buckets, numbers, strict=True):
        assert needed(bucket, number) <= ENOUGH
        more = number + max(1, int(RESOLUTION * number))
        assert number == most or needed(bucket, more) > ENOUGH
    # And no batch of the data itself needs more.
    trainer.data.plan_by(budgets)
    fullest = [kept_bytes(trainer, batch) for epoch in (0, 1) for batch in trainer.data.batches(epoch)]
    assert 0.6 * ENOUGH < max(fullest) <= ENOUGH


def test_nothing_but_the_batches_changes(talk: Path, tmp_path: Path) -> None:
    """The search draws random numbers, fills gradients, and runs out of memory in the middle of a pass."""
    config = config_of(talk, tmp_path / "run", "training.max_steps=3", "ctc.alone_share=0.4")
    with pytest.MonkeyPatch.context() as patch:
        limit_memory(patch, ENOUGH)
        trainer, processor, lines = trainer_of(config)
        before = {name: weight.clone() for name, weight in trainer.bare_model.state_dict().items()}
        states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        settle_batches(trainer, processor, None, lambda note: None)
        after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert after == states
    assert_same(before, dict(trainer.bare_model.state_dict()))
    assert all(weight.grad is None for weight in trainer.bare_model.parameters())
    assert not trainer.optimizer.state_dict()["state"]
    trainer.run()

    explicit, _, same_lines = trainer_of(config)
    explicit.data.plan_by(read_budgets(tmp_path / "run" / BUDGETS_FILE))
    explicit.run()
    assert [line["loss"] for line in lines] == [line["loss"] for line in same_lines] and len(lines) == 3
    assert_same(dict(trainer.bare_model.state_dict()), dict(explicit.bare_model.state_dict()))


def test_what_was_found_is_remembered_for_runs_that_are_alike(
    talk: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, ENOUGH)
    found, notes = settle(config_of(talk, tmp_path / "first", *SHORT))
    assert "trying what fits" in notes[0]
    # Less fits now, so whatever is tried again is found to be smaller.
    limit_memory(monkeypatch, LESS)
    again, notes = settle(config_of(talk, tmp_path / "second", *SHORT, "training.learning_rate=1e-5"))
    assert again == found and "remembered" in notes[0] and len(notes) == 3
    for another in (
        "training.gradient_checkpointing=true",
        "training.optimizer=adamw",
        "ctc.weight=0",
        "model.freeze_decoder=true",
        "encoder_lora.r=2",
        "data.max_seconds=1.9",
    ):
        other, notes = settle(config_of(talk, tmp_path / "third", *SHORT, another))
        assert "trying what fits" in notes[0] and other != found, another
    assert len(list(cache.iterdir())) == 7
    others = {"budgets": [{"longest_seconds": 3, "batch_seconds": 9, "peak_bytes": 0}]}
    for content in ("{", "[]", '{"budgets": []}', "\0\xff", json.dumps(others)):
        for file in cache.iterdir():
            file.write_text(content, encoding="latin-1")
        again, notes = settle(config_of(talk, tmp_path / "fourth", *SHORT))
        assert "tried out again" in notes[0] and "trying what fits" in notes[1] and again != found


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    talk: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, ENOUGH)
    cache.parent.write_text("a file where the folder should be")
    budgets, notes = settle(config_of(talk, tmp_path / "run", *SHORT))
    assert len(budgets) == 2 and "could not be kept" in notes[-1]


def test_a_run_goes_on_with_its_own_batches(
    talk: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    config = config_of(talk, tmp_path / "whole", *SHORT, "ctc.alone_share=1")
    limit_memory(monkeypatch, ENOUGH)
    run(config)
    for file in cache.iterdir():
        file.unlink()
    limit_memory(monkeypatch, LESS)
    settle(config_of(talk, tmp_path / "other", *SHORT, "ctc.alone_share=1"))
    limit_memory(monkeypatch, float("inf"))
    config.output_dir = str(tmp_path / "resumed")
    config.training.resume = str(tmp_path / "whole" / "checkpoints" / "step-2")
    run(config)
    whole, resumed, other = (tmp_path / name for name in ("whole", "resumed", "other"))
    assert read_budgets(resumed / BUDGETS_FILE) == read_budgets(whole / BUDGETS_FILE)
    assert read_budgets(resumed / BUDGETS_FILE) != read_budgets(other / BUDGETS_FILE)
    assert_same(weights(whole / "checkpoints/step-4"), weights(resumed / "checkpoints/step-4"))
    assert "as large as the run had them" in capsys.readouterr().err

    (whole / BUDGETS_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"cannot go on from .*step-2, because .* cannot be read"):
        run(config)
    (whole / BUDGETS_FILE).unlink()
    with pytest.raises(UserError, match=r"because there is no .*; if its run had a number, give that one"):
        run(config)


def batches_of(data: Any) -> list[list[int]]:
    """The batches of the first epoch: rows."""
    return [[clip.row for clip in plan.clips] for plan in data._batch_plans(0, 0)]


def test_a_machine_without_a_gpu_takes_the_default(talk: Path, tmp_path: Path) -> None:
    config = config_of(talk, tmp_path / "run")
    trainer, processor, _ = trainer_of(config)
    by_default = batches_of(trainer.data)
    notes: list[str] = []
    settle_batches(trainer, processor, None, notes.append)
    assert fixed_batch_seconds(config.training) == 100 and "batches of 100 s" in notes[0]
    assert read_budgets(tmp_path / "run" / BUDGETS_FILE) == [Budget(6.0, 100.0)]
    assert batches_of(trainer.data) == by_default
    settle_batches(trainer_of(settings(talk, tmp_path / "number"))[0], processor, None, notes.append)
    assert len(notes) == 1 and not (tmp_path / "number" / BUDGETS_FILE).exists()


def test_what_does_not_fit_at_all(
    talk: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 1_000_000)
    with pytest.raises(UserError, match=r"out of memory with a single clip of 6 s: lower data.max_seconds"):
        settle(config_of(talk, tmp_path / "run"))
    assert not cache.exists()
    trainer, processor, _ = trainer_of(config_of(talk, tmp_path / "run"))
    buckets = trainer.data.length_buckets()
    assert {budget.batch_seconds for budget in find_budgets(trainer, processor, buckets, print)} == {0.0}

    def broken(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(TinyAudioForConditionalGeneration, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        find_budgets(trainer, processor, buckets, print)
    assert all(weight.grad is None for weight in trainer.bare_model.parameters())


@pytest.mark.parametrize("first", [0, 1, 7, 64, 1000])
def test_the_search(first: int) -> None:
    for limit in range(65):
        tried: list[int] = []

        def fits(number: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(number)
            return number <= limit

        found = largest(fits, first, 64)
        assert limit - max(1, RESOLUTION * limit) < found <= limit
        assert len(tried) == len(set(tried)) <= 12 and all(1 <= number <= 64 for number in tried)
