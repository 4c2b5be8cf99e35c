"""`training.batch_seconds=auto`: the largest batches that the GPU holds, found by trying them before the first step.

How much fits depends on the length of the clips, so each bucket of lengths has a budget of its own (the idea is that of
NeMo's OOMptimizer). Clips of silence with a dense text go through the very model with its losses, forward and backward,
more and more of them until memory runs out; beside them lie gradients and what stands for the optimiser's state.
Weights, random states and the order of data are the same afterwards.

What was found stays with the run, which goes on with it, and in the user's cache for the next run that is alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from omegaconf import DictConfig

from tiny_audio import __version__
from tiny_audio.data.batching import Budget, LengthBucket
from tiny_audio.errors import UserError
from tiny_audio.files import cache_folder, write_folder
from tiny_audio.hub.asr_audio import SAMPLING_RATE
from tiny_audio.hub.asr_encoders import encoder_output_length, encoder_width
from tiny_audio.hub.asr_processing import TinyAudioProcessor
from tiny_audio.provenance import hardware
from tiny_audio.train.build import AUTO, fixed_batch_seconds, loss_weights
from tiny_audio.train.loop import MODEL_INPUTS, Trainer
from tiny_audio.train.pieces import is_out_of_memory

BUDGETS_FILE = "batch_budgets.json"
# Of what fitted. The rest is for memory that lies in pieces too small for a tensor, which comes with batches of many
# shapes, and for the few texts that are denser than the one that was tried.
KEPT_SHARE = 0.9
RESOLUTION = 0.05  # the search ends where what fits and what does not are as close as this
KEY = "training.batch_seconds=auto"

Note = Callable[[str], None]


def budgets_to_go_on_with(config: DictConfig, checkpoint: Path | None) -> list[Budget] | None:
    """Those of the run that `checkpoint` is of; None where there is no checkpoint, or nothing is `auto`.

    Raises:
        UserError: they are not there, and with others the place in the data would mean another one.
    """
    if checkpoint is None or config.training.batch_seconds != AUTO:
        return None
    file = checkpoint.parent.parent / BUDGETS_FILE
    try:
        return read_budgets(file)
    except FileNotFoundError:
        problem = f"there is no {file}"
    except ValueError as error:
        problem = str(error)
    raise UserError(
        f"{KEY}: cannot go on from {checkpoint}, because {problem}; if its run had a number, give that one"
    )


def settle_batches(
    trainer: Trainer, processor: TinyAudioProcessor, known: list[Budget] | None, note: Note
) -> None:
    """Decides how large the batches of a run with `training.batch_seconds=auto` are; without it, does nothing.

    Args:
        known: budgets to go on with.
        note: is told what is tried, found or remembered.

    Raises:
        UserError: not even one clip fits into memory.
    """
    if trainer.settings.batch_seconds != AUTO:
        return
    device = trainer.accelerator.device
    if known is not None:
        budgets = known
        note(f"{KEY}: batches are as large as the run had them ({BUDGETS_FILE})")
    elif says_no(device):
        budgets = _by_trying(trainer, processor, note)
    else:
        budgets = [Budget(trainer.config.data.max_seconds, fixed_batch_seconds(trainer.settings))]
        note(
            f"{KEY}: batches of {budgets[0].batch_seconds:g} s, the default: what fits is "
            "tried out on NVIDIA GPUs alone. Other machines grow slow rather than say no, and gain little by more"
        )
    if trainer.accelerator.is_main_process:
        write_budgets(trainer.folder / BUDGETS_FILE, budgets, device)
    trainer.data.plan_by(budgets)


def says_no(device: torch.device) -> bool:
    """Whether a device refuses what does not fit. A machine with swap space takes it and crawls, or kills the run."""
    return device.type == "cuda"


def _by_trying(trainer: Trainer, processor: TinyAudioProcessor, note: Note) -> list[Budget]:
    """What every process holds: each remembers or finds its own, then all take the smallest."""
    device, most_clips = trainer.accelerator.device, trainer.settings.per_device_train_batch_size
    buckets = trainer.data.length_buckets()
    cache = cache_folder() / "batch_budgets" / f"{_key(trainer, processor, buckets)}.json"
    started = time.perf_counter()
    own = remembered = _remembered(cache, buckets, note)
    if own is None:
        name, memory = _device(device)
        note(f"{KEY}: trying what fits into {name}{f', {memory / 1e9:.0f} GB' * (memory > 0)}")
        own = find_budgets(trainer, processor, buckets, lambda found: note(describe(found, most_clips)))
    else:
        for budget in reversed(own):
            note(describe(budget, most_clips))
    everyone = gather_object([own])  # all processes come here, whatever they have found
    agreed = [
        min(several, key=lambda budget: budget.batch_seconds) for several in zip(*everyone, strict=True)
    ]
    for budget, mine in zip(reversed(agreed), reversed(own), strict=True):
        if not budget.batch_seconds:
            raise UserError(
                f"{KEY}: out of memory with a single clip of {budget.longest_seconds:.3g} s: lower data.max_seconds, "
                "or set training.gradient_checkpointing=true"
            )
        if budget.batch_seconds < mine.batch_seconds:
            note(f"{describe(budget, most_clips)}, all that another process holds")
    if agreed != remembered:
        try:
            write_budgets(cache, agreed, device)
            kept = f"kept in {cache}"
        except OSError as error:  # it is only a cache
            kept = f"could not be kept in {cache} ({error.strerror})"
        note(f"   found in {time.perf_counter() - started:.0f} s, {kept}")
    return agreed


def _remembered(cache: Path, buckets: Sequence[LengthBucket], note: Note) -> list[Budget] | None:
    try:
        budgets = read_budgets(cache)
        if [budget.longest_seconds for budget in budgets] != [bucket.longest_seconds for bucket in buckets]:
            raise ValueError(f"{cache} is about clips of other lengths")
    except FileNotFoundError:
        return None
    except ValueError as error:
        note(f"{KEY}: {error}; tried out again")
        return None
    note(f"{KEY}: remembered from an earlier run ({cache})")
    return budgets


def find_budgets(
    trainer: Trainer,
    processor: TinyAudioProcessor,
    buckets: Sequence[LengthBucket],
    report: Callable[[Budget], None],
) -> list[Budget]:
    """The largest budget of each bucket, by trying; 0 s where not even one clip fits. Asks no other process."""
    found: list[Budget] = []
    try:
        with rehearsal(trainer):
            seconds = 0.0
            for bucket in reversed(buckets):
                found.append(_find_budget(trainer, processor, bucket, seconds))
                seconds = found[-1].batch_seconds
                report(found[-1])
                if not seconds:
                    break
    except RuntimeError as error:  # there is no room for the gradients
        if not is_out_of_memory(error):
            raise
    missing = buckets[: len(buckets) - len(found)]
    return [Budget(bucket.longest_seconds, 0.0) for bucket in missing] + found[::-1]


def _find_budget(
    trainer: Trainer, processor: TinyAudioProcessor, bucket: LengthBucket, likely_seconds: float
) -> Budget:
    longest, shortest = bucket.longest_seconds, bucket.shortest_seconds
    most_tried = math.ceil(trainer.settings.per_device_train_batch_size / KEPT_SHARE)
    peaks = {0: 0}

    def fits(num_clips: int) -> bool:
        # As many seconds of shorter clips have more prompts. What a batch needs is convex in the length of its clips
        # (attention grows with it, prompts shrink), so the two ends of a bucket stand for all of it.
        tries = {num_clips: longest}
        tries.setdefault(min(int(num_clips * longest / shortest), most_tried), shortest)
        for clips, seconds in tries.items():
            batch = silent_batch(trainer, processor, clips, seconds, bucket.text_of(seconds))
            peak = _try_batch(trainer, batch)
            if peak is None:
                return False
            peaks[num_clips] = max(peaks.get(num_clips, 0), peak)
        return True

    num_clips = largest(fits, int(likely_seconds / KEPT_SHARE / longest), most_tried)
    return Budget(longest, KEPT_SHARE * num_clips * longest, peaks[num_clips])


def largest(fits: Callable[[int], bool], first: int, most: int) -> int:
    """The largest number from 0 to `most` that fits, within `RESOLUTION`: doubled from `first` on, then bisected."""
    fitting, failing, number = 0, most + 1, min(max(first, 1), most)
    while failing - fitting > max(1, RESOLUTION * fitting):
        if fits(number):
            fitting = number
        else:
            failing = number
        number = min(2 * number, most) if failing > most else (fitting + failing) // 2
    return fitting


@contextmanager
def rehearsal(trainer: Trainer) -> Iterator[None]:
    """Inside, memory holds what it does between two batches of a step; what is drawn and added up is forgotten."""
    model, device = trainer.bare_model, trainer.accelerator.device
    python_state, numpy_state = random.getstate(), np.random.get_state()
    state_of_optimizer = []
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for group in trainer.optimizer.param_groups:
                for weight in group["params"]:
                    weight.grad = torch.zeros_like(weight)
                    # Muon has one average of the gradients, AdamW two.
                    state_of_optimizer += [torch.zeros_like(weight) for _ in range(1 if group["muon"] else 2)]
            model.train()
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        state_of_optimizer.clear()
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def silent_batch(
    trainer: Trainer, processor: TinyAudioProcessor, num_clips: int, seconds: float, text: str
) -> dict[str, Any]:
    """A batch as the data would give it, of clips of silence that all have the same text."""
    encoded = trainer.config.data.features_cache is not None
    features = processor.features(np.zeros(int(seconds * SAMPLING_RATE), np.float32))
    if encoded:
        num_frames = int(encoder_output_length(processor.geometry, features.shape[-1]))
        features = torch.zeros(encoder_width(trainer.bare_model.config.audio_config), num_frames)
    batch = dict(processor.collate([processor.assemble(features, text, encoded)] * num_clips))
    if encoded:
        batch["encoder_frames"] = batch.pop("input_features")
    return batch


def _try_batch(trainer: Trainer, batch: dict[str, Any]) -> int | None:
    """Forward and backward: the most bytes in use (0 where the device does not count), None when memory ran out."""
    device = trainer.accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        inputs = {key: batch[key].to(device) for key in MODEL_INPUTS if key in batch}
        # Not through DDP, which would wait for the other processes.
        with trainer.accelerator.autocast():
            output = trainer.bare_model(**inputs, loss_weights=_losses(trainer.config))
        output.loss.backward()
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Only here are the tensors of the failed pass free: the exception held on to them.
    torch.cuda.empty_cache()
    return None


def _losses(config: DictConfig) -> Any:
    """Those of the end of training, when the decoder is there."""
    return loss_weights(config, config.training.max_steps - 1)


def describe(budget: Budget, most_clips: int) -> str:
    """A line of the table."""
    clips = min(most_clips, max(1, int(budget.batch_seconds / budget.longest_seconds + 1e-6)))
    memory = f", {budget.peak_bytes / 1e9:.1f} GB" if budget.peak_bytes else ""
    if not budget.batch_seconds:
        return f"   clips up to {budget.longest_seconds:4.1f} s: not even one fits"
    return (
        f"   clips up to {budget.longest_seconds:4.1f} s: batches of {budget.batch_seconds:5.0f} s, "
        f"{clips:3d} of the longest{memory}"
    )


# What is remembered --------------------------------------------------------------------------------------------


def read_budgets(file: Path) -> list[Budget]:
    """Raises FileNotFoundError, or ValueError, which names the file, where it holds something else."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["budgets"]
        budgets = [
            Budget(float(row["longest_seconds"]), float(row["batch_seconds"]), int(row["peak_bytes"]))
            for row in rows
        ]
        bounds = [budget.longest_seconds for budget in budgets]
        amounts = [*bounds, *(budget.batch_seconds for budget in budgets)]
        if (
            not budgets
            or bounds != sorted(set(bounds))
            or not all(0 < amount < math.inf for amount in amounts)
        ):
            raise ValueError("not ascending lengths with a budget each")
    except FileNotFoundError:
        raise
    except Exception as error:  # a file of any content
        raise ValueError(f"{file} cannot be read ({type(error).__name__}: {error})") from error
    return budgets


