"""What the machine has: Python, packages, devices, memory, disk, the hub. Each check yields findings.

Every import that may fail is inside the check that it would break; see isolation.py.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tiny_audio
from tiny_audio.files import MODELS_VARIABLE
from tiny_audio.setup.findings import HUB_WORDS, Finding, Level
from tiny_audio.setup.isolation import Report, one_line
from tiny_audio.setup.requirements import (
    EXTRAS,
    import_name,
    install_line,
    problem_of,
    read_requirements,
)

GIGABYTE = 1e9
# Estimates with room to spare: of a training and the processes that prepare its batches; of models and a run's files.
NANO_MEMORY_GB, SMALL_MEMORY_GB = 1.5, 4.0
NANO_DISK_GB, SMALL_DISK_GB = 0.5, 4.0
HUB_SECONDS = 5.0


def python(report: Report) -> Iterator[Finding]:
    """The interpreter, and where Tiny Audio lies: the wrong environment is the commonest fault of all."""
    where = "a virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    found = f"{platform.python_version()} at {sys.executable} ({where})"
    remedy = "install Python 3.13 (https://www.python.org/downloads/), then: make setup"
    from packaging.specifiers import SpecifierSet

    wanted = read_requirements().python
    if SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        yield Finding("Python", Level.OK, found)
    else:
        yield Finding("Python", Level.FAILED, f"{found}; wanted {wanted}", remedy)
    yield Finding(
        "Tiny Audio", Level.OK, f"{tiny_audio.__version__} at {Path(tiny_audio.__file__).resolve().parent}"
    )


def packages(report: Report) -> Iterator[Finding]:
    """Versions of what Tiny Audio needs, and whether each can be imported."""
    import importlib

    core = read_requirements().core
    broken = 0
    for requirement in core:
        problem = problem_of(requirement)
        bounded = f"{requirement.name}{requirement.specifier}"
        remedy = install_line(bounded)
        if problem is None:
            report(f"import {requirement.name}")
            try:
                importlib.import_module(import_name(requirement))
                continue
            except Exception as error:
                problem = f"{requirement.name} cannot be imported: {one_line(error)}"
                remedy = install_line(bounded, again=True)
        broken += 1
        yield Finding("package", Level.FAILED, problem, remedy)
    if not broken:
        yield Finding("packages", Level.OK, f"all {len(core)} are there, in versions that fit")


def extras(report: Report) -> Iterator[Finding]:
    """What few people need: one line for each extra."""
    for name, requirements in read_requirements().extras.items():
        problems = [problem for problem in map(problem_of, requirements) if problem]
        purpose = EXTRAS.get(name, "")
        if problems:
            more = f" and {len(problems) - 2} more" if len(problems) > 3 else ""
            shown = problems if len(problems) <= 3 else problems[:2]
            found = f"{purpose}: {', '.join(shown)}{more}"
            yield Finding(f"extra {name}", Level.OPTIONAL, found, install_line(f"[{name}]"))
        else:
            yield Finding(f"extra {name}", Level.OK, purpose)


def devices(report: Report) -> Iterator[Finding]:
    """What computes, and whether it does."""
    report("import torch")
    import torch

    report("a product on the CPU")
    torch.ones(64, 64).mm(torch.ones(64, 64))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "CPU", Level.OK, f"{cores} cores, {torch.get_num_threads()} threads of torch {torch.__version__}"
    )
    report("CUDA")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _cuda_device(torch, index)
    elif shutil.which("nvidia-smi"):
        has_cuda = torch.version.cuda is not None
        why = f"its driver does not suit CUDA {torch.version.cuda}" if has_cuda else "this torch has no CUDA"
        yield Finding(
            "GPU",
            Level.OPTIONAL,
            f"there is an NVIDIA GPU, but {why}: training would run on the CPU",
            "update the NVIDIA driver; nvidia-smi should list the GPU"
            if has_cuda
            else "reinstall torch with the line that https://pytorch.org/get-started/locally gives for this machine",
            "the GPU",
        )
    elif torch.backends.mps.is_available():
        report("Apple GPU")
        torch.ones(64, 64, device="mps").mm(torch.ones(64, 64, device="mps")).cpu()
        yield Finding("GPU", Level.OK, "Apple GPU (MPS)")
    else:
        yield Finding("GPU", Level.OK, "none; nano and small train on the CPU, stage1 wants a rented GPU")


def _cuda_device(torch: object, index: int) -> Finding:
    from typing import Any

    cuda: Any = torch.cuda  # type: ignore[attr-defined]
    facts = cuda.get_device_properties(index)
    found = f"{facts.name}, {facts.total_memory / GIGABYTE:.0f} GB"
    try:
        ones: Any = torch.ones(64, 64, device=f"cuda:{index}")  # type: ignore[attr-defined]
        ones.mm(ones).cpu()
        free = cuda.mem_get_info(index)[0]
        with cuda.device(index):
            bf16 = "bf16" if cuda.is_bf16_supported() else "no bf16: trains in fp32"
    except RuntimeError as error:
        return Finding(
            f"GPU {index}",
            Level.NANO_ONLY,
            f"{found}, but it does not compute: {one_line(error)}",
            "is another program using it (nvidia-smi)? Else without it: CUDA_VISIBLE_DEVICES= tiny-audio train",
            "the GPU",
        )
    return Finding(f"GPU {index}", Level.OK, f"{found} ({free / GIGABYTE:.0f} free), {bf16}")


def memory(report: Report) -> Iterator[Finding]:
    """Memory that programs may still take."""
    import psutil

    facts = psutil.virtual_memory()
    free, total = facts.available / GIGABYTE, facts.total / GIGABYTE
    limit = _container_limit()
    if limit is not None and limit / GIGABYTE < total:
        total = limit / GIGABYTE
        free = min(free, total - _container_use() / GIGABYTE)
    found = f"{free:.1f} of {total:.1f} GB free"
    if free < NANO_MEMORY_GB:
        wanted = f"{found}; the nano recipe needs {NANO_MEMORY_GB:g}"
        yield Finding("memory", Level.FAILED, wanted, "close other programs, browsers first")
    elif free < SMALL_MEMORY_GB:
        wanted = f"{found}; the recipe small needs {SMALL_MEMORY_GB:g}"
        remedy = "close other programs before training small"
        yield Finding("memory", Level.NANO_ONLY, wanted, remedy, "memory for larger recipes")
    else:
        yield Finding("memory", Level.OK, found)


CGROUP = Path("/sys/fs/cgroup")


def _container_limit() -> int | None:
    """Bytes that this container may use; None without a limit, or where there are no such limits."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((CGROUP / name).read_text(encoding="ascii"))
        except (OSError, ValueError):  # ValueError: "max"
            continue
    return None


