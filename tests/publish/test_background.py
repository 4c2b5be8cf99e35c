"""Checkpoints to a hub beside training: real processes, real uploads, and failures that cost nothing but a line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import soundfile
import torch

from tests.documented import ROOT
from tests.local_hub import Fault, LocalHub
from tests.tiny_models import noise, tiny_config
from tiny_audio import cli
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_checkpoint import load_model
from tiny_audio.publish.background import LOG_FILE, BackgroundPush
from tiny_audio.train.build import build_model
from tiny_audio.train.checkpoints import Progress, save_checkpoint
from tiny_audio.train.config import compose_config, config_to_yaml

NAME = "ada/training"
MOST_SECONDS = 120


@pytest.fixture
def run(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder in the middle of training; children find the package."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "outputs" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config_to_yaml(tiny_config(), {}), encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 5}\n', encoding="utf-8")
    return folder


def wait(push: BackgroundPush) -> None:
    assert push.watcher is not None
    push.watcher.join(MOST_SECONDS)
    assert not push.watcher.is_alive()


def test_a_checkpoint_is_pushed_while_others_are_passed_over(hub: LocalHub, run: Path) -> None:
    model, processor = build_model(tiny_config())
    optimizer = torch.optim.AdamW(model.parameters())
    said: list[str] = []
    push = BackgroundPush(NAME, run, model, processor, said.append)
    first = save_checkpoint(run / "checkpoints", model, optimizer, Progress(step=1), keep=1)
    push.offer(first)  # the repository is still being made
    wait(push)
    assert said == [] and hub.repositories[NAME].private
    assert len(hub.repositories[NAME].commits) == 1, "the first checkpoint was passed over"
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    second = save_checkpoint(run / "checkpoints", model, optimizer, Progress(step=5), keep=1)
    push.offer(second)
    # Training goes on, and drops the checkpoint that is being sent.
    save_checkpoint(run / "checkpoints", model, optimizer, Progress(step=6), keep=1)
    assert not second.exists()
    wait(push)
    push.close()
    assert said == [f"pushed step-5 to {NAME}"], (run / LOG_FILE).read_text(encoding="utf-8")
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 2
    assert b"still in training** (step 5)" in repository.files["README.md"]
    copy = run / "copy"
    copy.mkdir()
    for name, content in repository.files.items():
        (copy / name).write_bytes(content)
    loaded, _ = load_model(str(copy), device="cpu")
    for weight, pushed in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(weight, pushed)


def test_a_failure_costs_training_nothing(hub: LocalHub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    model, processor = build_model(tiny_config())
    said: list[str] = []
    push = BackgroundPush(NAME, run, model, processor, said.append)
    wait(push)
    push.close()
    (line,) = said
    assert "pushing will not work; training goes on. " in line and "does not know your token" in line
    assert "hf_wrong" not in (run / LOG_FILE).read_text(encoding="utf-8")


def test_closing_does_not_wait_for_an_upload(hub: LocalHub, run: Path) -> None:
    hub.faults.append(Fault("GET /api/whoami", meanwhile=lambda: time.sleep(MOST_SECONDS)))
    model, processor = build_model(tiny_config())
    said: list[str] = []
    push = BackgroundPush(NAME, run, model, processor, said.append)
    started = time.perf_counter()
    push.close()
    assert time.perf_counter() - started < 10
    assert said == [] and hub.repositories == {}
    assert push.process is not None and push.process.poll() is not None


def test_a_malformed_name_is_found_before_training() -> None:
    with pytest.raises(UserError, match="USER/NAME"):
        compose_config(["training.hub_model_id=model"])


def test_training_that_cannot_push_is_finished_all_the_same(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "0.wav", noise(0.5), 16000)
    row = {"audio": "0.wav", "text": "one two", "seconds": 0.5}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row), encoding="utf-8")
    sources = [f"data.{name}=manifest.jsonl" for name in ("train", "eval", "test")]
    steps = [
        "training.max_steps=2",
        "training.warmup_steps=1",
        "training.num_workers=0",
        "training.tracker=none",
    ]
    assert (
        cli.main(["train", *sources, *steps, f"training.hub_model_id={NAME}", "output_dir=outputs/run"]) == 2
    )
    model = Path("outputs") / "run" / "model"
    assert (model / "model.safetensors").is_file()
    said = capsys.readouterr()
    assert "trained 2 steps" in said.out
    assert f"try again with: tiny-audio push {model} --repo-id {NAME} --private" in said.err
    assert hub.repositories == {}
