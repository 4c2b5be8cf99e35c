"""Parameter counts of the recipes at full size, on the meta device."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from transformers import HubertConfig

from tests.tiny_models import tiny_config
from tiny_audio.errors import UserError
from tiny_audio.train.build import build_model
from tiny_audio.train.config import compose_config, experiment_names
from tiny_audio.train.parameters import LOSS_HEADS, parameter_table, print_parameter_table
from tiny_audio.train.run import save_model


def count(*overrides: str) -> dict[str, tuple[int, int]]:
    return {row.part: (row.parameters, row.trainable) for row in parameter_table(compose_config(overrides))}


def millions(number: int) -> float:
    return round(number / 1e6, 1)


def test_stage1() -> None:
    parts = count("+experiments=stage1")
    # HuBERT-XL 5 x 1280 -> 8192 -> 2048: two matrices up, one down, two norms.
    assert parts["projector"] == (2 * 6400 * 8192 + 8192 * 2048 + 6400 + 2048,) * 2
    assert millions(parts["projector"][0]) == 121.6
    assert millions(parts["encoder"][0]) == 962.5
    assert parts["encoder"][1] == parts["decoder"][1] == 0
    assert parts["encoder LoRA"] == (48 * 2 * 8 * (1280 + 1280),) * 2
    assert parts["decoder LoRA"] == (36 * 64 * ((2048 + 2048) + (2048 + 512)),) * 2
    trained = sum(parts[part][1] for part in ("projector", "encoder LoRA", "decoder LoRA"))
    assert millions(trained) == 138.9
    assert parts["total"][1] == trained + parts["CTC heads"][1]
    assert parts["CTC heads"][1] < 100_000


@pytest.mark.parametrize(
    ("experiment", "projector", "decoder", "trained"),
    [
        ("qwen3_8b", 138.4, 8190.7, 146.2),
        ("projector_only", 14.7, 3075.1, 14.7),
        ("mosa", 65.2, 3075.1, 65.3),
        ("small", 7.2, 134.5, 10.8),
        ("mac_minimal", 7.2, 134.5, 7.2),
        ("archive/lora_decoder", 121.6, 3075.1, 137.0),
    ],
)
def test_recipes(experiment: str, projector: float, decoder: float, trained: float) -> None:
    parts = count(f"+experiments={experiment}")
    assert millions(parts["projector"][0]) == projector
    assert millions(parts["decoder"][0]) == decoder
    assert millions(parts["total"][1]) == trained


def test_nano_trains_everything() -> None:
    total, trained = count()["total"]
    assert total == trained == 2_274_455  # as trained runs count them


def test_every_recipe_has_been_counted() -> None:
    counted = {
        "stage1",
        "qwen3_8b",
        "projector_only",
        "mosa",
        "small",
        "mac_minimal",
        "archive/lora_decoder",
        "nano",
    }
    assert set(experiment_names()) <= counted, "a new recipe: add its counts"


@pytest.mark.parametrize(
    ("override", "gone"),
    [
        ("encoder_lora.r=0", "encoder LoRA"),
        ("peft.peft_method=null", "decoder LoRA"),
        ("peft.r=0", "decoder LoRA"),
    ],
)
def test_lora_is_switched_off(override: str, gone: str) -> None:
    assert gone in count("+experiments=stage1")
    assert gone not in count("+experiments=stage1", override)


def test_a_rank_alone_adds_adapters_to_the_default_recipe() -> None:
    parts = count("peft.r=64", "encoder_lora.r=8")
    assert parts["decoder LoRA"][1] > 0 and parts["encoder LoRA"][1] > 0


def test_a_model_on_this_machine_is_counted_by_its_own_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = HubertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    own.save_pretrained(tmp_path / "facebook" / "hubert-xlarge-ll60k")
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(tmp_path))
    assert millions(count("+experiments=stage1")["encoder"][0]) < 10


def test_an_unknown_model_without_a_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no-such/model") as caught:
        count("+experiments=stage1", "model.decoder_model_name=no-such/model")
    assert "\n" not in str(caught.value)


def test_the_printed_table() -> None:
    console = Console(record=True, width=100, file=io.StringIO())
    print_parameter_table(compose_config(["+experiments=stage1"]), console)
    text = console.export_text()
    for cell in ("projector", "121.6M", "encoder LoRA", "962.5M", "3.08B", "total", "100.0%"):
        assert cell in text


@pytest.mark.parametrize(("weights", "trained"), [((0, 0), 0), ((0.3, 0), 33 * 39), ((0, 0.3), 32 + 1)])
def test_heads_without_a_loss_do_not_train(
    weights: tuple[float, float], trained: int, tmp_path: Path
) -> None:
    both = ("ctc.weight=1", "ctc.embedding_weight=1", "ctc.alone_share=0")
    model, processor = build_model(tiny_config(*both))
    save_model(model, processor, tmp_path / "model")
    mine = (f"ctc.weight={weights[0]}", f"ctc.embedding_weight={weights[1]}", "ctc.alone_share=0")
    config = tiny_config(*mine, f"init_from={tmp_path}/model")
    heads = {row.part: row for row in parameter_table(config)}[LOSS_HEADS]
    assert heads.trainable == trained and heads.parameters == 33 * 39 + 32 + 1
    model, _ = build_model(config)
    learning = [
        p.numel()
        for head in (model.ctc_head, model.embedding_ctc)
        for p in head.parameters()
        if p.requires_grad
    ]
    assert sum(learning) == trained


def test_a_folder_without_a_model_to_start_from_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        count(f"init_from={tmp_path}")
