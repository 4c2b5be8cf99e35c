"""What runs on a pod, without ssh: who stops the pod when something goes wrong; RunPod's API is a local server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.remote.machine import MISSING, RunPod, make_checkout
from tiny_audio.remote import runpod as api
from tiny_audio.remote import watchdog
from tiny_audio.remote.host import is_on_container_disk
from tiny_audio.remote.runpod import Pod, RefusedError

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

POD, KEY, WRONG_KEY = "pod123", "rpa_otherothersecret", "rpa_wrongwrongwrong"
LONG = 1000  # steps of a tenth of a second


class Folder:
    """Tiny Audio as it lies on a pod; `temporary` is the pod's own /tmp."""

    def __init__(self, place: Path, temporary: Path, runpod: RunPod) -> None:
        self.place, self.runpod = make_checkout(place), runpod
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.environment = {**inherited, "TMPDIR": str(temporary)}

    def variables(self, key: str | None = KEY) -> dict[str, str]:
        return {**self.runpod.variables, "RUNPOD_POD_ID": POD, **({"RUNPOD_API_KEY": key} if key else {})}

    def start(self, steps: int, key: str | None = KEY, linger_seconds: float = 0, **more: Any) -> Any:
        request = {
            "arguments": [f"training.max_steps={steps}", "output_dir=outputs/short"],
            "output_dir": "outputs/short",
            "saves_to_hub": True,  # a test's folder is not on a pod's volume
            "environment": self.variables(key),
            "budget_usd": None,
            "usd_per_hour": None,
            "budget_hours": None,
            "default_budget_hours": 24.0,
            "linger_minutes": linger_seconds / 60,
        }
        return self.act("start", {**request, **more})

    def stop(self, key: str | None = KEY) -> Any:
        return self.act("stop", {"environment": self.variables(key)})

    def popen(self, action: str, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tiny_audio.remote.host", action]
        return subprocess.Popen(
            command, cwd=self.place, stdin=subprocess.PIPE, text=True, **{"env": self.environment, **more}
        )

    def act(self, action: str, request: dict[str, Any]) -> Any:
        process = self.popen(action, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, problems = process.communicate(json.dumps(request), timeout=60)
        return subprocess.CompletedProcess(action, process.returncode, output, problems)

    def read(self, name: str) -> str:
        path = self.place / ".remote" / name
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def kill_watchdog(self) -> None:
        end(json.loads(self.read("watchdog.json"))["process"])

    def close(self) -> None:
        for name in ("watchdog.json", "processes.json"):
            for process in json.loads(self.read(name) or "{}").values():
                end(process)


def end(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def eventually(condition: Callable[[], Any], seconds: float = 15) -> None:
    end_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_at, "it did not come to pass"
        time.sleep(0.1)


@pytest.fixture
def runpod() -> Iterator[RunPod]:
    server = RunPod(POD, KEY)
    yield server
    server.close()


@pytest.fixture
def make(tmp_path: Path, runpod: RunPod) -> Iterator[Callable[[str], Folder]]:
    folders: list[Folder] = []

    def make(name: str) -> Folder:
        folders.append(Folder(tmp_path / name, tmp_path, runpod))
        return folders[-1]

    yield make
    for folder in folders:
        folder.close()


@pytest.fixture
def folder(make: Callable[[str], Folder]) -> Folder:
    return make("tiny-audio")


def test_a_refused_start_leaves_the_last_runs_watchdog_at_work(folder: Folder, runpod: RunPod) -> None:
    assert folder.start(steps=1, linger_seconds=4).returncode == 0
    eventually(lambda: "has ended" in folder.read("watchdog.log"))
    refused = folder.start(steps=1, key=None, budget_usd=5.0)
    assert refused.returncode == 2 and "--usd-per-hour" in refused.stderr
    assert runpod.stopped.wait(10)


def test_a_price_that_is_given_does_not_stand_in_for_a_key_that_works(folder: Folder) -> None:
    refused = folder.start(steps=1, key=WRONG_KEY, usd_per_hour=0.5)
    assert refused.returncode == 2 and "could not stop the pod pod123 later" in refused.stderr


def test_start_does_not_promise_a_watchdog_that_is_not_there(folder: Folder) -> None:
    code = folder.place / "tiny_audio" / "remote" / "watchdog.py"
    broken = code.read_text("utf-8").replace('lock("watch"):', 'lock("watch"), open("/nowhere"):')
    code.write_text(broken, encoding="utf-8")
    refused = folder.start(steps=LONG)
    assert refused.returncode == 2 and "'/nowhere'): nothing stops the pod pod123" in refused.stderr
    assert folder.read("processes.json") == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_the_pod_is_stopped_though_the_disk_is_full_and_a_file_cannot_be_read(
    folder: Folder, runpod: RunPod
) -> None:
    assert folder.start(steps=LONG).returncode == 0
    folder.kill_watchdog()
    (folder.place / ".remote" / "status.json").mkdir()
    with open("/dev/full", "w", encoding="utf-8") as full:
        environment = folder.environment | folder.variables()
        process = folder.popen("watch", env=environment, stdout=full, stderr=full)
        assert runpod.stopped.wait(15)
    process.kill()
    process.communicate()


def test_stop_does_its_work_though_the_connection_ends(folder: Folder, runpod: RunPod) -> None:
    assert folder.start(steps=LONG).returncode == 0
    folder.kill_watchdog()
    stopping = folder.popen("stop", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert stopping.stdin is not None
    json.dump({"environment": folder.variables()}, stopping.stdin)
    stopping.stdin.close()
    eventually(lambda: folder.read("watchdog.log").count("watching the run") == 2)
    stopping.kill()
    stopping.wait()
    assert runpod.stopped.wait(15)


def test_stop_with_a_key_stops_the_pod_of_a_run_without_one(folder: Folder, runpod: RunPod) -> None:
    assert "CANNOT BE STOPPED" in folder.start(steps=LONG, key=None).stdout
    refused = folder.stop(key=WRONG_KEY)  # the training ends all the same
    assert refused.returncode == 2
    assert "THE POD pod123 IS NOT STOPPED YET: RUNPOD_API_KEY could not stop it" in refused.stderr
    refused = folder.stop(key=None)
    assert refused.returncode == 2 and "set RUNPOD_API_KEY, and --stop again" in refused.stderr
    assert not runpod.stopped.is_set()
    stopped = folder.stop()
    assert stopped.returncode == 0, stopped.stderr
    assert "ended with exit code 130" in stopped.stdout and "is told to stop" in stopped.stdout
    assert runpod.stopped.is_set()


def test_a_pod_trains_for_one_folder_at_a_time(make: Callable[[str], Folder], runpod: RunPod) -> None:
    first, second = make("first"), make("second")
    assert first.start(steps=30).returncode == 0
    refused = second.start(steps=1)
    assert refused.returncode == 2 and "already, in another folder" in refused.stderr
    assert runpod.stopped.wait(15)
    runpod.stopped.clear()
    first.close()
    assert first.start(steps=1, linger_seconds=2).returncode == 0
    eventually(lambda: "has ended" in first.read("watchdog.log"))
    assert second.start(steps=LONG).returncode == 0  # while the first one's watchdog is about to stop the pod
    assert not runpod.stopped.wait(4)
    end(json.loads(second.read("processes.json"))["training"])
    assert runpod.stopped.wait(10)


def test_results_on_another_disk_than_the_volume_are_known(tmp_path: Path) -> None:
    assert is_on_container_disk("/not-there/out")
    mounted = Path("/dev/shm")
    if mounted.is_dir() and mounted.stat().st_dev != Path("/").stat().st_dev:
        assert not is_on_container_disk("/dev/shm/not-there/out")


# --- RunPod's answers


PAGE = b"<html>We will be back soon</html>"
ANSWERS = {
    "a page": (PAGE, PAGE),
    "a page, and JSON that is none of RunPod's": (PAGE, b'{"data": "maintenance"}'),
    "nothing about the pod": (b"{}", b'{"data": {"pod": {}, "podStop": null}}'),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_success_is_what_speaks_of_the_pod_and_not_the_status_200(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content = ANSWERS[name]["graphql" in self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("RUNPOD_REST_BASE_URL", f"{url}/v1")
        monkeypatch.setenv("RUNPOD_API_BASE_URL", url)
        with pytest.raises(RefusedError, match=r"REST: .*; GraphQL: "):
            Pod(POD, KEY).describe()
        if name != "nothing about the pod":
            with pytest.raises(RefusedError):
                Pod(POD, KEY).stop()
        server.shutdown()


def test_an_answer_that_drips_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def drip() -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.05)

    monkeypatch.setattr(api, "TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(RefusedError, match=r"no whole answer within 0\.5 seconds"):
            api._request("GET", f"http://127.0.0.1:{server.getsockname()[1]}", {})
    assert time.monotonic() - began < 5


def test_a_pod_that_goes_on_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class PatientError(BaseException):
        pass

    answers: list[BaseException | None] = [
        RefusedError("503"),
        None,
        RuntimeError(f"odd {KEY}"),
        None,
        PatientError(),
    ]

    class Stubborn(Pod):
        def stop(self) -> dict[str, Any]:
            if answer := answers.pop(0):
                raise answer
            return {}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watchdog, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(watchdog, "STOPPED_SECONDS", 0.02)
    with pytest.raises(PatientError):
        watchdog.stop_pod(Stubborn(POD, KEY))
    output = capsys.readouterr().out
    assert output.count("is told to stop") == 2 and output.count("THE POD IS STILL THERE") == 2
    assert KEY not in output
