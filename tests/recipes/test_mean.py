"""recipes/small/mean.py: adapters between the ends of a path of training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipes.small.mean import mean
from tests.tiny_models import randomize, tiny_model
from tiny_audio.hub.asr_checkpoint import load_model


def saved(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    model, processor = tiny_model("peft.r=2", *overrides)
    for mark in ("lora_", "projector"):
        randomize(model, mark, seed=sum(folder.name.encode()))  # each has its own weights
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.state_dict()


def loaded(folder: Path) -> tuple[dict[str, torch.Tensor], float]:
    model, _ = load_model(str(folder), device="cpu")
    return model.state_dict(), model.config.encoder_lora["lora_alpha"]


def is_encoder_b(name: str) -> bool:
    return "audio_tower" in name and "lora_B" in name


def test_weights_are_the_mean_and_the_encoders_adapters_count_less(tmp_path: Path) -> None:
    states = [
        saved(tmp_path / name, "encoder_lora.r=2", "encoder_lora.lora_alpha=8") for name in ("one", "two")
    ]
    mean([tmp_path / "one", tmp_path / "two"], tmp_path / "out", 0.25)
    weights, alpha = loaded(tmp_path / "out")
    assert alpha == 8
    trained = 0
    for name, weight in weights.items():
        expected = (states[0][name] + states[1][name]) / 2
        assert torch.allclose(weight, expected * (0.25 if is_encoder_b(name) else 1), atol=1e-7), name
        trained += not torch.equal(states[0][name], states[1][name])
    assert trained > 8, "the two are different"


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_another_alpha_alone_does_not_change_the_strength(tmp_path: Path, strength: float) -> None:
    before = saved(tmp_path / "one", "encoder_lora.r=2", "encoder_lora.lora_alpha=8")
    mean([tmp_path / "one"], tmp_path / "out", strength, alpha=4)
    weights, alpha = loaded(tmp_path / "out")
    assert alpha == 4
    for name, weight in weights.items():
        assert torch.allclose(weight, before[name] * (2 * strength if is_encoder_b(name) else 1)), name


def test_models_that_are_built_otherwise_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "two", "encoder_lora.r=2")
    saved(tmp_path / "four", "encoder_lora.r=4")
    saved(tmp_path / "none")
    with pytest.raises(ValueError, match="differ in encoder_lora,"):
        mean([tmp_path / "two", tmp_path / "four"], tmp_path / "out", 1.0)
    with pytest.raises(ValueError, match="no LoRA on its encoder"):
        mean([tmp_path / "none"], tmp_path / "out", 0.5)
    with pytest.raises(ValueError, match="there already"):
        mean([tmp_path / "two"], tmp_path / "four", 1.0)
    assert not (tmp_path / "out").exists()
