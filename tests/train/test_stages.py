"""Training in stages on pretrained towers: what `init_from` takes over, and what the config adds to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.tiny_models import examples
from tests.train.short_runs import assert_same, settings, weights
from tiny_audio.cli import main
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_checkpoint import fingerprint, load_bases, load_model, merge
from tiny_audio.hub.asr_losses import LossWeights
from tiny_audio.train.build import build_model
from tiny_audio.train.config import compose_config
from tiny_audio.train.parameters import parameter_table
from tiny_audio.train.precision import attend_unfused, cast_frozen, mixed_precision
from tiny_audio.train.records import read_metrics
from tiny_audio.train.run import run


@pytest.fixture(autouse=True)
def _hub(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(bases))


def pretrained(speech: Path, folder: Path, *overrides: str) -> Any:
    """The `small` recipe on tiny pretrained towers: both frozen, no adapters yet."""
    config = settings(
        speech,
        folder,
        "training.optimizer=adamw",
        "training.save_steps=3",
        "training.eval_steps=1000",
        "model.freeze_encoder=true",
        "model.freeze_decoder=true",
        "ctc.embedding_weight=0.3",
        *overrides,
    )
    config.model.encoder_model_name, config.model.decoder_model_name = "acme/whisper-pico", "acme/lm-tied"
    config.model.tokenizer = None
    return config


@pytest.fixture(scope="module")
def first_stage(bases: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Projector and alignment alone, the decoder resting."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_AUDIO_MODELS", str(bases))
        run(pretrained(speech, folder, "ctc.alone_share=1"))
    return folder


def test_a_stage_without_the_decoder_is_not_judged_by_it(first_stage: Path) -> None:
    metrics = json.loads((first_stage / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] > 0 and "wer" not in metrics
    assert not (first_stage / "results.txt").exists()
    assert all("dev_wer" not in line for line in read_metrics(first_stage / "metrics.jsonl"))


def test_an_adapter_records_its_bases_and_holds_none_of_their_weights(first_stage: Path) -> None:
    config = json.loads((first_stage / "model/config.json").read_text(encoding="utf-8"))
    model, _ = load_model(str(first_stage / "model"), device="cpu")
    bases = load_bases(model.config, torch.float32)
    assert config["encoder_base"] == {
        "name": "acme/whisper-pico",
        "revision": None,
        "fingerprint": fingerprint(bases["audio_tower"]),
    }
    assert config["decoder_base"]["fingerprint"] == fingerprint(bases["language_model"])
    assert {name.split(".")[0] for name in weights(first_stage / "model")} == {
        "model",
        "ctc_head",
        "embedding_ctc",
    }
    assert not any("tower" in name or "language" in name for name in weights(first_stage / "model"))


def test_a_stage_does_not_move_the_model_that_it_starts_from(
    speech: Path, first_stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = f"init_from={first_stage}/model"
    with pytest.raises(UserError, match=r"name another folder, such as output_dir=.*first-2$"):
        run(pretrained(speech, first_stage, start))
    assert (first_stage / "model").is_dir() and not first_stage.with_name("first.1").exists()
    monkeypatch.chdir(first_stage.parent)
    with pytest.raises(UserError, match="output_dir=first-2"):
        run(pretrained(speech, Path("first"), start))


def test_the_advice_after_a_stage_without_the_decoder_can_be_followed(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", f"output_dir={tmp_path}/first", "training.max_steps=1", "training.num_workers=0"]
    command += [f"data.{part}={speech}" for part in ("train", "eval", "test")]
    command += [f"model.{part}_config.num_hidden_layers=1" for part in ("encoder", "decoder")]
    assert main([*command, "ctc.alone_share=1"]) == 0
    said = capsys.readouterr()
    assert "training.warmup_steps=40 is more than training.max_steps=1" in said.err
    advice = said.out.rpartition("tiny-audio train ... ")[2].split()
    assert main([*command, *advice]) == 0
    assert (tmp_path / "first" / "model").is_dir()
    assert "wer" in json.loads((tmp_path / "first-2" / "metrics.json").read_text(encoding="utf-8"))


def test_a_second_stage_adds_adapters_to_the_first(speech: Path, first_stage: Path, tmp_path: Path) -> None:
    second = (
        "peft.r=4",
        "encoder_lora.r=2",
        f"init_from={first_stage}/model",
        "data.max_seconds=0.8",
        "training.max_steps=2",
    )
    config = pretrained(speech, tmp_path / "second", *second)
    counted = {row.part: row for row in parameter_table(config)}
    run(config)
    kept, trained = weights(first_stage / "model"), weights(tmp_path / "second/model")
    assert set(kept) < set(trained)
    added = {name for name in trained if name not in kept}
    assert all(".lora_" in name for name in added)
    assert sum(trained[name].numel() for name in added) == sum(
        counted[part].trainable for part in ("encoder LoRA", "decoder LoRA")
    )
    assert all(trained[name].any() for name in added if ".lora_B" in name)
    again, _ = load_model(str(tmp_path / "second/model"), device="cpu")
    assert again.config.decoder_lora["r"] == 4

    # A third run goes on with them, whatever rank its config has.
    run(pretrained(speech, tmp_path / "third", "peft.r=8", f"init_from={tmp_path}/second/model"))
    assert {n: w.shape for n, w in weights(tmp_path / "third/model").items()} == {
        n: w.shape for n, w in trained.items()
    }


def test_a_stopped_second_stage_ends_as_one_that_was_not(
    speech: Path, first_stage: Path, tmp_path: Path
) -> None:
    second = ("peft.r=4", f"init_from={first_stage}/model")
    run(pretrained(speech, tmp_path / "whole", *second))
    resumed = pretrained(
        speech, tmp_path / "resumed", *second, f"training.resume={tmp_path}/whole/checkpoints/step-3"
    )
    run(resumed)
    assert_same(weights(tmp_path / "resumed/model"), weights(tmp_path / "whole/model"))


def test_what_trains_whole_is_in_the_checkpoint(speech: Path, first_stage: Path, tmp_path: Path) -> None:
    run(
        pretrained(
            speech,
            tmp_path / "run",
            f"init_from={first_stage}/model",
            "model.freeze_encoder=false",
            "training.max_steps=1",
        )
    )
    saved = weights(tmp_path / "run/model")
    trained, _ = load_model(str(tmp_path / "run/model"), device="cpu")
    assert torch.equal(trained.model.audio_tower.conv1.weight, saved["model.audio_tower.conv1.weight"])
    base = load_bases(load_model(str(first_stage / "model"), device="cpu")[0].config, torch.float32)
    assert not torch.equal(saved["model.audio_tower.conv1.weight"], base["audio_tower"].conv1.weight)
    assert not any("language_model" in name for name in saved)


def test_heads_that_a_merged_model_lacks_are_made(speech: Path, first_stage: Path, tmp_path: Path) -> None:
    model, processor = load_model(str(first_stage / "model"), device="cpu")
    merged = merge(model)
    merged.ctc_head, merged.config.ctc_vocabulary, processor.ctc_vocabulary = None, None, None
    merged.save_pretrained(tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    run(pretrained(speech, tmp_path / "run", f"init_from={tmp_path}/merged", "training.max_steps=1"))
    last = (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["ctc_loss"] > 0 and json.loads(last)["embedding_loss"] > 0
    again, processor = load_model(str(tmp_path / "run/model"), device="cpu")
    assert again.ctc_head is not None and processor.ctc_vocabulary == again.config.ctc_vocabulary


def test_keys_that_the_checkpoint_overrules_are_named(
    speech: Path, first_stage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build_model(pretrained(speech, tmp_path, f"init_from={first_stage}/model", "model.stack_factor=3"))
    (message,) = [record.getMessage() for record in caplog.records if "init_from" in record.getMessage()]
    assert message.startswith("model.stack_factor=3 is not used") and "has 4" in message


def test_so_are_those_of_its_adapters(speech: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(pretrained(speech, tmp_path / "run", "training.max_steps=1", "peft.r=2", "peft.lora_alpha=4"))
    with caplog.at_level(logging.WARNING):
        build_model(pretrained(speech, tmp_path, f"init_from={tmp_path}/run/model", "peft.r=2"))
    (message,) = [record.getMessage() for record in caplog.records if "init_from" in record.getMessage()]
    assert message.startswith("peft.lora_alpha=32") and "has 4" in message


@pytest.fixture
def _own_precision() -> Iterator[None]:
    """accelerate keeps the precision of a process's first run for all later ones."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("_own_precision")
