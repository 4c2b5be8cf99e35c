"""Command lines in documents: do the programs that they name take them?"""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
from pathlib import Path

import typer

from tiny_audio import cli
from tiny_audio.evaluate.providers import COMMAND_PROVIDER, PROVIDERS
from tiny_audio.remote.command import training_request
from tiny_audio.train.config import compose_config

ROOT = Path(__file__).resolve().parents[1]


def parses(command_line: str) -> bool:
    """Whether the program named takes this command line, found by its own parser and without running it."""
    program, *arguments = shlex.split(command_line, comments=True)
    if program == "make":
        return arguments[0] in runpy.run_path(str(ROOT / "tasks.py"))["TARGETS"]
    assert program == "tiny-audio"
    name, *arguments = arguments
    if name.startswith("-"):
        return name in ("--help", "--version")
    if name not in cli.COMMANDS:
        return False
    command = cli.COMMANDS[name]
    app = getattr(importlib.import_module(command.module), command.function)
    if not isinstance(app, typer.Typer):
        function, app = app, typer.Typer(add_completion=False)
        app.command()(function)
    parser = typer.main.get_command(app)
    context = parser.make_context(name, list(arguments))
    if hasattr(parser, "resolve_command"):  # a command of commands, such as leaderboard
        inner, parser, arguments = parser.resolve_command(context, arguments)
        context = parser.make_context(inner, arguments)
    if name in ("train", "plan", "cache-features"):
        compose_config(context.params["overrides"] or [])
    if name == "remote-train" and (context.params["config"] or context.params["overrides"]):
        training_request(context.params["config"], context.params["overrides"] or [])
    if provider := context.params.get("provider"):
        return provider.partition(":")[0] in {*PROVIDERS, COMMAND_PROVIDER}
    return True


def documented_commands(document: Path) -> list[str]:
    """The lines of a document's shell blocks that call tiny-audio or make; pipes and redirections are left off."""
    blocks = re.findall(r"```bash\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [re.split(r" \| (?=\w)| > ", line)[0] for line in lines]
    return [command for command in commands if re.match(r"(tiny-audio|make) ", command)]
