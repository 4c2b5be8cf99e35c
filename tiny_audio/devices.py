"""Where a model runs, and in which numbers: the options --device and --dtype."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from tiny_audio.errors import UserError, nearest

DEVICES = ("auto", "cpu", "cuda", "mps")


class Dtype(StrEnum):
    """Types of weights and activations; `auto` is the checkpoint's own."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        help="What the model computes in. auto: the checkpoint's own. bfloat16 takes half the memory and, on GPUs and"
        " on processors with AVX512-BF16 or AMX, less time; a word here and there may change.",
    ),
]


def torch_dtype(dtype: str) -> Any:
    """The `torch.dtype`, None for "auto"."""
    import torch

    return None if dtype == Dtype.auto else getattr(torch, dtype)


def check_device(device: str) -> None:
    """Raise UserError unless this machine can run a model on `device` ("auto" or a torch device)."""
    if device == "auto":
        return
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UserError(
            f'There is no device "{device}".{nearest(device, DEVICES)} Known: {", ".join(DEVICES)}.'
        ) from None
    num_available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (wanted.index or 0) >= num_available.get(wanted.type, 0):
        raise UserError(
            f"This machine has no device {device} that torch {torch.__version__} can use; try auto or cpu."
        )
