"""Building encoders from configs and loading them from checkpoints, exactly or not at all."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    HubertConfig,
    HubertForCTC,
    ParakeetCTCConfig,
    ParakeetForCTC,
    ParakeetForTDT,
    ParakeetTDTConfig,
    PreTrainedConfig,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    WavLMConfig,
    WavLMForXVector,
    WavLMModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from tests.hub.encoder_towers import (
    LAYER_NORM,
    TINY_CONFORMER,
    VARIANTS,
    every_variant,
    make_clips,
    make_tower,
    move_weights,
    pad_clips,
    random_dropping,
    whisper_config,
)
from tiny_audio.hub.asr_encoders import (
    build_encoder,
    encoder_family,
    encoder_geometry,
    encoder_width,
    load_encoder,
    prepare_encoder,
    run_encoder,
)

# Building and preparing -------------------------------------------------------------------------------------


@every_variant
def test_prepared_towers_can_be_copied(variant: str) -> None:
    tower = make_tower(variant)
    prepare_encoder(tower)  # twice is harmless
    features, mask = pad_clips(make_clips(tower, (0.5, 0.307)))
    with torch.no_grad():
        expected = run_encoder(tower, features, mask)
        assert torch.equal(run_encoder(copy.deepcopy(tower).train(), features, mask), expected)


def test_building_leaves_the_config_alone() -> None:
    config = VARIANTS["hubert-layer"]()
    build_encoder(config)
    assert config.layerdrop == 0.1 and config.mask_time_prob == 0.05


@every_variant
def test_preparing_a_stock_tower_makes_it_one_of_ours(variant: str) -> None:
    config = VARIANTS[variant](**random_dropping(variant))
    family, _ = encoder_family(config)
    torch.manual_seed(0)
    stock = family.model_class(copy.deepcopy(config))
    prepare_encoder(stock)
    built = build_encoder(config)
    assert stock.state_dict().keys() == built.state_dict().keys()
    assert [type(part).__name__ for part in stock.modules()] == [
        type(part).__name__ for part in built.modules()
    ]
    assert stock.config.to_dict() == built.config.to_dict()
    assert getattr(stock, "layerdrop", 0.0) == getattr(built, "layerdrop", 0.0) == 0.0
    features, mask = pad_clips(make_clips(stock, (0.5, 0.307)))
    with torch.no_grad():
        expected = run_encoder(stock.eval(), features, mask)
        assert all(torch.equal(run_encoder(stock.train(), features, mask), expected) for _ in range(3))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # facebook/hubert-xlarge-ll60k
        (
            HubertConfig(
                **LAYER_NORM,
                hidden_size=1280,
                num_hidden_layers=48,
                num_attention_heads=16,
                intermediate_size=5120,
            ),
            962_496_128,
        ),
        # the encoder of openai/whisper-large-v3-turbo
        (
            WhisperConfig(
                d_model=1280,
                encoder_layers=32,
                encoder_attention_heads=20,
                encoder_ffn_dim=5120,
                num_mel_bins=128,
            ),
            636_968_960,
        ),
    ],
    ids=["hubert-xlarge", "whisper-large-v3-turbo"],
)
def test_full_size_towers_build_on_the_meta_device(config: PreTrainedConfig, parameters: int) -> None:
    with torch.device("meta"):
        tower = build_encoder(config)
    assert sum(parameter.numel() for parameter in tower.parameters()) == parameters


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (
            BertConfig(),
            "no audio encoder of type 'bert' is known; known types are: whisper, wav2vec2, hubert",
        ),
        (Wav2Vec2Config(add_adapter=True), "wav2vec2 encoders with add_adapter = true are not supported"),
        (WavLMConfig(add_adapter=True), "wavlm encoders with add_adapter = true are not supported"),
        (HubertConfig(conv_pos_batch_norm=True), "conv_pos_batch_norm = true are not supported"),
    ],
)
def test_what_cannot_be_run_exactly_is_refused(config: PreTrainedConfig, complaint: str) -> None:
    for function in (encoder_geometry, build_encoder, encoder_width):
        with pytest.raises(ValueError, match=complaint):
            function(config)


# Loading ----------------------------------------------------------------------------------------------------


def parakeet_config(config_class: Any, **changes: Any) -> Any:
    return config_class(encoder_config=TINY_CONFORMER, vocab_size=20, pad_token_id=19, **changes)


WHOLE_MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "whisper": (lambda: WhisperForConditionalGeneration(whisper_config()), lambda model: model.model.encoder),
    "wav2vec2-ctc": (lambda: Wav2Vec2ForCTC(VARIANTS["wav2vec2-layer"]()), lambda model: model.wav2vec2),
    "wav2vec2-pretraining": (
        lambda: Wav2Vec2ForPreTraining(VARIANTS["wav2vec2-group"]()),
        lambda model: model.wav2vec2,
    ),
    "hubert-ctc": (lambda: HubertForCTC(VARIANTS["hubert-layer"]()), lambda model: model.hubert),
    "wavlm-bare": (lambda: WavLMModel(VARIANTS["wavlm-group"]()), lambda model: model),
    "wavlm-speakers": (lambda: WavLMForXVector(VARIANTS["wavlm-layer"]()), lambda model: model.wavlm),
    "parakeet-ctc": (lambda: ParakeetForCTC(parakeet_config(ParakeetCTCConfig)), lambda model: model.encoder),
    "parakeet-tdt": (
        lambda: ParakeetForTDT(parakeet_config(ParakeetTDTConfig, blank_token_id=18, decoder_hidden_size=16)),
        lambda model: model.encoder,
    ),
}


def encoder_weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if name != "masked_spec_embed"}


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_saved_models_load_bit_equal(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_model, find_encoder = WHOLE_MODELS[name]
    model = make_model()
    move_weights(model)
    model.save_pretrained(tmp_path / "whole")
    expected = encoder_weights(find_encoder(model))
    with caplog.at_level(logging.INFO, logger="tiny_audio.hub.asr_encoders"):
        tower = load_encoder(tmp_path / "whole")
    assert not tower.training
    assert_same_weights(tower.state_dict(), expected)
    dropped = len(load_file(tmp_path / "whole" / "model.safetensors")) - len(expected)
    assert [f"left out {dropped} weights of heads or decoders" in message for message in caplog.messages] == [
        True
    ]
    # saved bare, under the names that it has here, and loaded again
    tower.save_pretrained(tmp_path / "bare")
    assert_same_weights(load_file(tmp_path / "bare" / "model.safetensors"), expected)
    assert_same_weights(load_encoder(str(tmp_path / "bare")).state_dict(), expected)
    assert load_encoder(tmp_path / "bare", dtype=torch.bfloat16).dtype == torch.bfloat16


def save_hubert(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> dict[str, Tensor]:
    """Writes a HuBERT checkpoint whose weights `change` edited; returns the encoder's weights from before."""
    model = HubertForCTC(VARIANTS["hubert-layer"]())
    move_weights(model)
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return encoder_weights(model.hubert)


