"""The guard: what keeps a language model from writing words that nobody said.

Legend: B batch, F encoder frames, V classes of the alignment head, T new text tokens.

The alignment head (CTC) cannot run away: it writes a character only where it hears one. So it is asked first whether
there is speech at all, and then how many characters, which is what a transcript may not outgrow by far. All of this
happens before and while the decoder writes; nothing is cut from a text afterwards, so a stream of pieces joins to
the very same text. Checkpoints without the head are held by the clip's length alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation import StoppingCriteria

from .asr_alignment import speech_evidence

# Characters of fast English speech come at about 20 a second, tokens of a word vocabulary at about 6. A transcript
# that outgrows this allowance is a loop, not speech.
BYTE_TOKENS_PER_SECOND = 30.0
WORD_TOKENS_PER_SECOND = 12.0
BYTE_VOCABULARY_LIMIT = 1000
MINIMUM_NEW_TOKENS = 16

# Fewer characters than this, where the shortest answer ("no", "a") has one or two, are no speech.
FEWEST_CHARACTERS = 0.5
# A transcript may have this many tokens for each character that the alignment head hears, and some more: a token
# stands for at least one character but for rare bytes.
TOKENS_PER_CHARACTER = 2.0
# A loop: the text ends in this many copies of a piece of at most so many tokens, and has more characters than the
# alignment head hears. "five five five five" has four copies, but its characters are heard.
FEWEST_COPIES = 4
LONGEST_PIECE = 40
CHARACTERS_ALLOWED = 1.2
CHECK_EVERY = 8


def has_speech(log_probabilities: Tensor, frame_lengths: Tensor) -> Tensor:
    """(B,) bool, from the alignment head's `log_probabilities (B, F, V)` and `frame_lengths (B,)`."""
    return speech_evidence(log_probabilities, frame_lengths) >= FEWEST_CHARACTERS


def new_token_limits(config: Any, frame_lengths: Tensor, characters: Tensor | None) -> Tensor:
    """(B,) tokens that speech of each clip's length can hold.

    Args:
        config: the model's `TinyAudioConfig`.
        frame_lengths: (B,) encoder frames.
        characters: (B,) that the alignment head expects, or None without one.
    """
    bytewise = config.text_config.vocab_size < BYTE_VOCABULARY_LIMIT
    per_second = BYTE_TOKENS_PER_SECOND if bytewise else WORD_TOKENS_PER_SECOND
    allowance = frame_lengths * config.frame_seconds * per_second
    if characters is not None:
        allowance = torch.minimum(allowance, TOKENS_PER_CHARACTER * characters.to(allowance))
    return MINIMUM_NEW_TOKENS + allowance.ceil().long()


class ClipLengthCriteria(StoppingCriteria):
    """Ends each clip at its own number of new tokens, `limits (B,)`; beams of a clip lie next to each other."""

    def __init__(self, limits: Tensor):
        self.limits = limits

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        limits = self.limits.to(input_ids.device).repeat_interleave(len(input_ids) // len(self.limits))
        return input_ids.shape[1] >= limits


class RepetitionCriteria(StoppingCriteria):
    """Ends a clip whose text repeats itself beyond what the alignment head hears.

    Args:
        tokenizer: to count the characters written.
        characters: (B,) that the alignment head expects of each clip.
    """

    def __init__(self, tokenizer: Any, characters: Tensor):
        self.tokenizer = tokenizer
        self.characters = characters.tolist()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        stop = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if input_ids.shape[1] % CHECK_EVERY:
            return stop
        beams = len(input_ids) // len(self.characters)
        for row, ids in enumerate(input_ids.tolist()):
            if ends_in_a_loop(ids):
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                allowed = CHARACTERS_ALLOWED * self.characters[row // beams] + MINIMUM_NEW_TOKENS
                stop[row] = len(text) > allowed
        return stop


def ends_in_a_loop(ids: list[int], copies: int = FEWEST_COPIES, fewest_repeated: int = 1) -> bool:
    """Whether `ids` end in copies of one piece of at most `LONGEST_PIECE` tokens.

    Of a short piece there must be more: at least `fewest_repeated` tokens are those that stand one piece before them.
    """
    for piece in range(1, min(LONGEST_PIECE, len(ids) // copies) + 1):
        repeated = max(piece * (copies - 1), fewest_repeated)
        if len(ids) >= piece + repeated and ids[-repeated:] == ids[-repeated - piece : -piece]:
            return True
    return False
