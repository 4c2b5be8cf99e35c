"""What a result depended on besides its settings: the commit of the code, and the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path


def git_hash() -> str | None:
    """The commit of the code, with `-dirty` behind it when files differ from it; None outside a repository.

    $TINY_AUDIO_GIT_HASH says it where the code was sent to without its repository.
    """
    if os.environ.get("TINY_AUDIO_GIT_HASH"):
        return os.environ["TINY_AUDIO_GIT_HASH"]
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            or None
        )
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> str:
    """The device in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    processors = Path("/proc/cpuinfo")
    text = processors.read_text(encoding="utf-8") if processors.exists() else ""
    names = re.findall(r"model name\s*: (.+)", text)
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
