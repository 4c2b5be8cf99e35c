"""What a run leaves behind besides its model: config.yaml, metrics.jsonl, metrics.json, samples.txt and loss.png."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import IO, Any

from tiny_audio.errors import UserError
from tiny_audio.files import write_files

LOCK_FILE = ".lock"  # in the run's folder while it trains; without meaning when its process is dead


@contextmanager
def run_folder(folder: Path, resuming: bool) -> Iterator[Path | None]:
    """Makes the run's folder, which is this process's alone inside the block (not on Windows, where none is locked).

    A finished or broken earlier run in its place is kept beside it as `NAME.1`, `NAME.2`...; the block gets where it
    went, or None.

    Raises:
        UserError: the folder cannot be made, holds something else, or another process trains in it.
    """
    moved, lock = None, None
    try:
        try:
            if folder.exists() and not folder.is_dir():
                raise UserError(f"output_dir={folder} is a file; name a folder")
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
            if not resuming and any(path.name != LOCK_FILE for path in folder.iterdir()):
                moved = _move_aside(folder)
                _release(lock, moved)
                lock = None
                folder.mkdir(exist_ok=True)
                lock = _lock(folder)
            (folder / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make output_dir={folder}: {error.strerror or error}") from error
        yield moved
    finally:
        _release(lock, folder)


def _move_aside(folder: Path) -> Path:
    if not (folder / "config.yaml").is_file():
        raise UserError(f"output_dir={folder} holds files of something else; name another folder or empty it")
    number = next(n for n in range(1, 1_000_000) if not folder.with_name(f"{folder.name}.{n}").exists())
    return folder.rename(folder.with_name(f"{folder.name}.{number}"))


def _lock(folder: Path) -> IO[str] | None:
    """A file that no other process can lock until this one releases it or dies, in whatever way.

    A record lock, which goes with the process: `flock` would be held on by the workers of a killed one.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    while True:
        file = (folder / LOCK_FILE).open("a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise UserError(
                f"another process trains in output_dir={folder}: end it first, or name another folder"
            ) from error
        except OSError:  # a disk without locks
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat((folder / LOCK_FILE).stat(), os.fstat(file.fileno())):
                return file
        file.close()  # the one who had it has just removed it


def _release(lock: IO[str] | None, folder: Path) -> None:
    if lock is not None:
        with suppress(OSError):
            (folder / LOCK_FILE).unlink()
        lock.close()


class StepLog:
    """A file of JSON lines, each of a step, such as metrics.jsonl; lines of steps after a resumed one are dropped."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] <= first_step]
        if path.is_file():
            write_files({path: "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)})

    def write(self, values: dict[str, Any]) -> None:
        # A lone surrogate (a file name that is not UTF-8) becomes its escape, which JSON knows.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a crash is left out."""
    lines = []
    if path.is_file():
        # Not by `splitlines`: a transcript may hold characters that it takes for ends of lines.
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            if not line:
                continue
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return lines


def draw_loss(folder: Path, title: str) -> Path | None:
    """loss.png: the losses, their smoothed course, and the word error rate on the dev set. None without any line."""
    from matplotlib.figure import Figure

    lines = read_metrics(folder / "metrics.jsonl")
    losses = [line for line in lines if "loss" in line]
    if not losses:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in losses]
    for key, label, color in (
        ("lm_loss", "language model", "tab:blue"),
        ("ctc_loss", "alignment (CTC)", "tab:green"),
    ):
        values = [line[key] for line in losses if line.get(key) is not None]
        if len(values) == len(losses):
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(values), color=color, label=label)
    axes.set(xlabel="step", ylabel="loss per token or character", yscale="log", title=title)
    axes.grid(alpha=0.3)
    evaluated = [line for line in lines if "dev_wer" in line]
    if evaluated:
        right = axes.twinx()
        right.plot(
            [e["step"] for e in evaluated], [100 * e["dev_wer"] for e in evaluated], "o-", color="tab:red"
        )
        right.set_ylabel("dev word error rate, %", color="tab:red")
        right.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    target = folder / "loss.png"
    figure.savefig(target, dpi=120)
    return target


def _smooth(values: list[float]) -> list[float]:
    """The mean of each value and its neighbours, a thirtieth of the curve on either side."""
    reach = len(values) // 30 + 1
    return [fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
