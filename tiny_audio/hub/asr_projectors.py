"""Projectors: encoder frames to audio tokens that a language model reads like word embeddings.

Legend: B batch, F encoder frames, P projected frames (audio tokens), k stack factor, D_e encoder width,
D_t decoder width, H projector hidden size, E experts.

Every projector maps `frames (B, F, D_e)`, whose padded frames are zero, and `lengths (B,)` to audio tokens
`(B, P, D_t)`, of which the first `projector_output_length(type, k, length)` of a row are valid, plus a
load-balancing loss `(B,)` or None. A clip's tokens do not depend on its batch mates. All end in an RMSNorm whose
gain starts at the scale of the decoder's embedding table: an unscaled projector is far quieter (or louder)
than the embeddings among which its tokens are placed, and training stalls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .asr_config import TinyAudioConfig
from .asr_encoders import Length, encoder_width

NUM_EXPERTS = 4
EXPERTS_PER_TOKEN = 2
QFORMER_WINDOW_TOKENS = 3  # queries per window of 3k frames, as Granite Speech has 3 per 15 frames
QFORMER_LAYERS = 2
HEAD_DIMENSION = 64

ProjectorOutput = tuple[Tensor, Tensor | None]


def ceil_divide(length: Length, divisor: int) -> Length:
    return (length + divisor - 1) // divisor


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """(B,) lengths to a bool mask (B, size), True where valid."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def stack_frames(frames: Tensor, stack_factor: int) -> Tensor:
    """(B, F, D) to (B, ceil(F / k), k * D); the last stack is filled with zeros, so that no frame is lost."""
    batch, num_frames, width = frames.shape
    frames = F.pad(frames, (0, 0, 0, -num_frames % stack_factor))
    return frames.reshape(batch, -1, stack_factor * width)  # (B, P, k * D)


