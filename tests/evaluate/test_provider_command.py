import os
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tiny_audio.errors import UserError
from tiny_audio.evaluate.provider_command import CommandProvider
from tiny_audio.evaluate.providers import load_provider

CLIPS = [np.zeros(1600, np.float32), np.full(3200, 0.5, np.float32)]


def script(folder: Path, body: str) -> str:
    """A command line that runs Python code, in a folder with a space in its name."""
    path = folder / "a program" / "listen.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(body, encoding="utf-8")
    return shlex.join([sys.executable, str(path)])


DESCRIBE = """
import sys, wave
with wave.open(sys.argv[-1]) as file:
    print("heard", file.getnframes(), "at")
    print(file.getframerate(), sys.argv[1:-1])
"""


def test_a_program_reads_a_wav_file_and_prints_what_it_hears(tmp_path: Path) -> None:
    provider = load_provider(f"cmd: {script(tmp_path, DESCRIBE)} --quiet", None)
    assert provider.transcribe(CLIPS) == [
        "heard 1600 at 16000 ['--quiet']",
        "heard 3200 at 16000 ['--quiet']",
    ]


def test_the_file_stands_where_the_mark_is(tmp_path: Path) -> None:
    command = script(tmp_path, "import sys; print(sys.argv[1].endswith('.wav'), sys.argv[2:])")
    assert CommandProvider(f"{command} --input={{file}} last").transcribe(CLIPS[:1]) == ["True ['last']"]


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    command = script(tmp_path, "import sys; print(sys.argv[1:3])")
    assert CommandProvider(f"{command} '$HOME' ';'").transcribe(CLIPS[:1]) == ["['$HOME', ';']"]


def test_a_failure_is_that_of_one_clip_and_says_the_last_line(tmp_path: Path) -> None:
    body = """
import os, sys
if os.path.getsize(sys.argv[1]) > 5000:
    print("loading", file=sys.stderr); print("no \\x1b[2J model\\n", file=sys.stderr); sys.exit(3)
print("fine")
"""
    first, second = CommandProvider(script(tmp_path, body)).transcribe(CLIPS)
    assert first == "fine"
    assert str(second) == "the command failed with exit status 3: no \N{REPLACEMENT CHARACTER}[2J model"


def test_bytes_that_are_no_text_become_replacement_characters(tmp_path: Path) -> None:
    body = r"import sys; sys.stdout.buffer.write(b'caf\xc3\xa9 \xff\xfe\n')"
    assert CommandProvider(script(tmp_path, body)).transcribe(CLIPS[:1]) == ["café \ufffd\ufffd"]


def test_a_program_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    body = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(started)!r}, "w").write(str(child.pid))
child.wait()
"""
    provider = CommandProvider(script(tmp_path, body), limit_seconds=1.0)
    provider.limit_seconds_per_second = 0.0
    start = time.monotonic()
    with pytest.raises(UserError, match=r"did not end within 1 s for its first clip .* Try it by hand: "):
        provider.transcribe(CLIPS[:1])
    assert time.monotonic() - start < 10
    if os.name == "posix":
        assert not is_running(int(started.read_text(encoding="utf-8")))


def test_a_program_that_hangs_now_and_then_fails_on_those_clips(tmp_path: Path) -> None:
    body = (
        "import sys, time, wave; time.sleep(60 * (wave.open(sys.argv[1]).getnframes() > 9000)); print('one')"
    )
    provider = CommandProvider(script(tmp_path, body), limit_seconds=5.0)
    provider.limit_seconds_per_second = 0.0
    waveforms = [np.zeros(8000, np.float32), np.zeros(10000, np.float32)]
    first, second = provider.transcribe(waveforms)
    assert first == "one" and str(second) == "the command did not end within 5 s"


def is_running(process_id: int) -> bool:
    """Whether a process still runs; one that has ended may be listed until its parent asks for its status."""
    for _ in range(50):
        try:
            os.kill(process_id, 0)
            status = Path(f"/proc/{process_id}/stat")
            if status.exists() and status.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] == "Z":
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.02)
    return True


def test_a_program_that_never_stops_writing_is_ended(tmp_path: Path) -> None:
    command = script(tmp_path, "while True: print('la' * 1000)")
    (failure,) = CommandProvider(command).transcribe(CLIPS[:1])
    assert "printed more than 1,048,576 bytes" in str(failure)


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = script(tmp_path, "import sys; sys.exit(1)")
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    CommandProvider(command).transcribe(CLIPS)
    assert list(folder.iterdir()) == []


def test_a_changed_script_is_another_recogniser(tmp_path: Path) -> None:
    before = CommandProvider(script(tmp_path, "print(1)")).identity
    assert CommandProvider(script(tmp_path, "print(1)  # the same file, written again")).identity != before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("cmd:", "The command is empty"),
        ("cmd", "The command is empty"),
        ("cmd: no-such-program-here {file}", "no program no-such-program-here"),
        ("cmd: 'unfinished", "Cannot read the command"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(command: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_provider(command, None)


def test_a_command_takes_no_model() -> None:
    with pytest.raises(UserError, match="takes no model"):
        load_provider("cmd: python", "outputs/nano/model")
