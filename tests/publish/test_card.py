"""The card says what the run's files say, what was given, and "not measured" for the rest; never where things lay."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.documented import ROOT
from tests.local_hub import card_problems, read_metadata
from tests.tiny_models import LLAMA, WHISPER, architecture
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_config import TinyAudioConfig
from tiny_audio.publish.card import render_card, render_licence
from tiny_audio.publish.given import Given
from tiny_audio.publish.record import (
    Record,
    describe_data,
    find_evaluations,
    find_run_folder,
    load_evaluation,
    read_record,
)
from tiny_audio.publish.staging import read_architecture

NAME = "ada/model"
BASES = {
    "encoder_base": {"name": "openai/whisper-base", "revision": "e37978b90ca9030d5170a5c07aadb050351a65bb"}
}
BASES["decoder_base"] = {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": None}


def adapter(**values: Any) -> TinyAudioConfig:
    settings: dict[str, Any] = {
        "audio_config": architecture(WHISPER),
        "text_config": architecture({**LLAMA, "vocab_size": 99}),
        "encoder_in_checkpoint": False,
        "decoder_in_checkpoint": False,
        "decoder_lora": {
            "r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.0,
            "target_modules": ["q_proj", "v_proj"],
            "use_rslora": False,
            "use_dora": False,
        },
        **BASES,
    }
    return TinyAudioConfig(**{**settings, **values})


def record_of(run_folder: Path, given: Given = Given()) -> Record:
    return read_record(run_folder, read_architecture(run_folder / "model"), given)


def test_parameters_are_counted(run_folder: Path) -> None:
    record = record_of(run_folder)
    model = sum(row.parameters for row in record.parts[:-1])
    metrics = json.loads((run_folder / "config.yaml").with_name("metrics.json").read_text(encoding="utf-8"))
    assert record.parts[-1].parameters == model
    assert "parameters" not in metrics, "so they are counted, not copied"
    from safetensors import safe_open

    with safe_open(run_folder / "model" / "model.safetensors", framework="pt") as weights:
        sizes = [weights.get_tensor(name).numel() for name in weights.keys()]  # noqa: SIM118
    assert model == sum(sizes)
    assert f"| total |  | {model / 1000:.1f}k |" in render_card(record, NAME)


def test_what_was_not_measured_is_not_stated(run_folder: Path) -> None:
    text = render_card(record_of(run_folder), NAME)
    for fact in ("cost", "energy", "CO2"):
        assert f"| {fact} | not measured |" in text
    assert "| hardware | an abacus, 2 threads |" in text
    assert "| time in training steps | 3,600 s (1.00 h) |" in text
    assert "| audio heard, with repetition | 0.5 h |" in text
    assert "co2_eq_emissions" not in read_metadata(text)
    nothing_known = Record(adapter(), [], Given())
    assert render_card(nothing_known, NAME).count("not measured |") == 10
    assert "No evaluation of it is known here." in render_card(nothing_known, NAME)


def test_given_figures_state_their_assumptions(run_folder: Path) -> None:
    record = record_of(run_folder, Given(usd_per_hour=0.5, watts=300, co2_grams_per_kwh=400))
    text = render_card(record, NAME)
    assert "| cost | 0.5 USD, at 0.5 USD an hour, as given by the publisher |" in text
    assert "| energy | 0.3 kWh, at 300 W, as given by the publisher |" in text
    assert "| CO2 | 120 g, at 400 g a kWh, as given by the publisher |" in text
    assert read_metadata(text)["co2_eq_emissions"]["emissions"] == pytest.approx(120)


def test_what_is_paid_for_is_the_whole_run(run_folder: Path) -> None:
    record = record_of(run_folder, Given(watts=300))
    metrics = {**record.metrics, "run_seconds": 7200.0}
    run = {**record.run, "training": {**record.run["training"], "usd_per_hour": 0.25}}
    text = render_card(replace(record, metrics=metrics, run=run), NAME)
    assert (
        "| time in training steps | 3,600 s (1.00 h) |\n| time of the whole run | 7,200 s (2.00 h) |" in text
    )
    assert "| cost | 0.5 USD, at 0.25 USD an hour, as given by the publisher |" in text
    assert "| energy | 0.6 kWh, at 300 W, as given by the publisher |" in text
    assert "training steps alone" not in " ".join(text.split())
    assert "training steps alone" in " ".join(render_card(record, NAME).split())


def test_times_are_promised_where_the_model_has_them(run_folder: Path) -> None:
    record = record_of(run_folder)
    assert "return_timestamps" in render_card(record, NAME)
    without = copy.deepcopy(record.architecture)
    without.ctc_vocabulary = None
    assert "return_timestamps" not in render_card(replace(record, architecture=without), NAME)


def test_metadata_of_an_adapter(run_folder: Path) -> None:
    record = replace(record_of(run_folder), architecture=adapter())
    text = render_card(record, NAME)
    metadata = read_metadata(text)
    assert card_problems(text) == []
    assert metadata["base_model"] == ["openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert metadata["base_model_relation"] == "adapter"
    assert metadata["license"] == "apache-2.0", "that of both bases"
    assert (metadata["library_name"], metadata["pipeline_tag"]) == (
        "transformers",
        "automatic-speech-recognition",
    )
    assert "soxr peft\n" in text and "rank 4 on q_proj, v_proj" not in text, "no such row without such parts"
    assert "openai/whisper-base at e37978b90ca9" in text
    whole = render_card(replace(record, stands_alone=True), NAME)
    assert read_metadata(whole)["base_model_relation"] == "finetune" and "soxr peft\n" not in whole


@pytest.mark.parametrize(
    ("decoder", "given", "licence"),
    [
        ("openai/whisper-large-v3-turbo", None, "other"),  # mit and apache-2.0
        ("somebody/model", None, "other"),
        ("somebody/model", "cc-by-4.0", "cc-by-4.0"),
        ("Qwen/Qwen3-8B", None, "apache-2.0"),
    ],
)
def test_a_licence_is_that_of_the_bases_or_none(decoder: str, given: str | None, licence: str) -> None:
    config = adapter(decoder_base={"name": decoder, "revision": None})
    text = render_card(Record(config, [], Given(license=given)), NAME)
    assert read_metadata(text)["license"] == licence
    assert card_problems(text) == []
    assert ("stated no licence" in text) == (licence == "other")


def test_a_model_of_ones_own_recordings_has_no_licence_until_it_is_stated(run_folder: Path) -> None:
    record = record_of(run_folder)
    assert record.licence == "mit", "the embedded corpus alone"
    record.run["data"]["train"] = ["corpus:train", "/home/ada/patients"]
    assert record.licence == "other"
    assert record.languages == []
    assert replace(record, given=Given(languages=("de",))).languages == ["de"]


@pytest.mark.parametrize(
    ("init_from", "name"),
    [
        ("outputs/hospital/model", "a model that is not public"),
        ("patients/ada", "a model that is not public"),
        ("~nobody9/x", "a model that is not public"),
        ("ada/asr", "ada/asr"),
    ],
)
def test_a_model_that_went_on_from_another_says_so_and_promises_nothing_for_it(
    run_folder: Path, init_from: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = {"ada/asr": "/cache/config.json"}  # what was fetched from the hub
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: cached.get(name))
    record = record_of(run_folder)
    record.run["init_from"] = init_from
    text, licence = render_card(record, NAME), render_licence(record, NAME)
    assert f"It went on from another Tiny Audio model: {name}." in text
    assert f"what another Tiny Audio model was trained on: {name}\n" in licence
    assert record.licence == "other" and "stated no licence" in licence
    assert "Anything but digits" not in text and "patients" not in text + licence
    assert replace(record, given=Given(license="mit")).licence == "mit"
    assert card_problems(text) == []


@pytest.mark.parametrize(
    ("source", "name", "hub_id"),
    [
        ("/home/ada/patients/manifest.jsonl", "recordings that are not public", None),
        ("recordings", "recordings that are not public", None),
        ("C:\\Users\\ada\\x.parquet", "recordings that are not public", None),
        ("hub:ada/secret-set:train", "ada/secret-set", "ada/secret-set"),
        ("hub:speechbrain/LoquaciousSet/small:train", "LoquaciousSet/small", "speechbrain/LoquaciousSet"),
        ("LibriSpeech-clean", "LibriSpeech-clean", "hf-audio/open-asr-leaderboard"),
        ("corpus:train", "spoken digits by synthetic voices, the corpus inside Tiny Audio", None),
        ("hub:broken", "recordings that are not public", None),
    ],
)
def test_sources_are_named_without_places(source: str, name: str, hub_id: str | None) -> None:
    data = describe_data(source)
    assert (data.name, data.hub_id) == (name, hub_id)


def test_a_card_cannot_be_broken_by_what_it_holds(run_folder: Path) -> None:
    record = record_of(run_folder)
    record.metrics["hardware"] = "a | <script>alert(1)</script>\n\n# Heading"
    text = render_card(record, NAME)
    assert "<script>" not in text and "\n# Heading" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| hardware")]
    assert row.count("|") == 3


def test_evaluations_beside_the_run_are_found(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    shutil.copytree(run_folder.parent, work / "outputs")
    monkeypatch.chdir(work)
    model = work / "outputs" / "run" / "model"
    run = find_run_folder(model)
    assert run == work / "outputs" / "run"
    ours, older, others = (work / "outputs" / f"eval_{name}" for name in ("ours", "older", "others"))
    for folder, changes in (
        (ours, {"date": "2099-01-01T00:00:00+00:00"}),
        (older, {"date": "2001-01-01T00:00:00+00:00"}),
        (others, {"model": "outputs/another/model", "date": "2099-01-01T00:00:00+00:00"}),
    ):
        folder.mkdir()
        shutil.copy(run / "results.jsonl", folder)
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8")) | changes
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (work / "outputs" / "eval_odd").mkdir()
    (work / "outputs" / "eval_odd" / "metrics.json").write_text(
        '{"model": "~nobody9/x", "date": "2099-01-01T00:00:00+00:00"}', encoding="utf-8"
    )
    assert find_evaluations(model, run) == ([run, ours], [older])


def test_a_linked_model_keeps_its_record(run_folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(run_folder / "model", weights)
    (tmp_path / "run").mkdir()
    shutil.copy(run_folder / "config.yaml", tmp_path / "run")
    (tmp_path / "run" / "model").symlink_to(weights)
    assert find_run_folder(tmp_path / "run" / "model") == tmp_path / "run"
    (tmp_path / "link").symlink_to(run_folder / "model")
    assert find_run_folder(tmp_path / "link") == run_folder


def test_figures_that_do_not_follow_from_the_transcripts_are_refused(
    run_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(run_folder / "results.jsonl", tmp_path)
    metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))
    assert load_evaluation(run_folder).metrics.wer == metrics["wer"]
    (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "wer": 0.01}), encoding="utf-8")
    with pytest.raises(UserError, match=r"states a WER of 0\.0100, but"):
        load_evaluation(tmp_path)


def test_a_training_that_goes_on_says_so(run_folder: Path, tmp_path: Path) -> None:
    shutil.copy(run_folder / "config.yaml", tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 40}\n{"step": 50}\n', encoding="utf-8")
    record = read_record(tmp_path, adapter(), Given(), in_training=True)
    text = render_card(record, NAME)
    assert "still in training** (step 50)" in text and "No evaluation of it is known here." in text


def test_the_code_keeps_its_licence(run_folder: Path) -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert render_licence(record_of(run_folder), NAME).endswith(licence)


def test_links_of_the_card_need_nothing_of_this_machine(run_folder: Path) -> None:
    text = render_card(record_of(run_folder), NAME)
    assert str(run_folder) not in text and os.sep + "tmp" not in text
