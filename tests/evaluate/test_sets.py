"""Several sets in one evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluate.listener import Listener, write_manifest
from tiny_audio.cli import main
from tiny_audio.data.sources import open_source
from tiny_audio.errors import UserError
from tiny_audio.evaluate import providers
from tiny_audio.evaluate.results import EvalResult
from tiny_audio.evaluate.runner import evaluate
from tiny_audio.evaluate.sets import format_macro_table, join_sets, macro_average

ROWS = [("a1", 4000, "one two"), ("a2", 8000, "three"), ("b1", 6000, "nine nine nine")]
MORE = [("c1", 5000, "four"), ("c2", 7000, "five six")]
ANSWERS: dict[int, str | BaseException] = {
    **{4000: "one two", 8000: "free", 6000: "nine nine nine"},
    **{5000: "four", 7000: "five five"},
}


def evaluation(folder: Path, rows: list[tuple[str, int, str]]) -> EvalResult:
    source = open_source(write_manifest(folder, rows))
    return evaluate(Listener(ANSWERS), source, model_name="x", normalizer="basic")


def test_the_average_of_sets_is_that_of_their_rates(tmp_path: Path) -> None:
    first, second = evaluation(tmp_path / "a", ROWS), evaluation(tmp_path / "b", MORE)
    assert macro_average([first, second]) == pytest.approx((1 / 6 + 1 / 3) / 2)
    lines = format_macro_table([first, second]).splitlines()
    assert len(lines) == 3 and "16.67%" in lines[0] and "33.33%" in lines[1] and "25.00%" in lines[2]
    with pytest.raises(UserError):
        macro_average([])
    listener = Listener({**ANSWERS, 8000: RuntimeError("too loud")})
    failed = evaluate(listener, open_source(tmp_path / "a"), model_name="x", normalizer="basic")
    assert "1 failed" in format_macro_table([failed, second]).splitlines()[0]
    joined = join_sets({"a": first, "b": second})
    assert joined.metrics.wer == pytest.approx(2 / 9) and joined.metrics.num_samples == 5
    assert [utterance.id for utterance in joined.utterances][-1] == "b/c2"


class Interrupted(Listener):
    def transcribe(self, waveforms: list) -> list[str]:
        if any(len(waveform) == 7000 for waveform in waveforms) and INTERRUPTED:
            raise KeyboardInterrupt
        return super().transcribe(waveforms)


INTERRUPTED: list[bool] = []


def test_a_batch_that_was_stopped_in_its_second_set_recognises_the_first_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "a", ROWS)
    write_manifest(tmp_path / "b", MORE)
    listeners: list[Listener] = []

    def load(*arguments: object) -> Listener:
        listeners.append(Interrupted(ANSWERS))
        return listeners[-1]

    monkeypatch.setitem(providers.PROVIDERS, "listener", providers.ProviderEntry(load, "a listener by hand"))
    command = ["eval", "--provider", "listener", "--data", "a", "--data", "b", "--batch-size", "1"]
    INTERRUPTED.append(True)
    assert main(command) == 130
    INTERRUPTED.clear()
    assert main(command) == 0
    heard = [length for call in listeners[1].calls for length in call]
    assert set(heard) == {5000, 7000}  # and not one clip of the first set
    folder = tmp_path / "outputs" / "eval_listener_2-sets"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["macro_average_wer"] == pytest.approx((1 / 6 + 1 / 3) / 2)
    assert [each["data"] for each in metrics["sets"]] == ["a", "b"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "By set" in page and "Average of the sets" in page and "25.00%" in page
    assert page.count("data:audio") == 2  # the two clips with errors can be heard
    assert "average" in (folder / "summary.txt").read_text(encoding="utf-8")
    assert not list(tmp_path.rglob(".transcripts.jsonl"))
    assert "All sets on one page" in capsys.readouterr().out
