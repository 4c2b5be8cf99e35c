"""`training.compile`: the transformer layers of both towers run as compiled code, made once for all lengths.

All layers of a tower are one class, so the code of the first serves the others; batch size and length are variables
of it. A tower has a handful of codes: with a mask and without, for one clip and for several.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from tiny_audio.errors import UserError

# Codes of a class of layers: up to 4 or 6 were counted, PyTorch's own limit is 8. Beyond the limit it warns and goes
# on without compiling, so there is room for decoders whose layers are of several kinds.
MOST_CODES = 64


def check_compiler() -> None:
    """Raises UserError where this machine cannot compile, before a model of gigabytes is built."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # each process its own
    needed = "a C++ compiler (Debian, Ubuntu: sudo apt install g++; Mac: xcode-select --install)"
    if device.type == "cuda":
        needed = "Triton and a C compiler with Python's headers (pip install triton; sudo apt install gcc python3-dev)"
    try:
        torch.compile(lambda values: values * values + 1)(torch.ones(2, device=device))
    except Exception as error:  # of the many parts of a compiler
        reason = str(error).strip().splitlines() or [type(error).__name__]
        # The first line of PyTorch's own exceptions only names the part that failed.
        told = reason[1] if len(reason) > 1 and reason[0].endswith("raised:") else reason[0]
        if " " in sys.prefix and "compile error" in told:  # PyTorch splits the compiler's command there
            needed = f"the environment under a path without a blank, unlike {sys.prefix}"
        raise UserError(
            f"training.compile=true, but nothing can be compiled here ({told}): install {needed}, "
            "or set training.compile=false"
        ) from error


def compile_layers(model: Any, backend: str | Callable[..., Any] = "inductor") -> None:
    """Lets the transformer layers of `model` run as compiled code while it is in training mode, in place.

    Names of modules and weights stay. In eval mode the layers run as before: writing text grows a cache by a token at
    a time, which is other code for every layer.

    Args:
        model: a `TinyAudioForConditionalGeneration`.
        backend: of `torch.compile`.
    """
    settings: Any = torch._dynamo.config
    settings.recompile_limit = MOST_CODES
    # Would cut a layer's code where DDP's buckets end. The gradients of whole layers are early enough for DDP.
    settings.optimize_ddp = False
    # Two sizes that are equal in the first batch by chance (64 frames, heads of width 64) are not the same size.
    symbolic_shapes.use_duck_shape = False
    for tower in (model.model.audio_tower, model.model.language_model):
        layers = transformer_layers(tower)
        compiled = {kind: _compiled_class(kind, model, backend) for kind in set(map(type, layers))}
        for number, layer in enumerate(layers):
            layer.__class__ = compiled[type(layer)]
            layer.number_in_tower = number


def transformer_layers(tower: nn.Module) -> list[Any]:
    """The repeated layers of a tower, in their order.

    The convolutions before them, each of which is another, have no matrix among their weights.
    """
    return [
        module
        for module in tower.modules()
        if isinstance(module, GradientCheckpointingLayer)
        and any(weight.dim() == 2 for weight in module.parameters())
    ]


def _compiled_class(kind: Any, model: nn.Module, backend: str | Callable[..., Any]) -> type:
    """A class like `kind`, a class of layers, that runs compiled while `model` trains."""
    # Without the checkpointing that transformers puts around it, and puts around the new class as well: what is
    # computed again in the backward pass is then the compiled code.
    plain = getattr(kind.forward, "__wrapped__", kind.forward)
    compiled = torch.compile(plain, dynamic=True, backend=backend)

    def forward(self: Any, hidden: Tensor, *arguments: Any, **named: Any) -> Any:
        # A frozen layer rests in eval mode: only the whole model knows whether it is training.
        if not model.training:
            return plain(self, hidden, *arguments, **named)
        if isinstance(named.get("past_key_values"), Cache):
            named["past_key_values"] = MemoryOfLayer(named["past_key_values"], self.number_in_tower)
        # The code for a part of another tensor, which the first layer may get, is another one.
        return compiled(self, hidden.clone() if hidden._is_view() else hidden, *arguments, **named)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


class MemoryOfLayer:
    """What one layer sees of a cache. By its number in the whole cache, each layer would have code of its own."""

    def __init__(self, cache: Cache, number: int):
        while len(cache.layers) <= number:
            cache.layers.append(cache.layer_class_to_replicate())
        self.memory = cache.layers[number]

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.memory.update(keys, values)
