"""What the processes on the host know of each other: files in one folder, and locks that tell who is alive.

A lock goes with the process that holds it, however that ends; a number in a file would outlive it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tiny_audio.errors import UserError

STATE = Path(".remote")
RUN_FILE, STATUS_FILE, STOP_FILE = STATE / "run.json", STATE / "status.json", STATE / "stop"
LOG_FILE, WATCH_LOG_FILE, DEPLOYED_FILE = STATE / "train.log", STATE / "watchdog.log", STATE / "deployed.json"
PROCESSES_FILE, WATCHDOG_FILE = STATE / "processes.json", STATE / "watchdog.json"
TOLD, TOLD_FILE = "is told to stop", STATE / "told"  # RunPod has taken the order to stop the pod
POLL_SECONDS = 0.5
START_SECONDS = 60
LOCK_SECONDS = 2
# Before the budget is spent the training is interrupted; it finishes its step and saves a checkpoint in this time.
SAVE_SECONDS, SAVE_SHARE = 300.0, 0.1
# A pod that was told to stop ends the watchdog with it. One that is alive after this time is told again.
STOPPED_SECONDS = 180.0
CANNOT_STOP = (
    "WARNING: THIS MACHINE CANNOT BE STOPPED FROM HERE, and bills until you stop it yourself: no RUNPOD_API_KEY, or no"
    " RUNPOD_POD_ID. Set both to have the pod stopped when the run ends or its budget is spent."
)


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Held while this process lives. Raises UserError: another process has it.

    `name` is that of a lock of this folder, or the one that `pod_lock` gives.
    """
    with open(STATE / f"{name}.lock", "w", encoding="utf-8") as file:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # held, or only looked at by `is_locked`
                if time.monotonic() > end:
                    raise UserError(f"another process does this already ({name})") from None
                time.sleep(0.02)
        yield


def is_locked(name: str) -> bool:
    try:
        with open(STATE / f"{name}.lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def pod_lock(pod_id: str) -> str:
    """The lock that a training holds on its whole pod: stopped for one, it would be stopped under another too."""
    return str(Path(os.environ.get("TMPDIR", "/tmp")) / f"tiny-audio-{pod_id}")


def kill_group(leader: int) -> None:
    if leader > 1:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def wait_until(condition: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def read_run() -> dict[str, Any]:
    run = read_json(RUN_FILE)
    if not run:
        raise UserError(
            "no training was started on this host: tiny-audio remote-train --config stage1 ... starts one"
        )
    return run


def read_status(run: dict[str, Any]) -> dict[str, Any]:
    status = read_json(STATUS_FILE)
    return status if status.get("id") == run["id"] else {}


def last_lines(path: Path, count: int) -> list[str]:
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        return [line.rstrip() for line in file if line.strip()][-count:]
    return []
