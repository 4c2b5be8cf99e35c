"""`tiny-audio verify-setup` and `tiny-audio download-samples`."""

from __future__ import annotations

from typing import Annotated

import typer


def verify_setup(
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: the verdict and all findings.")
    ] = False,
) -> None:
    """Tell whether this machine is ready, what is missing, and the line to type for each.

    Checks Python, packages, devices, memory, disk, audio formats, the embedded corpus, the recipes, a training run of
    two steps, the hub and your token (which is never shown). Needs no network. Exit code 0: ready; 1: not ready.

    \b
    Examples:
      tiny-audio verify-setup
      python -m tiny_audio.setup          the same, where tiny-audio itself does not start
    """
    from tiny_audio.setup.report import verify

    if not verify(as_json):
        raise typer.Exit(1)
