"""The two processes that a run consists of: the training under `run_training` in tmux, and `watch` outside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

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
    WATCHDOG_FILE,
    is_locked,
    kill_group,
    lock,
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
    with lock("run"), open(LOG_FILE, "a", encoding="utf-8") as log:
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


def watch(stop_now: bool = False) -> None:
    """Wait for the end of the run, or bring it about when the budget is spent; then stop the pod."""
    run, pod = read_run(), find_pod(dict(os.environ))
    deadline = run["deadline"] or float("inf")
    budget = deadline - run["started_at"]
    interrupt_at = deadline - min(SAVE_SECONDS, SAVE_SHARE * budget) if run["deadline"] else deadline
    seen, interrupted = False, False
    with lock("watch"):
        write_files({WATCHDOG_FILE: json.dumps({"process": os.getpid()})})
        if stop_now:
            STOP_FILE.touch()
        say(f"watching the run {run['id']}; the pod: {pod.pod_id if pod else 'none that can be stopped'}")
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
        say("the training has ended")
        linger_until = min(time.time() + run["linger_seconds"], run["deadline"] or float("inf"))
        while pod and time.time() < linger_until and not STOP_FILE.exists():
            time.sleep(POLL_SECONDS)
        if pod is None:
            say(CANNOT_STOP)
        else:
            stop_pod(pod)


def stop_pod(pod: Pod) -> None:
    """Ask until RunPod says yes: a pod that is not stopped bills through the night."""
    waits = iter(RETRY_SECONDS)
    wait = 0
    while True:
        try:
            pod.stop()
        except RefusedError as error:
            wait = next(waits, wait)
            say(f"THE POD IS NOT STOPPED: {error}; trying again in {wait} seconds")
            time.sleep(wait)
        else:
            say(f"the pod {pod.pod_id} is told to stop")
            return


def signal_run(number: int) -> bool:
    with suppress(ProcessLookupError, KeyError):
        os.kill(int(read_json(PROCESSES_FILE)["run"]), number)
        return True
    return False


def say(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)
