"""Trainings that are killed at random moments and resumed, against one that never was: `make kills`.

    python -m tests.train.kills [--source folder] [--source streamed] [--kills 20] [--steps 60] [--workers 2]

One process imports everything and then is copied for each life of a run, which saves the seconds of starting it. Each
life ends by SIGKILL: while the run starts, or at a random moment of a random step or of its saving. At the end, the
weights must be those of the whole run bit for bit, and every batch of every epoch must have been learned once and in
its order.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import fsspec
from fsspec.spec import AbstractBufferedFile

from tests.data.clips import loquacious_row, write_parquet
from tests.train.short_runs import settings, weights, write_speech
from tiny_audio.data import hub
from tiny_audio.train.checkpoints import list_checkpoints
from tiny_audio.train.config import check_config
from tiny_audio.train.loop import Trainer
from tiny_audio.train.run import run

NUM_CLIPS = 30
HEARD_FILE = "heard.jsonl"
WAIT_SECONDS = 0.002
EARLY_SHARE = 0.2  # of the kills that come while a run starts
SAVE_STEPS = 2  # so that most lives lose a step that has to be taken again
OPEN = build_opener(ProxyHandler({})).open  # this machine needs no proxy


class RangeHandler(SimpleHTTPRequestHandler):
    """Files by pieces, which the handler that it builds on does not know."""

    def do_GET(self) -> None:
        first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
        part = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class HttpFiles(fsspec.AbstractFileSystem):
    """http:// for fsspec, whose own needs a package more."""

    protocol = "http"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        with OPEN(Request(path, method="HEAD")) as answer:
            return {"name": path, "size": int(answer.headers["Content-Length"]), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> AbstractBufferedFile:
        return HttpFile(self, path, mode, block_size=1 << 14, cache_type="readahead")


class HttpFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        with OPEN(Request(self.path, headers={"Range": f"bytes={start}-{end - 1}"})) as answer:
            return answer.read()


def open_folder(folder: Path) -> str:
    return str(write_speech(folder))


def open_streamed(folder: Path) -> str:
    """A data set of three shards that a server has, read piece by piece where it lies."""
    rows = [loquacious_row(number, 0.4 + 0.1 * (number % 7)) for number in range(NUM_CLIPS)]
    for shard in range(3):
        write_parquet(folder / f"{shard}.parquet", rows[shard::3])
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(RangeHandler, directory=str(folder)))
    # Not in a thread: what it holds at the time would be copied into every life.
    multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True).start()
    fsspec.register_implementation("http", HttpFiles, clobber=True)
    files = [f"http://127.0.0.1:{server.server_address[1]}/{shard}.parquet" for shard in range(3)]
    hub._resolve_files = lambda *_: files
    return "hub:acme/speech:train"


SOURCES: dict[str, Callable[[Path], str]] = {"folder": open_folder, "streamed": open_streamed}


def write_down_what_is_heard() -> None:
    """Each step of this process goes into a file: its number, and epoch, number and clips of its batches."""
    stock = Trainer._step

    def step(self: Trainer, batches: list[dict[str, Any]], *arguments: Any) -> None:
        stock(self, batches, *arguments)
        places = [(batch["epoch"], batch["batch_index"], batch["utterance_ids"]) for batch in batches]
        with (self.folder / HEARD_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps([self.progress.step, places]) + "\n")

    Trainer._step = step  # type: ignore[method-assign]


def newest(folder: Path) -> int:
    checkpoints = list_checkpoints(folder / "checkpoints")
    return int(checkpoints[-1].name.partition("-")[2]) if checkpoints else 0


