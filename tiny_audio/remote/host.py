"""What runs on the host: `python -m tiny_audio.remote.host ACTION` in the folder that was deployed.

`start` reads its request, with the secrets, from standard input and leaves two processes behind, which find the
secrets in their environment and nowhere else:

- `run` in tmux has the training as its child, writes the log and, at the end, the exit code;
- `watch`, outside tmux, sees to it that the training ends with its budget and that the pod is stopped afterwards. It
  alone has RunPod's key, and needs nobody to be connected.

Whether either is alive is told by a lock on a file: it goes with the process, however that ends.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tiny_audio.errors import UserError
from tiny_audio.files import write_files
from tiny_audio.remote.runpod import (
    KEY_VARIABLE,
    POD_VARIABLE,
    Pod,
    RefusedError,
    find_pod,
    find_pod_id,
)
from tiny_audio.remote.state import (
    CANNOT_STOP,
    DEPLOYED_FILE,
    LOG_FILE,
    POLL_SECONDS,
    PROCESSES_FILE,
    RUN_FILE,
    SAVE_SECONDS,
    START_SECONDS,
    STATE,
    STATUS_FILE,
    STOP_FILE,
    TOLD_FILE,
    WATCH_LOG_FILE,
    WATCHDOG_FILE,
    is_locked,
    last_lines,
    pod_lock,
    read_json,
    read_run,
    read_status,
    wait_until,
)
from tiny_audio.remote.watchdog import run_training, watch

LARGE_RUN_GIB = 40
# For RunPod to take the order to stop the pod, tried again after 1, 5, 15 seconds; less where it refused the key.
TOLD_SECONDS, REFUSED_SECONDS = 60, 5
CONTAINER_DISK_WARNING = (
    "{folder} lies on the container's disk, which RunPod erases when the pod stops, and the results with it: give the"
    " pod a volume, which is mounted at /workspace, and put the results there, or set training.hub_model_id"
)


def start(request: dict[str, Any]) -> None:
    """Begin a run. Raises UserError: another one is running, the key is refused, or the results would be lost."""
    environment: dict[str, str] = request["environment"]
    os.environ.update(environment)
    STATE.mkdir(exist_ok=True)
    if is_locked("run"):
        raise UserError("a training is running on this host already: --attach, --status or --stop")
    pod, pod_id, usd_per_hour = find_pod(environment), find_pod_id(environment), request["usd_per_hour"]
    if pod_id and is_locked(pod_lock(pod_id)):
        raise UserError(
            f"a training is running on the pod {pod_id} already, in another folder: when the pod is stopped for one,"
            " the other is cut off; wait for its end, or rent another pod"
        )
    if pod is not None:
        try:
            asked = price(pod.describe())  # asked in any case: a key that is refused stops nothing tonight
            usd_per_hour = usd_per_hour or asked
        except RefusedError as error:
            if pod.key_is_users:
                raise UserError(
                    f"RUNPOD_API_KEY could not stop the pod {pod.pod_id} later ({error}): mend it, or unset it to go on"
                    " without"
                ) from error
            pod = None
        if pod and is_on_container_disk(results := request["output_dir"]) and not request["saves_to_hub"]:
            raise UserError(CONTAINER_DISK_WARNING.format(folder=Path(results).expanduser().absolute()))
    if request["budget_usd"] is not None and usd_per_hour is None:
        raise UserError("--budget-usd needs to know what an hour costs: add --usd-per-hour")
    hours = [request["budget_hours"]] if request["budget_hours"] is not None else []
    if request["budget_usd"] is not None:
        hours.append(request["budget_usd"] / usd_per_hour)
    if not hours and pod is not None:
        hours.append(request["default_budget_hours"])
    now = time.time()
    run = {
        "id": uuid.uuid4().hex[:12],
        "arguments": request["arguments"],
        "output_dir": request["output_dir"],
        "on_pod": pod_id,
        "pod_id": pod and pod.pod_id,  # one that can be stopped
        "usd_per_hour": usd_per_hour,
        "linger_seconds": 60 * request["linger_minutes"],
        "started_at": now,
        "deadline": now + 3600 * min(hours) if hours else None,
    }
    LOG_FILE.write_text("", encoding="utf-8")
    WATCH_LOG_FILE.write_text("", encoding="utf-8")
    write_files({RUN_FILE: json.dumps(run, indent=1) + "\n"})
    # Not before everything that can refuse: the watchdog of the last run may be all that will stop the pod.
    end_watchdog()
    for file in (STATUS_FILE, STOP_FILE, PROCESSES_FILE):
        file.unlink(missing_ok=True)
    start_watchdog(pod)
    # A new server per run takes over the environment of this process; a running one would keep its own.
    tmux("kill-server", check=False)
    train_environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    train_environment.pop(KEY_VARIABLE, None)
    if os.stat(".").st_dev != Path.home().stat().st_dev:  # gigabytes of models belong on the disk that stays
        train_environment.setdefault("HF_HOME", str(Path.cwd().parent / ".cache" / "huggingface"))
    if DEPLOYED_FILE.exists():
        train_environment["TINY_AUDIO_GIT_HASH"] = (
            json.loads(DEPLOYED_FILE.read_text("utf-8"))["commit"] or ""
        )
    tmux(
        "new-session",
        "-d",
        "-s",
        "train",
        sys.executable,
        "-m",
        "tiny_audio.remote.host",
        "run",
        env=train_environment,
    )
    wait_until(lambda: is_locked("run") or STATUS_FILE.exists(), START_SECONDS)
    if not (is_locked("run") or STATUS_FILE.exists()):
        raise UserError("the training did not start: --logs may say why, and --stop stops the pod")
    print(f"started: tiny-audio train {shlex.join(run['arguments'])}")
    print(promise(run) if pod else CANNOT_STOP)
    if run["deadline"] and not pod:
        print(f"The training itself {budget_words(run)}.")


def start_watchdog(pod: Pod | None) -> None:
    """Leave `watch` behind.  Raises UserError where it does not live: nobody would stop the pod."""
    TOLD_FILE.unlink(missing_ok=True)
    environment = dict(os.environ)
    if pod is not None:
        environment |= {KEY_VARIABLE: pod.key, POD_VARIABLE: pod.pod_id}
    with open(WATCH_LOG_FILE, "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tiny_audio.remote.host", "watch"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives the connection
        )

    def watches() -> bool:
        return is_locked("watch") and read_json(WATCHDOG_FILE).get("process") == process.pid

    wait_until(lambda: watches() or process.poll() is not None, START_SECONDS)
    if watches() or process.poll() == 0:  # without a pod to stop, it may be done already
        return
    process.kill()
    said = "".join(f" ({line})" for line in last_lines(WATCH_LOG_FILE, 1))
    bills = (
        f"nothing stops the pod {pod.pod_id}, which bills until you do"
        if pod
        else "nothing would end the training"
    )
    raise UserError(f"the watchdog does not start{said}: {bills}")


def is_on_container_disk(output_dir: str) -> bool:
    """Whether results are lost with the pod: a volume is another file system, /workspace alone may be a mere folder."""
    folder = Path(output_dir).expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.stat().st_dev == os.stat("/").st_dev


def price(record: dict[str, Any]) -> float | None:
    """Dollars an hour, where RunPod says so."""
    try:
        usd_per_hour = float(record.get("costPerHr") or 0)
    except (TypeError, ValueError):
        return None
    return usd_per_hour if usd_per_hour > 0 and math.isfinite(usd_per_hour) else None


def promise(run: dict[str, Any]) -> str:
    """What will happen to the pod, for the user."""
    minutes = run["linger_seconds"] / 60
    return (
        f"The pod {run['pod_id']} is stopped {minutes:g} minutes after the training ends, however it ends; the training"
        f" {budget_words(run)}. The pod sees to that itself."
    )


def budget_words(run: dict[str, Any]) -> str:
    hours = (run["deadline"] - run["started_at"]) / 3600
    cost = (
        f", ${hours * run['usd_per_hour']:.2f} at ${run['usd_per_hour']:g} an hour"
        if run["usd_per_hour"]
        else ""
    )
    return f"is saved and cut after {hours:.3g} hours{cost}"


def follow(all_lines: bool = False) -> int:
    """Print the log as it grows, to the end of the run; gives the exit code of the training.

    Ends, too, when standard input does: then nobody is there to read.
    """
    run = read_run()
    with open(LOG_FILE, encoding="utf-8", errors="replace") as log:
        lines = log.readlines()
        sys.stdout.write("".join(lines if all_lines else lines[-20:]))
        while True:
            ended = read_status(run) or not is_locked(
                "run"
            )  # asked before reading: the last lines are not missed
            if text := log.read():
                sys.stdout.write(text)
            sys.stdout.flush()
            if ended:
                break
            if select.select([sys.stdin], [], [], POLL_SECONDS)[0] and not os.read(sys.stdin.fileno(), 1024):
                return 0
    print(ending(run))
    return exit_code(run)


def ending(run: dict[str, Any]) -> str:
    status = read_status(run)
    if not status:
        return "the training was killed, or the machine started again: there is no exit code"
    minutes = (status["ended_at"] - run["started_at"]) / 60
    result = "finished" if status["exit_code"] == 0 else f"ended with exit code {status['exit_code']}"
    return f"the training {result} after {minutes:.1f} minutes"


def exit_code(run: dict[str, Any]) -> int:
    code = (read_status(run) or {"exit_code": 1})["exit_code"]
    return code if code >= 0 else 128 - code


def print_log() -> None:
    with open(LOG_FILE, encoding="utf-8", errors="replace") as log:
        for line in log:
            sys.stdout.write(line)


def print_status() -> None:
    """What is going on, what it has cost, and whether anybody sees to the end."""
    run, running = read_run(), is_locked("run")
    ended = (read_status(run) or {}).get("ended_at")
    hours = ((ended or time.time()) - run["started_at"]) / 3600
    cost = (
        f", ${(time.time() - run['started_at']) / 3600 * run['usd_per_hour']:.2f} so far"
        if run["usd_per_hour"]
        else ""
    )
    print(f"tiny-audio train {shlex.join(run['arguments'])}")
    print(f"running for {hours:.2f} hours{cost}" if running else f"{ending(run)}{cost}")
    if run["deadline"] and running:
        print(f"the training {budget_words(run)}")
    if not run["pod_id"]:
        print(CANNOT_STOP)
    elif is_locked("watch"):
        print(promise(run))
    else:
        print(
            f"WARNING: THE WATCHDOG OF POD {run['pod_id']} IS NOT RUNNING: nothing here will stop the pod (--stop does)"
        )
    for line in last_lines(WATCH_LOG_FILE, 1):
        print(f"watchdog: {line}")
    for line in last_lines(LOG_FILE, 3):
        print(f"log: {line}")
    print(f"results: {Path(run['output_dir']).expanduser().resolve()}")


def stop(request: dict[str, Any]) -> None:
    """Have the training ended, which saves first, and the pod stopped; say how far that has come.

    The watchdog does it, which needs nobody to be connected. Raises UserError: the pod is not stopped.
    """
    os.environ.update(request["environment"])
    run = read_run()
    pod, pod_id = find_pod(dict(os.environ)), run["pod_id"] or find_pod_id(dict(os.environ))
    STOP_FILE.touch()
    refusal = ""
    if pod is not None:
        try:
            pod.describe()
        except RefusedError as error:
            refusal = str(error)
    # One that has the key which RunPod takes now, in place of one that has none, or that is no more.
    if not is_locked("watch") or (pod and not refusal):
        end_watchdog()
        if pod is not None:
            run["pod_id"] = pod.pod_id
            write_files({RUN_FILE: json.dumps(run, indent=1) + "\n"})
        start_watchdog(pod)
    wait_until(lambda: not is_locked("run"), SAVE_SECONDS + 30)
    if is_locked("run"):
        print("the training has not ended yet", flush=True)
    else:
        print(ending(run), flush=True)  # the connection goes with the pod
    seconds = REFUSED_SECONDS if refusal else TOLD_SECONDS
    wait_until(lambda: TOLD_FILE.exists() or not is_locked("watch"), seconds)
    line = "".join(last_lines(WATCH_LOG_FILE, 1))
    if TOLD_FILE.exists() or not pod_id:
        print(f"watchdog: {line}", flush=True)
        return
    if pod is None and not run["pod_id"]:
        raise UserError(f"THE POD {pod_id} IS NOT STOPPED: set RUNPOD_API_KEY, and --stop again")
    said = f"RUNPOD_API_KEY could not stop it ({refusal})" if refusal else f"its watchdog says: {line}"
    raise UserError(
        f"THE POD {pod_id} IS NOT STOPPED YET: {said}. Look again with --status, or stop it in RunPod's console"
    )


def prune(request: dict[str, Any]) -> None:
    """Remove the files that an earlier deployment brought and this one did not; remember those that this one did."""
    STATE.mkdir(exist_ok=True)
    gone = set(read_json(DEPLOYED_FILE).get("files", [])) - set(request["files"])
    here = Path.cwd().resolve()
    for name in sorted(gone):
        path = here / name
        if here in path.resolve().parents and (path.is_symlink() or not path.is_dir()):  # a folder by now
            with suppress(NotADirectoryError):  # what was its folder is a file by now
                path.unlink(missing_ok=True)
    write_files({DEPLOYED_FILE: json.dumps({"commit": request["commit"], "files": request["files"]})})
    if gone:
        print(f"removed {len(gone)} files that are no longer in the code")


def check(request: dict[str, Any]) -> None:
    """Say what the machine has. Raises UserError without a GPU that torch can use, unless that was allowed."""
    free_gib = shutil.disk_usage(".").free / 2**30
    print(f"disk: {free_gib:.0f} GiB free in {Path.cwd()}")
    if free_gib < LARGE_RUN_GIB:
        print(f"WARNING: a large recipe wants {LARGE_RUN_GIB} GiB for models and checkpoints")
    for line in nvidia_smi():
        print(f"nvidia-smi: {line}")
    try:
        import torch
    except ImportError as error:
        raise UserError(f"torch is not installed in {sys.prefix}: {error}") from error
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            torch.ones(
                8, device=f"cuda:{index}"
            ).sum().item()  # a driver that is too old fails here, not tonight
            print(f"torch {torch.__version__}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        return
    problem = f"torch {torch.__version__} finds no GPU on this machine"
    if not request["allow_cpu"]:
        raise UserError(f"{problem}: rent one, mend its driver, or add --allow-cpu")
    print(f"WARNING: {problem}: training will run on the CPU")


def nvidia_smi() -> list[str]:
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,memory.used",
        "--format=csv,noheader",
    ]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ["not there"]
    return (result.stdout or result.stderr).strip().splitlines()[:16]


def end_watchdog() -> None:
    """The watchdog of the last run may be about to stop the pod, on which a new run begins."""
    if is_locked("watch"):
        with suppress(ProcessLookupError, KeyError):
            os.kill(int(read_json(WATCHDOG_FILE)["process"]), signal.SIGTERM)
        wait_until(lambda: not is_locked("watch"), 10)


def tmux(*arguments: str, check: bool = True, env: dict[str, str] | None = None) -> None:
    """tmux with a server of this folder's own, and without the user's settings."""
    folder = hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:8]
    command = ["tmux", "-f", "/dev/null", "-L", f"tiny-audio-{folder}", *arguments]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    if check and result.returncode != 0:
        raise UserError(f"tmux does not start: {result.stderr.strip()}")


def where() -> None:
    """For fetching: the run's id and where its results lie."""
    run = read_run()
    print(json.dumps({"id": run["id"], "output_dir": str(Path(run["output_dir"]).expanduser().resolve())}))


def running() -> None:
    """For deploying: whether a training uses this folder's code."""
    print("yes" if is_locked("run") else "no")


# What each takes: nothing, or a request from standard input.
ACTIONS: dict[str, Callable[[], Any]] = {
    "run": run_training,
    "watch": watch,
    "attach": follow,
    "follow": lambda: follow(all_lines=True),
    "logs": print_log,
    "status": print_status,
    "where": where,
    "running": running,
}
REQUESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "start": start,
    "stop": stop,
    "prune": prune,
    "check": check,
}


def main() -> int:
    action = sys.argv[1]
    try:
        result = ACTIONS[action]() if action in ACTIONS else REQUESTS[action](json.load(sys.stdin))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(result or 0)


if __name__ == "__main__":
    sys.exit(main())
