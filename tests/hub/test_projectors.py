"""Every projector: lengths, batch invariance, scale, sizes, and refusals."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_models import LLAMA, WHISPER, architecture
from tiny_audio.hub.asr_config import TinyAudioConfig
from tiny_audio.hub.asr_projectors import PROJECTORS, build_projector, length_mask, projector_output_length


def make(projector_type: str, stack_factor: int = 4, **settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = TinyAudioConfig(
        audio_config=architecture(WHISPER),
        text_config=architecture(LLAMA),
        projector_type=projector_type,
        stack_factor=stack_factor,
        projector_hidden_size=48,
        **settings,
    )
    return build_projector(config)


@pytest.mark.parametrize("stack_factor", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("projector_type", PROJECTORS)
def test_output_length_is_what_comes_out(projector_type: str, stack_factor: int) -> None:
    projector = make(projector_type, stack_factor)
    with torch.no_grad():
        for num_frames in range(1, 42):
            tokens, _ = projector(torch.randn(1, num_frames, 32), torch.tensor([num_frames]))
            expected = projector_output_length(projector_type, stack_factor, num_frames)
            assert tokens.shape == (1, expected, 32)
            assert expected >= 1, "no clip may lose all of its audio"
            assert expected * stack_factor >= num_frames, "no frame may be lost at the end"
            as_tensor = projector_output_length(projector_type, stack_factor, torch.tensor([num_frames]))
            assert as_tensor.tolist() == [expected]


@pytest.mark.parametrize("stack_factor", [2, 4, 5])
@pytest.mark.parametrize("projector_type", PROJECTORS)
def test_a_clip_does_not_feel_its_batch_mates(projector_type: str, stack_factor: int) -> None:
    projector = make(projector_type, stack_factor)
    lengths = torch.tensor([37, 5, 1, 64])
    frames = torch.randn(4, 64, 32) * length_mask(lengths, 64)[..., None]
    with torch.no_grad():
        together, balance = projector(frames, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, balance_alone = projector(frames[row : row + 1, :length], lengths[row : row + 1])
            valid = projector_output_length(projector_type, stack_factor, length)
            assert torch.allclose(together[row, :valid], alone[0, :valid], atol=1e-5)
            if balance is not None:
                assert torch.allclose(balance[row], balance_alone[0], atol=1e-5)


@pytest.mark.parametrize("projector_type", PROJECTORS)
def test_output_starts_at_the_embedding_scale(projector_type: str) -> None:
    projector = make(projector_type)
    projector.set_output_scale(0.037)
    tokens, _ = projector(torch.randn(2, 40, 32), torch.tensor([40, 40]))
    assert tokens.pow(2).mean().sqrt().item() == pytest.approx(0.037, rel=0.01)


@pytest.mark.parametrize("projector_type", PROJECTORS)
def test_every_parameter_learns(projector_type: str) -> None:
    projector = make(projector_type)
    tokens, balance = projector(torch.randn(3, 60, 32), torch.tensor([60, 60, 60]))
    loss = (tokens * torch.randn_like(tokens)).sum() + (0 if balance is None else balance.sum())
    loss.backward()
    silent = [name for name, p in projector.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert silent == []


def test_activation_is_used() -> None:
    frames, lengths = torch.randn(1, 8, 32), torch.tensor([8])
    outputs = {
        name: make("mlp", projector_activation=name)(frames, lengths)[0] for name in ("relu", "gelu", "tanh")
    }
    assert not torch.allclose(outputs["relu"], outputs["gelu"])
    assert not torch.allclose(outputs["gelu"], outputs["tanh"])


def test_balanced_routing_has_the_lowest_balance_loss() -> None:
    projector = make("moe")
    even = torch.full((1, 6, 4), 0.25)
    chosen = torch.tensor([[[0, 1], [2, 3]] * 3])
    lopsided = torch.tensor([0.7, 0.3, 0.0, 0.0]).expand(1, 6, 4)
    lengths = torch.tensor([24])
    assert projector._balance_loss(even, chosen, lengths).item() == pytest.approx(1.0)
    assert projector._balance_loss(lopsided, torch.tensor([[[0, 1]] * 6]), lengths).item() == pytest.approx(
        2.0
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"projector_type": "swiglue"}, "known: mlp, swiglu"),
        ({"projector_type": "mlp", "projector_activation": "rello"}, "unknown projector_activation"),
        ({"projector_type": "mlp", "stack_factor": 0}, "at least 1"),
    ],
)
def test_refusals_say_what_is_known(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**settings)


@pytest.mark.filterwarnings("error")  # as PyTorch's of a norm that has no fused kernel
@pytest.mark.parametrize("projector_type", PROJECTORS)
def test_in_half_precision_it_says_almost_the_same_and_warns_of_nothing(projector_type: str) -> None:
    projector = make(projector_type).eval()
    lengths = torch.tensor([64, 40])
    frames = torch.randn(2, 64, 32) * length_mask(lengths, 64)[..., None]
    with torch.no_grad():
        expected, _ = projector(frames, lengths)
        with torch.autocast("cpu", torch.bfloat16):
            tokens, _ = projector(frames.to(torch.bfloat16), lengths)
    assert tokens.dtype == torch.bfloat16
    difference = (tokens.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < difference < 0.1
