import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluate.listener import Listener, write_clip
from tiny_audio import transcribe
from tiny_audio.cli import main
from tiny_audio.errors import UserError
from tiny_audio.transcribe import Transcript, expand_files, transcribe_files

ANSWERS: dict[int, str | Exception] = {
    4000: "one\ttwo\nthree ",
    5000: "zwölf",
    6000: "six",
    7000: RuntimeError("the beam\nis empty"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, num_samples in (("a", 4000), ("b", 5000), ("c", 6000), ("cursed", 7000), ("long", 40_000)):
        write_clip(tmp_path / f"{name}.wav", num_samples)
    (tmp_path / "notes.txt").write_text("not audio", encoding="utf-8")
    return tmp_path


@pytest.fixture
def listener(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Listener:
    """Puts a hand-made recogniser behind the command line, under the folder name `model`."""
    heard = Listener(ANSWERS, max_seconds=2.0)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(transcribe.TinyAudioProvider, "load", lambda model, device, **options: heard)
    return heard


def run(paths: list[str], batch_size: int = 8) -> tuple[list[Transcript], Listener]:
    heard = Listener(ANSWERS, max_seconds=2.0)
    load: Callable = lambda: (heard.transcribe, heard.max_seconds)  # noqa: E731
    return list(transcribe_files(load, paths, batch_size)), heard


def test_results_come_in_the_order_of_the_files() -> None:
    transcripts, heard = run(["c.wav", "a.wav", "b.wav"], batch_size=2)
    assert [(transcript.audio, transcript.text) for transcript in transcripts] == [
        ("c.wav", "six"), ("a.wav", "one\ttwo\nthree "), ("b.wav", "zwölf"),
    ]  # fmt: skip
    assert [transcript.seconds for transcript in transcripts] == [6000 / 16000, 4000 / 16000, 5000 / 16000]
    assert heard.calls == [[6000, 4000], [5000]]


def test_bad_files_do_not_stop_the_others() -> None:
    transcripts, _ = run(["missing.wav", "a.wav", "notes.txt", "cursed.wav", "long.wav", "b.wav"])
    texts = [transcript.text for transcript in transcripts]
    assert texts == [None, "one\ttwo\nthree ", None, None, None, "zwölf"]
    errors = [transcript.error for transcript in transcripts if transcript.error is not None]
    assert errors[0] == "no such file" and "not audio" in errors[1]
    assert errors[2] == "RuntimeError: the beam is empty" and "limit of 2 s" in errors[3]


def test_a_model_is_not_loaded_for_files_that_do_not_exist() -> None:
    def load() -> tuple:
        raise AssertionError("loaded")

    (transcript,) = transcribe_files(load, ["missing.wav"], 8)
    assert transcript.error == "no such file"


def test_folders_and_patterns(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    write_clip(folder / "deep" / "er" / "x.WAV", 4000)
    write_clip(folder / "deep" / "y.flac", 4000)
    (folder / "deep" / ".hidden.wav").write_bytes(b"")
    (folder / "deep" / "y.txt").write_text("no", encoding="utf-8")
    assert expand_files(["deep"]) == ([str(Path("deep/er/x.WAV")), str(Path("deep/y.flac"))], True)
    assert expand_files(["[ab].wav"]) == (["a.wav", "b.wav"], True)
    assert expand_files(["a.wav"]) == (["a.wav"], False)
    assert expand_files(["a.wav", "missing.wav"]) == (["a.wav", "missing.wav"], True)
    write_clip(folder / "odd[1].wav", 4000)
    assert expand_files(["odd[1].wav"]) == (["odd[1].wav"], False)


@pytest.mark.parametrize(
    ("names", "message"), [(["-", "-"], "once"), (["x*.wav"], "no file matches"), (["empty"], "no audio")]
)
def test_arguments_that_mean_nothing(names: list[str], message: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        expand_files(names)


def test_one_file_prints_its_text_alone(listener: Listener, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "model", "a.wav"]) == 0
    assert capsys.readouterr() == ("one two three\n", "")


def test_several_files_print_a_line_each(listener: Listener, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "model", "b.wav", "a.wav"]) == 0
    assert capsys.readouterr() == ("b.wav\tzwölf\na.wav\tone two three\n", "")


def test_errors_go_to_standard_error_and_into_the_exit_code(
    listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transcribe", "model", "missing.wav", "c.wav", "cursed.wav"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "c.wav\tsix\n"
    assert (
        captured.err
        == "error: missing.wav: no such file\nerror: cursed.wav: RuntimeError: the beam is empty\n"
    )


def test_json_has_a_line_for_every_file(listener: Listener, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "model", "--json", "b.wav", "missing.wav", "a.wav"]) == 2
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records == [
        {"audio": "b.wav", "seconds": 0.312, "text": "zwölf"},
        {"audio": "missing.wav", "error": "no such file"},
        {"audio": "a.wav", "seconds": 0.25, "text": "one\ttwo\nthree "},
    ]


def test_standard_input(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("c.wav").read_bytes()), encoding="utf-8")
    )
    assert main(["transcribe", "model", "-"]) == 0
    assert capsys.readouterr() == ("six\n", "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), encoding="utf-8"))
    assert main(["transcribe", "model", "-"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: -: ")


def test_libraries_that_print_do_not_spoil_the_output(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = listener.transcribe

    def chatty(waveforms: list) -> list[str]:
        print("loading kernels")
        return quiet(waveforms)

    monkeypatch.setattr(listener, "transcribe", chatty)
    assert main(["transcribe", "model", "c.wav"]) == 0
    assert capsys.readouterr() == ("six\n", "loading kernels\n")


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "outputs/nowhere/model", "a.wav"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(
        "error: There is no model at outputs/nowhere/model."
    )


def test_a_file_name_that_is_not_unicode(listener: Listener, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\udcff.wav"
    assert main(["transcribe", "model", "--json", name, "c.wav"]) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[1])["text"] == "six"
