"""How fast a Tiny Audio model writes, against itself without its tricks and against others.

    python benchmarks/inference.py [--quick] [--threads N] [--compile] [--model FOLDER]

All in one process on one machine: candidates take turns, on the same clips, warm, and in (a) and (b) with a fixed
number of new tokens, about what speech of that length needs. README.md beside this file says what each trick is.

(a) the tricks one by one, from audio padded to 30 s on, and the trials that change the text or need a compiler;
(b) a stock audio-language model that pads only to the longest clip, driven by its own processor;
(c) whisper-base by faster-whisper and by transformers, where $TINY_AUDIO_MODELS has it;
(d) a trained model (--model, or outputs/nano/model): the CTC draft and int8, on real speech.

`ratio` is that of (a) on 3 s clips with every trick that leaves the text as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from common import print_table, take_turns, write_result
from inference_trials import compile_trial, quantize, trained_model, whisper_base
from sized_models import FULL, Sizes, our_model, sound, stock_model
from transformers.utils import logging
from tricks import (
    BASELINE,
    LADDER,
    OURS,
    UNPADDED,
    Tricks,
    new_tokens_for,
    transcribe,
    transcribe_drafted,
    transcribe_stock,
)


def check_equal_texts(written: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
    """Raises AssertionError where a trick that must leave the text alone has changed it."""
    for one, other in pairs:
        assert torch.equal(written[one], written[other]), f"{one!r} and {other!r} wrote different texts"


def ladder(
    model: Any, processor: Any, batch: int, seconds: float, rounds: int, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """(a): one table, on `batch` clips of `seconds`; `extra` are other models to run with every trick on."""
    clips, new_tokens = [sound(seconds, seed) for seed in range(batch)], new_tokens_for(seconds)
    written: dict[str, Any] = {}

    def candidate(name: str, which: Any, tricks: Tricks) -> Callable[[], None]:
        def run() -> None:
            written[name] = transcribe(which, processor, clips, new_tokens, tricks)

        return run

    candidates = {name: candidate(name, model, tricks) for name, tricks in LADDER.items()}
    for name, other in (extra or {}).items():
        candidates[name] = candidate(name, other, Tricks())
    timings = take_turns(candidates, rounds)
    check_equal_texts(written, [(BASELINE, list(LADDER)[1]), (UNPADDED, OURS)])
    rows, previous = [], BASELINE
    for name in candidates:
        rows.append(
            (
                name,
                f"{timings.best(name):.2f}",
                f"{timings.ratio(previous, name):.2f}",
                f"{timings.ratio(BASELINE, name):.2f}",
            )
        )
        previous = name
    title = f"(a) {batch} clips of {seconds:g} s, {new_tokens} new tokens each, {rounds} rounds"
    print_table(title, ("", "seconds", "x step", "x in all"), rows)
    return {
        "batch": batch,
        "seconds": seconds,
        "new_tokens": new_tokens,
        "best_seconds": {name: timings.best(name) for name in candidates},
        "ratio_to_baseline": {name: timings.ratio(BASELINE, name) for name in candidates},
    }


def mixed_lengths(model: Any, processor: Any, clips: int, batch: int, rounds: int) -> dict[str, Any]:
    """Clips of 1 to 20 s as they come and sorted by length; all of a batch write what its longest clip needs."""
    seconds = np.random.default_rng(0).uniform(1, 20, clips)
    waveforms = [sound(length, seed) for seed, length in enumerate(seconds)]

    def run(order: list[int]) -> Callable[[], None]:
        def all_batches() -> None:
            for start in range(0, clips, batch):
                chosen = order[start : start + batch]
                new_tokens = new_tokens_for(max(seconds[chosen]))
                transcribe(model, processor, [waveforms[i] for i in chosen], new_tokens, Tricks())

        return all_batches

    orders = {"as they come": list(range(clips)), "sorted": [int(i) for i in np.argsort(seconds)]}
    timings = take_turns({name: run(order) for name, order in orders.items()}, rounds, warm=False)
    ratio = timings.ratio("as they come", "sorted")
    rows = [
        (name, f"{timings.best(name):.2f}", f"{timings.ratio('as they come', name):.2f}") for name in orders
    ]
    print_table(f"(a) {clips} clips of 1 to 20 s in batches of {batch}", ("", "seconds", "x"), rows)
    return {"clips": clips, "batch": batch, "ratio": ratio}


def against_stock(
    ours: tuple[Any, Any], quantized: Any, sizes: Sizes, batch: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """(b): one table."""
    stock = stock_model(sizes)
    clips, new_tokens = [sound(seconds, seed) for seed in range(batch)], new_tokens_for(seconds)
    candidates: dict[str, Callable[[], Any]] = {
        "Qwen3-ASR, prompt as long as ours": lambda: transcribe_stock(*stock, clips, new_tokens, False),
        "Qwen3-ASR, its own short prompt": lambda: transcribe_stock(*stock, clips, new_tokens, True),
        "ours": lambda: transcribe(*ours, clips, new_tokens, Tricks()),
        "ours, int8": lambda: transcribe(quantized, ours[1], clips, new_tokens, Tricks()),
    }
    if batch == 1:
        text = transcribe(*ours, clips, new_tokens, Tricks())[0].tolist()
        draft = [text[0] + 1 if place % 10 == 5 else token for place, token in enumerate(text)]
        candidates["ours, with a draft (simulated)"] = lambda: transcribe_drafted(*ours, clips[0], draft)
        candidates["ours, int8, with a draft (simulated)"] = lambda: transcribe_drafted(
            quantized, ours[1], clips[0], draft
        )
        written = transcribe_drafted(*ours, clips[0], draft)
        assert written == text, "the draft changed the text"
    timings = take_turns(candidates, rounds)
    first, own = list(candidates)[:2]
    rows = [
        (
            name,
            f"{timings.best(name):.2f}",
            f"{timings.ratio(first, name):.2f}",
            f"{timings.ratio(own, name):.2f}",
        )
        for name in candidates
    ]
    title = f"(b) {batch} clips of {seconds:g} s, {new_tokens} new tokens each, {rounds} rounds"
    print_table(title, ("", "seconds", "x same prompt", "x own prompt"), rows)
    return {
        "batch": batch,
        "seconds": seconds,
        "ratio": timings.ratio(first, "ours"),
        "ratio_int8": timings.ratio(first, "ours, int8"),
        "ratio_own_prompt": timings.ratio(own, "ours"),
        "ratio_own_prompt_int8": timings.ratio(own, "ours, int8"),
        "ratios": {name: timings.ratio(first, name) for name in candidates},
        "best_seconds": {name: timings.best(name) for name in candidates},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer clips and rounds")
    parser.add_argument("--compile", action="store_true", help="try torch.compile too: minutes of compiling")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice (1 on a busy machine)")
    parser.add_argument("--model", help="a trained model for (d); default: outputs/nano/model")
    arguments = parser.parse_args()
    quick = arguments.quick
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    print(f"{torch.get_num_threads()} threads, float32; every trick of the ladder is described in README.md")
    ours = our_model(FULL)
    quantized = quantize(ours[0])
    extra = {"(int8, not in the ratio)": quantized}
    short = ladder(*ours, batch=4 if quick else 16, seconds=3, rounds=1 if quick else 2, extra=extra)
    ladders = [short]
    if not quick:
        ladders.append(ladder(*ours, batch=1, seconds=3, rounds=3, extra=extra))
        ladders.append(ladder(*ours, batch=4, seconds=20, rounds=1, extra=extra))
    result: dict[str, Any] = {"ratio": short["ratio_to_baseline"][OURS], "ladders": ladders}
    result["tricks"] = {name: asdict(tricks) for name, tricks in LADDER.items()}
    if not quick:
        result["mixed_lengths"] = mixed_lengths(*ours, clips=48, batch=8, rounds=1)
    if arguments.compile:
        result["compile"] = compile_trial(*ours)
    result["against_stock"] = [
        against_stock(ours, quantized, FULL, batch, 3, rounds)
        for batch, rounds in (((4, 1),) if quick else ((16, 3), (1, 5)))
    ]
    result["whisper_base"] = whisper_base(quantized, *ours, quick=quick)
    result["trained"] = trained_model(arguments.model, quick=quick)
    write_result("inference", result, quick)


if __name__ == "__main__":
    main()
