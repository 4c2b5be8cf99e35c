"""Does training on ten million clips need more memory the longer it runs?

    python benchmarks/long_manifest.py [--quick] [--rows N] [--batches N]

A few real recordings stand for all rows of a simulated manifest, each row with an id and a length of its own (log-
normal, mean 7 s, as LoquaciousSet has). The rest is what training does: rows are scanned, an epoch is planned,
batches are read, decoded and collated; then the next epoch is planned and read from its middle on, as a resumed run
does. Resident memory is read after each stage and after every tenth of the batches. `ratio` is the memory after the
last batch over that after the first ones: 1.0 is constant.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import soundfile

from benchmarks.common import print_table, write_result
from tiny_audio.data.loader import TrainData
from tiny_audio.data.source import LazySequence, Source
from tiny_audio.data.sources import open_source
from tiny_audio.data.utterance import Utterance
from tiny_audio.train.build import build_encoder_side
from tiny_audio.train.config import compose_config

NUM_CLIPS = 8
CLIP_SECONDS = (2.0, 9.0)
ROWS, QUICK_ROWS = 10_000_000, 100_000
BATCHES, QUICK_BATCHES = 2_000, 100
TENTHS = 10


class RepeatedSource(Source):
    """`num_rows` rows that are read from the few rows of another source."""

    def __init__(self, source: Source, num_rows: int) -> None:
        self.name, self.problems = f"{num_rows:,} rows", []
        self._source, self._clips, self._num_rows = source, list(source.utterances()), num_rows
        lengths = np.random.default_rng(0).lognormal(np.log(7) - 0.125, 0.5, num_rows)
        self._seconds = np.clip(lengths, 1, 19).astype(np.float32)

    def seconds(self) -> np.ndarray:
        return self._seconds

    def utterances(self) -> Sequence[Utterance]:
        return LazySequence(self._num_rows, self._utterance)

    def _utterance(self, row: int) -> Utterance:
        clip = self._clips[row % len(self._clips)]
        return Utterance(f"{clip.id}-{row}", clip.text, float(self._seconds[row]), clip.audio)

    def read(self, utterance: Utterance, max_seconds: float | None = None) -> np.ndarray:
        return self._source.read(utterance, max_seconds)


def count_bytes(text: str) -> int:
    """What the byte tokenizer of this processor counts, in a hundredth of a tokenizer's time."""
    return len(text.encode()) + 1


def resident_megabytes() -> float:
    """Memory that this process holds now."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise SystemExit("this benchmark reads /proc, which only Linux has")


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def write_clips(folder: Path) -> Path:
    generator = np.random.default_rng(1)
    for number, seconds in enumerate(np.linspace(*CLIP_SECONDS, NUM_CLIPS)):
        samples = 0.1 * generator.standard_normal(int(16000 * seconds))
        soundfile.write(folder / f"{number}.flac", samples, 16000)
        (folder / f"{number}.txt").write_text("what was said here", encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batches", type=int)
    options = parser.parse_args()
    num_rows = options.rows or (QUICK_ROWS if options.quick else ROWS)
    num_batches = options.batches or (QUICK_BATCHES if options.quick else BATCHES)
    _, processor = build_encoder_side(compose_config([]))
    processor.num_text_tokens = count_bytes
    stages: list[list[object]] = []
    started = time.perf_counter()

    def note(stage: str) -> None:
        seconds = f"{time.perf_counter() - started:,.0f}"
        stages.append([stage, seconds, f"{resident_megabytes():,.0f}", f"{peak_megabytes():,.0f}"])
        print("  ".join(map(str, stages[-1])), flush=True)

    note("before")
    before = resident_megabytes()
    with tempfile.TemporaryDirectory() as folder:
        source = RepeatedSource(open_source(write_clips(Path(folder))), num_rows)
        data = TrainData(
            source, processor, seed=0, batch_seconds=100, max_clips=64, max_seconds=20, num_workers=0
        )
        note("scanned")
        resident = []
        for epoch in range(2):
            count = data.num_batches(epoch)
            note(f"planned {count:,} batches of epoch {epoch}")
            batches = data.batches(epoch, count // 2 if epoch else 0)
            for _ in range(TENTHS):
                read = sum(1 for _ in islice(batches, num_batches // TENTHS // 2))
                assert read == num_batches // TENTHS // 2
                note(f"read {read:,} more batches of epoch {epoch}")
                resident.append(resident_megabytes())
        data.close()
    print_table("Memory, MB", ["stage", "seconds", "resident", "peak so far"], stages)
    ratio = resident[-1] / resident[1]
    print(
        f"\n{num_rows:,} rows: {(resident[-1] - before) * 1e6 / num_rows:.0f} bytes a row; last over first: {ratio:.2f}"
    )
    result = {
        "ratio": ratio,
        "rows": num_rows,
        "resident_mb": [round(value) for value in resident],
        "peak_mb": round(peak_megabytes()),
        "before_mb": round(before),
        "bytes_a_row": (resident[-1] - before) * 1e6 / num_rows,
    }
    write_result("long_manifest", result, options.quick or num_rows < ROWS)


if __name__ == "__main__":
    main()
