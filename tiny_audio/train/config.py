"""The config of a run: YAML defaults, an experiment, command-line overrides, and one check of everything.

The defaults and their meaning are in `tiny_audio/configs/config.yaml`; the types and limits are the dataclasses below.
Hydra reads the YAML files and its override grammar reads `key=value`; Hydra's own application is not used, because
it accepts `+training.learnig_rate=3`, changes the working folder and decides the exit code.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from tiny_audio import configs
from tiny_audio.errors import UserError, first_line, nearest
from tiny_audio.publish.upload import check_repo_id
from tiny_audio.train.cached import check_features_cache

DEFAULT_EXPERIMENT = "nano"
CONFIG_FOLDER = Path(configs.__file__).resolve().parent
FREE_FORM = ("model.encoder_config", "model.decoder_config", "model.feature_extractor")  # transformers' keys
PROJECTOR_TYPES = ("mlp", "swiglu", "mosa", "moe", "qformer")


def number(
    least: float | None = None, *, above: float | None = None, most: float | None = None, word: str = ""
) -> Any:
    """A number (or null, where the type allows it) within limits, or `word`; `above` is an open lower limit."""
    return dataclasses.field(metadata={"least": least, "above": above, "most": most, "word": word})


def interval(least: float | None = None, *, above: float | None = None) -> Any:
    """A pair `[low, high]`, drawn from uniformly."""
    return dataclasses.field(metadata={"least": least, "above": above, "pair": True})


def choice(*names: Any) -> Any:
    return dataclasses.field(metadata={"choices": names})


def source(listed: bool = False, optional: bool = False) -> Any:
    """A SOURCE, or with `listed` a list of them as well, or with `optional` null."""
    return dataclasses.field(metadata={"sources": listed, "optional": optional})


@dataclasses.dataclass(kw_only=True)
class ModelSettings:
    encoder_model_name: str | None
    decoder_model_name: str | None
    encoder_revision: str | None
    decoder_revision: str | None
    encoder_config: dict[str, Any]
    decoder_config: dict[str, Any]
    feature_extractor: dict[str, Any]
    tokenizer: str | None
    tokenizer_words: list[str]
    freeze_encoder: bool
    freeze_decoder: bool
    projector_type: str = choice(*PROJECTOR_TYPES)
    stack_factor: int = number(1)
    projector_hidden_size: int = number(1)
    projector_activation: str | None
    prompt: str


@dataclasses.dataclass(kw_only=True)
class LoraSettings:
    r: int = number(0)
    lora_alpha: float = number(above=0)
    lora_dropout: float = number(0, most=0.99)
    target_modules: list[str]
    use_rslora: bool
    use_dora: bool


@dataclasses.dataclass(kw_only=True)
class PeftSettings(LoraSettings):
    peft_method: str | None = choice("lora", None)


@dataclasses.dataclass(kw_only=True)
class CTCSettings:
    weight: float = number(0)
    final_weight: float | None = number(0)
    alone_share: float = number(0, most=1)
    embedding_weight: float = number(0)
    embedding_negatives: int = number(0)
    decoding_weight: float = number(0)
    vocabulary: str


@dataclasses.dataclass(kw_only=True)
class DataSettings:
    train: Any = source(listed=True)
    eval: str = source()
    test: str | None = source(optional=True)
    max_seconds: float = number(above=0)
    min_seconds: float = number(0)
    languages: list[str] | None
    max_characters_per_second: float | None = number(above=0)
    max_bad_fraction: float = number(0, most=1)
    short_first: bool
    clean_text: bool
    features_cache: str | None
    features_cache_variants: int | None = number(1)


@dataclasses.dataclass(kw_only=True)
class AugmentationSettings:
    speed: list[float] = interval(above=0)
    speed_probability: float = number(0, most=1)
    tempo: list[float] = interval(above=0)
    tempo_probability: float = number(0, most=1)
    noise_probability: float = number(0, most=1)
    noise_snr_db: list[float] = interval()
    noise_files: str | None
    reverb_probability: float = number(0, most=1)
    reverb_files: str | None
    band_limit_probability: float = number(0, most=1)
    equalizer_probability: float = number(0, most=1)
    equalizer_db: float = number(0)
    gain_db: list[float] = interval()
    splice_probability: float = number(0, most=1)
    non_speech_probability: float = number(0, most=1)
    frequency_warp: list[float] = interval(above=0)
    frequency_warp_probability: float = number(0, most=1)
    time_masks: int = number(0)
    time_mask_seconds: float = number(0)
    frequency_masks: int = number(0)
    frequency_mask_bins: int = number(0)


@dataclasses.dataclass(kw_only=True)
class TrainingSettings:
    max_steps: int = number(1)
    optimizer: str = choice("adamw", "muon")
    learning_rate: float = number(above=0)
    encoder_learning_rate: float | None = number(above=0)
    decoder_learning_rate: float | None = number(above=0)
    muon_learning_rate: float = number(above=0)
    warmup_steps: int = number(0)
    lr_scheduler: str = choice("cosine", "constant")
    min_learning_rate_ratio: float = number(0, most=1)
    weight_decay: float = number(0)
    adam_beta2: float = number(0, most=0.99999)
    max_grad_norm: float = number(above=0)
    batch_seconds: Any = number(above=0, word="auto")
    per_device_train_batch_size: int = number(1)
    gradient_accumulation_steps: int = number(1)
    bf16: Any = choice("auto", True, False)
    gradient_checkpointing: Any = choice(True, False, "encoder", "decoder")
    sharding: str = choice("none", "full")
    compile: bool
    num_workers: int = number(0)
    logging_steps: int = number(1)
    eval_steps: int = number(1)
    eval_samples: int = number(1)
    save_steps: int = number(1)
    save_total_limit: int = number(1)
    resume: Any  # a bool, or the path of a checkpoint
    usd_per_hour: float | None = number(0)
    hub_model_id: str | None
    tracker: str = choice("auto", "none", "tensorboard", "wandb")


@dataclasses.dataclass(kw_only=True)
class RunSettings:
    output_dir: str
    seed: int = number(0, most=2**32 - 1)
    init_from: str | None
    model: ModelSettings
    encoder_lora: LoraSettings
    peft: PeftSettings
    ctc: CTCSettings
    data: DataSettings
    augmentation: AugmentationSettings
    training: TrainingSettings


def walk_schema(settings: type = RunSettings, prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every key of the config as `("training.learning_rate", float, limits)`."""
    hints = get_type_hints(settings)
    for entry in dataclasses.fields(settings):
        if dataclasses.is_dataclass(hints[entry.name]):
            yield from walk_schema(hints[entry.name], f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, hints[entry.name], dict(entry.metadata)


TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list[str]: "a list such as [q_proj,k_proj]",
    list[float]: "two numbers [low, high]",
    dict[str, Any]: "a table such as {model_type: whisper}",
}
SCHEMA = {key: limits for key, _, limits in walk_schema()}
EXPECTED_TYPES = {
    key: TYPE_NAMES.get(hint) or f"{TYPE_NAMES[get_args(hint)[0]]} or null"
    for key, hint, _ in walk_schema()
    if hint is not Any
}


