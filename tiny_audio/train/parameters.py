"""How many parameters each part of a run has and trains, counted on the meta device: no weight is loaded or made."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from tiny_audio import facts
from tiny_audio.errors import UserError, first_line
from tiny_audio.hub.asr_checkpoint import read_config
from tiny_audio.hub.asr_config import TinyAudioConfig
from tiny_audio.hub.asr_encoders import build_encoder
from tiny_audio.hub.asr_lora import LORA_MARK
from tiny_audio.hub.asr_modeling import TinyAudioForConditionalGeneration
from tiny_audio.hub.asr_processing import add_audio_token
from tiny_audio.train.architecture import architecture_of, blaming
from tiny_audio.train.build import additions, build_tokenizer, describe, freeze, freeze_heads_without_loss
from tiny_audio.train.config import resolve_model_path

# Where a parameter's name starts -> the part it is counted in. LoRA weights get a row of their own.
PARTS = {
    "model.audio_tower.": "encoder",
    "model.multi_modal_projector.": "projector",
    "model.language_model.": "decoder",
    "lm_head.": "decoder",
}
LOSS_HEADS = "CTC heads"  # the rest: alignment head and blank of the embedding loss
ORDER = ("encoder", "encoder LoRA", "projector", LOSS_HEADS, "decoder", "decoder LoRA")


@dataclass(frozen=True)
class PartParameters:
    part: str
    parameters: int
    trainable: int


def parameter_table(config: DictConfig) -> list[PartParameters]:
    """The parts of the model that `config` describes, with their sizes, and "total" as the last row.

    Raises:
        UserError: a named model's architecture is in no local folder, not in our facts, and no hub answers.
    """
    return _count(meta_model(config))


def count_parameters(
    architecture: TinyAudioConfig, freeze_encoder: bool, freeze_decoder: bool
) -> list[PartParameters]:
    """The parts of a model, counted as in `parameter_table`."""
    return _count(_on_meta(architecture, freeze_encoder, freeze_decoder))


def _count(model: TinyAudioForConditionalGeneration) -> list[PartParameters]:
    totals: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():  # tied weights come once
        part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), LOSS_HEADS)
        part += " LoRA" if LORA_MARK in f".{name}" else ""
        counts = totals.setdefault(part, [0, 0])
        counts[0] += parameter.numel()
        counts[1] += parameter.numel() if parameter.requires_grad else 0
    rows = [PartParameters(part, *totals[part]) for part in ORDER if part in totals]
    total = PartParameters("total", sum(row.parameters for row in rows), sum(row.trainable for row in rows))
    return [*rows, total]


def meta_model(
    config: DictConfig, architecture: TinyAudioConfig | None = None
) -> TinyAudioForConditionalGeneration:
    """The model that `config` describes, frozen where it says so, on the meta device: shapes without numbers.

    With the `architecture` of a model that is built already, nothing is read.

    Raises:
        UserError: a named model's architecture is in no local folder, not in our facts, and no hub answers.
    """
    if architecture is None:
        architecture = _architecture(config)
    try:
        model = _on_meta(architecture, config.model.freeze_encoder, config.model.freeze_decoder)
    except (ValueError, ImportError) as error:  # adapters or a projector that cannot be made
        raise UserError(str(error)) from error
    freeze_heads_without_loss(model, config)
    return model


def _on_meta(
    architecture: TinyAudioConfig, freeze_encoder: bool, freeze_decoder: bool
) -> TinyAudioForConditionalGeneration:
    with torch.device("meta"):
        # A copy: the towers keep their configs, and counting sets another attention in them.
        model = TinyAudioForConditionalGeneration(copy.deepcopy(architecture))
    freeze(model, freeze_encoder, freeze_decoder)
    return model


def print_parameter_table(config: DictConfig, console: Console | None = None) -> None:
    """Prints part, parameters, trainable ones and each part's share of those."""
    rows = parameter_table(config)
    table = Table(title="Parameters", title_justify="left")
    table.add_column("part")
    for heading in ("parameters", "trainable", "share of trainable"):
        table.add_column(heading, justify="right")
    for row in rows:
        share = row.trainable / max(rows[-1].trainable, 1)
        if row.part == "total":
            table.add_section()
        table.add_row(row.part, in_words(row.parameters), in_words(row.trainable), f"{share:.1%}")
    (console or Console()).print(table)


def in_words(number: int) -> str:
    """`121.6M`: three or four digits are what people compare."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.2f}B" if unit == "B" else f"{number / size:.1f}{unit}"
    return str(number)


def _architecture(config: DictConfig) -> TinyAudioConfig:
    if config.init_from:
        try:
            architecture = read_config(resolve_model_path(config.init_from))
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from error
        for name, value in additions(architecture, config).items():
            setattr(architecture, name, value)
        return architecture
    settings = config.model
    if settings.encoder_model_name:
        audio_config = _named_config(settings.encoder_model_name, settings.encoder_revision)
    else:
        audio_config = architecture_of("model.encoder_config", settings.encoder_config)
        with blaming("model.encoder_config"), torch.device("meta"):
            build_encoder(audio_config)
    if settings.decoder_model_name:
        text_config = _named_config(settings.decoder_model_name, settings.decoder_revision)
    else:
        size = _vocabulary_size(settings)
        text_config = architecture_of("model.decoder_config", settings.decoder_config, vocab_size=size)
        with blaming("model.decoder_config"), torch.device("meta"):
            AutoModel.from_config(text_config)
    return describe(config, audio_config, text_config)


def _named_config(name: str, revision: str | None) -> PreTrainedConfig:
    """The model's own config where it lies on this machine, else our facts about it, else the hub's."""
    path = resolve_model_path(name)
    if path == name and not Path(path).is_dir() and name in facts.known_models():
        return facts.model_config(name)
    try:
        return AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the config of the model {name}: {first_line(error)}") from error


def _vocabulary_size(settings: DictConfig) -> int:
    tokenizer = build_tokenizer(settings)
    add_audio_token(tokenizer)
    return len(tokenizer)
