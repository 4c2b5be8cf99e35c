"""models/small: whole, small, and with the code of this version."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tiny_audio.hub.asr_checkpoint import copy_code, own_state_dict, read_config
from tiny_audio.hub.asr_modeling import TinyAudioForConditionalGeneration
from tiny_audio.train.config import compose_config

MODEL = Path(__file__).parents[2] / "models" / "small"
MOST_BYTES = 25e6


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir() if file.is_file()) <= MOST_BYTES


def test_its_weights_are_all_there_and_finite() -> None:
    with torch.device("meta"):
        model = TinyAudioForConditionalGeneration(read_config(str(MODEL)))
    expected = {name: weight.shape for name, weight in own_state_dict(model).items()}
    weights = load_file(MODEL / "model.safetensors")
    assert {name: weight.shape for name, weight in weights.items()} == expected
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_it_names_the_bases_that_it_was_trained_on() -> None:
    config = read_config(str(MODEL))
    assert config.encoder_base["name"] == "openai/whisper-base" and config.encoder_base["fingerprint"]
    assert config.decoder_base["name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert config.decoder_base["fingerprint"]


def test_the_recipe_that_goes_on_from_it_asks_for_what_it_has() -> None:
    recipe, model = compose_config(["+experiments=small"]), read_config(str(MODEL))
    for asked, kept in ((recipe.encoder_lora, model.encoder_lora), (recipe.peft, model.decoder_lora)):
        assert {key: value for key, value in asked.items() if key != "peft_method"} == kept
    for key in ("projector_type", "stack_factor", "projector_hidden_size"):
        assert recipe.model[key] == getattr(model, key)


def test_its_code_is_that_of_this_version(tmp_path: Path) -> None:
    """It is linked; a new file of the hub folder needs: cd models/small && ln -s ../../tiny_audio/hub/NAME.py"""
    copy_code(tmp_path)
    ours = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {file.name: file.read_bytes() for file in MODEL.glob("*.py")} == ours
