"""Makes a Jupyter notebook of each page of the course, in build/notebooks: make notebooks.

Blocks that are not run (CONTRIBUTING.md) stay text. The first cell goes to the repository, where the pages' commands are
meant to be typed.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import jupytext
from nbformat.v4 import new_code_cell

COURSE = Path(__file__).resolve().parent
ROOT = COURSE.parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from docs.course.run_blocks import LANGUAGES, MARK, pages

FENCE = re.compile(rf"^```({'|'.join(LANGUAGES)})$")
LINK = re.compile(r"(\]\()([^)\s#:]+)([)#])")


def notebook(page: Path, folder: Path) -> Any:
    """The notebook of a page, to be kept in `folder`: a code cell for each block that is run."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        mark = MARK.match(lines[number - 1]) if number else None
        if FENCE.match(line) and mark and mark["name"] == "not run":
            lines[number] = f"{line} .noeval"
    text = "\n".join(line for line in lines if not MARK.match(line)) + "\n"
    made = jupytext.reads(LINK.sub(lambda link: move_link(link, page, folder), text), fmt="md")
    start = f"import os\n\nos.chdir({os.path.relpath(ROOT, folder).replace(os.sep, '/')!r})"
    made.cells.insert(0, new_code_cell(start))
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return made


def move_link(link: re.Match[str], page: Path, folder: Path) -> str:
    """Links between pages lead to their notebooks, others to the files of the repository."""
    target = (page.parent / link[2]).resolve()
    if target.suffix == ".md" and target in pages():
        target = folder / target.relative_to(COURSE).with_suffix(".ipynb")
    moved = os.path.relpath(target, (folder / page.relative_to(COURSE)).parent).replace(os.sep, "/")
    return f"{link[1]}{moved}{link[3]}"


def main() -> None:
    folder = ROOT / "build" / "notebooks"
    for page in pages():
        file = folder / page.relative_to(COURSE).with_suffix(".ipynb")
        file.parent.mkdir(parents=True, exist_ok=True)
        jupytext.write(notebook(page, file.parent), file)
        print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
