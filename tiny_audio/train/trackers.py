"""Trackers besides metrics.jsonl: TensorBoard in the run's folder, or Weights & Biases when its key is set."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from tiny_audio.errors import UserError, first_line
from tiny_audio.hub.asr_audio import SAMPLING_RATE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A clip to listen to, float32 (S,) at 16 kHz, and what is written of it."""

    waveform: np.ndarray
    reference: str
    hypothesis: str


class TensorBoardTracker:
    def __init__(self, config: DictConfig, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        for number, sample in enumerate(samples, start=1):
            # Indented by four: Markdown shows it as it is, whatever is said in it.
            text = f"    reference:  {sample.reference}\n    hypothesis: {sample.hypothesis}"
            self.writer.add_text(f"sample {number}", text, step)
            self.writer.add_audio(f"sample {number}", sample.waveform[None], step, SAMPLING_RATE)

    def close(self) -> None:
        self.writer.close()


class WandbTracker:
    def __init__(self, config: DictConfig, folder: Path):
        import wandb

        settings: Any = OmegaConf.to_container(config, resolve=True)
        self.run = wandb.init(project="tiny-audio", name=folder.name, dir=str(folder), config=settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        import wandb

        rows = [
            [wandb.Audio(each.waveform, sample_rate=SAMPLING_RATE), each.reference, each.hypothesis]
            for each in samples
        ]
        self.run.log({"samples": wandb.Table(["audio", "reference", "hypothesis"], rows)}, step=step)

    def close(self) -> None:
        self.run.finish()


# name -> (class, module it needs)
TRACKERS: dict[str, tuple[type[TensorBoardTracker] | type[WandbTracker], str]] = {
    "tensorboard": (TensorBoardTracker, "tensorboard"),
    "wandb": (WandbTracker, "wandb"),
}


def choose_tracker(name: str) -> str | None:
    """The tracker that `training.tracker` means. Raises UserError when its package is missing."""
    if name == "none":
        return None
    if name == "auto":
        if os.environ.get("WANDB_API_KEY") and find_spec("wandb"):
            return "wandb"
        return "tensorboard" if find_spec("tensorboard") else None
    if find_spec(TRACKERS[name][1]) is None:
        raise UserError(
            f"training.tracker={name} needs a package that is missing: pip install 'tiny-audio[{name}]'"
        )
    return name


class Trackers:
    """The chosen tracker, or none: the numbers of a line of metrics go to it, and some clips with their transcripts."""

    def __init__(self, config: DictConfig, folder: Path):
        name = choose_tracker(config.training.tracker)
        try:
            self.tracker = TRACKERS[name][0](config, folder) if name else None
        except Exception as error:  # of its package: no network, no login
            told = f"{name} cannot be reached ({type(error).__name__}: {first_line(error)})"
            if config.training.tracker != "auto":
                raise UserError(f"training.tracker={name}: {told}; or set training.tracker=none") from error
            logger.warning("%s: this run is in metrics.jsonl alone", told)
            self.tracker = None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.tracker is not None:
            self.tracker.close()

    def log(self, line: dict[str, Any]) -> None:
        if self.tracker is not None:
            numbers = {name: value for name, value in line.items() if name != "step"}
            self.tracker.log(line["step"], numbers)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Clips of the dev set with what the model makes of them after `step`."""
        if self.tracker is not None:
            self.tracker.log_samples(step, samples)
