"""Any speech recogniser of transformers: sequence to sequence (Whisper, Moonshine...) or CTC (wav2vec 2.0, HuBERT...).

Greedy, in English where a model knows more languages, and without transformers' pipeline, which needs ffmpeg.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from tiny_audio.devices import check_device
from tiny_audio.errors import UserError
from tiny_audio.evaluate.providers import (
    SAMPLING_RATE,
    Waveform,
    describe_failure,
    find_model,
    identify_model,
)

LANGUAGE = "en"
# Memory of attention grows with the square of the length; Whisper alone cuts its input into windows.
MAX_SECONDS = 120.0
# Of a seq2seq model that does not say how many positions its decoder has. Speech is about 5 tokens a second.
MAX_POSITIONS = 448
NUM_PROMPT_TOKENS = 4  # Whisper's: start, language, task, no timestamps
# Whisper's remedy against loops, with the numbers of its paper (Radford et al. 2022, section 4.5): a text that gzip
# makes this much shorter repeats itself, and is drawn anew at rising temperatures until one does not.
LOOP_COMPRESSION = 2.4
FALLBACK_TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)


class TransformersProvider(ABC):
    """What a seq2seq and a CTC model have in common.

    Args:
        model: in eval mode, on its device.
        feature_extractor, tokenizer: as transformers loads them.
        source: what `identify_model` says of the files that they come from.
    """

    costs_money = False
    price_usd_per_hour: float | None = None
    max_seconds: float | None = MAX_SECONDS
    decoding = "greedy"

    def __init__(self, model: Any, feature_extractor: Any, tokenizer: Any, source: str) -> None:
        self.model = model
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer
        self.source = source

    @cached_property
    def identity(self) -> str:
        import transformers

        words = (self.source, transformers.__version__, self.model.dtype, self.model.device.type, LANGUAGE)
        return f"transformers {' '.join(map(str, words))} {self.decoding}"

    def extract(self, waveforms: list[Waveform], **options: Any) -> dict[str, Any]:
        """Features of a batch as the model takes them: padded, with a mask where the model has use for one."""
        import torch

        features = self.feature_extractor(
            waveforms, sampling_rate=SAMPLING_RATE, return_tensors="pt", **{"padding": True, **options}
        )
        return {
            name: value.to(self.model.device, self.model.dtype if torch.is_floating_point(value) else None)
            for name, value in features.items()
        }

    def can_batch(self) -> bool:
        """Whether padding does not change what is heard.

        An extractor that makes no mask belongs to a model that normalises over time, padding included (the
        "group" variants of wav2vec 2.0 and HuBERT).
        """
        return bool(getattr(self.feature_extractor, "return_attention_mask", False))

    def transcribe(self, waveforms: list[Waveform]) -> list[str | Exception]:
        import torch

        with torch.inference_mode():
            if self.can_batch():
                return list(self.transcribe_batch(waveforms))
            return [text for waveform in waveforms for text in self.transcribe_batch([waveform])]

    @abstractmethod
    def transcribe_batch(self, waveforms: list[Waveform]) -> list[str]:
        """One transcript per waveform of a batch that padding does not change."""


class Seq2SeqProvider(TransformersProvider):
    """A model that writes text token by token."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.model.generation_config.max_length = None  # `options` sets the limit in another way

    @property
    def options(self) -> dict[str, Any]:
        positions = min(getattr(self.model.config, "max_target_positions", MAX_POSITIONS), MAX_POSITIONS)
        return {"do_sample": False, "num_beams": 1, "max_new_tokens": positions - NUM_PROMPT_TOKENS}

    def transcribe_batch(self, waveforms: list[Waveform]) -> list[str]:
        return self.write(self.extract(waveforms), self.options)

    def write(self, features: dict[str, Any], options: dict[str, Any]) -> list[str]:
        tokens = self.model.generate(**features, **options)
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]


