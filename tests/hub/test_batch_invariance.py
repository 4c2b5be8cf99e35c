"""A clip's transcript does not depend on its batch: every encoder family, from the waveform to the text.

By default a dozen clips of up to 4 s; `TINY_AUDIO_ALL_CLIPS=1` tries 60 clips of up to 30 s without a limit on tokens,
which takes some minutes for each family.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation import GenerationMixin

from tests.hub.encoder_towers import MEL_BINS, VARIANTS, every_variant, move_weights
from tests.tiny_models import SAMPLING_RATE, randomize, tiny_config
from tiny_audio.hub.asr_generation import TokenScores
from tiny_audio.hub.asr_longform import Recogniser
from tiny_audio.hub.asr_merging import Recognition
from tiny_audio.train.build import build_model

ALL_CLIPS = bool(os.environ.get("TINY_AUDIO_ALL_CLIPS"))
NUM_CLIPS, LONGEST_SECONDS = (60, 30.0) if ALL_CLIPS else (12, 4.0)
NEW_TOKENS = 10
LIMIT: dict[str, Any] = (
    {} if ALL_CLIPS else {"max_new_tokens": NEW_TOKENS}
)  # plain greedy, with all its short cuts
AUDIO_LOUDNESS = 5.0  # of the audio among the words of the prompt, so that it decides what is written
TOLERANCE = 1e-3  # of log-probabilities, in float32

EXTRACTORS = {
    "whisper": {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": MEL_BINS,
        "hop_length": 160,
        "chunk_length": 30,
    },
    "parakeet": {"feature_extractor_type": "ParakeetFeatureExtractor", "feature_size": MEL_BINS},
}
WAVEFORM_EXTRACTOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "do_normalize": True,
    "return_attention_mask": True,
}


@functools.lru_cache(1)
def family(variant: str) -> tuple[Any, Any]:
    """A whole random model around an encoder of this family, every weight away from where it starts."""
    config = tiny_config()
    changes = {"max_source_positions": 1500} if variant == "whisper" else {}
    config.model.encoder_config = VARIANTS[variant](**changes).to_diff_dict()
    config.model.feature_extractor = EXTRACTORS.get(variant, WAVEFORM_EXTRACTOR)
    model, processor = build_model(config)
    move_weights(model.model.audio_tower)
    randomize(model.model.language_model, "weight")
    with torch.no_grad():
        model.model.multi_modal_projector.output_norm.weight *= AUDIO_LOUDNESS
    return model.eval().requires_grad_(False), processor


def clips() -> list[np.ndarray]:
    """Sounds of 0.1 s to the longest, loud and quiet, of odd lengths, no two alike."""
    generator = np.random.default_rng(0)
    seconds = np.geomspace(0.1, LONGEST_SECONDS, NUM_CLIPS)
    found = []
    for number, second in enumerate(seconds):
        time = np.arange(round(second * SAMPLING_RATE) + number) / SAMPLING_RATE
        pitch = 100 + 300 * generator.random() + 200 * np.sin(2 * np.pi * generator.uniform(0.5, 4) * time)
        wave = (
            np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE) + generator.standard_normal(len(time)) * 0.2
        )
        found.append((wave * 10 ** generator.uniform(-3, -0.5)).astype(np.float32)[: int(30 * SAMPLING_RATE)])
    return [found[i] for i in generator.permutation(len(found))]


def texts(variant: str, waveforms: list[np.ndarray], batch_size: int) -> list[str]:
    recogniser = Recogniser(*family(variant), batch_size=batch_size, generate=LIMIT)
    results = list(recogniser.recognise([waveform] for waveform in waveforms))
    return [one.text for one in results if isinstance(one, Recognition)]


@every_variant
def test_texts_are_the_same_at_every_batch_size_and_in_any_order(variant: str) -> None:
    waveforms = clips()
    alone = texts(variant, waveforms, 1)
    assert len(set(alone)) > 2, "the model does not listen, and the test would not notice"
    for batch_size in (4, 16):
        assert texts(variant, waveforms, batch_size) == alone
    order = np.random.default_rng(1).permutation(NUM_CLIPS)
    assert texts(variant, [waveforms[i] for i in order], 4) == [alone[i] for i in order]


def scores(
    variant: str, waveforms: list[np.ndarray], forced: Tensor | None = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens, their log-probabilities (B, T), and what the alignment head hears in each clip's own frames."""
    model, processor = family(variant)
    batch = processor(waveforms)
    audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
    aligned = model.alignment(audio)
    chosen = TokenScores()
    ids = GenerationMixin.generate(
        model,
        inputs_embeds=model.model.splice(batch["input_ids"], audio),
        attention_mask=batch["attention_mask"],
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        logits_processor=chosen.as_list(),
    )
    heard = [row[:length] for row, length in zip(aligned, audio.frame_lengths.tolist(), strict=True)]
    return ids, chosen.finish(ids), heard


@every_variant
def test_log_probabilities_differ_by_less_than_a_thousandth(variant: str) -> None:
    waveforms = clips()[:16]
    ids, together, heard = scores(variant, waveforms)
    for row, waveform in enumerate(waveforms):
        own_ids, own, own_heard = scores(variant, [waveform])
        assert torch.equal(ids[row], own_ids[0])
        assert (together[row] - own[0]).abs().max().item() < TOLERANCE
        assert (heard[row] - own_heard[0]).abs().max().item() < TOLERANCE
