"""How well a run uses its machine: utilisation, padding, waiting for data, and dollars.

Utilisation is what the model has to multiply for a step (`tiny_audio.train.compute`: with frozen towers, no gradient
that nobody needs, no work done twice) over what the machine's matrix multiplication was measured to do.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig

from tiny_audio.data.loader import TrainData
from tiny_audio.hub.asr_config import TinyAudioConfig
from tiny_audio.hub.asr_losses import LossWeights
from tiny_audio.train.build import loss_weights
from tiny_audio.train.compute import StepCost, cost_of_config

MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
REPETITIONS = 10


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The best of some multiplications of square matrices on `device`."""
    size = MATRIX_SIZE.get(device.type, 2048)
    # Not random: the numbers would be taken from those that the run draws, and a resumed run would draw others.
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(REPETITIONS):
        _wait_for(device)
        started = time.perf_counter()
        left @ right
        _wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class SpeedMeter:
    """Turns what the trainer has counted since the last line of metrics into shares.

    Args:
        config: the run's.
        clip_seconds: mean length of the training clips.
        peak_flops: per second, of one device.
        architecture: of the model that trains; the files that it came from may be gone by now.
        num_devices: which share the work of a step.
    """

    def __init__(
        self,
        config: DictConfig,
        clip_seconds: float,
        peak_flops: float,
        architecture: TinyAudioConfig | None = None,
        num_devices: int = 1,
    ) -> None:
        self._config, self._clip_seconds, self._peak_flops = config, clip_seconds, peak_flops
        self._architecture, self._num_devices = architecture, num_devices
        self._costs: dict[tuple[bool, bool], StepCost] = {}

    def cost(self, weights: LossWeights) -> StepCost:
        """What the model multiplies for a second of audio with these losses."""
        kind = (weights.language_model > 0, weights.embedding > 0)
        if kind not in self._costs:
            self._costs[kind] = cost_of_config(self._config, weights, self._clip_seconds, self._architecture)
        return self._costs[kind]

    def seconds_left(self, elapsed: float, first_step: int, step: int) -> float:
        """Of the run, where the steps from `first_step` to `step` took `elapsed` seconds, evaluations included.

        A step in which the decoder rests multiplies a fraction of what the others do: at the pace of those alone, a
        run would seem to be over in half of the time that it takes.
        """
        return elapsed * self._work(step, self._config.training.max_steps) / self._work(first_step, step)

    def _work(self, first: int, last: int) -> float:
        """What is multiplied for a second of audio of each step from `first` to before `last`, added up."""
        resting_until = math.ceil(self._config.ctc.alone_share * self._config.training.max_steps)
        boundary = min(max(first, resting_until), last)
        return sum(
            (end - start) * self.cost(loss_weights(self._config, start)).flops_per_audio_second
            for start, end in ((first, boundary), (boundary, last))
            if end > start
        )

    def figures(self, totals: dict[str, float], elapsed: float, weights: LossWeights) -> dict[str, Any]:
        """For a line of metrics.

        Args:
            totals: "audio_seconds", "waited" (seconds without a batch), "valid" and "padded" (feature positions).
            elapsed: seconds since the last line, evaluations left out.
        """
        cost, speed = self.cost(weights), totals["audio_seconds"] / (elapsed * self._num_devices)
        every_flop = cost.flops_per_audio_second + cost.repeated_flops_per_audio_second
        return {
            "utilization": speed * cost.flops_per_audio_second / self._peak_flops,
            "tflops": speed * every_flop / 1e12,
            "padding_share": 1 - totals["valid"] / totals["padded"],
            "data_wait_share": totals["waited"] / elapsed,
        }


def build_meter(
    config: DictConfig, architecture: TinyAudioConfig, data: TrainData, accelerator: Accelerator
) -> SpeedMeter:
    """The meter of a run, with the speed of its device measured now."""
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    peak = matmul_flops_per_second(accelerator.device, dtype)
    return SpeedMeter(
        config, 3600 * data.hours / data.num_clips, peak, architecture, accelerator.num_processes
    )