def _container_use() -> int:
    """Bytes in use that cannot be given back; the files that Linux keeps in memory can."""
    try:
        use = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = (CGROUP / "memory.stat").read_text(encoding="ascii")
        return use - sum(
            int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")
        )
    except (OSError, ValueError):
        return 0


def folders(report: Report) -> Iterator[Finding]:
    """Whether the places that Tiny Audio writes to can be written, and have room."""
    yield _folder(
        "this folder", Path.cwd(), "cd to a folder of your own, or say output_dir=FOLDER to each run"
    )
    report("temporary files")
    remedy = "set TMPDIR (Windows: TEMP) to a folder that can be written"
    try:
        yield _folder("temporary files", Path(tempfile.gettempdir()), remedy)
    except FileNotFoundError as error:  # none of those that Python tries can be written
        yield Finding("temporary files", Level.FAILED, one_line(error), remedy)
    report("downloads")
    from huggingface_hub.constants import HF_HOME

    downloads = _folder("downloads", Path(HF_HOME), "set HF_HOME to a folder with room that can be written")
    if downloads.level == Level.FAILED:
        downloads = Finding("downloads", Level.NANO_ONLY, downloads.found, downloads.remedy, HUB_WORDS)
    yield downloads


def _folder(subject: str, folder: Path, remedy: str) -> Finding:
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(1 << 16))  # a full disk takes an empty file
            file.flush()
    except OSError as error:
        return Finding(
            subject, Level.FAILED, f"{folder} cannot be written: {error.strerror or error}", remedy
        )
    free = shutil.disk_usage(there).free / GIGABYTE
    found = f"{folder}: {free:,.1f} GB free"
    if free < NANO_DISK_GB:
        return Finding(
            subject,
            Level.FAILED,
            f"{found}; the nano recipe wants {NANO_DISK_GB:g}",
            f"free some, or {remedy}",
        )
    if free < SMALL_DISK_GB:
        wanted = f"{found}; the recipe small wants {SMALL_DISK_GB:g}"
        return Finding(subject, Level.NANO_ONLY, wanted, f"free some, or {remedy}", "room for larger recipes")
    return Finding(subject, Level.OK, found)


