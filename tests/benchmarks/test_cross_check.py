"""Our counts on recognised and adversarial pairs against jiwer, kaldialign and sclite."""

from typing import Any

import pytest

from tests.benchmarks import import_benchmarks


@pytest.fixture(scope="module")
def cross_check() -> Any:
    return import_benchmarks("cross_check")[0]


def test_every_pair_agrees_with_jiwer_and_kaldialign(cross_check: Any) -> None:
    sets = cross_check.make_sets(150, [])
    assert sum(map(len, sets.values())) >= 1000
    for name, pairs in sets.items():
        row, wrong = cross_check.check(name, pairs, None)
        assert wrong == []
        assert row["ours"] == row["jiwer"] and row["ours_total"] == row["kaldialign_total"] > 0


def test_a_pair_that_differs_is_named(cross_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_check, "of_kaldialign", lambda pair: 7)
    _, wrong = cross_check.check("set", [(["a"], ["b"])], None)
    assert len(wrong) == 1 and "kaldialign 7" in wrong[0]


def test_sclite_counts_the_same_where_it_is_installed(cross_check: Any) -> None:
    command = cross_check.find_sclite()
    if command is None:
        pytest.skip("sclite is not installed")
    pairs = [(["{", "b", "日本"], ["{", "x", "日本"]), ([], ["a"]), (["a", "b"], [])]
    assert cross_check.of_sclite(command, pairs) == (1, 2, 1)
