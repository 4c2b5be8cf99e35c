"""`training.sharding=full`: a model too large for one GPU, spread over the processes (FSDP2, arXiv:2304.11277).

Each process holds an equal share of every weight, of its gradient, and of what the optimiser remembers of it. The
weights of a transformer layer come together just before it runs and part right after it; all others (embeddings,
heads, projector) are together while a batch goes through the model. So every pass is one of all processes: none may run
a layer once more or less than the others.

PyTorch's `fully_shard` does that, accelerate all else. Accelerate's own way to it knows no CPUs, casts all that trains
to bfloat16 where autocast decides for each operation, and gathers embeddings apart, which we also use by themselves.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from tiny_audio.errors import UserError
from tiny_audio.hub.asr_drafting import read_prompts_alone

KEY = "training.sharding=full"
SCALARS = "sharded_scalars"  # attribute of a sharded model: names of its weights that had no dimension


def check_sharding(settings: DictConfig) -> None:
    """Raises UserError where the config's `training` asks for what a sharded model cannot do."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UserError(
            f"accelerate is told to shard by itself (use_fsdp), which Tiny Audio does by {KEY}: "
            "launch without it, as with `accelerate launch --multi_gpu`"
        )
    if settings.sharding == "none":
        return
    if settings.compile:
        raise UserError(f"{KEY}: compiled layers cannot be sharded yet; set training.compile=false")
    if settings.optimizer == "muon":
        raise UserError(f"{KEY}: Muon needs whole matrices; set training.optimizer=adamw, or sharding=none")
    if settings.batch_seconds == "auto":
        raise UserError(
            f"{KEY}: training.batch_seconds=auto lets each process try by itself, and none can run a sharded model "
            "alone; give the seconds (tiny-audio plan estimates what fits)"
        )


def shard(model: Any, device: torch.device) -> Any:
    """Spreads `model` over all processes, in place; on the CPU before, each share is on `device` after it.

    Returns:
        What `assemble` makes a whole model of again: the same modules with empty weights.

    Raises:
        UserError: a tower has no stack of layers to shard by.
    """
    # Here and below, and not above: some builds of PyTorch have no such modules.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    empty = {id(weight): _empty(weight) for weight in model.parameters()}
    skeleton = copy.deepcopy(model, dict(empty))
    read_prompts_alone(model.model.language_model)
    setattr(model, SCALARS, _scalars_to_rows(model))
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for tower in (model.model.audio_tower, model.model.language_model):
        for layer in layers(tower):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return skeleton


def is_sharded(model: Any) -> bool:
    return hasattr(model, SCALARS)


def layers(tower: nn.Module) -> nn.ModuleList:
    """The transformer layers of a tower: of its lists of modules, the one with the most weights.

    The convolutions before them are such a list, too, but some run once for each clip (`asr_encoder_forward`).
    """
    stacks = [
        module
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and not name.startswith("feature_extractor")
    ]
    if not stacks:
        raise UserError(
            f"{KEY}: {type(tower).__name__} has no list of layers to shard; set training.sharding=none"
        )
    return max(stacks, key=lambda stack: sum(weight.numel() for weight in stack.parameters()))


def _empty(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(weight.detach().new_empty(0), requires_grad=weight.requires_grad)


def _scalars_to_rows(model: nn.Module) -> frozenset[str]:
    """Makes weights without a dimension rows of one, for they are cut by rows; returns their names."""
    names = [name for name, weight in model.named_parameters() if weight.ndim == 0]
    for name in names:
        weight, (parent, _, attribute) = model.get_parameter(name), name.rpartition(".")
        row = nn.Parameter(weight.detach().reshape(1), requires_grad=weight.requires_grad)
        setattr(model.get_submodule(parent), attribute, row)
    return frozenset(names)


# Whole tensors, which all processes ask for together -------------------------------------------------------------


def _is_share(value: Any) -> bool:
    """Whether it is a `DTensor`."""
    return hasattr(value, "full_tensor")


def whole(value: Any) -> Any:
    """A tensor's shares put together, in every process."""
    return value.full_tensor() if _is_share(value) else value


def _on_first(value: Any, is_scalar: bool = False) -> Any:
    """A whole tensor in the first process's memory, without its row of one; nothing of it elsewhere."""
    if not _is_share(value):
        return value
    full = whole(value.detach())
    if torch.distributed.get_rank() != 0:
        return torch.empty(0)
    return full.reshape(()).cpu() if is_scalar else full.cpu()


def whole_weights(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model by name, whole in the first process. They are put together one after another.

    A model that is not sharded has them already.
    """
    if not is_sharded(model):
        return weights
    scalars = getattr(model, SCALARS)
    return {name: _on_first(weight, name in scalars) for name, weight in weights.items()}


def whole_memory(model: Any, memory: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's `state_dict()`, whole in the first process."""
    if not is_sharded(model):
        return memory
    names = {
        number: name
        for group in memory["param_groups"]
        for number, name in zip(group["params"], group["names"], strict=True)
    }
    state = {
        number: {
            key: _on_first(value, names[number] in getattr(model, SCALARS))
            for key, value in of_weight.items()
        }
        for number, of_weight in memory["state"].items()
    }
    return {**memory, "state": state}


def like(value: Any, current: Any) -> Any:
    """`value`, which every process has whole, cut as `current` is; unchanged where that is no share of its like."""
    if not _is_share(current) or not isinstance(value, Tensor):
        return value
    if value.ndim == 0:
        value = value[None]
    if value.shape != current.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # No process tells the others what they have read themselves.
    return distribute_tensor(
        value.to(current.device), current.device_mesh, current.placements, src_data_rank=None
    )


def assemble(skeleton: Any, model: Any) -> Any:
    """`skeleton`, with all the weights that `model` has spread over the processes: in the first process, on the CPU.

    It is the model as it was before `shard`. Elsewhere it stays empty.
    """
    scalars = getattr(model, SCALARS)
    for name, weight in model.named_parameters():
        skeleton.get_parameter(name).data = _on_first(weight, name in scalars)
    for name, buffer in model.named_buffers():
        skeleton.get_buffer(name).data = buffer.detach().cpu()
    return skeleton


@contextmanager
def evaluation(model: Any) -> Iterator[None]:
    """Inside, a model in training is in eval mode, and parts of a sharded one can be called, as generation does.

    Its layers are sharded still, and so every call one of all processes.
    """
    model.eval()
    if is_sharded(model):
        # A layer that first came together in inference mode could do so nowhere else.
        for layer in (*layers(model.model.audio_tower), *layers(model.model.language_model)):
            layer.unshard()
            layer.reshard()
        model.unshard()  # its own weights, not those of its layers
    try:
        yield
    finally:
        if is_sharded(model):
            model.reshard()
            # The weights tell whether it is out of date, and shares of weights may not say that they have changed.
            vars(model).pop("_recalled_prompt", None)
        model.train()
