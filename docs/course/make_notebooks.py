"""Makes a Jupyter notebook of each page of the course, in build/notebooks: make notebooks.

Blocks that are not run (CONTRIBUTING.md) stay text. The first cell goes to the repository, where the pages' commands
are meant to be typed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jupytext
from nbformat.v4 import new_code_cell

from docs.course.run_blocks import LANGUAGES, MARK, pages

COURSE = Path(__file__).resolve().parent
ROOT = COURSE.parents[1]
FENCE = re.compile(rf"^```({'|'.join(LANGUAGES)})$")
LINK = re.compile(r"(\]\()([^)\s#:]+)([)#])")


def notebook_file(page: Path, folder: Path) -> Path:
    return folder / page.relative_to(COURSE).with_suffix(".ipynb")


def notebook(page: Path, folder: Path) -> Any:
    """The notebook of a page, one of those in `folder`: a code cell for each block that is run."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        mark = MARK.match(lines[number - 1]) if number else None
        if FENCE.match(line) and mark and mark["name"] == "not run":
            lines[number] = f"{line} .noeval"
    text = "\n".join(line for line in lines if not MARK.match(line)) + "\n"
    here = notebook_file(page, folder).parent
    made = jupytext.reads(LINK.sub(lambda link: move_link(link, page, folder), text), fmt="md")
    made.cells.insert(0, new_code_cell(f"import os\n\nos.chdir({relative(ROOT, here)!r})"))
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return made


def move_link(link: re.Match[str], page: Path, folder: Path) -> str:
    """Links between pages lead to their notebooks, others to the files of the repository."""
    target = (page.parent / link[2]).resolve()
    if target.suffix == ".md" and target in pages():
        target = notebook_file(target, folder)
    return f"{link[1]}{relative(target, notebook_file(page, folder).parent)}{link[3]}"


def relative(target: Path, start: Path) -> str:
    return os.path.relpath(target, start).replace(os.sep, "/")


def main() -> None:
    folder = ROOT / "build" / "notebooks"
    for page in pages():
        file = notebook_file(page, folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        jupytext.write(notebook(page, folder), file)
        print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
