"""WavLM's attention (arXiv:2110.13900), written so that LoRA reaches it and a fused kernel runs it.

transformers hands the projections' bare weights to `F.multi_head_attention_forward`. A LoRA layer put in a
projection's place is then read past: its adapters get no gradient and change nothing. Here projections are
called.

Legend: B batch, F encoder frames, H heads, K head width, D_e = H * K encoder width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.wavlm.modeling_wavlm import WavLMAttention


class CallableWavLMAttention(WavLMAttention):
    """The stock attention's parameters and results, computed by calling its projections.

    `use_callable_projections` turns a tower's own attention modules into this class in place, so that the
    names of weights, checkpoints and LoRA targets stay as they are.
    """

    def forward(  # type: ignore[override]  # the stock annotation of the bias is wrong
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        index: int = 0,
        **kwargs: Any,
    ) -> tuple[Tensor, None, Tensor]:
        """Self-attention with a gated relative position bias.

        Args:
            hidden_states: (B, F, D_e).
            attention_mask: bool (B, F), False at padded frames; None when no frame is padded.
            position_bias: (1, H, F, F) from the first layer, which alone owns the table; None in that layer.
            index: number of the layer, unused (the stock layers pass it).

        Returns:
            Frames (B, F, D_e), no attention weights, and the position bias for the next layer.
        """
        batch_size, num_frames, _ = hidden_states.shape
        by_head = (batch_size, num_frames, self.num_heads, self.head_dim)
        if position_bias is None:
            position_bias = self.compute_bias(num_frames, num_frames)[
                None
            ]  # (1, H, F, F); stock repeats it B times

        # the gate is a function of the layer's input, split by head, not of the projected query
        gate_input = hidden_states.view(by_head).transpose(1, 2)  # (B, H, F, K)
        gate = self.gru_rel_pos_linear(gate_input).view(*gate_input.shape[:-1], 2, 4).sum(-1)  # (B, H, F, 2)
        gate_a, gate_b = torch.sigmoid(gate).chunk(2, dim=-1)  # (B, H, F, 1) each
        gate = gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0

        bias = gate * position_bias  # (B, H, F, F)
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask[:, None, None, :], float("-inf"))

        query = self.q_proj(hidden_states).view(by_head).transpose(1, 2)  # (B, H, F, K)
        key = self.k_proj(hidden_states).view(by_head).transpose(1, 2)
        value = self.v_proj(hidden_states).view(by_head).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias.to(query.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        attended = attended.transpose(1, 2).reshape(batch_size, num_frames, self.embed_dim)  # (B, F, D_e)
        return self.out_proj(attended), None, position_bias


def use_callable_projections(tower: nn.Module) -> None:
    """Turns stock WavLM attention in `tower` into `CallableWavLMAttention`, in place; twice is harmless."""
    for module in tower.modules():
        if type(module) is WavLMAttention:
            module.__class__ = CallableWavLMAttention
