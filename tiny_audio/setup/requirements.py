"""The packages that Tiny Audio asks for, as its own project file or the installed package states them."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiny_audio

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROJECT = "tiny-audio"
CHECKOUT = Path(tiny_audio.__file__).resolve().parents[1]
PROJECT_FILE = CHECKOUT / "pyproject.toml"
# What an extra is for. (A project file can say so in comments only, which no program reads.)
EXTRAS = {
    "hub": "data sets streamed from the hub",
    "tensorboard": "training curves in TensorBoard",
    "wandb": "training curves in Weights & Biases",
    "faster-whisper": "a fast Whisper to compare with",
    "serve": "tiny-audio serve",
    "demo": "tiny-audio demo and deploy-space",
    "bench": "the benchmarks",
    "dev": "tests and checks of Tiny Audio itself",
    "docs": "the site of the documents: make docs",
}
# Packages that are imported by another name than their own with an underscore for a dash.
IMPORT_NAMES = {"hydra-core": "hydra"}


@dataclass(frozen=True)
class Requirements:
    """`python` as in `>=3.11,<3.14`; `extras` by name, with those that they include written out."""

    python: str
    core: list[Requirement]
    extras: dict[str, list[Requirement]]


def read_requirements(project_file: Path = PROJECT_FILE) -> Requirements:
    """From the project file of a checkout, where there is one; else from the installed package."""
    from packaging.requirements import Requirement

    if project_file.is_file():
        import tomllib

        project = tomllib.loads(project_file.read_text(encoding="utf-8"))["project"]
        extras = {
            name: list(map(Requirement, rows)) for name, rows in project["optional-dependencies"].items()
        }
        core = list(map(Requirement, project["dependencies"]))
        return Requirements(project["requires-python"], core, _written_out(extras))
    about: Any = metadata.metadata(PROJECT)
    rows = list(map(Requirement, metadata.requires(PROJECT) or []))
    extras = {
        extra: [row for row in rows if row.marker and row.marker.evaluate({"extra": extra})]
        for extra in about.get_all("Provides-Extra") or []
    }
    core = [row for row in rows if row.marker is None or row.marker.evaluate({"extra": ""})]
    return Requirements(about["Requires-Python"], core, _written_out(extras))


def _written_out(extras: dict[str, list[Requirement]]) -> dict[str, list[Requirement]]:
    def all_of(name: str) -> list[Requirement]:
        return [
            each
            for row in extras[name]
            for each in ([r for e in sorted(row.extras) for r in all_of(e)] if row.name == PROJECT else [row])
        ]

    return {name: all_of(name) for name in extras}


def problem_of(requirement: Requirement) -> str | None:
    """What is wrong with the installed version of a package; None when nothing is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} is {version}, wanted {requirement.specifier}"


def import_name(requirement: Requirement) -> str:
    return IMPORT_NAMES.get(requirement.name, requirement.name.replace("-", "_"))


def with_bounds(name: str) -> str:
    """`torch>=2.9,<2.14` for a package that Tiny Audio needs; the bare name where the bounds cannot be read."""
    with contextlib.suppress(Exception):  # packaging itself may be what is broken
        return next(f"{name}{row.specifier}" for row in read_requirements().core if row.name == name)
    return name


def install_line(what: str = "", again: bool = False) -> str:
    """What to type to install Tiny Audio with an extra ("[serve]"), or a package ("torch>=2.9"), with this Python.

    `again` installs it alone and over what is there.
    """
    if not what or what.startswith("["):
        place = "." if Path.cwd().resolve() == CHECKOUT else str(CHECKOUT)
        what = f"-e {_quoted(place + what)}" if PROJECT_FILE.is_file() else _quoted(PROJECT + what)
    else:
        what = _quoted(what)
    program = f"{python_program()} -m pip install"
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):
        program = f"uv pip install --python {python_program()}"
    return f"{program}{' --force-reinstall --no-deps' if again else ''} {what}"


def python_program() -> str:
    """The running Python as it is typed here: `.venv/bin/python`."""
    program = Path(sys.executable)
    with contextlib.suppress(ValueError):
        program = program.relative_to(Path.cwd())
    return f'"{program}"' if " " in str(program) else str(program)


def _quoted(text: str) -> str:
    """Double quotes, which every shell knows, around what a shell would take for its own."""
    return text if all(c.isalnum() or c in "./\\_-:" for c in text) else f'"{text}"'
