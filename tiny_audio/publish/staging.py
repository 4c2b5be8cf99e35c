"""The folder that is published: weights, config, tokenizer, code, requirements, card and licence, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from tiny_audio.errors import UserError
from tiny_audio.files import MODELS_VARIABLE, size_in_words, write_files
from tiny_audio.hub.asr_checkpoint import WEIGHTS_FILE, copy_code, load_model, merge, read_config
from tiny_audio.hub.asr_config import TinyAudioConfig
from tiny_audio.publish.card import render_card, render_licence
from tiny_audio.publish.record import Record

CARD_FILE, LICENCE_FILE, REQUIREMENTS_FILE, CONFIG_FILE = (
    "README.md",
    "LICENSE",
    "requirements.txt",
    "config.json",
)
# What a model is made of. A folder may hold anything else too (notes, keys, recordings): that stays at home.
MODEL_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jin*",
)
CODE_FILES = ("asr_*.py", "handler.py")
OUR_FILES = (*MODEL_FILES, *CODE_FILES, CARD_FILE, LICENCE_FILE, REQUIREMENTS_FILE)  # what a push may replace
STAGED_FILES = (*OUR_FILES, "__pycache__")
# What those files import. Inference Endpoints installs this file over an image that has torch and transformers, which
# may be older. The bounds are those of pyproject.toml.
REQUIREMENTS = ("torch>=2.9", "transformers>=5.23,<6", "soundfile>=0.13,<1", "soxr>=0.5,<2", "numpy>=2.0,<3")
ADAPTER_REQUIREMENTS = ("peft>=0.18,<1",)
HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "merges.txt")  # every piece of text may be a token
PATH_KEYS = ("_name_or_path", "name_or_path")
# Keys of services, by the form that their makers gave them.
SECRETS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36})\b"
)
SECRET_VARIABLES = re.compile(r"(?:_|^)(?:TOKEN|KEY|SECRET|PASSWORD)$")


def check_place(staged: Path, model_folder: Path) -> None:
    """Raises UserError where what is there is not of an earlier push, which a new one replaces: above all the model."""
    place, model = staged.resolve(), model_folder.resolve()
    if place == model or place in model.parents:
        raise UserError(
            f"{model_folder} lies where push writes what it publishes, and would be replaced: rename {staged}, and push"
            " that. What an earlier --dry-run has left there is published from the model that it was made of"
        )
    if not staged.is_dir():
        return
    names = [path.name for path in staged.iterdir()]
    if {CARD_FILE, LICENCE_FILE} - {*names} or not all(_is_one_of(name, STAGED_FILES) for name in names):
        raise UserError(
            f"{staged}, where push writes what it publishes, holds something else, which would be lost: rename it"
        )


def read_architecture(folder: Path) -> TinyAudioConfig:
    """The config of a model folder. Raises UserError for any other folder, or a newer format."""
    try:
        return read_config(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be published: {' '.join(str(error).split())}") from error
    except (AttributeError, TypeError) as error:  # JSON, but a list
        raise UserError(
            f"{folder} cannot be published: its {CONFIG_FILE} is not the config of a model"
        ) from error


def stage_weights(source: Path, folder: Path, merged: bool) -> tuple[TinyAudioConfig, list[str]]:
    """Copy what the model is made of, or with `merged` write it with its base models inside.

    Weights get the type that config.json names, which is what every loader makes of them.

    Returns:
        the architecture of the staged model, and the names of files of `source` that are left out.
    """
    architecture = read_architecture(source)
    if merged and not architecture.is_merged:
        _write_merged(source, folder, architecture)
    else:
        for file in _model_files(source):
            link_or_copy(file, folder / file.name)
        cast_weights(folder / WEIGHTS_FILE, architecture.dtype)
    _remove_paths(folder)
    names = (path.name for path in sorted(source.iterdir()))
    written = (CARD_FILE, LICENCE_FILE)  # from the run, in place of the publisher's own
    return read_architecture(folder), [
        name for name in names if name in written or not _is_one_of(name, STAGED_FILES)
    ]


def stage_code(folder: Path, is_merged: bool) -> None:
    """This version's code beside the weights, and what it needs."""
    for file in folder.iterdir():
        if _is_one_of(file.name, CODE_FILES):
            file.unlink()
    copy_code(folder)
    needed = REQUIREMENTS if is_merged else REQUIREMENTS + ADAPTER_REQUIREMENTS
    write_files({folder / REQUIREMENTS_FILE: "".join(f"{line}\n" for line in needed)})


