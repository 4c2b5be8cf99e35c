"""The optimisers: what Muon does to a matrix, and what it leaves to AdamW."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_models import tiny_config
from tiny_audio.train.build import build_model
from tiny_audio.train.optimizer import (
    Muon,
    build_optimizer,
    hidden_matrices,
    level_neurons,
    load_optimizer_state,
    orthogonalise,
)


def test_orthogonalise_levels_the_singular_values_and_keeps_the_directions() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    matrices[0] *= 1e-3  # the scale of a gradient says nothing
    result = orthogonalise(matrices)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    cosine = nn.functional.cosine_similarity(result.flatten(1), (left @ right).flatten(1))
    assert (cosine > 0.95).all()
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.5 and singular.max() < 1.3


def test_every_direction_of_a_matrix_moves_equally_far() -> None:
    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16), (16, 48, 1)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape)
        optimizer = Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.0, "muon": True}], fused=True)
        optimizer.step()
        moved = torch.linalg.svdvals(weight.detach().flatten(1)) / 0.1
        assert moved.max() / moved.min() < 2.5, shape


def test_neurons_move_equally_far_and_all_of_them_as_far_as_before() -> None:
    torch.manual_seed(0)
    step = torch.randn(48, 16) * torch.linspace(0.2, 2.0, 48)[:, None]
    mean_squares = torch.zeros(48, 1)
    level = level_neurons(step, mean_squares)
    assert torch.allclose(level.norm(), step.norm())
    assert torch.allclose(level.norm(dim=1), level.norm(dim=1).mean().expand(48), rtol=1e-4)
    cosine = nn.functional.cosine_similarity(level, step, dim=1)
    assert torch.allclose(cosine, torch.ones(48))  # only lengths change
    for _ in range(200):  # what it knows of a neuron follows what that one does
        level_neurons(step, mean_squares)
    assert torch.allclose(mean_squares[:, 0], step.square().mean(dim=1), rtol=1e-3)
    assert torch.equal(level_neurons(torch.zeros(48, 16), mean_squares), torch.zeros(48, 16))


def test_embeddings_heads_and_norms_are_left_to_adamw() -> None:
    model, _ = build_model(tiny_config("model.stack_factor=2"))
    hidden = hidden_matrices(model)
    assert "model.audio_tower.layers.0.self_attn.q_proj.weight" in hidden
    assert "model.language_model.layers.0.mlp.down_proj.weight" in hidden
    assert any("multi_modal_projector" in name for name in hidden)
    for name in ("lm_head.weight", "ctc_head.weight", "model.language_model.embed_tokens.weight"):
        assert name not in hidden
    assert all(dict(model.named_parameters())[name].ndim >= 2 for name in hidden)


def test_rates_of_parts_hold_for_muon_too() -> None:
    config = tiny_config(
        "training.optimizer=muon",
        "training.learning_rate=1e-3",
        "training.encoder_learning_rate=1e-4",
        "training.muon_learning_rate=0.02",
    )
    model, _ = build_model(config)
    optimizer = build_optimizer(model, config.training)
    assert isinstance(optimizer, Muon)
    rates = {p: (g["lr"], g["muon"]) for g in optimizer.param_groups for p in g["params"]}
    tower = model.model.audio_tower
    rate, muon = rates[tower.layers[0].self_attn.q_proj.weight]
    assert muon and abs(rate - 0.002) < 1e-9
    assert rates[tower.conv1.bias] == (1e-4, False)
    assert rates[model.ctc_head.weight] == (1e-3, False)
    assert set(rates) == {p for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("has_names", [True, False])
def test_each_weight_gets_its_memory_back_and_the_options_of_now(optimizer: str, has_names: bool) -> None:
    """Whatever rates are alike: checkpoints of earlier versions, without names, had a group for those together."""

    def build(*options: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        config = tiny_config(f"training.optimizer={optimizer}", *options)
        model, _ = build_model(config)
        return model, build_optimizer(model, config.training)

    model, first = build("training.learning_rate=1e-3", "training.weight_decay=0.01")
    parameters = dict(model.named_parameters())
    for number, parameter in enumerate(parameters.values()):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    first.step()
    saved = copy.deepcopy(first.state_dict())
    if not has_names:
        saved = merged(saved, parameters)
    rates = ["training.decoder_learning_rate=1e-4"] if has_names else []
    model, second = build(
        "training.learning_rate=1e-3", "training.weight_decay=0.5", "training.adam_beta2=0.9", *rates
    )
    load_optimizer_state(second, model, saved)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            was, now = first.state[parameters[name]], second.state[parameter]
            assert was.keys() == now.keys() and all(torch.equal(was[key], now[key]) for key in was), name
    assert {group["weight_decay"] for group in second.param_groups} == {0.0, 0.5}
    assert {group["betas"] for group in second.param_groups} == {(0.9, 0.9)}
    assert (1e-4 in {group["lr"] for group in second.param_groups}) == has_names

    other = "adamw" if optimizer == "muon" else "muon"
    config = tiny_config(f"training.optimizer={other}")
    wanted = f"training.optimizer={optimizer}" if has_names else "of an earlier version"
    with pytest.raises(ValueError, match=wanted):
        load_optimizer_state(build_optimizer(model, config.training), model, saved)
    model.ctc_head.requires_grad_(False)
    with pytest.raises(ValueError, match="other weights were trained there"):
        load_optimizer_state(build_optimizer(model, config.training), model, saved)


def merged(saved: dict[str, Any], parameters: dict[str, nn.Parameter]) -> dict[str, Any]:
    """A state as earlier versions wrote it where all parts had one rate."""
    numbers = {
        n: i for group in saved["param_groups"] for n, i in zip(group["names"], group["params"], strict=True)
    }
    is_muon = {name: group["muon"] for group in saved["param_groups"] for name in group["names"]}
    groups: dict[tuple[bool, bool], list[str]] = {}
    for name, parameter in parameters.items():
        if name in numbers:
            groups.setdefault((parameter.ndim >= 2, is_muon[name]), []).append(name)
    places = {name: place for place, name in enumerate(name for names in groups.values() for name in names)}
    return {
        "state": {places[name]: saved["state"][number] for name, number in numbers.items()},
        "param_groups": [
            {"params": [places[name] for name in names], "muon": muon} for (_, muon), names in groups.items()
        ],
    }


def test_state_of_muon_survives_saving() -> None:
    def take_steps(
        count: int, state: tuple[dict, dict] | None = None
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12))
        optimizer = Muon(
            [
                {"params": [model[0].weight], "lr": 0.02, "weight_decay": 0.1, "muon": True},
                {"params": [model[0].bias, *model[1].parameters()], "lr": 1e-3, "muon": False},
            ],
            fused=True,
        )
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        for _ in range(count):
            model(torch.arange(16.0).view(2, 8) / 16).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    whole, _ = take_steps(5)
    model, optimizer = take_steps(2)
    resumed, _ = take_steps(3, (model.state_dict(), optimizer.state_dict()))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
