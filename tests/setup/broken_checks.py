"""Checks that break in every way that a check can, for the process that runs them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

from tiny_audio.setup.findings import Finding, Level
from tiny_audio.setup.isolation import Report


def good(report: Report) -> Iterator[Finding]:
    print("noise on standard output")
    os.write(1, b"and from a library in C\n")
    sys.stderr.write("x" * 1_000_000)  # more than a pipe holds
    yield Finding("good", Level.OK, "as it should be", "nothing to do", "nothing")


def dies(report: Report) -> Iterator[Finding]:
    yield Finding("dies", Level.OK, "said before")
    report("import torch")
    os._exit(77)


def hangs(report: Report) -> Iterator[Finding]:
    report("asking")
    time.sleep(60)
    yield Finding("hangs", Level.OK, "never said")


def raises(report: Report) -> Iterator[Finding]:
    yield from ()
    raise RuntimeError("two\nlines with hf_ABCdef123 in them")


def leaves(report: Report) -> Iterator[Finding]:
    yield from ()
    raise SystemExit(3)


def misses(report: Report) -> Iterator[Finding]:
    import no_such_package_at_all  # noqa: F401

    yield Finding("misses", Level.OK, "never said")