@pytest.mark.parametrize("adapters", [(), ("peft.r=2", "encoder_lora.r=2")])
def test_half_precision_is_evaluated_too(speech: Path, tmp_path: Path, adapters: tuple[str, ...]) -> None:
    """Frozen towers are in bfloat16 then, what trains in float32, and an evaluation is not under autocast."""
    half = ("training.bf16=true", "training.max_steps=1", *adapters)
    result = run(pretrained(speech, tmp_path / "run", *half))
    assert result.metrics["num_samples"] == 30 and result.evaluation.metrics.wer > 0
    (line,) = read_metrics(tmp_path / "run/metrics.jsonl")
    assert line["dev_wer"] > 0
    assert "eager" not in (result.model_folder / "config.json").read_text(), "how this run attended"


@pytest.mark.parametrize("whisper", [True, False])
def test_attention_in_parts_is_the_same_attention(speech: Path, tmp_path: Path, whisper: bool) -> None:
    """Else it is Parakeet's, which has positions in it."""
    model, processor = build_model(pretrained(speech, tmp_path) if whisper else settings(speech, tmp_path))
    batch = processor.collate(examples(processor))
    towers = (model.model.audio_tower, model.model.language_model)
    assert all(tower.config._attn_implementation == "sdpa" for tower in towers)
    fused, parts = (
        (change(model), model.eval()(**batch, loss_weights=LossWeights(ctc=1.0)).loss)[1].item()
        for change in (lambda model: None, attend_unfused)
    )
    assert all(tower.config._attn_implementation == "eager" for tower in towers)
    assert parts == pytest.approx(fused, rel=1e-5)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_frozen_encoder_with_batch_norm_runs_in_half_precision(autocast: bool) -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    overrides = [
        f"model.{part}_config.{key}={n}" for part in ("encoder", "decoder") for key, n in sizes.items()
    ]
    config = compose_config([*overrides, "model.freeze_encoder=true", "model.freeze_decoder=true"])
    model, processor = build_model(config)
    cast_frozen(model, torch.bfloat16)
    statistics = {n: b.dtype for n, b in model.named_buffers() if "running_" in n}
    others = {n: b.dtype for n, b in model.named_buffers() if b.is_floating_point() and n not in statistics}
    assert set(statistics.values()) == {torch.bfloat16}
    assert set(others.values()) == {torch.float32}  # positions
    batch = processor.collate(examples(processor))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert model.train(autocast)(**batch, loss_weights=LossWeights(ctc=1.0)).loss.isfinite()


def test_half_precision_that_is_emulated_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 or V100 says that it supports bfloat16, and is slower with it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert mixed_precision("auto") == "no"
    assert mixed_precision(True) == "bf16"


def test_batch_norm_that_trains_keeps_its_statistics_exact() -> None:
    model = torch.nn.BatchNorm1d(4)
    cast_frozen(model, torch.bfloat16)
    assert model.running_var.dtype == torch.float32