def write_budgets(file: Path, budgets: Sequence[Budget], device: torch.device) -> None:
    content = {"device": _device(device)[0], "budgets": [asdict(budget) for budget in budgets]}
    write_folder(file.parent, {file.name: json.dumps(content, indent=2) + "\n"})


def _device(device: torch.device) -> tuple[str, int]:
    """Its name, and the bytes of its memory, 0 where that is the machine's."""
    if device.type != "cuda":
        return hardware(), 0
    return torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory


def _key(trainer: Trainer, processor: TinyAudioProcessor, buckets: Sequence[LengthBucket]) -> str:
    """A hash of all that decides what fits."""
    model, settings = trainer.bare_model, trainer.settings
    towers = (model.model.audio_tower, model.model.language_model)
    depends_on = {
        "device": _device(trainer.accelerator.device),
        "processes": trainer.accelerator.num_processes > 1,  # DDP keeps a copy of the gradients
        "versions": [__version__, torch.__version__, transformers.__version__],
        "architecture": model.config.to_dict(),
        "attention": [tower.config._attn_implementation for tower in towers],
        "weights": [
            (name, list(weight.shape), str(weight.dtype), weight.requires_grad)
            for name, weight in model.named_parameters()
        ],
        "precision": trainer.accelerator.mixed_precision,
        "checkpointing": settings.gradient_checkpointing,
        "compiled": settings.compile,
        "optimizer": settings.optimizer,
        "losses": asdict(_losses(trainer.config)),
        "encoded": trainer.config.data.features_cache is not None,
        "most_clips": settings.per_device_train_batch_size,
        "prompt_tokens": len(processor.prompt_ids(0)),
        "text_tokens": [
            (bucket.longest_seconds, processor.num_text_tokens(bucket.text_of(bucket.longest_seconds)))
            for bucket in buckets
        ],
    }
    text = json.dumps(depends_on, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
