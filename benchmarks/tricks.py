"""The tricks that `inference.py` switches on one by one, and how each side turns clips into tokens.

Legend: B batch, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sized_models import stock_prompt
from transformers.generation import GenerationMixin

from tiny_audio.hub.asr_drafting import share_prompt, write_from_draft

TOKENS_PER_SECOND = 3.3  # English speech with a vocabulary of words
WHISPER_SECONDS = 30


@dataclass(frozen=True)
class Tricks:
    """What one step of the ladder has switched on."""

    audio_tokens_at_length: bool = True  # else 375 of them, as for 30 s
    encoder_at_length: bool = True  # else the encoder runs over 30 s
    last_logits_only: bool = True  # else the prompt's logits are computed, and thrown away
    prompt_once: bool = True  # else each clip's copy of the prompt is read by itself


LADDER = {
    "padded to 30 s, every trick off": Tricks(False, False, False, False),
    "+ logits of the last position only": Tricks(False, False, True, False),
    "+ audio tokens at the clip's length": Tricks(True, False, True, False),
    "+ encoder at the clip's length": Tricks(True, True, True, False),
    "+ prompt read once for the batch": Tricks(True, True, True, True),
}
BASELINE, UNPADDED, OURS = (list(LADDER)[i] for i in (0, 3, 4))


@torch.inference_mode()
def transcribe(model: Any, processor: Any, clips: list[np.ndarray], new_tokens: int, tricks: Tricks) -> Any:
    """Waveforms to the ids of `new_tokens` tokens each, (B, new tokens)."""
    examples = [processor.encode(clip) for clip in clips]
    if not tricks.encoder_at_length:
        for example, clip in zip(examples, clips, strict=True):
            padded = np.pad(clip, (0, WHISPER_SECONDS * 16000 - len(clip)))
            tokens = example["input_ids"]
            example |= processor.encode(padded)
            if tricks.audio_tokens_at_length:
                example["input_ids"] = tokens
    batch = processor.collate(examples)
    audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
    input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
    if tricks.audio_tokens_at_length and not tricks.encoder_at_length:
        wanted = (input_ids == processor.audio_token_id).sum(dim=1)  # (B,)
        tokens_per_clip = audio.pooler_output.split(audio.token_lengths.tolist())
        kept = [rows[:count] for rows, count in zip(tokens_per_clip, wanted.tolist(), strict=True)]
        audio.pooler_output = torch.cat(kept)
    embeddings = model.model.splice(input_ids, audio)
    options: dict[str, Any] = {"logits_to_keep": int(tricks.last_logits_only)}
    if tricks.prompt_once:
        embeddings, attention_mask, cache = share_prompt(model, input_ids, embeddings, attention_mask)
        if cache is not None:
            options["past_key_values"] = cache
    return GenerationMixin.generate(
        model,
        inputs_embeds=embeddings,
        attention_mask=attention_mask,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        **options,
    )


@torch.inference_mode()
def transcribe_stock(
    model: Any, processor: Any, clips: list[np.ndarray], new_tokens: int, own_prompt: bool
) -> Any:
    """The same by the stock model, which returns the prompt too."""
    batch = processor(text=[stock_prompt(own_prompt)] * len(clips), audio=clips)
    batch.pop("num_audio_tokens", None)
    return model.generate(**batch, min_new_tokens=new_tokens, max_new_tokens=new_tokens)


@torch.inference_mode()
def transcribe_drafted(model: Any, processor: Any, clip: np.ndarray, draft: list[int]) -> list[int]:
    """One clip checked against `draft`, as many tokens as it has."""
    batch = processor([clip])
    audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
    embeddings = model.model.splice(batch["input_ids"], audio)
    return write_from_draft(model, embeddings, draft, len(draft), ())


def new_tokens_for(seconds: float) -> int:
    return round(seconds * TOKENS_PER_SECOND)
