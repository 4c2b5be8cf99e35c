"""Small random models of real transformers classes, shared by the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tiny_audio.hub.asr_losses import LossWeights
from tiny_audio.train.build import build_model, byte_tokenizer
from tiny_audio.train.config import compose_config

SAMPLING_RATE = 16000

WHISPER = {
    "model_type": "whisper",
    "num_mel_bins": 80,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 750,
}
# The other half of a whole Whisper, which `load_encoder` is to leave out.
WHISPER_DECODER = {
    "vocab_size": 60,
    "decoder_layers": 1,
    "decoder_ffn_dim": 32,
    "decoder_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def save_bases(folder: Path) -> Path:
    """Base models as a hub would have them: a whole Whisper, and causal LMs with their tokenizer."""
    torch.manual_seed(7)
    whisper = architecture({**WHISPER, **WHISPER_DECODER})
    WhisperForConditionalGeneration(whisper).save_pretrained(folder / "acme/whisper-pico")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "acme/whisper-pico")
    tokenizer = byte_tokenizer()
    for name, tied in (("lm-tied", True), ("lm-untied", False)):
        text_config = architecture({**LLAMA, "vocab_size": len(tokenizer), "tie_word_embeddings": tied})
        AutoModelForCausalLM.from_config(text_config).save_pretrained(folder / "acme" / name)
        tokenizer.save_pretrained(folder / "acme" / name)
    return folder


def tiny_config(*overrides: str) -> DictConfig:
    """The nano recipe with towers of about 50 thousand parameters."""
    config = compose_config(["model.projector_hidden_size=48", "training.num_workers=0", *overrides])
    config.model.encoder_config = {**WHISPER, "dropout": 0.0}
    config.model.feature_extractor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80,
        "hop_length": 320,
        "chunk_length": 30,
    }
    config.model.decoder_config = LLAMA
    config.model.tokenizer_words = []
    return config


def tiny_model(*overrides: str) -> tuple[Any, Any]:
    """Model (in eval mode) and processor of `tiny_config`."""
    model, processor = build_model(tiny_config(*overrides))
    return model.eval(), processor


def architecture(values: dict[str, Any]) -> Any:
    values = dict(values)
    return CONFIG_MAPPING[values.pop("model_type")](**values)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """A waveform of noise, float32 (S,)."""
    return np.random.default_rng(seed).standard_normal(int(seconds * SAMPLING_RATE)).astype(np.float32) * 0.1


CLIPS = [(0.9, "one two"), (2.35, "three four five"), (0.4, "six"), (1.6, "seven eight nine zero")]


def examples(processor: Any) -> list[dict[str, Any]]:
    return [processor.encode(noise(seconds, seed), text) for seed, (seconds, text) in enumerate(CLIPS)]


def randomize(model: torch.nn.Module, mark: str, seed: int = 1) -> None:
    """Random values for parameters with `mark` in their names (LoRA starts at zero, where nothing shows)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if mark in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def overfit(model: Any, batch: Any) -> float:
    """Trains on one batch until the model knows it; the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = model(**batch, loss_weights=LossWeights(ctc=0.3)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.02:
            break
    return loss.item()


def run_outside(script: str, *arguments: str, folder: Path, **environment: str) -> str:
    """What `script` prints in a process of its own, in `folder`, without our package on its path or our cache."""
    variables = {
        **os.environ,
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=variables,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
