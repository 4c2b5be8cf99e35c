"""The optimisers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from tiny_audio.train.sharding import like

PART_RATES = {  # name prefix -> key of its own learning rate; all else (projector, heads) uses training.learning_rate
    "model.audio_tower.": "encoder_learning_rate",
    "model.language_model.": "decoder_learning_rate",
    "lm_head.": "decoder_learning_rate",
}
HEADS = ("lm_head", "ctc_head")

MUON_MOMENTUM = 0.95
NEURON_MEMORY = 0.95  # of the mean square of each neuron's steps
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def build_optimizer(model: nn.Module, settings: DictConfig) -> torch.optim.AdamW:
    """What `training.optimizer` names, over all that trains: a group per name of a learning rate and kind of weight.

    Weight decay is on matrices only. With "muon", the matrices inside towers and projector take orthogonalised
    steps of `muon_learning_rate`, times their part's learning rate over the common one.
    """
    hidden = hidden_matrices(model) if settings.optimizer == "muon" else set()
    # By the name of the rate and not its value: the groups stay the same when a rate is changed.
    groups: dict[tuple[str | None, bool, bool], dict[str, nn.Parameter]] = defaultdict(dict)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = next((rate for prefix, rate in PART_RATES.items() if name.startswith(prefix)), None)
            groups[key, parameter.ndim >= 2, name in hidden][name] = parameter
    kind = Muon if settings.optimizer == "muon" else torch.optim.AdamW
    return kind(
        [
            {
                "params": list(parameters.values()),
                "names": list(parameters),
                "lr": _peak_rate(key, muon, settings),
                "weight_decay": settings.weight_decay if decays else 0.0,
                "muon": muon,
            }
            for (key, decays, muon), parameters in groups.items()
        ],
        betas=(0.9, settings.adam_beta2),
        fused=True,
    )


def _peak_rate(key: str | None, muon: bool, settings: DictConfig) -> float:
    rate = (settings[key] if key else None) or settings.learning_rate
    return rate * settings.muon_learning_rate / settings.learning_rate if muon else rate


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]) -> None:
    """Puts back what an optimiser remembers of each weight. Rates, decay and betas stay those of the config.

    Raises:
        ValueError: `saved` is of other weights, or of another kind of optimiser.
    """
    groups = saved["param_groups"]
    if not all("names" in group for group in groups):
        groups = _with_names(groups, optimizer, model)
    now = optimizer.state_dict()
    was_muon = {name: group["muon"] for group in groups for name in group["names"]}
    is_muon = {name: group["muon"] for group in now["param_groups"] for name in group["names"]}
    if was_muon.keys() != is_muon.keys():
        other = sorted(was_muon.keys() ^ is_muon.keys())
        raise ValueError(f"other weights were trained there, among them {', '.join(other[:3])}")
    if was_muon != is_muon:
        raise ValueError(
            f"it was trained with training.optimizer={'muon' if any(was_muon.values()) else 'adamw'}"
        )
    memory = {
        name: saved["state"][number]
        for group in groups
        for name, number in zip(group["names"], group["params"], strict=True)
        if number in saved["state"]  # a weight that has had no gradient yet is not
    }
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        number: {
            key: value if key == "step" else like(value, weights[number])
            for key, value in memory[name].items()
        }
        for group in now["param_groups"]
        for name, number in zip(group["names"], group["params"], strict=True)
        if name in memory
    }
    optimizer.load_state_dict({"state": state, "param_groups": now["param_groups"]})


def _with_names(
    groups: list[dict[str, Any]], optimizer: torch.optim.Optimizer, model: nn.Module
) -> list[dict[str, Any]]:
    """The groups of a checkpoint from before their weights had names: there was one per value of a rate."""
    now = {name: group for group in optimizer.param_groups for name in group["names"]}
    names: dict[tuple[float, bool, bool], list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if name in now:
            names[now[name]["lr"], parameter.ndim >= 2, now[name]["muon"]].append(name)
    if [len(group["params"]) for group in groups] != [len(found) for found in names.values()]:
        raise ValueError(
            "it is of an earlier version, or other weights were trained there: give the learning rates, the optimizer "
            "and the frozen parts that it was trained with"
        )
    return [{**group, "names": found} for group, found in zip(groups, names.values(), strict=True)]


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the weights that map one hidden state to another: linear layers and convolutions of one frame.

    Embeddings and heads, whose rows are words, are not among them.
    """
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if name.rpartition(".")[2] not in HEADS
        and (
            isinstance(module, nn.Linear)
            or (isinstance(module, nn.Conv1d) and module.kernel_size == (1,) and module.groups == 1)
        )
    }


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) on groups with `muon` true, AdamW on the rest.

    Muon's step is the momentum brought to the nearest matrix with orthonormal rows or columns: every direction of
    a weight moves equally far, also those that the gradient hardly shows. Towers with random weights learn in
    less than half of the steps; each step costs more, which pays where batches are not tiny.

    That nearest matrix is found roughly, and leaves some neurons (rows) moving further than others. So each row is
    divided by how far it has moved of late, and the whole scaled to the length it had: NorMuon (Li et al., 2025,
    https://arxiv.org/abs/2510.05491), with the scale of its authors' code.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the training loop has its gradients by now"
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        self._muon_step([(weight, group) for group in groups if group["muon"] for weight in group["params"]])

    def _muon_step(self, weights: list[tuple[nn.Parameter, dict[str, Any]]]) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, dict[str, Any], Tensor]]] = defaultdict(list)
        for weight, group in weights:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if "neurons" not in state:
                state |= {
                    "step": torch.zeros(()),  # not used here, but AdamW looks for it when a state is loaded
                    "momentum": torch.zeros_like(weight),
                    "neurons": weight.new_zeros(len(weight), 1),
                }
            momentum = state["momentum"]
            momentum.lerp_(weight.grad, 1 - MUON_MOMENTUM)
            update = weight.grad.lerp(momentum, MUON_MOMENTUM).flatten(1)  # Nesterov; (out, in)
            wide = update if update.shape[0] <= update.shape[1] else update.T
            by_shape[tuple(wide.shape)].append((weight, group, wide))
        for alike in by_shape.values():
            steps = orthogonalise(torch.stack([wide for _, _, wide in alike]))
            for (weight, group, _), step in zip(alike, steps, strict=True):
                num_out, num_in = weight.shape[:2]
                step = level_neurons(step if num_out <= num_in else step.T, self.state[weight]["neurons"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(
                    step.reshape(weight.shape), alpha=-group["lr"] * max(1.0, num_out / num_in) ** 0.5
                )


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, rows, columns >= rows) to about U V^T of each one's singular value decomposition U S V^T.

    Newton-Schulz iterations of the fifth degree, whose coefficients (Jordan et al.) trade exactness for speed:
    singular values end between 0.7 and 1.2.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT  # (N, rows, rows)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def level_neurons(step: Tensor, mean_squares: Tensor) -> Tensor:
    """A step (out, in), each row over the root of its `mean_squares` (out, 1), which are updated; as long as before."""
    mean_squares.lerp_(step.square().mean(dim=1, keepdim=True), 1 - NEURON_MEMORY)
    level = step * mean_squares.clamp_min(1e-10).rsqrt()
    return level * (step.norm() / level.norm().clamp_min(1e-10))


def learning_rate_factor(step: int, settings: DictConfig) -> float:
    """The share of the peak learning rate at `step` (0 is the first): linear warm-up, then cosine or constant."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.lr_scheduler == "constant":
        return 1.0
    progress = (step - settings.warmup_steps) / max(settings.max_steps - settings.warmup_steps, 1)
    floor = settings.min_learning_rate_ratio
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
