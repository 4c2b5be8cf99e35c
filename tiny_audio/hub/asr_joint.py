"""Joint decoding: every token is chosen by the language model and by what a CTC head hears, together.

Watanabe et al., 2017 (doi:10.1109/JSTSP.2017.2763455). A language model writes, now and then, a fluent sentence that
nobody said, stops early, or loses its place in a list; CTC hears every sound in its order, but spells badly. A token is
therefore scored by its log-probability, plus a weight times the change that it makes to the CTC prefix probability: of
all texts that begin so, given the audio (Graves, 2008, section 7.5). The end of the text is scored as the whole of it.
Repetitions must be heard more clearly than other words.

Legend: B batch, F frames of a CTC head (encoder frames or audio tokens), V vocabulary, D_t decoder width, R rows of a
generation (clips times beams), K candidates of a row, N candidates that are weighed at a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation import LogitsProcessor

from .asr_guard import ends_in_a_loop
from .asr_losses import CTC_BLANK, encode_ctc_text

# The likeliest tokens of the decoder that are weighed; beams need more of them. 32 give the same texts.
CANDIDATES = 8
# A decoder that has written something twice is sure that it comes a third time, whatever was said: what repeats must be
# heard, with at least this weight, from its second copy on; of short pieces, from so many tokens on.
LOOP_WEIGHT = 1.0
LOOP_COPIES = 2
FEWEST_REPEATED = 3
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
        """(N, F) float64 log-probabilities of `classes (N,)` in the clips `clips (N,)`."""


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
        return self.log_probabilities[clips, :, classes]


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
        rows = self.table[classes].float() * self.scale[classes][:, None]  # (N, D_t)
        scores = (self.tokens[clips] @ rows[..., None])[..., 0] - self.normaliser[clips]
        scores = scores.masked_fill(self.behind[clips], BEHIND_THE_END)
        return scores.to(self.blank.device, torch.float64)


class State(NamedTuple):
    """Of a clip's text: paths (2, F + 1) as of `start`; log-probability () of all texts that begin so; classes."""

    paths: Tensor
    total: Tensor
    classes: list[int]


class JointScores(LogitsProcessor):
    """Scores of the next token, from the decoder's and from what is heard; tokens that cannot be chosen are ruled out.

    For greedy search and for beams (rows of a clip lie next to each other), alone or with a draft: it finds the state
    of any text that is one token longer than one of the last call, and makes others anew.

    Args:
        hearing: of the batch.
        weight: of the CTC prefix probability, where the decoder's log-probability has 1.
        ends: token ids that end a text, or stand behind its end.
        candidates: the number K of tokens that may be weighed for each row.
    """

    def __init__(self, hearing: Hearing, weight: float, ends: list[int], candidates: int = CANDIDATES):
        self.hearing, self.weight, self.candidates = hearing, weight, candidates
        self.ends = set(ends)
        self.states: dict[tuple[int, ...], State] = {}  # by clip and text, of what the last call weighed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float().log_softmax(dim=-1)  # (R, V)
        best, tokens = scores.topk(min(self.candidates, scores.shape[-1]))  # (R, K)
        beams = len(scores) // len(self.hearing.blank)
        texts = [(row // beams, *ids) for row, ids in enumerate(input_ids.tolist())]
        # A clip that has ended waits for its batch: whatever is written behind its end, nobody reads.
        writing = [row for row, text in enumerate(texts) if len(text) == 1 or text[-1] not in self.ends]
        before = {row: self._state(texts[row]) for row in writing}
        self.states = {}
        alone, candidates = best.tolist(), tokens.tolist()
        joint = [list(row) for row in alone]

        def weigh(pairs: list[tuple[int, int]]) -> None:
            gains = self._gains([(texts[row], before[row], candidates[row][k]) for row, k in pairs])
            for (row, k), gain in zip(pairs, gains, strict=True):
                loops = ends_in_a_loop([*texts[row][1:], candidates[row][k]], LOOP_COPIES, FEWEST_REPEATED)
                joint[row][k] = (
                    alone[row][k] + (max(self.weight, LOOP_WEIGHT) if loops else self.weight) * gain
                )

        others = [(row, k) for row in writing for k in range(1, len(candidates[row]))]
        weigh([(row, 0) for row in writing])
        if beams == 1:
            # What is heard makes no token likelier: those that are behind the first one's sum already have lost.
            for row, k in others:
                if alone[row][k] <= joint[row][0]:
                    joint[row][k] = -math.inf
        weigh([(row, k) for row, k in others if joint[row][k] > -math.inf])
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, scores.new_tensor(joint))

    def _gains(self, weighed: list[tuple[tuple[int, ...], State, int]]) -> list[float]:
        """What each token, behind its text, changes the log-probability of what was heard by: at most 0."""
        if not weighed:
            return []
        paths = torch.stack([state.paths for _, state, _ in weighed])  # (N, 2, F + 1)
        before = torch.stack([state.total for _, state, _ in weighed])  # (N,)
        clips = torch.tensor([text[0] for text, _, _ in weighed], device=paths.device)
        ended = [token in self.ends for _, _, token in weighed]
        classes = [
            state.classes if end else self.hearing.classes([*text[1:], token])
            for (text, state, token), end in zip(weighed, ended, strict=True)
        ]
        # The end is scored as the whole of the text as it is.
        totals = torch.where(
            torch.tensor(ended, device=paths.device), paths[:, :, -1].logsumexp(dim=1), before
        )
        known = [len(state.classes) for _, state, _ in weighed]
        for step in range(max(len(c) - n for c, n in zip(classes, known, strict=True))):
            longer = [i for i, (c, n) in enumerate(zip(classes, known, strict=True)) if len(c) > n + step]
            labels = [classes[i][known[i] + step] for i in longer]
            repeats = [
                known[i] + step > 0 and classes[i][known[i] + step - 1] == c
                for i, c in zip(longer, labels, strict=True)
            ]
            at = torch.tensor(longer, device=paths.device)
            paths[at], totals[at] = self._extend(paths[at], clips[at], labels, repeats)
        for i, (text, _, token) in enumerate(weighed):
            self.states[*text, token] = State(paths[i], totals[i], classes[i])
        return (totals - before).clamp(min=-MOST_DOUBT, max=0.0).tolist()

    def _state(self, text: tuple[int, ...]) -> State:
        if text in self.states:
            return self.states[text]
        clips = torch.tensor(text[:1], device=self.hearing.blank.device)
        paths, total = start(self.hearing.blank[clips]), self.hearing.blank.new_zeros(1)
        classes = self.hearing.classes(list(text[1:]))
        for last, label in zip([None, *classes], classes, strict=False):
            paths, total = self._extend(paths, clips, [label], [last == label])
        return State(paths[0], total[0], classes)

    def _extend(
        self, paths: Tensor, clips: Tensor, labels: list[int], repeats: list[bool]
    ) -> tuple[Tensor, Tensor]:
        at = paths.device
        emissions = self.hearing.emissions(clips, torch.tensor(labels, device=at))
        return extend(paths, self.hearing.blank[clips], emissions, torch.tensor(repeats, device=at))


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


def _behind(num_frames: int, lengths: Tensor) -> Tensor:
    """(B, F) whether a frame lies behind its clip's end."""
    return torch.arange(num_frames, device=lengths.device)[None] >= lengths[:, None]


def _exact_device(device: torch.device) -> torch.device:
    """Apple GPUs have no float64; there the recursion runs on the CPU, small as it is."""
    return torch.device("cpu") if device.type == "mps" else device
