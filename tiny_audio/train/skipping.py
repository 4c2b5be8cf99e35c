"""Steps that would do harm: how they are told from the others, and what is written down about them.

A step is skipped when its loss or gradient norm is no finite number, or when the norm is a spike. PaLM
(arXiv:2204.02311, section 5.1) went back before such steps and left their batches out, which cured the run each time;
skipping needs no going back. The rule is one-sided, on the logarithm of the norm, against median and median deviation
of the last steps: unlike mean and variance (ZClip, arXiv:2504.02507), they are not moved by the very spikes that they
are to find. The loss is no part of it: a high loss with an ordinary gradient changes little, and small sets make it
jump.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiny_audio.errors import UserError
from tiny_audio.train.checkpoints import Progress

SKIPPED_FILE = "skipped_steps.jsonl"
REMEMBERED_STEPS = 64
LEAST_REMEMBERED = 32  # before that, at the start of a run and of a stage, norms change by themselves
SPIKE_DEVIATIONS = 6.0
LEAST_SPIKE_RATIO = 10.0  # to the median, however evenly the last steps went
DEVIATIONS_PER_MEDIAN_DEVIATION = 1.4826  # of a normal distribution
MOST_SKIPPED, OF_STEPS = 4, 50  # one more stops the run
CLIPS_IN_A_MESSAGE = 5


def spike_limit(norms: Sequence[float], max_grad_norm: float) -> float:
    """The gradient norm above which a step is a spike, given those of the last good steps.

    Never below `max_grad_norm`, which the recipe takes for an ordinary one; infinite while too few steps are known.
    """
    if len(norms) < LEAST_REMEMBERED:
        return math.inf
    logarithms = np.log(np.maximum(norms, np.finfo(float).tiny))
    median = float(np.median(logarithms))
    deviation = DEVIATIONS_PER_MEDIAN_DEVIATION * float(np.median(np.abs(logarithms - median)))
    return max(
        max_grad_norm, math.exp(median + max(math.log(LEAST_SPIKE_RATIO), SPIKE_DEVIATIONS * deviation))
    )


def judge_step(progress: Progress, loss: float, gradient_norm: float, max_grad_norm: float) -> str | None:
    """Why the step that comes after `progress` is to be skipped, or None; `progress` remembers either."""
    limit = spike_limit(progress.gradient_norms, max_grad_norm)
    reason = None
    if not math.isfinite(loss):
        reason = f"its loss is {loss}"
    elif not math.isfinite(gradient_norm):
        reason = f"its gradient norm is {gradient_norm}"
    elif gradient_norm > limit:
        usual = float(np.median(progress.gradient_norms))
        reason = (
            f"its gradient norm is {gradient_norm:.3g}, usually {usual:.3g}, and {limit:.3g} is the limit"
        )
    if reason is None:
        progress.gradient_norms = [*progress.gradient_norms, gradient_norm][-REMEMBERED_STEPS:]
    else:
        progress.skipped_steps += 1
        progress.last_skipped = [*progress.last_skipped, progress.step + 1][-MOST_SKIPPED - 1 :]
    return reason


def json_number(value: float) -> float | str:
    """JSON knows neither nan nor inf."""
    return value if math.isfinite(value) else str(value)


def likely_cause(record: dict[str, Any]) -> str:
    """What the clips' own losses say about a skipped step, and what to do."""
    clips = record["clips"]
    broken = [clip["id"] for clip in clips if isinstance(clip["loss"], str)]
    if broken and len(broken) < len(clips):
        named = ", ".join(broken[:CLIPS_IN_A_MESSAGE])
        return f"{len(broken)} of its {len(clips)} clips have no finite loss by themselves, look at them: {named}"
    if broken:
        return (
            "none of its clips has a finite loss: the weights have run away, go on from an earlier checkpoint "
            "(training.resume=PATH) with a lower training.learning_rate"
        )
    worst = sorted(clips, key=lambda clip: -clip["loss"])[:CLIPS_IN_A_MESSAGE]
    return (
        "look first at the clips with the highest loss (a wrong transcript, damaged audio): "
        f"{', '.join(clip['id'] for clip in worst)}; if nothing is wrong with them, lower training.learning_rate"
    )


def check_repetition(progress: Progress, record: dict[str, Any], file: Path) -> None:
    """Raises UserError when so many of the last steps were skipped that it is no accident any more."""
    recent = [step for step in progress.last_skipped if step > progress.step - OF_STEPS]
    if len(recent) > MOST_SKIPPED:
        raise UserError(
            f"stopped at step {progress.step}: it is the {len(recent)}th of the last {OF_STEPS} that cannot be "
            f"taken, as {record['reason']}. Likely cause: {likely_cause(record)}. Every one is in {file} with its "
            "clips. No weight was changed by them: mend the cause, then training.resume=true"
        )
