"""A whole run: config to data and model, training, the final evaluation, and all that lands in the run's folder."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig
from transformers.utils.logging import disable_progress_bar

from tiny_audio.data.source import Source
from tiny_audio.data.sources import open_source, open_sources
from tiny_audio.data.utterance import Problem
from tiny_audio.evaluate.normalize import default_normalizer
from tiny_audio.evaluate.page import audio_reader, write_page
from tiny_audio.evaluate.providers import TinyAudioProvider
from tiny_audio.evaluate.report import write_results, write_samples
from tiny_audio.evaluate.results import PAGE_FILE, EvalResult, metrics_record
from tiny_audio.evaluate.runner import evaluate, sample_indices
from tiny_audio.evaluate.scoring import evaluate_batches
from tiny_audio.files import replace_folder, write_files
from tiny_audio.provenance import git_hash, hardware
from tiny_audio.publish.background import BackgroundPush
from tiny_audio.train.batch_budget import budgets_to_go_on_with, settle_batches
from tiny_audio.train.build import build_data, build_model, check_start, trains_alignment_head
from tiny_audio.train.checkpoints import (
    check_room,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    put_aside,
)
from tiny_audio.train.compiling import check_compiler
from tiny_audio.train.config import config_to_yaml
from tiny_audio.train.features import open_store
from tiny_audio.train.listening import ListeningMonitor, listening_gap
from tiny_audio.train.loop import Trainer
from tiny_audio.train.precision import mixed_precision
from tiny_audio.train.progress import TrainingDisplay
from tiny_audio.train.records import StepLog, draw_loss, run_folder
from tiny_audio.train.sharding import KEY as SHARDING
from tiny_audio.train.sharding import check_sharding
from tiny_audio.train.speed import build_meter
from tiny_audio.train.trackers import Sample, Trackers
from tiny_audio.train.window import choose_window

logger = logging.getLogger(__name__)

EVALUATION_BATCH_SIZE = 32
UNUSABLE_FILE, UNUSABLE_SAID = "unusable.txt", 5
NUM_SAMPLES_KEPT = 50
NUM_SAMPLES_SHOWN = 6  # by the tracker, with their sound


@dataclass
class RunResult:
    """What a finished run has to show."""

    folder: Path
    model_folder: Path
    metrics: dict[str, Any]
    evaluation: EvalResult | None  # None: no data.test, or the decoder rested to the end (ctc.alone_share=1)
    previous_run: Path | None


def is_main_process() -> bool:
    """Whether this is the process that writes files and talks: of several on `torchrun`, the one with rank 0."""
    return os.environ.get("RANK", "0") == "0"


def run(config: DictConfig) -> RunResult | None:
    """Trains what `config` describes and evaluates it on `data.test`. None for all processes but the first.

    Raises:
        UserError: anything the user can mend.  KeyboardInterrupt: stopped by Ctrl-C, after saving a checkpoint.
    """
    started = time.perf_counter()
    folder = Path(config.output_dir).expanduser()
    checkpoint = find_checkpoint(config.training.resume, folder / "checkpoints")
    if checkpoint is None:
        check_start(config.init_from, folder)
    check_sharding(config.training)
    budgets = budgets_to_go_on_with(config, checkpoint)
    if config.training.compile:
        check_compiler()
    # All that can be wrong with the data is found before a model of gigabytes is built.
    cached = config.data.features_cache is not None
    train_sources, dev = open_sources(config.data.train, with_audio=not cached), open_source(config.data.eval)
    test = open_source(config.data.test) if config.data.test else None
    model, processor = build_model(config)
    store = open_store(config, model, processor)
    variants = config.data.features_cache_variants or 1 if cached else None
    data = build_data(config, train_sources, processor, variants=variants, store=store)
    if not is_main_process():
        data.note_problem = _unusable_notes(folder, lambda text: None)
        trainer = Trainer(config, model, data, folder, report=lambda line: None)
        settle_batches(trainer, processor, budgets, note=lambda text: None)
        if trainer.is_sharded:  # the first process cannot evaluate alone
            trainer.evaluate = DevEvaluation(
                trainer, processor, dev, config.training.eval_samples, lambda text: None, lambda *shown: None
            )
        _train_along(trainer, checkpoint)
        return None
    check_room(folder, model, config.training, checkpoint)
    with run_folder(folder, resuming=checkpoint is not None) as previous:
        write_files(
            {folder / "config.yaml": config_to_yaml(config, provenance(config, model, train_sources))}
        )
        display = TrainingDisplay(config.training.max_steps)
        with Trackers(config, folder) as trackers, display:
            trainer = Trainer(
                config,
                model,
                data,
                folder,
                report=lambda line: _report(line, log, display, trackers),
                started=started,
            )
            settle_batches(trainer, processor, budgets, display.note)
            if config.training.sharding == "full" and not trainer.is_sharded:
                display.note(f"{SHARDING}: there is one process, which holds all; torchrun starts several")
            for note in data.summary():
                display.note(note)
            data.note_problem = _unusable_notes(folder, display.note)
            if previous is not None and (kept := list_checkpoints(previous / "checkpoints")):
                display.note(
                    f"starting afresh; the earlier run is now {previous} (training.resume={kept[-1]} goes on from it)"
                )
            if checkpoint is not None:
                trainer.progress = load_checkpoint(checkpoint, trainer.bare_model, trainer.optimizer)
                display.note(f"going on from {checkpoint}, step {trainer.progress.step}")
                aside = put_aside(checkpoint, trainer.progress.step, folder / "checkpoints")
                if aside:
                    names = ", ".join(path.name for path in aside)
                    display.note(f"other checkpoints of this folder are put aside, as a way back: {names}")
                if trainer.progress.data not in ("", data.fingerprint):
                    display.note(
                        "the training data is not what it was at that checkpoint: clips came, went or changed,"
                        " so this epoch may hear some of them again and others not at all"
                    )
            trainer.progress.data = data.fingerprint
            trainer.meter = build_meter(config, model.config, data, trainer.accelerator)
            trainer.evaluate = looks = DevEvaluation(
                trainer, processor, dev, config.training.eval_samples, display.note, trackers.log_samples
            )
            log = StepLog(folder / "metrics.jsonl", trainer.progress.step)
            uploads = None
            if config.training.hub_model_id:
                hub_id = config.training.hub_model_id
                uploads = BackgroundPush(hub_id, folder, trainer.bare_model, processor, display.note)
                trainer.saved = uploads.offer
            del model  # of a sharded one, the shares shall go when training ends
            try:
                progress = trainer.run()
            finally:
                if uploads is not None:
                    uploads.close()
                data.close()  # idle workers would hold their memory through the final evaluation
                draw_loss(folder, f"Tiny Audio: {folder.name}")
        return _finish(config, looks, test, folder, previous, progress)


def _train_along(trainer: Trainer, checkpoint: Path | None) -> None:
    """What all processes but the first do: their share of the steps, and nothing that is seen."""
    if checkpoint is not None:
        trainer.progress = load_checkpoint(checkpoint, trainer.bare_model, trainer.optimizer)
    try:
        trainer.run()
    finally:
        trainer.data.close()


def _unusable_notes(folder: Path, say: Callable[[str], None]) -> Callable[[Problem], None]:
    """What writes each clip that could not be read into a file of the run, and says the first ones."""
    said = 0

    def note(problem: Problem) -> None:
        nonlocal said
        with suppress(OSError), (folder / UNUSABLE_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{problem}\n")
        said += 1
        if said <= UNUSABLE_SAID:
            say(f"left out, it cannot be used: {problem}")
        elif said == UNUSABLE_SAID + 1:
            say(f"more clips cannot be used: {folder / UNUSABLE_FILE} lists them")

    return note


def _num_unusable(folder: Path) -> int:
    """How many clips the run could not read, those of all its processes and before it was resumed."""
    try:
        return len(set((folder / UNUSABLE_FILE).read_text(encoding="utf-8").splitlines()))
    except OSError:
        return 0


def _report(line: dict[str, Any], log: StepLog, display: TrainingDisplay, trackers: Trackers) -> None:
    log.write(line)
    display.show(line)
    trackers.log(line)


def _finish(
    config: DictConfig,
    looks: DevEvaluation,
    test: Source | None,
    folder: Path,
    previous: Path | None,
    progress: Any,
) -> RunResult:
    trainer, processor = looks.trainer, looks.processor
    model = trainer.bare_model.eval()
    model_folder = folder / "model"
    save_model(model, processor, model_folder)  # before anything that may go wrong is tried out with it
    if looks.clips and config.ctc.alone_share < 1:
        looks.note(_choose_window(looks))
        save_processor(processor, model_folder)
    metrics: dict[str, Any] = {
        "train_seconds": progress.train_seconds,
        "steps": progress.step,
        "skipped_steps": progress.skipped_steps,
        "unusable_clips": _num_unusable(folder),
        "audio_hours": progress.audio_seconds / 3600,
        "window_seconds": processor.window_seconds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    result = None
    if test is not None and config.ctc.alone_share < 1:
        result = evaluate(
            TinyAudioProvider(model, processor),
            test,
            model_name=str(model_folder),
            batch_size=EVALUATION_BATCH_SIZE,
            show_progress=True,
        )
        write_results(result, folder)
        write_page([result], folder / PAGE_FILE, audio_reader(result, test))
        metrics = {**metrics_record(result), **metrics}
    metrics |= {
        **trainer.dollars(),
        "run_seconds": progress.wall_seconds,
    }  # `wall_seconds` are the evaluation's
    write_files({folder / "metrics.json": json.dumps(metrics, indent=2) + "\n"})
    return RunResult(folder, model_folder, metrics, result, previous)


def _choose_window(looks: DevEvaluation) -> str:
    """Settles how long recordings will be cut, and says so."""
    model, processor = looks.trainer.bare_model.eval(), looks.processor
    chosen, rates = choose_window(model, processor, looks.clips, looks.normalizer, EVALUATION_BATCH_SIZE)
    processor.window_seconds = chosen
    tried = ", ".join(f"{seconds:g} s: {rate:.3f}" for seconds, rate in rates.items())
    return f"long recordings will be cut into windows of {chosen:g} s (WER on joined dev clips by window: {tried})"


def save_model(model: Any, processor: Any, folder: Path) -> None:
    """Writes a loadable model folder beside its final name and renames it. Raises UserError when the disk is full."""
    disable_progress_bar()  # transformers' bar of shards written: one, in no time
    with replace_folder(folder, "free some, then get it with training.resume=true") as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)


def save_processor(processor: Any, folder: Path) -> None:
    """Writes a processor's files anew into a model folder, each of them whole."""
    with TemporaryDirectory() as made:
        processor.save_pretrained(made)
        files = [path for path in Path(made).iterdir() if path.is_file()]
        write_files({folder / path.name: path.read_bytes() for path in files})


