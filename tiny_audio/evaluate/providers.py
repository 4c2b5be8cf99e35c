"""Whatever turns waveforms into text: one protocol, and a table of the recognisers that can be evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiny_audio.errors import UserError, nearest

Waveform = NDArray[np.float32]
DEFAULT_PROVIDER = "tiny-audio"
_CONTROL_CHARACTERS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}")
MODEL_IS_MISSING = "Which model? Give its folder or hub id: tiny-audio eval outputs/nano/model"
DEVICES = ("auto", "cpu", "cuda", "mps")


class Provider(Protocol):
    """A recogniser. `max_seconds` is the longest clip one call may hold, None for no limit."""

    @property
    def max_seconds(self) -> float | None: ...

    def transcribe(self, waveforms: list[Waveform]) -> list[str]:
        """One transcript per mono 16 kHz waveform (S,), in the same order.

        Anything raised is a failure of the whole call.
        """
        ...


class TinyAudioProvider:
    """A checkpoint of ours, local or from the hub.

    Args:
        model, processor: as `tiny_audio.hub.asr_checkpoint.load_model` returns them.
        generate_options: keyword arguments of `generate()`, `max_new_tokens` for instance.
    """

    def __init__(self, model: Any, processor: Any, **generate_options: Any) -> None:
        self.model = model
        self.processor = processor
        self.generate_options = generate_options

    @classmethod
    def load(cls, model: str | None, device: str, **generate_options: Any) -> TinyAudioProvider:
        """Load the checkpoint at a path or hub id. Raises UserError when there is none, or it is damaged."""
        if model is None:
            raise UserError(MODEL_IS_MISSING)
        location = find_model(model)
        check_device(device)

        from safetensors import SafetensorError
        from transformers.utils import logging

        from tiny_audio.hub.asr_checkpoint import load_model
        from tiny_audio.hub.asr_config import resolve_model_path

        logging.disable_progress_bar()  # a bar of its own for reading a few megabytes
        try:
            loaded = load_model(resolve_model_path(location), device=device)
        except SafetensorError as error:
            raise UserError(
                f"The weights of {model} are damaged ({error}); copy or train the model again."
            ) from error
        except OSError as error:
            reason = describe_failure(error)
            raise UserError(
                reason if model in reason else f"Cannot load the model {model}: {reason}"
            ) from error
        return cls(*loaded, **generate_options)

    @property
    def max_seconds(self) -> float | None:
        return None  # long clips are cut into windows

    def transcribe(self, waveforms: list[Waveform]) -> list[str]:
        from tiny_audio.hub.asr_longform import transcribe_waveforms

        return transcribe_waveforms(self.model, self.processor, waveforms, **self.generate_options)


PROVIDERS: dict[str, Callable[[str | None, str], Provider]] = {
    DEFAULT_PROVIDER: TinyAudioProvider.load,
}


def load_provider(name: str, model: str | None, device: str = "auto") -> Provider:
    """The recogniser called `name`, running `model` on `device`.

    Raises UserError naming the nearest known provider.
    """
    check_provider(name, model)
    return PROVIDERS[name](model, device)


def check_provider(name: str, model: str | None) -> None:
    """Raise UserError for an unknown provider or a model that is plainly not there, at no cost."""
    if name not in PROVIDERS:
        raise UserError(
            f'There is no provider "{name}".{nearest(name, PROVIDERS)} Known: {", ".join(PROVIDERS)}.'
        )
    if name == DEFAULT_PROVIDER:
        if model is None:
            raise UserError(MODEL_IS_MISSING)
        find_model(model)


def check_device(device: str) -> None:
    """Raise UserError unless this machine can run a model on `device` ("auto" or a torch device)."""
    if device == "auto":
        return
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UserError(
            f'There is no device "{device}".{nearest(device, DEVICES)} Known: {", ".join(DEVICES)}.'
        ) from None
    num_available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (wanted.index or 0) >= num_available.get(wanted.type, 0):
        raise UserError(
            f"This machine has no device {device} that torch {torch.__version__} can use; try auto or cpu."
        )


def printable(text: str) -> str:
    """Text that a terminal shows as it is.

    An untrained model writes escape sequences, which could do anything there.
    """
    return text.translate(_CONTROL_CHARACTERS)


def describe_failure(error: Exception) -> str:
    """An exception as one line; its type is named where the words alone may not speak for themselves."""
    text = " ".join(str(error).split())
    return (
        text
        if text and isinstance(error, (OSError, ValueError))
        else f"{type(error).__name__}: {text}".rstrip(": ")
    )


def find_model(model: str) -> str:
    """The checkpoint that an argument means: a folder (or its run's), else a hub id, unchanged.

    Raises UserError for what is plainly a path and does not exist, naming the folders that do hold a model
    nearby.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return str(path)
        if (path / "model" / "config.json").is_file():
            return str(path / "model")
        raise UserError(
            f"{model} holds no model: there is no config.json in it, nor in a folder model/ inside it."
            f"{_models_near(path)}"
        )
    if path.is_file():
        raise UserError(
            f"{model} is a file; a model is a folder with a config.json, such as outputs/nano/model."
        )
    if _is_plainly_a_path(model):
        raise UserError(f"There is no model at {model}.{_models_near(path)}")
    return model


def _is_plainly_a_path(model: str) -> bool:
    """Whether a name cannot be a hub id (`owner/name` or `name`), or begins with a folder of this place."""
    parts = model.replace("\\", "/").split("/")
    if len(parts) > 2 or parts[0] in ("", ".", "..", "~") or "\\" in model:
        return True
    return len(parts) == 2 and (parts[0] == "outputs" or Path(parts[0]).is_dir())


def _models_near(path: Path) -> str:
    """A hint that lists up to three checkpoints under the nearest folder that exists, or how to train one."""
    folder = next((parent for parent in [path, *path.parents] if parent.is_dir()), Path())
    patterns = ("*/config.json", "*/model/config.json", "checkpoints/*/config.json")
    found = sorted({config.parent for pattern in patterns for config in folder.glob(pattern)})
    if found:
        return f" Nearby: {', '.join(map(str, found[:3]))}."
    return " Train one with: tiny-audio train"
