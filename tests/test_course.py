"""Every block of the course does what its page says; the runner that finds out notices when one does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from docs.course.make_notebooks import notebook
from docs.course.run_blocks import (
    COURSE,
    BlockError,
    pages,
    read_blocks,
    run_in_fresh_folder,
    train_few_steps,
)


@pytest.fixture(scope="session")
def nano_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, trained once for all test processes."""
    folder = tmp_path_factory.getbasetemp().parent / "course-nano"
    with FileLock(f"{folder}.lock"):
        if not (folder / "outputs").is_dir():
            train_few_steps(folder)
    return folder / "outputs" / "nano"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(COURSE).as_posix())
def test_blocks_of_a_page(page: Path, nano_run: Path) -> None:
    if not any(block.reason is None for block in read_blocks(page)):
        return  # nothing on it runs; that its blocks are marked as they should be has just been seen
    done = run_in_fresh_folder(page, nano_run)
    assert done.returncode == 0, done.stdout


def run_text(text: str, folder: Path, slow: bool = False) -> tuple[int, str]:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    (folder / "run" / "model").mkdir(parents=True, exist_ok=True)
    done = run_in_fresh_folder(page, folder / "run", slow)
    return done.returncode, done.stdout


def test_blocks_share_names_and_a_folder(tmp_path: Path) -> None:
    text = "```python\nx = 3\n```\n```bash\necho 4 > four.txt\n```\n```python\nprint(x, open('four.txt').read())\n```\n"
    code, printed = run_text(text, tmp_path)
    assert code == 0 and "3 4\n" in printed
    assert not (tmp_path / "four.txt").exists()


def test_programs_of_a_page_are_those_of_this_tree(tmp_path: Path) -> None:
    text = '```bash\ntiny-audio --version\npython -c "import tiny_audio; print(tiny_audio.__file__)"\n```\n'
    code, printed = run_text(text, tmp_path)
    assert code == 0 and f"{COURSE.parents[1]}" in printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "```python\nprint(1)\n```\n<!-- output -->\n```text\n2\n```\n",
            "page.md:2: the page shows\n2\n\nbut it printed\n1",
        ),
        ("```python\n\n1 / 0\n```\n", 'page.md", line 3'),
        ("```bash\nfalse\necho more\n```\n", "page.md:2: exit code 1"),
        ("```bash\nfalse | true\n```\n", "page.md:2: exit code 1"),
    ],
)
def test_a_block_that_does_not_do_what_the_page_says(text: str, message: str, tmp_path: Path) -> None:
    code, printed = run_text(text, tmp_path)
    assert code == 1 and message in printed


def test_slow_blocks_run_when_asked_for(tmp_path: Path) -> None:
    text = "<!-- slow -->\n```python\nprint('minutes')\n```\n<!-- not run: needs a hub -->\n```bash\nfalse\n```\n"
    code, printed = run_text(text, tmp_path)
    assert code == 0 and "minutes" not in printed and "not run (slow)" in printed
    code, printed = run_text(text, tmp_path, slow=True)
    assert code == 0 and "minutes" in printed and "not run (needs a hub)" in printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1. first\n   ```python\n   x\n   ```\n", "begin it in the first column"),
        ("<!-- not run -->\n```python\nx\n```\n", "say why"),
        ("<!-- output -->\n```text\nx\n```\n", "belongs to no block"),
    ],
)
def test_marks_that_are_wrong(text: str, message: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(BlockError, match=message):
        read_blocks(page)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(COURSE).as_posix())
def test_a_notebook_has_the_blocks_of_its_page(page: Path) -> None:
    folder = COURSE.parents[1] / "build" / "notebooks"
    cells = [cell.source for cell in notebook(page, folder).cells if cell.cell_type == "code"]
    expected = [
        block.code.rstrip("\n") if block.language == "python" else f"%%bash\n{block.code.rstrip()}"
        for block in read_blocks(page)
        if block.reason is None
    ]
    assert cells[1:] == expected
    assert (folder / page.parent.relative_to(COURSE) / cells[0].split("'")[1]).resolve() == COURSE.parents[1]
