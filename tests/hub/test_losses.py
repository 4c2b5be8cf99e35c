"""The losses against brute force, and the counting of targets that cannot be emitted."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tiny_audio.hub import asr_embedding_ctc, asr_losses
from tiny_audio.hub.asr_embedding_ctc import EmbeddingCTC
from tiny_audio.hub.asr_losses import (
    alignment_loss,
    decode_ctc_text,
    encode_ctc_text,
    language_model_loss,
)

VOCABULARY = " 'abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.mark.parametrize("trains", [False, True])
def test_many_logits_are_made_in_pieces_with_the_same_gradients(
    trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 1000).requires_grad_(trains)
    hidden, targets = torch.randn(50, 16, requires_grad=True), torch.randint(1000, (50,))
    inputs = [hidden, *(head.parameters() if trains else ())]

    def step() -> tuple[float, tuple[torch.Tensor, ...], int]:
        """The loss, its gradients, and the most numbers that any tensor kept for the backward pass has."""
        largest = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal largest
            largest = max(largest, tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = language_model_loss(hidden, targets, head, 1000)
        return float(loss.detach()), torch.autograd.grad(loss, inputs), largest

    whole, gradients, most = step()
    monkeypatch.setattr(asr_losses, "LOGITS_AT_ONCE", 7 * 1000)  # the last piece is one position
    pieces, same_gradients, fewer = step()
    assert pieces == pytest.approx(whole, rel=1e-6)
    for left, right in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(left, right)
    assert most == 50 * 1000 and fewer <= 16 * 1000  # the head's own weights, and no logits


def brute_force_ctc(probabilities: torch.Tensor, target: list[int]) -> float:
    """-log of the summed probability of every path that collapses to the target."""
    num_frames, num_classes = probabilities.shape
    total = 0.0
    for path in itertools.product(range(num_classes), repeat=num_frames):
        collapsed = [c for c, previous in zip(path, (0, *path[:-1]), strict=True) if c and c != previous]
        if collapsed == target:
            total += torch.stack([probabilities[t, c] for t, c in enumerate(path)]).prod().item()
    return -torch.log(torch.tensor(total)).item()


def test_alignment_loss_is_the_sum_over_all_paths() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 4)
    targets = torch.tensor([[1, 2, 2], [3, -1, -1]])
    losses, impossible = alignment_loss(logits, torch.tensor([5, 3]), targets)
    assert losses[0].item() == pytest.approx(brute_force_ctc(logits[0].softmax(-1), [1, 2, 2]), abs=1e-4)
    assert losses[1].item() == pytest.approx(brute_force_ctc(logits[1, :3].softmax(-1), [3]), abs=1e-4)
    assert not impossible.any()


def test_targets_longer_than_their_frames_are_marked() -> None:
    logits = torch.randn(3, 3, 4, requires_grad=True)
    targets = torch.tensor([[1, 1, -1], [1, 2, 3], [1, 1, 2]])  # a repeat needs a blank between
    losses, impossible = alignment_loss(logits, torch.tensor([3, 3, 3]), targets)
    assert impossible.tolist() == [False, False, True]
    assert losses[2].item() == 0
    losses.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[2].any()


def test_empty_target_is_silence() -> None:
    logits = torch.zeros(1, 4, 3)
    logits[..., 0] = 20.0  # all blank
    losses, impossible = alignment_loss(logits, torch.tensor([4]), torch.full((1, 1), -1))
    assert losses.item() == pytest.approx(0.0, abs=1e-4)
    assert not impossible.any()


@pytest.mark.parametrize("num_negatives", [0, 7])
def test_embedding_loss_of_a_clip_does_not_depend_on_its_batch(num_negatives: int) -> None:
    torch.manual_seed(0)
    module, table = EmbeddingCTC(16, 40), torch.randn(40, 16)
    with torch.no_grad():
        module.blank.normal_()
    tokens, lengths = torch.randn(3, 9, 16), torch.tensor([9, 4, 6])
    targets = torch.tensor([[3, 3, 8], [30, 2, -1], [-1, -1, -1]])
    losses, impossible = module(tokens, lengths, targets, table, num_negatives)
    assert not impossible.any()
    for row, length in enumerate(lengths.tolist()):
        own = targets[row][targets[row] >= 0][None]
        alone, _ = module(tokens[row : row + 1, :length], lengths[row : row + 1], own, table, num_negatives)
        assert alone.item() == pytest.approx(losses[row].item(), abs=1e-4)
    losses.sum().backward()
    assert module.blank.grad is not None and torch.isfinite(module.blank.grad).all()


@pytest.mark.parametrize("clips_a_piece", [1, 100])
def test_embedding_loss_is_ctc_over_the_whole_vocabulary(
    clips_a_piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(asr_embedding_ctc, "SCORES_A_PIECE", clips_a_piece * 9 * 40)
    module, table = EmbeddingCTC(16, 40), torch.randn(40, 16)
    with torch.no_grad():
        module.blank.normal_()
    lengths, targets = torch.tensor([9, 5, 7]), torch.tensor([[3, 3, 8], [39, 2, -1], [-1, -1, -1]])
    tokens = torch.randn(3, 9, 16, requires_grad=True)
    losses, _ = module(tokens, lengths, targets, table)
    trained = [tokens, module.blank, module.blank_bias]
    weights = torch.tensor([1.0, 2.0, 3.0])
    found = torch.autograd.grad((losses * weights).sum(), trained)
    unit = torch.nn.functional.rms_norm(tokens, (16,), eps=1e-6) / 4
    scores = unit @ torch.nn.functional.rms_norm(table, (16,), eps=1e-6).T
    blank = unit @ module.blank + module.blank_bias
    logits = torch.cat([blank[..., None], scores], dim=-1)
    plain, _ = alignment_loss(logits, lengths, torch.where(targets < 0, -1, targets + 1))
    assert torch.allclose(losses, plain, atol=1e-5)
    for one, other in zip(found, torch.autograd.grad((plain * weights).sum(), trained), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_all_negatives_equal_the_full_vocabulary() -> None:
    torch.manual_seed(0)
    module, table = EmbeddingCTC(16, 40), torch.randn(40, 16)
    arguments = (torch.randn(2, 9, 16), torch.tensor([9, 5]), torch.tensor([[3, 3, 8], [30, 2, -1]]), table)
    full, _ = module(*arguments, 0)
    # 39 of 40 negatives plus the clip's own tokens leave out at most one class of the table.
    nearly, _ = module(*arguments, 39)
    assert torch.allclose(full, nearly, atol=0.1)


def test_embedding_loss_pulls_audio_to_embeddings() -> None:
    torch.manual_seed(0)
    module, table = EmbeddingCTC(64, 40), torch.randn(40, 64)
    right = table[torch.tensor([[3, 8, 5]])].clone()
    wrong = table[torch.tensor([[9, 1, 30]])].clone()
    targets, lengths = torch.tensor([[3, 8, 5]]), torch.tensor([3])
    assert module(right, lengths, targets, table)[0] < 1.0 < module(wrong, lengths, targets, table)[0]


def test_the_blank_starts_with_half_of_the_mass() -> None:
    torch.manual_seed(0)
    module, table = EmbeddingCTC(64, 4000), torch.randn(4000, 64)
    tokens, nothing = torch.randn(1, 6, 64), torch.full((1, 1), -1)
    loss, _ = module(tokens, torch.tensor([6]), nothing, table)  # the likelihood of six blanks
    assert 0.3 < math.exp(-loss.item() / 6) < 0.5


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Five, FIVE: five!", "five five five"),
        ("Café — 42", "cafe 42"),
        ("it's", "it's"),
        ("", ""),
        ("日本", ""),
    ],
)
def test_ctc_text_round_trip(text: str, written: str) -> None:
    ids = encode_ctc_text(text, VOCABULARY)
    blanks = [c for i in ids for c in (i, 0)]  # a blank between, or doubled letters would collapse
    assert decode_ctc_text(blanks, VOCABULARY) == written
