"""A hub on this machine that the client inside this process takes for the real one, and a small finished run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.local_hub import LocalHub
from tests.tiny_models import tiny_config
from tiny_audio.data.sources import open_source
from tiny_audio.evaluate.providers import TinyAudioProvider
from tiny_audio.evaluate.report import write_results
from tiny_audio.evaluate.results import metrics_record
from tiny_audio.evaluate.runner import evaluate
from tiny_audio.publish import upload
from tiny_audio.train.build import build_model
from tiny_audio.train.config import config_to_yaml
from tiny_audio.train.run import provenance, save_model

FIGURES = {"train_seconds": 3600.0, "steps": 7, "audio_hours": 0.5, "hardware": "an abacus, 2 threads"}


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """outputs/run as training leaves it: config.yaml, an evaluation, figures, model/."""
    folder = tmp_path_factory.mktemp("work") / "outputs" / "run"
    folder.mkdir(parents=True)
    config = tiny_config()
    model, processor = build_model(config)
    model.eval()
    save_model(model, processor, folder / "model")
    source = open_source("corpus:test")
    (folder / "config.yaml").write_text(
        config_to_yaml(config, provenance(config, model, [source])), encoding="utf-8"
    )
    provider = TinyAudioProvider(model, processor, max_new_tokens=8)
    result = evaluate(provider, source, model_name="outputs/run/model", max_samples=3)
    write_results(result, folder)
    (folder / "metrics.json").write_text(json.dumps({**metrics_record(result), **FIGURES}), encoding="utf-8")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """An empty hub; the client, which has read its settings when it was imported, is pointed at it."""
    with LocalHub() as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(upload, "WAIT_SECONDS", 0.01)
        yield hub
