"""Cached features: how much faster is a training step that reads a frozen encoder's frames from the disk?

    python benchmarks/feature_cache.py [--quick] [--hubert] [--threads N] [--rounds N]

Random weights of whisper-base's (`--hubert`: HuBERT-XL's) and SmolLM2-135M's sizes, the `small` recipe's losses and
adapters, clips of noise with a fixed mix of lengths (log-normal, mean about 5 s, 1 to 20 s), batches of 45 s. Three
stages of training:

* the decoder rests (`ctc.alone_share`): projector and alignment head learn from the two alignment losses alone;
* the decoder listens, frozen: its loss reaches the projector;
* the decoder has adapters (LoRA r=16).

A step is what the training process does with a batch that a worker has ready; what the worker does for it is timed
beside. Seconds are those of the processor where there is one thread: what other work takes does not count. The encoder
alone, on the same batches, is what the cache can save of a step: "saved" is the share of that which it does. `ratio` is
a step without over a step with the cache while the decoder rests, where it is largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from common import print_table, take_turns, write_result
from sized_models import FULL, HUBERT_XL, SAMPLING_RATE, TINY, Sizes, our_model, sound
from tricks import new_tokens_for

from tiny_audio.data.features import FrameStore, FrameWriter
from tiny_audio.data.loader import TrainData
from tiny_audio.data.sources import open_sources
from tiny_audio.hub.asr_encoders import encoder_width, run_encoder
from tiny_audio.train.build import freeze
from tiny_audio.train.config import compose_config
from tiny_audio.train.features import Encoder, fill_store
from tiny_audio.train.loop import Trainer

NUM_CLIPS = 18
BATCH_SECONDS = 45.0
LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
# stage -> adapters of the decoder, and whether it rests
STAGES: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "decoder rests": (None, True),
    "decoder frozen": (None, False),
    "decoder with LoRA": (LORA, False),
}


def write_clips(folder: Path) -> Path:
    """Noise of fixed lengths as a manifest."""
    draw = np.random.default_rng(0)
    lines = []
    for number, length in enumerate(
        np.clip(draw.lognormal(1.4, 0.7, NUM_CLIPS), 1.0, 20.0).round(2).tolist()
    ):
        soundfile.write(folder / f"{number}.wav", sound(length, number), SAMPLING_RATE)
        words = "".join(draw.choice(list("etaoin "), new_tokens_for(length))).strip() or "a"
        lines.append(
            json.dumps({"audio": f"{number}.wav", "text": " ".join(words.split()), "seconds": length})
        )
    (folder / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def measure(sizes: Sizes, hubert: bool, stage: str, speech: Path, rounds: int) -> dict[str, float]:
    """Seconds of a step and of its parts, means over the batches, and ratios."""
    lora, rests = STAGES[stage]
    config = compose_config(
        [
            "+experiments=small",
            "encoder_lora.r=0",
            f"data.train={speech}",
            f"ctc.alone_share={0.9 if rests else 0}",
            f"training.batch_seconds={BATCH_SECONDS}",
            "training.num_workers=0",
            "training.max_steps=100000",
            "training.bf16=false",
        ]
    )
    model, processor = our_model(sizes, hubert, decoder_lora=lora, embedding_ctc=True)
    freeze(model, freeze_encoder=True, freeze_decoder=True)
    tower = model.model.audio_tower
    options: dict[str, Any] = {"seed": 0, "batch_seconds": BATCH_SECONDS, "max_clips": 64, "variants": 1}
    on_audio = TrainData(open_sources(str(speech)), processor, **options)
    folder = speech / f"features-{stage}"
    store = FrameStore(folder, torch.bfloat16, encoder_width(tower.config))
    fill_store(store, FrameWriter(folder, {}), on_audio, Encoder(tower, "no"), 0, lambda seconds: None)
    store = FrameStore(folder, torch.bfloat16, encoder_width(tower.config))
    on_features = TrainData(open_sources(str(speech)), processor, store=store, **options)
    trainer = Trainer(config, model, on_audio, folder, report=lambda line: None)
    trainer.model.train()
    heard, cached = list(on_audio.batches(0)), list(on_features.batches(0))

    def train(batches: list[dict[str, Any]]) -> None:
        for batch in batches:
            trainer._step([batch])

    @torch.no_grad()
    def encode() -> None:
        for batch in heard:
            run_encoder(tower, batch["input_features"], batch["input_features_mask"])

    def load(batches: Iterator[dict[str, Any]]) -> None:
        for _ in batches:
            pass

    timings = take_turns(
        {
            "audio": lambda: train(heard),
            "features": lambda: train(cached),
            "encoder": encode,
            "worker, audio": lambda: load(on_audio.batches(0)),
            "worker, features": lambda: load(on_features.batches(0)),
        },
        rounds,
        clock=time.process_time if torch.get_num_threads() == 1 else time.perf_counter,
    )
    by_round = list(zip(timings["audio"], timings["features"], timings["encoder"], strict=True))
    means = {name: statistics.median(seconds) / len(heard) for name, seconds in timings.items()}
    return {
        **{f"{name}_seconds": round(value, 4) for name, value in means.items()},
        "encoder_share": round(statistics.median(e / a for a, _, e in by_round), 3),
        "ratio": round(timings.ratio("audio", "features"), 3),
        "saved": round(statistics.median((a - f) / e for a, f, e in by_round), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--hubert", action="store_true", help="HuBERT-XL's widths: an hour on one core")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = TINY if arguments.quick else HUBERT_XL if arguments.hubert else FULL
    with tempfile.TemporaryDirectory() as name:
        speech = write_clips(Path(name))
        results = {
            stage: measure(sizes, arguments.hubert and not arguments.quick, stage, speech, arguments.rounds)
            for stage in STAGES
        }
    columns = list(results["decoder rests"])
    rows = [[stage, *values.values()] for stage, values in results.items()]
    print_table("a step on audio and on cached features", ["stage", *columns], rows)
    write_result(
        "feature_cache_hubert" if arguments.hubert else "feature_cache",
        {"ratio": results["decoder rests"]["ratio"], "batch_seconds": BATCH_SECONDS, "stages": results},
        arguments.quick,
    )


if __name__ == "__main__":
    main()
