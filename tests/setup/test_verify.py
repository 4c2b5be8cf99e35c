"""verify-setup: what each check finds, also where something is broken, and what all of it comes to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from huggingface_hub import constants
from packaging.requirements import Requirement

from tests.documented import ROOT
from tests.local_hub import LocalHub
from tiny_audio.setup import checks, isolation, report, requirements, trials
from tiny_audio.setup.findings import Finding, Level, is_ready, verdict
from tiny_audio.setup.isolation import Check, run_checks

OK, OPTIONAL, NANO_ONLY, FAILED = Level.OK, Level.OPTIONAL, Level.NANO_ONLY, Level.FAILED


def quiet(step: str) -> None:
    """Nobody listens to what a check does next."""


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


# The verdict ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "words", "ready"),
    [
        ([OK, OK], "READY. All checks passed!", True),
        ([OK, OPTIONAL], "READY, without: thing 1. You", True),
        ([OPTIONAL, NANO_ONLY, OK], "READY FOR THE NANO RECIPE ONLY, without: thing 0, thing 1. You", True),
        ([NANO_ONLY, FAILED, FAILED], "NOT READY: check 1, check 2. Mend", False),
    ],
)
def test_the_verdict_is_that_of_the_worst_finding(levels: list[Level], words: str, ready: bool) -> None:
    findings = [
        Finding(f"check {i}", level, "seen", without=None if level == OK else f"thing {i}")
        for i, level in enumerate(levels)
    ]
    assert verdict(findings).startswith(words) and is_ready(findings) == ready


FINDINGS = [
    Finding("package", FAILED, "torch is missing", 'pip install "torch>=2.9,<2.14"'),
    Finding("hub", NANO_ONLY, "silent [red]as it is[/red]", "go online " + "x" * 100, "the hub"),
    Finding("corpus", OK, "there"),
]


@pytest.mark.parametrize("with_rich", [True, False])
def test_the_table_has_every_finding_and_unbroken_remedies(
    with_rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not with_rich:
        for name in ("rich", "rich.console", "rich.table", "rich.text"):
            monkeypatch.setitem(sys.modules, name, None)  # what an import of a missing package finds
    monkeypatch.setattr(report, "run_checks", lambda checks, doing: FINDINGS)
    assert report.main() == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert (
        'pip install "torch>=2.9,<2.14"' in out and "silent [red]as it is[/red]" in out and "\x1b" not in out
    )
    assert any(line.endswith("go online " + "x" * 100) for line in lines)
    assert lines.index("To mend:") < lines.index("For more than nano:") and lines[-1].startswith(
        "NOT READY: package."
    )


# Checks in a process of their own ------------------------------------------------------------------------------------


def broken(name: str, limit_seconds: float = 30.0) -> Check:
    return Check(name, "tests.setup.broken_checks", name, OPTIONAL, f"what {name}", limit_seconds)


def test_a_check_that_breaks_costs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(isolation, "START_SECONDS", 10.0)
    steps: list[str] = []
    names = ["raises", "dies", "good", "misses", "leaves", "hangs", "good"]
    table = [broken(name, 1.0 if name == "hangs" else 30.0) for name in names]
    findings = list(run_checks(table, steps.append))
    assert [finding.subject for finding in findings] == [
        "raises",
        "dies",
        "dies",
        "good",
        "misses",
        "leaves",
        "hangs",
        "good",
    ]
    raises, said, dies, good, misses, leaves, hangs, again = findings
    assert raises.found == "RuntimeError: two lines with hf_... in them" and raises.without == "what raises"
    assert said.level == OK and dies.found == "import torch ended the program (exit code 77)"
    assert dies.level == OPTIONAL and dies.remedy and '--force-reinstall --no-deps "torch' in dies.remedy
    assert good == again == Finding("good", OK, "as it should be", "nothing to do", "nothing")
    assert (
        misses.found == "no_such_package_at_all is missing" and misses.remedy == requirements.install_line()
    )
    assert leaves.found == "SystemExit: 3" and hangs.found == "no end of asking after 1 s"
    assert "dies: import torch" in steps


def test_a_broken_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """soundfile raises OSError where the library that it needs is not there."""
    (tmp_path / "soundfile.py").write_text("raise OSError('sndfile library not found')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    codecs = [check for check in report.CHECKS if check.subject == "codecs"]
    assert list(run_checks(codecs)) == [
        Finding("codecs", FAILED, "OSError: sndfile library not found", requirements.install_line())
    ]


def test_the_checks_are_there() -> None:
    import importlib

    for check in report.CHECKS:
        assert callable(getattr(importlib.import_module(check.module), check.function))


@pytest.mark.parametrize("module", ["findings", "isolation", "report", "requirements", "checks", "trials"])
def test_what_runs_first_needs_no_package(module: str) -> None:
    script = f"import sys, tiny_audio.setup.{module}; "
    script += "print([name for name in ('typer', 'rich', 'numpy', 'torch') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


# The machine ---------------------------------------------------------------------------------------------------------


def test_the_requirements_are_those_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = requirements.read_requirements()
    assert found.python == project["requires-python"]
    assert [str(row.name) for row in found.core] == [Requirement(row).name for row in project["dependencies"]]
    assert set(found.extras) == set(requirements.EXTRAS) == set(project["optional-dependencies"])
    assert "faster-whisper" in [row.name for row in found.extras["dev"]]  # of the extras that dev includes
    assert all(row.name != requirements.PROJECT for rows in found.extras.values() for row in rows)


def test_the_requirements_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tiny_audio-9.dist-info"
    folder.mkdir()
    about = [
        "Metadata-Version: 2.4",
        "Name: tiny-audio",
        "Version: 9",
        "Requires-Python: >=3.11",
        "Provides-Extra: serve",
        "Provides-Extra: all",
        "Requires-Dist: numpy>=2",
        "Requires-Dist: fastapi>=1; extra == 'serve'",
        "Requires-Dist: tiny-audio[serve]; extra == 'all'",
    ]
    (folder / "METADATA").write_text("\n".join(about) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = requirements.read_requirements(tmp_path / "no-project-file.toml")
    assert found.python == ">=3.11" and [row.name for row in found.core] == ["numpy"]
    assert [row.name for row in found.extras["all"]] == ["fastapi"]


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("numpy>=2", None),
        ("numpy<1.5", f"numpy is {metadata.version('numpy')}, wanted <1.5"),
        ("no-such-package>=1", "no-such-package is missing"),
    ],
)
def test_versions_are_compared(requirement: str, problem: str | None) -> None:
    assert requirements.problem_of(Requirement(requirement)) == problem


def test_a_missing_package_comes_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = requirements.Requirements(
        ">=3.99", [Requirement("no-such-package>=1,<2")], {"serve": [Requirement("no-such-server")]}
    )
    monkeypatch.setattr(checks, "read_requirements", lambda: wanted)
    monkeypatch.chdir(ROOT)
    missing = only(checks.packages(quiet))
    assert missing.level == FAILED and missing.remedy
    assert missing.remedy.endswith('-m pip install "no-such-package<2,>=1"') and not is_ready([missing])
    extra = only(checks.extras(quiet))
    assert extra.level == OPTIONAL and extra.found == "tiny-audio serve: no-such-server is missing"
    assert extra.remedy and extra.remedy.endswith('pip install -e ".[serve]"')
    assert next(checks.python(quiet)).level == FAILED


@pytest.mark.parametrize(("free_gb", "level"), [(1.0, FAILED), (2.0, NANO_ONLY), (50.0, OK)])
def test_memory_and_disk_are_judged(
    free_gb: float, level: Level, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shutil
    from types import SimpleNamespace

    import psutil

    memory = SimpleNamespace(available=free_gb * 1e9, total=64e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(checks, "CGROUP", tmp_path)  # no limit
    assert only(checks.memory(quiet)).level == level
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free_gb / 2.5 * 1e9))
    assert {finding.level for finding in list(checks.folders(quiet))[:2]} == {level}


def test_a_container_has_less_memory_than_its_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "CGROUP", tmp_path)
    for name, text in (("max", "900000000"), ("current", "800000000"), ("stat", "inactive_file 100000000\n")):
        (tmp_path / f"memory.{name}").write_text(text, encoding="ascii")
    finding = only(checks.memory(quiet))
    assert finding.level == FAILED and finding.found.startswith("0.2 of 0.9 GB free")


def test_a_folder_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hub"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    here, temporary, downloads = checks.folders(quiet)
    assert here.level == temporary.level == FAILED and downloads.level == NANO_ONLY
    assert here.found.endswith("cannot be written: Permission denied") and "output_dir=" in (
        here.remedy or ""
    )


def test_the_folder_of_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(checks.MODELS_VARIABLE, raising=False)
    assert list(checks.models(quiet)) == []
    monkeypatch.setenv(checks.MODELS_VARIABLE, str(tmp_path / "nowhere"))
    assert "there is no folder" in only(checks.models(quiet)).found
    monkeypatch.setenv(checks.MODELS_VARIABLE, str(tmp_path))
    assert only(checks.models(quiet)).level == OPTIONAL
    for name in ("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
    assert only(checks.models(quiet)).found.endswith(
        "HuggingFaceTB/SmolLM2-135M-Instruct, openai/whisper-base"
    )
    assert trials.recipes_of_local_models() == ["mac_minimal", "nano", "small"]


# The hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub() as local:
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setattr(constants, "ENDPOINT", local.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv(checks.MODELS_VARIABLE, raising=False)
        yield local


def look_at_hub(monkeypatch: pytest.MonkeyPatch, token: str | None) -> tuple[Finding, Finding]:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    first, second = checks.hub(quiet)
    assert token is None or token.strip() not in f"{first}{second}"
    return first, second


@pytest.mark.parametrize(
    ("token", "level", "words"),
    [
        (None, OPTIONAL, "none;"),
        ("hf_writer", OK, "of ada, role: write"),
        ("hf_wrong", OPTIONAL, "does not take it"),
        ("hf_with\nbreak", OK, "not tried"),  # httpx would show it in its error
    ],
)
def test_a_hub_that_answers(
    token: str | None, level: Level, words: str, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = look_at_hub(monkeypatch, token)
    assert first.level == OK and hub.url in first.found
    assert second.level == level and words in second.found


def test_a_hub_that_does_not(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "recipes_of_local_models", lambda: ["nano"])
    hub.server.RequestHandlerClass.route = lambda self: (200, {}, b"<html>Welcome to our hotel</html>")  # type: ignore[attr-defined]
    first, second = look_at_hub(monkeypatch, "hf_writer")
    assert (
        first.level == NANO_ONLY
        and "something else than a hub" in first.found
        and "not tried" in second.found
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://ada:secret@127.0.0.1:9")
    first, _ = look_at_hub(monkeypatch, None)
    assert (
        "http://127.0.0.1:9 does not answer (ConnectError); recipes whose models are here: nano"
        in first.found
    )
    monkeypatch.setattr(trials, "recipes_of_local_models", lambda: ["nano", "small"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    first, _ = look_at_hub(monkeypatch, None)
    assert first.level == OPTIONAL and first.remedy == "unset HF_HUB_OFFLINE" and "nano, small" in first.found


# Tiny Audio itself ---------------------------------------------------------------------------------------------------


def test_formats_are_heard_not_only_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = {"WAV": trials.FORMATS["WAV"], "MP3": trials.FORMATS["MP3"], "odd": ("WAV", "NO_SUCH", False)}
    monkeypatch.setattr(trials, "FORMATS", formats)
    monkeypatch.setattr(trials.shutil, "which", lambda program: None)
    odd, good, ffmpeg = trials.codecs(quiet)
    assert (odd.subject, odd.level, odd.without) == ("codec odd", OPTIONAL, "odd files")
    assert good.found == "WAV, MP3 are read" and ffmpeg.without == "M4A files"


def test_a_codec_that_gives_another_sound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy

    from tiny_audio.hub import asr_audio

    load_audio = asr_audio.load_audio
    monkeypatch.setattr(asr_audio, "load_audio", lambda source: numpy.tile(load_audio(source)[::2], 2))
    monkeypatch.setattr(trials.shutil, "which", lambda program: None)
    wav = next(trials.codecs(quiet))
    assert wav.level == FAILED and wav.found.endswith("comes back as 880 Hz and 1.00 s")


def test_a_damaged_corpus_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_audio.data import corpus

    assert "checksums agree" in only(trials.corpus(quiet)).found
    content = bytearray(corpus.PATH.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "digits.zip").write_bytes(content)
    monkeypatch.setattr(corpus, "PATH", tmp_path / "digits.zip")
    damaged = only(trials.corpus(quiet))
    assert damaged.level == FAILED and "is damaged" in damaged.found


def test_samples_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_audio.setup.samples import write_corpus_samples

    monkeypatch.chdir(tmp_path)
    assert only(trials.samples(quiet)).remedy == "tiny-audio download-samples"
    write_corpus_samples(Path("samples/digits"), 3)
    assert only(trials.samples(quiet)).found == f"recordings: 3 in {Path('samples/digits')}"


def test_the_whole_command(tmp_path: Path) -> None:
    """As a user runs it, without a hub: ready for nano, and nothing left behind."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "tiny_audio", "verify-setup", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    content = json.loads(result.stdout)
    found = {row["subject"]: row for row in content["findings"]}
    assert [row for row in content["findings"] if row["level"] == "FAILED"] == [] and content["ready"]
    assert result.returncode == 0 and result.stderr == ""
    assert found["trial training"]["found"].startswith("2 steps of nano, evaluated, saved, read back")
    assert {"Python", "packages", "CPU", "memory", "codecs", "corpus", "recipes", "hub", "token"} <= set(
        found
    )
    assert list(tmp_path.iterdir()) == []
