"""What a model card may say: read from the checkpoint, its run and its evaluations, or given by the publisher.

Nothing is guessed. What nobody measured or gave stays None, and the card says so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tiny_audio.data.hub import parse_hub_name
from tiny_audio.data.known_sets import find_set
from tiny_audio.errors import UserError
from tiny_audio.evaluate.results import METRICS_FILE, RESULTS_LINES_FILE, EvalResult, read_evaluation
from tiny_audio.evaluate.scoring import summarize
from tiny_audio.hub.asr_config import TinyAudioConfig
from tiny_audio.publish.given import Given
from tiny_audio.train.parameters import PartParameters, count_parameters
from tiny_audio.train.records import read_metrics

RATE_TOLERANCE = 1e-9
MIT, NOT_STATED = "mit", "other"
# What the pages of the models that the recipes name say about their weights.
BASE_LICENCES = {
    "openai/whisper-base": "apache-2.0",
    "openai/whisper-large-v3-turbo": MIT,
    "facebook/hubert-large-ls960-ft": "apache-2.0",
    "facebook/hubert-xlarge-ll60k": "apache-2.0",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "apache-2.0",
    "HuggingFaceTB/SmolLM3-3B": "apache-2.0",
    "HuggingFaceTB/SmolLM3-3B-Base": "apache-2.0",
    "Qwen/Qwen3-8B": "apache-2.0",
}


@dataclass(frozen=True)
class Data:
    """A SOURCE as others may hear of it: never a path of this machine."""

    name: str
    hub_id: str | None = None
    languages: tuple[str, ...] = ()
    licence: str | None = None
    revision: str | None = None
    split: str | None = None
    is_corpus: bool = False  # the one inside the package


@dataclass(frozen=True)
class Record:
    """All that is known about a model.

    `architecture` and `parts` are as trained, also where a merged model is published: `stands_alone` says that its base
    models are inside. `run` is the config.yaml of its run, `metrics` its metrics.json; both empty where there are none.
    `step` is how far a training that is still going on has come.
    """

    architecture: TinyAudioConfig
    parts: list[PartParameters]
    given: Given
    run: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    stands_alone: bool = False
    evaluations: list[EvalResult] = field(default_factory=list)

    @property
    def bases(self) -> list[str]:
        """The base models, encoder first."""
        both = (self.architecture.encoder_base, self.architecture.decoder_base)
        return list(dict.fromkeys(base["name"] for base in both if base))

    @property
    def train_data(self) -> list[Data]:
        found = (
            describe_data(name, self.revisions.get(name), default_split="train")
            for name in _listed(self.run, "data", "train")
        )
        return list(dict.fromkeys(found))

    @property
    def begun_from(self) -> str | None:
        """The Tiny Audio model that this one went on from: its hub id, or words where it is not on the hub."""
        init_from = self.run.get("init_from")
        return describe_model(str(init_from)) if init_from else None

    @property
    def revisions(self) -> dict[str, str | None]:
        return self.run.get("run", {}).get("data_revisions") or {}

    @property
    def languages(self) -> list[str]:
        """Those given, else those of the training data where all of them are known."""
        found = [data.languages for data in self.train_data]
        known = () if not all(found) else tuple(code for codes in found for code in codes)
        return list(dict.fromkeys(self.given.languages or known))

    @property
    def licence(self) -> str:
        """The one given, else that of the base models where they agree; `other` means that nobody has stated one.

        What another model was trained on, and what its maker allows, nobody has stated here.
        """
        if self.given.license:
            return self.given.license
        if self.begun_from:
            return NOT_STATED
        found = {BASE_LICENCES.get(name) for name in self.bases}
        if not self.bases:
            return MIT if self.knows_digits_alone else NOT_STATED
        return found.pop() or NOT_STATED if len(found) == 1 else NOT_STATED

    @property
    def knows_digits_alone(self) -> bool:
        """Whether all that the model was trained on is the embedded corpus."""
        return (
            not self.begun_from and bool(self.train_data) and all(data.is_corpus for data in self.train_data)
        )

    @property
    def train_hours(self) -> float | None:
        """Hours inside training steps."""
        seconds = self.metrics.get("train_seconds")
        return None if seconds is None else seconds / 3600

    @property
    def run_hours(self) -> float | None:
        """Hours with waiting and evaluations; older runs knew those of training steps alone."""
        seconds = self.metrics.get("run_seconds")
        return self.train_hours if seconds is None else seconds / 3600

    @property
    def usd_per_hour(self) -> float | None:
        """What the publisher gives, else what the run was told."""
        if self.given.usd_per_hour is not None:
            return self.given.usd_per_hour
        return self.run.get("training", {}).get("usd_per_hour")

    @property
    def cost_usd(self) -> float | None:
        return _product(self.usd_per_hour, self.run_hours)

    @property
    def energy_kwh(self) -> float | None:
        return _product(self.given.watts, self.run_hours, 1e-3)

    @property
    def co2_grams(self) -> float | None:
        return _product(self.energy_kwh, self.given.co2_grams_per_kwh)


def read_record(
    run_folder: Path | None, architecture: TinyAudioConfig, given: Given, in_training: bool = False
) -> Record:
    """What lies in a run's folder. Raises UserError for a config.yaml or metrics.json that cannot be read."""
    run: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    step = None
    if run_folder is not None:
        run = _read_config(run_folder / "config.yaml")
        if in_training:
            step = next((line["step"] for line in reversed(read_metrics(run_folder / "metrics.jsonl"))), 0)
        elif (run_folder / METRICS_FILE).is_file():
            metrics = _read_metrics(run_folder / METRICS_FILE)
    parts = count_parameters(
        architecture, not architecture.encoder_in_checkpoint, not architecture.decoder_in_checkpoint
    )
    return Record(architecture, parts, given, run, metrics, step)


