"""Runs checks in a process of their own, so that a package that kills or hangs it costs one line of the table.

A broken PyTorch does not raise: on a processor that it was not built for it ends the program, and a driver may never
answer. Standard library alone, in both processes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from tiny_audio.setup.findings import Finding, Level
from tiny_audio.setup.requirements import install_line, with_bounds

START_SECONDS = 60.0  # a Python that only starts; slow disks and virus scanners included
TOKENS = re.compile(r"hf_\w+")


@dataclass(frozen=True)
class Check:
    """A function of `module` that yields findings.

    Args:
        subject: what it looks at, as the table calls it.
        broken: what it means when the check itself cannot be made.
        without: what does not work then; see Finding.
        limit_seconds: after which it is stopped.
        remedy: what to type when the check itself cannot be made; None installs Tiny Audio again.
    """

    subject: str
    module: str
    function: str
    broken: Level = Level.FAILED
    without: str | None = None
    limit_seconds: float = 120.0
    remedy: str | None = None

    def finding(self, found: str, remedy: str | None = None) -> Finding:
        """That the check itself could not be made."""
        return Finding(
            self.subject, self.broken, found, remedy or self.remedy or install_line(), self.without
        )


def run_checks(
    checks: Sequence[Check], doing: Callable[[str], None] = lambda text: None
) -> Iterator[Finding]:
    """The findings of all checks, in their order, each as soon as it is there; `doing` is told what goes on."""
    remaining = list(checks)
    while remaining:
        # A check that ended the process is the first of the list, and is left out of the next one.
        remaining = yield from _run_in_one_process(remaining, doing)


def _run_in_one_process(
    checks: list[Check], doing: Callable[[str], None]
) -> Generator[Finding, None, list[Check]]:
    """Yields findings; returns the checks that are still to be made when one of them ended the process."""
    command = [sys.executable, "-m", "tiny_audio.setup.isolation"]
    # No progress bars, and no thread pools that complain about forks.
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(OSError):  # it died at once: its silence is reported below
            process.stdin.write(json.dumps([asdict(check) for check in checks]).encode())
            process.stdin.close()
        messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=_read, args=(process.stdout, messages), daemon=True).start()
        for number, check in enumerate(checks):
            doing(check.subject)
            step = "starting Python"
            while True:
                try:
                    message = messages.get(timeout=check.limit_seconds + START_SECONDS * (number == 0))
                except queue.Empty:
                    yield check.finding(f"no end of {step} after {check.limit_seconds:g} s", remedy_for(step))
                    return checks[number + 1 :]
                if message is None:
                    yield check.finding(f"{step} ended the program ({_end_of(process)})", remedy_for(step))
                    return checks[number + 1 :]
                if "done" in message:
                    break
                if "step" in message:
                    step = message["step"]
                    doing(f"{check.subject}: {step}")
                else:
                    yield Finding(**{**message["finding"], "level": Level(message["finding"]["level"])})
        return []
    finally:
        process.kill()
        process.wait()


def remedy_for(step: str) -> str | None:
    """What to do when a step ended the program or has no end."""
    match = re.fullmatch(r"import (\S+)", step)
    return install_line(with_bounds(match[1]), again=True) if match else None


def _read(stream: IO[bytes], messages: queue.Queue[dict[str, Any] | None]) -> None:
    for line in stream:
        messages.put(json.loads(line))
    messages.put(None)


def _end_of(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    if code >= 0:
        return f"exit code {code}"
    import signal

    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def one_line(error: BaseException) -> str:
    """An error in words that fit a line of the table, and hold no token."""
    text = " ".join(str(error).split())
    return TOKENS.sub("hf_...", f"{type(error).__name__}: {text}" if text else type(error).__name__)[:300]


Report = Callable[[str], None]  # a check tells it what it does next


def make_checks(checks: Sequence[Check], send: Callable[[dict[str, Any]], None]) -> None:
    """What the other process does."""
    for check in checks:
        send({"step": "the check"})
        try:
            function = getattr(importlib.import_module(check.module), check.function)
            for finding in function(lambda step: send({"step": step})):
                send({"finding": asdict(finding)})
        except ModuleNotFoundError as error:
            send({"finding": asdict(check.finding(f"{error.name} is missing", install_line()))})
        except BaseException as error:  # SystemExit and Rust's panics among them
            send({"finding": asdict(check.finding(one_line(error)))})
        send({"done": True})


def main() -> None:
    """Read the checks from standard input, write a line of JSON for each finding, and let nobody else write there."""
    checks = [Check(**{**each, "broken": Level(each["broken"])}) for each in json.load(sys.stdin)]
    with os.fdopen(os.dup(1), "w", encoding="ascii") as stream:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)

        def send(message: dict[str, Any]) -> None:
            stream.write(json.dumps(message) + "\n")
            stream.flush()

        make_checks(checks, send)


if __name__ == "__main__":
    main()
