"""What several tests of training start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_models import save_bases
from tests.train.short_runs import write_speech


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bases(tmp_path_factory.mktemp("models"))
