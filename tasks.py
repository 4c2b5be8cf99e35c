"""What the Makefile does, without make: python tasks.py TARGET [ARGUMENTS].

Every target sets up what it needs by itself, in .venv beside this file. Standard library only, and an old Python gets
as far as being told which one is needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST, NEWEST = (3, 11), (3, 13)
SUPPORTED = "Python 3.11, 3.12 or 3.13"
CANDIDATES = (
    ["python3"],
    ["python3.13"],
    ["python3.12"],
    ["python3.11"],
    ["python"],
    ["py", "-3.13"],
    ["py", "-3.12"],
    ["py", "-3.11"],
)
CACHES = (".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "build", "dist")


class SetupError(Exception):
    """Something is missing on this machine; the message says what, and what to do."""


def python_version(command: list[str]) -> tuple[int, int] | None:
    """(major, minor) of the interpreter that `command` starts, or None when it does not start."""
    try:
        answer = subprocess.run(
            [*command, "-c", "import sys; print(sys.version_info[0], sys.version_info[1])"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        major, minor = answer.stdout.split()
        return int(major), int(minor)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def is_supported(version: tuple[int, int] | None) -> bool:
    return version is not None and OLDEST <= version <= NEWEST


def find_python() -> list[str]:
    """The command of a suitable interpreter: $PYTHON, the one running this file, or one found on the PATH."""
    chosen = os.environ.get("PYTHON")
    if chosen:
        version = python_version([chosen])
        if is_supported(version):
            return [chosen]
        state = "does not start" if version is None else "is Python {}.{}".format(*version)
        raise SetupError(f"PYTHON={chosen} {state}; Tiny Audio needs {SUPPORTED}.")
    found = []
    for command in ([sys.executable], *CANDIDATES):
        version = python_version(command)
        if is_supported(version):
            return command
        if version is not None:
            found.append("{}.{}".format(*version))
    others = ", ".join(sorted(set(found))) or "none"
    raise SetupError(
        f"Tiny Audio needs {SUPPORTED}; found here: {others}. Install one (https://www.python.org/downloads/), or name "
        "one that is not on the PATH: PYTHON=/path/to/python3.12 make setup"
    )


def make_venv() -> None:
    """Creates .venv, unless a usable one is there."""
    version = python_version([str(VENV_PYTHON)])
    has_pip = version is not None and run_quietly([str(VENV_PYTHON), "-m", "pip", "--version"])
    if is_supported(version) and has_pip:
        return
    python = find_python()
    if not run_quietly([*python, "-c", "import venv, ensurepip"]):
        major, minor = python_version(python) or OLDEST
        raise SetupError(
            f"{python[0]} has no venv module. On Debian or Ubuntu: sudo apt install python{major}.{minor}-venv"
        )
    print(f"making .venv with {' '.join(python)}", flush=True)
    if subprocess.run([*python, "-m", "venv", "--clear", str(VENV)]).returncode:
        raise SetupError(f"cannot make {VENV}: is the disk full, or the folder read-only?")


def run_quietly(command: list[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def install(extra: str = "") -> None:
    """Installs this package and its dependencies into .venv; at once when nothing has changed since the last time.

    Args:
        extra: "" for what training needs, "dev" for tests and checks as well.
    """
    if stamp_is_fresh(extra) or (not extra and stamp_is_fresh("dev")):
        return
    make_venv()
    package = f".[{extra}]" if extra else "."
    print(f"installing {package} into .venv (minutes the first time: PyTorch is large)", flush=True)
    pip = [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--editable", package], cwd=str(ROOT), stderr=subprocess.PIPE)
    if done.returncode:
        sys.stderr.write(done.stderr.decode(errors="replace"))
        raise SetupError(
            "pip could not install the dependencies; its own words are above. No network? Point pip at a mirror "
            "or a folder of wheels (PIP_INDEX_URL=..., PIP_FIND_LINKS=...). Disk full? About 2 GB are needed for "
            "the CPU build of PyTorch and 8 GB for the CUDA one. Then run the same command again."
        )
    stamp_path(extra).write_text(fingerprint(), encoding="utf-8")


def stamp_path(extra: str) -> Path:
    return VENV / f"installed-{extra or 'core'}.stamp"


def stamp_is_fresh(extra: str) -> bool:
    stamp = stamp_path(extra)
    return stamp.is_file() and VENV_PYTHON.exists() and stamp.read_text(encoding="utf-8") == fingerprint()


def fingerprint() -> str:
    """What an installation depends on: the project file, and the folder, which an editable install points at."""
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()).hexdigest()


def run(*arguments: str, **environment: str) -> int:
    """Runs `python ARGUMENTS` of .venv in this folder; its exit code."""
    command = [str(VENV_PYTHON), *arguments]
    return subprocess.run(command, cwd=str(ROOT), env={**os.environ, **environment}).returncode


def setup(arguments: list[str]) -> int:
    """install Tiny Audio into .venv (setup dev: with test tools)"""
    install(*arguments[:1])
    command = Path(os.path.relpath(VENV_PYTHON.parent / "tiny-audio", ROOT))
    print(f"ready: {command} --help")
    return 0


def quickstart(arguments: list[str]) -> int:
    """set up, train the nano recipe on this machine, and listen to it: about five minutes on two cores"""
    install()
    return run("-m", "tiny_audio", "train", *arguments)


def test(arguments: list[str]) -> int:
    """run the tests"""
    install("dev")
    # Two workers with a thread each; left alone, each would start a thread per core and they would fight.
    return run("-m", "pytest", "-n", "2", "--dist", "worksteal", "-q", *arguments, OMP_NUM_THREADS="1")


def format_code(arguments: list[str]) -> int:
    """format the code and sort its imports"""
    install("dev")
    run("-m", "ruff", "check", "--quiet", "--select", "I", "--fix", ".")
    return run("-m", "ruff", "format", ".", *arguments)


def lint(arguments: list[str]) -> int:
    """look for mistakes, and for code that is not formatted"""
    install("dev")
    return run("-m", "ruff", "check", ".", *arguments) or run("-m", "ruff", "format", "--check", ".")


def type_check(arguments: list[str]) -> int:
    """check the types"""
    install("dev")
    return run("-m", "mypy", *arguments)


def check(arguments: list[str]) -> int:
    """all of it: lint, types, tests (which read the documents too)"""
    return lint([]) or type_check([]) or test(arguments)


def bench(arguments: list[str]) -> int:
    """run the benchmarks one after another (bench --quick: minutes instead of hours)"""
    install()
    files = sorted((ROOT / "benchmarks").glob("*.py"))
    runnable = [file for file in files if "__main__" in file.read_text(encoding="utf-8")]
    codes = [run(str(file), *arguments) for file in runnable]
    return max(codes, default=0)


def kills(arguments: list[str]) -> int:
    """kill two trainings at 20 random moments each and compare them with ones that nobody killed (minutes)"""
    install("dev")
    return run("-m", "tests.train.kills", *arguments, OMP_NUM_THREADS="1")


def course(arguments: list[str]) -> int:
    """run every block of the course (course --slow: those that take minutes too), with outputs/nano if it is there"""
    install("dev")
    return run("docs/course/run_blocks.py", *arguments)


def docs(arguments: list[str]) -> int:
    """build the site of the documents in build/site; a broken link is an error (docs --serve: watch and reload)"""
    install("docs")
    if arguments[:1] == ["--serve"]:
        return run("-m", "mkdocs", "serve", *arguments[1:])
    return run("-m", "mkdocs", "build", "--strict", *arguments)


def notebooks(arguments: list[str]) -> int:
    """make a Jupyter notebook of each page of the course, in build/notebooks"""
    install("docs")
    return run("-m", "docs.course.make_notebooks", *arguments)


def clean(arguments: list[str]) -> int:
    """remove caches and builds; keeps .venv and outputs"""
    for name in CACHES:
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for folder in ("tiny_audio", "tests"):
        for cache in (ROOT / folder).rglob("__pycache__"):
            shutil.rmtree(cache, ignore_errors=True)
    return 0


def show_help(arguments: list[str]) -> int:
    """show this list"""
    print("make TARGET, or without make: python tasks.py TARGET\n")
    for name, target in TARGETS.items():
        print(f"  {name:<12} {target.__doc__}")
    return 0


TARGETS = {
    "setup": setup,
    "quickstart": quickstart,
    "test": test,
    "check": check,
    "bench": bench,
    "kills": kills,
    "course": course,
    "docs": docs,
    "notebooks": notebooks,
    "format": format_code,
    "lint": lint,
    "type-check": type_check,
    "clean": clean,
    "help": show_help,
}


def main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "help"
    if name not in TARGETS:
        print(f'no target "{name}"; there are: {", ".join(TARGETS)}', file=sys.stderr)
        return 2
    try:
        return TARGETS[name](arguments[1:])
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