def test_old_names_of_weight_norm_load(tmp_path: Path) -> None:
    new_name = "hubert.encoder.pos_conv_embed.conv.parametrizations.weight.original"

    def rename(weights: dict[str, Tensor]) -> None:
        weights["hubert.encoder.pos_conv_embed.conv.weight_g"] = weights.pop(new_name + "0")
        weights["hubert.encoder.pos_conv_embed.conv.weight_v"] = weights.pop(new_name + "1")

    expected = save_hubert(tmp_path / "old", rename)
    tower = load_encoder(tmp_path / "old")
    assert_same_weights(tower.state_dict(), expected)
    tower.save_pretrained(tmp_path / "new")
    assert_same_weights(load_file(tmp_path / "new" / "model.safetensors"), expected)


LAYER_WEIGHT = "hubert.encoder.layers.1.final_layer_norm.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda weights: weights.pop(LAYER_WEIGHT),
            "lacks 1 weights, as encoder.layers.1.final_layer_norm.weight",
        ),
        (
            lambda weights: weights.update({LAYER_WEIGHT: torch.ones(7)}),
            r"another shape.*final_layer_norm.weight \[7\], not \[32\]",
        ),
        (
            lambda weights: weights.update({"hubert.encoder.layers.2.bias": torch.ones(7)}),
            "1 weights have no place in it, as hubert.encoder.layers.2.bias",
        ),
    ],
    ids=["missing", "misshapen", "unknown"],
)
def test_weights_that_do_not_fit_raise(change: Any, complaint: str, tmp_path: Path) -> None:
    save_hubert(tmp_path, change)
    with pytest.raises(ValueError, match=complaint):
        load_encoder(tmp_path)


def test_places_without_a_model_raise_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "no-weights").mkdir()
    VARIANTS["whisper"]().save_pretrained(tmp_path / "no-weights")
    save_hubert(tmp_path / "cut", lambda weights: None)
    cut = tmp_path / "cut" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:5000])
    for place in (
        "nobody/no-such-encoder",
        *(tmp_path / name for name in ("empty", "gone", "no-weights", "cut")),
    ):
        with pytest.raises(OSError, match="TINY_AUDIO_MODELS") as raised:
            load_encoder(place)
        assert str(place) in str(raised.value) and "\n" not in str(raised.value)


def test_models_that_are_no_audio_encoder_raise(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="no audio encoder of type 'bert' is known; known types are: whisper"
    ):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}', encoding="utf-8")
    with pytest.raises(ValueError, match="no-such-type"):
        load_encoder(tmp_path)
