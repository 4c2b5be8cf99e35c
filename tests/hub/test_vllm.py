"""What vLLM's transformers backend asks of an audio-language model, asked in its way. vLLM itself is not run here.

Its documentation ("Supported models", under "Writing custom models") and the source of that backend say what.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import noise, tiny_model
from tiny_audio.hub.asr_modeling import TinyAudioModel

SECONDS = (0.4, 1.7, 1.7, 3.0)


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    return tiny_model()


def test_classes_and_names(parts: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = parts
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"]["AutoModel"] == "asr_modeling.TinyAudioModel"
    assert TinyAudioModel.is_backend_compatible()
    assert processor.audio_token == "<audio>" and processor.feature_extractor.sampling_rate == 16_000
    limits = ("max_source_positions", "max_position_embeddings", "max_pos_emb")
    longest = next(getattr(model.config.audio_config, name, None) for name in limits)
    assert longest >= processor.num_audio_tokens(int(30 * 16_000 / processor.feature_extractor.hop_length))
    base = model.model
    assert base.language_model is not None and type(base.get_encoder(modality="audio")) is not type(base)
    kinds = [parameter.kind for parameter in inspect.signature(base.forward).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD in kinds, "keyword arguments reach the decoder's attention"


def test_the_base_model_is_built_from_the_config_alone(parts: tuple[Any, Any]) -> None:
    model, _ = parts
    with torch.device("meta"):
        base = TinyAudioModel(model.config)
    assert base.state_dict().keys() == model.model.state_dict().keys()


def test_each_placeholder_becomes_as_many_as_the_audio_has_tokens(parts: tuple[Any, Any]) -> None:
    model, processor = parts
    clips = [noise(seconds, seed) for seed, seconds in enumerate(SECONDS)]
    text = " ".join([processor.audio_token] * len(clips))
    inputs = processor(text=text, audio=clips, return_text_replacement_offsets=True, return_tensors="pt")
    (offsets,) = inputs["text_replacement_offsets"]
    counts = []
    for entry in offsets:
        assert entry["type"] == "audio" and entry["text"] == processor.audio_token
        ids = processor.tokenizer(entry["replacement"], add_special_tokens=False).input_ids
        assert set(ids) == {processor.audio_token_id} == {model.config.audio_token_id}
        counts.append(len(ids))
    found = model.model.get_audio_features(
        inputs["input_features"], return_dict=True, input_features_mask=inputs["input_features_mask"]
    )
    assert found.pooler_output.shape == (sum(counts), model.config.text_config.hidden_size)
    for clip, tokens in zip(clips, found.pooler_output.split(counts), strict=True):
        alone = processor(text="<audio>", audio=[clip], return_text_replacement_offsets=True)
        features = model.model.get_audio_features(alone["input_features"], alone["input_features_mask"])
        assert torch.allclose(features.pooler_output, tokens, atol=1e-5), "no clip depends on its batch"


def test_the_prompt_and_what_the_decoder_sees_are_ours(parts: tuple[Any, Any]) -> None:
    model, processor = parts
    clip = noise(1.7)
    prompt = f"{processor.prompt_before}<audio>{processor.prompt_between}"
    inputs = processor(text=prompt, audio=[clip], return_text_replacement_offsets=True)
    ours = processor(clip)
    (ids,) = inputs["input_ids"]
    assert ids == ours["input_ids"][0].tolist()
    tokens = torch.tensor([ids])
    audio = model.model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    embeddings = model.model.get_input_embeddings()(tokens)
    embeddings[tokens == processor.audio_token_id] = audio.pooler_output  # as vLLM merges them
    with torch.no_grad():
        theirs = model.model(
            input_ids=None,
            inputs_embeds=embeddings,
            position_ids=torch.arange(len(ids))[None],
            use_cache=False,
        )
        expected = model.model(**ours)
    assert torch.allclose(theirs[0], expected.last_hidden_state, atol=1e-5)
