"""Does the decoder listen? Its loss with the audio against its loss with another clip's audio.

A speech recogniser of this kind first learns to write plausible sentences, whatever is said; the loss falls nicely
meanwhile. Only when the two losses part does it hear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tiny_audio.hub.asr_losses import LossWeights

MAX_CLIPS = 32
# Nats a token. English text costs a small language model about 3 by itself and a few tenths with the audio.
LISTENS_FROM = 0.5
DEAF_BELOW = 0.1
EXPECTED_SHARE = 0.3  # of the decoder's steps: what listens at all has begun by then in every run of ours
FEW_STEPS = 300  # of the decoder; nano gives it 516


def listening_gap(model: Any, processor: Any, clips: Sequence[tuple[np.ndarray, str]]) -> float | None:
    """How much worse the decoder predicts transcripts when it is given another clip's audio, in nats a token.

    About 0 for a decoder that does not listen. None for fewer than two different texts.

    Args:
        model: in eval mode.
        clips: waveforms (S,) at 16 kHz with transcripts; the first `MAX_CLIPS` with a text are used.
    """
    chosen = [clip for clip in clips if clip[1].strip()][:MAX_CLIPS]
    if len({text for _, text in chosen}) < 2:
        return None
    features = [processor.features(waveform) for waveform, _ in chosen]
    texts = [text for _, text in chosen]
    shift = next(n for n in range(1, len(texts)) if any(texts[i] != texts[i - n] for i in range(len(texts))))
    own = _loss(model, processor, features, texts)
    return _loss(model, processor, features[-shift:] + features[:-shift], texts) - own


@torch.no_grad()
def _loss(model: Any, processor: Any, features: Sequence[torch.Tensor], texts: Sequence[str]) -> float:
    """The language model's loss per token."""
    examples = [processor.assemble(f, text) for f, text in zip(features, texts, strict=True)]
    batch = {name: value.to(model.device) for name, value in processor.collate(examples).items()}
    return float(model(**batch, loss_weights=LossWeights()).loss)


class ListeningMonitor:
    """Says once when the decoder has started to listen, and raises the alarm once when it has not in time.

    Args:
        first_step, max_steps: between which the decoder trains.
        has_alignment_losses: whether either CTC loss is on.
    """

    def __init__(self, first_step: int, max_steps: int, has_alignment_losses: bool) -> None:
        self._expected_step = first_step + round(EXPECTED_SHARE * (max_steps - first_step))
        self._has_alignment_losses = has_alignment_losses
        self._decoder_steps = max_steps - first_step
        self._listens = self._has_warned = False

    def look(self, step: int, gap: float) -> str | None:
        """What there is to say after `step`, given the gap that was measured."""
        if gap >= LISTENS_FROM and not self._listens:
            self._listens = True
            return f"step {step}: the model has started to listen: another clip's audio costs {gap:.2f} nats a token"
        if gap < DEAF_BELOW and step >= self._expected_step and not (self._listens or self._has_warned):
            self._has_warned = True
            return f"step {step}: THE MODEL DOES NOT LISTEN. {self._causes(gap)}"
        return None

    def _causes(self, gap: float) -> str:
        causes = [
            "transcripts that do not belong to their audio (tiny-audio data inspect)",
            "training.learning_rate, the projector's, too low or so high that the loss jumps",
        ]
        if self._decoder_steps < FEW_STEPS:
            causes.insert(
                0, f"training.max_steps leaves the decoder {self._decoder_steps} steps, too few to tell"
            )
        if not self._has_alignment_losses:
            causes.insert(
                0, "ctc.weight and ctc.embedding_weight are 0: alignment alone takes hours to emerge"
            )
        return (
            f"Another clip's audio costs it only {gap:.2f} nats a token, where {LISTENS_FROM:g} are expected by now: it"
            f" writes likely sentences, whatever is said. Likely causes: {'; '.join(causes)}."
        )
