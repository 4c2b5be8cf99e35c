"""The optimiser and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from omegaconf import DictConfig
from torch import nn

PART_RATES = {  # name prefix -> key of its own learning rate; all else (projector, heads) uses training.learning_rate
    "model.audio_tower.": "encoder_learning_rate",
    "model.language_model.": "decoder_learning_rate",
    "lm_head.": "decoder_learning_rate",
}


def build_optimizer(model: nn.Module, settings: DictConfig) -> torch.optim.AdamW:
    """AdamW over all that trains: a group per learning rate, with weight decay on matrices only."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = next((rate for prefix, rate in PART_RATES.items() if name.startswith(prefix)), None)
            rate = (settings[key] if key else None) or settings.learning_rate
            groups.setdefault((rate, parameter.ndim >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "weight_decay": settings.weight_decay if decays else 0.0}
            for (rate, decays), parameters in groups.items()
        ],
        betas=(0.9, settings.adam_beta2),
        fused=True,
    )


def learning_rate_factor(step: int, settings: DictConfig) -> float:
    """The share of the peak learning rate at `step` (0 is the first): linear warm-up, then cosine or constant."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.lr_scheduler == "constant":
        return 1.0
    progress = (step - settings.warmup_steps) / max(settings.max_steps - settings.warmup_steps, 1)
    floor = settings.min_learning_rate_ratio
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