def models(report: Report) -> Iterator[Finding]:
    """The folder of models, for machines without a hub."""
    named = os.environ.get(MODELS_VARIABLE)
    if not named:
        return
    folder = Path(named).expanduser()
    subject = MODELS_VARIABLE
    if not folder.is_dir():
        remedy = f"set {MODELS_VARIABLE} to the folder that holds OWNER/NAME/config.json, or unset it"
        yield Finding(subject, Level.OPTIONAL, f"there is no folder {folder}", remedy, "local models")
        return
    found = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob("*/*/config.json"))
    if found:
        yield Finding(subject, Level.OK, f"{folder}: {', '.join(found)}")
    else:
        yield Finding(
            subject,
            Level.OPTIONAL,
            f"{folder} holds no OWNER/NAME/config.json",
            f"put models there as {folder}/OWNER/NAME",
            "local models",
        )


def hub(report: Report) -> Iterator[Finding]:
    """Whether the model hub answers, and whose token this is.

    Neither the token nor an error that may hold it is ever shown.
    """
    from huggingface_hub import constants, get_token

    from tiny_audio.setup.trials import recipes_of_local_models

    endpoint = constants.ENDPOINT
    problem: str | None
    if constants.HF_HUB_OFFLINE:
        problem, remedy = "switched off by HF_HUB_OFFLINE", "unset HF_HUB_OFFLINE"
    else:
        report("asking the hub")
        problem = _problem_of_hub(endpoint)
        remedy = (
            "is this machine online? Behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT; "
            f"with models in a folder set {MODELS_VARIABLE}"
        )
    if problem is None:
        yield Finding("hub", Level.OK, f"{_without_password(endpoint)} answers")
    else:
        report("looking for local models")
        local = ["nano", *(name for name in recipes_of_local_models() if name != "nano")]
        found = f"{problem}; recipes whose models are here: {', '.join(local)}"
        level = Level.OPTIONAL if len(local) > 1 else Level.NANO_ONLY
        yield Finding("hub", level, found, remedy, HUB_WORDS)
    token = get_token()
    if token is None:
        found = "none; only needed to publish, and for models behind terms"
        yield Finding("token", Level.OPTIONAL, found, "hf auth login")
    elif problem is not None:
        yield Finding("token", Level.OK, "there is one (not tried: no hub)")
    else:
        report("asking whose token this is")
        yield _owner_of(token, endpoint)


def _problem_of_hub(endpoint: str) -> str | None:
    import httpx

    shown = _without_password(endpoint)
    try:
        # A mirror may lack this model, or want a token for it: what counts is that a hub answers.
        address = f"{endpoint}/api/models/openai/whisper-base"
        answer = httpx.get(address, timeout=HUB_SECONDS, follow_redirects=True)
        if answer.status_code >= 500:
            return f"{shown} is out of order ({answer.status_code})"
        answer.json()
    except ValueError:  # a page to log in to the network of a hotel
        return f"something else than a hub answers at {shown}"
    except Exception as error:
        return f"{shown} does not answer ({type(error).__name__})"
    return None


def _owner_of(token: str, endpoint: str) -> Finding:
    import httpx
    from huggingface_hub.utils import build_hf_headers

    try:
        headers = build_hf_headers(token=token)
        answer = httpx.get(f"{endpoint}/api/whoami-v2", headers=headers, timeout=HUB_SECONDS)
        if answer.status_code == 401:
            refused = "there is one, but the hub does not take it"
            return Finding("token", Level.OPTIONAL, refused, "hf auth login", "publishing")
        about = answer.json()
        role = about["auth"]["accessToken"]["role"]
        return Finding("token", Level.OK, f"of {about['name']}, role: {role}")
    except Exception as error:  # its words may hold the token
        return Finding("token", Level.OK, f"there is one (not tried: {type(error).__name__})")


def _without_password(address: str) -> str:
    return re.sub("//[^/@]*@", "//", address)
