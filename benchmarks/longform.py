"""What length costs: held-out clips alone, joined to ten minutes, and joined to two hours.

    python benchmarks/longform.py [--quick] [MODEL] [--data SOURCE]

The clips are joined in a random order of their own, as often as it takes, once with silences of 0 to 2 s between
them and once with none at all. Every recording is a file, read by a process of its own whose peak memory is its own.
The word error rate alone is that of the very clips a recording holds, counted as often as it holds them.

`ratio` is how many times the largest loss of a recording against its clips alone fits into 0.01.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from common import print_table, write_result

ALLOWED_LOSS = 0.01
SAMPLING_RATE = 16_000
LENGTHS = {"10 min": 600.0, "2 h": 7200.0}
QUICK_LENGTHS = {"1 min": 60.0, "10 min": 600.0}
PAUSES = {"silences of 0-2 s": (0.0, 2.0), "no silence": (0.0, 0.0)}
BATCH_SIZE = 16


def join(
    file: Path, clips: list[np.ndarray], seconds: float, pauses: tuple[float, float], seed: int
) -> list[int]:
    """Writes clips into `file` until it lasts `seconds`; returns which, in their order."""
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    with soundfile.SoundFile(file, "w", SAMPLING_RATE, 1, format="FLAC", subtype="PCM_16") as output:
        written = 0
        while written < seconds * SAMPLING_RATE:
            for index in generator.permutation(len(clips)).tolist():
                pause = np.zeros(int(generator.uniform(*pauses) * SAMPLING_RATE), np.float32)
                output.write(clips[index])
                output.write(pause)
                chosen.append(index)
                written += len(clips[index]) + len(pause)
                if written >= seconds * SAMPLING_RATE:
                    break
    return chosen


def transcribe(model_folder: str, file: str) -> None:
    """The child: one recording, its text, time and peak memory as a line of JSON."""
    from tiny_audio.hub.asr_audio import read_blocks
    from tiny_audio.hub.asr_checkpoint import load_model
    from tiny_audio.hub.asr_longform import Recogniser

    recogniser = Recogniser(*load_model(model_folder, device="cpu"), batch_size=BATCH_SIZE)
    next(recogniser.recognise([[np.random.default_rng(0).normal(0, 0.1, SAMPLING_RATE).astype(np.float32)]]))
    start = time.perf_counter()
    (result,) = recogniser.recognise([read_blocks(file)])
    if isinstance(result, Exception):
        raise result
    record = {
        "text": result.text,
        "seconds": result.seconds,
        "wall_seconds": time.perf_counter() - start,
        "windows": len(result.segments),
        "problems": len(result.problems),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="outputs/nano/model")
    parser.add_argument("--data", default="corpus:test")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        transcribe(arguments.model, arguments.child)
        return

    import jiwer  # quick on texts of ten thousand words

    from tiny_audio.data.sources import open_source
    from tiny_audio.evaluate.normalize import default_normalizer, get_normalizer
    from tiny_audio.hub.asr_checkpoint import load_model
    from tiny_audio.hub.asr_longform import transcribe_waveforms

    source = open_source(arguments.data)
    utterances = list(source.utterances())
    clips = [source.read(utterance) for utterance in utterances]
    texts = [utterance.text for utterance in utterances]
    model, processor = load_model(arguments.model, device="cpu")
    start = time.perf_counter()
    alone: list[str] = []
    for first in range(0, len(clips), BATCH_SIZE):
        alone += transcribe_waveforms(model, processor, clips[first : first + BATCH_SIZE])
    rtfx = sum(map(len, clips)) / SAMPLING_RATE / (time.perf_counter() - start)
    normalize = get_normalizer(default_normalizer(texts))

    def count_edits(reference: str, heard: str) -> tuple[int, int]:
        found = jiwer.process_words(reference, heard)
        errors = found.substitutions + found.deletions + found.insertions
        return errors, found.substitutions + found.deletions + found.hits

    edits = [count_edits(normalize(text), normalize(heard)) for text, heard in zip(texts, alone, strict=True)]

    def rate(indices: list[int]) -> float:
        return sum(edits[index][0] for index in indices) / sum(edits[index][1] for index in indices)

    rows = [("clips alone", "", f"{rate(list(range(len(clips)))):.4f}", "", f"{rtfx:.0f}", "", "")]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (pauses, limits) in enumerate(PAUSES.items()):
            for length, seconds in (QUICK_LENGTHS if arguments.quick else LENGTHS).items():
                file = Path(folder) / "joined.flac"
                chosen = join(file, clips, seconds, limits, number)
                child = [sys.executable, __file__, arguments.model, "--child", str(file)]
                output = subprocess.run(child, check=True, capture_output=True, text=True).stdout
                record = json.loads(output.splitlines()[-1])
                reference = " ".join(texts[index] for index in chosen)
                errors, words = count_edits(normalize(reference), normalize(record.pop("text")))
                wer = errors / words
                speed = record["seconds"] / record["wall_seconds"]
                results.append(
                    {
                        "pauses": pauses,
                        "length": length,
                        "wer": wer,
                        "wer_alone": rate(chosen),
                        "rtfx": speed,
                        **record,
                    }
                )
                rows.append(
                    (length, pauses, f"{wer:.4f}", f"{wer - rate(chosen):+.4f}", f"{speed:.0f}",
                     f"{record['peak_mib']:.0f}", str(record["problems"]))
                )  # fmt: skip
    header = ("recording", "joined with", "WER", "against alone", "RTFx", "peak MiB", "problems")
    print_table(f"{arguments.model}, windows of {processor.window_seconds:g} s", header, rows)
    worst = max(result["wer"] - result["wer_alone"] for result in results)
    write_result(
        "longform",
        {
            "ratio": ALLOWED_LOSS / max(worst, 1e-4),
            "worst_loss": worst,
            "window_seconds": processor.window_seconds,
            "model": arguments.model,
            "data": arguments.data,
            "recordings": results,
        },
        arguments.quick,
    )


if __name__ == "__main__":
    main()