class WhisperProvider(Seq2SeqProvider):
    """Whisper hears windows of 30 s, padded to that length, so its batches are exact.

    Greedy, but for texts that repeat themselves (`LOOP_COMPRESSION`). Longer clips go through its own sequential
    long form (Radford et al. 2022, section 4.5), one at a time and without that remedy.
    """

    max_seconds: float | None = None
    decoding = "greedy, loops drawn anew"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        complete_generation_config(self.model, self.tokenizer)

    @property
    def options(self) -> dict[str, Any]:
        language = {"language": LANGUAGE, "task": "transcribe"} if is_multilingual(self.tokenizer) else {}
        return {**super().options, **language}

    def transcribe(self, waveforms: list[Waveform]) -> list[str | Exception]:
        import torch

        window = self.feature_extractor.n_samples
        short = [index for index, waveform in enumerate(waveforms) if len(waveform) <= window]
        results: dict[int, str] = {}
        with torch.inference_mode():
            if short:
                features = self.extract(
                    [waveforms[index] for index in short], padding="max_length", return_attention_mask=True
                )
                results.update(zip(short, self.write_short(features), strict=True))
            for index in results.keys() ^ range(len(waveforms)):
                features = self.extract(
                    [waveforms[index]], padding="longest", truncation=False, return_attention_mask=True
                )
                (results[index],) = self.write(features, {**self.options, "return_timestamps": True})
        return [results[index] for index in range(len(waveforms))]

    def write_short(self, features: dict[str, Any]) -> list[str]:
        texts = self.write(features, self.options)
        for index, text in enumerate(texts):
            if repeats_itself(text):
                alone = {name: value[index : index + 1] for name, value in features.items()}
                texts[index] = self.draw_anew(alone)
        return texts

    def draw_anew(self, features: dict[str, Any]) -> str:
        """The text of one clip by sampling: the first that does not repeat itself, else the last."""
        import torch

        text = ""
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same text every time, whatever else is in the batch
            for temperature in FALLBACK_TEMPERATURES:
                options = {**self.options, "do_sample": True, "temperature": temperature}
                (text,) = self.write(features, options)
                if not repeats_itself(text):
                    break
        return text


class CTCProvider(TransformersProvider):
    """A model that names a character, or nothing, for each frame."""

    def can_batch(self) -> bool:
        """As its base, where the model also says how many of its frames are of a clip and how many of padding."""
        return super().can_batch() and hasattr(self.model, "_get_feat_extract_output_lengths")

    def transcribe_batch(self, waveforms: list[Waveform]) -> list[str]:
        features = self.extract(waveforms)
        tokens = self.model(**features).logits.argmax(dim=-1)  # (B, F)
        lengths = [tokens.shape[1]] * len(waveforms)
        if len(waveforms) > 1:
            mask = features["attention_mask"]  # (B, S) for waveforms
            lengths = self.model._get_feat_extract_output_lengths(mask.sum(dim=-1)).tolist()
        return [self.read(row[:length]) for row, length in zip(tokens.tolist(), lengths, strict=True)]

    def read(self, tokens: list[int]) -> str:
        """The text of a frame-by-frame choice; the tokenizer joins repeats, then leaves out blanks.

        Its `skip_special_tokens` would leave out the blanks first, which turns "hello" into "helo" (transformers
        5.23): other special tokens are made blanks here instead.
        """
        tokenizer = self.tokenizer
        ordinary = {tokenizer.pad_token_id, getattr(tokenizer, "word_delimiter_token_id", None)}
        special = set(tokenizer.all_special_ids) - ordinary
        row = [tokenizer.pad_token_id if token in special else token for token in tokens]
        return tokenizer.decode(row, skip_special_tokens=False).strip()


