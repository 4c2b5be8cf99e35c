"""Models of whisper-base's and SmolLM2-135M's sizes with random weights: time does not depend on what they hold.

Nothing is downloaded. Both use a tokenizer of bytes, a vocabulary padded to SmolLM2's, and prompts of as many tokens as
the `small` recipe's chat template makes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import (
    HubertConfig,
    LlamaConfig,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from tiny_audio.hub.asr_config import TinyAudioConfig
from tiny_audio.hub.asr_modeling import TinyAudioForConditionalGeneration
from tiny_audio.hub.asr_processing import TinyAudioProcessor, add_audio_token
from tiny_audio.train.build import byte_tokenizer

SAMPLING_RATE = 16000
# Of the `small` recipe: <|im_start|>system ... Transcribe the speech: AUDIO <|im_end|> <|im_start|>assistant
TOKENS_BEFORE_AUDIO, TOKENS_AFTER_AUDIO = 31, 6
# The template that Qwen3-ASR's checkpoints carry makes fewer.
QWEN_TOKENS_BEFORE_AUDIO, QWEN_TOKENS_AFTER_AUDIO = 9, 6


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of a pair of towers."""

    encoder: dict[str, int]
    decoder: dict[str, int]
    projector_hidden_size: int
    front_end_channels: int  # of the stock model's two-dimensional convolutions: 480 at its own width of 1024


FULL = Sizes(
    encoder={
        "d_model": 512,
        "encoder_layers": 6,
        "encoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "num_mel_bins": 80,
    },
    decoder={
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    projector_hidden_size=2048,
    front_end_channels=240,
)
# facebook/hubert-xlarge-ls960-ft, in front of the same decoder
HUBERT_XL = replace(
    FULL,
    encoder={
        "hidden_size": 1280,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "intermediate_size": 5120,
    },
)
HUBERT: dict[str, Any] = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
TINY = Sizes(
    encoder={
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 80,
    },
    decoder={
        "vocab_size": 512,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
    projector_hidden_size=48,
    front_end_channels=15,
)


def text_config(sizes: Sizes, tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        **sizes.decoder,
        max_position_embeddings=8192,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def our_model(sizes: Sizes, hubert: bool = False, **more: Any) -> tuple[Any, Any]:
    """Tiny Audio's model (in eval mode) and processor, as a merged checkpoint has them: without adapters.

    With `hubert`, its encoder is HuBERT with the widths and depth of `sizes`. `more` is for the architecture: adapters
    and heads.
    """
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    add_audio_token(tokenizer)
    config = TinyAudioConfig(
        audio_config=HubertConfig(**sizes.encoder, **HUBERT) if hubert else WhisperConfig(**sizes.encoder),
        text_config=text_config(sizes, tokenizer),
        projector_type="swiglu",
        stack_factor=4,
        projector_hidden_size=sizes.projector_hidden_size,
        **more,
    )
    filler = "a" * (TOKENS_BEFORE_AUDIO - 1), "b" * TOKENS_AFTER_AUDIO  # behind the beginning-of-text token
    processor = TinyAudioProcessor.from_parts(
        config,
        Wav2Vec2FeatureExtractor() if hubert else WhisperFeatureExtractor(),
        tokenizer,
        "<audio>".join(filler),
    )
    config.audio_token_id = processor.audio_token_id
    model = TinyAudioForConditionalGeneration(config).eval()
    model.generation_config.update(
        eos_token_id=processor.end_token_id, pad_token_id=processor.pad_token_id, do_sample=False, num_beams=1
    )
    return model, processor


def stock_model(sizes: Sizes) -> tuple[Any, Any]:
    """transformers' Qwen3-ASR in the same sizes and its own processor.

    The decoder is the very same Llama. Its encoder is its own: two-dimensional convolutions to 12.5 frames a second and
    then the transformer, where Whisper's transformer sees 50 frames a second.
    """
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    names = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|start|>", "audio_eos_token": "<|stop|>"}
    tokenizer.add_tokens(list(names.values()), special_tokens=True)
    for name, token in names.items():
        setattr(tokenizer, name, token)
    extractor = Qwen3ASRFeatureExtractor(feature_size=sizes.encoder["num_mel_bins"])
    processor = Qwen3ASRProcessor(extractor, tokenizer)
    config = Qwen3ASRConfig(
        audio_config={
            "model_type": "qwen3_asr_encoder",
            **sizes.encoder,
            "output_dim": sizes.decoder["hidden_size"],
            "downsample_hidden_size": sizes.front_end_channels,
        },
        text_config=text_config(sizes, tokenizer).to_dict(),
        audio_token_id=processor.audio_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ASRForConditionalGeneration(config).eval()
    model.generation_config.update(do_sample=False, num_beams=1, pad_token_id=tokenizer.pad_token_id)
    return model, processor


def stock_prompt(own: bool) -> str:
    """The stock model's prompt: as many tokens as its own template makes, or as ours."""
    before, after = (
        (QWEN_TOKENS_BEFORE_AUDIO, QWEN_TOKENS_AFTER_AUDIO)
        if own
        else (TOKENS_BEFORE_AUDIO, TOKENS_AFTER_AUDIO)
    )
    return "a" * before + "<|audio_pad|>" + "b" * after


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """A waveform of noise, float32 (S,)."""
    generator = np.random.default_rng(seed)
    return 0.1 * generator.standard_normal(round(seconds * SAMPLING_RATE)).astype(np.float32)
