"""The two processes that a run consists of: the training under `run_training` in tmux, and `watch` outside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any

from tiny_audio.files import write_files
from tiny_audio.remote.runpod import Pod, RefusedError, find_pod
from tiny_audio.remote.state import (
    CANNOT_STOP,
    LOG_FILE,
    POLL_SECONDS,
    PROCESSES_FILE,
    SAVE_SECONDS,
    SAVE_SHARE,
    START_SECONDS,
    STATUS_FILE,
    STOP_FILE,
    STOPPED_SECONDS,
    TOLD,
    TOLD_FILE,
    WATCHDOG_FILE,
    is_locked,
    kill_group,
    lock,
    pod_lock,
    read_json,
    read_run,
    read_status,
    wait_until,
)

RETRY_SECONDS = (1, 5, 15, 60)


def run_training() -> None:
    """The process in tmux: the training as a child, its output into the log and the pane, its exit code into a file."""
    run = read_run()
    arguments = [sys.executable, "-m", "tiny_audio", "train", *run["arguments"]]
    secrets = [os.environ[name] for name in run_secrets() if len(os.environ.get(name, "")) >= 8]
    with ExitStack() as held:
        held.enter_context(lock("run"))
        if run.get("on_pod"):
            held.enter_context(lock(pod_lock(run["on_pod"])))
        log = held.enter_context(open(LOG_FILE, "a", encoding="utf-8"))
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        # Ctrl-C in the pane, or a closed tmux: the training finishes its step and saves.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: child.send_signal(signal.SIGINT))
        signal.signal(signal.SIGTERM, lambda *_: kill_group(child.pid))
        write_files({PROCESSES_FILE: json.dumps({"run": os.getpid(), "training": child.pid})})
        assert child.stdout is not None
        for line in child.stdout:
            for secret in secrets:
                line = line.replace(secret, "***")
            for stream in (log, sys.stdout):
                with suppress(OSError, ValueError):  # a full disk or a closed pane must not stop the training
                    stream.write(line)
                    stream.flush()
        code = child.wait()
        write_files({STATUS_FILE: json.dumps({"id": run["id"], "exit_code": code, "ended_at": time.time()})})


def run_secrets() -> list[str]:
    """The variables whose values are blotted out in the log."""
    return [name for name in os.environ if name.endswith(("_TOKEN", "_KEY", "_SECRET", "_PASSWORD"))]


def watch() -> None:
    """Wait for the end of the run, or bring it about when the budget is spent; then stop the pod.

    Whatever goes wrong on the way, the pod is stopped; only SIGTERM, which calls the watchdog off, ends it before.
    """
    run, pod = read_run(), find_pod(dict(os.environ))
    with lock("watch"):
        with suppress(OSError):  # a full disk
            write_files({WATCHDOG_FILE: json.dumps({"process": os.getpid()})})
        say(f"watching the run {run['id']}; the pod: {pod.pod_id if pod else 'none that can be stopped'}")
        try:
            see_to_the_end(run)
            say("the training has ended")
            linger(run, pod)
        except Exception as error:
            say(f"the watchdog stumbled ({error!r}): the training is interrupted, which saves a checkpoint")
            with suppress(Exception):
                signal_run(signal.SIGINT)
                wait_until(lambda: not is_locked("run"), SAVE_SECONDS)
        finally:
            if pod is None:
                say(CANNOT_STOP)
            else:
                stop_pod(pod)


def see_to_the_end(run: dict[str, Any]) -> None:
    """Returns when the training has ended, by itself or by us: its budget is spent, or --stop was asked for."""
    deadline = run["deadline"] or float("inf")
    budget = deadline - run["started_at"]
    interrupt_at = deadline - min(SAVE_SECONDS, SAVE_SHARE * budget) if run["deadline"] else deadline
    seen, interrupted = False, False
    while True:
        alive = is_locked("run")
        seen = seen or alive or PROCESSES_FILE.exists()  # it may have come and gone between two looks
        if read_status(run) or (not alive and (seen or time.time() > run["started_at"] + START_SECONDS)):
            break
        asked = STOP_FILE.exists()
        if alive and not interrupted and (asked or time.time() >= interrupt_at):
            say("stop was asked for" if asked else "the budget is nearly spent")
            say("interrupting the training, which saves a checkpoint")
            interrupted = signal_run(signal.SIGINT)
            if asked:
                deadline = min(deadline, time.time() + SAVE_SECONDS)
        if time.time() >= deadline:
            say("the training has not ended in time and is killed")
            signal_run(signal.SIGTERM)
            wait_until(lambda: not is_locked("run"), 10)
            break
        time.sleep(POLL_SECONDS)
    if not read_status(run):  # the process in tmux was killed: what it started must not go on
        kill_group(read_json(PROCESSES_FILE).get("training", 0))


def linger(run: dict[str, Any], pod: Pod | None) -> None:
    """Time to fetch the results, and to the end of another folder's training, which the stop would cut off."""
    linger_until = min(time.time() + run["linger_seconds"], run["deadline"] or float("inf"))
    while pod and not STOP_FILE.exists():
        if is_locked(pod_lock(pod.pod_id)) and not is_locked("run"):
            linger_until = time.time() + run["linger_seconds"]
        elif time.time() >= linger_until:
            break
        time.sleep(POLL_SECONDS)


def stop_pod(pod: Pod) -> None:
    """Ask until the pod is gone, and this process with it: a pod that is not stopped bills through the night."""
    waits = iter(RETRY_SECONDS)
    wait: float = 0
    while True:
        try:
            pod.stop()
        except Exception as error:
            wait = next(waits, wait)
            said = str(error) if isinstance(error, RefusedError) else repr(error).replace(pod.key, "***")
            say(f"THE POD IS NOT STOPPED: {said}; trying again in {wait:g} seconds")
        else:
            say(f"the pod {pod.pod_id} {TOLD}")
            with suppress(OSError):
                TOLD_FILE.touch()
            waits, wait = iter(RETRY_SECONDS), STOPPED_SECONDS
        time.sleep(wait)
        if wait == STOPPED_SECONDS:
            say(f"THE POD IS STILL THERE {wait:g} seconds after it was told to stop: it is told again")


def signal_run(number: int) -> bool:
    with suppress(ProcessLookupError, KeyError):
        os.kill(int(read_json(PROCESSES_FILE)["run"]), number)
        return True
    return False


def say(text: str) -> None:
    with suppress(OSError):  # a full disk must not keep the watchdog from its work
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)