def load_transformers(
    model: str, device: str, trust_remote_code: bool, dtype: str = "auto"
) -> TransformersProvider:
    """The recogniser in a folder, below $TINY_AUDIO_MODELS, or on the hub.

    Raises UserError for what is no speech recogniser, lacks weights, or needs code of its own to be trusted.
    """
    from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer, PreTrainedConfig
    from transformers.utils import logging

    from tiny_audio.hub.asr_checkpoint import pick_device
    from tiny_audio.hub.asr_config import TinyAudioConfig, resolve_model_path

    check_device(device)
    where = find_model(resolve_model_path(model))
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its advice to developers, once a batch, would hide the progress
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        if PreTrainedConfig.get_config_dict(where)[0].get("model_type") == TinyAudioConfig.model_type:
            raise UserError(f"{model} is a Tiny Audio model; leave out --provider transformers.")
        config = AutoConfig.from_pretrained(where, **options)
        kind, model_class = find_kind(config, model)
        extractor = AutoFeatureExtractor.from_pretrained(where, **options)
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        place = pick_device(device)
        network, report = model_class.from_pretrained(
            where,
            dtype="float32" if dtype == "auto" and place.type != "cuda" else dtype,
            output_loading_info=True,
            **options,
        )
    except UserError:
        raise
    except Exception as error:  # files of any content, and code of any kind once it is trusted
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise UserError(
                f"{model} comes with Python code of its own, which would run on this machine."
                " Read it, and if you trust it repeat the command with --trust-remote-code."
            ) from error
        raise UserError(f"Cannot load the model {model}: {describe_failure(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"{model} lacks {len(missing)} weights of a {type(network).__name__}, such as {missing[0]}: it is not"
            " a finished speech recogniser (a model that was only pretrained must be fine-tuned first)."
        )
    if extractor.sampling_rate != SAMPLING_RATE:
        raise UserError(f"{model} hears {extractor.sampling_rate} Hz; clips are read at {SAMPLING_RATE} Hz.")
    return kind(network.to(place).eval(), extractor, tokenizer, identify_model(where))


def find_kind(config: Any, model: str) -> tuple[type[TransformersProvider], Any]:
    """How a model is run, by its config, and the class that loads it. Raises UserError for what is no recogniser."""
    from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CTC_MAPPING_NAMES,
        MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
        MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    )

    own_classes = getattr(config, "auto_map", None) or {}
    if config.model_type == "whisper":
        return WhisperProvider, AutoModelForSpeechSeq2Seq
    if config.model_type in MODEL_FOR_CTC_MAPPING_NAMES or "AutoModelForCTC" in own_classes:
        return CTCProvider, AutoModelForCTC
    if config.model_type in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        if MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING[type(config)].main_input_name == "input_ids":
            raise UserError(
                f"{model} ({config.model_type}) wants a written prompt beside the audio, which this provider does"
                ' not write; run it by a program of your own: --provider "cmd: PROGRAM".'
            )
        return Seq2SeqProvider, AutoModelForSpeechSeq2Seq
    if "AutoModelForSpeechSeq2Seq" in own_classes:
        return Seq2SeqProvider, AutoModelForSpeechSeq2Seq
    raise UserError(
        f"{model} is a {config.model_type} model, which transformers does not know as a speech recogniser."
    )


def repeats_itself(text: str) -> bool:
    """Whether a text is a loop, by how well it can be compressed."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) > LOOP_COMPRESSION


def is_multilingual(tokenizer: Any) -> bool:
    """Whether a Whisper was trained on more than English: its tokenizer then has a token for the language."""
    return f"<|{LANGUAGE}|>" in tokenizer.get_vocab()


def complete_generation_config(model: Any, tokenizer: Any) -> None:
    """Give a Whisper the ids of its special tokens where its generation_config.json is too old to have them."""
    vocabulary = tokenizer.get_vocab()
    settings = model.generation_config
    defaults: dict[str, Any] = {"is_multilingual": is_multilingual(tokenizer)}
    if is_multilingual(tokenizer):
        defaults["lang_to_id"] = {f"<|{LANGUAGE}|>": vocabulary[f"<|{LANGUAGE}|>"]}
        defaults["task_to_id"] = {"transcribe": vocabulary["<|transcribe|>"]}
    if "<|notimestamps|>" in vocabulary:
        defaults["no_timestamps_token_id"] = vocabulary["<|notimestamps|>"]
    for name, value in defaults.items():
        if getattr(settings, name, None) is None:
            setattr(settings, name, value)
