"""Whatever turns waveforms into text: one protocol, and a table of the recognisers that can be evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiny_audio.devices import Dtype, check_device, torch_dtype
from tiny_audio.errors import UserError, nearest

Waveform = NDArray[np.float32]
SAMPLING_RATE = 16_000
DEFAULT_PROVIDER = "tiny-audio"
_CONTROL_CHARACTERS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}")
MODEL_IS_MISSING = "Which model? Give its folder or hub id: tiny-audio eval outputs/nano/model"
# What decides a transcript. Other files of a folder, such as a README or an optimiser's state, do not.
MODEL_FILE_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py"}
HASH_BLOCK_BYTES = 2**22


class Provider(Protocol):
    """A recogniser."""

    @property
    def max_seconds(self) -> float | None:
        """The longest clip that one call may hold, None for no limit."""
        ...

    @property
    def identity(self) -> str:
        """All that decides a transcript: provider, model, revision or fingerprint, options. Never a secret.

        Transcripts are kept on disk under it, so two recognisers that may differ must not share one.
        """
        ...

    @property
    def costs_money(self) -> bool:
        """Whether a call may be billed, so that its transcripts are worth keeping for ever."""
        ...

    @property
    def price_usd_per_hour(self) -> float | None:
        """List price of an hour of audio in USD, None where there is none or it is not known."""
        ...

    def transcribe(self, waveforms: list[Waveform]) -> Sequence[str | Exception]:
        """One entry per mono 16 kHz waveform (S,), in the same order.

        An exception in a place is the failure of that clip alone. Anything raised is a failure of the whole
        call; UserError ends the evaluation.
        """
        ...


class TinyAudioProvider:
    """A checkpoint of ours, local or from the hub.

    Args:
        model, processor: as `tiny_audio.hub.asr_checkpoint.load_model` returns them.
        checkpoint: the folder or hub id that they were loaded from, None for a model that exists in memory only.
        generate_options: keyword arguments of `generate()`, `max_new_tokens` for instance.
    """

    costs_money = False
    price_usd_per_hour: float | None = None
    max_seconds: float | None = None  # long clips are cut into windows

    def __init__(
        self, model: Any, processor: Any, *, checkpoint: str | None = None, **generate_options: Any
    ) -> None:
        self.model = model
        self.processor = processor
        self.checkpoint = checkpoint
        self.generate_options = generate_options

    @classmethod
    def load(
        cls, model: str | None, device: str, dtype: str = Dtype.auto, **generate_options: Any
    ) -> TinyAudioProvider:
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
        checkpoint = resolve_model_path(location)
        try:
            loaded = load_model(checkpoint, device=device, dtype=torch_dtype(dtype), inference_only=True)
        except SafetensorError as error:
            raise UserError(
                f"The weights of {model} are damaged ({error}); copy or train the model again."
            ) from error
        except OSError as error:
            reason = describe_failure(error)
            raise UserError(
                reason if model in reason else f"Cannot load the model {model}: {reason}"
            ) from error
        return cls(*loaded, checkpoint=checkpoint, **generate_options)

    @cached_property
    def identity(self) -> str:
        from tiny_audio import __version__
        from tiny_audio.hub.asr_checkpoint import fingerprint

        options = [f"{name}={value!r}" for name, value in sorted(self.generate_options.items())]
        words = [DEFAULT_PROVIDER, __version__, str(self.model.dtype), self.model.device.type, *options]
        if self.checkpoint is None:
            words.append(hash_weights(self.model))
        else:  # a base model that the checkpoint names is in no file of it
            words += [identify_model(self.checkpoint), fingerprint(self.model)]
        return " ".join(words)

    def transcribe(self, waveforms: list[Waveform]) -> list[str]:
        from tiny_audio.hub.asr_longform import transcribe_waveforms

        return transcribe_waveforms(self.model, self.processor, waveforms, **self.generate_options)


@dataclass(frozen=True)
class Running:
    """How a model runs on this machine; `trust_remote_code`: whether Python code that comes with it may."""

    device: str = "auto"
    dtype: str = Dtype.auto
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ProviderEntry:
    """A row of `PROVIDERS`.

    Args:
        load: (model, device, trust_remote_code) to the recogniser; raises UserError.
        help: one line, what MODEL is included.
        needs_model: whether there is nothing to run without a MODEL.
        check: raises UserError for a MODEL that plainly cannot be loaded, at no cost.
        key_variable: the environment variable with the key of a service.
        has_dtype: whether `Running.dtype` means something to it.
    """

    load: Callable[[str | None, Running], Provider]
    help: str
    needs_model: bool = False
    check: Callable[[str | None], object] = lambda model: None
    key_variable: str | None = None
    has_dtype: bool = False


def _load_tiny_audio(model: str | None, running: Running) -> Provider:
    return TinyAudioProvider.load(model, running.device, running.dtype)


def _load_transformers(model: str | None, running: Running) -> Provider:
    from tiny_audio.evaluate.provider_transformers import load_transformers

    return load_transformers(model or "", running.device, running.trust_remote_code, running.dtype)


def _load_faster_whisper(model: str | None, running: Running) -> Provider:
    from tiny_audio.evaluate.provider_faster_whisper import FasterWhisperProvider

    return FasterWhisperProvider.load(model or "", running.device)


def _check_faster_whisper(model: str | None) -> None:
    from tiny_audio.evaluate.provider_faster_whisper import check_installed

    check_installed()


def _load_assemblyai(model: str | None, running: Running | None = None) -> Provider:
    from tiny_audio.evaluate.provider_remote import AssemblyAIProvider

    return AssemblyAIProvider(model)


def _load_openai(model: str | None, running: Running | None = None) -> Provider:
    from tiny_audio.evaluate.provider_remote import OpenAIProvider

    return OpenAIProvider(model)


def _load_hf_endpoint(model: str | None, running: Running | None = None) -> Provider:
    from tiny_audio.evaluate.provider_remote import HFEndpointProvider

    return HFEndpointProvider(model)


def _load_command(command: str | None, running: Running | None = None) -> Provider:
    from tiny_audio.evaluate.provider_command import CommandProvider

    return CommandProvider(command or "")


KEY_VARIABLES = {
    "assemblyai": "ASSEMBLYAI_API_KEY",
    "openai": "OPENAI_API_KEY",
    "hf-endpoint": "HF_TOKEN",
}
COMMAND_PROVIDER = "cmd"
# Loading a service or a command costs nothing, so that it is its own check.
PROVIDERS: dict[str, ProviderEntry] = {
    DEFAULT_PROVIDER: ProviderEntry(
        _load_tiny_audio,
        "a checkpoint of ours: folder or hub id",
        True,
        lambda model: find_model(model or ""),
        has_dtype=True,
    ),
    "transformers": ProviderEntry(
        _load_transformers,
        "any speech recogniser of transformers (Whisper, wav2vec 2.0 with CTC...): folder or hub id",
        True,
        has_dtype=True,
    ),
    "faster-whisper": ProviderEntry(
        _load_faster_whisper,
        "Whisper by CTranslate2: a size such as base, a folder or a hub id",
        True,
        _check_faster_whisper,
    ),
    "assemblyai": ProviderEntry(
        _load_assemblyai,
        "AssemblyAI: the name of one of its models, or nothing",
        check=_load_assemblyai,
        key_variable=KEY_VARIABLES["assemblyai"],
    ),
    "openai": ProviderEntry(
        _load_openai,
        "OpenAI, or the compatible server at OPENAI_BASE_URL: the name of a model, or nothing",
        check=_load_openai,
        key_variable=KEY_VARIABLES["openai"],
    ),
    "hf-endpoint": ProviderEntry(
        _load_hf_endpoint,
        "a Hugging Face Inference Endpoint: its https address",
        True,
        _load_hf_endpoint,
        KEY_VARIABLES["hf-endpoint"],
    ),
    COMMAND_PROVIDER: ProviderEntry(
        _load_command,
        'a program that prints what it hears, written as "cmd: PROGRAM ARGUMENTS {file}"',
        check=_load_command,
    ),
}


def load_provider(
    name: str,
    model: str | None,
    device: str = "auto",
    *,
    dtype: str = Dtype.auto,
    trust_remote_code: bool = False,
) -> Provider:
    """The recogniser called `name`, running `model` on `device`.

    Args:
        name: an entry of `PROVIDERS`, or "cmd: PROGRAM ARGUMENTS".
        model: what the entry's help says.
        device, dtype: of a model on this machine.
        trust_remote_code: whether Python code that comes with a model may run here.

    Raises UserError naming the nearest known provider, or saying why it cannot be used.
    """
    check_provider(name, model)
    entry, model = _find_entry(name, model)
    if dtype != Dtype.auto and not entry.has_dtype:
        names = " and ".join(each for each, entry in PROVIDERS.items() if entry.has_dtype)
        raise UserError(f"--dtype is for {names}: the provider {name} chooses the numbers it computes in.")
    return entry.load(model, Running(device, dtype, trust_remote_code))


def check_provider(name: str, model: str | None) -> None:
    """Raise UserError for an unknown provider, a missing key, or a model that is plainly not there, at no cost."""
    entry, model = _find_entry(name, model)
    if model is None and entry.needs_model:
        raise UserError(
            MODEL_IS_MISSING if name == DEFAULT_PROVIDER else f"Which model? {name} is {entry.help}."
        )
    entry.check(model)


def key_variable(name: str) -> str | None:
    """The environment variable with the key of a provider, None for one without."""
    return PROVIDERS[name].key_variable if name in PROVIDERS else None


def _find_entry(name: str, model: str | None) -> tuple[ProviderEntry, str | None]:
    """The row of `PROVIDERS` that a name means, and its model: that of "cmd: PROGRAM" is the command."""
    start, _, command = name.partition(":")
    if start.strip() == COMMAND_PROVIDER:
        if model is not None:
            raise UserError(f'"{COMMAND_PROVIDER}: ..." takes no model; name {model} inside the command.')
        return PROVIDERS[COMMAND_PROVIDER], command.strip()
    if name not in PROVIDERS:
        raise UserError(
            f'There is no provider "{name}".{nearest(name, PROVIDERS)} Known: {", ".join(PROVIDERS)}.'
        )
    return PROVIDERS[name], model


def identify_model(where: str) -> str:
    """A name for the files of a model: a hash over those of a folder, the commit of a hub id.

    Args:
        where: a folder, or the id of a model that has been fetched from the hub.
    """
    from transformers.utils.hub import cached_file

    folder = Path(where)
    if not folder.is_dir():
        return f"{where}@{Path(cached_file(where, 'config.json')).parent.name}"
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in MODEL_FILE_SUFFIXES:
            with path.open("rb") as file:
                digest.update(f"{path.name}:{path.stat().st_size}:".encode())
                while block := file.read(HASH_BLOCK_BYTES):
                    digest.update(block)
    return digest.hexdigest()


def hash_weights(model: Any) -> str:
    """A hash over the configuration and every weight of a model in memory."""
    import torch

    digest = hashlib.blake2b(model.config.to_json_string().encode(), digest_size=16)
    for name, weight in model.state_dict().items():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
