import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.evaluate.listener import write_clip
from tiny_audio import transcribe
from tiny_audio.cli import main
from tiny_audio.errors import UserError
from tiny_audio.hub import asr_longform
from tiny_audio.hub.asr_alignment import TimedWord
from tiny_audio.hub.asr_longform import Recogniser
from tiny_audio.hub.asr_windows import Window
from tiny_audio.transcribe import Transcript, expand_files, transcribe_files

ANSWERS: dict[int, str | Exception] = {
    4000: "one two three",
    5000: "zwölf",
    6000: "six",
    7000: RuntimeError("the beam\nis empty"),
}


class Listener(Recogniser):
    """A recogniser that knows windows by their number of samples; everything around that is the real one."""

    def __init__(self, **settings: object) -> None:
        processor = SimpleNamespace(max_seconds=2.0, window_seconds=2.0)
        super().__init__(SimpleNamespace(ctc_head=object()), processor, **settings)
        self.calls: list[list[int]] = []

    def _attempt(self, windows: Sequence[Window]) -> list:
        self.calls.append([len(window.waveform) for window in windows])
        pieces = []
        for window in windows:
            answer = ANSWERS.get(len(window.waveform), "")
            if isinstance(answer, Exception):
                raise answer
            words = [
                TimedWord(word, 0.05 * number, 0.05 * number + 0.04, 0.9 - 0.3 * number)
                for number, word in enumerate(answer.split())
            ]
            pieces.append(asr_longform.Piece(window, answer, words if self.word_times else None))
        return pieces

    def _stream_window(self, window: Window):
        yield from (
            piece for word in self._attempt([window])[0].text.split() for piece in (word[0], word[1:])
        )


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, num_samples in (("a", 4000), ("b", 5000), ("c", 6000), ("cursed", 7000)):
        write_clip(tmp_path / f"{name}.wav", num_samples)
    (tmp_path / "notes.txt").write_text("not audio", encoding="utf-8")
    return tmp_path


@pytest.fixture
def listener(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the hand-made recogniser behind the command line, under the folder name `model`."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    loaded = SimpleNamespace(model=SimpleNamespace(ctc_head=object()), processor=None)
    monkeypatch.setattr(transcribe.TinyAudioProvider, "load", lambda model, device, dtype: loaded)
    monkeypatch.setattr(asr_longform, "Recogniser", lambda model, processor, **settings: Listener(**settings))


def run(paths: list[str], batch_size: int = 8) -> list[Transcript]:
    return list(transcribe_files(lambda: Listener(batch_size=batch_size), paths))


def text_of(transcript: Transcript) -> str | None:
    return None if transcript.recognition is None else transcript.recognition.text


def test_results_come_in_the_order_of_the_files() -> None:
    transcripts = run(["c.wav", "a.wav", "b.wav"], batch_size=2)
    assert [(transcript.audio, text_of(transcript)) for transcript in transcripts] == [
        ("c.wav", "six"), ("a.wav", "one two three"), ("b.wav", "zwölf"),
    ]  # fmt: skip
    assert [transcript.recognition.seconds for transcript in transcripts] == [0.375, 0.25, 0.3125]


def test_bad_files_do_not_stop_the_others() -> None:
    transcripts = run(["a.wav", "missing.wav", "notes.txt", "cursed.wav", "b.wav"])
    assert [text_of(transcript) for transcript in transcripts] == ["one two three", None, None, None, "zwölf"]
    errors = [transcript.error for transcript in transcripts if transcript.error is not None]
    assert errors[0] == "no such file" and "not audio" in errors[1]
    assert errors[2] == "RuntimeError: the beam is empty"


def test_a_model_is_not_loaded_for_files_that_do_not_exist() -> None:
    def load() -> tuple:
        raise AssertionError("loaded")

    (transcript,) = transcribe_files(load, ["missing.wav"])
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


def test_one_file_prints_its_text_alone(listener: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "model", "a.wav"]) == 0
    assert capsys.readouterr() == ("one two three\n", "")


def test_several_files_print_a_line_each(listener: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "model", "b.wav", "a.wav"]) == 0
    assert capsys.readouterr() == ("b.wav\tzwölf\na.wav\tone two three\n", "")


