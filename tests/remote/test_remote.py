"""deploy-runpod and remote-train against a real sshd, rsync, tmux and pip; RunPod's API is a local server."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.remote.machine import MISSING, ROOT, Machine, RunPod, make_checkout
from tiny_audio import cli
from tiny_audio.provenance import git_hash

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

TOKEN, RUNPOD_KEY, POD = "hf_secretsecretsecret", "rpa_otherothersecret", "pod123"
# Started in the checkout, whose package has the stand-in for the training, this is nevertheless ours.
RUN_TINY_AUDIO = f"import sys; sys.path[0] = {str(ROOT)!r}; from tiny_audio.cli import main; sys.exit(main())"
VARIABLES = ("HF_TOKEN", "WANDB_API_KEY", "RUNPOD_API_KEY", "RUNPOD_POD_ID")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("laptop") / "tiny-audio-copy")


@pytest.fixture(autouse=True)
def laptop(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def deployed(machine: Machine, checkout: Path) -> Machine:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    result = run_tiny_audio("deploy-runpod", *machine.options, "--allow-cpu", cwd=checkout, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    machine.deployed_output = result.stdout  # type: ignore[attr-defined]
    return machine


@pytest.fixture
def host(deployed: Machine) -> Iterator[Machine]:
    yield deployed
    if (deployed.place / ".remote" / "run.json").exists():
        processes = json.loads(read(deployed, "processes.json") or "{}")
        watchdog = json.loads(read(deployed, "watchdog.json") or "{}")
        for process in (*processes.values(), *watchdog.values()):
            end(process)
        eventually(lambda: "run.lock" not in held(deployed))
        (deployed.place / ".remote" / "run.json").unlink()


@pytest.fixture
def runpod(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPod]:
    server = RunPod(POD, RUNPOD_KEY)
    values = {"RUNPOD_API_KEY": RUNPOD_KEY, "RUNPOD_POD_ID": POD, "HF_TOKEN": TOKEN, **server.variables}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


def run_tiny_audio(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Any:
    command = [sys.executable, "-c", RUN_TINY_AUDIO, *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def train(machine: Machine, *arguments: str, steps: int = 3) -> int:
    return cli.main(["remote-train", *machine.options, *recipe(steps), *arguments])


def recipe(steps: int) -> list[str]:
    return ["--config", "nano", f"training.max_steps={steps}", "output_dir=outputs/short"]


def on_pod() -> list[str]:
    """A test's folder is not on a pod's volume: the model goes to the hub."""
    return ["training.hub_model_id=you/short"]


def ask(machine: Machine, *arguments: str) -> int:
    return cli.main(["remote-train", *machine.options, *arguments])


def read(machine: Machine, name: str) -> str:
    path = machine.place / ".remote" / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def held(machine: Machine) -> list[str]:
    import fcntl

    names = []
    for path in (machine.place / ".remote").glob("*.lock"):
        with open(path, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                names.append(path.name)
    return names


def eventually(condition: Callable[[], Any], seconds: float = 15) -> Any:
    end_at = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end_at, "it did not come to pass"
        time.sleep(0.1)
    return result


def end(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def alive(process: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


# --- deploying


def test_tracked_files_are_sent_and_nothing_else(deployed: Machine) -> None:
    output = deployed.deployed_output  # type: ignore[attr-defined]
    assert "not sent, because git does not track them: notes.txt" in output
    assert ("finds no GPU" in output) != torch.cuda.is_available()
    assert (deployed.place / "tiny_audio" / "remote" / "host.py").is_file()
    assert not (deployed.place / "notes.txt").exists()
    assert not (deployed.place / "outputs").exists()
    assert not (deployed.place / ".git").exists()
    assert (deployed.place / "link.py").readlink() == Path("old.py")
    assert (deployed.place / ".venv" / "bin" / "tiny-audio").exists() or (
        deployed.place / ".venv" / "installed"
    ).exists()


def test_deploying_again_is_quick_and_takes_away_what_is_gone(
    deployed: Machine, checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (deployed.place / "old.py").exists()
    (deployed.place / "outputs").mkdir(exist_ok=True)
    (checkout / "old.py").unlink()
    (checkout / "new.py").write_text("", encoding="utf-8")
    subprocess.run(["git", "add", "new.py"], cwd=checkout, check=True)
    code = cli.main(["deploy-runpod", *deployed.options])
    captured = capfd.readouterr()
    assert "installed already" in captured.out
    assert "removed 1 files" in captured.out
    assert not (deployed.place / "old.py").exists()
    assert (deployed.place / "new.py").exists()
    assert (deployed.place / "outputs").is_dir()
    has_gpu = torch.cuda.is_available()
    assert code == (0 if has_gpu else 2)
    assert ("add --allow-cpu" in captured.err) == (not has_gpu)


def test_a_file_that_becomes_a_folder_is_deployed_as_one(deployed: Machine, checkout: Path) -> None:
    (checkout / "thing").write_text("", encoding="utf-8")
    for name in ("thing", "thing/inner.py"):
        if name != "thing":
            (checkout / "thing").unlink()
            (checkout / "thing").mkdir()
            (checkout / name).write_text("", encoding="utf-8")
        subprocess.run(["git", "add", "-A", "thing"], cwd=checkout, check=True)
        assert cli.main(["deploy-runpod", *deployed.options, "--allow-cpu"]) == 0
    assert (deployed.place / "thing" / "inner.py").is_file()


def test_a_tracked_file_with_a_secret_is_not_sent(
    deployed: Machine, checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (checkout / "keys.sh").write_text(f"export HF_TOKEN={TOKEN}\n", encoding="utf-8")
    subprocess.run(["git", "add", "keys.sh"], cwd=checkout, check=True)
    try:
        assert cli.main(["deploy-runpod", *deployed.options]) == 2
    finally:
        subprocess.run(["git", "rm", "-q", "-f", "keys.sh"], cwd=checkout, check=True)
    assert "keys.sh holds one of" in capfd.readouterr().err
    assert not (deployed.place / "keys.sh").exists()


def test_results_name_the_commit_of_code_that_was_sent_without_its_repository(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINY_AUDIO_GIT_HASH", "0123456789ab-dirty")
    assert git_hash() == "0123456789ab-dirty"


# --- training


def test_a_run_is_followed_to_its_end_and_fetched(
    host: Machine, checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    assert train(host) == 0
    captured = capfd.readouterr()
    assert "THIS MACHINE CANNOT BE STOPPED" in captured.out
    assert "step 3/3" in captured.out and "the training finished" in captured.out
    folder = checkout / "outputs" / "short"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "metrics.json",
        "model",
        "train.log",
        "remote.json",
    }  # no checkpoints, and no link out of the folder
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["token"] == hashlib.sha256(TOKEN.encode()).hexdigest()  # it did arrive
    assert metrics["commit"]
    assert "the token is ***" in (folder / "train.log").read_text(encoding="utf-8")
    (folder / "remote.json").unlink()
    assert ask(host, "--fetch") == 2
    assert "holds another run" in capfd.readouterr().err
    elsewhere = checkout.parent / "elsewhere"
    assert ask(host, "--fetch", "--checkpoints", "--to", str(elsewhere)) == 0
    assert (elsewhere / "checkpoints" / "step-1" / "weights").exists()
    assert (elsewhere / "train.log").exists()


def test_no_secret_is_in_arguments_files_or_logs(
    host: Machine, runpod: RunPod, capfd: pytest.CaptureFixture[str]
) -> None:
    """Looked for while everything runs: the process list, the host's files, sshd's log, what we print."""
    assert train(host, *on_pod(), "--detach", steps=20) == 0
    eventually(lambda: "step 2/" in read(host, "train.log"))
    processes = subprocess.run(
        ["ps", "axww", "-o", "args="], capture_output=True, text=True, check=True
    ).stdout
    assert "tiny_audio.remote.host watch" in processes  # the list does show what we look for
    captured = capfd.readouterr()
    files = [path for path in host.place.rglob("*") if path.is_file() and ".venv" not in path.parts]
    assert host.place / ".remote" / "run.json" in files
    texts = [
        processes,
        captured.out,
        captured.err,
        *(p.read_text("utf-8", "replace") for p in [*files, host.log]),
    ]
    for secret in (TOKEN, RUNPOD_KEY):
        assert not any(secret in text for text in texts)
    training = json.loads(read(host, "processes.json"))["training"]
    watchdog = json.loads(read(host, "watchdog.json"))["process"]
    if sys.platform == "linux":  # where they are instead; the training has no business with RunPod's
        environments = [
            Path(f"/proc/{process}/environ").read_text("utf-8") for process in (training, watchdog)
        ]
        assert TOKEN in environments[0] and RUNPOD_KEY not in environments[0]
        assert RUNPOD_KEY in environments[1]


def test_what_a_budget_cut_off_is_fetched(
    host: Machine, checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", "nano", "training.max_steps=1000", "output_dir=outputs/cut"]
    assert ask(host, *arguments, "--budget-hours", "0.002") == 130
    assert (checkout / "outputs" / "cut" / "train.log").exists()
    assert "--fetch --checkpoints" in capfd.readouterr().out


def start_attached(machine: Machine, checkout: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN_TINY_AUDIO, "remote-train", *machine.options, *arguments]
    return subprocess.Popen(
        command,
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], start: str) -> None:
    assert process.stdout is not None
    assert any(line.startswith(start) for line in process.stdout), process.communicate()


def test_a_cut_connection_leaves_the_training_alone(
    host: Machine, checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    attached = start_attached(host, checkout, *recipe(30))
    read_until(attached, "step 3/")
    ssh = subprocess.run(
        ["pgrep", "-P", str(attached.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(ssh) == 1
    end(int(ssh[0]))
    output, problems = attached.communicate(timeout=10)
    assert attached.returncode == 2
    assert "The connection is lost; the training goes on" in problems
    assert "step 30/30" not in output
    assert ask(host, "--attach", "--ssh-option", "LogLevel=ERROR") in (
        0,
        2,
    )  # 2: another run is in outputs/short here
    assert "step 30/30" in capfd.readouterr().out


def test_ctrl_c_stops_looking_and_not_the_training(host: Machine, checkout: Path) -> None:
    attached = start_attached(host, checkout, *recipe(1000))
    read_until(attached, "step 2/")
    os.killpg(attached.pid, signal.SIGINT)
    output, problems = attached.communicate(timeout=10)
    assert attached.returncode == 0, problems
    assert "The training goes on" in output
    reached = len(read(host, "train.log").splitlines())
    eventually(lambda: len(read(host, "train.log").splitlines()) > reached + 5)


def test_status_logs_and_stop(host: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(host, "--detach", "--usd-per-hour", "0.5", steps=1000) == 0
    assert "--attach" in capfd.readouterr().out
    assert train(host, "--detach") == 2
    assert "running on this host already" in capfd.readouterr().err
    eventually(lambda: "step 2/" in read(host, "train.log"))
    assert cli.main(["deploy-runpod", *host.options, "--allow-cpu"]) == 2
    assert "would go on with other code" in capfd.readouterr().err
    assert ask(host, "--status") == 0
    output = capfd.readouterr().out
    assert (
        "running for 0.00 hours, $0.00 so far" in output
        and "log: step" in output
        and "CANNOT BE STOPPED" in output
    )
    assert ask(host, "--logs") == 0
    assert "step 1/1000" in capfd.readouterr().out
    assert ask(host, "--stop") == 0
    assert "ended with exit code 130" in capfd.readouterr().out
    assert (host.place / "outputs" / "short" / "checkpoints" / "saved").exists()
    assert held(host) == []


def test_the_exit_code_of_a_failed_training_is_ours(host: Machine) -> None:
    assert train(host, "seed=3") == 3


# --- the pod


def test_the_pod_is_stopped_when_the_run_ends_and_nobody_watches(
    host: Machine, runpod: RunPod, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(host, *on_pod(), "--detach", "--linger-minutes", "0.05") == 0
    output = capfd.readouterr().out
    assert "The pod pod123 is stopped 0.05 minutes after the training ends" in output
    assert "after 24 hours, $12.00 at $0.5 an hour" in output  # the price is RunPod's answer
    eventually(lambda: "status.json" in [p.name for p in (host.place / ".remote").iterdir()])
    assert not runpod.stopped.is_set()
    assert runpod.stopped.wait(10)
    eventually(lambda: "is told to stop" in read(host, "watchdog.log"))
    assert runpod.asked == [f"GET /v1/pods/{POD}", f"POST /v1/pods/{POD}/stop"]


def test_a_stop_that_fails_is_tried_again_by_both_interfaces(host: Machine, runpod: RunPod) -> None:
    runpod.rest_works, runpod.failures = False, 2
    assert train(host, *on_pod(), "--detach", "--linger-minutes", "0", steps=1) == 0
    assert runpod.stopped.wait(15)
    eventually(lambda: "is told to stop" in read(host, "watchdog.log"))
    assert "THE POD IS NOT STOPPED" in read(host, "watchdog.log")
    assert runpod.asked.count("POST /graphql") == 3  # the price, a failure, the stop


@pytest.mark.parametrize(("seed", "saved"), [("1", True), ("13", False)])
def test_the_budget_ends_the_training_and_the_pod(
    host: Machine, runpod: RunPod, seed: str, saved: bool
) -> None:
    """At $0.50 an hour, $0.01 is 72 s: the price is given higher. A training that does not listen is killed."""
    marker = host.place / "outputs" / "short" / "checkpoints" / "saved"
    marker.unlink(missing_ok=True)
    price = ["--budget-usd", "0.01", "--usd-per-hour", "5"]  # 7.2 seconds
    began = time.monotonic()
    assert train(host, *on_pod(), f"seed={seed}", *price, "--detach", steps=1000) == 0
    training = eventually(lambda: json.loads(read(host, "processes.json") or "{}"))["training"]
    assert runpod.stopped.wait(20)
    assert time.monotonic() - began > 6
    assert marker.exists() == saved
    eventually(lambda: not alive(training))


def test_the_pod_is_stopped_though_tmux_and_the_run_are_killed(host: Machine, runpod: RunPod) -> None:
    assert train(host, *on_pod(), "seed=13", "--detach", "--linger-minutes", "0", steps=1000) == 0
    processes = eventually(lambda: json.loads(read(host, "processes.json") or "{}"))
    end(processes["run"])
    assert runpod.stopped.wait(10)
    eventually(lambda: not alive(processes["training"]))
    assert ask(host, "--status") == 0


def test_stop_works_where_the_watchdog_was_killed(
    host: Machine, runpod: RunPod, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(host, *on_pod(), "--detach", steps=1000) == 0
    eventually(lambda: "watch.lock" in held(host))
    end(json.loads(read(host, "watchdog.json"))["process"])
    eventually(lambda: "watch.lock" not in held(host))
    assert ask(host, "--status") == 0
    assert "THE WATCHDOG OF POD pod123 IS NOT RUNNING" in capfd.readouterr().out
    assert ask(host, "--stop") == 0
    assert "the pod pod123 is told to stop" in capfd.readouterr().out
    assert runpod.stopped.is_set()
    assert "run.lock" not in held(host)


def test_a_new_run_calls_off_the_stop_that_the_last_one_left(host: Machine, runpod: RunPod) -> None:
    assert train(host, *on_pod(), "--detach", "--linger-minutes", "0.05", steps=1) == 0
    eventually(lambda: "has ended" in read(host, "watchdog.log"))
    assert train(host, *on_pod(), "--detach", steps=1000) == 0
    assert not runpod.stopped.wait(4)
    assert "run.lock" in held(host)


REFUSALS: list[tuple[dict[str, str], list[str], str]] = [
    (
        {"RUNPOD_API_KEY": "rpa_wrongwrongwrong"},
        on_pod(),
        "RUNPOD_API_KEY could not stop the pod pod123 later",
    ),
    ({"RUNPOD_POD_ID": 'x" }) { id } evil'}, on_pod(), "expected letters, digits and dashes"),
    ({"HF_TOKEN": ""}, on_pod(), "HF_TOKEN is not"),
    ({}, ["training.max_stepz=3"], 'Did you mean "training.max_steps"?'),
    ({"RUNPOD_API_KEY": ""}, ["--budget-usd", "5"], "add --usd-per-hour"),
]


@pytest.mark.parametrize(("variables", "arguments", "message"), REFUSALS, ids=lambda value: str(value)[:30])
def test_what_would_go_wrong_at_night_is_refused_in_the_evening(
    host: Machine,
    runpod: RunPod,
    variables: dict[str, str],
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert train(host, *arguments, "--detach") == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert "wrongwrong" not in captured.err
    assert held(host) == []
    assert not runpod.stopped.is_set()


def test_results_that_the_stop_would_erase_are_refused(
    host: Machine, runpod: RunPod, capfd: pytest.CaptureFixture[str]
) -> None:
    is_erased = host.place.stat().st_dev == Path("/").stat().st_dev
    assert train(host, "--detach") == (2 if is_erased else 0)
    assert ("lies on the container's disk, which RunPod erases" in capfd.readouterr().err) == is_erased
