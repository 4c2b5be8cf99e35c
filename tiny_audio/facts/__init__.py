"""Architecture facts of the hub models that the recipes name, so that sizes are known before anything is downloaded.

One JSON file a model: `config` (what of its config.json the architecture needs), `tokenizer` or `feature_extractor`
traits, `source`, `checked_against`, `unchecked`, and `verified`, which is true only once `pytest -m hub` has compared
the file with the hub. Training never reads these files: it loads the model's own config.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from tiny_audio.errors import UserError, nearest

FACTS_FOLDER = Path(__file__).resolve().parent


def known_models() -> list[str]:
    """Hub ids with a file of facts."""
    return sorted(path.stem.replace("__", "/") for path in FACTS_FOLDER.glob("*.json"))


def model_facts(name: str) -> dict[str, Any]:
    """Everything that is written down about the hub model `name`. Raises UserError when nothing is."""
    if name not in known_models():
        raise UserError(f'no facts about "{name}" in tiny_audio/facts.{nearest(name, known_models())}')
    path = FACTS_FOLDER / f"{name.replace('/', '__')}.json"
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def model_config(name: str) -> PreTrainedConfig:
    """The transformers config of the hub model `name`, for building it on the meta device."""
    values = dict(model_facts(name)["config"])
    return CONFIG_MAPPING[values.pop("model_type")](**values)
