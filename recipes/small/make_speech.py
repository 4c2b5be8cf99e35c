"""Makes English speech to train the recipe `small` on: many voices, many kinds of sentences.

    python -m recipes.small.make_speech OUT [--hours 10] [--engines hibari,espeak,...] [--jobs 2] [--seed 0]
    python -m recipes.small.make_speech OUT --texts words   one to three words at a time, and nothing else
    python -m recipes.small.make_speech OUT --real          the recordings of people that packages hold

Run it from the root of the repository. OUT/train, OUT/dev, OUT/test, OUT/newvoice/train and OUT/newvoice/test are
sources for `tiny-audio train data.train=OUT/train`: parquet shards of some minutes each, speech as FLAC. No voice and
no sentence (of the grammar: no whole utterance) is in two of train, dev and test; `newvoice` is one voice in none
of them (he says digits in corpus:train).

A shard follows from its name and the seed alone. One that is there is not made again: a run that was stopped goes on
where it stood, and more --hours or more --engines add shards to those that are there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import concurrent.futures.process
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from recipes.small import sentences, synthesizers
from recipes.small.real_speech import make_real
from recipes.small.shards import SAMPLING_RATE, at_16_khz, make_row, out_of_pace, read_dropped, write_shard
from tiny_audio.corpus.speech import envelope
from tiny_audio.errors import UserError, nearest
from tiny_audio.files import write_files

SHARD_SECONDS = 300.0
# Seconds that each engine with voices of a split speaks in it, whatever --hours is. Training takes the rest.
FIXED_SECONDS = {"dev": 150.0, "test": 300.0, "newvoice/train": 900.0, "newvoice/test": 450.0}
SPLITS = ("train", *FIXED_SECONDS)
SHORTEST_SECONDS, LONGEST_SECONDS = 0.5, 25.0
LARGEST_DROP_SHARE = 0.1
SETTINGS_NAME = "speech.json"


@dataclass(frozen=True)
class Shard:
    """One file to make: so many seconds of one engine for one split."""

    engine: str
    split: str
    index: int
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.split}/{self.engine}-{self.index:04d}"

    def path(self, out: Path) -> Path:
        return out / f"{self.name}.parquet"


def plan(hours: float, engines: list[str]) -> list[Shard]:
    """All shards in the order in which they are made: quick engines first, so that there is soon something to use."""
    total = sum(synthesizers.ENGINES[name].share for name in engines)
    shards = []
    for name in sorted(engines, key=lambda name: -synthesizers.ENGINES[name].speed):
        share = synthesizers.ENGINES[name].share / total
        for split in (*FIXED_SECONDS, "train"):
            if not synthesizers.voices_of(name, split.partition("/")[0]):
                continue
            left, index = FIXED_SECONDS.get(split, 3600.0 * hours * share), 0
            while left > 1.0:
                shards.append(Shard(name, split, index, min(left, SHARD_SECONDS)))
                left -= SHARD_SECONDS
                index += 1
    return shards


# One shard --------------------------------------------------------------------------------------------------


def make_shard(shard: Shard, out: Path, seed: int, texts: Sequence[str]) -> None:
    """Writes the parquet file of a shard. Raises UserError where too many clips are no speech at all."""
    origin = f"{seed} {shard.name}"
    rng = random.Random(origin)
    speak = synthesizers.ENGINES[shard.engine].load(zlib.crc32(origin.encode()))
    voices = synthesizers.voices_of(shard.engine, shard.split.partition("/")[0])
    weights = [voice.weight for voice in voices]
    text_split = {"newvoice/train": "train", "newvoice/test": "test"}.get(shard.split, shard.split)
    rows: list[dict] = []
    dropped: Counter[str] = Counter()
    seconds = 0.0
    while seconds < shard.seconds:
        (voice,) = rng.choices(voices, weights)
        text = sentences.draw(text_split, rng, texts)
        try:
            audio = finish(*speak(text, voice, rng), rng)
            reason = why_not(len(audio) / SAMPLING_RATE, len(text))
        except subprocess.CalledProcessError as error:  # a program may trip over one sentence of many
            reason = f"{shard.engine} failed with exit status {error.returncode}"
        if reason:
            dropped[reason] += 1
            if dropped.total() > 20 + LARGEST_DROP_SHARE * len(rows):
                reasons = ", ".join(f"{count} {why}" for why, count in dropped.items())
                raise UserError(
                    f"{shard.name}: {dropped.total()} of {len(rows) + dropped.total()} clips are unusable ({reasons}); "
                    f"listen to what {shard.engine} says, or leave it out of --engines"
                )
            continue
        identity = f"{shard.engine}-{shard.index:04d}-{len(rows):03d}"
        rows.append(make_row(identity, audio, text, voice.speaker, shard.engine))
        seconds += len(audio) / SAMPLING_RATE
    write_shard(shard.path(out), rows, dropped)


def why_not(seconds: float, num_characters: int) -> str | None:
    """Why a clip is not one to train on, or None."""
    if seconds < SHORTEST_SECONDS:
        return f"under {SHORTEST_SECONDS:g} s"
    if seconds > LONGEST_SECONDS:
        return f"over {LONGEST_SECONDS:g} s"
    return out_of_pace(seconds, num_characters)


def finish(audio: np.ndarray, rate: int, rng: random.Random) -> np.ndarray:
    """At 16 kHz, with a random short silence before and after, at a level that leaves room: float32 (samples,)."""
    audio = audio.astype(np.float32)
    if audio.ndim != 1 or not len(audio) or not np.isfinite(audio).all():
        return np.zeros(0, np.float32)
    audio = at_16_khz(audio, rate)
    step = 0.01
    level = envelope(audio, SAMPLING_RATE, step)
    loud = np.flatnonzero(level > 0.01 * max(level.max(initial=0.0), 1e-6))
    if not len(loud):
        return np.zeros(0, np.float32)
    before, after = (int(rng.uniform(0.02, 0.35) * SAMPLING_RATE) for _ in range(2))
    first, last = (int(edge * step * SAMPLING_RATE) for edge in (loud[0], loud[-1] + 1))
    kept = audio[max(first - before, 0) : last + after]
    kept = np.pad(kept, (max(before - first, 0), max(last + after - len(audio), 0)))
    rms = float(np.sqrt(np.mean(kept**2)))
    gain = min(10 ** (-23 / 20) / max(rms, 1e-6), 0.9 / max(float(np.abs(kept).max()), 1e-6))
    return (kept * gain).astype(np.float32)


# All of them ------------------------------------------------------------------------------------------------


def make_all(shards: list[Shard], out: Path, seed: int, texts: Sequence[str], jobs: int) -> None:
    """Makes what is missing, with a line of progress on stderr."""
    missing = [shard for shard in shards if not shard.path(out).is_file()]
    if len(missing) < len(shards):
        print(f"{len(shards) - len(missing)} of {len(shards)} shards are there already", file=sys.stderr)
    progress = Progress(missing, jobs)
    if jobs == 1:
        for shard in missing:
            progress.show(shard, _timed_shard(shard, out, seed, texts))
        return
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches every process: the workers end at once and silently, and this one says how to go on.
    pool = concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)
    )
    with pool:
        try:
            running = {pool.submit(_timed_shard, shard, out, seed, texts): shard for shard in missing}
            for job in concurrent.futures.as_completed(running):
                progress.show(running[job], job.result())
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a worker process died, perhaps for want of memory; the same command goes on, and "
                f"--jobs {max(1, jobs // 2)} needs less"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _timed_shard(shard: Shard, out: Path, seed: int, texts: Sequence[str]) -> float:
    started = time.monotonic()
    make_shard(shard, out, seed, texts)
    return time.monotonic() - started


class Progress:
    """A bar by time: an hour of one engine takes sixty times as long as one of another."""

    def __init__(self, shards: list[Shard], jobs: int) -> None:
        self.left = list(shards)
        self.jobs = jobs
        self.done_seconds = 0.0  # of work
        # Seconds of work for a second of speech: a guess until the engine has been seen at work.
        self.cost = {name: 1.0 / engine.speed for name, engine in synthesizers.ENGINES.items()}
        self.seen: dict[str, tuple[float, float]] = {}

    def show(self, shard: Shard, elapsed: float) -> None:
        self.left.remove(shard)
        self.done_seconds += elapsed
        work, speech = self.seen.get(shard.engine, (0.0, 0.0))
        self.seen[shard.engine] = work + elapsed, speech + shard.seconds
        self.cost[shard.engine] = self.seen[shard.engine][0] / self.seen[shard.engine][1]
        ahead = sum(self.cost[other.engine] * other.seconds for other in self.left)
        share = self.done_seconds / (self.done_seconds + ahead) if ahead else 1.0
        bar = "#" * int(30 * share) + "." * (30 - int(30 * share))
        minutes = ahead / self.jobs / 60
        end = "\n" if not self.left or not sys.stderr.isatty() else ""
        text = f"[{bar}] {100 * share:3.0f}%, {len(self.left)} shards and {minutes:.0f} minutes left, {shard.name}"
        print(f"\r{text:<100}", end=end, file=sys.stderr, flush=True)


def report(out: Path, shards: list[Shard]) -> str:
    """A table of what lies in the folder: hours by split and engine, voices, what was left out, licences."""
    lines = [f"{'split':<15} {'engine':<10} {'hours':>6} {'clips':>6} {'voices':>6}  licence"]
    dropped: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for split in SPLITS:
        for name, engine in synthesizers.ENGINES.items():
            paths = [shard.path(out) for shard in shards if (shard.split, shard.engine) == (split, name)]
            paths = [path for path in paths if path.is_file()]
            if not paths:
                continue
            tables = [pyarrow.parquet.read_table(path, columns=["seconds", "speaker"]) for path in paths]
            for path in paths:
                dropped += read_dropped(path)
            table = pyarrow.concat_tables([table.replace_schema_metadata() for table in tables])
            hours = sum(table["seconds"].to_pylist()) / 3600
            totals[split] += hours
            num_voices = len(set(table["speaker"].to_pylist()))
            lines.append(
                f"{split:<15} {name:<10} {hours:6.2f} {len(table):6} {num_voices:6}  {engine.licence}"
            )
    lines.append("hours: " + ", ".join(f"{split} {hours:.2f}" for split, hours in totals.items()))
    lines.append("left out: " + (", ".join(f"{count} {why}" for why, count in dropped.items()) or "nothing"))
    lines += [f"text of {source.name}: {source.licence}" for source in sentences.TEXT_SOURCES]
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.small.make_speech", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--hours", type=float, default=10.0, help="speech to train on, in all (default 10)")
    parser.add_argument(
        "--engines", default=",".join(synthesizers.ENGINES), help="comma-separated (default: all)"
    )
    parser.add_argument(
        "--texts", default=",".join(sentences.shares()), help="comma-separated kinds of texts (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="processes")
    parser.add_argument("--seed", type=int, default=0, help="other speech for each number (default 0)")
    parser.add_argument(
        "--kokoro-styles",
        type=Path,
        default=synthesizers.KOKORO_STYLES,
        help=f"folder `voices` of the npm package kokoro-js (default {synthesizers.KOKORO_STYLES})",
    )
    parser.add_argument(
        "--real", action="store_true", help="write only the recordings of people that packages hold"
    )
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The engines and the texts that are meant. Raises UserError for options that cannot be."""
    chosen = []
    for option, kind, known in (
        ("engines", "engine", synthesizers.ENGINES),
        ("texts", "kind of text", sentences.shares()),
    ):
        names = [name.strip() for name in getattr(options, option).split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise UserError(
                    f"--{option}: there is no {name}; there are {', '.join(known)}.{nearest(name, known)}"
                )
        if not names:
            raise UserError(f"--{option} names no {kind}")
        chosen.append(names)
    if not 0 < options.hours <= 1000:
        raise UserError(f"--hours {options.hours:g} must be above 0 and at most 1000")
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs} must be 1 or more")
    return chosen[0], chosen[1]


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Notes what the folder's shards follow from. Raises UserError where those in it follow from something else."""
    path = out / SETTINGS_NAME
    if path.is_file():
        try:
            made_with = {"texts": [*sentences.shares()], **json.loads(path.read_text(encoding="utf-8"))}
            made_with["seed"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} does not name a seed; it is not one of this program, take another folder"
            ) from error
        for name, value in settings.items():
            if made_with[name] != value:
                raise UserError(
                    f"{out} was made with --{name} {_words(made_with[name])}, not {_words(value)}; take another folder"
                )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_files({path: json.dumps(settings) + "\n"})


def _words(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.real:
            print(make_real(options.out))
            return 0
        engines, texts = check(options)
        synthesizers.use_kokoro_styles(options.kokoro_styles)
        synthesizers.require_engines(engines)
        sentences.require_text_sources()
        claim(options.out, {"seed": options.seed, "texts": texts})
        shards = plan(options.hours, engines)
        make_all(shards, options.out, options.seed, texts, options.jobs)
        text = report(options.out, shards)
        write_files({options.out / "table.txt": text + "\n"})
        print(text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or options.out
        print(f"error: {where}: {error.strerror}; shards that are whole stay", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