def stage_card(folder: Path, record: Record, repo_id: str) -> None:
    """README.md and LICENSE."""
    write_files(
        {
            folder / CARD_FILE: render_card(record, repo_id),
            folder / LICENCE_FILE: render_licence(record, repo_id),
        }
    )


def check_bases(architecture: TinyAudioConfig, merged: bool) -> None:
    """Raises UserError for a base model that only this machine has, where others would have to fetch it."""
    for base, inside in (
        (architecture.encoder_base, architecture.encoder_in_checkpoint or merged),
        (architecture.decoder_base, architecture.decoder_in_checkpoint or merged),
    ):
        if base is not None and not inside and not HUB_ID.fullmatch(base["name"]):
            raise UserError(
                f"The model was trained on a folder of this machine ({base['name']}), which nobody else has:"
                " publish it with --merged, which puts those weights inside"
            )


def check_nothing_private(folder: Path) -> None:
    """Raises UserError where a file that is about to be published holds a path of this machine or a key."""
    places = {str(Path.home()), str(Path.cwd()), os.environ.get(MODELS_VARIABLE, "")}
    places = {place for place in places if len(PurePath(place).parts) > 1}
    keys = {v for name, v in os.environ.items() if SECRET_VARIABLES.search(name.upper()) and len(v) >= 8}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors" or _is_one_of(file.name, (*CODE_FILES, *VOCABULARY_FILES)):
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if any(key in text for key in keys) or SECRETS.search(text):
            raise UserError(f"{file} holds a key or token: nothing was published")
        for place in places:
            if re.search(rf"(?<![\w.]){re.escape(json.dumps(place)[1:-1])}(?![\w-])", text):
                raise UserError(f"{file} names the folder {place} of this machine: nothing was published")


def _model_files(folder: Path) -> list[Path]:
    return [
        file for file in sorted(folder.iterdir()) if file.is_file() and _is_one_of(file.name, MODEL_FILES)
    ]


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def link_or_copy(source: Path, target: Path) -> None:
    """Gigabytes are linked where the file system can; files that are rewritten here are small and copied."""
    if source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copyfile(source, target)


def cast_weights(file: Path, dtype: Any) -> None:
    """Rewrite weights whose type is not the one that the config names: float32 master weights of a bfloat16 model."""
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file, save_file

    if not isinstance(dtype, torch.dtype) or not file.is_file():
        return
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    try:
        with safe_open(file, framework="pt") as weights:
            types = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 (no mapping)
            metadata = weights.metadata()
    except SafetensorError as error:
        raise UserError(
            f"the model's {file.name} is damaged ({error}): copy it again, whole; if git brought it, `git lfs pull`"
        ) from error
    if types & set(names.values()) <= {names.get(dtype)}:
        return
    state = load_file(file)
    file.unlink()  # a link: the original stays as it is
    cast = {name: w.to(dtype) if w.is_floating_point() else w for name, w in state.items()}
    save_file(cast, file, metadata=metadata)
    shutil.copymode(file.with_name("config.json"), file)  # else the owner's alone


def _write_merged(source: Path, folder: Path, architecture: TinyAudioConfig) -> None:
    """LoRA is folded in float32; the result has the type that the checkpoint names."""
    import torch
    from safetensors import SafetensorError

    try:
        model, processor = load_model(str(source), device="cpu", dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{source} cannot be merged: {' '.join(str(error).split())}") from error
    merged = merge(model)
    if isinstance(architecture.dtype, torch.dtype):
        merged = merged.to(architecture.dtype)
    merged.save_pretrained(folder)
    processor.save_pretrained(folder)


def _remove_paths(folder: Path) -> None:
    """Take out where parts lay on this machine: libraries note that, and nobody else can use it."""
    for file in folder.glob("*.json"):
        if file.name in VOCABULARY_FILES:
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file.name} of the model is damaged: {error}") from error
        cleaned = _without_paths(content)
        if cleaned != content:
            write_files({file: json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n"})


def _without_paths(content: Any, key: str = "") -> Any:
    if isinstance(content, dict):
        return {name: _without_paths(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [_without_paths(value) for value in content]
    if key in PATH_KEYS and isinstance(content, str) and not HUB_ID.fullmatch(content):
        return ""
    if key == "name" and isinstance(content, str) and Path(content).is_absolute():
        return Path(content).name  # a base model that is inside
    return content


def describe_folder(folder: Path) -> str:
    """The files with their sizes, a line each."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    lines = [f"  {size_in_words(file.stat().st_size):>9}  {file.name}" for file in files]
    total = size_in_words(sum(file.stat().st_size for file in files))
    return "\n".join([*lines, f"  {total:>9}  in {len(files)} files"])
