"""What a run computes in, and in what its frozen weights are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm


def mixed_precision(bf16: bool | str) -> str:
    """ "bf16" where it is asked for, or by itself where the device computes in it; else "no"."""
    if bf16 == "auto":
        # T4 and V100 emulate it, slower than float32.
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if bf16 else "no"


def attend_unfused(model: Any) -> None:
    """Attention of both towers as products and a softmax.

    On a CPU in bfloat16 that takes a half to a fifth of the time of PyTorch's fused kernel, forward and backward, for
    clips up to 15 s (torch 2.13); in float32 the fused one is as fast, and needs less memory.
    """
    for tower in (model.model.audio_tower, model.model.language_model):
        if tower.config._attn_implementation == "sdpa":
            tower.set_attn_implementation("eager")


def cast_frozen(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Frozen weights in half the bytes; what trains keeps float32 master weights."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    # Batch norm computes with weights and statistics of one type. Other buffers, as of rotary positions, stay exact.
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
            for buffer in module.buffers(recurse=False):
                if buffer.is_floating_point():
                    buffer.data = buffer.data.to(dtype)
