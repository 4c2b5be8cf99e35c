import errno
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer

import tiny_audio
from tiny_audio import cli
from tiny_audio.cli import COMMANDS, Command, main
from tiny_audio.errors import UserError

HEAVY = ("torch", "transformers", "numpy", "rich", "typer", "soundfile", "datasets", "omegaconf")


def run_python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny_audio.__file__).parents[1])}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        **options,
    )


@pytest.fixture(autouse=True)
def tracebacks_are_kept_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., object]], None]:
    """Adds a command `try` that runs a function."""

    def add(function: Callable[..., object]) -> None:
        monkeypatch.setattr(cli, "_trial", function, raising=False)
        monkeypatch.setitem(COMMANDS, "try", Command("tiny_audio.cli", "_trial", "Try."))

    return add


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error, which must be one `error:` line, with nothing on standard output."""
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from tiny_audio.cli import main; code = main(['--help']);"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)"
    )
    result = run_python("-c", script)
    assert result.stderr.strip() == "[] 0"
    assert all(
        name in result.stdout and command.summary in result.stdout for name, command in COMMANDS.items()
    )
    start = time.perf_counter()
    run_python("-m", "tiny_audio", "--help")
    assert time.perf_counter() - start < 3  # about 0.1 s; with torch several seconds


@pytest.mark.parametrize("name", ["eval", "transcribe", "push"])
def test_help_of_a_command_is_without_torch_and_has_examples(name: str) -> None:
    script = (
        f"import sys; from tiny_audio.cli import main; code = main(['{name}', '--help']);"
        "print('torch' in sys.modules, 'transformers' in sys.modules, code, file=sys.stderr)"
    )
    result = run_python("-c", script)
    assert result.stderr.strip() == "False False 0"
    assert f"Usage: tiny-audio {name}" in result.stdout
    assert result.stdout.count(f"tiny-audio {name} ") >= 3


def test_version_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tiny-audio {tiny_audio.__version__}\n"
    assert main([]) == main(["--help"]) == main(["-h"]) == 0
    assert capsys.readouterr().out == 3 * (cli.help_text() + "\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evl"], 'no command "evl". Did you mean "eval"?'),
        (["qqqq"], f"Commands: {', '.join(COMMANDS)}."),
        (["--verson"], 'Did you mean "--version"?'),
        (["eval", "--bach-size", "3"], "--batch-size"),
        (["eval", "x", "y"], "y"),
        (["transcribe"], "model"),
        (["transcribe", "m"], "files"),
        (["transcribe", "m", "f", "--batch-size", "many"], "--batch-size"),
    ],
)
def test_mistakes_in_the_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in error_of(capsys)


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's own."""


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (UserError("no such thing; use another"), "error: no such thing; use another\n", 2),
        (
            OSError(errno.ENOSPC, "No space left on device", "model.bin"),
            "No space left on the disk for model.bin",
            2,
        ),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on the disk", 2),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.wav"),
            "a.wav: No such file or directory",
            2,
        ),
        (OSError("two\nlines"), "two lines", 2),
        (MemoryError(), "Out of memory", 2),
        (OutOfMemoryError("CUDA out of memory"), "Out of memory: CUDA", 2),
        (ModuleNotFoundError("No module named 'x'", name="x"), "`python -m tiny_audio.setup` says what", 2),
        (KeyError("weight"), "KeyError: 'weight' (a defect", 1),
        (KeyboardInterrupt(), "", 130),
    ],
)
def test_errors_are_one_line(
    error: BaseException, message: str, code: int, command: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    command(fail)
    assert main(["try"]) == code
    if code == 130:
        assert capsys.readouterr() == ("", "")
    else:
        assert message in error_of(capsys)


def test_a_value_error_of_ours_is_meant_for_the_user_and_others_are_not(
    command: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    def ours() -> None:
        from tiny_audio.hub.asr_audio import load_audio

        load_audio("nowhere.wav")

    command(ours)
    assert main(["try"]) == 2
    assert error_of(capsys) == "error: nowhere.wav: no such file\n"

    def theirs() -> None:
        import json

        json.loads("{")

    command(theirs)
    assert main(["try"]) == 1
    message = error_of(capsys)
    kept = Path(message.rsplit("its traceback: ", 1)[1].strip().rstrip(")"))
    assert "json.loads" in kept.read_text(encoding="utf-8")


def test_debug_shows_the_traceback_wherever_it_stands(
    command: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(names: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        raise UserError(f"got {names}")

    command(fail)
    for arguments in (["--debug", "try", "x"], ["try", "x", "--debug"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "Traceback" in error and error.endswith("error: got ['x']\n")
    assert main(["try", "--", "--debug"]) == 2  # behind -- it is an argument like any other
    assert error_of(capsys) == "error: got ['--debug']\n"


def test_exit_codes_and_typer_apps(command: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    def leave() -> None:
        raise typer.Exit(7)

    command(leave)
    assert main(["try"]) == 7

    app = typer.Typer(add_completion=False)
    app.command()(lambda: print("from an app"))
    command(app)
    assert main(["try"]) == 0
    assert capsys.readouterr().out == "from an app\n"


def test_overrides_reach_a_command_as_they_are(command: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    def train(overrides: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        print(overrides)

    command(train)
    assert main(["try", "+experiments=small", "training.max_steps=5", "a=[1, 2]", "~b"]) == 0
    assert capsys.readouterr().out == "['+experiments=small', 'training.max_steps=5', 'a=[1, 2]', '~b']\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = (
        "import sys; from tiny_audio import cli\n"
        "cli._trial = lambda: [print(i) for i in range(200000)]\n"
        "cli.COMMANDS['try'] = cli.Command('tiny_audio.cli', '_trial', '')\n"
        "sys.exit(cli.main(['try']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny_audio.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_ctrl_c_is_quiet() -> None:
    script = (
        "import sys, _thread, threading, time; from tiny_audio import cli\n"
        "def wait():\n    threading.Timer(0.1, _thread.interrupt_main).start()\n"
        "    [time.sleep(0.01) for _ in range(3000)]\n"
        "cli._trial = wait\n"
        "cli.COMMANDS['try'] = cli.Command('tiny_audio.cli', '_trial', '')\n"
        "sys.exit(cli.main(['try']))"
    )
    result = run_python("-c", script, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_output_is_utf8_in_a_pipe_whatever_the_locale(
    monkeypatch: pytest.MonkeyPatch, command: Callable
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    command(lambda: print("日本 \udcff"))
    assert main(["try"]) == 0
    assert raw.getvalue().decode("utf-8").split() == ["日本", "?"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: tiny-audio {name}" in capsys.readouterr().out


def test_the_module_runs_like_the_command() -> None:
    result = run_python("-m", "tiny_audio", "evl")
    assert (
        result.returncode == 2 and result.stderr == 'error: There is no command "evl". Did you mean "eval"?\n'
    )
