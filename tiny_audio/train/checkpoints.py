"""Training checkpoints: all that is needed to go on as if nothing had happened, written whole or not at all.

`checkpoints/step-N/` holds `model.safetensors` (what trains, and what no base model supplies), `optimizer.pt`,
and `state.json` (step, place in the data, random states).
"""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tiny_audio.errors import UserError
from tiny_audio.files import check_space, replace_folder
from tiny_audio.hub.asr_checkpoint import WEIGHTS_FILE, load_own_state_dict, own_state_dict
from tiny_audio.hub.asr_encoders import first_line
from tiny_audio.train.optimizer import hidden_matrices, load_optimizer_state
from tiny_audio.train.sharding import like, whole_memory, whole_weights

OPTIMIZER_FILE = "optimizer.pt"
STATE_FILE = "state.json"
MISFITS = (ValueError, KeyError, TypeError)  # bytes that can be read, and mean nothing
PREFIX = "step-"
ABANDONED = "abandoned-"  # before the name of a checkpoint that the run no longer leads to


@dataclass
class Progress:
    """Where a run stands. `epoch` and `batch` are the next batch of the data, in the planner's order.

    `step` counts skipped steps, too; `last_skipped` are the latest of them, `gradient_norms` of the last good ones.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    data: str = ""  # `TrainData.fingerprint`; empty in checkpoints from before there was one
    audio_seconds: float = 0.0
    train_seconds: float = 0.0  # of the steps alone
    wall_seconds: float = 0.0  # from the start of the process: start-up, evaluations and saves, too
    skipped_steps: int = 0
    last_skipped: list[int] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)


def save_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, progress: Progress, keep: int
) -> Path:
    """Writes `step-N` beside its final name, flushes it to the disk, renames it, and drops the oldest beyond `keep`.

    Raises:
        UserError: the disk is full; what was there before is untouched and nothing half-written stays.
    """
    target = folder / f"{PREFIX}{progress.step}"
    weights, memory = contents(model, optimizer)
    with replace_folder(target, "free some, then go on with training.resume=true") as partial:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, partial / WEIGHTS_FILE)
        with (partial / OPTIMIZER_FILE).open("wb") as file:  # torch's own does not say that the disk is full
            torch.save(memory, file)
        (partial / STATE_FILE).write_text(
            json.dumps({**asdict(progress), **_random_states()}), encoding="utf-8"
        )
    too_old = list_checkpoints(folder)[:-keep] if keep else []
    unfinished = folder.glob(f".{PREFIX}*")  # of a process that was killed while it saved another step
    for old in (*too_old, *unfinished):
        shutil.rmtree(old, ignore_errors=True)
    return target


def contents(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and the optimiser's memory for a checkpoint; of a sharded model, all processes ask together."""
    return whole_weights(model, _weights_to_save(model)), whole_memory(model, optimizer.state_dict())


