"""The cost of a run is counted on shapes alone: against what the real model computes and keeps, and in dollars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny_models import noise, tiny_config
from tiny_audio.cli import main
from tiny_audio.hub.asr_losses import LossWeights
from tiny_audio.train.build import build_model, freeze
from tiny_audio.train.compute import (
    PROMPT_TOKENS,
    TEXT_TOKENS_PER_SECOND,
    StepCost,
    cost_of_config,
    step_cost,
)
from tiny_audio.train.config import compose_config
from tiny_audio.train.parameters import meta_model
from tiny_audio.train.plan import GPUS_FILE, read_gpus, work_of_config

SECONDS = 10.0
LM_ONLY = LossWeights()
FROZEN_ENCODER = ["+experiments=small", "encoder_lora.r=0"]


def cost_of(*overrides: str, weights: LossWeights = LM_ONLY, checkpointing: bool = False) -> StepCost:
    config = compose_config(overrides)
    return step_cost(meta_model(config), weights, gradient_checkpointing=checkpointing)


def wide_config(*overrides: str) -> DictConfig:
    """Tiny towers, but wide enough that matrices are the work and activations the memory."""
    config = tiny_config("ctc.weight=0", "ctc.alone_share=0", *overrides)
    config.model.encoder_config = {**config.model.encoder_config, "d_model": 128, "encoder_ffn_dim": 512}
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3}
    config.model.decoder_config = {**config.model.decoder_config, **sizes}
    return config


def real_step(config: DictConfig, attention: str) -> tuple[float, float]:
    """FLOP, and bytes kept for the backward pass, of one clip in the real model, both per second of audio."""
    model, processor = build_model(config)
    model.train()
    for tower in (model.model.audio_tower, model.model.language_model):
        tower.set_attn_implementation(attention)
    text = "a" * round(TEXT_TOKENS_PER_SECOND * SECONDS)
    batch = processor.collate([processor.encode(noise(SECONDS), text)])
    prompt = torch.full((1, PROMPT_TOKENS), 7)
    batch["input_ids"] = torch.cat([prompt, batch["input_ids"]], dim=1)
    batch["labels"] = torch.cat([torch.full_like(prompt, -100), batch["labels"]], dim=1)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        model(**batch, loss_weights=LM_ONLY).loss.backward()
    return counter.get_total_flops() / SECONDS, sum(each.nbytes() for each in kept.values()) / SECONDS


@pytest.mark.parametrize(
    "overrides",
    [
        [],  # everything trains
        ["model.freeze_encoder=true", "model.freeze_decoder=true"],
        ["model.freeze_encoder=true", "encoder_lora.r=4", "model.freeze_decoder=true", "peft.r=4"],
        ["model.projector_type=mosa"],
        ["model.projector_type=moe"],
        ["model.projector_type=qformer"],
    ],
)
def test_what_is_counted_is_what_the_model_does(overrides: list[str]) -> None:
    config = wide_config(*overrides)
    flops, _ = real_step(config, "eager")  # PyTorch does not count what a fused kernel does on a CPU,
    _, kept_bytes = real_step(config, "sdpa")  # and only that keeps no (T, T) scores
    model, _ = build_model(config)
    freeze(model, config.model.freeze_encoder, config.model.freeze_decoder)
    cost = step_cost(
        model.to("meta"), LM_ONLY, gradient_checkpointing=False, clip_seconds=SECONDS, hop_length=320
    )
    assert cost.flops_per_audio_second == pytest.approx(flops, rel=0.03)
    # bf16 for float32; too much rather than too little
    assert 1.0 <= cost.bytes_per_audio_second / (kept_bytes / 2) <= 1.3
    assert cost.repeated_flops_per_audio_second == 0


def test_stage1_costs_what_its_weights_say() -> None:
    """402 GFLOP: 2 a weight and position forward, 2 for gradients that pass, 2 for the projector, which trains."""
    cost = cost_of(
        "+experiments=stage1", weights=LossWeights(ctc=0.3, embedding=0.3, embedding_negatives=8192)
    )
    assert cost.flops_per_audio_second == pytest.approx(402e9, rel=0.07)
    assert [part.part for part in cost.parts] == [
        "encoder",
        "projector",
        "decoder",
        "decoder head",
        "CTC losses",
    ]
    trained, frozen = (
        cost.weight_bytes["trained weights, gradients, AdamW"],
        cost.weight_bytes["frozen weights, bf16"],
    )
    assert trained == pytest.approx(16 * 138.9e6, rel=0.01) and frozen == pytest.approx(2 * 4.037e9, rel=0.01)


def test_checkpointing_trades_memory_for_work() -> None:
    kept = cost_of(*FROZEN_ENCODER, checkpointing=False)
    again = cost_of(*FROZEN_ENCODER, checkpointing=True)
    assert again.flops_per_audio_second == kept.flops_per_audio_second
    assert again.bytes_per_audio_second < kept.bytes_per_audio_second / 2
    assert again.repeated_flops_per_audio_second > 0.2 * kept.flops_per_audio_second
    one = [
        cost_of_config(
            compose_config([*FROZEN_ENCODER, f"training.gradient_checkpointing={tower}"]), LM_ONLY, 7.0
        )
        for tower in ("encoder", "decoder")
    ]
    repeated = [{part.part for part in cost.parts if part.repeated_flops} for cost in one]
    assert repeated == [set(), {"decoder"}]  # a frozen encoder keeps nothing


def test_the_logits_of_large_batches_are_not_all_there_at_once() -> None:
    small, large = (
        cost_of_config(
            compose_config(["+experiments=stage1", f"training.batch_seconds={seconds}"]), LM_ONLY, 7.0
        )
        for seconds in (50, 400)
    )
    heads = [next(part for part in cost.parts if part.part == "decoder head") for cost in (small, large)]
    assert heads[0].repeated_flops == 0 and heads[1].flops == heads[0].flops
    assert heads[1].repeated_flops == pytest.approx(
        heads[1].flops / 2
    )  # the frozen head: forward, and to its input
    assert heads[1].kept_bytes * 400 < heads[0].kept_bytes * 100


def test_a_resting_decoder_costs_nothing() -> None:
    cost = cost_of(*FROZEN_ENCODER, weights=LossWeights(language_model=0.0, ctc=0.3, embedding=0.3))
    assert "decoder" not in {part.part for part in cost.parts}
    assert cost.flops_per_audio_second < 0.4 * cost_of(*FROZEN_ENCODER).flops_per_audio_second


def test_what_a_cache_and_a_shared_prompt_save() -> None:
    config = compose_config(FROZEN_ENCODER)
    whole = cost_of_config(config, LM_ONLY, clip_seconds=5.0)
    cached = cost_of_config(compose_config([*FROZEN_ENCODER, "data.features_cache=x"]), LM_ONLY, 5.0)
    (encoder,) = [part for part in whole.parts if part.part == "encoder"]
    assert [part for part in whole.parts if part is not encoder] == list(cached.parts)
    assert cached.weight_bytes == whole.weight_bytes  # it is loaded all the same
    # One prompt for all clips of a batch: 24 of 30 positions are read once for the 18 clips of 90 s.
    alone = cost_of_config(
        compose_config([*FROZEN_ENCODER, "training.per_device_train_batch_size=1"]),
        LM_ONLY,
        clip_seconds=5.0,
    )
    decoders = [next(part.flops for part in cost.parts if part.part == "decoder") for cost in (alone, whole)]
    text = round(5 * TEXT_TOKENS_PER_SECOND)
    audio = round(5 * 12.5)
    assert config.training.batch_seconds == 90 and config.model.stack_factor == 4
    expected = (audio + text + 6 + round(24 / 18)) / (audio + text + PROMPT_TOKENS)
    assert decoders[1] / decoders[0] == pytest.approx(expected, rel=0.03)


def test_time_and_dollars() -> None:
    table = read_gpus()
    a40 = next(gpu for gpu in table.gpus if gpu.name == "A40")
    # DESIGN's count: 4,000 hours in a day at 45%.
    assert 24 * a40.flops_per_second(0.45) / 402e9 == pytest.approx(4000, rel=0.01)
    assert a40.largest_batch_seconds(10e9, 0.1e9) == pytest.approx((48 * 0.92 - 2 - 10) / 0.1)
    assert a40.largest_batch_seconds(60e9, 0.1e9) == 0


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["plan", "+experiments=projector_only"]) == 0
    output = capsys.readouterr().out
    for words in (
        "Parameters",
        "14.7M",
        "GFLOP a second of audio",
        "A40",
        "dollars",
        "extrapolated",
        "2026-",
    ):
        assert words in output
    tried = ["+experiments=projector_only", "training.batch_seconds=auto"]
    assert main(["plan", *tried, "--clip-seconds", "5"]) == 0
    output = capsys.readouterr().out
    assert "at most 64 clips of 5 s" in " ".join(output.split()) and "lower it" not in output
    assert "320 s" in output  # which is what they hold on the largest GPU
    assert main(["plan", "+experiments=stage1", "training.max_step=3"]) == 2
    assert "training.max_steps" in capsys.readouterr().err


def dollars(capsys: pytest.CaptureFixture[str], *overrides: str) -> float:
    """What `plan` says for the first GPU of its table."""
    assert main(["plan", *overrides, "--clip-seconds", "2"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "H200" in line)
    return float(row.split("│")[7].strip().replace(",", ""))


def test_the_bill_is_of_the_steps_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    config = wide_config("ctc.weight=1", "ctc.alone_share=0.25")
    cost = cost_of_config(config, LossWeights(ctc=1.0), 2.0)
    alone = cost_of_config(config, LossWeights(0.0, ctc=1.0), 2.0)
    mean = 0.25 * alone.flops_per_audio_second + 0.75 * cost.flops_per_audio_second
    assert work_of_config(config, cost, 2.0) == pytest.approx(mean)
    assert alone.flops_per_audio_second < 0.7 * cost.flops_per_audio_second
    # 10 clips of 2 s are no batch of 200 s: a tenth of the hours.
    long = ("training.max_steps=100000000", "training.batch_seconds=200")
    full, capped = (dollars(capsys, *long, f"training.per_device_train_batch_size={n}") for n in (100, 10))
    assert capped == pytest.approx(full / 10, rel=0.02)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gpus: [", "is not a table of GPUs"),
        ("prices_as_of: x\ngpus: {T4: {memory_gb: 16}}", "T4 needs"),
        ("prices_as_of: x\ngpus: {T4: {memory_gb: 16, bf16_tflops: -1, dollars_an_hour: 1}}", "all above 0"),
    ],
)
def test_a_table_of_ones_own(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    assert main(["plan", "--gpus", str(tmp_path / "mine.yaml")]) == 2
    assert message in capsys.readouterr().err
    assert main(["plan", "--gpus", str(GPUS_FILE.with_name("none.yaml"))]) == 2
