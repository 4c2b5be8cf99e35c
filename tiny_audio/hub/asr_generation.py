"""Generation of transcripts: the audio is encoded once, and no clip writes more than can be said in its length.

Legend: B batch, L feature frames (mel) or samples (waveform), T text tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerationMixin, StoppingCriteria, StoppingCriteriaList

# Characters of fast English speech come at about 20 a second, tokens of a word vocabulary at about 6. A transcript
# that outgrows this allowance is a loop, not speech.
BYTE_TOKENS_PER_SECOND = 30.0
WORD_TOKENS_PER_SECOND = 12.0
BYTE_VOCABULARY_LIMIT = 1000
MINIMUM_NEW_TOKENS = 16


class TranscriptGeneration(GenerationMixin):
    """`generate` and what belongs to it; mixed into the model with its head."""

    config: Any
    model: Any

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        **kwargs: Any,
    ) -> Any:
        """Token ids of the transcripts, `(B, new tokens)` without the prompt.

        Takes all of `GenerationMixin.generate`'s options. The audio is encoded once, whatever the number of
        beams. Without `max_new_tokens` or `max_length`, each clip may grow to what can be said in its own
        length, independent of its batch mates.
        """
        if input_features is None:
            return super().generate(
                input_ids, attention_mask=attention_mask, stopping_criteria=stopping_criteria, **kwargs
            )
        assert input_ids is not None, "audio comes with a prompt: give input_ids"
        assert input_features_mask is not None, "input_features come with their input_features_mask"
        audio = self.get_audio_features(input_features, input_features_mask)
        assert audio.frame_lengths is not None
        embeddings = self.model.splice(input_ids, audio)
        given = kwargs.get("generation_config")
        if not any(kwargs.get(key) or getattr(given, key, None) for key in ("max_new_tokens", "max_length")):
            limits = self.new_token_limits(audio.frame_lengths)
            kwargs["max_new_tokens"] = int(limits.max())
            stopping_criteria = StoppingCriteriaList([*(stopping_criteria or []), ClipLengthCriteria(limits)])
        return super().generate(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            stopping_criteria=stopping_criteria,
            **kwargs,
        )

    def new_token_limits(self, frame_lengths: Tensor) -> Tensor:
        """(B,) tokens that speech of each clip's length can hold."""
        bytewise = self.config.text_config.vocab_size < BYTE_VOCABULARY_LIMIT
        per_second = BYTE_TOKENS_PER_SECOND if bytewise else WORD_TOKENS_PER_SECOND
        seconds = frame_lengths * self.config.frame_seconds
        return MINIMUM_NEW_TOKENS + (seconds * per_second).ceil().long()


class ClipLengthCriteria(StoppingCriteria):
    """Ends each clip at its own number of new tokens, `limits (B,)`; beams of a clip lie next to each other."""

    def __init__(self, limits: Tensor):
        self.limits = limits

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        limits = self.limits.to(input_ids.device).repeat_interleave(len(input_ids) // len(self.limits))
        return input_ids.shape[1] >= limits
