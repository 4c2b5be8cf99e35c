"""How much audio does a core decode and turn into features in a second, and how many cores keep a GPU busy?

    python benchmarks/decoding.py [--quick] [--rounds N]

Clips of 7 s out of the embedded corpus (people's voices over telephones) as WAV and FLAC at 16 kHz, MP3 at 44.1 kHz
and Opus at 48 kHz. Timed is what a worker does with each before it collates: decode and resample, then Whisper's log-
mel features (80 or 128 bins) or the normalised waveform that HuBERT hears; with one thread, in processor seconds, so
that other work on the machine does not count. What a GPU takes in is `tiny-audio plan`'s own count: its bf16 speed at
the plan's utilisation over the work of the recipe.
`ratio` is the cores that an H200 wants for `stage1` out of FLAC.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import soundfile
import soxr
import torch
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from benchmarks.common import print_table, take_turns, write_result
from tiny_audio.data.sources import open_source
from tiny_audio.hub.asr_audio import SAMPLING_RATE, load_audio
from tiny_audio.train.build import loss_weights
from tiny_audio.train.compute import CLIP_SECONDS, cost_of_config
from tiny_audio.train.config import compose_config
from tiny_audio.train.plan import UTILIZATION, read_gpus

FORMATS: dict[str, tuple[int, dict[str, str]]] = {
    "WAV": (16_000, {"format": "WAV", "subtype": "PCM_16"}),
    "FLAC": (16_000, {"format": "FLAC"}),
    "MP3": (44_100, {"format": "MP3"}),
    "Opus": (48_000, {"format": "OGG", "subtype": "OPUS"}),
}
# As `TinyAudioProcessor.features` calls them.
FEATURES: dict[str, tuple[Any, dict[str, bool]]] = {
    "log-mel, 80 bins": (WhisperFeatureExtractor(feature_size=80), {"padding": False, "truncation": False}),
    "log-mel, 128 bins": (WhisperFeatureExtractor(feature_size=128), {"padding": False, "truncation": False}),
    "waveform": (Wav2Vec2FeatureExtractor(do_normalize=True), {}),
}
RECIPES = {
    "stage1": "waveform",
    "mosa": "log-mel, 128 bins",
    "small": "log-mel, 80 bins",
}  # what its encoder hears
GPUS = ("A40", "H200")
NUM_CLIPS, QUICK_CLIPS = 32, 4


def make_clips(count: int) -> list[np.ndarray]:
    """Waveforms of `CLIP_SECONDS` each."""
    source = open_source("corpus:train")
    speech = np.concatenate([source.read(row) for row in source.utterances()[: 4 * count]])
    return list(speech[: int(count * CLIP_SECONDS * SAMPLING_RATE)].reshape(count, -1))


def encode(waveform: np.ndarray, rate: int, kind: dict[str, str]) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.clip(soxr.resample(waveform, SAMPLING_RATE, rate), -1, 1), rate, **kind)
    return file.getvalue()


def flops_per_audio_second(recipe: str) -> float:
    """What the plan counts for a second of audio."""
    config = compose_config([f"+experiments={recipe}"])
    cost = cost_of_config(config, loss_weights(config, config.training.max_steps), CLIP_SECONDS)
    return cost.flops_per_audio_second + cost.repeated_flops_per_audio_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer clips and rounds")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = make_clips(QUICK_CLIPS if options.quick else NUM_CLIPS)
    seconds = len(clips) * CLIP_SECONDS
    files = {name: [encode(clip, *how) for clip in clips] for name, how in FORMATS.items()}
    candidates: dict[str, Any] = {}
    for name in files:
        candidates[name] = lambda name=name: [load_audio(file) for file in files[name]]
    for name, (extractor, arguments) in FEATURES.items():
        candidates[name] = lambda extractor=extractor, arguments=arguments: [
            extractor(clip, sampling_rate=SAMPLING_RATE, return_tensors="pt", **arguments) for clip in clips
        ]
    rounds = options.rounds or (1 if options.quick else 5)
    timings = take_turns(candidates, rounds, clock=time.process_time)
    speeds = {name: seconds / timings.best(name) for name in candidates}

    def together(file: str, features: str) -> float:
        return 1 / (1 / speeds[file] + 1 / speeds[features])

    print_table(
        "Seconds of audio a second and core",
        ["", "decoded", *(f"+ {name}" for name in FEATURES)],
        [
            [name, f"{speeds[name]:,.0f}", *(f"{together(name, features):,.0f}" for features in FEATURES)]
            for name in FORMATS
        ],
    )
    gpus = [gpu for gpu in read_gpus().gpus if gpu.name in GPUS]
    cores: dict[str, dict[str, float]] = {}
    rows = []
    for recipe, features in RECIPES.items():
        work = flops_per_audio_second(recipe)
        for gpu in gpus:
            rate = gpu.audio_seconds_a_second(work, UTILIZATION)
            wanted = {name: rate / together(name, features) for name in FORMATS}
            cores[f"{recipe} on {gpu.name}"] = {"audio_seconds_a_second": rate, **wanted}
            rows.append(
                [recipe, gpu.name, f"{rate:,.0f}", *(math.ceil(number) for number in wanted.values())]
            )
    print_table(
        f"Cores that keep a GPU busy, by the plan's audio rates ({UTILIZATION:.0%} of the printed speed)",
        ["recipe", "GPU", "s of audio a second", *FORMATS],
        rows,
    )
    result = {
        "ratio": cores["stage1 on H200"]["FLAC"],
        "audio_seconds_a_second_and_core": speeds,
        "cores": cores,
        "rounds": rounds,
    }
    write_result("decoding", result, options.quick)


if __name__ == "__main__":
    main()
