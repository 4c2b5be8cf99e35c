"""The leaderboard: rows from evaluations that reproduce, hostile rows, and the files that are made from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.evaluate.listener import Listener, write_manifest
from tiny_audio.cli import main
from tiny_audio.data.corpus import read_index
from tiny_audio.data.sources import open_source
from tiny_audio.evaluate.leaderboard_page import format_page, format_plot, ranks
from tiny_audio.evaluate.leaderboard_rows import (
    DATA_FILE,
    KEYS,
    dump_rows,
    read_rows,
    required_samples,
    row_problems,
)
from tiny_audio.evaluate.report import write_results
from tiny_audio.evaluate.results import EvalResult
from tiny_audio.evaluate.runner import evaluate

ROOT = Path(__file__).resolve().parents[2]
FILES = ("docs/leaderboard.jsonl", "docs/LEADERBOARD.md", "docs/leaderboard.svg")
OTHER = ["--set-name", "digits", "--set-url", "https://example.org/digits"]
COMMIT = "0123456789ab"

ROW: dict[str, Any] = {
    "set": "corpus:test",
    "set_url": None,
    "model": "nano",
    "contributor": "@ada",
    "state": "verified",
    "wer": 0.1,
    "wer_ci95": [0.08, 0.12],
    "substitutions": 60,
    "deletions": 30,
    "insertions": 10,
    "reference_words": 1000,
    "samples": 384,
    "rows": 384,
    "failed": 0,
    "normalizer": "basic",
    "rtfx": 12.5,
    "hardware": "Intel(R) Xeon(R) Processor @ 2.50GHz, 2 threads",
    "git_hash": COMMIT,
    "data_revision": None,
    "date": "2026-11-21",
    "cost_usd": 0.0,
}


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository with an empty leaderboard, in which commands run."""
    folder = tmp_path / "checkout"
    (folder / "docs").mkdir(parents=True)
    (folder / DATA_FILE).write_text("", encoding="utf-8")
    (folder / "README.md").write_text("hello\n", encoding="utf-8")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "start")
    git(folder, "tag", COMMIT)  # a name that is looked up as the hash of a commit is
    monkeypatch.chdir(folder)
    return folder


