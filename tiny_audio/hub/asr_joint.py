"""Joint decoding: every token is chosen by the language model and by what a CTC head hears, together.

Watanabe et al., 2017 (doi:10.1109/JSTSP.2017.2763455). A language model writes, now and then, a fluent sentence that
nobody said, stops early, or loses its place in a list; CTC hears every sound in its order, but spells badly. A token is
therefore scored by its log-probability, plus a weight times the change that it makes to the CTC prefix probability: of
all texts that begin so, given the audio (Graves, 2008, section 7.5). The end of the text is scored as the whole of it.

Legend: B batch, F frames of a CTC head (encoder frames or audio tokens), V vocabulary, D_t decoder width, R rows of a
generation (clips times beams), K candidates of a row, T new tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation import LogitsProcessor

from .asr_losses import CTC_BLANK, encode_ctc_text

# The likeliest tokens of the decoder that are weighed; beams need more of them. 32 give the same texts.
CANDIDATES = 8
# What a token can lose at most, in nats: a text that the frames are too few for must not forbid everything else.
MOST_DOUBT = 20.0
IMPOSSIBLE = -1e30  # sums of minus infinity would not be numbers
BEHIND_THE_END = -1e4


class Hearing(ABC):
    """What a CTC head hears in a batch of clips.

    Attributes:
        blank: (B, F) float64 log-probabilities; 0 behind a clip's end.
    """

    blank: Tensor

    @abstractmethod
    def classes(self, ids: list[int]) -> list[int]:
        """The classes of the head that text tokens `ids` are made of. More tokens never change the first ones."""

    @abstractmethod
    def emissions(self, clips: Tensor, classes: Tensor) -> Tensor:
        """(R, K, F) float64 log-probabilities of `classes (R, K)` in the clips `clips (R,)`."""


class HeardCharacters(Hearing):
    """The alignment head's `log_probabilities (B, F, characters + 1)`, of which `lengths (B,)` frames are valid."""

    def __init__(self, log_probabilities: Tensor, lengths: Tensor, tokenizer: Any, vocabulary: str):
        log_probabilities = log_probabilities.to(_exact_device(log_probabilities.device), torch.float64)
        behind = _behind(log_probabilities.shape[1], lengths.to(log_probabilities.device))
        self.log_probabilities = log_probabilities.masked_fill(behind[..., None], BEHIND_THE_END)
        self.blank = log_probabilities[..., CTC_BLANK].masked_fill(behind, 0.0)
        self.tokenizer, self.vocabulary = tokenizer, vocabulary

    def classes(self, ids: list[int]) -> list[int]:
        return encode_ctc_text(self.tokenizer.decode(ids, skip_special_tokens=True), self.vocabulary)

    def emissions(self, clips: Tensor, classes: Tensor) -> Tensor:
        index = classes[:, None].expand(-1, self.blank.shape[1], -1)  # (R, F, K)
        return self.log_probabilities[clips].gather(2, index).transpose(1, 2)


class HeardTokens(Hearing):
    """Audio tokens against the decoder's embeddings, as `EmbeddingCTC.listen` compares them.

    Args:
        tokens: (B, F, D_t) and table: (V, D_t), whose products are scores.
        scale: (V,) factors of the scores.
        normaliser, blank: (B, F) log of the sum of all exponentiated scores, and the blank's score.
        lengths: (B,) valid frames.
    """

    def __init__(
        self, tokens: Tensor, table: Tensor, scale: Tensor, normaliser: Tensor, blank: Tensor, lengths: Tensor
    ):
        self.tokens, self.table, self.scale, self.normaliser = tokens, table, scale, normaliser
        self.behind = _behind(tokens.shape[1], lengths)
        at = _exact_device(tokens.device)
        self.blank = (blank - normaliser).masked_fill(self.behind, 0.0).to(at, torch.float64)

    def classes(self, ids: list[int]) -> list[int]:
        return list(ids)

    def emissions(self, clips: Tensor, classes: Tensor) -> Tensor:
        clips, classes = clips.to(self.tokens.device), classes.to(self.tokens.device)
        rows = self.table[classes].float() * self.scale[classes][..., None]  # (R, K, D_t)
        scores = rows @ self.tokens[clips].transpose(1, 2) - self.normaliser[clips][:, None]
        scores = scores.masked_fill(self.behind[clips][:, None], BEHIND_THE_END)
        return scores.to(self.blank.device, torch.float64)


