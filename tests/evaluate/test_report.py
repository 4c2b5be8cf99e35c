import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluate.listener import Listener, write_manifest
from tiny_audio import files
from tiny_audio.data.sources import open_source
from tiny_audio.errors import UserError
from tiny_audio.evaluate.report import (
    aligned_lines,
    format_samples,
    write_results,
    write_samples,
)
from tiny_audio.evaluate.results import EvalResult, read_evaluation
from tiny_audio.evaluate.runner import evaluate
from tiny_audio.evaluate.wer import align
from tiny_audio.files import write_files

ROWS = [
    ("good", 4000, "Good morning."),
    ("bad", 5000, "the cat sat on the mat"),
    ("worse", 6000, "one two three four five six seven"),
    ("silent", 7000, ""),
    ("lost", 8000, "never heard"),
]
ANSWERS: dict[int, str | Exception] = {
    4000: "good morning",
    5000: "the cat sit on mat",
    6000: "nothing",
    7000: "",
    8000: RuntimeError("broken"),
}
METRICS_KEYS = {
    "wer", "cer", "substitutions", "deletions", "insertions", "reference_words", "num_samples", "wer_ci95",
    "rtfx", "normalizer", "model", "data", "failed", "left_out", "date", "hardware", "git_hash", "data_revision",
    "num_rows", "max_samples", "batch_size", "audio_seconds", "wall_seconds", "cost_usd",
}  # fmt: skip
RESULT_KEYS = {
    "id", "audio", "seconds", "reference", "hypothesis", "reference_normalized", "hypothesis_normalized",
    "substitutions", "deletions", "insertions", "speaker",
}  # fmt: skip


@pytest.fixture
def result(tmp_path: Path) -> EvalResult:
    source = open_source(write_manifest(tmp_path / "data", ROWS))
    return evaluate(Listener(ANSWERS), source, model_name="listener", normalizer="basic")


def test_the_three_files_agree_with_each_other(result: EvalResult, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write_results(result, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "results.jsonl", "results.txt"]

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == METRICS_KEYS
    assert metrics["failed"] == 1 and metrics["num_samples"] == 5 and metrics["reference_words"] == 17
    assert len(metrics["wer_ci95"]) == 2

    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["id"] for record in records] == [name for name, _, _ in ROWS]
    assert all(set(record) - {"error"} == RESULT_KEYS for record in records)
    assert [record["id"] for record in records if "error" in record] == ["lost"]
    for kind in ("substitutions", "deletions", "insertions"):
        assert sum(record[kind] for record in records) == metrics[kind]
    errors = metrics["substitutions"] + metrics["deletions"] + metrics["insertions"]
    assert metrics["wer"] == pytest.approx(errors / metrics["reference_words"])
    assert Path(records[0]["audio"]).is_file() and records[0]["reference"] == "Good morning."


def test_the_report_starts_with_the_headline_and_goes_from_worst_to_best(
    result: EvalResult, tmp_path: Path
) -> None:
    write_results(result, tmp_path)
    text = (tmp_path / "results.txt").read_text(encoding="utf-8")
    assert (
        text.index("WER")
        < text.index("lost: RuntimeError: broken")
        < text.index("worse ")
        < text.index("bad ")
    )
    assert text.index("bad ") < text.index("Without errors: 2") < text.index("good: good morning")
    assert "  REF: the cat sat on the mat\n  HYP: the cat sit on *   mat\n               S      D\n" in text


def test_columns_of_an_alignment() -> None:
    reference, hypothesis = "a 日本 seven b c", "a seven b x c d"
    lines = aligned_lines(align(reference.split(), hypothesis.split()), reference, hypothesis)
    assert lines == [
        "  REF: a 日本 seven b * c *",
        "  HYP: a *    seven b x c d",
        "         D            I   I",
    ]
    assert aligned_lines(align(["a"], ["a"]), "a", "a") == ["  REF: a", "  HYP: a"]
    assert aligned_lines(align([], []), "", "") == ["  REF:", "  HYP:"]


def test_long_alignments_go_on_below() -> None:
    words = [f"word{index}" for index in range(40)]
    hypothesis = [*words[:20], "other", *words[21:]]
    lines = aligned_lines(align(words, hypothesis), " ".join(words), " ".join(hypothesis), width=60)
    assert max(map(len, lines)) <= 60
    spoken = [word for line in lines if "REF" in line for word in line.split()[1:]]
    assert spoken == words
    assert sum(line.strip() == "S" for line in lines) == 1


def test_shown_samples_come_from_all_over_the_set(result: EvalResult) -> None:
    assert format_samples(result, 2, 80).count("REF") == 2
    assert "never heard" not in format_samples(result, 2, 80) and "three four" in format_samples(
        result, 2, 80
    )
    assert format_samples(result, 10, 80).count("REF") == 5


def test_a_write_that_fails_leaves_what_was_there(result: EvalResult, tmp_path: Path) -> None:
    write_results(result, tmp_path / "results")
    before = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    (tmp_path / "results" / "metrics.json").unlink()
    (tmp_path / "results" / "metrics.json").mkdir()  # renaming onto it fails
    with pytest.raises(OSError):
        write_files(
            {tmp_path / "results" / "metrics.json": "new", tmp_path / "results" / "results.txt": "new"}
        )
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(before)
    assert (tmp_path / "results" / "results.txt").read_bytes() == before["results.txt"]


def test_a_full_disk_leaves_no_folder_behind(
    result: EvalResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_to_a_full_disk(contents: dict[Path, str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_files", write_to_a_full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*results'"):
        write_results(result, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_file_name_that_is_not_unicode_does_not_cost_the_report(tmp_path: Path) -> None:
    write_files({tmp_path / "odd.txt": "\udcff.wav"})
    assert (tmp_path / "odd.txt").read_text(encoding="utf-8") == "\\udcff.wav"


def test_samples_file_of_a_run(tmp_path: Path) -> None:
    write_samples(
        tmp_path / "samples.txt", [("One two", "one too"), ("", "x")], "basic", heading="step 10: WER 0.50"
    )
    text = (tmp_path / "samples.txt").read_text(encoding="utf-8")
    assert (
        text == "step 10: WER 0.50\n\n"
        "  REF: one two\n  HYP: one too\n           S\n\n  REF: *\n  HYP: x\n       I\n"
    )


def test_an_evaluation_is_read_back_as_it_was(result: EvalResult, tmp_path: Path) -> None:
    result = replace(result, details={"hardware": "a machine", "batch_size": 4})
    write_results(result, tmp_path / "results")
    assert read_evaluation(tmp_path / "results") == result


@pytest.mark.parametrize("name", ["metrics.json", "results.jsonl"])
@pytest.mark.parametrize("content", [None, "", "{}", "[1", '{"id": 3}\n'])
def test_files_that_are_no_evaluation_are_one_clear_line(
    result: EvalResult, tmp_path: Path, name: str, content: str | None
) -> None:
    write_results(result, tmp_path / "results")
    path = tmp_path / "results" / name
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="results"):
        read_evaluation(tmp_path / "results")
