import json
import random
from pathlib import Path

import pytest

from tiny_audio.cli import main
from tiny_audio.evaluate.comparison import compare, verdict
from tiny_audio.evaluate.report import write_results
from tiny_audio.evaluate.results import EvalResult, UtteranceResult, read_evaluation
from tiny_audio.evaluate.scoring import score_texts, summarize

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def make_run(
    folder: Path, rows: list[tuple[str, str, str]], normalizer: str = "basic", model: str | None = None
) -> Path:
    """An evaluation of (id, reference, hypothesis) rows as tiny-audio eval writes it."""
    ids, references, hypotheses = (list(column) for column in zip(*rows, strict=True))
    scores = score_texts(references, hypotheses, normalizer)
    utterances = [
        UtteranceResult(name, f"clips/{name}.wav", 1.0, None, reference, hypothesis, score)
        for name, reference, hypothesis, score in zip(ids, references, hypotheses, scores, strict=True)
    ]
    metrics = summarize(scores, audio_seconds=len(rows), wall_seconds=0.5)
    write_results(EvalResult(metrics, utterances, normalizer, model or folder.name, "set"), folder)
    return folder


def make_rows(error_rate: float, seed: int, num_rows: int = 120) -> list[tuple[str, str, str]]:
    """The same references whatever the seed, with wrong words at the rate."""
    texts, errors = random.Random(0), random.Random(seed)
    rows = []
    for index in range(num_rows):
        reference = texts.choices(WORDS, k=texts.randint(3, 12))
        hypothesis = ["zero" if errors.random() < error_rate else word for word in reference]
        rows.append((f"u{index:03}", " ".join(reference), " ".join(hypothesis)))
    return rows


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A poor run, a good one, and one as poor as the first."""
    monkeypatch.chdir(tmp_path)
    for name, rate, seed in (("poor", 0.2, 1), ("good", 0.1, 2), ("alike", 0.2, 3)):
        make_run(tmp_path / name, make_rows(rate, seed))
    return ["poor", "good", "alike"]


def test_a_better_model_is_called_better(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "poor", "good"]) == 0
    output = capsys.readouterr().out
    assert "fewer errors than A; this is unlikely to be chance (p" in output
    assert "120 utterances" in output and "RTFx" in output and "240.0" in output
    assert output.count("B against A: the largest wins (10 of ") == 1
    assert "clips/u" in output and "    A: " in output and "    B: " in output and "HYP" not in output


def test_alike_models_are_not(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "poor", "alike"]) == 0
    assert "No difference that this set can show: B makes" in capsys.readouterr().out
    assert main(["compare", "poor", "poor"]) == 0
    output = capsys.readouterr().out
    assert "No difference: B and A make as many errors on every utterance." in output
    assert "largest" not in output


def test_figures_are_those_of_the_files(runs: list[str], tmp_path: Path) -> None:
    assert main(["compare", *runs, "--output-dir", "out/deep"]) == 0
    record = json.loads((tmp_path / "out" / "deep" / "comparison.json").read_text(encoding="utf-8"))
    results = [read_evaluation(tmp_path / name) for name in runs]
    for written, result in zip(record["runs"], results, strict=True):
        assert written["wer"] == result.metrics.wer and written["wer_ci95"] == list(result.metrics.wer_ci95)
        assert written["rtfx"] == 240 and written["not_in_common"] == 0
    pair, other = record["pairs"]
    assert (pair["first"], pair["second"], other["second"]) == ("A", "B", "C")
    assert pair["wer_difference"] == pytest.approx(results[1].metrics.wer - results[0].metrics.wer)
    low, high = pair["wer_difference_ci95"]
    assert low < pair["wer_difference"] < high < 0 and pair["probability_of_improvement"] > 0.99
    assert pair["p_value_holm"] == 2 * pair["p_value"] < 0.05 < other["p_value_holm"] == other["p_value"]
    assert pair["wins"] + pair["ties"] + pair["losses"] == 120
    gains = [win["errors"]["A"] - win["errors"]["B"] for win in pair["largest_wins"]]
    assert gains == sorted(gains, reverse=True) and gains[-1] > 0 and len(gains) == 10
    assert all(loss["errors"]["A"] < loss["errors"]["B"] for loss in pair["largest_losses"])
    win = pair["largest_wins"][0]
    assert win["audio"] == f"clips/{win['id']}.wav" and win["hypotheses"].keys() == {"A", "B"}
    text = (tmp_path / "out" / "deep" / "comparison.txt").read_text(encoding="utf-8")
    assert "corrected for 2 pairs (Holm)" in text and pair["verdict"] in text


def test_nothing_is_written_unless_asked(runs: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", *runs]) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_the_order_of_the_lines_does_not_matter(tmp_path: Path) -> None:
    rows, other = make_rows(0.2, 1), make_rows(0.1, 2)
    folders = [make_run(tmp_path / "a", rows), make_run(tmp_path / "b", other)]
    shuffled = [folders[0], make_run(tmp_path / "c", other[::-1])]
    straight, mixed = (compare([read_evaluation(f) for f in pair], pair) for pair in (folders, shuffled))
    assert straight.pairs == mixed.pairs


def test_other_utterances_are_refused_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = make_rows(0.2, 1)
    make_run(tmp_path / "a", rows)
    name, reference, hypothesis = rows[5]
    make_run(
        tmp_path / "b", [*rows[:5], (name, reference + " more", hypothesis), *rows[6:110], ("new", "one", "")]
    )
    assert main(["compare", "a", "b"]) == 2
    error = capsys.readouterr().err
    assert "10 only in a, 1 only in b, 1 with other references" in error and error.count("\n") == 1
    assert "--common compares the 109" in error
    assert main(["compare", "a", "b", "--common"]) == 0
    output = capsys.readouterr().out
    assert "109 utterances" in output and "left out: 11 of A, 2 of B" in output


def test_different_normalisers_are_refused_and_scored_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", [("1", "One, two", "one two"), ("2", "Colour", "color")], "none")
    make_run(tmp_path / "b", [("1", "One, two", "One, two"), ("2", "Colour", "colour")], "english")
    assert main(["compare", "a", "b"]) == 2
    error = capsys.readouterr().err
    assert "a none, b english" in error and "--normalizer" in error and error.count("\n") == 1
    assert main(["compare", "a", "b", "--normalizer", "basic"]) == 0
    output = capsys.readouterr().out
    assert "normaliser basic" in output and "A  a" in output and "0.3333" in output
    assert "Too few utterances to tell: B makes 100% fewer errors than A" in output


def test_empty_references_count(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / "a", [("1", "", "noise noise"), ("2", "one", "one")]),
        make_run(tmp_path / "b", [("1", "", ""), ("2", "one", "")]),
    ]
    comparison = compare([read_evaluation(folder) for folder in folders], folders)
    assert (comparison.errors(0), comparison.errors(1)) == ([2, 0], [0, 1])
    assert "B makes 50% fewer errors than A" in verdict(comparison, comparison.pairs[0])


def test_hostile_text_does_not_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", [("\x1b[2Jid", "one", "one")], "none", model="\x1b]0;title\x07")
    make_run(tmp_path / "b", [("\x1b[2Jid", "one", "\x1b[31mred")], "none")
    assert main(["compare", "a", "b"]) == 0
    output = capsys.readouterr().out
    assert "B makes 1 error and A none" in output
    assert "\x1b" not in output and "\x07" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["poor"], "2 to 26 runs, not 1"),
        (["poor", "nowhere"], "nowhere holds no evaluation"),
        (["poor", "other"], "have no utterance in common"),
        (["poor", "other", "--common"], "have no utterance in common"),
        (["poor", "twice"], "2 utterances called 'x'"),
        (["poor", "good", "--normalizer", "leaderbord"], 'Did you mean "leaderboard"'),
        (["poor", "good", "--output-dir", "poor/metrics.json"], "is a file"),
        (["poor", "broken"], "cannot be read"),
        ([], "runs"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    arguments: list[str], message: str, runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "other", [("x", "one", "one")])
    make_run(tmp_path / "twice", [("x", "one", "one"), ("x", "one", "two")])
    make_run(tmp_path / "broken", [("x", "one", "one")])
    (tmp_path / "broken" / "results.jsonl").write_text("{", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before
