"""The losses, each as one sum per clip, so that a clip's loss never depends on its batch.

Legend: B batch, F frames, C target length, V classes.

The language model's cross entropy teaches what to write. Two CTC losses (Graves et al., 2006) teach where to
listen, which the cross entropy alone takes hours to find: the *alignment loss* scores characters on encoder
frames, the *embedding loss* (`asr_embedding_ctc`) text tokens on audio tokens against the decoder's own embeddings.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE_LABEL = -100
CTC_BLANK = 0
CTC_PADDING = -1
LOGITS_AT_ONCE = (
    2**25
)  # 134 MB in float32; 220 positions of a vocabulary of 152,000, enough to keep a GPU busy


@dataclass(frozen=True)
class LossWeights:
    """How the losses add up; the defaults train the language model's cross entropy alone.

    With `language_model` 0 the decoder is not run at all.
    `embedding_negatives` is the number of vocabulary entries that the embedding loss scores besides a clip's own
    tokens: 0 for the whole vocabulary, else a sample that is the same for the whole run.
    """

    language_model: float = 1.0
    ctc: float = 0.0
    embedding: float = 0.0
    balance: float = 0.0
    embedding_negatives: int = 0


def plain_text(text: str) -> str:
    """Lower case, accents off."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))


def encode_ctc_text(text: str, vocabulary: str) -> list[int]:
    """Transcript to class ids of the alignment head: plain, other characters become a space."""
    plain = plain_text(text)
    kept = "".join(character if character in vocabulary else " " for character in plain)
    collapsed = " ".join(kept.split()) if " " in vocabulary else "".join(kept.split())
    return [vocabulary.index(character) + 1 for character in collapsed]


def decode_ctc_text(class_ids: list[int], vocabulary: str) -> str:
    """Best path of frame classes to text: repeats collapsed, blanks dropped."""
    kept = [c for previous, c in zip([CTC_BLANK, *class_ids], class_ids, strict=False) if c != previous]
    return "".join(vocabulary[c - 1] for c in kept if c != CTC_BLANK).strip()


def language_model_loss(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], vocabulary_size: int
) -> Tensor:
    """Sum of the cross entropies at N label positions, `hidden (N, D)`.

    Logits are a large vocabulary's 4 bytes a class and position, several times over. Where there are many, they are
    made piece by piece, and again in the backward pass: at most `LOGITS_AT_ONCE` of them are there.

    Args:
        head: (N, D) to logits (N, V).
        vocabulary_size: V.
    """

    def loss(part: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(part).float(), wanted, reduction="sum")

    size = max(1, LOGITS_AT_ONCE // vocabulary_size)
    if len(hidden) <= size:
        return loss(hidden, targets)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    losses = [checkpoint(loss, part, wanted, use_reentrant=False) for part, wanted in parts]
    return torch.stack(losses).sum()


def ctc_loss_per_clip(
    log_probabilities: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """CTC negative log-likelihood of each clip.

    Args:
        log_probabilities: (B, F, V); lengths: (B,) valid frames.
        targets: (B, C) class ids without blanks; target_lengths: (B,).

    Returns:
        (B,) losses, zero where the target cannot be emitted in so few frames, and (B,) bool marking those clips:
        they are for the caller to count and report.
    """
    if targets.shape[1] == 0:  # silence all over the batch
        targets = targets.new_full((len(targets), 1), CTC_PADDING)
    repeats = (targets[:, 1:] == targets[:, :-1]) & (
        torch.arange(1, targets.shape[1], device=targets.device) < target_lengths[:, None]
    )
    infeasible = target_lengths + repeats.sum(dim=1) > lengths
    device = log_probabilities.device
    # Apple GPUs have no kernel for CTC; its cost on the CPU is small beside the towers.
    at = torch.device("cpu") if device.type == "mps" else device
    losses = F.ctc_loss(
        log_probabilities.float().transpose(0, 1).to(at),  # (F, B, V)
        targets.clamp(min=0).to(at),
        lengths.to(at),
        target_lengths.to(at),
        blank=CTC_BLANK,
        reduction="none",
        zero_infinity=True,
    ).to(device)
    return losses.masked_fill(infeasible, 0.0), infeasible


def alignment_loss(logits: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """CTC of the alignment head: `logits (B, F, V)` against `targets (B, C)` padded with -1.

    Returns what `ctc_loss_per_clip` does.
    """
    target_lengths = (targets != CTC_PADDING).sum(dim=1)
    return ctc_loss_per_clip(logits.float().log_softmax(dim=-1), lengths, targets, target_lengths)
