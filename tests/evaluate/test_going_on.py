"""An evaluation that was stopped goes on where it stood."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluate.listener import Listener, write_manifest
from tiny_audio.data.sources import open_source
from tiny_audio.evaluate.runner import evaluate
from tiny_audio.evaluate.store import TranscriptStore

NUM_CLIPS = 12
ROWS = [(f"c{i:02d}", 4000 + 400 * i, f"word {i}") for i in range(NUM_CLIPS)]
# Answers with the number of the clip, which its length tells; slowly, and leaves a note of every call.
RECOGNISER = """
import os, sys, time, wave
frames = wave.open(sys.argv[1]).getnframes()
number = (frames - 4000) // 400
open(os.environ["CALLS"], "a").write(f"{number}\\n")
time.sleep(float(os.environ["DELAY"]))
print("word", number if number != 3 else "zebra")
"""


def command(output: str) -> list[str]:
    provider = f'cmd: "{sys.executable}" recogniser.py {{file}}'
    arguments = [
        "eval",
        "--provider",
        provider,
        "--data",
        "data",
        "--output-dir",
        output,
        "--batch-size",
        "1",
    ]
    return [sys.executable, "-m", "tiny_audio", *arguments]


def environment(delay_seconds: float, calls: str) -> dict[str, str]:
    path = str(Path(__file__).parents[2])
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DELAY": str(delay_seconds), "CALLS": calls}
    return {**os.environ, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "data", ROWS)
    (tmp_path / "recogniser.py").write_text(RECOGNISER, encoding="utf-8")
    return tmp_path


def test_killed_and_continued_is_the_same_as_never_killed(folder: Path) -> None:
    kept = folder / "stopped" / ".transcripts.jsonl"
    process = subprocess.Popen(
        command("stopped"), cwd=folder, env=environment(0.3, "calls-killed.txt"), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not kept.exists() or kept.read_text().count('"key"') < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (folder / "stopped" / "metrics.json").exists()
    num_kept = kept.read_text(encoding="utf-8").count('"key"')

    def run(output: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(output),
            cwd=folder,
            env=environment(0, f"calls-{output}.txt"),
            capture_output=True,
            text=True,
        )

    continued = run("stopped")
    assert continued.returncode == 0, continued.stderr
    assert f"Going on where it was stopped: {num_kept} transcripts" in continued.stderr
    # what was left, and the call that warms up
    assert len((folder / "calls-stopped.txt").read_text().split()) == NUM_CLIPS - num_kept + 1
    assert not kept.exists()
    assert run("whole").returncode == 0
    lines = [(folder / name / "results.jsonl").read_text() for name in ("stopped", "whole")]
    assert lines[0] == lines[1] and len(lines[0].splitlines()) == NUM_CLIPS
    metrics = [json.loads((folder / name / "metrics.json").read_text()) for name in ("stopped", "whole")]
    assert metrics[0]["wer"] == metrics[1]["wer"] == pytest.approx(1 / (2 * NUM_CLIPS))
    assert metrics[0]["audio_seconds"] == metrics[1]["audio_seconds"]
    assert metrics[0]["rtfx"] < metrics[1]["rtfx"]  # the slow calls before the kill are in the figure


def test_only_what_was_recognised_is_kept(tmp_path: Path) -> None:
    source = open_source(write_manifest(tmp_path, [("a", 4000, "one"), ("b", 5000, "two")]))
    store = TranscriptStore(tmp_path / "kept.jsonl", "listener")
    first = evaluate(
        Listener({4000: "one", 5000: RuntimeError("broken")}), source, model_name="x", store=store
    )
    assert [row.error is None for row in first.utterances] == [True, False] and len(store) == 1
    mended = Listener({4000: RuntimeError("asked again"), 5000: "two"})
    second = evaluate(mended, source, model_name="x", store=store)
    assert second.metrics.wer == 0 and second.failed == []
    assert mended.calls and all(call == [5000] for call in mended.calls)


def test_a_fresh_evaluation_asks_again(folder: Path) -> None:
    process = subprocess.Popen(
        command("again"), cwd=folder, env=environment(0.3, "calls-killed.txt"), stderr=subprocess.DEVNULL
    )
    kept = folder / "again" / ".transcripts.jsonl"
    deadline = time.monotonic() + 60
    while not kept.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    arguments = [*command("again"), "--fresh"]
    done = subprocess.run(
        arguments, cwd=folder, env=environment(0, "calls.txt"), capture_output=True, text=True
    )
    assert done.returncode == 0 and "Going on" not in done.stderr
    assert len((folder / "calls.txt").read_text().split()) == NUM_CLIPS + 1
