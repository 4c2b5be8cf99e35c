"""How fast a training step is and what memory it takes, against ours without its tricks and against a stock model.

    python benchmarks/training.py [--quick] [--threads N] [--rounds N]

Random weights of whisper-base's and SmolLM2-135M's sizes, float32, on the CPU. A fixed mix of clips of noise
(log-normal lengths of 7 s in the mean, 1 to 25 s), equally many a step; projector and LoRA r=16 on the decoder train.
Candidates take turns in one process, an epoch each; a step is what the training process does with batches that workers
have ready. With one thread, seconds are the processor's, to which it does not matter what else runs.

(a) our training loop with every trick off, and on one by one; the losses that a trick must not change are compared;
(b) transformers' Qwen3-ASR of the same sizes under HF's Trainer, batches grouped by length;
(c) multiplications that ours does a second over what the machine does in one large product.

Memory is the peak of bytes that PyTorch's allocator has given out, temporaries of kernels included, in the step with
the longest clips of 400, and the weights and the optimiser's state. It is counted, so it is the same on every run, and
other candidates in the process do not matter; a process takes some more.

`ratio` is the speed of (a) with every trick on over that with every trick off, without the feature cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import print_table, take_turns, write_result
from sized_models import FULL, TINY, Sizes
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from training_candidates import (
    BASELINE,
    CACHED,
    EXACT_FROM,
    LADDER,
    OURS,
    Ours,
    Stock,
    Tricks,
    clip_mix,
)
from transformers.utils import logging

SAME_LOSS = 1e-4  # relative: sums over the same clips in another order, in float32
PRODUCT_SIZE = 4096
NUM_STEPS, CLIPS_A_STEP = 3, 8
LM_ONLY = "ours, the language model's loss alone"
STOCK, STOCK_OWN = "Qwen3-ASR, a prompt as long as ours", "Qwen3-ASR, its own short prompt"
PRODUCT = "one large product"
AIMS = {"ratio": 3.0, "memory_ratio": 0.5, "stock_ratio": 1.3, "utilization": 0.5}


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that PyTorch held at a time while `run` went on, above those that it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def fixed_bytes(candidate: Ours | Stock) -> int:
    """Weights in float32, and AdamW's two moments of those that train."""
    return 4 * sum(p.numel() for p in candidate.model.parameters()) + 8 * candidate.num_trained


def attention_flops(query: Any, key: Any, value: Any, *args: Any, products: int = 2, **kwargs: Any) -> int:
    """Of shapes (B, heads, T, width): `products` of a (T, width) matrix with a (T', width) one for each head."""
    batch, heads, length, width = query
    return products * 2 * batch * heads * length * key[2] * width


def attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
) -> int:
    return attention_flops(
        query, key, value, products=4
    )  # the scores, which it computes once more, count once


def count_flops(run: Callable[[], Any]) -> int:
    """What `run` multiplies and adds in matrix products, convolutions and attention."""
    cpu_attention: Any = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            cpu_attention._scaled_dot_product_flash_attention_for_cpu: attention_flops,
            cpu_attention._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
        },
    )
    with counter:
        run()
    return counter.get_total_flops()


def check_losses(sums: dict[str, dict[str, float]]) -> None:
    """Raises AssertionError where a trick that must leave the losses alone has changed one."""
    names = list(LADDER)
    first, *others = names[names.index(EXACT_FROM) :]
    for other in others:
        for term, value in sums[first].items():
            change = abs(sums[other][term] - value) / abs(value)
            assert change < SAME_LOSS, f"{other!r} changes {term} by {change:.1e}"


