"""The folder of a run: one run at a time, and what was there before is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_audio.errors import UserError
from tiny_audio.train.records import run_folder

# A run with a worker, which lives on for a while when the run is killed.
ANOTHER_RUN = """
import os, sys, time
from pathlib import Path
from tiny_audio.train.records import run_folder
with run_folder(Path(sys.argv[1]), resuming=False):
    (Path(sys.argv[1]) / "config.yaml").write_text("theirs")
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    print(worker, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_a_folder_is_of_one_run_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", ANOTHER_RUN, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        for resuming in (False, True):
            taken = pytest.raises(UserError, match="another process trains in output_dir=")
            with taken, run_folder(folder, resuming):
                pass
        assert (folder / "config.yaml").read_text() == "theirs"
        process.kill()
        process.wait()
        with run_folder(folder, resuming=True) as moved:
            assert moved is None
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)
    with run_folder(folder, resuming=False) as moved:
        assert moved == tmp_path / "run.1"
        assert (moved / "config.yaml").read_text() == "theirs"
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["run", "run.1", "run.1/checkpoints", "run.1/config.yaml", "run/checkpoints"]


def test_a_folder_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    refused = pytest.raises(UserError, match="holds files of something else")
    with refused, run_folder(tmp_path, resuming=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
