"""What earlier runs made of their machines, for `tiny-audio plan --measured RUN`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.errors import UserError, first_line
from tiny_audio.train.records import read_metrics

PRECISIONS = {"bf16": "bf16", "no": "float32"}


@dataclass(frozen=True)
class MeasuredSpeed:
    """Of one device.

    `error` is relative: how far off the other runs together are for the worst of several; of a single run, how far its
    lines of metrics (all but a tenth at either end) lie from their mean.
    """

    device: str
    precision: str
    flops_per_second: float
    error: float
    num_runs: int

    @property
    def said(self) -> str:
        """In words, what it is worth."""
        if self.num_runs == 1:
            return f"one run, whose lines vary by {self.error:.0%}"
        return f"{self.num_runs} runs; each is predicted by the others within {self.error:.0%}"


def measured_speeds(folders: Sequence[Path]) -> list[MeasuredSpeed]:
    """The speeds of the machines and precisions that these runs trained on.

    Raises:
        UserError: a folder is no run, or its metrics hold no speed.
    """
    runs: dict[tuple[str, str], list[list[tuple[float, float]]]] = {}
    for folder in folders:
        device, precision = _trained_on(folder)
        runs.setdefault((device, precision), []).append(_lines(folder))
    return [_speed(device, precision, lines) for (device, precision), lines in runs.items()]


def _speed(device: str, precision: str, runs: list[list[tuple[float, float]]]) -> MeasuredSpeed:
    speed = _mean([line for run in runs for line in run])
    if len(runs) > 1:
        others = [_mean([line for run in runs if run is not left for line in run]) for left in runs]
        error = max(abs(_mean(run) / other - 1) for run, other in zip(runs, others, strict=True))
    else:
        apart = sorted(abs(rate / speed - 1) for rate, _ in runs[0])
        error = apart[max(0, round(0.8 * len(apart)) - 1)]
    return MeasuredSpeed(device, PRECISIONS.get(precision, precision), speed, error, len(runs))


def _mean(lines: list[tuple[float, float]]) -> float:
    """Work over time."""
    return sum(rate * seconds for rate, seconds in lines) / sum(seconds for _, seconds in lines)


def _lines(folder: Path) -> list[tuple[float, float]]:
    """FLOP a second and seconds of each line of metrics but the first, in which a machine warms up."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "train_seconds" in line]
    before = [0.0, *(line["train_seconds"] for line in lines)]
    rates = [
        (line["tflops"] * 1e12, line["train_seconds"] - began)
        for line, began in zip(lines, before, strict=False)
        if line.get("tflops", 0) > 0 and line["train_seconds"] > began
    ]
    if not rates:
        raise UserError(
            f"{folder}: its metrics.jsonl says nothing of speed (tflops), so nothing was measured"
        )
    return rates[1:] or rates


def _trained_on(folder: Path) -> tuple[str, str]:
    from omegaconf import OmegaConf

    try:
        made: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))["run"]
        return str(made["hardware"]), str(made["precision"])
    except Exception as error:  # a folder of any content
        raise UserError(
            f"{folder} is not the folder of a run that says what it ran on "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
