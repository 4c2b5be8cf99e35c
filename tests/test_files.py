"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tiny_audio.errors import UserError
from tiny_audio.files import replace_folder, size_in_words


def test_a_folder_is_replaced_when_all_of_it_is_written(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("old", "new"):
        with replace_folder(target, "free some") as partial:
            (partial / "weights").write_text(text, encoding="utf-8")
    assert (target / "weights").read_text(encoding="utf-8") == "new"
    with pytest.raises(ZeroDivisionError), replace_folder(target, "free some") as partial:
        (partial / "weights").write_text("newer", encoding="utf-8")
        1 / 0  # noqa: B018
    assert (target / "weights").read_text(encoding="utf-8") == "new"
    # What a library makes of the system's error.
    full = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    message = r"no space left for .*model: free some"
    with pytest.raises(UserError, match=message), replace_folder(target, "free some"):
        raise full
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_outlives_a_crash_at_any_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that runs after a crash may be needed for a whole folder to be there, under one name or the other."""

    class Crash(BaseException):
        pass

    target = tmp_path / "model"

    def write(text: str) -> None:
        with replace_folder(target, "free some") as partial:
            (partial / "weights").write_text(text, encoding="utf-8")

    write("old")
    stock = os.replace
    for renames in range(3):
        done = []

        def crashing(source: Path, to: Path, done: list[Path] = done, renames: int = renames) -> None:
            if len(done) == renames:
                raise Crash
            done.append(to)
            stock(source, to)

        with monkeypatch.context() as patch, suppress(Crash):
            patch.setattr(os, "replace", crashing)
            write("new")
        whole = {path.name: path.joinpath("weights").read_text() for path in tmp_path.iterdir()}
        assert whole.get("model", whole.get(".model.old")) == ("new" if renames == 2 else "old")
        if renames == 1:  # the next one begins with the old folder in its place again
            with pytest.raises(ZeroDivisionError), replace_folder(target, "free some"):
                1 / 0  # noqa: B018
            assert (target / "weights").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_sizes_in_words() -> None:
    assert [size_in_words(size) for size in (0, 999, 9_120_000, 16_000_000_000)] == [
        "0 B",
        "999 B",
        "9.1 MB",
        "16.0 GB",
    ]