def experiment_names() -> list[str]:
    folder = CONFIG_FOLDER / "experiments"
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Builds the checked, resolved config of a run.

    Args:
        overrides: `key=value` in Hydra's grammar, and at most one `+experiments=NAME` (or `experiments=NAME`);
            `nano` when there is none. A later override wins over an earlier one.

    Returns:
        A typed DictConfig: `config.training.max_steps`. Assigning a wrong type or an unknown key raises.

    Raises:
        UserError: unknown key or experiment, wrong type, value out of its limits; one line.
    """
    experiment, assignments = _split_overrides(overrides)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("config", overrides=[f"+experiments={experiment}"])
    OmegaConf.set_struct(config, False)
    for key, value in assignments:
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    return check_config(config)


def check_config(config: DictConfig) -> DictConfig:
    """A copy of `config` with resolved references, checked types, known keys and values within their limits."""
    config = copy.deepcopy(config)
    for key in _leaf_keys(config):
        _check_key(key)
    try:
        OmegaConf.resolve(config)
        typed: DictConfig = OmegaConf.merge(OmegaConf.structured(RunSettings), config)  # type: ignore[assignment]
    except ValidationError as error:
        key = error.full_key or "config"
        raise UserError(
            f"{key}={_shown(OmegaConf.select(config, key))}: expected {EXPECTED_TYPES[key]}"
        ) from error
    except OmegaConfBaseException as error:
        raise UserError(f"config: {first_line(error)}") from error
    for key, limits in SCHEMA.items():
        if OmegaConf.is_missing(_parent(typed, key), key.rpartition(".")[2]):
            raise UserError(f"{key} has no value")
        _check_value(key, OmegaConf.select(typed, key), limits)
    _check_together(typed)
    return typed


def config_to_yaml(config: DictConfig, extra: dict[str, Any] | None = None) -> str:
    """The text of a run's `config.yaml`: every key resolved, then `extra` (versions, revisions) under `run:`."""
    text = OmegaConf.to_yaml(config, resolve=True)
    return text if extra is None else text + OmegaConf.to_yaml(OmegaConf.create({"run": extra}))


