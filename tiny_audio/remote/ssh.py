"""A host reached by plain ssh, and files to and from it by rsync."""

from __future__ import annotations

import getpass
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tiny_audio.errors import UserError

CONNECTION_FAILED = 255  # ssh's own exit code; any other is that of the command over there
CONNECT_TIMEOUT_SECONDS = 20
# A container that was started again has its home on an empty disk; RunPod keeps what lies under /workspace.
DEFAULT_FOLDER = (
    'for d in /workspace "$HOME"; do [ -d "$d" ] && [ -w "$d" ] && break; done; echo "$d/tiny-audio"'
)


class NoConnectionError(UserError):
    """ssh did not connect, or the connection broke, after `output` had come."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Host:
    """Where to, and how. `options` are those of ssh's -o; what is None is ssh's own affair (~/.ssh/config)."""

    name: str
    port: int | None
    user: str | None
    identity: Path | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(?:[\w.-]+@)?[\w:][\w.:%-]*", self.name):
            raise UserError(
                f"--host {self.name}: expected a name or an address, such as 203.0.113.7 or me@box"
            )
        if self.name.endswith("ssh.runpod.io"):
            raise UserError(
                f"{self.name} is RunPod's terminal proxy, which takes no files and no commands: use the address and"
                ' port that the pod shows under "SSH over exposed TCP"'
            )
        if self.identity is not None and not self.identity.is_file():
            raise UserError(f"--identity {self.identity}: there is no such file")

    @cached_property
    def settings(self) -> dict[str, str]:
        """What ssh makes of the name: hostname, user, port and more; nothing where it does not say."""
        result = subprocess.run([*self.ssh(), "-G", "--", self.name], capture_output=True, text=True)
        pairs = (line.partition(" ") for line in result.stdout.splitlines())
        return {name: value for name, _, value in pairs}

    @property
    def address(self) -> str:
        """With root, as in pods, where nobody says who: neither the user nor ~/.ssh/config."""
        if "@" in self.name:
            return self.name
        if self.user is None:
            named = self.settings.get("hostname", self.name).lower() != self.name.lower()
            if named or self.settings.get("user", getpass.getuser()) != getpass.getuser():
                return self.name
        return f"{self.user or 'root'}@{self.name}"

    @property
    def described(self) -> str:
        """For the user."""
        return f"{self.address} port {self.port or self.settings.get('port', 22)}"

    @property
    def rsync_address(self) -> str:
        user, at, name = self.address.rpartition("@")
        return f"{user}{at}[{name}]" if ":" in name else self.address

    def ssh(self) -> list[str]:
        """The ssh command, up to the host.

        A host seen for the first time is taken and remembered; one whose key has changed is refused.
        """
        identity = [] if self.identity is None else ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"]
        settings = [
            *self.options,
            "StrictHostKeyChecking=accept-new",
            f"ConnectTimeout={CONNECT_TIMEOUT_SECONDS}",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=4",
        ]
        port = [] if self.port is None else ["-p", str(self.port)]
        return [find_program("ssh"), *port, *identity, *(f"-o{each}" for each in settings)]

    def command(self, script: str) -> list[str]:
        """A command line that runs a POSIX shell script over there, whatever the user's login shell is."""
        return [*self.ssh(), "--", self.address, f"sh -c {shlex.quote(script)}"]

    def run(self, script: str, stdin: str = "") -> tuple[int, str, str]:
        """Run a script; gives its exit code, what it printed, and its errors.  Raises UserError: no connection."""
        result = subprocess.run(self.command(script), input=stdin.encode(), capture_output=True)
        output, problems = (stream.decode("utf-8", "replace") for stream in (result.stdout, result.stderr))
        if result.returncode == CONNECTION_FAILED:
            raise NoConnectionError(self.explain(problems), output)
        return result.returncode, output, problems

    def explain(self, problems: str) -> str:
        """Why ssh did not connect, in one line, with what to do."""
        lines = [line.strip() for line in problems.splitlines() if line.strip()]
        advice = next((advice for sign, advice in ADVICE.items() if sign in problems), ADVICE[""])
        known_as = self.settings.get("hostname", self.name.rpartition("@")[2])
        port = self.port or int(self.settings.get("port", 22))
        known_as = known_as if port == 22 else f"[{known_as}]:{port}"
        said = lines[-1] if lines else "ssh said nothing"
        return f"no connection to {self.described}: {said}. {advice.format(known_as=known_as)}"

    def rsync(self, arguments: Sequence[str], stdin: bytes = b"") -> str:
        """Run rsync with this host's ssh, and give what it printed.  Raises UserError."""
        command = [find_program("rsync"), "-e", shlex.join(self.ssh()), *arguments]
        result = subprocess.run(command, input=stdin, capture_output=True)
        problems = result.stderr.decode("utf-8", "replace")
        if result.returncode == CONNECTION_FAILED:
            raise NoConnectionError(self.explain(problems))
        if result.returncode != 0:
            lines = [line for line in problems.splitlines() if line.strip()] or ["it said nothing"]
            raise UserError(f"rsync failed with code {result.returncode}: {lines[0].strip()}")
        return result.stdout.decode("utf-8", "replace")

    def default_folder(self) -> str:
        """Where Tiny Audio goes on that host."""
        code, output, _ = self.run(DEFAULT_FOLDER)
        folder = output.strip().splitlines()[-1] if output.strip() else ""
        if code != 0 or not folder.startswith("/"):
            raise UserError(
                f"{self.address} does not run shell commands: it answered {output.strip()[:80]!r}"
            )
        return folder


ADVICE = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "It is another machine than last time. If that is right (a new pod),"
    ' forget the old one: ssh-keygen -R "{known_as}"',
    "Host key verification failed": 'If the machine is a new one, forget the old key: ssh-keygen -R "{known_as}"',
    "Permission denied": "Is your public key on the host, and is it the key that --identity names?",
    "": "Is the machine running, and are --host and --port those of its ssh?",
}


def find_program(name: str) -> str:
    """The path of a program.  Raises UserError."""
    path = shutil.which(name)
    if path is None:
        raise UserError(
            f"{name} is not installed on this machine: apt install {name}, brew install {name}, or on Windows use WSL"
        )
    return path
