"""Facts about hub models: complete, buildable, honest about what was checked; compared with a hub that answers."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from tiny_audio import facts
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_encoders import build_encoder
from tiny_audio.train.config import compose_config, experiment_names

MODELS = facts.known_models()


def test_every_model_of_every_recipe_is_known() -> None:
    named = set()
    for experiment in experiment_names():
        model = compose_config([f"+experiments={experiment}"]).model
        named |= {model.encoder_model_name, model.decoder_model_name} - {None}
    assert named <= set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_says_where_its_facts_come_from(name: str) -> None:
    entry = facts.model_facts(name)
    assert entry["name"] == name
    assert entry["source"] == f"https://huggingface.co/{name}/blob/main/config.json"
    assert entry["checked_against"]
    assert isinstance(entry["verified"], bool) and entry["note"]
    for field in entry["unchecked"]:
        section = field.split(",")[0].split()[0].partition(".")
        assert section[0] in entry and (not section[2] or section[2] in entry[section[0]]), field


@pytest.mark.parametrize("name", MODELS)
def test_no_key_is_misspelt(name: str) -> None:
    """transformers' configs take any key in silence, so look whether each one arrived under a name of theirs."""
    values = facts.model_facts(name)["config"]
    config = facts.model_config(name)
    known = set(type(config)().to_dict()) | {"rope_theta"}
    assert set(values) <= known
    if "rope_theta" in values:
        assert config.rope_parameters["rope_theta"] == values["rope_theta"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("facebook/hubert-xlarge-ll60k", 962_496_128),
        ("facebook/hubert-large-ls960-ft", 315_437_696),
        ("openai/whisper-large-v3-turbo", 636_968_960),
        ("openai/whisper-base", 20_590_592),
        ("HuggingFaceTB/SmolLM3-3B", 3_075_098_624),
        ("HuggingFaceTB/SmolLM3-3B-Base", 3_075_098_624),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("Qwen/Qwen3-8B", 8_190_735_360),
    ],
)
def test_sizes_of_the_towers(name: str, parameters: int) -> None:
    config = facts.model_config(name)
    with torch.device("meta"):
        if facts.model_facts(name)["role"] == "encoder":
            model = build_encoder(config)
        else:
            model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UserError, match='Did you mean "Qwen/Qwen3-8B"'):
        facts.model_config("Qwen/Qwen3-8b")


def differences(written: dict[str, object], published: PreTrainedConfig) -> dict[str, tuple[object, object]]:
    """Keys of our facts that the published config has another value for."""
    actual = published.to_dict()
    if "rope_theta" in written:
        actual["rope_theta"] = published.rope_parameters["rope_theta"]
    return {key: (value, actual.get(key)) for key, value in written.items() if actual.get(key) != value}


def test_differences_are_found() -> None:
    name = "HuggingFaceTB/SmolLM3-3B"
    written = facts.model_facts(name)["config"]
    assert differences(written, facts.model_config(name)) == {}
    assert set(differences({**written, "hidden_size": 1, "rope_theta": 2.0}, facts.model_config(name))) == {
        "hidden_size",
        "rope_theta",
    }


@pytest.mark.hub
@pytest.mark.parametrize("name", MODELS)
def test_config_on_the_hub(name: str) -> None:
    assert differences(facts.model_facts(name)["config"], AutoConfig.from_pretrained(name)) == {}


@pytest.mark.hub
@pytest.mark.parametrize("name", [name for name in MODELS if "tokenizer" in facts.model_facts(name)])
def test_tokenizer_on_the_hub(name: str) -> None:
    traits = facts.model_facts(name)["tokenizer"]
    tokenizer = AutoTokenizer.from_pretrained(name)
    actual = {
        "vocab_size": len(tokenizer),
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "bos_token": tokenizer.bos_token,
        "has_chat_template": tokenizer.chat_template is not None,
        "thinking": "think" in (tokenizer.chat_template or ""),
    }
    assert {key: traits[key] for key in actual} == actual


def test_facts_are_not_config_keys() -> None:
    """The recipes name models; nothing of a facts file is copied into them."""
    for experiment in experiment_names():
        config = compose_config([f"+experiments={experiment}"])
        if config.model.encoder_model_name:
            assert OmegaConf.to_container(config.model.encoder_config) == {}
