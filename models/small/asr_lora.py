"""LoRA on a tower (arXiv:2106.09685), with rsLoRA (arXiv:2312.03732) and DoRA (arXiv:2402.09353).

The adapters are PEFT's layers, injected in place: the tower keeps its own class, and its LoRA weights are ordinary
parameters that our checkpoints save and load. Nothing of PEFT's file format is used: `adapter_config.json` in a
folder would make transformers load it by itself, into the wrong model.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.utils import is_peft_available

LORA_MARK = ".lora_"  # part of the name of every LoRA parameter and of no other


def inject_lora(tower: nn.Module, lora: dict) -> None:
    """Puts LoRA layers into `tower` in place and freezes all else in it.

    Args:
        lora: `r`, and optionally `lora_alpha`, `lora_dropout`, `target_modules`, `use_rslora`, `use_dora`.

    Raises:
        ImportError: PEFT is not installed.  ValueError: no module of the tower has one of the target names.
    """
    if not is_peft_available():
        raise ImportError("this model uses LoRA, which needs PEFT: pip install peft")
    from peft import LoraConfig, inject_adapter_in_model

    names = {
        name.rsplit(".", 1)[-1] for name, module in tower.named_modules() if isinstance(module, nn.Linear)
    }
    unknown = sorted(set(lora["target_modules"]) - names)
    if unknown:
        raise ValueError(
            f"LoRA targets {unknown} are not in this tower; its linear layers are {sorted(names)}"
        )
    inject_adapter_in_model(
        LoraConfig(
            r=lora["r"],
            lora_alpha=lora.get("lora_alpha", lora["r"]),
            lora_dropout=lora.get("lora_dropout", 0.0),
            target_modules=list(lora["target_modules"]),
            use_rslora=lora.get("use_rslora", False),
            use_dora=lora.get("use_dora", False),
        ),
        tower,
    )


def fold_lora(tower: nn.Module) -> None:
    """Adds each LoRA update to its base weight, in float32 before the cast back, and removes the LoRA layers."""
    from peft.tuners.lora import LoraLayer

    layers = [(name, module) for name, module in tower.named_modules() if isinstance(module, LoraLayer)]
    for name, layer in layers:
        base = layer.get_base_layer()
        dtype = base.weight.dtype
        layer.to(torch.float32)
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(tower.get_submodule(parent), attribute, base.to(dtype))
