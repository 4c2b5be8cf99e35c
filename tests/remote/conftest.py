"""A rented machine, on this one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.remote.machine import Machine


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    yield machine
    machine.close()
