"""What a training step costs, found by running the model's own code on the meta device: shapes without numbers.

Counted are the multiplications of matrices, convolutions and attention, forward and backward, as far as gradients flow
(so 2 FLOP a weight and position forward, 2 for gradients that pass through, 2 for weights that train), and the
bytes that autograd keeps for the backward pass. Nothing is downloaded, nothing is computed, any architecture works.

Legend: B batch, S samples, L feature length, F encoder frames, P audio tokens, T decoder positions, D_e encoder width,
D_t decoder width, V vocabulary, H heads, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tiny_audio.hub.asr_config import TinyAudioConfig
from tiny_audio.hub.asr_drafting import SHARE_FROM_POSITIONS, has_plain_cache
from tiny_audio.hub.asr_encoders import encoder_family, run_encoder
from tiny_audio.hub.asr_losses import LOGITS_AT_ONCE, LossWeights
from tiny_audio.hub.asr_modeling import TinyAudioForConditionalGeneration
from tiny_audio.hub.asr_processing import SAMPLING_RATE
from tiny_audio.hub.asr_projectors import NUM_EXPERTS
from tiny_audio.train.build import AUTO, checkpointed_towers
from tiny_audio.train.parameters import meta_model

HOP_LENGTH = 160  # 10 ms, which all named encoders have
CLIP_SECONDS = 7.0  # mean of LoquaciousSet and of most sets of read speech
TEXT_TOKENS_PER_SECOND = 3.5  # of English speech in the vocabulary of a large language model
PROMPT_TOKENS = 30  # of a chat template with a short request
TOKENS_BEHIND_AUDIO = 6  # of them: the end of the request and the beginning of the answer
FLASH = "tiny_audio_count"
BYTES_OF_BF16, BYTES_OF_FP32 = 2, 4
# Master weight, gradient and AdamW's two moments, in fp32; a frozen weight is there once, in bf16.
BYTES_PER_TRAINED_WEIGHT = 4 * BYTES_OF_FP32
# Logits at a label: bf16, their fp32 copy, its log-softmax and gradient.
BYTES_PER_LOGIT = BYTES_OF_BF16 + 3 * BYTES_OF_FP32


@dataclass(frozen=True)
class PartCost:
    """Cost of one part of the model in a training step.

    All are per second of audio. With activation checkpointing, `repeated_flops` is work done a second time, which
    teaches nothing and counts in no utilisation, and `working_bytes` what one layer needs meanwhile.
    """

    part: str
    flops: float
    kept_bytes: float
    repeated_flops: float = 0.0
    working_bytes: float = 0.0


@dataclass(frozen=True)
class StepCost:
    """`parts` per second of audio, and the bytes of weights, gradients and optimiser whatever the batch."""

    parts: tuple[PartCost, ...]
    weight_bytes: dict[str, int]

    @property
    def flops_per_audio_second(self) -> float:
        return sum(part.flops for part in self.parts)

    @property
    def repeated_flops_per_audio_second(self) -> float:
        return sum(part.repeated_flops for part in self.parts)

    @property
    def bytes_per_audio_second(self) -> float:
        kept = sum(part.kept_bytes for part in self.parts)
        return kept + max(part.working_bytes for part in self.parts)

    @property
    def fixed_bytes(self) -> int:
        return sum(self.weight_bytes.values())


def cost_of_config(
    config: DictConfig,
    weights: LossWeights,
    clip_seconds: float,
    architecture: TinyAudioConfig | None = None,
) -> StepCost:
    """`step_cost` of the model that a training config describes, in batches as full as it allows.

    With the `architecture` of a model that is built already, nothing is read.
    """
    settings = config.training
    seconds = math.inf if settings.batch_seconds == AUTO else settings.batch_seconds
    clips = min(seconds / clip_seconds, settings.per_device_train_batch_size)
    return step_cost(
        meta_model(config, architecture),
        weights,
        gradient_checkpointing=settings.gradient_checkpointing,
        clip_seconds=clip_seconds,
        batch_clips=max(1, round(clips)),
        encoded=config.data.features_cache is not None,
        hop_length=config.model.feature_extractor.get("hop_length", HOP_LENGTH),
    )


def step_cost(
    model: TinyAudioForConditionalGeneration,
    weights: LossWeights,
    *,
    gradient_checkpointing: bool | str,
    clip_seconds: float = CLIP_SECONDS,
    batch_clips: int = 1,
    encoded: bool = False,
    hop_length: int = HOP_LENGTH,
) -> StepCost:
    """What a second of audio costs in a training step of `model`, a model on the meta device with its weights frozen or
    not as the run will have them. It is left in bfloat16.

    Args:
        weights: of the losses; with `language_model` 0 the decoder is not run.
        clip_seconds: length of the clips. Attention, and the prompt's share, depend on it.
        batch_clips: clips that are read together, behind one prompt where that pays.
        encoded: the encoder's output is read from a file.
        hop_length: samples from one mel frame to the next, for encoders that hear those.
    """
    weight_bytes = _weight_bytes(model)
    model.to(torch.bfloat16)
    trunk, config = model.model, model.config
    encoder, decoder = trunk.audio_tower, trunk.language_model
    for tower in (encoder, decoder):
        if tower._supports_sdpa:  # WavLM and others have an attention of their own
            tower.set_attn_implementation(FLASH)
    encoder_trains = any(p.requires_grad for p in encoder.parameters())

    features = _features(encoder, clip_seconds, hop_length)
    frames = _meta(1, *_shape(lambda: run_encoder(encoder, features))[1:])  # (1, F, D_e)
    frame_lengths = torch.tensor([frames.shape[1]], device="meta")
    num_tokens = int(trunk.audio_token_lengths(torch.tensor([features.shape[-1]]))[1])
    num_text = round(TEXT_TOKENS_PER_SECOND * clip_seconds)
    width = config.text_config.hidden_size
    positions = num_tokens + num_text + _prompt_positions(decoder, batch_clips)

    def layers(tower: Any) -> int:
        again = tower in checkpointed_towers(model, gradient_checkpointing)
        return int(tower.config.num_hidden_layers) if again else 0

    parts = []
    if not encoded:
        parts.append(
            _cost("encoder", lambda: run_encoder(encoder, features), model, encoder_trains, layers(encoder))
        )
    parts.append(
        _cost(
            "projector",
            lambda: trunk.multi_modal_projector(frames.requires_grad_(encoder_trains), frame_lengths)[0],
            model,
        )
    )
    if weights.language_model:
        embeddings = _meta(1, positions, width).requires_grad_()
        hidden = _meta(1, num_text, width).requires_grad_()
        read = lambda: decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state  # noqa: E731
        head = _cost("decoder head", lambda: model.lm_head(hidden), model)
        logits = num_text * config.text_config.vocab_size
        again = 0.0  # of a batch with more logits than are made at once
        if logits * batch_clips > LOGITS_AT_ONCE:
            again = _cost("decoder head", lambda: model.lm_head(hidden), model, trains=False).flops
        logit_bytes = min(logits, LOGITS_AT_ONCE / batch_clips) * BYTES_PER_LOGIT
        parts += [
            _cost("decoder", read, model, True, layers(decoder)),
            PartCost("decoder head", head.flops, logit_bytes, again),
        ]
    ctc_flops = 6.0 * frames.shape[1] * frames.shape[2] * len(config.ctc_vocabulary or "")
    if weights.embedding:
        classes = weights.embedding_negatives or config.text_config.vocab_size
        ctc_flops += 4.0 * num_tokens * width * classes  # scores, and the gradient at the audio tokens
    parts.append(PartCost("CTC losses", ctc_flops, num_tokens * width * BYTES_OF_FP32))
    return StepCost(
        tuple(
            PartCost(name, *(value / clip_seconds for value in values))
            for name, *values in map(astuple, parts)
        ),
        weight_bytes,
    )


def _prompt_positions(decoder: Any, batch_clips: int) -> int:
    """Positions of the prompt a clip; what comes before the audio is read once a batch where the model does so."""
    before = PROMPT_TOKENS - TOKENS_BEHIND_AUDIO
    if before * (batch_clips - 1) < SHARE_FROM_POSITIONS or not has_plain_cache(decoder.config):
        return PROMPT_TOKENS
    return TOKENS_BEHIND_AUDIO + round(before / batch_clips)


def _weight_bytes(model: nn.Module) -> dict[str, int]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    return {
        "frozen weights, bf16": frozen * BYTES_OF_BF16,
        "trained weights, gradients, AdamW": trained * BYTES_PER_TRAINED_WEIGHT,
    }


def _meta(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=torch.bfloat16)


def _features(encoder: nn.Module, seconds: float, hop_length: int) -> Tensor:
    """Input of one clip: (1, n_mels, L) or (1, S)."""
    family, config = encoder_family(encoder.config)
    num_samples = round(seconds * SAMPLING_RATE)
    if family.feature_kind == "waveform":
        return _meta(1, num_samples)
    return _meta(1, config.num_mel_bins, num_samples // hop_length)


def _shape(run: Callable[[], Tensor]) -> torch.Size:
    with torch.no_grad():
        return run().shape


def _cost(
    part: str, run: Callable[[], Tensor], model: nn.Module, trains: bool = True, checkpointed_layers: int = 0
) -> PartCost:
    """FLOP of `run` and its backward pass, and the bytes kept in between."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    counter = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    FlashCount.flops = 0
    with counter, EvenRouting(), hooks, torch.set_grad_enabled(trains):
        output = run()
        forward_flops = counter.get_total_flops() + FlashCount.flops
        if trains:
            output.sum().backward()
    flops = counter.get_total_flops() + FlashCount.flops
    num_bytes = sum(storage.nbytes() for storage in kept.values())
    model.zero_grad(set_to_none=True)
    if not (trains and checkpointed_layers):
        return PartCost(part, flops, num_bytes)
    # Each layer keeps what comes in; one at a time is computed again.
    inputs = checkpointed_layers * output.numel() * BYTES_OF_BF16
    return PartCost(part, flops, inputs, forward_flops, num_bytes / checkpointed_layers)


class EvenRouting(TorchDispatchMode):
    """Lets `MoEProjector` ask which tokens go to an expert, where there are no numbers: an equal share to each."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            chosen = args[0]
            return chosen.new_empty((chosen.numel() // NUM_EXPERTS, chosen.ndim), dtype=torch.int64)
        return func(*args, **(kwargs or {}))


class FlashCount(torch.autograd.Function):
    """Stands for a fused attention kernel, which keeps queries, keys, values and output but no (T, T) scores.

    `flops` adds up what the kernels compute: two products of (T, D) matrices a head forward, four backward.
    """

    flops = 0

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, width = query.shape
        ctx.product = 2 * batch * heads * length * key.shape[2] * width
        FlashCount.flops += 2 * ctx.product
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, ...]:
        FlashCount.flops += 4 * ctx.product
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _flash(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """(B, H, T, D) each to (B, T, H, D), as transformers' attention functions have it."""
    if (
        attention_mask is not None and attention_mask.is_floating_point()
    ):  # Parakeet's positions, which no kernel fuses
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    return FlashCount.apply(query, key, value).transpose(1, 2), None


AttentionInterface.register(FLASH, _flash)
