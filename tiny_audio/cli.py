"""The command line: a table of commands, each imported only when it runs, and one line for every error.

Exit codes: 0 done; 2 something the user can mend (or, for transcribe, a file that failed); 130 stopped by
Ctrl-C; 141 nobody reads the output any more; 1 a defect of ours.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_audio
from tiny_audio.errors import UserError, nearest
from tiny_audio.files import is_disk_full

PROGRAM = "tiny-audio"
USER_ERROR, DEFECT, INTERRUPTED, BROKEN_PIPE = 2, 1, 130, 141


@dataclass(frozen=True)
class Command:
    """Where a command lives and what it does.

    `function` of `module` is a function with Typer annotations, or a Typer app.
    """

    module: str
    function: str
    summary: str


COMMANDS = {
    "verify-setup": Command(
        "tiny_audio.setup.command", "verify_setup", "Tell whether this machine is ready, and what to mend."
    ),
    "download-samples": Command(
        "tiny_audio.setup.command", "download_samples", "Get a few recordings to try things with."
    ),
    "train": Command(
        "tiny_audio.train.command", "train", "Train a recogniser; without arguments, the nano recipe."
    ),
    "plan": Command("tiny_audio.train.plan", "plan", "Tell what a run needs and costs, before you pay."),
    "cache-features": Command(
        "tiny_audio.train.command", "cache_features", "Run a frozen encoder once for all epochs of train."
    ),
    "data": Command("tiny_audio.data.command", "app", "Look at a set of speech before training on it."),
    "transcribe": Command(
        "tiny_audio.transcribe", "transcribe_command", "Write down what is said in audio files."
    ),
    "eval": Command(
        "tiny_audio.evaluate.command", "evaluate_command", "Measure the word error rate of a model."
    ),
    "compare": Command(
        "tiny_audio.evaluate.compare", "compare_command", "Tell whether one evaluated model beats another."
    ),
    "leaderboard": Command(
        "tiny_audio.evaluate.leaderboard", "app", "Add an evaluation to the leaderboard, check or show it."
    ),
    "push": Command("tiny_audio.publish.command", "push_command", "Publish a model on the Hugging Face hub."),
    "serve": Command(
        "tiny_audio.serve.command", "serve_command", "Serve a model to clients of OpenAI's transcription API."
    ),
    "demo": Command("tiny_audio.demo.command", "demo_command", "Open a page where you speak to a model."),
    "deploy-space": Command(
        "tiny_audio.demo.space",
        "deploy_space_command",
        "Publish that page as a Space on the Hugging Face hub.",
    ),
    "deploy-runpod": Command(
        "tiny_audio.remote.command", "deploy_command", "Put Tiny Audio on a rented machine, by ssh."
    ),
    "remote-train": Command(
        "tiny_audio.remote.command", "train_command", "Train there; stop the pod when done, or too dear."
    ),
}

EXAMPLES = (
    "tiny-audio train                                      the nano recipe: minutes on a CPU, no downloads",
    "tiny-audio transcribe outputs/nano/model my.wav",
    "tiny-audio eval outputs/nano/model",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: `sys.argv`) and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options_end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:options_end]
    arguments = [a for i, a in enumerate(arguments) if i >= options_end or a != "--debug"]
    _write_utf8_when_piped()
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more at exit; it must find somewhere to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = describe(error)
        if code == DEFECT and not debug:
            message += f" (a defect of tiny-audio, or of a library; {_keep_traceback(error)})"
        _print_error(message)
        return code


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"{PROGRAM} {tiny_audio.__version__}")
        return 0
    if name.startswith("-"):
        raise UserError(
            f"There is no option {name} before a command.{nearest(name, ('--help', '--version', '--debug'))}"
        )
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS) or f" Commands: {', '.join(COMMANDS)}."
        raise UserError(f'There is no command "{name}".{hint}')
    command = _load(name)

    import typer

    try:
        # Not `main()`, which would turn Ctrl-C and a closed pipe into exceptions and exits of its own.
        with command.make_context(f"{PROGRAM} {name}", arguments[1:]) as context:
            command.invoke(context)
    except typer.Exit as request:
        return request.exit_code
    return 0


def _load(name: str) -> Any:
    """The command as Typer's parser object."""
    command = COMMANDS[name]
    function = getattr(importlib.import_module(command.module), command.function)

    import typer

    app = function
    if not isinstance(app, typer.Typer):
        # Plain help text: the same in a terminal, a log and a pipe, and it starts without rich.
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(context_settings={"help_option_names": ["-h", "--help"]})(function)
    return typer.main.get_command(app)


def help_text() -> str:
    """What `tiny-audio --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    examples = "\n".join(f"  {example}" for example in EXAMPLES)
    return (
        f"Usage: {PROGRAM} COMMAND [ARGUMENTS]\n\n"
        "Train, measure and use your own speech recogniser.\n\n"
        f"Commands:\n{commands}\n\n"
        f"Examples:\n{examples}\n\n"
        "Options:\n"
        f"  --help     This text; after a command, what that command can do: {PROGRAM} eval --help\n"
        "  --version  The version.\n"
        "  --debug    With any command: the traceback of an error."
    )


def describe(error: Exception) -> tuple[str, int]:
    """What to tell the user about an error, and the exit code."""
    if isinstance(error, UserError):
        return str(error), USER_ERROR
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # a mistake in the arguments, found by Typer's parser
        return _describe_usage_error(error, format_message()), USER_ERROR
    if is_disk_full(error):
        place = getattr(error, "filename", None)
        return (
            f"No space left on the disk{f' for {place}' if place else ''}. Free some, or write elsewhere.",
            USER_ERROR,
        )
    if (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ):  # torch's own has that name
        return (
            f"Out of memory: {_one_line(error)}. Try smaller batches, shorter audio or a smaller model.",
            USER_ERROR,
        )
    if isinstance(error, OSError):
        return _describe_os_error(error), USER_ERROR
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("tiny_audio"):
        # verify-setup itself needs Typer; the module does not.
        return f"{_one_line(error)}: `python -m tiny_audio.setup` says what to install.", USER_ERROR
    if isinstance(error, ValueError) and _is_raised_by_us(error):
        return _one_line(error), USER_ERROR
    return f"{type(error).__name__}: {_one_line(error)}", DEFECT


def _describe_usage_error(error: Exception, message: str) -> str:
    context = getattr(error, "ctx", None)
    usage = "" if context is None else f' See "{context.command_path} --help".'
    return " ".join(message.split()).rstrip(".") + "." + usage


def _describe_os_error(error: OSError) -> str:
    if error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return _one_line(error)


def _is_raised_by_us(error: Exception) -> bool:
    """Whether the innermost frame of the traceback is ours: then the message is meant for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(tiny_audio.__file__).parent) + os.sep
    return bool(frames) and frames[-1].filename.startswith(package)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _keep_traceback(error: Exception) -> str:
    """Write the traceback to a file and say where: a long run cannot simply be repeated to see it."""
    lines = traceback.format_exception(error)
    try:
        handle, path = tempfile.mkstemp(prefix="tiny-audio-error-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError:
        return "run it again with --debug for the traceback"
    return f"its traceback: {path}"


def _print_error(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def _write_utf8_when_piped() -> None:
    """Transcripts in any language must survive a pipe on Windows and a console that lacks a letter."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