def measure(sizes: Sizes, num_steps: int, clips_a_step: int, rounds: int, folder: Path) -> dict[str, Any]:
    """All tables, and what goes into the result."""
    clips, longest = clip_mix(num_steps, clips_a_step)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    ours = Ours(sizes, clips_a_step, folder)
    stocks = {
        name: Stock(sizes, clips_a_step, ours.num_trained, own_prompt, folder, clock)
        for name, own_prompt in ((STOCK, False), (STOCK_OWN, True))
    }
    audio_seconds = sum(clip.seconds for clip in clips)
    sums: dict[str, dict[str, float]] = {}
    inside_steps: dict[str, list[float]] = {name: [] for name in stocks}
    epochs: dict[str, Callable[[], Any]] = {}
    memory: dict[str, int] = {}

    def our_epoch(name: str, steps: Any, tricks: Tricks, lm_only: bool) -> Callable[[], None]:
        def run() -> None:
            sums[name] = ours.train(steps, tricks, lm_only)

        return run

    def stock_epoch(name: str, stock: Stock) -> Callable[[], None]:
        items = [stock.item(clip) for clip in clips]
        return lambda: inside_steps[name].append(stock.train(items))

    candidates = LADDER | {LM_ONLY: LADDER[OURS]}
    ours.hear(longest)
    ours.train(ours.steps(LADDER[OURS]), LADDER[OURS])  # makes the optimiser's state
    for name, tricks in candidates.items():
        steps = ours.steps(tricks)
        memory[name] = fixed_bytes(ours) + peak_bytes(our_epoch(name, steps, tricks, name == LM_ONLY))
    ours.hear(clips)
    for name, tricks in candidates.items():
        epochs[name] = our_epoch(name, ours.steps(tricks), tricks, name == LM_ONLY)
    for name, stock in stocks.items():
        items = [stock.item(clip) for clip in longest]
        memory[name] = fixed_bytes(stock) + peak_bytes(lambda: stock.train(items))  # noqa: B023
        epochs[name] = stock_epoch(name, stock)
    flops = count_flops(epochs[OURS])
    square = torch.rand(PRODUCT_SIZE, PRODUCT_SIZE)
    timings = take_turns({PRODUCT: lambda: square @ square, **epochs}, rounds, warm=False, clock=clock)
    for name, seconds in inside_steps.items():
        timings[name] = seconds
    check_losses(sums)

    peak_flops = 2 * PRODUCT_SIZE**3 / timings.best(PRODUCT)
    result = {
        "ratio": timings.ratio(BASELINE, OURS),
        "memory_ratio": memory[OURS] / memory[BASELINE],
        "stock_ratio": timings.ratio(STOCK, OURS),
        "stock_ratio_lm_only": timings.ratio(STOCK, LM_ONLY),
        "stock_own_prompt_ratio": timings.ratio(STOCK_OWN, OURS),
        "stock_own_prompt_ratio_lm_only": timings.ratio(STOCK_OWN, LM_ONLY),
        "cached_ratio": timings.ratio(OURS, CACHED),
        "utilization": statistics.median(flops / seconds for seconds in timings[OURS]) / peak_flops,
        "aims": AIMS,
        "flops_per_audio_second": flops / audio_seconds,
        "peak_flops_per_second": peak_flops,
        "clips": len(clips),
        "clips_a_step": clips_a_step,
        "audio_seconds": audio_seconds,
        "rounds": rounds,
        "trained_parameters": {"ours": ours.num_trained, "stock": stocks[STOCK].num_trained},
        "candidates": {
            name: {
                "audio_seconds_per_second": audio_seconds / timings.best(name),
                "best_seconds": timings.best(name),
                "times_as_fast": timings.ratio(BASELINE, name),
                "peak_bytes": memory[name],
            }
            for name in epochs
        },
        "loss_sums": sums,
    }
    report(result, timings)
    return result


def report(result: dict[str, Any], timings: Any) -> None:
    rows, before = [], BASELINE
    for name, row in result["candidates"].items():
        step = f"{timings.ratio(before, name):.2f}" if name in LADDER else ""
        rows.append(
            (
                name,
                f"{row['audio_seconds_per_second']:.2f}",
                step,
                f"{row['times_as_fast']:.2f}",
                f"{row['peak_bytes'] / 1e9:.2f}",
            )
        )
        before = name
    print_table(
        f"(a), (b) {result['clips']} clips, {result['audio_seconds']:.0f} s, {result['clips_a_step']} clips a step",
        ("", "seconds of sound a second", "x step", "x in all", "peak GB"),
        rows,
    )
    aims = [
        (aim, f"{result[aim]:.2f}", f"{'at most' if aim == 'memory_ratio' else 'at least'} {value:g}")
        for aim, value in AIMS.items()
    ]
    print_table("(c) and the aims", ("", "measured", "aim"), aims)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice (1 on a busy machine)")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    os.environ["ACCELERATE_USE_CPU"] = "true"  # what both loops look at
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own words
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        sizes = TINY if arguments.quick else FULL
        result = measure(sizes, NUM_STEPS, CLIPS_A_STEP, arguments.rounds, Path(folder))
    write_result("training", result, arguments.quick)


if __name__ == "__main__":
    main()