class TokenNorm(nn.RMSNorm):
    """RMSNorm in the type of its input: for two types PyTorch has no fused kernel, and warns of it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Projector(nn.Module):
    """Sizes and the output norm that all projectors share."""

    default_activation = "relu"

    def __init__(self, config: TinyAudioConfig):
        super().__init__()
        text_config: Any = config.text_config
        self.encoder_width = encoder_width(config.audio_config)
        self.decoder_width = text_config.hidden_size
        self.hidden_size = config.projector_hidden_size
        self.stack_factor = config.stack_factor
        self.activation = ACT2FN[config.projector_activation or self.default_activation]
        self.output_norm = TokenNorm(self.decoder_width, eps=1e-6)

    def set_output_scale(self, embedding_rms: float) -> None:
        """Starts the audio tokens at the loudness of the embedding table."""
        nn.init.constant_(self.output_norm.weight, embedding_rms)

    def two_layers(self, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(width, self.hidden_size),
            self.activation,
            nn.Linear(self.hidden_size, self.decoder_width),
        )


class MLPProjector(Projector):
    """Stack k frames, then Linear, activation, Linear (SLAM-ASR, arXiv:2402.08846)."""

    def __init__(self, config: TinyAudioConfig):
        super().__init__(config)
        self.layers = self.two_layers(self.stack_factor * self.encoder_width)

    def forward(self, frames: Tensor, lengths: Tensor) -> ProjectorOutput:
        return self.output_norm(self.layers(stack_frames(frames, self.stack_factor))), None


class SwiGLUProjector(Projector):
    """Stack k frames, RMSNorm, `down(silu(gate(x)) * up(x))` without biases (arXiv:2002.05202)."""

    default_activation = "silu"

    def __init__(self, config: TinyAudioConfig):
        super().__init__(config)
        width = self.stack_factor * self.encoder_width
        self.input_norm = TokenNorm(width, eps=1e-6)
        self.gate_proj = nn.Linear(width, self.hidden_size, bias=False)
        self.up_proj = nn.Linear(width, self.hidden_size, bias=False)
        self.down_proj = nn.Linear(self.hidden_size, self.decoder_width, bias=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> ProjectorOutput:
        stacked = self.input_norm(stack_frames(frames, self.stack_factor))  # (B, P, k * D_e)
        hidden = self.activation(self.gate_proj(stacked)) * self.up_proj(stacked)  # (B, P, H)
        return self.output_norm(self.down_proj(hidden)), None


def prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


class MOSAProjector(Projector):
    """Mixture of simple adapters: strided convolutions, then experts mixed by a dense softmax router.

    A stack factor of 4 gives two convolutions of stride 2, kernel 3 and padding 1; any other one gives a
    convolution of kernel 2s - 1 for each prime factor s, so that every length shrinks to its ceil(F / k).
    """

    def __init__(self, config: TinyAudioConfig):
        super().__init__(config)
        self.strides = prime_factors(self.stack_factor)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(self.encoder_width, self.encoder_width, 2 * stride - 1, stride, padding=stride - 1)
            for stride in self.strides
        )
        self.router = nn.Sequential(
            nn.Linear(self.encoder_width, self.encoder_width // 2 or 1),
            nn.ReLU(),
            nn.Linear(self.encoder_width // 2 or 1, NUM_EXPERTS),
        )
        self.experts = nn.ModuleList(self.two_layers(self.encoder_width) for _ in range(NUM_EXPERTS))

    def forward(self, frames: Tensor, lengths: Tensor) -> ProjectorOutput:
        for stride, convolution in zip(self.strides, self.convolutions, strict=True):
            frames = F.gelu(convolution(frames.transpose(1, 2))).transpose(1, 2)  # (B, ceil(F / s), D_e)
            lengths = ceil_divide(lengths, stride)
            # The next convolution must see zeros beyond a clip's end, as it does when the clip is alone.
            frames = frames * length_mask(lengths, frames.shape[1])[..., None]
        weights = self.router(frames).softmax(dim=-1)  # (B, P, E)
        expert_outputs = torch.stack([expert(frames) for expert in self.experts], dim=-1)  # (B, P, D_t, E)
        return self.output_norm(torch.einsum("bpde,bpe->bpd", expert_outputs, weights)), None


class MoEProjector(Projector):
    """A shared expert plus the best 2 of 4 routed ones for each audio token (arXiv:2401.06066).

    The load-balancing loss is that of Switch Transformers (arXiv:2101.03961), taken per clip: a batch-wide one
    would make a clip's loss depend on its batch mates.
    """

    default_activation = "silu"

    def __init__(self, config: TinyAudioConfig):
        super().__init__(config)
        width = self.stack_factor * self.encoder_width
        self.input_norm = TokenNorm(width, eps=1e-6)
        self.router = nn.Linear(width, NUM_EXPERTS, bias=False)
        self.shared_expert = self.two_layers(width)
        self.experts = nn.ModuleList(self.two_layers(width) for _ in range(NUM_EXPERTS))

    def forward(self, frames: Tensor, lengths: Tensor) -> ProjectorOutput:
        stacked = self.input_norm(stack_frames(frames, self.stack_factor))  # (B, P, k * D_e)
        probabilities = self.router(stacked).float().softmax(dim=-1)  # (B, P, E)
        weights, chosen = probabilities.topk(EXPERTS_PER_TOKEN, dim=-1)  # (B, P, 2)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(stacked.dtype)
        output = self.shared_expert(stacked)  # (B, P, D_t)
        for index, expert in enumerate(self.experts):
            rows, tokens, slots = (chosen == index).nonzero(as_tuple=True)
            contribution = expert(stacked[rows, tokens]) * weights[rows, tokens, slots][:, None]
            output = output.index_put((rows, tokens), contribution.to(output.dtype), accumulate=True)
        return self.output_norm(output), self._balance_loss(probabilities, chosen, lengths)

    def _balance_loss(self, probabilities: Tensor, chosen: Tensor, lengths: Tensor) -> Tensor:
        num_tokens = ceil_divide(lengths, self.stack_factor)
        valid = length_mask(num_tokens, probabilities.shape[1])[..., None]  # (B, P, 1)
        share = F.one_hot(chosen, NUM_EXPERTS).sum(dim=2) / EXPERTS_PER_TOKEN  # (B, P, E)
        count = num_tokens.clamp(min=1)[:, None]
        mean_share = (share * valid).sum(dim=1) / count  # (B, E)
        mean_probability = (probabilities * valid).sum(dim=1) / count  # (B, E)
        return NUM_EXPERTS * (mean_share * mean_probability).sum(dim=-1)  # (B,), 1 when balanced


class Attention(nn.Module):
    """Multi-head attention of queries (N, Q, D) over keys (N, K, D), with an optional key mask (N, K)."""

    def __init__(self, width: int):
        super().__init__()
        self.num_heads = max(width // HEAD_DIMENSION, 1)
        if width % self.num_heads:
            raise ValueError(
                f"the qformer needs a hidden size that {self.num_heads} heads divide, got {width}"
            )
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, key_mask: Tensor | None = None) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, length, D / heads)

        mask = None if key_mask is None else key_mask[:, None, None, :]  # (N, 1, 1, K)
        q, k, v = heads(self.q_proj(queries)), heads(self.k_proj(keys)), heads(self.v_proj(keys))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))  # (N, Q, D)


class QFormerLayer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention, self.cross_attention = Attention(width), Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, frames: Tensor, frame_mask: Tensor) -> Tensor:
        normed = self.self_norm(queries)
        queries = queries + self.self_attention(normed, normed)
        queries = queries + self.cross_attention(self.cross_norm(queries), frames, frame_mask)
        return queries + self.mlp(self.mlp_norm(queries))


class QFormerProjector(Projector):
    """Learnable queries attend to each window of 3k frames (BLIP-2, arXiv:2301.12597; windows: arXiv:2309.13963).

    Windows are cut on the clip's own clock, so a longer batch mate moves none of them.
    """

    def __init__(self, config: TinyAudioConfig):
        super().__init__(config)
        self.window = QFORMER_WINDOW_TOKENS * self.stack_factor
        self.input = nn.Linear(self.encoder_width, self.hidden_size)
        self.input_norm = nn.LayerNorm(self.hidden_size)
        self.frame_positions = nn.Parameter(0.02 * torch.randn(self.window, self.hidden_size))
        self.queries = nn.Parameter(0.02 * torch.randn(QFORMER_WINDOW_TOKENS, self.hidden_size))
        self.layers = nn.ModuleList(QFormerLayer(self.hidden_size) for _ in range(QFORMER_LAYERS))
        self.output = nn.Linear(self.hidden_size, self.decoder_width)

    def forward(self, frames: Tensor, lengths: Tensor) -> ProjectorOutput:
        batch, num_frames, _ = frames.shape
        frames = F.pad(self.input_norm(self.input(frames)), (0, 0, 0, -num_frames % self.window))
        mask = length_mask(lengths, frames.shape[1])
        windows = (
            frames.unflatten(1, (-1, self.window)).flatten(0, 1) + self.frame_positions
        )  # (B * W, window, H)
        window_mask = mask.unflatten(1, (-1, self.window)).flatten(0, 1)  # (B * W, window)
        # A window without a single valid frame would be a softmax over nothing; its output is discarded anyway.
        window_mask = window_mask | ~window_mask.any(dim=1, keepdim=True)
        queries = self.queries.expand(windows.shape[0], -1, -1)  # (B * W, 3, H)
        for layer in self.layers:
            queries = layer(queries, windows, window_mask)
        tokens = self.output(queries).unflatten(0, (batch, -1)).flatten(1, 2)  # (B, 3 * W, D_t)
        return self.output_norm(tokens), None


def _qformer_length(stack_factor: int, num_frames: Length) -> Length:
    return ceil_divide(num_frames, QFORMER_WINDOW_TOKENS * stack_factor) * QFORMER_WINDOW_TOKENS


def _stacked_length(stack_factor: int, num_frames: Length) -> Length:
    return ceil_divide(num_frames, stack_factor)


# name -> (class, audio tokens for a number of frames)
PROJECTORS: dict[str, tuple[type[Projector], Callable[[int, Any], Any]]] = {
    "mlp": (MLPProjector, _stacked_length),
    "swiglu": (SwiGLUProjector, _stacked_length),
    "mosa": (MOSAProjector, _stacked_length),
    "moe": (MoEProjector, _stacked_length),
    "qformer": (QFormerProjector, _qformer_length),
}


def _entry(projector_type: str) -> tuple[type[Projector], Callable[[int, Any], Any]]:
    if projector_type not in PROJECTORS:
        raise ValueError(f"unknown projector_type {projector_type!r}; known: {', '.join(PROJECTORS)}")
    return PROJECTORS[projector_type]


def projector_output_length(projector_type: str, stack_factor: int, num_frames: Length) -> Length:
    """Audio tokens P for encoder frames F: the one function that processor, model and batching ask."""
    return _entry(projector_type)[1](stack_factor, num_frames)


def build_projector(config: TinyAudioConfig) -> Projector:
    """The projector of a config. Raises ValueError for an unknown type, activation or impossible size."""
    if config.stack_factor < 1 or config.projector_hidden_size < 1:
        raise ValueError(
            f"stack_factor and projector_hidden_size must be at least 1, got {config.stack_factor} "
            f"and {config.projector_hidden_size}"
        )
    if config.projector_activation is not None and config.projector_activation not in ACT2FN:
        raise ValueError(
            f"unknown projector_activation {config.projector_activation!r}; known: {', '.join(sorted(ACT2FN))}"
        )
    return _entry(config.projector_type)[0](config)
