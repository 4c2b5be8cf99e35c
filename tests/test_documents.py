"""The commands that documents show are parsed by the programs they name; in seed-commands.md, "not yet" is true."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

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
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_that_documents_show_exist(document: str) -> None:
    wrong = [command for command in documented_commands(ROOT / document) if not parses(command)]
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_files_lead_somewhere(document: str) -> None:
    """Relative links and pictures; of a link into a document, the heading as well."""
    path = ROOT / document
    text = re.sub(r"```.*?```|`[^`\n]+`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    dead = []
    for target in (inline or attribute for inline, attribute in targets):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists() or (anchor and linked.suffix == ".md" and anchor not in headings(linked)):
            dead.append(target)
    assert dead == []


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them, and those that it sets itself."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}
    return anchors | set(re.findall(r'id="([^"]+)"', text))


def test_documents_show_commands() -> None:
    assert len(documented_commands(ROOT / "README.md")) > 10
    assert len(documented_commands(ROOT / "docs" / "evaluation.md")) > 5
