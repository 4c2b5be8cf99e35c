"""Prompts, labels and batches: the same tokens for training and inference, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_models import CLIPS, examples, noise, tiny_model
from tiny_audio.hub.asr_losses import IGNORE_LABEL
from tiny_audio.hub.asr_processing import TinyAudioProcessor, add_audio_token, render_prompt
from tiny_audio.train.build import build_model, byte_tokenizer
from tiny_audio.train.config import compose_config

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def chat_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHATML
    return tokenizer


def test_training_and_inference_share_every_prompt_token() -> None:
    _, processor = tiny_model("model.prompt='Listen: <audio> Write:'")
    for seconds, text in CLIPS:
        training = processor.encode(noise(seconds), text)
        inference = processor.encode(noise(seconds))
        prompt_length = training["labels"].count(IGNORE_LABEL)
        assert training["input_ids"][:prompt_length] == inference["input_ids"]
        assert training["labels"][prompt_length:] == training["input_ids"][prompt_length:]
        assert training["labels"][prompt_length:] == processor.label_ids(text)


def test_number_of_placeholders_is_what_the_model_makes() -> None:
    model, processor = tiny_model()
    for num_samples in [1, 399, 400, 401, 640, 5000, 16000, 16001, 100_000]:
        batch = processor(noise(1)[:1].repeat(num_samples))
        made = model.get_audio_features(batch["input_features"], batch["input_features_mask"]).pooler_output
        assert len(made) == int((batch["input_ids"] == processor.audio_token_id).sum()) > 0


def test_chat_template_is_rendered_once_without_thinking() -> None:
    tokenizer = chat_tokenizer()
    add_audio_token(tokenizer)
    before, between, end = render_prompt(tokenizer, "Transcribe: <audio>")
    assert before == "<|im_start|>user\nTranscribe: "
    assert between == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert end == "<|im_end|>"


def test_prompt_of_a_tokenizer_without_template_is_plain() -> None:
    assert render_prompt(byte_tokenizer(), "Say <audio> now:") == ("<bos>Say ", " now:", "<eos>")


@pytest.mark.parametrize("prompt", ["no placeholder", "<audio> twice <audio>"])
def test_prompt_needs_the_placeholder_once(prompt: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        render_prompt(byte_tokenizer(), prompt)


def test_audio_token_is_reused() -> None:
    tokenizer = byte_tokenizer()
    first = add_audio_token(tokenizer)
    size = len(tokenizer)
    assert add_audio_token(tokenizer) == first == size - 1
    assert len(tokenizer) == size
    assert tokenizer("a<audio>b").input_ids.count(first) == 1


def test_markup_in_a_transcript_stays_text() -> None:
    _, processor = tiny_model()
    ids = processor.label_ids("say <audio> or <eos>")
    assert processor.audio_token_id not in ids
    assert ids.count(processor.end_token_id) == 1 and ids[-1] == processor.end_token_id
    assert processor.batch_decode([ids]) == ["say <audio> or <eos>"]


def test_byte_tokenizer_writes_any_text() -> None:
    _, processor = tiny_model()
    for text in ["one two", "naïve café", "日本語 🎧", "  a   b  "]:
        assert processor.batch_decode([processor.label_ids(text)]) == [text.strip()]


def test_save_and_load_keeps_everything(tmp_path: Path) -> None:
    _, processor = tiny_model()
    processor.save_pretrained(tmp_path)
    again = TinyAudioProcessor.from_pretrained(tmp_path)
    left, right = examples(processor)[0], examples(again)[0]
    assert torch.equal(left.pop("input_features"), right.pop("input_features"))
    assert left == right
    assert again.max_seconds == processor.max_seconds


def test_training_pads_right_and_inference_left() -> None:
    _, processor = tiny_model()
    training = processor.collate(examples(processor))
    assert "attention_mask" not in training
    assert (training["labels"][:, -1] == IGNORE_LABEL).any()
    inference = processor.collate([processor.encode(noise(s)) for s, _ in CLIPS])
    assert inference["attention_mask"][:, -1].all()
    assert not inference["attention_mask"][:, 0].all()
    assert not inference["input_features"].movedim(1, -1)[~inference["input_features_mask"]].any()


@pytest.mark.parametrize(
    ("waveform", "words"),
    [
        (np.zeros((2, 16000), np.float32), "mono"),
        (np.full(16000, np.nan, np.float32), "not finite"),
        (np.zeros(31 * 16000, np.float32), "at most 30 s"),
    ],
)
def test_unusable_waveforms_are_refused(waveform: np.ndarray, words: str) -> None:
    _, processor = tiny_model()
    with pytest.raises(ValueError, match=words):
        processor.features(waveform)


def test_wrong_rate_and_unequal_lists_are_refused() -> None:
    _, processor = tiny_model()
    with pytest.raises(ValueError, match="16000 Hz, got 8000 Hz"):
        processor(noise(1), sampling_rate=8000)
    with pytest.raises(ValueError, match="2 waveforms but 1 texts"):
        processor([noise(1), noise(1)], text=["one"])


def test_silence_and_the_shortest_clips_work() -> None:
    model, processor = tiny_model()
    batch = processor([np.zeros(1, np.float32), np.zeros(16000, np.float32)], text=["", ""])
    assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize("kind", ["whisper", "parakeet"])
def test_clips_with_as_many_frames_as_mel_bins_are_no_exception(kind: str) -> None:
    """Square features look alike either way up."""
    _, processor = tiny_model() if kind == "whisper" else build_model(compose_config([]))  # nano's
    bins = processor.feature_extractor.feature_size
    hop = processor.feature_extractor.hop_length
    sound = noise(1.5 * hop * bins / 16000) * np.linspace(
        0.1, 1.0, 24000 * hop * bins // 16000, dtype=np.float32
    )
    before, *square, after = (
        processor.features(sound[: hop * bins + extra]) for extra in (-3 * hop, -hop // 2, 0, 3 * hop)
    )
    assert {len(part) for part in (before, *square, after)} == {bins}
    for part in square:
        pair = torch.stack([part[:, : bins - 4].flatten(), after[:, : bins - 4].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.9
