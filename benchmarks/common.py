"""What every benchmark shares: paired timing, the machine it ran on, and the form of its result.

Machines are busy and frequencies drift, so nothing is timed by itself: the candidates take turns, and a ratio is the
median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "numpy", "faster-whisper", "ctranslate2", "jiwer", "kaldialign")
INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "i8mm",
    "bf16",
)


class Timings(dict[str, list[float]]):
    """Seconds of each candidate, round by round."""

    def best(self, name: str) -> float:
        return min(self[name])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times `slow` takes the time of `fast`: the median over the rounds."""
        return statistics.median(a / b for a, b in zip(self[slow], self[fast], strict=True))


def take_turns(
    candidates: dict[str, Callable[[], Any]],
    rounds: int,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Times the candidates in turn, `rounds` times over, after a round that is not counted (`warm`).

    With one thread, `clock` may be `time.process_time`, which runs only while this process computes.
    """
    timings = Timings({name: [] for name in candidates})
    for number in range(rounds + warm):
        for name, run in candidates.items():
            start = clock()
            run()
            if number >= warm:
                timings[name].append(clock() - start)
    return timings


def hardware() -> dict[str, Any]:
    """The machine, in words that mean something elsewhere."""
    import torch

    about: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        about["processor"] = fields.get("model name", about["processor"])
        flags = set((fields.get("flags") or fields.get("Features") or "").split())
        about["instructions"] = [name for name in INSTRUCTION_SETS if name in flags]
    if hasattr(os, "getloadavg"):
        about["load_at_end"] = round(os.getloadavg()[0], 1)
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  " + "  ".join([first, *others]), flush=True)


def write_result(name: str, result: dict[str, Any], quick: bool) -> None:
    """Ends a benchmark: its result to `results/NAME.json`, with the machine and versions, and as the last line.

    A quick run leaves the file of a full one as it is and writes `results/NAME.quick.json`, which git ignores.
    """
    whole = {"benchmark": name, **result, "quick": quick, "hardware": hardware(), "versions": versions()}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / (f"{name}.quick.json" if quick else f"{name}.json")
    file.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(whole), flush=True)
