"""The training loop: batches to steps, and a step to a line of metrics.

One optimiser step takes `gradient_accumulation_steps` batches on each process. The losses of all of them are
divided by the step's own counts of tokens, so that a step is the same whether its clips came in one batch or
in many.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import AutocastKwargs, gather_object
from omegaconf import DictConfig

from tiny_audio.data.source import list_problems
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_audio import SAMPLING_RATE
from tiny_audio.hub.asr_losses import CTC_PADDING, IGNORE_LABEL, LossWeights
from tiny_audio.train.build import checkpointed_towers, loss_weights
from tiny_audio.train.checkpoints import Progress, contents, save_checkpoint
from tiny_audio.train.compiling import compile_layers
from tiny_audio.train.optimizer import build_optimizer, learning_rate_factor
from tiny_audio.train.pieces import is_out_of_memory, size_of, split_above
from tiny_audio.train.precision import attend_unfused, cast_frozen, mixed_precision
from tiny_audio.train.records import StepLog
from tiny_audio.train.sharding import assemble, evaluation, shard, whole
from tiny_audio.train.skipping import SKIPPED_FILE, check_repetition, json_number, judge_step
from tiny_audio.train.speed import SpeedMeter

logger = logging.getLogger(__name__)

TERM_NAMES = {"lm": "lm_loss", "ctc": "ctc_loss", "embedding": "embedding_loss", "balance": "balance_loss"}
MODEL_INPUTS = (
    "input_features",
    "encoder_frames",
    "input_features_mask",
    "input_ids",
    "labels",
    "ctc_labels",
)
# Tokens and characters a second of audio that the CTC losses of a step are divided by, at least.
LEAST_SPOKEN = (0.5, 2.0)
LONGEST_WAIT_HOURS = 6  # of other processes, while the first one evaluates

Report = Callable[[dict[str, Any]], None]


class Trainer:
    """Trains `model` on `data` until `training.max_steps`.

    Args:
        config: the run's whole config.
        model: on the CPU, in float32; moved to the accelerator's device here.
        data: a `TrainData`; its order of batches is a pure function of epoch and batch number.
        folder: where checkpoints go.
        report: called with each line of metrics.
        evaluate: called every `training.eval_steps` steps; returns more metrics, such as the dev WER.
        saved: called with each finished checkpoint.
        meter: adds to each line of metrics how well the machine is used.
        started: `time.perf_counter()` when the run began; None: it begins now.
    """

    def __init__(
        self,
        config: DictConfig,
        model: Any,
        data: Any,
        folder: Path,
        report: Report,
        evaluate: Callable[[], dict[str, float]] | None = None,
        saved: Callable[[Path], None] | None = None,
        meter: SpeedMeter | None = None,
        started: float | None = None,
    ):
        self.config, self.settings = config, config.training
        self.data, self.folder, self.report, self.evaluate = data, folder, report, evaluate
        self.saved, self.meter = saved, meter
        self._counted_until = time.perf_counter() if started is None else started
        # DDP has to be told that the decoder gets no gradient while the alignment losses are alone, and the alignment
        # head none where its weight begins at 0.
        partly = config.ctc.alone_share > 0 or bool(config.ctc.final_weight)
        unused = DistributedDataParallelKwargs(find_unused_parameters=partly)
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=LONGEST_WAIT_HOURS))
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # which accelerate overlooks on CPUs
        shards = several and self.settings.sharding == "full"
        # Autocast keeps a bfloat16 copy of each weight that trains until a pass is over: the whole model, at its end.
        copies = AutocastKwargs(cache_enabled=not shards)
        self.accelerator = Accelerator(
            cpu=several and not torch.cuda.is_available(),
            mixed_precision=mixed_precision(self.settings.bf16),
            kwargs_handlers=[unused, patience, copies],
        )
        for tower in checkpointed_towers(model, self.settings.gradient_checkpointing):
            tower.activation_checkpointing_enable()
        if self.settings.compile:
            compile_layers(model)
        if self.accelerator.mixed_precision == "bf16":
            cast_frozen(model, torch.bfloat16)
            if self.accelerator.device.type == "cpu":
                attend_unfused(model)
        self.skeleton = shard(model, self.accelerator.device) if shards else None
        self.optimizer: Any = build_optimizer(model, self.settings)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.model = model if self.is_sharded else self.accelerator.prepare(model)
        self.optimizer = self.accelerator.prepare(self.optimizer)
        self.progress = Progress()
        self._totals: dict[str, float] = {}
        self._stop_agreed = False  # by all processes
        self._too_large = math.inf  # size of the smallest piece of a step that did not fit into memory
        self._save_due = False
        self._saved_step: int | None = None  # by this process

    @property
    def bare_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    @property
    def is_sharded(self) -> bool:
        return self.skeleton is not None

    def run(self) -> Progress:
        """Trains to the end. Ctrl-C finishes the step, saves, and raises KeyboardInterrupt.

        Raises:
            UserError: step after step had to be skipped, or the disk is full.
        """
        self.model.train()
        seed_process(self.config.seed, self.accelerator.process_index, self.progress.step)
        if self.accelerator.is_main_process:
            self._skipped_log = StepLog(self.folder / SKIPPED_FILE, self.progress.step)
        batches = self._batches()
        self._log_start = self._began = time.perf_counter()
        self._first_step = self.progress.step
        with finish_step_first() as stop_asked:
            while self.progress.step < self.settings.max_steps:
                started = time.perf_counter()
                step_batches = [next(batches) for _ in range(self.settings.gradient_accumulation_steps)]
                self._add("waited", time.perf_counter() - started)
                self._step(step_batches, stop_asked())
                self.progress.train_seconds += time.perf_counter() - started
                self._after_step()
                # Several processes stop after the same step; one alone stops at once.
                if self._stop_agreed or (stop_asked() and self.accelerator.num_processes == 1):
                    self.save()
                    self._part()
                    raise KeyboardInterrupt
        if self.is_sharded:
            self.skeleton = assemble(self.skeleton, self.model)
        self._part()
        return self.progress

    def _part(self) -> None:
        """Ends what several processes share, and keeps the bare model.

        Left to the end of the interpreter, a thread of gloo that still drops tensors of the last exchange aborts the
        process (pytorch/pytorch#190489). Ending the group joins its threads, once DDP holds it no longer.
        """
        if self.accelerator.num_processes > 1:
            self.model = self.bare_model
            if self.is_sharded:  # the shares go before the whole comes
                self.model, self.optimizer = self.skeleton, None
            self.accelerator.free_memory()
            self.accelerator.end_training()
            self.model.to(self.accelerator.device)

    def save(self) -> None:
        """Writes a checkpoint of this step, unless it is there already (Ctrl-C can come right after a save)."""
        if self._saved_step == self.progress.step:
            return
        if self.accelerator.is_main_process:
            self.count_time()
            checkpoint = save_checkpoint(
                self.folder / "checkpoints",
                self.bare_model,
                self.optimizer,
                self.progress,
                self.settings.save_total_limit,
            )
            if self.saved is not None:
                self.saved(checkpoint)
        elif self.is_sharded:
            contents(self.model, self.optimizer)
        self._saved_step = self.progress.step

    def count_time(self) -> None:
        """Brings `progress.wall_seconds` up to now."""
        now = time.perf_counter()
        self.progress.wall_seconds += now - self._counted_until
        self._counted_until = now

    def dollars(self) -> dict[str, float]:
        """What the machine has cost so far, waiting and evaluations too, as a figure of a line of metrics."""
        self.count_time()
        price = self.settings.usd_per_hour
        return {} if price is None else {"dollars": self.progress.wall_seconds / 3600 * price}

    def _batches(self) -> Iterator[dict[str, Any]]:
        """Endless: this process's share of the batches from where the run stands.

        Of w processes, the one with index r takes each w-th batch from the r-th on, across the borders of epochs. So a
        step has the same batches whether one process takes several or several processes take one each.
        """
        every = self.accelerator.num_processes
        epoch, first = self.progress.epoch, self.progress.batch + self.accelerator.process_index
        turn = 0  # of this process since it began: of batches that could not be read, too
        while True:
            count = self.data.num_batches(epoch)
            if count == 0:
                raise UserError("data.train made no batch: no clip is left after the filters")
            if first < count:
                heard = False
                for batch in self.data.batches(epoch, first, every):
                    heard = True
                    yield {**batch, "turn": turn + (batch["batch_index"] - first) // every}
                if not heard and first < every:  # all of an epoch: the next one would be no better
                    raise UserError(f"no clip of an epoch could be read: {list_problems(self.data.problems)}")
                turns = math.ceil((count - first) / every)
                turn, first = turn + turns, first + turns * every
            epoch, first = epoch + 1, first - count

    def _step(self, batches: list[dict[str, Any]], stop_asked: bool = False) -> None:
        factor = learning_rate_factor(self.progress.step, self.settings)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        weights = loss_weights(self.config, self.progress.step)
        if weights.language_model != loss_weights(self.config, self.progress.step - 1).language_model:
            self.progress.gradient_norms = []  # the decoder joins in: they say nothing of what comes
        counts = self._counts(batches, stop_asked)
        self._note_place(batches[-1])
        pieces = [{key: batch[key] for key in MODEL_INPUTS if key in batch} for batch in batches]
        result = None
        while result is None:
            pieces = [part for piece in pieces for part in split_above(piece, self._too_large)]
            result = self._accumulate(pieces, weights, counts)
        losses, terms, infeasible = result
        norm = float(
            whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm))
        )
        (loss,) = self._sum_over_processes([losses])  # as the norm is: what is decided on, all decide
        reason = judge_step(self.progress, loss, norm, self.settings.max_grad_norm)
        if reason is None:
            self.optimizer.step()
            for name, term in terms.items():
                self._add(f"{name}_sum", term)
                self._add(f"{name}_count", counts[name])
            self._add("infeasible", infeasible)
            self._add("loss", losses)
            self._add("gradient_norm", norm)
            self._add("steps", 1)
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        if reason is not None:
            self._note_skipped(reason, loss, norm, batches, weights)

    def _note_skipped(
        self, reason: str, loss: float, norm: float, batches: list[dict[str, Any]], weights: LossWeights
    ) -> None:
        """Writes down a step that is not taken, with its clips on all processes. Raises UserError when that repeats."""
        progress, file = self.progress, self.folder / SKIPPED_FILE
        with evaluation(self.model):  # without dropout, which would draw random numbers
            clips = list(self._clips(batches, weights))
        record = {
            "step": progress.step,
            "reason": reason,
            "loss": json_number(loss),
            "gradient_norm": json_number(norm),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "epoch": batches[-1]["epoch"],
            "clips": gather_object(clips),
        }
        if self.accelerator.is_main_process:
            self._skipped_log.write(record)
            logger.warning("step %d is skipped: %s; its clips are in %s", progress.step, reason, file)
        check_repetition(progress, record, file)

    def _clips(self, batches: list[dict[str, Any]], weights: LossWeights) -> Iterator[dict[str, Any]]:
        """What to look at of a step: each clip of this process, and its loss by itself."""
        rows = [(batch, row) for batch in batches for row in range(len(batch["clips"]))]
        # Of a sharded model, a pass is one of all processes: who has fewer clips takes its last one again.
        passes = max(gather_object([len(rows)])) if self.is_sharded else len(rows)
        for number in range(passes):
            batch, row = rows[min(number, len(rows) - 1)]
            inputs = {key: batch[key][row : row + 1] for key in MODEL_INPUTS if key in batch}
            inputs = {key: value.to(self.accelerator.device) for key, value in inputs.items()}
            with torch.no_grad(), self.accelerator.autocast():
                loss = float(self.bare_model(**inputs, loss_weights=weights).loss)
            if number >= len(rows):
                continue
            clip = batch["clips"][row]
            utterance = self.data.utterance(clip.row)
            yield {
                "id": utterance.id,
                "audio": str(utterance.audio),
                "text": clip.recipe.text if clip.recipe else utterance.text,
                "seconds": round(batch["num_samples"][row] / SAMPLING_RATE, 2),
                "loss": json_number(loss),
            }

    def _accumulate(
        self, pieces: list[dict[str, Any]], weights: LossWeights, counts: dict[str, float]
    ) -> tuple[Any, dict[str, Any], Any] | None:
        """Gradients of a step; its loss, the sums of its terms, and its infeasible targets. None when memory ran out.

        There are no gradients then, and `_too_large` is the size of the piece that did not fit. Raises UserError where
        that is a single clip.
        """
        losses: Any = 0.0
        infeasible: Any = 0
        terms: dict[str, Any] = {}
        for piece in pieces:
            try:
                inputs = {key: value.to(self.accelerator.device) for key, value in piece.items()}
                with self.accelerator.autocast():
                    output = self.model(**inputs, loss_weights=weights, normalizers=counts)
                # DDP and FSDP average gradients over the processes; the counts are already those of all of them.
                self.accelerator.backward(output.loss * self.accelerator.num_processes)
            except RuntimeError as error:
                # Other processes would wait for ever for a process that takes more pieces than they do.
                if not is_out_of_memory(error) or self.accelerator.num_processes > 1:
                    raise
                self._note_out_of_memory(piece)
                break
            losses += output.loss.detach()
            infeasible += output.infeasible
            for name, term in output.loss_sums.items():
                terms[name] = terms.get(name, 0.0) + term
        else:
            return losses, terms, infeasible
        # Only here are the tensors of the failed pass free: the exception held on to them.
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()  # nothing without a GPU
        return None

    def _note_out_of_memory(self, piece: dict[str, Any]) -> None:
        num_clips, self._too_large = len(piece["input_ids"]), size_of(piece)
        if num_clips == 1:
            raise UserError(
                "out of memory with a single clip: lower data.max_seconds, or set training.gradient_checkpointing=true"
            )
        logger.warning(
            "out of memory in step %d: batches as large as this one of %d clips are taken in parts from now on, to the "
            "same result; a lower training.batch_seconds is faster",
            self.progress.step + 1,
            num_clips,
        )

    def _counts(self, batches: list[dict[str, Any]], stop_asked: bool) -> dict[str, float]:
        """What each loss is divided by: tokens, characters and clips of the whole step, over all processes.

        Adds up the step's audio and padding, and learns whether any process was asked to stop.
        """
        tokens = sum(int((batch["labels"][:, 1:] != IGNORE_LABEL).sum()) for batch in batches)
        characters = sum(
            int((batch["ctc_labels"] != CTC_PADDING).sum()) for batch in batches if "ctc_labels" in batch
        )
        clips = sum(len(batch["labels"]) for batch in batches)
        masks = [batch["input_features_mask"] for batch in batches]
        num_valid, num_padded = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
        seconds = sum(batch["audio_seconds"] for batch in batches)
        *sums, stop, audio_seconds, valid, padded = self._sum_over_processes(
            [tokens, characters, clips, stop_asked, seconds, num_valid, num_padded]
        )
        for name, value in (("audio_seconds", audio_seconds), ("valid", valid), ("padded", padded)):
            self._add(name, value)
        self.progress.audio_seconds += audio_seconds
        self._stop_agreed = stop > 0 and self.accelerator.num_processes > 1
        # Clips without a word have frames all the same: in a step of nothing else, each would weigh as a whole text.
        least_tokens, least_characters = (rate * audio_seconds for rate in LEAST_SPOKEN)
        return {
            "lm": sums[0],
            "ctc": max(sums[1], least_characters),
            "embedding": max(sums[0], least_tokens),
            "balance": sums[2],
        }

    def _note_place(self, batch: dict[str, Any]) -> None:
        """Sets the place in the data behind the step, given this process's last batch.

        A process that could not read a batch is a turn ahead of the others: the one with the fewest turns counts, so
        nothing is left out by those who go on from here.
        """
        index, every = self.accelerator.process_index, self.accelerator.num_processes
        behind = batch["batch_index"] - index + every
        place = torch.tensor([[-batch.get("turn", 0), batch["epoch"], behind]], device=self._count_device())
        if every > 1:
            place = self.accelerator.gather(place)
        _, self.progress.epoch, self.progress.batch = max(map(tuple, place.tolist()))

    def _sum_over_processes(self, values: list[Any]) -> list[float]:
        local = torch.tensor(values, dtype=torch.float64, device=self._count_device())
        return self.accelerator.reduce(local, reduction="sum").tolist()

    def _count_device(self) -> torch.device:
        # Apple GPUs know no float64; one process has nothing to reduce.
        return torch.device("cpu") if self.accelerator.num_processes == 1 else self.accelerator.device

    def _add(self, name: str, value: Any) -> None:
        self._totals[name] = self._totals.get(name, 0.0) + value

    def _after_step(self) -> None:
        step, settings = self.progress.step, self.settings
        last = step == settings.max_steps
        line = self._metrics() if step % settings.logging_steps == 0 or last else {}
        # Before the decoder's first step it has nothing to say.
        listens = step > self.config.ctc.alone_share * settings.max_steps
        if self.evaluate is not None and listens and (step % settings.eval_steps == 0 or last):
            started = time.perf_counter()
            with evaluation(self.model):
                line = {**(line or {"step": step}), **self.evaluate()}
            self._log_start += time.perf_counter() - started  # the speed is that of training
        if line and self.accelerator.is_main_process:
            elapsed, done = time.perf_counter() - self._began, step - self._first_step
            left = elapsed / done * (settings.max_steps - step)
            if self.meter is not None:
                left = self.meter.seconds_left(elapsed, self._first_step, step)
            self.report({**line, "seconds_left": left, **self.dollars()})
        self._save_due |= step % settings.save_steps == 0
        # Not after a skipped step: the weights before it may be what is wrong, and a save drops the oldest checkpoint.
        if last or (self._save_due and self.progress.last_skipped[-1:] != [step]):
            self.save()
            self._save_due = False

    def _metrics(self) -> dict[str, Any]:
        """One line for metrics.jsonl: means since the last one."""
        totals = {name: float(value) for name, value in self._totals.items()}
        self._totals = {}
        local = [name for name in totals if name in ("loss", "infeasible", "waited") or name.endswith("_sum")]
        totals |= dict(zip(local, self._sum_over_processes([totals[name] for name in local]), strict=True))
        totals["waited"] /= self.accelerator.num_processes
        now = time.perf_counter()
        elapsed, self._log_start = now - self._log_start, now
        line = {
            "step": self.progress.step,
            "epoch": self.progress.epoch,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "audio_seconds_per_second": totals["audio_seconds"] / elapsed,
            "audio_hours": self.progress.audio_seconds / 3600,
            "train_seconds": self.progress.train_seconds,
            "skipped_steps": self.progress.skipped_steps,
            "infeasible_ctc_targets": int(totals.get("infeasible", 0)),
        }
        if "steps" in totals:  # else all were skipped
            line |= {key: totals[key] / totals["steps"] for key in ("loss", "gradient_norm")}
        for name, key in TERM_NAMES.items():
            if f"{name}_sum" in totals:
                line[key] = totals[f"{name}_sum"] / max(totals[f"{name}_count"], 1)
        if self.meter is not None:
            line |= self.meter.figures(totals, elapsed, loss_weights(self.config, self.progress.step - 1))
        return line


def seed_process(seed: int, process_index: int, step: int) -> None:
    """Gives each further process random numbers of its own, so that all drop out other values.

    The first one keeps its random state, which is the one that checkpoints hold.
    """
    if process_index > 0:
        state = np.random.SeedSequence([seed, process_index, step]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))


@contextmanager
def finish_step_first() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C (or SIGTERM) only sets a flag; a second one interrupts at once."""
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        previous = {number: signal.signal(number, handle) for number in numbers}
    except ValueError:  # not in the main thread: there are no signals to catch
        previous = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
