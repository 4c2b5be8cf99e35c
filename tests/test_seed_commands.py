"""docs/seed-commands.md: each command of ours is parsed by what it names, and "not yet" is true."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

from tiny_audio import cli
from tiny_audio.train.config import compose_config

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| `(?P<then>[^`]+)` \| `(?P<now>[^`]+)` \| (?P<state>works|not yet) \|$")


def table() -> list[tuple[str, str, str]]:
    lines = (ROOT / "docs" / "seed-commands.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    matches = [ROW.match(row) for row in rows]
    assert all(matches), "a row that is not | `then` | `now` | works or not yet |"
    return [(match["then"], match["now"], match["state"]) for match in matches if match]


def parses(command_line: str) -> bool:
    """Whether the program named takes this command line, found by its own parser and without running it."""
    program, *arguments = shlex.split(command_line)
    if program == "make":
        return arguments[0] in runpy.run_path(str(ROOT / "tasks.py"))["TARGETS"]
    assert program == "tiny-audio"
    name, *arguments = arguments
    if name not in cli.COMMANDS:
        return False
    command = cli.COMMANDS[name]
    app = typer.Typer(add_completion=False)
    app.command()(getattr(__import__(command.module, fromlist=["_"]), command.function))
    context = typer.main.get_command(app).make_context(name, arguments)
    if name == "train":
        compose_config(context.params["overrides"] or [])
    if provider := context.params.get("provider"):
        from tiny_audio.evaluate.providers import PROVIDERS

        return provider in PROVIDERS
    return True


@pytest.mark.parametrize(("then", "now", "state"), table(), ids=lambda value: value)
def test_a_command_is_what_the_table_says(then: str, now: str, state: str) -> None:
    works = False
    if state == "not yet":
        try:
            works = parses(now)
        except Exception:  # an option that does not exist yet
            works = False
    else:
        works = parses(now)
    assert works == (state == "works")


def test_the_makefile_and_tasks_have_the_same_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^TARGETS := (.+)$", makefile, flags=re.MULTILINE)
    assert listed is not None
    assert listed[1].split() == list(runpy.run_path(str(ROOT / "tasks.py"))["TARGETS"])


def test_no_seed_command_is_listed_twice() -> None:
    commands = [then for then, _, _ in table()]
    assert len(commands) == len(set(commands))
