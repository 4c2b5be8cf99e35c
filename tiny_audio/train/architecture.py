"""Towers that the config describes: checked against the installed transformers, which accepts nearly anything."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import (
    CONFIG_MAPPING,
    ParakeetFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from tiny_audio.errors import UserError, nearest

FEATURE_EXTRACTORS = {
    kind.__name__: kind
    for kind in (WhisperFeatureExtractor, Wav2Vec2FeatureExtractor, ParakeetFeatureExtractor)
}
# What the base class of all of them takes besides.
COMMON_KEYS = {"padding_side", "return_attention_mask"}
LONGEST_CAUSE = 300  # characters of what a library says


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """Whatever is raised inside comes from the values of `key`: a UserError says so in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries raise all kinds
        cause = str(error) if not isinstance(error, KeyError) else repr(error)
        cause = textwrap.shorten(cause, LONGEST_CAUSE, placeholder="...")
        raise UserError(
            f"{key} describes nothing that can be built: {cause or type(error).__name__}"
        ) from error


def architecture_of(key: str, values: DictConfig, **fixed: Any) -> Any:
    """The transformers config that the table `values` describes, with some values `fixed`."""
    arguments = {**OmegaConf.to_container(values, resolve=True), **fixed}  # type: ignore[dict-item]
    with blaming(key):
        return CONFIG_MAPPING[arguments.pop("model_type")](**arguments)


def check_architecture(key: str, values: DictConfig) -> None:
    """Checks keys against transformers' config class, which itself accepts any key in silence, and builds it."""
    if not values:
        name = key.replace("_config", "_model_name")
        raise UserError(f"{name}=null: name a model, or describe one with random weights in {key}")
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        hint = nearest(str(model_type), CONFIG_MAPPING.keys())
        raise UserError(
            f"{key}.model_type={model_type}: not a model type of the installed transformers.{hint}"
        )
    config_class = CONFIG_MAPPING[model_type]
    known = {entry.name for entry in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    for name in map(str, values):
        if name != "model_type" and name not in known:
            raise UserError(f'{model_type} has no config key "{name}" ({key}.{name}).{nearest(name, known)}')
    architecture_of(key, values)


def feature_extractor_of(values: DictConfig) -> Any:
    """The feature extractor that the table `model.feature_extractor` describes. Raises UserError for what it is not."""
    key = "model.feature_extractor"
    arguments: dict[str, Any] = {str(name): value for name, value in OmegaConf.to_container(values).items()}  # type: ignore[union-attr]
    name = arguments.pop("feature_extractor_type", None)
    if name not in FEATURE_EXTRACTORS:
        raise UserError(
            f"{key}.feature_extractor_type={name}: expected one of {', '.join(FEATURE_EXTRACTORS)}"
        )
    kind = FEATURE_EXTRACTORS[name]
    known = set(inspect.signature(kind).parameters) - {"kwargs"} | COMMON_KEYS
    for argument in arguments:
        if argument not in known:
            hint = nearest(argument, known)
            raise UserError(f'{name} has no key "{argument}" ({key}.{argument}).{hint}')
    with blaming(key):
        return kind(**arguments)
