"""The embedding loss, and what can be heard by it: CTC of text tokens on audio tokens, in the decoder's own vocabulary.

Legend: B batch, P projected frames (audio tokens), C target length, U distinct tokens of a clip, V vocabulary, D_t
decoder width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .asr_joint import HeardTokens
from .asr_losses import CTC_PADDING, ctc_loss_per_clip

IMPOSSIBLE_SCORE = -1e4  # of a class that is not there; CTC's gradient of minus infinity is not a number
NORMS_A_PIECE = 4096  # rows of the table
SCORES_A_PIECE = 2**25  # of the whole vocabulary held at a time: 128 MB


class EmbeddingCTC(nn.Module):
    """Scores audio tokens against the decoder's token embeddings plus a learned blank.

    Both sides are brought to unit root mean square, and the dot product is divided by sqrt(D_t), so that an
    unrelated pair scores about N(0, 1) and an identical one sqrt(D_t), whatever the scale of the table. The table
    itself gets no gradient: the loss pulls audio tokens to the embeddings, never the other way round.

    The blank starts with as much mass as all rivals together. Without that head start none of 49k classes is rarer:
    the loss then finds paths that stretch tokens over all frames, and the audio tokens learn hardly anything.

    Args:
        width: D_t. vocabulary_size: entries of the table.
    """

    def __init__(self, width: int, vocabulary_size: int):
        super().__init__()
        self.blank = nn.Parameter(torch.zeros(width))
        self.blank_bias = nn.Parameter(torch.tensor(math.log(vocabulary_size)))
        self._known_scale: tuple[tuple[Any, ...], Tensor] | None = (
            None  # of the last table that was listened with
        )

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
        tokens = self._scaled(audio_tokens)  # (B, P, D_t)
        own, classes = _own_classes(targets)  # (B, U) token ids padded with -1, (B, C) index into U
        table = _unit_rms(embeddings.detach().float())  # (vocabulary, D_t)
        own_scores = torch.einsum("bpd,bud->bpu", tokens, table[own.clamp(min=0)])
        own_scores = own_scores.masked_fill((own < 0)[:, None, :], IMPOSSIBLE_SCORE)
        is_own = torch.zeros(len(own), len(table) + 1, dtype=torch.bool, device=own.device)
        is_own = is_own.scatter(1, own % (len(table) + 1), True)[
            :, :-1
        ]  # (B, V); -1 falls on the last column
        stands_for = 1.0  # entries of the table, each of those that are scored
        if 0 < num_negatives < len(table):
            negatives = _fixed_negatives(len(table), num_negatives).to(own.device)  # (K,)
            stands_for = len(table) / num_negatives
            table, is_own = table[negatives], is_own[:, negatives]
        blank = self._blank_scores(tokens)
        # CTC needs the rivals' mass alone: a class for each of 49k-152k tokens would cost more than the decoder.
        rivals = LogMass.apply(tokens, table, is_own) + math.log(stands_for)  # (B, P)
        logits = torch.cat([blank[..., None], own_scores, rivals[..., None]], dim=-1)
        return ctc_loss_per_clip(logits.log_softmax(dim=-1), lengths, classes + 1, target_lengths)

    @torch.no_grad()
    def listen(
        self, audio_tokens: Tensor, lengths: Tensor, table: Tensor
    ) -> tuple[HeardTokens, list[list[int]]]:
        """What is heard in a batch of clips, and each clip's best path as text token ids: a draft of its text.

        Args:
            audio_tokens: (all valid audio tokens of the batch, D_t); lengths: (B,) how many each clip has.
            table: (V, D_t) the decoder's embeddings, in any scale.
        """
        tokens = self._scaled(audio_tokens)  # (N, D_t)
        blank = self._blank_scores(tokens)
        scale = self._scale_of(table)
        masses, best = [], []
        for part, part_blank in zip(
            *(x.split(max(1, SCORES_A_PIECE // len(table))) for x in (tokens, blank)), strict=True
        ):
            scores = (part.to(table.dtype) @ table.T).float() * scale  # (tokens of the piece, V)
            masses.append(torch.logaddexp(scores.logsumexp(dim=-1), part_blank))
            likeliest, ids = scores.max(dim=-1)
            best.append(ids.masked_fill(part_blank > likeliest, CTC_PADDING))
        clips = lengths.tolist()
        tokens, mass, blank = (
            nn.utils.rnn.pad_sequence(x.split(clips), batch_first=True)
            for x in (tokens, torch.cat(masses), blank)
        )
        paths = [torch.unique_consecutive(path).tolist() for path in torch.cat(best).split(clips)]
        drafts = [[token for token in path if token != CTC_PADDING] for path in paths]
        return HeardTokens(tokens, table, scale, mass, blank, lengths), drafts

    def _scale_of(self, table: Tensor) -> Tensor:
        """(V,) float factors that bring rows of `table (V, D_t)` to unit RMS, times sqrt(D_t); kept for the next call.

        They are made anew when the table has changed or moved: of a bfloat16 one that takes as long as a clip's text.
        """
        key = (table.data_ptr(), table._version, table.device)
        if self._known_scale is None or self._known_scale[0] != key:
            norms = [torch.linalg.vector_norm(part.float(), dim=1) for part in table.split(NORMS_A_PIECE)]
            self._known_scale = key, table.shape[1] ** 0.5 / torch.cat(norms).clamp(min=1e-6)
        return self._known_scale[1]

    def _scaled(self, audio_tokens: Tensor) -> Tensor:
        return _unit_rms(audio_tokens.float()) * audio_tokens.shape[-1] ** -0.5

    def _blank_scores(self, tokens: Tensor) -> Tensor:
        return tokens @ self.blank.float() + self.blank_bias.float()


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
