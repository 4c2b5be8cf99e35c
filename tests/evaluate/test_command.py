import json
from pathlib import Path

import pytest

from tests.evaluate.listener import Listener, write_manifest
from tiny_audio.cli import main
from tiny_audio.evaluate import command, providers
from tiny_audio.evaluate.command import CORPUS_TEST, LOQUACIOUS_TEST, default_data, default_folder_name

ROWS = [("a1", 4000, "one two"), ("a2", 8000, "three"), ("b1", 6000, "nine nine nine")]
ANSWERS: dict[int, str | Exception] = {4000: "one two", 8000: "free", 6000: "nine"}


@pytest.fixture(autouse=True)
def in_an_empty_folder_with_a_listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = providers.ProviderEntry(lambda model, running: Listener(ANSWERS), "a listener by hand")
    monkeypatch.setitem(providers.PROVIDERS, "listener", entry)


def make_run(folder: Path, train: object) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "config.yaml").write_text(
        json.dumps({"data": {"train": train}}), encoding="utf-8"
    )  # JSON is YAML
    return folder / "model"


def test_an_evaluation_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(tmp_path / "digits", ROWS)
    assert main(["eval", "--provider", "listener", "--data", "digits"]) == 0
    folder = tmp_path / "outputs" / "eval_listener_digits"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (
        metrics["normalizer"] == "digits" and metrics["data"] == "digits" and metrics["model"] == "listener"
    )
    assert (metrics["substitutions"], metrics["deletions"], metrics["wer"]) == (1, 2, 0.5)
    output = capsys.readouterr().out
    assert "WER" in output and "0.5000" in output and output.count("REF:") == 3
    assert str(Path("outputs/eval_listener_digits/results.txt")) in output


@pytest.mark.parametrize("data", ["digits/manifest.jsonl", "folder"])
def test_a_manifest_and_a_folder(tmp_path: Path, data: str) -> None:
    write_manifest(tmp_path / "digits", ROWS)
    write_manifest(tmp_path / "folder", ROWS).unlink()
    for name, _, text in ROWS:
        (tmp_path / "folder" / f"{name}.txt").write_text(text, encoding="utf-8")
    assert main(["eval", "--provider", "listener", "--data", data, "--output-dir", "here"]) == 0
    assert json.loads((tmp_path / "here" / "metrics.json").read_text(encoding="utf-8"))["wer"] == 0.5


def test_a_sample_and_a_normaliser(tmp_path: Path) -> None:
    write_manifest(tmp_path / "digits", ROWS)
    arguments = ["--max-samples", "2", "--normalizer", "english", "--batch-size", "1", "--output-dir", "here"]
    assert main(["eval", "--provider", "listener", "--data", "digits", *arguments]) == 0
    metrics = json.loads((tmp_path / "here" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["num_samples"] == 2 and metrics["normalizer"] == "english"


def test_replacing_other_results_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(tmp_path / "digits", ROWS)
    write_manifest(tmp_path / "other", ROWS)
    for data in ("digits", "digits"):
        assert main(["eval", "--provider", "listener", "--data", data, "--output-dir", "here"]) == 0
    assert "replaces" not in capsys.readouterr().out
    assert main(["eval", "--provider", "listener", "--data", "other", "--output-dir", "here"]) == 0
    assert "replaces the results of listener on digits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such source"),
        (["--data", "digits", "--normalizer", "englsh"], 'Did you mean "english"'),
        (["--data", "digits", "--output-dir", "digits/a1.wav"], "is a file"),
        (["--data", "digits", "--output-dir", "digits/a1.wav/deeper"], "is a file"),
        (["--data", "digits", "--data", "digits"], "digits is given twice"),
        (["--data", "digits", "--data", "./digits/manifest.jsonl"], "would both be written to"),
        (
            ["--data", "digits", "--data", "./digits", "--output-dir", "x"],
            "would both be written to x/digits",
        ),
        (["--data", "digits", "--max-samples", "0"], "--max-samples"),
        (["--provider", "tiny-audio"], "Which model?"),
        (["--data", "digits", "--provider", "listner"], 'Did you mean "listener"'),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path / "digits", ROWS)
    before = sorted(tmp_path.rglob("*"))
    assert (
        main(["eval", *(["--provider", "listener"] if "--provider" not in arguments else []), *arguments])
        == 2
    )
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert captured.out == "" and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("corpus:train", CORPUS_TEST),
        (["/data/mine", "corpus:train"], CORPUS_TEST),
        ("hub:speechbrain/LoquaciousSet/large:train", LOQUACIOUS_TEST),
    ],
)
def test_default_data_is_what_the_model_was_made_for(train: object, expected: str, tmp_path: Path) -> None:
    model = make_run(tmp_path / "run", train)
    data, reason = default_data(str(model))
    assert data == expected and "config.yaml" in reason
    assert default_data(str(tmp_path / "run"))[0] == expected
    checkpoint = tmp_path / "run" / "checkpoints" / "step-10"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}", encoding="utf-8")
    assert default_data(str(checkpoint))[0] == expected


def test_default_data_without_a_run_says_why(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_text("{}", encoding="utf-8")
    for model in (None, "alone", "owner/name"):
        data, reason = default_data(model)
        assert data == LOQUACIOUS_TEST and "no config.yaml" in reason


def test_a_config_that_does_not_say_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_run(tmp_path / "run", "corpus:train")
    (tmp_path / "run" / "config.yaml").write_text("data: 3", encoding="utf-8")
    assert main(["eval", str(model)]) == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        ("runs/nano/model", "corpus:test", "eval_nano_corpus-test"),
        ("runs/nano", "sets/my digits", "eval_nano_my-digits"),
        ("runs/nano/checkpoints/step-20", "sets/my digits/manifest.jsonl", "eval_nano-step-20_my-digits"),
        (
            "owner/name",
            "hub:speechbrain/LoquaciousSet/large:test",
            "eval_owner-name_LoquaciousSet-large-test",
        ),
        ("listener", "sets/clips.parquet", "eval_listener_clips"),
        ("..", "../..", None),
        ("a<b>:|?*", "é", "eval_a-b_unnamed"),
    ],
)
def test_default_folder(model: str, data: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "runs" / "nano" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "nano" / "checkpoints" / "step-20").mkdir(parents=True)
    name = default_folder_name(model, data)
    assert expected is None or name == expected
    assert Path(name).name == name and ".." not in name


def test_a_folder_without_permission_is_found_out_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.os, "access", lambda path, mode: False)
    with pytest.raises(command.UserError, match="no permission"):
        command.check_output_dir(tmp_path / "results")