class JointScores(LogitsProcessor):
    """Scores of the next token, from the decoder's and from what is heard; all but `candidates` tokens are ruled out.

    For greedy search and for beams (rows of a clip lie next to each other), alone or with a draft: it finds the state
    of any text that is one token longer than one of the last call, and makes others anew.

    Args:
        hearing: of the batch.
        weight: of the CTC prefix probability, where the decoder's log-probability has 1.
        ends: token ids that end a text, or stand behind its end.
        candidates: the number K of tokens that are weighed for each row.
    """

    def __init__(self, hearing: Hearing, weight: float, ends: list[int], candidates: int = CANDIDATES):
        self.hearing, self.weight, self.candidates = hearing, weight, candidates
        self.ends = set(ends)
        self.rows: dict[
            tuple[int, ...], int
        ] = {}  # clip and text before the candidates, to row of the last call
        self.tokens: list[list[int]] = []  # K candidates of each row
        self.spellings: list[list[list[int]]] = []  # classes of the text with each candidate
        self.paths = self.totals = torch.empty(0)  # (R, K, 2, F + 1), (R, K)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float().log_softmax(dim=-1)  # (R, V)
        best, tokens = scores.topk(min(self.candidates, scores.shape[-1]))  # (R, K)
        rows_a_clip = len(scores) // len(self.hearing.blank)
        texts = [(row // rows_a_clip, *ids) for row, ids in enumerate(input_ids.tolist())]
        joint = best + self.weight * self._gains(texts, tokens.tolist()).to(best)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, joint)

    def _gains(self, texts: list[tuple[int, ...]], tokens: list[list[int]]) -> Tensor:
        """(R, K) what each candidate changes the log-probability of what was heard by: at most 0."""
        states = [self._state(text) for text in texts]
        paths = torch.stack([state[0] for state in states])  # (R, 2, F + 1)
        before = torch.stack([state[1] for state in states])[:, None]  # (R, 1)
        clips = torch.tensor([text[0] for text in texts], device=paths.device)
        count = len(tokens[0])
        longer, totals = paths[:, None].repeat(1, count, 1, 1), before.repeat(1, count)
        ended = torch.tensor([[token in self.ends for token in row] for row in tokens], device=paths.device)
        spellings = [
            [spelled if token in self.ends else self.hearing.classes([*text[1:], token]) for token in row]
            for text, row, (_, _, spelled) in zip(texts, tokens, states, strict=True)
        ]
        known = [len(state[2]) for state in states]
        steps = max(len(s) - n for row, n in zip(spellings, known, strict=True) for s in row)
        for step in range(steps):
            # The class before, the class, and whether there is one more: each (R, K).
            pairs = [[_pair(s, n + step) for s in row] for row, n in zip(spellings, known, strict=True)]
            last, label = torch.tensor(pairs, device=paths.device).unbind(-1)
            more = label >= 0
            emissions = self.hearing.emissions(clips, label.clamp(min=0))  # (R, K, F)
            blank = self.hearing.blank[clips][:, None].expand_as(emissions)
            extended, total = extend(longer, blank, emissions, last == label)
            longer = torch.where(more[..., None, None], extended, longer)
            totals = torch.where(more, total, totals)
        whole = paths[:, :, -1].logsumexp(dim=1)[:, None]  # (R, 1) of the text as it is
        self.rows = {text: row for row, text in enumerate(texts)}
        self.tokens, self.spellings, self.paths, self.totals = tokens, spellings, longer, totals
        return (torch.where(ended, whole, totals) - before).clamp(min=-MOST_DOUBT, max=0.0)

    def _state(self, text: tuple[int, ...]) -> tuple[Tensor, Tensor, list[int]]:
        """Paths (2, F + 1), prefix log-probability () and classes of a clip's text."""
        blank = self.hearing.blank[text[0], None]  # (1, F)
        if len(text) > 1:
            row = self.rows.get(text[:-1])
            if row is not None and text[-1] in self.tokens[row]:
                k = self.tokens[row].index(text[-1])
                return self.paths[row, k], self.totals[row, k], self.spellings[row][k]
        paths, total = start(blank), blank.new_zeros(1)
        ids = [token for token in text[1:] if token not in self.ends]
        # A clip that has ended waits for its batch, whatever is written behind its end.
        classes = self.hearing.classes(ids) if ids and text[-1] not in self.ends else []
        clips = torch.tensor(text[:1], device=blank.device)
        for at in range(len(classes)):
            last, label = _pair(classes, at)
            emissions = self.hearing.emissions(clips, torch.tensor([[label]], device=blank.device))[:, 0]
            paths, total = extend(paths, blank, emissions, torch.tensor([last == label], device=blank.device))
        return paths[0], total[0], classes


def start(blank: Tensor) -> Tensor:
    """(..., 2, F + 1) of the empty text, from `blank (..., F)`.

    For each number of frames read: log-probability of the paths that write the text in them, those that end with its
    last class, and those that end with a blank.
    """
    in_blank = F.pad(blank.cumsum(dim=-1), (1, 0))
    return torch.stack([torch.full_like(in_blank, IMPOSSIBLE), in_blank], dim=-2)


def extend(paths: Tensor, blank: Tensor, emissions: Tensor, repeats: Tensor) -> tuple[Tensor, Tensor]:
    """Paths (..., 2, F + 1) of a text one class longer, and (...) the log-probability of all texts that begin with it.

    Args:
        paths: of the text so far; blank, emissions: (..., F) of the blank and of the new class.
        repeats: (...) whether the new class is the last one again, which needs a blank between.
    """
    in_class = paths[..., 0, :].masked_fill(repeats[..., None], IMPOSSIBLE)
    enters = torch.logaddexp(in_class, paths[..., 1, :])[..., :-1]  # (..., F)
    total = (enters + emissions).logsumexp(dim=-1)
    in_class = F.pad(_stay(enters, emissions), (1, 0), value=IMPOSSIBLE)
    in_blank = F.pad(_stay(in_class[..., :-1], blank), (1, 0), value=IMPOSSIBLE)
    return torch.stack([in_class, in_blank], dim=-2), total


def _stay(enters: Tensor, emissions: Tensor) -> Tensor:
    """x[t] = logaddexp(x[t - 1], enters[t]) + emissions[t], without a loop over the F frames."""
    held = emissions.cumsum(dim=-1)
    return held + (enters - held + emissions).logcumsumexp(dim=-1)


def _pair(classes: list[int], at: int) -> tuple[int, int]:
    """The class before `at` (-2: none) and the one there (-1: none)."""
    return classes[at - 1] if 0 < at <= len(classes) else -2, classes[at] if at < len(classes) else -1


def _behind(num_frames: int, lengths: Tensor) -> Tensor:
    """(B, F) whether a frame lies behind its clip's end."""
    return torch.arange(num_frames, device=lengths.device)[None] >= lengths[:, None]


def _exact_device(device: torch.device) -> torch.device:
    """Apple GPUs have no float64; there the recursion runs on the CPU, small as it is."""
    return torch.device("cpu") if device.type == "mps" else device
