"""Checkpoints: going on from any of them, and what becomes of the others."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.short_runs import assert_same, settings, weights
from tiny_audio.errors import UserError
from tiny_audio.train import checkpoints, loop
from tiny_audio.train.build import build_model
from tiny_audio.train.checkpoints import find_checkpoint, list_checkpoints
from tiny_audio.train.loop import Trainer
from tiny_audio.train.run import run

QUICK = ("training.eval_steps=100", "ctc.alone_share=0", "training.num_workers=0")


@pytest.fixture(scope="module")
def four_steps(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after steps 1 to 4."""
    folder = tmp_path_factory.mktemp("runs") / "four"
    run(settings(speech, folder, *QUICK, "training.max_steps=4", "training.save_steps=1"))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_another_way_from_an_earlier_checkpoint(
    speech: Path, four_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """What is learned on it is kept and gone on from, whatever numbers the checkpoints of the first way had."""
    folder = tmp_path / "run"
    shutil.copytree(four_steps, folder)
    stock = Trainer.save

    def save_and_stop(self: Trainer) -> None:
        stock(self)
        if self.progress.step == 3:
            raise KeyboardInterrupt

    start = (four_steps if elsewhere else folder) / "checkpoints" / "step-2"
    other_way = (
        *QUICK,
        "training.max_steps=4",
        "training.save_steps=1",
        "training.save_total_limit=2",
        "training.learning_rate=1e-4",
    )
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save", save_and_stop)
        run(settings(speech, folder, *other_way, f"training.resume={start}"))
    newest = find_checkpoint(True, folder / "checkpoints")
    assert newest is not None and newest.name == "step-3"
    aside = ["abandoned-step-1", "abandoned-step-2"] if elsewhere else []
    kept = ["step-3"] if elsewhere else ["step-2", "step-3"]
    assert names(folder) == [*aside, "abandoned-step-3", "abandoned-step-4", *kept]
    was, now = weights(folder / "checkpoints/abandoned-step-3"), weights(newest)
    assert any((was[name] != now[name]).any() for name in was)

    # And back: the first way ends as it did.
    back = folder / "checkpoints/abandoned-step-3"
    run(settings(speech, folder, *QUICK, "training.max_steps=4", f"training.resume={back}"))
    assert_same(weights(folder / "checkpoints/step-4"), weights(four_steps / "checkpoints/step-4"))
    assert list_checkpoints(folder / "checkpoints")[-1].name == "step-4"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_with_dropout_is_bit_equal_to_never_stopped(
    speech: Path, tmp_path: Path, num_workers: int
) -> None:
    """Dropout draws from torch's own random state, which the start of an epoch must leave alone."""
    options = (
        *QUICK[:2],
        f"training.num_workers={num_workers}",
        "encoder_lora.r=4",
        "encoder_lora.target_modules=[q_proj,v_proj]",
        "encoder_lora.lora_dropout=0.1",
    )
    run(settings(speech, tmp_path / "whole", *options))
    checkpoint = tmp_path / "whole/checkpoints/step-2"
    run(settings(speech, tmp_path / "resumed", *options, f"training.resume={checkpoint}"))
    assert_same(weights(tmp_path / "resumed/model"), weights(tmp_path / "whole/model"))


def test_a_step_is_saved_once(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Ctrl-C comes just after it was: a second save could be cut short, and the first be gone."""
    stock, saved = loop.save_checkpoint, []

    def save(*arguments: Any) -> Path:
        saved.append(stock(*arguments))
        if len(saved) == 2:
            signal.raise_signal(signal.SIGINT)
        return saved[-1]

    monkeypatch.setattr(loop, "save_checkpoint", save)
    litter = tmp_path / "run/checkpoints/.step-1.partial"
    with pytest.raises(KeyboardInterrupt):
        run(settings(speech, tmp_path / "run", *QUICK, "training.save_total_limit=1"))
    assert names(tmp_path / "run") == ["step-4"] and len(saved) == 2
    litter.mkdir()  # as a kill in the middle of a save leaves it
    run(settings(speech, tmp_path / "run", *QUICK, "training.resume=true", "training.save_total_limit=1"))
    assert names(tmp_path / "run") == ["step-6"]


def test_changed_rates_and_decay_hold_after_resuming(speech: Path, tmp_path: Path) -> None:
    """Also where two parts had one rate and have two now."""
    constant = ("training.lr_scheduler=constant", "training.warmup_steps=0", "training.optimizer=adamw")
    options = (*QUICK, *constant, "training.save_steps=1")
    alike = ("training.learning_rate=1e-3", "training.decoder_learning_rate=1e-3")
    run(settings(speech, tmp_path / "run", *options, *alike, "training.max_steps=1"))
    changed = (
        "training.learning_rate=5e-4",
        "training.decoder_learning_rate=1e-3",
        "training.weight_decay=0.5",
    )
    run(
        settings(speech, tmp_path / "run", *options, *changed, "training.max_steps=2", "training.resume=true")
    )
    groups = torch.load(tmp_path / "run/checkpoints/step-2/optimizer.pt", weights_only=True)["param_groups"]
    assert {group["lr"] for group in groups} == {5e-4, 1e-3}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}


@pytest.mark.parametrize("file", ["optimizer.pt", "model.safetensors", "state.json"])
def test_a_damaged_checkpoint_names_the_one_to_go_on_from(
    speech: Path, four_steps: Path, tmp_path: Path, file: str
) -> None:
    shutil.copytree(four_steps, tmp_path / "run")
    damaged = tmp_path / "run/checkpoints/step-4" / file
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(
        UserError, match=rf"cannot read \S+step-4/{file} .*go on from \S+/step-3 with"
    ) as caught:
        run(settings(speech, tmp_path / "run", *QUICK, "training.resume=true"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_from_a_gpu_is_read_without_one(
    speech: Path, four_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(four_steps, tmp_path / "run")
    file = tmp_path / "run/checkpoints/step-4/optimizer.pt"
    saved = torch.load(file, weights_only=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(saved, file)
    result = run(settings(speech, tmp_path / "run", *QUICK, "training.max_steps=5", "training.resume=true"))
    assert result is not None and result.metrics["steps"] == 5


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("limit", "steps"), [(1, 2), (1, 1), (2, 3), (5, 2)])
def test_the_room_asked_for_is_what_will_be_taken(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, limit: int, steps: int
) -> None:
    """To within the headers of the files: a long run as a short one, at its start and where it goes on."""
    asked: list[float] = []
    monkeypatch.setattr(checkpoints, "check_space", lambda folder, num_bytes, *words: asked.append(num_bytes))
    config = settings(
        speech,
        tmp_path,
        *QUICK,
        f"training.optimizer={optimizer}",
        "training.save_steps=1",
        f"training.save_total_limit={limit}",
        f"training.max_steps={steps}",
    )
    model, _ = build_model(config)
    trainer = Trainer(config, model, None, tmp_path, report=lambda line: None)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    trainer.optimizer.step()
    present: list[Path] = []
    for done in range(steps + 1):
        checkpoint = present[-1] if present else None
        checkpoints.check_room(tmp_path, model, config.training, checkpoint)
        trainer.progress.step = done
        if done > 0:
            trainer.save()
        present = list_checkpoints(tmp_path / "checkpoints")
    size = sum(file.stat().st_size for file in present[0].iterdir())
    weights_size = (present[0] / "model.safetensors").stat().st_size
    kept = min(limit, steps)
    whole = max(min(limit + 1, steps) * size, kept * size + weights_size)
    assert asked[0] == pytest.approx(whole, rel=0.15) and asked[0] < whole
    assert len(present) == kept
    # The last step goes on from checkpoints of which the oldest makes room for the model.
    before = min(limit, steps - 1)
    rest = max(size, (kept - before) * size + weights_size)
    assert asked[-1] == pytest.approx(rest, rel=0.15)


def test_a_checkpoint_in_the_home_folder(
    four_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(four_steps))
    found = find_checkpoint("~/checkpoints/step-2", tmp_path)
    assert found == four_steps / "checkpoints/step-2"
