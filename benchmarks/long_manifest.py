"""Does training on ten million clips need more memory than training on a hundred thousand?

    python benchmarks/long_manifest.py [--quick] [--rows N] [--batches N]

Manifests of both sizes are written, each row with an id and a text of its own; 64 recordings (lengths log-normal, mean
7 s, as LoquaciousSet has) stand for the audio of all. The rest is what training does, in a process for each: the
manifest is opened, its rows are looked at, an epoch is planned, batches are read, decoded and collated; the next epoch
is planned and read from its middle on, as a resumed run does; last, all is opened once more, as by a second run. Memory
is read after each stage: what the process has for itself, and with it what it looks at of mapped files, which the
system takes back whenever it wants room. `ratio` is the most that the long one ever had for itself over that of the
short one, `resident_ratio` the same with mapped files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import soundfile

from benchmarks.common import print_table, write_result
from tiny_audio.data.loader import TrainData
from tiny_audio.data.sources import open_source
from tiny_audio.train.build import build_encoder_side
from tiny_audio.train.config import compose_config

NUM_CLIPS = 64
SHORT, ROWS, QUICK_SHORT, QUICK_ROWS = 100_000, 10_000_000, 30_000, 300_000
BATCHES, QUICK_BATCHES = 1_000, 100
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "is",
    "was",
    "he",
    "for",
    "it",
    "with",
    "as",
    "his",
    "on",
    "be",
)
ROWS_AT_A_TIME = 100_000


def write_manifest(folder: Path, num_rows: int) -> Path:
    generator = np.random.default_rng(1)
    lengths = np.sort(generator.lognormal(np.log(7) - 0.125, 0.5, NUM_CLIPS).clip(1, 19)).tolist()
    for number, seconds in enumerate(lengths):
        samples = 0.1 * generator.standard_normal(int(16000 * seconds))
        soundfile.write(folder / f"{number}.flac", samples, 16000)
    path = folder / "manifest.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, num_rows, ROWS_AT_A_TIME):
            count = min(ROWS_AT_A_TIME, num_rows - start)
            clips = generator.integers(0, NUM_CLIPS, count).tolist()
            words = generator.integers(0, len(WORDS), (count, 48)).tolist()
            for row, clip in enumerate(clips):
                seconds = lengths[clip]
                text = " ".join(WORDS[word] for word in words[row][: int(2.5 * seconds)])
                line = {"audio": f"{clip}.flac", "text": text, "seconds": seconds, "id": f"{start + row:08d}"}
                file.write(json.dumps(line) + "\n")
    return path


def held_megabytes() -> tuple[float, float]:
    """What this process has for itself, and that with what it looks at of files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    held = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return int(held["RssAnon"]) / 1000, int(held["VmRSS"]) / 1000


def train_on(manifest: Path, num_batches: int) -> list[dict[str, Any]]:
    """The stages, with their seconds and the memory at their end."""
    stages: list[dict[str, Any]] = []
    started = time.perf_counter()
    _, processor = build_encoder_side(compose_config([]))

    def note(stage: str) -> None:
        nonlocal started
        own, resident = held_megabytes()
        seconds = time.perf_counter() - started
        stages.append({"stage": stage, "seconds": seconds, "own_mb": own, "resident_mb": resident})
        print(f"   {stage}: {seconds:.1f} s, {own:.0f} MB, with files {resident:.0f} MB", flush=True)
        started = time.perf_counter()

    def open_data() -> TrainData:
        source = open_source(manifest)
        note("opened")
        return TrainData(
            source, processor, seed=0, batch_seconds=100, max_clips=64, max_seconds=20, num_workers=0
        )

    note("nothing yet")
    data = open_data()
    note("looked at")
    for epoch in range(2):
        count = data.num_batches(epoch)
        note(f"epoch {epoch} planned")
        batches = data.batches(epoch, count // 2 if epoch else 0)
        for part in range(2):
            read = sum(1 for _ in islice(batches, num_batches // 4))
            assert read == num_batches // 4
            note(f"epoch {epoch}, {'further' if part else 'first'} batches")
    data.close()
    del data, batches
    open_data()
    note("looked at by a second run")
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SHORT:,} and {QUICK_ROWS:,} rows")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batches", type=int)
    parser.add_argument("--manifest", type=Path, help=argparse.SUPPRESS)  # of the process for one of them
    options = parser.parse_args()
    num_batches = options.batches or (QUICK_BATCHES if options.quick else BATCHES)
    if options.manifest:
        (options.manifest.parent / "stages.json").write_text(
            json.dumps(train_on(options.manifest, num_batches))
        )
        return
    short, rows = (QUICK_SHORT, QUICK_ROWS) if options.quick else (SHORT, options.rows or ROWS)
    found: dict[int, list[dict[str, Any]]] = {}
    for num_rows in (short, rows):
        with tempfile.TemporaryDirectory(dir=".") as folder:  # /tmp may be memory
            manifest = write_manifest(Path(folder), num_rows)
            print(f"{num_rows:,} rows, a manifest of {manifest.stat().st_size / 1e6:,.0f} MB", flush=True)
            command = [sys.executable, __file__, "--manifest", str(manifest), "--batches", str(num_batches)]
            environment = {**os.environ, "TINY_AUDIO_CACHE": str(Path(folder) / "cache")}
            subprocess.run(command, check=True, env=environment)
            found[num_rows] = json.loads((manifest.parent / "stages.json").read_text(encoding="utf-8"))
    table = [
        [
            one["stage"],
            *(f"{stage[key]:,.0f}" for stage in (one, other) for key in ("seconds", "own_mb", "resident_mb")),
        ]
        for one, other in zip(found[short], found[rows], strict=True)
    ]
    heads = [f"{head}, {num_rows:,}" for num_rows in found for head in ("s", "MB", "with files")]
    print_table("Seconds and memory by the number of rows", ["stage", *heads], table)
    most = {
        kind: [max(stage[kind] for stage in stages) for stages in found.values()]
        for kind in ("own_mb", "resident_mb")
    }
    result = {
        "ratio": most["own_mb"][1] / most["own_mb"][0],
        "resident_ratio": most["resident_mb"][1] / most["resident_mb"][0],
        "rows": [short, rows],
        "stages": {str(num_rows): stages for num_rows, stages in found.items()},
    }
    write_result("long_manifest", result, options.quick or rows < ROWS)


if __name__ == "__main__":
    main()
