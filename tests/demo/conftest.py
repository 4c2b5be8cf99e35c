"""The hub on this machine, as the tests of publishing have it."""

from tests.publish.conftest import hub  # noqa: F401 (a fixture)