def live(config: Any, folder: Path, last_step: int = 10**6, pause: float = 0.0) -> bool:
    """Runs in a process of its own, killed `pause` seconds after `last_step` is saved; whether it came to its end."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        config.output_dir = str(folder)
        config.training.resume = newest(folder) > 0
        try:
            write_down_what_is_heard()
            run(check_config(config))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    end = None
    while end is None or time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0, "a life ended in an error"
            return True
        if end is None and newest(folder) >= last_step:
            end = time.monotonic() + pause
        time.sleep(WAIT_SECONDS)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def steps_heard(folder: Path) -> tuple[dict[int, Any], int]:
    """The batches of each step, and how many steps were taken again. A step that is taken again must be the same."""
    steps: dict[int, Any] = {}
    again = 0
    for line in (folder / HEARD_FILE).read_text(encoding="utf-8").splitlines():
        step, batches = json.loads(line)
        assert steps.setdefault(step, batches) == batches, (
            f"step {step} had other clips when it was taken again"
        )
        again += steps[step] is not batches
    return steps, again


def check_order(steps: dict[int, Any], num_steps: int) -> int:
    """Raises unless every batch was learned once, in its order, and every clip once an epoch; the number of epochs."""
    assert sorted(steps) == list(range(1, num_steps + 1)), "a step is missing"
    clips: dict[int, list[str]] = {}
    place = (0, -1)
    for _, batches in sorted(steps.items()):
        for epoch, index, ids in batches:
            assert (epoch, index) in ((place[0], place[1] + 1), (place[0] + 1, 0)), (
                f"{epoch, index} after {place}"
            )
            place = (epoch, index)
            clips.setdefault(epoch, []).extend(ids)
    for epoch, ids in clips.items():
        assert len(ids) == len(set(ids)), f"a clip is twice in epoch {epoch}"
        assert epoch == place[0] or len(ids) == NUM_CLIPS, f"epoch {epoch} lacks clips"
    return place[0] + 1


def kill_and_compare(
    folder: Path, source: str, kills: int, steps: int, workers: int, seed: int
) -> dict[str, Any]:
    """Figures of a run that was killed. Raises AssertionError where it differs from one that was not."""
    folder.mkdir(parents=True, exist_ok=True)
    config = settings(
        write_speech(folder / "speech"),
        folder,
        f"data.train={SOURCES[source](folder / 'train')}",
        f"training.num_workers={workers}",
        f"training.max_steps={steps}",
        f"training.save_steps={SAVE_STEPS}",
        "training.save_total_limit=2",
        "training.eval_steps=100000",
        "augmentation.noise_probability=0.5",
        "augmentation.speed_probability=0.5",
    )
    started = time.monotonic()
    assert live(config, folder / "whole")
    step_seconds = (time.monotonic() - started) / steps
    chance, killed, early = random.Random(seed), folder / "killed", 0
    done = 0
    for number in range(kills):
        is_early = number > 0 and chance.random() < EARLY_SHARE
        early += is_early
        last_step = 0 if is_early else 1 + number * steps // (kills + 1) + chance.randrange(2)
        done += not live(config, killed, last_step, chance.uniform(0, step_seconds))
    if not (killed / "metrics.json").exists():
        assert live(config, killed)
    expected, found = weights(folder / "whole" / "model"), weights(killed / "model")
    assert expected.keys() == found.keys()
    different = [name for name in expected if not expected[name].equal(found[name])]
    assert not different, f"other weights: {different[:3]}"
    heard, again = steps_heard(killed)
    assert heard == steps_heard(folder / "whole")[0], "other clips than the whole run"
    return {
        "source": source,
        "workers": workers,
        "kills": done,
        "of_them_at_the_start": early,
        "steps": steps,
        "epochs": check_order(heard, steps),
        "steps_taken_again": again,
        "weights": len(expected),
        "seed": seed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", action="append", choices=list(SOURCES))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    for source in options.source or SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                figures = kill_and_compare(
                    Path(folder), source, options.kills, options.steps, options.workers, options.seed
                )
            except AssertionError as error:
                print(f"{source}, seed {options.seed}: {error}", file=sys.stderr)
                return 1
        print(json.dumps(figures), flush=True)
        if figures["kills"] < options.kills:
            print(
                f"only {figures['kills']} kills: the run came to its end first; give it more --steps",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