def find_run_folder(model_folder: Path) -> Path | None:
    """The run that made `outputs/run/model`: the folder around it, where that holds a config.yaml."""
    # A linked model/ has its record around the link, or around what it points at.
    for around in (model_folder.absolute().parent, model_folder.resolve().parent):
        if (around / "config.yaml").is_file():
            return around
    return None


def find_evaluations(model_folder: Path, run_folder: Path | None) -> tuple[list[Path], list[Path]]:
    """Folders of evaluations of a model: of its run, and those that `tiny-audio eval` has put beside it.

    Returns the ones that can be used, and the ones that are older than the weights.
    """
    if run_folder is None:
        return [], []
    own_files = (run_folder / RESULTS_LINES_FILE, run_folder / METRICS_FILE)
    found = [run_folder] if all(file.is_file() for file in own_files) else []
    stale: list[Path] = []
    written = (model_folder / "config.json").stat().st_mtime
    for metrics_file in sorted(run_folder.parent.glob(f"eval_*/{METRICS_FILE}")):
        try:
            metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
            is_ours = _is_model(str(metrics["model"]), model_folder)
            date = datetime.fromisoformat(metrics["date"]).astimezone(UTC).timestamp()
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another kind, or older than the date that evaluations carry
        if is_ours:
            (found if date >= written else stale).append(metrics_file.parent)
    return found, stale


def load_evaluation(folder: Path) -> EvalResult:
    """An evaluation whose figures follow from its transcripts. Raises UserError for any other."""
    result = read_evaluation(folder)
    counted = summarize([utterance.score for utterance in result.utterances])
    if abs(counted.wer - result.metrics.wer) > RATE_TOLERANCE:
        raise UserError(
            f"{folder}: {METRICS_FILE} states a WER of {result.metrics.wer:.4f}, but {RESULTS_LINES_FILE} gives"
            f" {counted.wer:.4f}. Evaluate the model again."
        )
    return result


def check_evaluation_of(result: EvalResult, folder: Path, model_folder: Path, repo_id: str) -> None:
    """Raises UserError for figures of another model."""
    if result.model != repo_id and not _is_model(result.model, model_folder):
        raise UserError(f"{folder} is an evaluation of {result.model}, not of {model_folder}")


def describe_data(source: str, revision: str | None = None, default_split: str | None = None) -> Data:
    """A SOURCE in words that may be published."""
    if source.startswith("corpus:"):
        split = source.removeprefix("corpus:")
        name = "spoken digits by synthetic voices, the corpus inside Tiny Audio"
        return Data(name, None, ("en",), "CC0 1.0", revision, split, is_corpus=True)
    if not _expand(source).exists():
        try:
            known = find_set(source, default_split)
            if known is not None:
                hub_id, licence = known.entry.repository, known.entry.licence
                return Data(known.name.rpartition(":")[0], hub_id, ("en",), licence, revision, known.split)
            if source.startswith("hub:"):
                hub_id, config, split = parse_hub_name(source)
                return Data(f"{hub_id}{f' ({config})' if config else ''}", hub_id, (), None, revision, split)
        except UserError:
            pass  # a name that means nothing any more is as good as none
    return Data("recordings that are not public")


def describe_model(name: str) -> str:
    """A model's name in words that may be published: a hub id that was fetched from there, never a path."""
    from huggingface_hub import try_to_load_from_cache

    if not _expand(name).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        try:
            if isinstance(try_to_load_from_cache(name, "config.json"), str):
                return name
        except ValueError:  # no name that the hub would give
            pass
    return "a model that is not public"


def _listed(config: dict[str, Any], section: str, key: str) -> list[str]:
    value = config.get(section, {}).get(key, [])
    return [str(item) for item in (value if isinstance(value, list) else [value])]


def _read_config(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not the config of a run")
    return config


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path} does not hold the figures of a run")
    return metrics


def _is_model(name: str, model_folder: Path) -> bool:
    """Whether a model's name in an evaluation means this folder (or the run around it)."""
    folder = _expand(name).resolve()
    return model_folder.resolve() in (folder, folder / "model")


def _expand(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~NAME of nobody on this machine
        return Path(name)


def _product(*factors: float | None) -> float | None:
    result = 1.0
    for factor in factors:
        if factor is None:
            return None
        result *= factor
    return result
