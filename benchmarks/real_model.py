"""`models/small` and whisper-base on real speech: seconds of sound heard in a second, and errors.

    TINY_AUDIO_MODELS=... python benchmarks/real_model.py [DATA] [--model FOLDER] [--quick] [--threads N] [--rounds N]

DATA is what `tiny-audio eval --data` takes; left out, every eighth clip of corpus:test, which is synthetic. Each model
is asked as `tiny-audio eval` asks it: whisper-base by faster-whisper in int8, and our model in float32 and in bfloat16,
clip by clip and in batches of eight, sorted by length. Loading does not count. Seconds are those of the processor where
there is one thread: what other work takes does not count. `ratio` is our model's best against faster-whisper, both clip
by clip.

It needs both models' weights (on a machine without the hub: $TINY_AUDIO_MODELS) and `pip install faster-whisper`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, print_table, take_turns, write_result
from inference_trials import WHISPER, converted_whisper

from tiny_audio.data.sources import open_source
from tiny_audio.evaluate.normalize import get_normalizer
from tiny_audio.evaluate.providers import Provider, TinyAudioProvider, load_provider
from tiny_audio.evaluate.wer import edit_distances

SMALL = RESULTS.parents[1] / "models" / "small"
BATCH = 8
DTYPES = ("float32", "bfloat16")
WHISPER_NAME = "whisper-base, faster-whisper int8"


def recognisers(model: str) -> dict[str, tuple[Provider, int]]:
    """Each with its batch size. faster-whisper has no batches of short clips."""
    whisper = Path(os.environ.get("TINY_AUDIO_MODELS", "")) / WHISPER
    found: dict[str, tuple[Provider, int]] = {
        WHISPER_NAME: (load_provider("faster-whisper", str(converted_whisper(whisper)), "cpu"), 1)
    }
    for dtype in DTYPES:
        provider = TinyAudioProvider.load(model, "cpu", dtype)
        found |= {f"ours, {dtype}": (provider, 1), f"ours, {dtype}, batches of {BATCH}": (provider, BATCH)}
    return found


def compare(data: str | None, model: str, quick: bool, rounds: int) -> dict[str, Any]:
    source = open_source(data or "corpus:test")
    utterances = list(source.utterances())
    if data is None or quick:
        utterances = utterances[:: 64 if quick else 8]
    utterances.sort(key=lambda utterance: utterance.seconds or 0.0)
    clips = [source.read(utterance) for utterance in utterances]
    normalize = get_normalizer("english")
    references = [normalize(utterance.text).split() for utterance in utterances]
    seconds = sum(map(len, clips)) / 16_000
    heard: dict[str, list[str]] = {}
    known = recognisers(model)

    def candidate(name: str, provider: Provider, size: int) -> Callable[[], None]:
        def run() -> None:
            batches = [provider.transcribe(clips[i : i + size]) for i in range(0, len(clips), size)]
            heard[name] = [str(text) for batch in batches for text in batch]

        return run

    timings = take_turns(
        {name: candidate(name, *known[name]) for name in known},
        rounds,
        clock=time.process_time if torch.get_num_threads() == 1 else time.perf_counter,
    )
    words = sum(map(len, references))
    rows = {}
    for name in known:
        pairs = [(a, normalize(b).split()) for a, b in zip(references, heard[name], strict=True)]
        rows[name] = {
            "rtfx": round(seconds / timings.best(name), 2),
            "times": round(timings.ratio(WHISPER_NAME, name), 2),
            "wer": round(sum(edit_distances(pairs)) / words, 4),
        }
    print_table(
        f"{len(clips)} clips, {seconds:.0f} s, {words} words; seconds of sound a second",
        ("", "RTFx", "x", "WER"),
        [(name, *row.values()) for name, row in rows.items()],
    )
    ratio = max(rows[f"ours, {dtype}"]["times"] for dtype in DTYPES)
    return {"ratio": ratio, "clips": len(clips), "seconds": round(seconds, 1), "words": words, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", help="as of tiny-audio eval")
    parser.add_argument("--model", default=str(SMALL), help="default: models/small")
    parser.add_argument("--quick", action="store_true", help="fewer clips")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if find_spec("faster_whisper") is None or not os.environ.get("TINY_AUDIO_MODELS"):
        print(
            f"skipped: pip install faster-whisper, and set TINY_AUDIO_MODELS to a folder that holds {WHISPER}"
        )
        return
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # faster-whisper's
    write_result(
        "real_model",
        compare(arguments.data, arguments.model, arguments.quick, 1 if arguments.quick else arguments.rounds),
        arguments.quick,
    )


if __name__ == "__main__":
    main()
