"""A rented machine on this one: a real sshd, a checkout to send, and a server that answers as RunPod does."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).resolve().parents[2]
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
PROGRAMS = ("ssh", "ssh-keygen", "rsync", "tmux", "git", "ps", "pgrep")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None] + ([] if SSHD else ["sshd"])

# Installs without a network: a wheel that holds a link to the checkout, and one to the packages of the tests (torch).
BUILD_BACKEND = f"""
import pathlib, zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "tiny_audio-0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        here = str(pathlib.Path.cwd())
        wheel.writestr("tiny_audio.pth", here + "\\n" + {sysconfig.get_paths()["purelib"]!r} + "\\n")
        info = "tiny_audio-0.dist-info/"
        metadata = "Metadata-Version: 2.1\\nName: tiny-audio\\nVersion: 0\\nProvides-Extra: hub\\n"
        wheel.writestr(info + "METADATA", metadata)
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "build_backend"
backend-path = ["."]
[project]
name = "tiny-audio"
version = "0"
optional-dependencies.hub = []
"""
# In place of the training: a step is a tenth of a second; Ctrl-C saves; seed=13 does not listen to Ctrl-C.
TRAINING = """
import hashlib, json, os, pathlib, signal, sys, time
settings = dict(a.lstrip("+").split("=", 1) for a in sys.argv[2:])
folder = pathlib.Path(settings["output_dir"])
for name in ("model", "checkpoints/step-1"):
    (folder / name).mkdir(parents=True, exist_ok=True)
token = os.environ.get("HF_TOKEN", "")
print("the token is", token)
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
steps = int(settings["training.max_steps"])
for step in range(1, steps + 1):
    print(f"step {step}/{steps}")
    time.sleep(0.1)
    if heard and settings.get("seed") != "13":
        (folder / "checkpoints" / "saved").write_text("")
        sys.exit(130)
(folder / "metrics.json").write_text(json.dumps({
    "token": hashlib.sha256(token.encode()).hexdigest(),
    "runpod": [name for name in os.environ if name == "RUNPOD_API_KEY"],
    "commit": os.environ.get("TINY_AUDIO_GIT_HASH"),
}))
(folder / "model" / "weights").write_text("w")
(folder / "checkpoints" / "step-1" / "weights").write_text("w")
(folder / "escape").unlink(missing_ok=True)
(folder / "escape").symlink_to("/etc/hostname")
sys.exit(3 if settings.get("seed") == "3" else 0)
"""


class Machine:
    """sshd on a free port of 127.0.0.1, for the current user, with a key made for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / "home" / "tiny-audio"
        self.place.parent.mkdir()
        for name in ("host_key", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        # A home of its own: a profile of the user's may put another Python first.
        home, path = self.place.parent, f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        (home / ".profile").write_text(f'export PATH="{path}"\n', encoding="utf-8")
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/key.pub\nStrictModes no\nPasswordAuthentication no\nLogLevel DEBUG1\n"
            "KexAlgorithms curve25519-sha256\nUseDNS no\n"
            f'SetEnv "PATH={path}" "HOME={home}" "TMPDIR={home}"\n',
            encoding="utf-8",
        )
        if not Path("/run/sshd").exists() and getpass.getuser() == "root":
            Path("/run/sshd").mkdir()
        self.log = folder / "sshd.log"
        self.server = subprocess.Popen([str(SSHD), "-D", "-f", folder / "sshd_config", "-E", self.log])
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.05)

    @property
    def options(self) -> list[str]:
        """What reaches it."""
        words = ["--host", f"{getpass.getuser()}@127.0.0.1", "--port", str(self.port)]
        words += ["--identity", str(self.folder / "key"), "--folder", str(self.place)]
        return [*words, "--ssh-option", f"UserKnownHostsFile={self.folder / 'known_hosts'}"]

    def close(self) -> None:
        self.server.terminate()
        self.server.wait()


def make_checkout(folder: Path) -> Path:
    """A repository like ours, with the training replaced and an installation that asks no network."""
    shutil.copytree(
        ROOT / "tiny_audio", folder / "tiny_audio", ignore=shutil.ignore_patterns("__pycache__", "corpus")
    )
    files = {
        "pyproject.toml": PYPROJECT,
        "build_backend.py": BUILD_BACKEND,
        "tiny_audio/__main__.py": TRAINING,
        ".gitignore": "outputs/\n__pycache__/\n",
        "old.py": "",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "link.py").symlink_to("old.py")
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    (folder / "notes.txt").write_text("not tracked", encoding="utf-8")
    (folder / "outputs").mkdir()
    (folder / "outputs" / "big").write_text("ignored", encoding="utf-8")
    return folder


class RunPod:
    """RunPod's REST and GraphQL interfaces for one pod, as documented; told to, it refuses, or fails to stop it."""

    def __init__(self, pod_id: str, key: str) -> None:
        self.pod_id, self.key, self.rest_works, self.failures = pod_id, key, True, 0
        self.asked: list[str] = []
        self.stopped = threading.Event()
        runpod = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer("")

            def do_POST(self) -> None:
                self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())

            def answer(self, body: str) -> None:
                parts = urlsplit(self.path)
                code, record = runpod.answer(
                    self.command, parts.path, dict(self.headers), parse_qs(parts.query), body
                )
                content = json.dumps(record).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def variables(self) -> dict[str, str]:
        return {"RUNPOD_REST_BASE_URL": f"{self.url}/v1", "RUNPOD_API_BASE_URL": self.url}

    def answer(self, method: str, path: str, headers: dict, query: dict, body: str) -> tuple[int, dict]:
        self.asked.append(f"{method} {path}")
        if (path.endswith("/stop") or "podStop" in body) and self.failures:
            self.failures -= 1
            return 503, {}
        pod = {"id": self.pod_id, "desiredStatus": "RUNNING", "costPerHr": 0.5}
        if path == "/graphql":
            if query.get("api_key") != [self.key]:
                return 401, {"errors": [{"message": "Unauthorized"}]}
            called = re.search(
                r'(podStop|pod)\(input: \{ podId: "([^"]+)" \}\) \{ [\w ]+ \}', json.loads(body)["query"]
            )
            if called is None or called[2] != self.pod_id:
                return 200, {"errors": [{"message": "no such pod"}], "data": None}
            if called[1] == "podStop":
                self.stopped.set()
            return 200, {"data": {called[1]: pod}}
        if not self.rest_works or headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {"message": "Unauthorized."}
        if (method, path) == ("POST", f"/v1/pods/{self.pod_id}/stop"):
            self.stopped.set()
            return 200, {"message": "Pod successfully stopped."}
        return (200, pod) if (method, path) == ("GET", f"/v1/pods/{self.pod_id}") else (404, {})

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