def resolve_model_path(name_or_path: str) -> str:
    """Where a base model lies: a local folder, a folder below `$TINY_AUDIO_MODELS`, or else the hub id itself.

    Raises:
        UserError: what was given can only be a path (`./x`, `/x`, `~/x`), and no folder is there.
    """
    from tiny_audio.hub.asr_config import resolve_model_path as find_model  # imports transformers

    found = find_model(name_or_path)
    # A hub id is NAME or OWNER/NAME: anything else can only be a folder.
    only_a_path = (
        name_or_path[:1] in (".", "~") or Path(name_or_path).is_absolute() or name_or_path.count("/") > 1
    )
    if found == name_or_path and only_a_path and not Path(found).is_dir():
        raise UserError(f"no model folder at {name_or_path}")
    return found


def _split_overrides(overrides: Sequence[str]) -> tuple[str, list[tuple[str, Any]]]:
    """The experiment, and the other overrides as (key, value) in their order."""
    experiments, assignments = [], []
    for text in overrides:
        key, equals, value = text.partition("=")
        if text.startswith("~"):
            raise UserError(f"{text}: a key cannot be deleted; write {key[1:]}=null where it may be empty")
        if not equals:
            hint = f" Did you mean +experiments={key}?" if key in experiment_names() else ""
            raise UserError(
                f'"{text}" is not an override: write key=value, such as training.max_steps=100.{hint}'
            )
        if key.lstrip("+") in ("experiments", "experiment"):
            experiments.append(value)
        else:
            key = key.lstrip("+")
            _check_key(key)
            assignments.append((key, _parse_value(text, value)))
    if len(experiments) > 1:
        raise UserError(f"only one experiment at a time, got {', '.join(experiments)}")
    experiment = experiments[0] if experiments else DEFAULT_EXPERIMENT
    if experiment not in experiment_names():
        hint = nearest(experiment, experiment_names())
        raise UserError(f'no experiment "{experiment}".{hint} There are: {", ".join(experiment_names())}')
    return experiment, assignments


def _parse_value(text: str, literal: str) -> Any:
    try:
        override: Override = OverridesParser.create().parse_override(text)
    except HydraException:
        if literal[:1] in ("[", "{", "'", '"'):
            raise UserError(f"{text}: not a list, table or quoted text that closes") from None
        # Hydra's grammar has no word for some characters of ordinary paths and prompts (<, parentheses).
        return literal
    if override.is_sweep_override():
        raise UserError(f"{text}: one value at a time; write a list as [a,b], and quote a text with a comma")
    return override.value()


def _check_key(key: str) -> None:
    """Raises unless `key` is a key, or lies inside one of the free-form tables."""
    if key in SCHEMA or any(key.startswith(f"{table}.") for table in FREE_FORM):
        return
    sections = {name.rpartition(".")[0] for name in SCHEMA} - {""}
    if key in sections:
        inside = ", ".join(name for name in SCHEMA if name.startswith(f"{key}."))
        raise UserError(f'"{key}" is a section, not a key; it holds {inside}')
    raise UserError(f'unknown config key "{key}". Did you mean "{_nearest_key(key)}"?')


def _nearest_key(key: str) -> str:
    """The valid key closest to `key`: by its last part in its section, then in any section, then by letters."""
    section, _, leaf = key.rpartition(".")
    for prefix in (f"{section}.", ""):
        leaves = {name.rpartition(".")[2]: name for name in SCHEMA if name.startswith(prefix)}
        leaves |= {_initials(short): name for short, name in leaves.items() if "_" in short}
        if matches := difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7):
            return leaves[matches[0]]
    return difflib.get_close_matches(key, SCHEMA, n=1, cutoff=0.0)[0]


def _initials(name: str) -> str:
    """`lr` for `learning_rate`: what people type from habit."""
    return "".join(word[0] for word in name.split("_"))


def _leaf_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name, value in node.items_ex(resolve=False):
        key = prefix + str(name)
        if isinstance(value, DictConfig) and key not in FREE_FORM:
            yield from _leaf_keys(value, f"{key}.")
        else:
            yield key


