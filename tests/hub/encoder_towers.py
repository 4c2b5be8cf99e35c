"""Tiny random towers of every encoder family and variant, and clips for them.

They are built from transformers' own config classes. All their weights are moved away from their initial
values: a bias that starts at zero hides exactly the leaks from padding that the tests look for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    HubertConfig,
    ParakeetEncoderConfig,
    PreTrainedConfig,
    Wav2Vec2Config,
    WavLMConfig,
    WhisperConfig,
)

from tiny_audio.hub.asr_encoders import build_encoder, encoder_feature_kind, encoder_geometry, run_encoder

TOLERANCE = 1e-4  # in float32, the promise of `run_encoder`
MEL_BINS = 16
MAX_SOURCE_POSITIONS = 250  # 5 s of Whisper frames

NO_DROPOUT = {"hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0}
TINY_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 20,
    **NO_DROPOUT,
}
GROUP_NORM = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
TINY_CONFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_mel_bins": MEL_BINS,
    "subsampling_conv_channels": 8,
    "dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
}


def whisper_config(**changes: Any) -> WhisperConfig:
    tiny = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_mel_bins": MEL_BINS,
        "max_source_positions": MAX_SOURCE_POSITIONS,
        "vocab_size": 20,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    return WhisperConfig(**tiny | changes)


VARIANTS: dict[str, Callable[..., PreTrainedConfig]] = {
    "whisper": whisper_config,
    "wav2vec2-group": lambda **changes: Wav2Vec2Config(**TINY_TRANSFORMER | GROUP_NORM | changes),
    "wav2vec2-layer": lambda **changes: Wav2Vec2Config(**TINY_TRANSFORMER | LAYER_NORM | changes),
    "wav2vec2-attention-adapters": lambda **changes: Wav2Vec2Config(
        **TINY_TRANSFORMER | LAYER_NORM | {"adapter_attn_dim": 8} | changes
    ),
    "hubert-group": lambda **changes: HubertConfig(**TINY_TRANSFORMER | GROUP_NORM | changes),
    "hubert-layer": lambda **changes: HubertConfig(**TINY_TRANSFORMER | LAYER_NORM | changes),
    "wavlm-group": lambda **changes: WavLMConfig(**TINY_TRANSFORMER | GROUP_NORM | changes),
    "wavlm-layer": lambda **changes: WavLMConfig(**TINY_TRANSFORMER | LAYER_NORM | changes),
    "parakeet": lambda **changes: ParakeetEncoderConfig(**TINY_CONFORMER | changes),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
CLIP_SECONDS = (0.1, 2.337, 1.0, 4.4219, 0.7301)  # odd lengths in samples and in mel frames


def move_weights(module: nn.Module, seed: int = 0) -> None:
    """Moves every weight, and the statistics of batch norm, away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean += 0.1 * torch.randn(part.running_mean.shape, generator=generator)
                part.running_var *= 1.0 + torch.rand(part.running_var.shape, generator=generator)


def random_dropping(variant: str) -> dict[str, float]:
    """Config values that drop layers and mask features at random in a stock tower's train mode."""
    masking = {} if variant == "parakeet" else {"mask_time_prob": 0.9, "mask_feature_prob": 0.9}
    return {"encoder_layerdrop" if variant == "whisper" else "layerdrop": 0.9, **masking}


def make_tower(variant: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    tower = build_encoder(VARIANTS[variant](**changes)).eval()
    move_weights(tower)
    return tower


def features_are_mel(tower: Any) -> bool:
    return encoder_feature_kind(encoder_geometry(tower.config)) == "mel"


def make_clips(tower: Any, seconds: tuple[float, ...] = CLIP_SECONDS) -> list[Tensor]:
    """Random features of clips of these durations: (n_mels, L) or (S,)."""
    generator = torch.Generator().manual_seed(1)
    if features_are_mel(tower):
        return [torch.randn(MEL_BINS, round(100 * second), generator=generator) for second in seconds]
    return [torch.randn(round(16_000 * second), generator=generator) for second in seconds]


def pad_clips(clips: list[Tensor], extra: int = 0) -> tuple[Tensor, Tensor]:
    """A padded batch, `extra` longer than its longest clip, and its mask."""
    size = max(clip.shape[-1] for clip in clips) + extra
    padded = [nn.functional.pad(clip, (0, size - clip.shape[-1])) for clip in clips]
    lengths = torch.tensor([clip.shape[-1] for clip in clips])
    return torch.stack(padded), torch.arange(size) < lengths[:, None]


def run_alone(tower: Any, clips: list[Tensor]) -> list[Tensor]:
    return [run_encoder(tower, clip[None])[0] for clip in clips]


def largest_difference(frames: Tensor, alone: list[Tensor]) -> float:
    """Between the valid frames of a batch and those of its clips run alone."""
    return max((row[: len(own)] - own).abs().max().item() for row, own in zip(frames, alone, strict=True))
