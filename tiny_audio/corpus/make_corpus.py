"""Makes the embedded corpus of spoken digit strings.

    python -m tiny_audio.corpus.make_corpus --out tiny_audio/corpus/digits.zip [--utterances 4000] [--seed 0]
        [--engines espeak,flite,...] [--only TEXT] [--kokoro-styles DIR] [--blends 0] [--cache DIR] [--processes 2]

Needs the engines that it names when they are missing, and `pip install pyworld`. What the engines say goes to a
cache folder first (the slow part: Kokoro takes about a second of one core for a second of speech), so a second
run with other numbers takes minutes.

From one cache the same seed gives the same clips and index;
the bytes of the streams differ, since libsndfile numbers its Ogg streams at random. A fresh cache repeats flite's
sound exactly; espeak-ng's changes a little from run to run, because its voices flutter from call to call.

The committed file was made with --utterances 4500 and eight more of Kokoro's styles, which were then left out to
stay below 12 MB: 4,020 clips of 102 voices remained.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

from tiny_audio.corpus import compose, engines, inventory, pack, voices

LIMIT_BYTES = 12_000_000
SHARES = {"dev": 0.065, "test": 0.085}  # of all utterances; the rest is for training
NOISY = {"train": 0.1, "dev": 0.2, "test": 0.2}  # training adds noise of its own while it trains


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    wanted = options.engines.split(",")
    problems = {name: how for name, how in engines.missing().items() if name in wanted}
    if "kokoro" in wanted and "kokoro" not in problems and not options.kokoro_styles.is_dir():
        problems["kokoro"] = (
            f"no folder {options.kokoro_styles}: npm pack kokoro-js, unpack, --kokoro-styles its `voices`"
        )
    if importlib.util.find_spec("pyworld") is None:
        problems["pyworld"] = "pip install pyworld"
    if problems:
        for name, how in problems.items():
            print(f"error: {name} is missing. Install it: {how}", file=sys.stderr)
        print(
            f"Or leave engines out, e.g. --engines {','.join(sorted(set(wanted) - set(problems)))}",
            file=sys.stderr,
        )
        return 2
    table = [
        voice for voice in voices.table(options.blends) if voice.engine in wanted and options.only in voice.id
    ]
    counts = share(table, options.utterances)
    options.cache.mkdir(parents=True, exist_ok=True)
    streams: dict[str, bytes] = {}
    rows: list[dict] = []
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        jobs = {
            pool.submit(
                make_voice, voice, counts[voice.id], options.seed, options.cache, options.kokoro_styles
            ): voice
            for voice in table
        }
        for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
            voice_streams, voice_rows = job.result()
            streams |= voice_streams
            rows += voice_rows
            progress(done, len(jobs), jobs[job].id, time.monotonic() - started)
    order = {split: index for index, split in enumerate(voices.SPLITS)}
    rows.sort(key=lambda row: (order[row["split"]], row["stream"], row["start"]))
    pack.write(options.out, streams, rows)
    return report(options.out, rows, len({voice.speaker for voice in table}))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tiny_audio.corpus.make_corpus", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="the zip to write")
    parser.add_argument("--utterances", type=int, default=4000, help="how many clips in all (default 4000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", default="espeak,flite,festival,piper,kokoro", help="comma-separated")
    parser.add_argument("--only", default="", help="only voices whose name contains this")
    parser.add_argument("--kokoro-styles", type=Path, default=Path("node_modules/kokoro-js/voices"))
    parser.add_argument(
        "--blends", type=int, default=0, help="mixtures of Kokoro's training voices (default 0)"
    )
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "tiny-audio-corpus")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(arguments)


def share(table: list[voices.Voice], utterances: int) -> dict[str, int]:
    """Voice id -> number of clips, by the weights of the voices within the share of their split."""
    counts: dict[str, int] = {}
    for split in voices.SPLITS:
        portion = utterances * SHARES.get(split, 1 - sum(SHARES.values()))
        members = [voice for voice in table if voice.split == split]
        total = sum(voice.weight for voice in members)
        counts |= {voice.id: max(round(portion * voice.weight / total), 1) for voice in members}
    return counts


def make_voice(
    voice: voices.Voice, count: int, seed: int, cache: Path, styles: Path
) -> tuple[dict[str, bytes], list[dict]]:
    items = inventory.inventory(voice, cache, styles)
    return pack.encode(voice, compose.utterances(items, count, f"{seed} {voice.id}", NOISY[voice.split]))


def progress(done: int, total: int, name: str, seconds: float) -> None:
    filled = 30 * done // total
    left = seconds / done * (total - done)
    bar = "#" * filled + "." * (30 - filled)
    end = "\n" if done == total or not sys.stderr.isatty() else ""
    print(
        f"\r[{bar}] {done}/{total} voices, {left:4.0f} s left, {name:32.32}",
        end=end,
        file=sys.stderr,
        flush=True,
    )


def report(path: Path, rows: list[dict], speakers: int) -> int:
    size = path.stat().st_size
    seconds = sum(row["num_samples"] / row["sampling_rate"] for row in rows)
    by_split = {split: sum(row["split"] == split for row in rows) for split in voices.SPLITS}
    print(
        f"{path}: {speakers} voices, {len(rows)} utterances {by_split}, {seconds / 3600:.2f} h, {size:,} bytes, "
        f"{8 * size / seconds / 1000:.2f} kbit/s"
    )
    if size > LIMIT_BYTES:
        print(
            f"error: {size:,} bytes is over the limit of {LIMIT_BYTES:,}; lower --utterances", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
