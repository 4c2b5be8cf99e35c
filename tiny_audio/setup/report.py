"""All checks of `tiny-audio verify-setup`, and the table of what they find; plain text where rich is missing."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from tiny_audio.setup.findings import HUB_WORDS, Finding, Level, is_ready, verdict
from tiny_audio.setup.isolation import Check, run_checks

MACHINE, TRIALS = "tiny_audio.setup.checks", "tiny_audio.setup.trials"
OPTIONAL, NANO_ONLY = Level.OPTIONAL, Level.NANO_ONLY
TRAIN_AND_TELL = "tiny-audio train training.max_steps=2 output_dir=outputs/trial --debug"
# In the order of the table. What imports little comes first.
CHECKS = (
    Check("Python", MACHINE, "python"),
    Check("packages", MACHINE, "packages"),
    Check("extras", MACHINE, "extras", broken=OPTIONAL),
    Check("devices", MACHINE, "devices"),
    Check("memory", MACHINE, "memory", broken=OPTIONAL),
    Check("folders", MACHINE, "folders"),
    Check("codecs", TRIALS, "codecs"),
    Check("corpus", TRIALS, "corpus"),
    Check("samples", TRIALS, "samples", OPTIONAL, "sample recordings", remedy="tiny-audio download-samples"),
    Check("recipes", TRIALS, "recipes", remedy="tiny-audio plan --debug"),
    Check("trial training", TRIALS, "training", limit_seconds=300, remedy=TRAIN_AND_TELL),
    Check("models", MACHINE, "models", broken=OPTIONAL),
    Check(
        "hub", MACHINE, "hub", NANO_ONLY, HUB_WORDS, 60, remedy="is this machine online? Then run this again"
    ),
)
STYLES = {Level.OK: "green", Level.OPTIONAL: "dim", Level.NANO_ONLY: "yellow", Level.FAILED: "bold red"}


def verify(as_json: bool) -> bool:
    """Make all checks and print what they find. Returns whether the machine is ready."""
    with _told() as doing:
        findings = list(run_checks(CHECKS, doing))
    if as_json:
        rows = [asdict(finding) for finding in findings]
        print(
            json.dumps(
                {"ready": is_ready(findings), "verdict": verdict(findings), "findings": rows}, indent=2
            )
        )
    else:
        _print_table(findings)
        _print_remedies(findings)
        print(f"\n{verdict(findings)}")
    return is_ready(findings)


@contextlib.contextmanager
def _told() -> Iterator[Callable[[str], None]]:
    """What goes on, in a line that vanishes: on a terminal only."""
    try:
        from rich.console import Console
        from rich.markup import escape
    except Exception:
        yield lambda text: None
        return
    console = Console(stderr=True)
    with console.status("starting") as status:
        yield lambda text: status.update(escape(f"checking {text}"))


def _print_table(findings: Sequence[Finding]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except Exception:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            print(f"{finding.subject:<{width}}  {finding.level.value:<9}  {finding.found}")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(finding.subject, Text(finding.level.value, STYLES[finding.level]), Text(finding.found))
    Console().print(table)


def _print_remedies(findings: Sequence[Finding]) -> None:
    """One line each, never wrapped: they are there to be copied."""
    for heading, wanted in (
        ("To mend:", lambda level: level == Level.FAILED),
        ("For more than nano:", lambda level: level == Level.NANO_ONLY),
        ("Only if you want it:", lambda level: level == Level.OPTIONAL),
    ):
        chosen = [finding for finding in findings if wanted(finding.level) and finding.remedy]
        if chosen:
            print(f"\n{heading}")
            width = max(len(finding.subject) for finding in chosen)
            for finding in chosen:
                print(f"  {finding.subject:<{width}}  {finding.remedy}")


def main() -> int:
    """`python -m tiny_audio.setup`: the same where even the packages of the command line are missing."""
    return 0 if verify("--json" in sys.argv[1:]) else 1
