"""Runs the Python and shell blocks of the course's pages, as a learner does: in order, in a fresh folder for each page.

    python docs/course/run_blocks.py [PAGE ...] [--slow] [--run FOLDER]

How a page marks its blocks is told in CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COURSE = Path(__file__).resolve().parent
ROOT = COURSE.parents[1]
LANGUAGES = ("python", "bash")
MARK = re.compile(r"^<!-- (?P<name>not run|slow|output)(?:: (?P<reason>.+?))? -->$")
FENCE = re.compile(r"^(?P<indent>\s*)```(?P<language>[\w-]*)")

# `outputs/nano` of a page, where no finished run is given: the recipe in a few steps, which knows nothing yet.
FEW_STEPS = ["max_steps=12", "batch_seconds=12", "num_workers=0", "eval_samples=2", "logging_steps=4"]
NUM_TEST_CLIPS = 4


@dataclass
class Block:
    """A block of a page.

    Attributes:
        line: number of its first line of code in the page, from 1.
        reason: why it is not run, or None.
        slow: whether it runs with `--slow` alone.
        output: what it has to print, or None where that may differ.
    """

    language: str
    code: str
    line: int
    reason: str | None = None
    slow: bool = False
    output: str | None = None


class BlockError(Exception):
    """A block is badly marked, failed, or printed something else than the page shows."""


def pages() -> list[Path]:
    """Every page of the course, solutions included."""
    return sorted(COURSE.rglob("*.md"))


def read_blocks(page: Path) -> list[Block]:
    """The Python and shell blocks of a page. Raises BlockError for one that is badly marked."""
    blocks: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        where = f"{page.name}:{number + 1}"
        mark = MARK.match(lines[number - 1]) if number else None
        first = number + 1
        number = first
        while number < len(lines) and lines[number].strip() != "```":
            number += 1
        code = "\n".join(lines[first:number]) + "\n"
        number += 1
        name = mark["name"] if mark else None
        if fence["language"] in LANGUAGES:
            if fence["indent"]:
                raise BlockError(f"{where}: an indented block is not run; begin it in the first column")
            if name == "not run" and not mark["reason"]:  # type: ignore[index]
                raise BlockError(f"{where}: say why: <!-- not run: REASON -->")
            reason = mark["reason"] if mark and name == "not run" else None
            blocks.append(Block(fence["language"], code, first + 1, reason, name == "slow"))
        elif name == "output":
            if not blocks or blocks[-1].output is not None:
                raise BlockError(f"{where}: this output belongs to no block")
            blocks[-1].output = code
    return blocks


def tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


class Tee(io.StringIO):
    """Keeps what is printed, and shows it as well."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        return super().write(text)


def run_block(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    """Runs a block in the current folder; what it printed. Raises BlockError when it failed."""
    where = f"{page.name}:{block.line}"
    if block.language == "bash":
        done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", block.code], stdout=subprocess.PIPE)
        output = done.stdout.decode("utf-8", errors="replace")
        print(output, end="", flush=True)
        if done.returncode:
            raise BlockError(f"{where}: exit code {done.returncode}")
        return output
    printed = Tee()
    # Empty lines before the code: a traceback then names the line of the page.
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def run_page(page: Path, slow: bool) -> None:
    """Runs a page's blocks in the current folder and process. Raises BlockError at the first that is not as shown."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in read_blocks(page):
        if block.reason or (block.slow and not slow):
            print(f"--- {page.name}:{block.line} not run ({block.reason or 'slow'})", flush=True)
            continue
        print(f"--- {page.name}:{block.line} {block.language}", flush=True)
        start = time.perf_counter()
        output = run_block(block, page, namespace)
        if block.output is not None and tidy(output) != tidy(block.output):
            raise BlockError(
                f"{page.name}:{block.line}: the page shows\n{block.output}\nbut it printed\n{output}"
            )
        print(f"--- {time.perf_counter() - start:.1f} s", flush=True)


def environment(folder: Path) -> dict[str, str]:
    """For the commands of a page: no hub, no windows, and `tiny-audio` and `python` are this tree's."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, arguments in (("python", ""), ("tiny-audio", "-m tiny_audio ")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n', encoding="utf-8")
        program.chmod(0o755)
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "TINY_AUDIO_CACHE": str(folder / "cache"),
        "MPLBACKEND": "Agg",
    }


def train_few_steps(folder: Path) -> Path:
    """A run of the nano recipe that takes seconds: its model has the right shapes and knows nothing."""
    import soundfile

    from tiny_audio.data.corpus import read_audio, read_index

    clips = folder / "clips"
    clips.mkdir(parents=True)
    for number, entry in enumerate(read_index("test")[:NUM_TEST_CLIPS]):
        audio, sampling_rate = read_audio(entry)
        soundfile.write(clips / f"{number}.wav", audio, sampling_rate)
        (clips / f"{number}.txt").write_text(entry.text, encoding="utf-8")
    overrides = [f"training.{setting}" for setting in FEW_STEPS]
    command = [sys.executable, "-m", "tiny_audio", "train", f"data.test={clips}", *overrides]
    subprocess.run(command, cwd=folder, env=environment(folder), check=True)
    return folder / "outputs" / "nano"


def run_in_fresh_folder(page: Path, nano_run: Path, slow: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a page in a process and a folder of its own, in which `nano_run` is `outputs/nano`.

    Returns the finished process: exit code 0 when every block did what the page says, and what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        work = folder / "work"
        shutil.copytree(
            nano_run, work / "outputs" / "nano", ignore=shutil.ignore_patterns("checkpoints", "tensorboard")
        )
        command = [sys.executable, str(Path(__file__).resolve()), "--here", str(page)] + ["--slow"] * slow
        return subprocess.run(
            command,
            cwd=work,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="default: all")
    parser.add_argument("--slow", action="store_true", help="also the blocks that take minutes")
    parser.add_argument("--run", type=Path, default=ROOT / "outputs" / "nano", help="a finished run of nano")
    parser.add_argument("--here", action="store_true", help="in this folder and process")
    arguments = parser.parse_args()
    if arguments.here:
        try:
            run_page(arguments.pages[0], arguments.slow)
        except BlockError as error:
            print(f"error: {error}")
            return 1
        return 0
    failed = []
    with tempfile.TemporaryDirectory(prefix="course-nano-") as folder:
        nano_run = arguments.run
        if not (nano_run / "model").is_dir():
            print(f"{nano_run} holds no model: training one for a few steps", flush=True)
            nano_run = train_few_steps(Path(folder))
        for page in arguments.pages or pages():
            start = time.perf_counter()
            done = run_in_fresh_folder(page.resolve(), nano_run.resolve(), arguments.slow)
            print(done.stdout, flush=True)
            print(f"=== {page.name}: {time.perf_counter() - start:.0f} s, exit code {done.returncode}\n")
            failed += [page.name] * bool(done.returncode)
    print(f"failed: {', '.join(failed)}" if failed else "every block did what its page says")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