def _weights_to_save(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    state = own_state_dict(model)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def check_room(folder: Path, model: PreTrainedModel, settings: DictConfig, checkpoint: Path | None) -> None:
    """Raises UserError where `folder` has no room for the checkpoints still to be written and the finished model.

    Each new checkpoint is whole before the oldest one goes.

    Args:
        folder: the run's. settings: the config's `training`. checkpoint: where the run goes on from.
    """
    step, present = 0, 0
    if checkpoint is not None:
        step = _read_state(checkpoint)["step"]
        own = folder / "checkpoints"
        present = len(list_checkpoints(own)) - len(not_leading_to(checkpoint, step, own))
    to_come = math.ceil(settings.max_steps / settings.save_steps) - step // settings.save_steps
    to_come = to_come if step < settings.max_steps else 0
    at_end = min(present + to_come, settings.save_total_limit)
    at_most = max(min(present + to_come, settings.save_total_limit + 1), present + min(to_come, 1))
    weights = sum(weight.nbytes for weight in _weights_to_save(model).values())
    size = weights + _moment_bytes(model, settings)
    needed = max((at_most - present) * size, (at_end - present) * size + weights)
    check_space(folder, needed, f"output_dir={folder}", "free some, or name another output_dir")


def _moment_bytes(model: PreTrainedModel, settings: DictConfig) -> int:
    """What the optimiser remembers: two moments of each weight, or, of a matrix of Muon's, one and a value a row."""
    hidden = hidden_matrices(model) if settings.optimizer == "muon" else set()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return sum(
        weight.nbytes + (weight[:, 0].nbytes if name in hidden else weight.nbytes)
        for name, weight in trained.items()
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def not_leading_to(checkpoint: Path, step: int, folder: Path) -> list[Path]:
    """The checkpoints in `folder` that a run which goes on from `checkpoint` at `step` has not come by."""
    present = list_checkpoints(folder)
    is_own = any(path.samefile(checkpoint) for path in present)
    return [path for path in present if not is_own or _step_of(path) > step]


def put_aside(checkpoint: Path, step: int, folder: Path) -> list[Path]:
    """Renames what does not lead to `checkpoint` to `abandoned-step-M`; returns these.

    By their numbers alone, later ones would pass for the newest of the run, and its own would be dropped as old. They
    stay as a way back, until others take their place.
    """
    aside = not_leading_to(checkpoint, step, folder)
    if aside:
        for old in folder.glob(f"{ABANDONED}{PREFIX}*"):
            if not old.samefile(checkpoint):
                shutil.rmtree(old, ignore_errors=True)
    targets = {path: folder / f"{ABANDONED}{path.name}" for path in aside}
    return [path.rename(target) for path, target in targets.items() if not target.exists()]


def find_checkpoint(resume: bool | str, folder: Path) -> Path | None:
    """The checkpoint that `training.resume` asks for. Raises UserError when there is none."""
    if not resume:
        return None
    if isinstance(resume, str):
        checkpoint = Path(resume).expanduser()
        if not (checkpoint / STATE_FILE).is_file():
            raise UserError(
                f"training.resume={resume} is no checkpoint: expected a folder checkpoints/step-N"
            )
        return checkpoint
    found = list_checkpoints(folder)
    if not found:
        raise UserError(
            f"training.resume=true, but {folder} holds no checkpoint; leave it out to start afresh"
        )
    return found[-1]


def load_checkpoint(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts a run back where `path` left it, random states included.

    Raises:
        UserError: the checkpoint is of another model or another set of trained parts, or is damaged.
    """
    with _readable(path / WEIGHTS_FILE):
        weights = load_file(path / WEIGHTS_FILE)
    with _readable(path / OPTIMIZER_FILE):
        # weights_only: a checkpoint is data, whoever made it; it must not be able to run code.
        saved = torch.load(path / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    try:
        current = model.state_dict()
        weights = {name: like(weight, current.get(name)) for name, weight in weights.items()}
        load_own_state_dict(model, weights, str(path))
        load_optimizer_state(optimizer, model, saved)
    except MISFITS as error:
        raise UserError(f"cannot resume from {path}: {first_line(error)}") from error
    state = _read_state(path)
    with _readable(path / STATE_FILE):
        _restore_random_states(state)
    # Checkpoints of earlier versions know nothing of skipped steps, nor of time outside of steps.
    state.setdefault("wall_seconds", state.get("train_seconds", 0.0))
    return Progress(**{key: state[key] for key in Progress.__dataclass_fields__ if key in state})


def _read_state(checkpoint: Path) -> dict[str, Any]:
    with _readable(checkpoint / STATE_FILE):
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        return {**state, "step": int(state["step"])}


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Makes what goes wrong while a file of a checkpoint is read a UserError, with the checkpoint to try instead."""
    try:
        yield
    except (OSError, EOFError, RuntimeError, SafetensorError, UnpicklingError, *MISFITS) as error:
        checkpoint, others = file.parent, list_checkpoints(file.parent.parent)
        before = others[: others.index(checkpoint)] if checkpoint in others else others
        advice = f"go on from {before[-1]} with training.resume" if before else "leave training.resume out"
        raise UserError(f"cannot read {file} ({first_line(error)}): {advice}") from error


def _random_states() -> dict[str, Any]:
    states = {"torch_random_state": _encode(torch.get_rng_state())}
    if torch.cuda.is_available():
        states["cuda_random_state"] = _encode(torch.cuda.get_rng_state())
    return states


def _restore_random_states(state: dict[str, Any]) -> None:
    torch.set_rng_state(_decode(state["torch_random_state"]))
    if "cuda_random_state" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode(state["cuda_random_state"]))


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
