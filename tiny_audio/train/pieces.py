"""A batch that does not fit into memory, and the parts that it is taken in."""

from __future__ import annotations

from typing import Any

import torch


def size_of(piece: dict[str, Any]) -> int:
    """What the memory of a pass grows with: clips times feature length, padding included."""
    return piece["input_features_mask"].numel()


def split_above(piece: dict[str, Any], too_large: float) -> list[dict[str, Any]]:
    """The model inputs of a batch in parts below a size, or of a single clip."""
    num_clips = len(piece["input_ids"])
    if size_of(piece) < too_large or num_clips == 1:
        return [piece]
    middle = num_clips // 2
    halves = (
        {key: value[rows] for key, value in piece.items()} for rows in (slice(middle), slice(middle, None))
    )
    return [part for half in halves for part in split_above(half, too_large)]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Also where PyTorch has no exception of its own for it: on CPUs and Apple GPUs."""
    words = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        told in words for told in ("out of memory", "can't allocate memory", "not enough memory")
    )