def _parent(config: DictConfig, key: str) -> DictConfig:
    section = key.rpartition(".")[0]
    return OmegaConf.select(config, section) if section else config


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _check_value(key: str, value: Any, limits: dict[str, Any]) -> None:
    def refuse(expected: str) -> NoReturn:
        raise UserError(f"{key}={_shown(value)}: expected {expected}")

    if "choices" in limits:
        # `True == 1` in Python: the type is part of the comparison.
        if not any(type(value) is type(name) and value == name for name in limits["choices"]):
            names = map(_shown, limits["choices"])
            hint = nearest(value, filter(None, limits["choices"])) if isinstance(value, str) else ""
            refuse(f"one of {', '.join(names)}.{hint}" if hint else f"one of {', '.join(names)}")
    elif value is None and limits.get("optional"):
        return
    elif "sources" in limits:
        listed = value if isinstance(value, ListConfig) and limits["sources"] else [value]
        if not len(listed) or not all(isinstance(source, str) and source for source in listed):
            kind = "a SOURCE or a list of them" if limits["sources"] else "a SOURCE"
            refuse(f"{kind}: corpus:SPLIT, a folder, manifest.jsonl, x.parquet or hub:NAME[/CONFIG]:SPLIT")
    elif "pair" in limits:
        if len(value) != 2 or not value[0] <= value[1]:
            refuse("two numbers [low, high] with low <= high")
        for bound in value:
            _check_number(bound, limits, refuse)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(value, limits, refuse)
    elif limits.get("word") and value != limits["word"]:
        hint = nearest(str(value), [limits["word"]])
        refuse(f"a number or {limits['word']}{'.' if hint else ''}{hint}")


def _check_number(value: float, limits: dict[str, Any], refuse: Any) -> None:
    least, above, most = (limits.get(name) for name in ("least", "above", "most"))
    if not math.isfinite(value):
        refuse("a finite number")
    if least is not None and value < least:
        refuse(f"at least {least}")
    if above is not None and value <= above:
        refuse(f"more than {above}")
    if most is not None and value > most:
        refuse(f"at most {most}")


def _check_together(config: DictConfig) -> None:
    """Rules between keys, and what a named model makes meaningless."""
    model, data = config.model, config.data
    if data.min_seconds >= data.max_seconds:
        raise UserError(
            f"data.min_seconds={data.min_seconds} must be below data.max_seconds={data.max_seconds}"
        )
    if config.ctc.alone_share and not (config.ctc.weight or config.ctc.embedding_weight):
        raise UserError("ctc.alone_share needs ctc.weight or ctc.embedding_weight: nothing else trains then")
    if model.prompt.count("<audio>") != 1:
        raise UserError(f'model.prompt="{model.prompt}": expected exactly one <audio>, where the clip goes')
    resume = config.training.resume
    if not isinstance(resume, bool | str) or resume == "":
        raise UserError(f"training.resume={_shown(resume)}: expected true, false or the path of a checkpoint")
    if config.training.hub_model_id is not None:
        check_repo_id(config.training.hub_model_id)
    if (config.ctc.weight or config.ctc.final_weight) and not config.ctc.vocabulary:
        raise UserError(
            "ctc.vocabulary is empty: name the characters of the alignment head, or set ctc.weight=0 (no head)"
        )
    for section, asked in (("encoder_lora", True), ("peft", config.peft.peft_method is not None)):
        if asked and config[section].r and not config[section].target_modules:
            raise UserError(
                f"{section}.target_modules=[]: name linear layers such as [q_proj,v_proj], or set {section}.r=0"
            )
    check_features_cache(config)
    _check_towers(model)


def _check_towers(model: DictConfig) -> None:
    """Checks what is said of towers with random weights, and drops it where a model is named."""
    for name in ("encoder", "decoder"):
        if model[f"{name}_model_name"] is None:
            from tiny_audio.train.architecture import check_architecture  # slow: imports transformers

            check_architecture(f"model.{name}_config", model[f"{name}_config"])
        elif not model[f"{name}_model_name"]:
            raise UserError(f"model.{name}_model_name is empty: expected a hub id, a folder or null")
        else:
            model[f"{name}_config"] = {}  # a named model brings its own
    if model.encoder_model_name is not None:
        model.feature_extractor = {}
    else:
        from tiny_audio.train.architecture import feature_extractor_of

        feature_extractor_of(model.feature_extractor)
    if model.decoder_model_name is not None and model.tokenizer == "bytes":
        model.tokenizer = None
    if model.decoder_model_name is None and model.tokenizer is None:
        raise UserError(
            "model.tokenizer=null: a decoder with random weights has no tokenizer of its own; use bytes"
        )
