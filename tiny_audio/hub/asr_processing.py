"""From waveform and text to model inputs: one place for training and inference alike.

Legend: S samples, L feature frames (mel) or samples (waveform), B batch, T tokens, C characters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AddedToken, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from .asr_audio import SAMPLING_RATE
from .asr_config import AUDIO_TOKEN, TinyAudioConfig
from .asr_encoders import (
    encoder_feature_kind,
    encoder_geometry,
    encoder_max_feature_length,
    encoder_output_length,
)
from .asr_losses import CTC_PADDING, IGNORE_LABEL, encode_ctc_text
from .asr_projectors import projector_output_length

MINIMUM_SAMPLES = 400  # 25 ms: one window of every front end; shorter clips are filled with zeros
DEFAULT_MAX_SECONDS = 30.0


def add_audio_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the placeholder, added to the vocabulary unless it is there."""
    token_id = tokenizer.get_vocab().get(AUDIO_TOKEN)
    if token_id is None:
        tokenizer.add_tokens([AddedToken(AUDIO_TOKEN, special=True, normalized=False)], special_tokens=True)
        token_id = tokenizer.get_vocab()[AUDIO_TOKEN]
    return token_id


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[str, str, str]:
    """The text before the audio, the text between audio and transcript, and the token that ends a transcript.

    A chat template is rendered once, here, with thinking switched off, and only its text is kept: templates that
    print today's date would otherwise give another prompt every day. A tokenizer without one gets the prompt as
    it is, behind its beginning-of-text token.

    Raises:
        ValueError: the prompt does not hold `<audio>` exactly once, or no end token is to be found.
    """
    if prompt.count(AUDIO_TOKEN) != 1:
        raise ValueError(f"model.prompt must hold {AUDIO_TOKEN} exactly once, got {prompt!r}")
    if getattr(tokenizer, "chat_template", None):
        question = [{"role": "user", "content": prompt}]
        rendered = tokenizer.apply_chat_template(
            question, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        # A template that strips or rewrites messages may have dropped the placeholder.
        if rendered.count(AUDIO_TOKEN) != 1:
            raise ValueError(f"the chat template does not keep {AUDIO_TOKEN} exactly once: {rendered!r}")
        answered = tokenizer.apply_chat_template(
            [*question, {"role": "assistant", "content": "TRANSCRIPT"}], tokenize=False, enable_thinking=False
        )
        after = tokenizer(answered.rpartition("TRANSCRIPT")[2].lstrip(), add_special_tokens=False).input_ids
        end = tokenizer.convert_ids_to_tokens(after[0]) if after else tokenizer.eos_token
    else:
        beginning = tokenizer.bos_token or ""
        rendered, end = beginning + prompt, tokenizer.eos_token
    if end is None:
        raise ValueError(
            "the tokenizer has neither an end-of-turn nor an end-of-text token to end a transcript with"
        )
    before, _, between = rendered.partition(AUDIO_TOKEN)
    return before, between, end


class TinyAudioProcessor(ProcessorMixin):
    """Turns waveforms and transcripts into examples, and examples into batches.

    Args:
        feature_extractor, tokenizer: those of the base models; the tokenizer holds `<audio>`.
        geometry: `asr_encoders.encoder_geometry` of the encoder.
        projector_type, stack_factor: what decides the number of audio tokens.
        prompt_before, prompt_between, end_token: see `render_prompt`.
        ctc_vocabulary: characters of the alignment head, or None.
        max_seconds: the longest clip that one pass takes.
        window_seconds: the longest window that long recordings are cut into: what the model has been trained on.
    """

    audio_token = AUDIO_TOKEN  # where transformers and vLLM look for it

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        geometry: dict[str, Any] | None = None,
        projector_type: str = "mlp",
        stack_factor: int = 4,
        prompt_before: str = "",
        prompt_between: str = "",
        end_token: str | None = None,
        ctc_vocabulary: str | None = None,
        max_seconds: float = DEFAULT_MAX_SECONDS,
        window_seconds: float | None = None,
        chat_template: str | None = None,
    ):
        self.geometry = geometry or {}
        self.projector_type = projector_type
        self.stack_factor = stack_factor
        self.prompt_before = prompt_before
        self.prompt_between = prompt_between
        self.end_token = end_token or tokenizer.eos_token
        self.ctc_vocabulary = ctc_vocabulary
        self.max_seconds = max_seconds
        self.window_seconds = min(window_seconds or max_seconds, max_seconds)
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        encode = self.tokenizer.convert_tokens_to_ids
        self.audio_token_id = encode(AUDIO_TOKEN)
        self.end_token_id = encode(self.end_token)
        self.pad_token_id = (
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_token_id
        )
        self._before_ids = self._text_ids(prompt_before)
        self._between_ids = self._text_ids(prompt_between)

    @classmethod
    def from_parts(
        cls, config: TinyAudioConfig, feature_extractor: Any, tokenizer: Any, prompt: str
    ) -> TinyAudioProcessor:
        """The processor of a new model. Raises ValueError for a prompt that cannot be used."""
        add_audio_token(tokenizer)
        before, between, end = render_prompt(tokenizer, prompt)
        longest = encoder_max_feature_length(config.audio_config)
        seconds = DEFAULT_MAX_SECONDS
        if longest is not None:
            seconds = min(seconds, longest * getattr(feature_extractor, "hop_length", 1) / SAMPLING_RATE)
        return cls(
            feature_extractor,
            tokenizer,
            geometry=encoder_geometry(config.audio_config),
            projector_type=config.projector_type,
            stack_factor=config.stack_factor,
            prompt_before=before,
            prompt_between=between,
            end_token=end,
            ctc_vocabulary=config.ctc_vocabulary,
            max_seconds=seconds,
        )

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        self.auto_map = {"AutoProcessor": "asr_processing.TinyAudioProcessor"}
        return super().save_pretrained(save_directory, **kwargs)

    @property
    def sampling_rate(self) -> int:
        return SAMPLING_RATE

    @property
    def model_input_names(self) -> list[str]:
        return ["input_features", "input_features_mask", "input_ids", "attention_mask"]

    def _text_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []

    # One clip ---------------------------------------------------------------------------------------------------

    def features(self, waveform: np.ndarray) -> Tensor:
        """A waveform (S,) in float32 at 16 kHz to features (n_mels, L), or (L,) for encoders that hear samples.

        Extracted for each clip alone: Whisper's log-mel floor and the normalisers' statistics would otherwise
        depend on the batch. Raises ValueError for what is not a finite mono waveform, or is longer than
        `max_seconds`.
        """
        waveform = np.asarray(waveform, dtype=np.float32)
        if waveform.ndim != 1:
            raise ValueError(f"expected a mono waveform of shape (samples,), got shape {waveform.shape}")
        if len(waveform) > self.max_seconds * SAMPLING_RATE:
            raise ValueError(
                f"the clip lasts {len(waveform) / SAMPLING_RATE:.1f} s; one pass takes at most {self.max_seconds:g} s"
            )
        if not np.isfinite(waveform).all():
            raise ValueError("the waveform holds samples that are not finite numbers (NaN or infinity)")
        if len(waveform) < MINIMUM_SAMPLES:
            waveform = np.pad(waveform, (0, MINIMUM_SAMPLES - len(waveform)))
        arguments: dict[str, Any] = {"sampling_rate": SAMPLING_RATE, "return_tensors": "pt"}
        is_whisper = type(self.feature_extractor).__name__ == "WhisperFeatureExtractor"
        if is_whisper:
            arguments |= {"padding": False, "truncation": False}  # stock pads to 30 s
        extracted = self.feature_extractor(waveform, **arguments)
        if encoder_feature_kind(self.geometry) == "waveform":
            return extracted["input_values"][0]  # (S,)
        features = extracted["input_features"][0]
        if not is_whisper:  # all others have time first; their shape does not tell where L is n_mels
            features = features.T.contiguous()  # (n_mels, L)
        if (
            "attention_mask" in extracted
        ):  # Parakeet's extractor computes a frame or two more than it vouches for
            features = features[:, : int(extracted["attention_mask"].sum())]
        return features

    def num_audio_tokens(self, feature_length: int, encoded: bool = False) -> int:
        """Audio tokens of so many feature frames or samples, or with `encoded` of so many encoder frames."""
        frames = feature_length if encoded else encoder_output_length(self.geometry, feature_length)
        return int(projector_output_length(self.projector_type, self.stack_factor, frames))

    def num_text_tokens(self, text: str) -> int:
        return len(self.label_ids(text))

    def prompt_ids(self, num_audio_tokens: int) -> list[int]:
        """The prompt with its placeholders: the very same for training and inference."""
        return [*self._before_ids, *[self.audio_token_id] * num_audio_tokens, *self._between_ids]

    def label_ids(self, text: str) -> list[int]:
        """What the decoder is to write: the transcript and the end token. Markup in a transcript stays text."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return [*ids, self.end_token_id]

    def assemble(self, features: Tensor, text: str | None, encoded: bool = False) -> dict[str, Any]:
        """Features and transcript (None at inference) to an example.

        With `encoded`, the features are encoder frames (D_e, F), and the model is to get what `collate` makes of them
        as `encoder_frames`.
        """
        prompt = self.prompt_ids(self.num_audio_tokens(features.shape[-1], encoded))
        if text is None:
            return {"input_features": features, "input_ids": prompt, "labels": None, "ctc_labels": None}
        answer = self.label_ids(text)
        return {
            "input_features": features,
            "input_ids": prompt + answer,
            "labels": [IGNORE_LABEL] * len(prompt) + answer,
            "ctc_labels": encode_ctc_text(text, self.ctc_vocabulary) if self.ctc_vocabulary else None,
        }

    def encode(self, waveform: np.ndarray, text: str | None = None) -> dict[str, Any]:
        """`assemble(features(waveform), text)`."""
        return self.assemble(self.features(waveform), text)

    # A batch ----------------------------------------------------------------------------------------------------

    def collate(self, examples: list[dict[str, Any]]) -> BatchFeature:
        """Examples to model inputs.

        With labels, text is padded on the right and needs no attention mask (see the model's forward); without, it is
        padded on the left, where generation goes on. Features are padded with zeros on the right.
        """
        features = [example["input_features"] for example in examples]
        lengths = torch.tensor([f.shape[-1] for f in features])
        padded = pad_sequence([f.movedim(-1, 0) for f in features], batch_first=True)  # (B, L, ...)
        batch: dict[str, Tensor] = {
            "input_features": padded.movedim(1, -1).contiguous(),  # (B, n_mels, L) or (B, L)
            "input_features_mask": torch.arange(int(lengths.max()))[None, :] < lengths[:, None],  # (B, L)
        }
        training = examples[0]["labels"] is not None
        side = "right" if training else "left"
        ids = [torch.tensor(example["input_ids"]) for example in examples]
        batch["input_ids"] = pad_sequence(ids, True, self.pad_token_id, padding_side=side)  # (B, T)
        if training:
            labels = [torch.tensor(example["labels"]) for example in examples]
            batch["labels"] = pad_sequence(labels, True, IGNORE_LABEL)  # (B, T)
            if examples[0]["ctc_labels"] is not None:
                characters = [torch.tensor(example["ctc_labels"], dtype=torch.long) for example in examples]
                batch["ctc_labels"] = pad_sequence(characters, True, CTC_PADDING)  # (B, C)
        else:
            ones = [torch.ones(len(row), dtype=torch.long) for row in ids]
            batch["attention_mask"] = pad_sequence(ones, True, 0, padding_side=side)  # (B, T)
        return BatchFeature(batch)

    def __call__(
        self,
        audio: np.ndarray | list[np.ndarray],
        text: str | list[str] | None = None,
        sampling_rate: int | None = None,
        return_text_replacement_offsets: bool = False,
        **_: Any,
    ) -> BatchFeature:
        """Model inputs of one or many waveforms; with `text`, labels too.

        With `return_text_replacement_offsets`, as vLLM calls it, `text` is one prompt with `<audio>` in it for each
        waveform, and comes back with as many placeholders as the waveform has audio tokens.

        Raises ValueError unless waveforms are at 16 kHz.
        """
        if sampling_rate is not None and sampling_rate != SAMPLING_RATE:
            raise ValueError(
                f"expected audio at {SAMPLING_RATE} Hz, got {sampling_rate} Hz: resample it first"
            )
        waveforms = [audio] if isinstance(audio, np.ndarray) and audio.ndim == 1 else list(audio)
        if return_text_replacement_offsets:
            return self._expand(text, waveforms)
        texts = [text] * len(waveforms) if text is None or isinstance(text, str) else list(text)
        if len(texts) != len(waveforms):
            raise ValueError(f"got {len(waveforms)} waveforms but {len(texts)} texts")
        return self.collate([self.encode(w, t) for w, t in zip(waveforms, texts, strict=True)])

    def _expand(self, text: Any, waveforms: list[np.ndarray]) -> BatchFeature:
        """A prompt with its placeholders, where each of them came from, and the features."""
        features = [self.features(waveform) for waveform in waveforms]
        placeholders = [AUDIO_TOKEN * self.num_audio_tokens(clip.shape[-1]) for clip in features]
        prompts = [text] if isinstance(text, str) else list(text)
        prompts, offsets = self.get_text_with_replacements(prompts, audio_replacements=placeholders)
        batch = self.collate([self.assemble(clip, None) for clip in features])
        ids = [self._text_ids(prompt) for prompt in prompts]
        inputs = {name: batch[name] for name in ("input_features", "input_features_mask")}
        return BatchFeature({"input_ids": ids, "text_replacement_offsets": offsets, **inputs})

    def batch_decode(self, token_ids: Any, **_: Any) -> list[str]:
        """Generated ids to transcripts."""
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]