def test_errors_go_to_standard_error_and_into_the_exit_code(
    listener: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transcribe", "model", "missing.wav", "c.wav", "cursed.wav"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "c.wav\tsix\n"
    assert (
        captured.err
        == "error: missing.wav: no such file\nerror: cursed.wav: RuntimeError: the beam is empty\n"
    )


def test_json_has_a_line_for_every_file(listener: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "model", "--json", "b.wav", "missing.wav", "a.wav"]) == 2
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records == [
        {
            "audio": "b.wav", "seconds": 0.312, "text": "zwölf",
            "segments": [{"text": "zwölf", "start": 0.0, "end": 0.312}], "problems": [],
        },
        {"audio": "missing.wav", "error": "no such file"},
        {
            "audio": "a.wav", "seconds": 0.25, "text": "one two three",
            "segments": [{"text": "one two three", "start": 0.0, "end": 0.25}], "problems": [],
        },
    ]  # fmt: skip


def test_standard_input(
    listener: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    listener: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = Listener._attempt

    def chatty(self: Listener, windows: Sequence[Window]) -> list:
        print("loading kernels")
        return quiet(self, windows)

    monkeypatch.setattr(Listener, "_attempt", chatty)
    assert main(["transcribe", "model", "c.wav"]) == 0
    assert capsys.readouterr() == ("six\n", "loading kernels\n")


def test_word_times(listener: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "model", "a.wav", "--timestamps", "word"]) == 0
    assert capsys.readouterr().out == "0.000\t0.040\tone\n0.050\t0.090\ttwo\n0.100\t0.140\tthree\n"
    assert main(["transcribe", "model", "a.wav", "--json", "--timestamps", "word"]) == 0
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [word["text"] for word in record["words"]] == ["one", "two", "three"]
    assert main(["transcribe", "model", "a.wav", "--min-confidence", "0.5"]) == 0
    assert capsys.readouterr().out == "one two [three?]\n"


def test_a_stream_is_the_text(listener: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "model", "c.wav", "--stream"]) == 0
    assert capsys.readouterr() == ("six\n", "")
    assert main(["transcribe", "model", "missing.wav", "--stream"]) == 2
    assert capsys.readouterr() == ("", "error: missing.wav: no such file\n")


def test_subtitles_go_into_files(listener: None, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "model", "a.wav", "b.wav", "--srt", "--output-dir", "out"]) == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.srt", "b.srt"]
    assert "zwölf" in (folder / "out" / "b.srt").read_text(encoding="utf-8")
    assert capsys.readouterr() == ("", "")
    assert main(["transcribe", "model", "b.wav", "--vtt"]) == 0
    assert capsys.readouterr().out.startswith("WEBVTT\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a.wav", "b.wav", "--srt"], "--output-dir"),
        (["a.wav", "--srt", "--json"], "ask for one"),
        (["a.wav", "b.wav", "--stream"], "one file"),
        (["a.wav", "--stream", "--json"], "one file"),
        (["a.wav", "deep/a.wav", "--output-dir", "out"], "both be written"),
        (["a.wav", "--window-seconds", "99"], "at most 2 s"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, listener: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transcribe", "model", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "outputs/nowhere/model", "a.wav"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(
        "error: There is no model at outputs/nowhere/model."
    )


def test_a_file_name_that_is_not_unicode(listener: None, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\udcff.wav"
    assert main(["transcribe", "model", "--json", name, "c.wav"]) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[1])["text"] == "six"


def test_a_name_of_any_characters_stays_on_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "new\nline\ttab\x1b[31m.wav"
    write_clip(tmp_path / odd, 4000)
    for transcript in transcribe_files(Listener, [odd, "b.wav"]):
        transcribe.print_transcript(transcript, transcribe.Format(), sys.stdout, several=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].endswith("\tone two three") and "\x1b" not in lines[0]


def test_closed_standard_input_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match=r"Standard input .* is closed"):
        list(transcribe_files(Listener, ["-"]))


def test_two_of_many_files_with_one_target_are_named() -> None:
    paths = [f"{n % 5000}/{n}.wav" for n in range(20000)] + ["other/7.flac"]
    with pytest.raises(UserError, match=r"7/7.wav and other/7.flac would both be written to out/7.txt"):
        transcribe.output_files(Path("out"), paths, "txt")
