"""The model card (README.md with metadata) and the LICENSE file of a published model, written from its record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tiny_audio.evaluate.results import EvalResult
from tiny_audio.hub.asr_config import TinyAudioConfig
from tiny_audio.publish.record import BASE_LICENCES, NOT_STATED, Data, Record, describe_data
from tiny_audio.train.parameters import in_words

NOT_MEASURED = "not measured"
CORPUS_TYPE, PRIVATE_TYPE = "synthetic", "private"  # of data sets that no hub has
_BREAKS_MARKDOWN = re.compile(r"[\x00-\x1f\x7f-\x9f|`<>\[\]]+")


def render_card(record: Record, repo_id: str) -> str:
    """The text of README.md."""
    header = yaml.safe_dump(metadata(record, repo_id), sort_keys=False, allow_unicode=True, width=120)
    body = _render("card.md.j2", record, repo_id)
    return f"---\n{header}---\n\n{body}"


def render_licence(record: Record, repo_id: str) -> str:
    """The text of LICENSE."""
    return _render("licence.j2", record, repo_id)


def metadata(record: Record, repo_id: str) -> dict[str, Any]:
    """The YAML at the head of README.md, by the hub's specification of model cards."""
    licence = {"license": record.licence}
    if record.licence == NOT_STATED:
        licence |= {"license_name": "not-stated", "license_link": "LICENSE"}
    relation = "finetune" if record.stands_alone else "adapter"
    datasets = list(dict.fromkeys(data.hub_id for data in record.train_data if data.hub_id))
    optional = {
        "language": record.languages,
        "base_model": record.bases,
        "base_model_relation": relation if record.bases else None,
        "datasets": datasets,
    }
    values: dict[str, Any] = {
        **licence,
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["tiny-audio", "speech", "audio", "speech-language-model"],
        **{key: value for key, value in optional.items() if value},
    }
    if record.co2_grams is not None:
        values["co2_eq_emissions"] = {
            "emissions": round(record.co2_grams, 3),
            "source": "power and emissions of electricity as given by the publisher, times the time of training",
            "training_type": "fine-tuning" if record.bases or record.begun_from else "pre-training",
            "hardware_used": record.metrics.get("hardware"),
        }
    if record.evaluations:
        values["metrics"] = ["wer"]
        results = [_evaluation_entry(result) for result in record.evaluations]
        values["model-index"] = [{"name": repo_id.split("/")[1], "results": results}]
    return values


def _evaluation_entry(result: EvalResult) -> dict[str, Any]:
    """One evaluation for `model-index`; rates are per cent there."""
    data = describe_data(result.data, result.details.get("data_revision"))
    low, high = (round(100 * bound, 2) for bound in result.metrics.wer_ci95)
    dataset = {
        "name": data.name,
        "type": data.hub_id or (CORPUS_TYPE if data.is_corpus else PRIVATE_TYPE),
        "split": data.split,
        "revision": data.revision,
    }
    return {
        "task": {"type": "automatic-speech-recognition", "name": "Speech recognition"},
        "dataset": {key: value for key, value in dataset.items() if value},
        "metrics": [
            {
                "type": "wer",
                "name": f"WER, % (95% interval {low} to {high})",
                "value": round(100 * result.metrics.wer, 2),
                "args": {
                    "confidence_interval_95": [low, high],
                    "normalizer": result.normalizer,
                    "samples": result.metrics.num_samples,
                },
            }
        ],
    }


def _render(template: str, record: Record, repo_id: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=one_line,
    )
    environment.filters.update(percent=percent, count=in_words)
    return environment.get_template(template).render(
        record=record,
        repo_id=repo_id,
        name=repo_id.split("/")[1],
        towers=describe_towers(record.architecture),
        sources=[describe_source(data) for data in record.train_data],
        evaluations=[_shown_evaluation(result) for result in record.evaluations],
        facts=training_facts(record),
        base_licences={name: BASE_LICENCES.get(name, "see its page") for name in record.bases},
        licence_is_stated=record.licence != NOT_STATED,
    )


def one_line(value: Any) -> Any:
    """A value that cannot break out of its table cell or line, whatever it holds."""
    return _BREAKS_MARKDOWN.sub(" ", value) if isinstance(value, str) else value


def percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"


def describe_towers(config: TinyAudioConfig) -> dict[str, str]:
    """What each part of the model is, in words."""
    audio: Any = config.audio_config
    text: Any = config.text_config
    projector = f"{config.projector_type}, {config.stack_factor} frames to one audio token"
    return {
        "encoder": _describe_tower(config.encoder_base, audio.model_type),
        "encoder LoRA": _describe_lora(config.encoder_lora),
        "projector": projector,
        "CTC heads": "alignment head over characters: word times, confidence, silence",
        "decoder": _describe_tower(config.decoder_base, text.model_type),
        "decoder LoRA": _describe_lora(config.decoder_lora),
        "total": "",
    }


def _describe_tower(base: dict[str, Any] | None, model_type: str) -> str:
    if base is None:
        return f"{model_type}, trained from random weights"
    at = f" at {base['revision'][:12]}" if base.get("revision") else ""
    return f"{base['name']}{at}"


def _describe_lora(settings: dict[str, Any] | None) -> str:
    if settings is None:
        return ""
    return f"rank {settings['r']} on {', '.join(settings['target_modules'])}"


def describe_source(data: Data) -> str:
    """Training data in one phrase."""
    notes = [
        f"split {data.split}" if data.split else "",
        f"revision {data.revision[:12]}" if data.revision else "",
        f"licence: {data.licence}" if data.licence else "",
    ]
    noted = "; ".join(note for note in notes if note)
    return f"{data.name}{f' ({noted})' if noted else ''}"


def training_facts(record: Record) -> list[tuple[str, str]]:
    """The rows of the card's table of training: what was measured or given, and "not measured" for the rest."""
    given, metrics = record.given, record.metrics
    steps = metrics.get("steps")
    run = record.run.get("run", {})
    max_steps = record.run.get("training", {}).get("max_steps")
    packages = ", ".join(f"{name} {version}" for name, version in (run.get("packages") or {}).items())
    going_on = None if record.step is None else f"{record.step:,} of {max_steps:,}: still in training"
    facts = {
        "steps": f"{steps:,}" if steps is not None else going_on,
        "audio heard, with repetition": _amount(metrics.get("audio_hours"), "h"),
        "hardware": metrics.get("hardware") or run.get("hardware"),
        "time in training steps": _duration(record.train_hours),
        "time of the whole run": _duration(record.run_hours if "run_seconds" in metrics else None),
        "cost": _amount(record.cost_usd, "USD", record.usd_per_hour, "USD an hour"),
        "energy": _amount(record.energy_kwh, "kWh", given.watts, "W"),
        "CO2": _amount(record.co2_grams, "g", given.co2_grams_per_kwh, "g a kWh"),
        "code": f"Tiny Audio at commit {run['git_hash']}" if run.get("git_hash") else None,
        "packages": packages or None,
    }
    return [(name, value or NOT_MEASURED) for name, value in facts.items()]


def _duration(hours: float | None) -> str | None:
    return None if hours is None else f"{3600 * hours:,.0f} s ({hours:.2f} h)"


def _amount(value: float | None, unit: str, given: float | None = None, given_unit: str = "") -> str | None:
    if value is None:
        return None
    assumption = "" if given is None else f", at {given:g} {given_unit}, as given by the publisher"
    return f"{value:,.3g} {unit}{assumption}"


def _shown_evaluation(result: EvalResult) -> dict[str, Any]:
    metrics, details = result.metrics, result.details
    data = describe_data(result.data, details.get("data_revision"))
    rows = details.get("num_rows")
    clips = f"{metrics.num_samples:,}"
    if rows is not None and metrics.num_samples < rows:
        clips += f" of {rows:,}"
    return {
        "data": f"{data.name}{f', {data.split}' if data.split else ''}",
        "clips": clips,
        "words": f"{metrics.reference_words:,}",
        "wer": percent(metrics.wer),
        "interval": " to ".join(percent(bound) for bound in metrics.wer_ci95),
        "counts": f"{metrics.substitutions:,} / {metrics.deletions:,} / {metrics.insertions:,}",
        "normalizer": result.normalizer,
        "failed": len(result.failed),
    }