def small_evaluation(folder: Path) -> EvalResult:
    rows = [("a1", 4000, "one two"), ("a2", 8000, "three"), ("b1", 6000, "nine nine nine")]
    write_manifest(folder / "digits", rows)
    listener = Listener({4000: "one two", 8000: "free", 6000: RuntimeError("too loud")})
    return evaluate(listener, open_source(folder / "digits"), model_name="ada/listener", normalizer="basic")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of an evaluation, with the details that the command writes."""
    result = small_evaluation(tmp_path)
    result.details.update(git_hash=COMMIT, num_rows=3, date="2026-11-21T10:00:00", hardware="NVIDIA A40")
    write_results(result, tmp_path / "run")
    return tmp_path / "run"


def change(run: Path, **values: Any) -> None:
    path = run / "metrics.json"
    metrics = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(
        json.dumps({key: value for key, value in metrics.items() if value != "none"}), encoding="utf-8"
    )


def add(run: Path, *more: str) -> int:
    return main(["leaderboard", "add", str(run), "--contributor", "@ada", *more])


def test_a_run_becomes_a_row_a_line_of_the_page_and_a_point(checkout: Path, run: Path) -> None:
    assert add(run, *OTHER, "--cost", "1.5") == 0
    rows, problems = read_rows(checkout / DATA_FILE)
    assert problems == [] and len(rows) == 1
    row = rows[0]
    assert (row["set"], row["model"], row["cost_usd"], row["failed"]) == ("digits", "ada/listener", 1.5, 1)
    assert row["wer"] == pytest.approx(4 / 6) and row["state"] == "verified" and row["date"] == "2026-11-21"
    page = (checkout / FILES[1]).read_text(encoding="utf-8")
    assert "## Other sets" in page and "<https://example.org/digits>" in page
    assert "**66.67%**" in page and "3 (1 failed)" in page and "$1.50" in page and "NVIDIA A40" in page
    assert "66.67%" in "".join(ElementTree.parse(checkout / FILES[2]).getroot().itertext())
    before = [(checkout / name).read_bytes() for name in FILES]
    assert main(["leaderboard", "build"]) == main(["leaderboard", "check"]) == 0
    assert [(checkout / name).read_bytes() for name in FILES] == before


def test_rows_can_be_added_one_after_the_other_and_only_once(
    checkout: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(run, *OTHER) == 0  # from here on the leaderboard's own files differ from the commit
    assert add(run, *OTHER, "--model", "another") == 0
    assert add(run, *OTHER) == 2
    assert "already has a row on digits" in capsys.readouterr().err
    assert len(read_rows(checkout / DATA_FILE)[0]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wer": 0.5}, "metrics.json says wer 0.5, its results.jsonl gives 0.66"),
        ({"wer_ci95": [0.0, 0.1]}, "says wer_ci95"),
        ({"substitutions": 0}, "says substitutions 0, its results.jsonl gives 1"),
        ({"failed": 0}, "says failed 0, its results.jsonl gives 1"),
        ({"wer": float("nan")}, "says wer nan"),
        ({"rtfx": 99.0, "audio_seconds": 10.0, "wall_seconds": 5.0}, "says rtfx 99.0; its seconds give 2.00"),
        ({"git_hash": f"{COMMIT}-dirty"}, "a tree with changes that no commit holds"),
        ({"git_hash": "none"}, "not known (None). Commit"),
        ({"num_rows": "none"}, "how many rows the set has"),
        ({"num_rows": 300}, "3 samples; a row of digits needs 300"),
        ({"date": "none"}, "date is 'None', not a date"),
        ({"hardware": "<script>"}, "hardware is '<script>'"),
        ({"model": "/home/ada/model"}, "a name on your machine only; give the row's by --model"),
    ],
)
def test_runs_that_are_refused(
    checkout: Path, run: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    change(run, **changes)
    assert add(run, *OTHER) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (checkout / DATA_FILE).read_text(encoding="utf-8") == ""


def test_a_private_set_a_partial_copy_and_a_dirty_tree_are_refused(
    checkout: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(run) == 2
    assert "not a set that others can get" in capsys.readouterr().err
    change(run, data="LibriSpeech-clean:test")
    assert add(run) == 2  # three rows of a copy are not the set, whatever num_rows says
    assert "3 samples; a row of LibriSpeech-clean:test needs 2,594" in capsys.readouterr().err
    assert add(run, *OTHER) == 2
    assert "leave out --set-name" in capsys.readouterr().err
    (checkout / "README.md").write_text("changed\n", encoding="utf-8")
    assert add(run) == 2
    assert "has changes that no commit holds (README.md)" in capsys.readouterr().err


def test_a_failure_needs_its_reason(checkout: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line.update({"error": ""} if "error" in line else {})
    (run / "results.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert add(run, *OTHER) == 2
    assert "b1 failed, so it must have a reason" in capsys.readouterr().err


def change_line(run: Path, **values: Any) -> None:
    """The first line of results.jsonl with other values."""
    path = run / "results.jsonl"
    first, *others = path.read_text(encoding="utf-8").splitlines()
    path.write_text(
        "\n".join([json.dumps({**json.loads(first), **values}), *others]) + "\n", encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"substitutions": 7}, "a1: results.jsonl says substitutions 7, its texts give 0"),
        ({"hypothesis_normalized": "one"}, "a1: results.jsonl says hypothesis_normalized 'one'"),
        ({"reviewed": True}, "a1: results.jsonl says reviewed True, its texts give None"),
    ],
)
def test_lines_that_their_texts_do_not_give_are_refused(
    checkout: Path, run: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], message: str
) -> None:
    change_line(run, **values)
    assert add(run, *OTHER) == 2
    assert message in capsys.readouterr().err


def test_a_commit_that_nobody_has_is_refused(
    checkout: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run, git_hash="deadbeefdead")
    assert add(run, *OTHER) == 2
    assert "has no commit deadbeefdead" in capsys.readouterr().err
    strange = {**ROW, "git_hash": "deadbeefdead"}
    (checkout / DATA_FILE).write_text(dump_rows([ROW, strange]), encoding="utf-8")
    assert main(["leaderboard", "build"]) == 0 and main(["leaderboard", "check"]) == 2
    assert "nano on corpus:test: the repository has no commit deadbeefdead" in capsys.readouterr().err
    (checkout / DATA_FILE).write_text(dump_rows([strange]), encoding="utf-8")  # files copied elsewhere
    assert main(["leaderboard", "build"]) == main(["leaderboard", "check"]) == 0


def test_references_must_be_those_of_the_corpus(
    checkout: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run, data="corpus:test")
    assert add(run) == 2
    assert "the reference of a1 is 'one two'; corpus:test has None" in capsys.readouterr().err


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"model": "<img src=x onerror=alert(1)>"}, "model is"),
    ({"model": "a](https://evil.example)[b"}, "model is"),
    ({"model": "a | b"}, "model is"),
    ({"model": "www.evil.example"}, "model is"),
    ({"model": "line\nbreak"}, "model is 'line\\nbreak'"),
    ({"model": "x" * 81}, "model is"),
    ({"model": 7}, "model is 7"),
    ({"contributor": "@ada](https://evil)"}, "contributor is"),
    ({"contributor": "**ada**"}, "contributor is"),
    ({"hardware": "mail ada@example.org"}, "hardware is"),
    ({"hardware": "\u202egpu"}, "hardware is '\\u202egpu'"),
    ({"set_url": "javascript:alert(1)"}, "set_url is"),
    ({"set": "my folder"}, "no set_url says where it lies"),
    ({"set": "ami:test"}, "its one name is AMI:test"),
    ({"set": "LibriSpeech-clean:train"}, "has no split 'train'"),
    ({"wer": -0.1}, "wer is -0.1"),
    ({"wer": 1e300}, "wer is 1e+300"),
    ({"wer": True}, "wer is True"),
    ({"wer": "0.1"}, "wer is '0.1'"),
    ({"wer": 0.01}, "are another rate"),
    ({"wer_ci95": [0.2, 0.3]}, "outside its interval"),
    ({"wer_ci95": [0.3, 0.2]}, "wer_ci95 is"),
    ({"wer_ci95": None}, "a verified row needs wer_ci95"),
    ({"reference_words": 0}, "are another rate"),
    ({"samples": 5}, "5 samples; a row of corpus:test needs 384"),
    ({"samples": 385}, "do not fit together"),
    ({"rtfx": 1e12}, "rtfx is"),
    ({"cost_usd": -1}, "cost_usd is -1"),
    ({"git_hash": f"{COMMIT}-dirty"}, "git_hash is"),
    ({"date": "2026-13-01"}, "date is"),
    ({"state": "certain"}, "state is"),
    ({"normalizer": "mine"}, "normalizer is"),
    ({"modell": "x"}, "unknown key 'modell'. Did you mean \"model\"?"),
]


@pytest.mark.parametrize(("changes", "reason"), HOSTILE)
def test_hostile_rows(
    checkout: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], reason: str
) -> None:
    assert row_problems(ROW) == []
    (checkout / DATA_FILE).write_text(json.dumps({**ROW, **changes}) + "\n", encoding="utf-8")
    assert main(["leaderboard", "check"]) == 2
    error = capsys.readouterr().err
    assert f"line 1: {reason}" in error or reason in error
    assert error.isascii() and error.splitlines()[-1].endswith("to mend, listed above.")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps(ROW).replace("0.1,", "NaN,", 1), "NaN is not a number"),
        (json.dumps(ROW).replace("0.1,", "Infinity,", 1), "Infinity is not a number"),
        (json.dumps(ROW)[:-1] + ', "wer": 0.0}', "a key stands there twice"),
        ("[1]", "is not a JSON object"),
        ("<<<<<<< HEAD", "is not one JSON object"),
        ("", "is not one JSON object"),
        ("[" * 100_000, "is not one JSON object"),
        (json.dumps({key: value for key, value in ROW.items() if key != "wer"}), "the key wer is missing"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW), "line 2: is the same row as line 1"),
        (json.dumps(ROW, indent=None, separators=(",", ":")), "not written as"),
    ],
)
def test_broken_lines(checkout: Path, capsys: pytest.CaptureFixture[str], line: str, reason: str) -> None:
    (checkout / DATA_FILE).write_text(line + "\n", encoding="utf-8")
    assert main(["leaderboard", "check"]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES[1:])
def test_a_page_changed_by_hand_is_found(
    checkout: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (checkout / DATA_FILE).write_text(dump_rows([ROW]), encoding="utf-8")
    assert main(["leaderboard", "build"]) == main(["leaderboard", "check"]) == 0
    with (checkout / name).open("a", encoding="utf-8") as file:
        file.write("<script/>")
    assert main(["leaderboard", "check"]) == 2
    assert f"{Path(name)} is not what" in capsys.readouterr().err


def test_ranks_are_shared_where_intervals_overlap() -> None:
    def row(low: float, high: float, normalizer: str = "basic") -> dict[str, Any]:
        return {**ROW, "wer_ci95": [low, high], "normalizer": normalizer}

    rows = [row(0.01, 0.02), row(0.04, 0.06), row(0.05, 0.07), row(0.08, 0.09), {**ROW, "wer_ci95": None}]
    assert ranks(rows) == ["1", "2=", "2=", "4", "–"]
    assert ranks([row(0.01, 0.02), row(0.01, 0.02, "english")]) == ["1", "1"]


def test_the_order_of_additions_does_not_matter_and_long_names_stay_in_the_drawing() -> None:
    rows = [{**ROW, "model": name} for name in ("b", "a" * 80, "c & d")]
    rows[2] = {**ROW, "model": "wide", "wer": 3.0, "wer_ci95": [2.0, 4.0]}
    for make in (dump_rows, format_page, format_plot):
        assert make(rows) == make(rows[::-1])
    root = ElementTree.fromstring(format_plot(rows))
    width = float(root.attrib["width"])
    points = [float(circle.attrib["cx"]) for circle in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(points) == 3 and max(points) < width
    assert "300.00% →" in "".join(root.itertext()) and "a" * 40 not in "".join(root.itertext())


def test_what_is_committed_is_in_order_and_shows_the_first_figure_as_reported() -> None:
    rows, problems = read_rows(ROOT / DATA_FILE)
    assert problems == [] and all(set(row) == set(KEYS) for row in rows)
    assert format_page(rows) == (ROOT / FILES[1]).read_text(encoding="utf-8")
    assert format_plot(rows) == (ROOT / FILES[2]).read_text(encoding="utf-8")
    [line] = [line for line in format_page(rows).splitlines() if "5a5f3a0" in line]
    assert "**12.14%**" in line and "2025-10-23 | as reported, not verified" in line and "@alexkroman" in line


def test_the_check_runs_without_torch_in_what_the_workflow_installs() -> None:
    script = (
        "import sys; from tiny_audio.cli import main; code = main(['leaderboard', 'check']);"
        "print(code, [n for n in ('torch', 'transformers', 'datasets', 'soundfile') if n in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert result.stdout.splitlines()[-1] == "0 []"


def test_show_prints_one_set(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROW, {**ROW, "set": "digits", "set_url": "https://example.org", "model": "other"}]
    (checkout / DATA_FILE).write_text(dump_rows(rows), encoding="utf-8")
    assert main(["leaderboard", "show", "--set", "corpus:test"]) == 0
    output = capsys.readouterr().out
    assert "nano" in output and "10.00%" in output and "other" not in output
    assert main(["leaderboard", "show", "--set", "corpus"]) == 2
    assert 'Did you mean "corpus:test"?' in capsys.readouterr().err


def test_outside_a_checkout_its_own_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "check"]) == 0


def test_samples_that_a_set_needs() -> None:
    assert (
        required_samples("LoquaciousSet:test", 8000) == 500
        and required_samples("LoquaciousSet:test", 30) == 30
    )
    assert required_samples("corpus:test", 384) == 384 == len(read_index("test"))
    assert required_samples("corpus:test", 50) == 384  # whatever a row says of the set
    assert required_samples("SPGISpeech:test", 10) == 38948 and required_samples("CommonVoice:dev", 10) == 10
