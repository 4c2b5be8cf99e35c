"""The commands that documents show are parsed by the programs they name; in seed-commands.md, "not yet" is true."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.documented import ROOT, documented_commands, parses

ROW = re.compile(r"^\| `(?P<then>[^`]+)` \| `(?P<now>[^`]+)` \| (?P<state>works|not yet) \|$")


def table() -> list[tuple[str, str, str]]:
    lines = (ROOT / "docs" / "seed-commands.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    matches = [ROW.match(row) for row in rows]
    assert all(matches), "a row that is not | `then` | `now` | works or not yet |"
    return [(match["then"], match["now"], match["state"]) for match in matches if match]


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


DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_that_documents_show_exist(document: str) -> None:
    wrong = [command for command in documented_commands(ROOT / document) if not parses(command)]
    assert wrong == []


def test_documents_show_commands() -> None:
    assert len(documented_commands(ROOT / "README.md")) > 10
    assert len(documented_commands(ROOT / "docs" / "evaluation.md")) > 5