class DevEvaluation:
    """What the model in training makes of a fixed sample of the dev set, which is read and prepared once.

    Its word error rate, and whether it listens; `note` is told when that changes, `show` some clips and transcripts.
    """

    def __init__(
        self,
        trainer: Trainer,
        processor: Any,
        source: Source,
        num_samples: int,
        note: Callable[[str], None],
        show: Callable[[int, Sequence[Sample]], None],
    ):
        self.trainer, self.processor, self.folder = trainer, processor, trainer.folder
        self.note, self.show = note, show
        steps, ctc = trainer.settings.max_steps, trainer.config.ctc
        self.monitor = ListeningMonitor(
            round(ctc.alone_share * steps),
            steps,
            trains_alignment_head(trainer.config) or ctc.embedding_weight > 0,
        )
        rows = source.utterances()
        self.normalizer = default_normalizer(row.text for row in rows)
        clips = []
        for index in sample_indices(len(rows), num_samples):
            try:
                clips.append((source.read(rows[index], max_seconds=processor.max_seconds), rows[index].text))
            except (
                ValueError
            ) as error:  # audio that cannot be used; the final evaluation counts such clips as wrong
                logger.warning("left out of the dev evaluations: %s", error)
        clips.sort(key=lambda clip: len(clip[0]))
        self.clips = clips
        self.batches = [
            ([waveform for waveform, _ in part], [text for _, text in part])
            for part in (
                clips[i : i + EVALUATION_BATCH_SIZE] for i in range(0, len(clips), EVALUATION_BATCH_SIZE)
            )
        ]

    def __call__(self) -> dict[str, float]:
        if not self.batches:
            return {}
        recogniser = TinyAudioProvider(self.trainer.bare_model, self.processor)
        metrics, pairs = evaluate_batches(recogniser.transcribe, self.batches, self.normalizer)
        if self.trainer.accelerator.is_main_process:
            write_samples(
                self.folder / "samples.txt",
                pairs[:NUM_SAMPLES_KEPT],
                self.normalizer,
                heading=f"dev set after step {self.trainer.progress.step}: WER {metrics.wer:.4f}",
            )
        # Short clips to long ones, the same ones every time.
        every = math.ceil(len(pairs) / NUM_SAMPLES_SHOWN)
        shown = [Sample(self.clips[i][0], *pairs[i]) for i in range(0, len(pairs), every)]
        self.show(self.trainer.progress.step, shown)
        figures = {"dev_wer": metrics.wer, "dev_cer": metrics.cer}
        gap = listening_gap(self.trainer.bare_model, self.processor, self.clips)
        if gap is not None:
            figures["listening_gap"] = gap
            said = self.monitor.look(self.trainer.progress.step, gap)
            if said is not None:
                self.note(said)
        return figures


def provenance(config: DictConfig, model: Any, sources: list[Source]) -> dict[str, Any]:
    """What else decides a run: versions, data revisions and the bases it starts from."""
    packages = ("torch", "transformers", "peft", "accelerate", "numpy")
    return {
        "git_hash": git_hash(),
        "data_revisions": {source.name: source.revision for source in sources},
        "encoder_base": model.config.encoder_base,
        "decoder_base": model.config.decoder_base,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "hardware": hardware(),
        "precision": mixed_precision(config.training.bf16),
    }
