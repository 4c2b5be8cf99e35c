"""The architecture of a Tiny Audio model as one JSON-able object, and where its base models are found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

FORMAT_VERSION = 1
AUDIO_TOKEN = "<audio>"

# Characters of the alignment head: what English transcripts hold after lower-casing.
DEFAULT_CTC_VOCABULARY = " 'abcdefghijklmnopqrstuvwxyz0123456789"


class TinyAudioConfig(PreTrainedConfig):
    """An audio encoder, a projector and a causal language model.

    Architecture only: learning rates, loss weights and data are the training config's. A checkpoint holds every
    weight (`encoder_in_checkpoint` and `decoder_in_checkpoint`), or leaves the frozen weights of a tower to
    the base model that it names; then `encoder_base` / `decoder_base` say which one, at which revision and
    with which fingerprint.

    Args:
        audio_config, text_config: configs of the towers (any encoder family of `asr_encoders`, any causal LM).
        projector_type: an entry of `asr_projectors.PROJECTORS`.
        stack_factor: encoder frames per audio token.
        projector_hidden_size: inner width of the projector.
        projector_activation: name of the inner activation; None takes the projector's own default.
        frame_seconds: time from one encoder frame to the next.
        audio_token_id: id of the placeholder that audio tokens replace.
        ctc_vocabulary: characters of the alignment head (blank is index 0, the first character 1); None for no head.
        embedding_ctc: whether the blank of the embedding loss is part of the model, which then hears text tokens.
        ctc_decoding_weight: of what is heard beside the decoder when a token is chosen (`asr_joint`); 0: decoder alone.
        encoder_lora, decoder_lora: None, or `{"r", "lora_alpha", "lora_dropout", "target_modules",
            "use_rslora", "use_dora"}`.
        encoder_base, decoder_base: None, or `{"name", "revision", "fingerprint"}`.
    """

    model_type = "tiny_audio"
    sub_configs: ClassVar[dict[str, Any]] = {"audio_config": AutoConfig, "text_config": AutoConfig}

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projector_type: str = "mlp"
    stack_factor: int = 4
    projector_hidden_size: int = 2048
    projector_activation: str | None = None
    frame_seconds: float = 0.02
    audio_token_id: int | None = None
    ctc_vocabulary: str | None = DEFAULT_CTC_VOCABULARY
    embedding_ctc: bool = False
    ctc_decoding_weight: float = 0.3
    encoder_lora: dict | None = None
    decoder_lora: dict | None = None
    encoder_base: dict | None = None
    decoder_base: dict | None = None
    encoder_in_checkpoint: bool = True
    decoder_in_checkpoint: bool = True
    format_version: int = FORMAT_VERSION
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        towers = (_as_config(self.audio_config, "whisper"), _as_config(self.text_config, "llama"))
        self.audio_config, self.text_config = towers
        self.tie_word_embeddings = bool(towers[1].tie_word_embeddings)
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"this checkpoint has format_version {self.format_version}; this code reads up to {FORMAT_VERSION}: "
                "update tiny-audio, or load it with trust_remote_code=True to use the code it carries"
            )
        chosen = [tower._attn_implementation for tower in towers]
        super().__post_init__(**kwargs)
        for tower, implementation in zip(towers, chosen, strict=True):
            if implementation is not None:  # of a tower that exists already; the base class has just reset it
                tower._attn_implementation = implementation

    @property
    def is_merged(self) -> bool:
        """Whether the checkpoint stands alone: all weights inside, no LoRA left beside them."""
        complete = self.encoder_in_checkpoint and self.decoder_in_checkpoint
        return complete and self.encoder_lora is None and self.decoder_lora is None


def _as_config(value: dict | PreTrainedConfig | None, default_model_type: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    value = dict(value or {})
    model_type = value.pop("model_type", default_model_type)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"transformers knows no model type {model_type!r}; is it newer than the one installed?"
        )
    return CONFIG_MAPPING[model_type](**value)


def resolve_model_path(name_or_path: str) -> str:
    """Where a base model lies: a local folder, a folder below `$TINY_AUDIO_MODELS`, or else the hub id itself."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    models_folder = os.environ.get("TINY_AUDIO_MODELS")
    if models_folder:
        candidate = Path(models_folder).expanduser() / name_or_path
        if candidate.is_dir():
            return str(candidate)
    return name_or_path
