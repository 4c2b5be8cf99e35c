"""The three losses, each as one sum per clip, so that a clip's loss never depends on its batch.

Legend: B batch, F encoder frames, P projected frames (audio tokens), C target length, V classes, D_t decoder width.

The language model's cross entropy teaches what to write. Two CTC losses (Graves et al., 2006) teach where to
listen, which the cross entropy alone takes hours to find: the *alignment loss* scores characters on encoder
frames, the *embedding loss* scores text tokens on audio tokens against the decoder's own embedding table.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE_LABEL = -100
CTC_BLANK = 0
CTC_PADDING = -1
IMPOSSIBLE_SCORE = -1e4  # of a class that is not there; CTC's gradient of minus infinity is not a number
SCORES_A_PIECE = 2**25  # of the embedding loss held at a time: 128 MB


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


def language_model_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross entropies of `logits (N, V)` at the N label positions."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


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


class EmbeddingCTC(nn.Module):
    """Scores audio tokens against the decoder's token embeddings plus a learned blank.

    Both sides are brought to unit root mean square, and the dot product is divided by sqrt(D_t), so that an
    unrelated pair scores about N(0, 1) and an identical one sqrt(D_t), whatever the scale of the table. The table
    itself gets no gradient: the loss pulls audio tokens to the embeddings, never the other way round.

    The blank starts with as much mass as all rivals together. Without that head start none of 49k classes is rarer:
    the loss then finds paths that stretch tokens over all frames, and the audio tokens learn hardly anything.
    """

    def __init__(self, width: int):
        super().__init__()
        self.blank = nn.Parameter(torch.zeros(width))
        self.blank_bias = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        audio_tokens: Tensor,
        lengths: Tensor,
        targets: Tensor,
        embeddings: Tensor,
        num_negatives: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Loss and infeasibility per clip.

        Args:
            audio_tokens: (B, P, D_t); lengths: (B,) valid tokens.
            targets: (B, C) text token ids padded with -1.
            embeddings: (vocabulary, D_t).
            num_negatives: 0 scores the whole vocabulary; else this many entries besides each clip's own tokens.
        """
        target_lengths = (targets != CTC_PADDING).sum(dim=1)
        scale = audio_tokens.shape[-1] ** -0.5
        tokens = _unit_rms(audio_tokens.float()) * scale  # (B, P, D_t)
        own, classes = _own_classes(targets)  # (B, U) token ids padded with -1, (B, C) index into U
        table = _unit_rms(embeddings.detach().float())  # (vocabulary, D_t)
        own_scores = torch.einsum("bpd,bud->bpu", tokens, table[own.clamp(min=0)])
        own_scores = own_scores.masked_fill((own < 0)[:, None, :], IMPOSSIBLE_SCORE)
        is_own = torch.zeros(len(own), len(table) + 1, dtype=torch.bool, device=own.device)
        is_own = is_own.scatter(1, own % (len(table) + 1), True)[
            :, :-1
        ]  # (B, V); -1 falls on the last column
        if 0 < num_negatives < len(table):
            negatives = _fixed_negatives(len(table), num_negatives).to(own.device)  # (K,)
            table, is_own = table[negatives], is_own[:, negatives]
        blank = tokens @ self.blank.float() + self.blank_bias.float() + math.log(len(table))  # (B, P)
        # CTC needs the rivals' mass alone: a class for each of 49k-152k tokens would cost more than the decoder.
        rivals = LogMass.apply(tokens, table, is_own)  # (B, P)
        logits = torch.cat([blank[..., None], own_scores, rivals[..., None]], dim=-1)
        return ctc_loss_per_clip(logits.log_softmax(dim=-1), lengths, classes + 1, target_lengths)


class LogMass(torch.autograd.Function):
    """log sum exp of the scores of tokens (B, P, D_t) against the rows of a fixed table (V, D_t): (B, P).

    `excluded` (B, V) marks what a clip leaves out. The gradient is made on the way, piece by piece: (B, P, V) scores
    are never held, and their products with the table are computed twice and not three times.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor, excluded: Tensor) -> Tensor:
        clips_a_piece = max(1, SCORES_A_PIECE // (tokens.shape[1] * len(table)))
        masses, gradients = [], []
        for part, left_out in zip(tokens.split(clips_a_piece), excluded.split(clips_a_piece), strict=True):
            scores = (part @ table.T).float()  # (clips of the piece, P, V)
            scores.masked_fill_(left_out[:, None, :], float("-inf"))
            highest = scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
            likelihoods = scores.sub_(highest).exp_()
            total = likelihoods.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            masses.append((highest + total.log())[..., 0])
            if ctx.needs_input_grad[0]:
                gradients.append((likelihoods @ table).float() / total)  # (clips of the piece, P, D_t)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(masses)

    @staticmethod
    def backward(ctx: Any, *gradient: Any) -> tuple[Tensor, None, None]:
        return gradient[0][..., None] * ctx.saved_tensors[0], None, None


def _unit_rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def _fixed_negatives(vocabulary_size: int, count: int) -> Tensor:
    """The same `count` token ids every time: a sample of its own for each batch would tie a clip to its batch."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(vocabulary_size, generator=generator)[:count]


def _own_classes(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids of each row of `targets (B, C)`, padded with -1, and each target's place among them."""
    distinct = [torch.unique(row[row != CTC_PADDING]) for row in targets]
    own = nn.utils.rnn.pad_sequence(distinct, batch_first=True, padding_value=CTC_PADDING)  # (B, U)
    if own.shape[1] == 0:
        own = targets.new_full((targets.shape[0], 1), CTC_PADDING)
    matches = targets[:, :, None] == own[:, None, :]  # (B, C, U)
    classes = matches.int().argmax(dim=-1).masked_fill(targets == CTC_PADDING, CTC_PADDING)
    return own, classes
