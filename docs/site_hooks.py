"""What mkdocs does besides: the menu, the front page from README.md, the API reference, links out of docs/, formulas.

Used by mkdocs alone (mkdocs.yml). Each function whose name begins with `on_` is an event of mkdocs.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SOURCES = "https://github.com/alexkroman/tiny-audio/blob/main/"
FIRST_GUIDE = "how-it-works.md"
REFERENCE = ("LEADERBOARD.md", "LOG.md", "seed-commands.md")  # no guides
BESIDE_THE_CLASSES = ("data-trace.md", "quick-reference.md", "glossary.md", "instructor-notes.md")
NO_MENU = "---\nhide: [navigation]\n---\n"  # beside the front page there would be a menu of one line
API = {
    "hub": "The model: what travels inside every checkpoint",
    "data": "Data: sources, augmentation, batches",
    "train": "Training",
    "evaluate": "Evaluation",
    "publish": "Publishing",
    "serve": "Serving",
}
# Code is left as it is: the first alternatives take it, so that the last one does not look into it.
CODE = r"```.*?```|`[^`\n]+`"
FORMULA = re.compile(CODE + r"|\$\$(?P<formula>.+?)\$\$", flags=re.DOTALL)
LINK = re.compile(CODE + r"|(?P<start>\]\()(?P<target>[^)\s#]+)(?P<rest>[^)\s]*\))", flags=re.DOTALL)
HEADING = re.compile(r"```.*?```|^(?P<marks>#+) ", flags=re.DOTALL | re.MULTILINE)
# Markdown inside of HTML is read only where it says so.
DETAILS = re.compile(r"^<details>$", flags=re.MULTILINE)


def on_config(config: Any) -> Any:
    """Builds the menu from the files that are there."""
    course = sorted(path.name for path in (DOCS / "course").glob("[0-9]-*.md"))
    beside = [name for name in BESIDE_THE_CLASSES if (DOCS / "course" / name).exists()]
    solutions = sorted(path.name for path in (DOCS / "course" / "solutions").glob("*.md"))
    guides = sorted(f"guides/{path.name}" for path in (DOCS / "guides").glob("*.md"))
    in_full = sorted(path.name for path in DOCS.glob("*.md") if path.name not in (FIRST_GUIDE, *REFERENCE))
    classes: list[Any] = [f"course/{name}" for name in [*course, *beside]]
    config.nav = [
        {"Home": "index.md"},
        {"Course": [*classes, {"Solutions": [f"course/solutions/{name}" for name in solutions]}]},
        {"Guides": [FIRST_GUIDE, {"How to": guides}, {"In full": in_full}]},
        {"Reference": [*REFERENCE, {"API": [f"api/{package}.md" for package in API]}]},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the front page and the API reference, which are no files of docs/."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {"index.md": f"{NO_MENU}{move_links(readme, from_readme)}"}
    for package, title in API.items():
        modules = sorted(path.stem for path in (ROOT / "tiny_audio" / package).glob("*.py"))
        names = [f"tiny_audio.{package}.{module}" for module in modules if not module.startswith("_")]
        pages[f"api/{package}.md"] = f"# {title}\n\n" + "\n\n".join(f"::: {name}" for name in names)
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Formulas to MathML, which browsers draw by themselves; links to files outside docs/ to the repository."""
    folder = posixpath.dirname(page.file.src_uri)
    markdown = move_links(markdown, lambda target: out_of_docs(target, folder))
    markdown = DETAILS.sub('<details markdown="1">', markdown)
    return demote_headings(FORMULA.sub(draw_formula, markdown))


def demote_headings(markdown: str) -> str:
    """Where a page has several headings of the first level, all but the first go one down, for the list of contents."""
    headings = [match for match in HEADING.finditer(markdown) if match["marks"]]
    if [match["marks"] for match in headings].count("#") < 2:
        return markdown
    return HEADING.sub(
        lambda m: f"#{m[0]}" if m["marks"] and m.start() > headings[0].start() else m[0], markdown
    )


def draw_formula(match: re.Match[str]) -> str:
    if match["formula"] is None:
        return match[0]
    return f'<div class="formula">{convert(match["formula"].strip(), display="block")}</div>'


def move_links(markdown: str, move: Callable[[str], str]) -> str:
    """The text with `move(target)` for each target of a link within the repository."""

    def moved(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or re.match(r"[a-z]+:", target):
            return match[0]
        return f"{match['start']}{move(target)}{match['rest']}"

    return LINK.sub(moved, markdown)


def from_readme(target: str) -> str:
    return target.removeprefix("docs/") if target.startswith("docs/") else f"{SOURCES}{target}"


def out_of_docs(target: str, folder: str) -> str:
    path = posixpath.normpath(posixpath.join("docs", folder, target))
    return target if path.startswith("docs/") else f"{SOURCES}{path}"


def on_post_build(config: Any) -> None:
    """The index of the search as a script as well: a page opened from a folder may read no JSON."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")
