"""Every shipped recipe trains, with small random towers of its own architectures under the names of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from transformers import (
    AutoModelForCausalLM,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    WhisperModel,
)

from tests.tiny_models import LLAMA, WHISPER, WHISPER_DECODER, architecture, noise
from tiny_audio.hub.asr_checkpoint import load_model
from tiny_audio.hub.asr_longform import transcribe_waveforms
from tiny_audio.train.build import byte_tokenizer
from tiny_audio.train.config import compose_config, experiment_names
from tiny_audio.train.run import run

HUBERT = {
    "model_type": "hubert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
DECODERS = {
    "HuggingFaceTB/SmolLM3-3B": {**LLAMA, "model_type": "smollm3"},
    "HuggingFaceTB/SmolLM3-3B-Base": {**LLAMA, "model_type": "smollm3"},
    "HuggingFaceTB/SmolLM2-135M-Instruct": LLAMA,
    "Qwen/Qwen3-8B": {**LLAMA, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's names with small random weights behind them."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name in ("facebook/hubert-xlarge-ll60k", "facebook/hubert-large-ls960-ft"):
        HubertModel(architecture(HUBERT)).save_pretrained(folder / name)
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder / name)
    for name, mel_bins in (("openai/whisper-base", 80), ("openai/whisper-large-v3-turbo", 128)):
        config = architecture(
            {**WHISPER, **WHISPER_DECODER, "num_mel_bins": mel_bins, "max_source_positions": 1500}
        )
        WhisperModel(config).save_pretrained(folder / name)
        WhisperFeatureExtractor(feature_size=mel_bins).save_pretrained(folder / name)
    tokenizer = byte_tokenizer()
    for name, values in DECODERS.items():
        special = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
        text_config = architecture({**values, **special, "vocab_size": len(tokenizer)})
        AutoModelForCausalLM.from_config(text_config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(["one two", "three", "four five six", "seven"]):
        soundfile.write(folder / f"{number}.wav", noise(2.0 + number / 4, number), 16000)
        rows.append({"audio": f"{number}.wav", "text": text, "seconds": 2.0 + number / 4})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("experiment", experiment_names())
def test_two_steps_change_what_trains_and_nothing_else(
    experiment: str, models: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(models))
    small = ["model.projector_hidden_size=32", "training.num_workers=0", "training.tracker=none"]
    short = ["training.max_steps=2", "training.batch_seconds=6", "training.gradient_accumulation_steps=2"]
    often = [
        "training.logging_steps=1",
        "training.eval_steps=2",
        "training.save_steps=2",
        "training.warmup_steps=1",
    ]
    data = [f"data.{split}={speech}" for split in ("train", "eval", "test")]
    overrides = [
        f"+experiments={experiment}",
        f"output_dir={tmp_path / 'run'}",
        *small,
        *short,
        *often,
        *data,
    ]
    config = compose_config(overrides)
    if experiment == "nano":
        config.model.encoder_config.update({"hidden_size": 32, "intermediate_size": 64})
    result = run(config)
    assert result.metrics["steps"] == 2
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(line["gradient_norm"] > 0 for line in lines)
    model, processor = load_model(str(result.model_folder), device="cpu")
    stored = {name.split(".lora_")[0] for name in model.state_dict() if ".lora_" in name}
    assert bool(stored) == bool(config.encoder_lora.r or (config.peft.peft_method and config.peft.r))
    assert len(transcribe_waveforms(model, processor, [noise(1.0)], max_new_tokens=3)) == 1
