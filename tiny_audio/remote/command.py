"""`tiny-audio deploy-runpod` and `tiny-audio remote-train`: this side of the connection."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from tiny_audio.errors import UserError
from tiny_audio.files import write_files
from tiny_audio.remote.ssh import CONNECTION_FAILED, Host, NoConnectionError, find_program
from tiny_audio.remote.state import TOLD

# Sent through standard input into the environment of the processes over there; never in arguments or files.
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "RUNPOD_API_KEY")
SETTINGS = ("RUNPOD_POD_ID", "RUNPOD_REST_BASE_URL", "RUNPOD_API_BASE_URL")
DEFAULT_BUDGET_HOURS = 24.0
NOT_DEPLOYED = 97
# Exit codes of a training that leaves something to fetch: its model did not get to the hub; its budget is spent.
FAILED_PUSH, INTERRUPTED, KILLED = 2, 130, 137
FETCHED_FILE = "remote.json"

HostOption = Annotated[str, typer.Option(help="Name or address, also user@host.", show_default=False)]
PortOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, help="Of its ssh. Left out: 22, or that of ~/.ssh/config.", show_default=False
    ),
]
UserOption = Annotated[
    str | None,
    typer.Option(
        help="Whom to log in as. Left out: root, as in RunPod's pods, or that of ~/.ssh/config.",
        show_default=False,
    ),
]
IdentityOption = Annotated[
    Path | None, typer.Option("--identity", "-i", help="Private key, as for ssh.", show_default=False)
]
OptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ssh-option", "-o", help="KEY=VALUE for ssh; may be given several times.", show_default=False
    ),
]
FolderOption = Annotated[
    str | None,
    typer.Option(
        help="Of Tiny Audio on the host. Left out: /workspace/tiny-audio, or in the home.", show_default=False
    ),
]

INSTALL_TOOLS = """
missing=; for p in rsync tmux; do command -v $p >/dev/null || missing="$missing $p"; done
[ -z "$missing" ] && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "not installed there:$missing" >&2; exit 1; }
echo "installing$missing"
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing; } >/dev/null
"""
# python3 comes first: on images for deep learning it is the one that has torch, which the environment then shares.
INSTALL = """
set -e
cd {folder}
stamp="$({{ cat pyproject.toml; echo {extras}; }} | cksum)"
if [ -x .venv/bin/python ] && [ "$(cat .venv/installed 2>/dev/null)" = "$stamp" ]; then
  echo "installed already, for the same pyproject.toml"; exit 0
fi
for p in python3 python3.13 python3.12 python3.11; do
  if $p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then python=$p; break; fi
done
if command -v uv >/dev/null; then
  [ -x .venv/bin/python ] || uv venv -q --system-site-packages --python "${{python:-3.12}}" .venv
  uv pip install -q --python .venv/bin/python -e {target}
elif [ -n "$python" ]; then
  if ! [ -x .venv/bin/pip ]; then
    $python -m venv --system-site-packages .venv || {{
      [ "$(id -u)" = 0 ] && apt-get install -y -qq python3-venv >/dev/null &&
      $python -m venv --clear --system-site-packages .venv
    }}
  fi
  .venv/bin/python -m pip install -q --disable-pip-version-check -e {target}
else
  echo "no Python 3.11, 3.12 or 3.13, and no uv, which would fetch one: https://docs.astral.sh/uv" >&2; exit 1
fi
echo "$stamp" > .venv/installed
echo "installed with $(.venv/bin/python --version) in $PWD/.venv"
"""


def deploy_command(
    host: HostOption = ...,  # type: ignore[assignment]
    port: PortOption = None,
    user: UserOption = None,
    identity: IdentityOption = None,
    ssh_option: OptionsOption = None,
    folder: FolderOption = None,
    extras: Annotated[str, typer.Option(help="Of Tiny Audio, to install: hub,wandb ...")] = "hub",
    allow_cpu: Annotated[
        bool, typer.Option("--allow-cpu", help="A machine without a GPU is only warned about.")
    ] = False,
) -> None:
    """Put the code on a rented machine, install it, and see whether its GPU works. Plain ssh: any host will do.

    What git tracks is sent, as it lies here; no outputs, no untracked files, no secrets. Again after a change: seconds.

    \b
    Examples:
      tiny-audio deploy-runpod --host 203.0.113.7 --port 22022
      tiny-audio deploy-runpod --host me@box --allow-cpu
    """
    if not re.fullmatch(r"[\w,-]*", extras):
        raise UserError(f"--extras {extras}: expected names with commas between them, such as hub,wandb")
    there = Host(host, port, user, identity, tuple(ssh_option or ()))
    root, files, commit = tracked_files()
    check_no_secrets(root, files)
    default = there.default_folder()  # the first connection, and the place to tell that there is none
    place = find_folder(there, folder or default)
    step(1, f"{there.described}: connected; {place}")
    code, running, _ = there.run(host_script(place, "running"))
    if code == 0 and running.strip() == "yes":
        raise UserError(
            f"a training is running in {place}, and would go on with other code: wait for its end, --stop it, or"
            " deploy to another --folder"
        )
    run_shown(there, INSTALL_TOOLS, "rsync and tmux could not be installed")
    step(2, f"code: {len(files)} files of {root.name} at {commit or 'no commit'}")
    send(there, root, files, place)
    step(3, "install (minutes, the first time)")
    target = shlex.quote(f".[{extras}]" if extras else ".")
    script = INSTALL.format(folder=place, target=target, extras=shlex.quote(extras))
    run_shown(there, script, "the installation failed")
    typer.echo(ask(there, place, "prune", {"files": files, "commit": commit}), nl=False)
    step(4, "machine")
    typer.echo(ask(there, place, "check", {"allow_cpu": allow_cpu}), nl=False)
    typer.echo(f"ready. next:  tiny-audio remote-train {connection_words(there, folder)} --config stage1")


def train_command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value pairs, as for train.", metavar="[OVERRIDE]...", show_default=False),
    ] = None,
    host: HostOption = ...,  # type: ignore[assignment]
    port: PortOption = None,
    user: UserOption = None,
    identity: IdentityOption = None,
    ssh_option: OptionsOption = None,
    folder: FolderOption = None,
    config: Annotated[
        str | None, typer.Option(help="The recipe: stage1, small ...", show_default=False)
    ] = None,
    budget_usd: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Cut the run, and stop the pod, when it has cost this.", show_default=False
        ),
    ] = None,
    usd_per_hour: Annotated[
        float | None,
        typer.Option(min=0.001, help="Price of the machine. Left out: RunPod is asked.", show_default=False),
    ] = None,
    budget_hours: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help=f"Cut the run after this. Left out: {DEFAULT_BUDGET_HOURS:g} on a pod.",
            show_default=False,
        ),
    ] = None,
    linger_minutes: Annotated[
        float,
        typer.Option(
            min=0, help="Time between the end of the run and the stop of the pod, to fetch the results."
        ),
    ] = 10.0,
    detach: Annotated[bool, typer.Option("--detach", help="Start, and do not wait.")] = False,
    attach: Annotated[bool, typer.Option("--attach", help="Follow the run that is going on.")] = False,
    logs: Annotated[bool, typer.Option("--logs", help="Print its whole log.")] = False,
    status: Annotated[bool, typer.Option("--status", help="How far, how long, how much.")] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Copy model, metrics and samples to here.")] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="End the training, which saves first, and stop the pod.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option(help="With --fetch: where to. Left out: outputs/NAME, as there.", show_default=False),
    ] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="With --fetch: these too, gigabytes.")
    ] = False,
) -> None:
    """Train on a host that deploy-runpod has set up, in tmux: the connection may go, the training stays.

    The log is shown live; Ctrl-C only stops showing it. At the end the results are fetched and the pod is stopped.
    With RUNPOD_API_KEY set, a watchdog on the pod stops it when the run ends, or when its budget is spent, whether this
    machine is awake or not. Without it you are warned: the pod bills until you stop it.

    HF_TOKEN, WANDB_API_KEY and RUNPOD_API_KEY are taken from the environment here into that of the processes there.

    \b
    Examples:
      tiny-audio remote-train --host 203.0.113.7 --port 22022 --config stage1 --budget-usd 12
      tiny-audio remote-train --host 203.0.113.7 --port 22022 --config stage1 training.learning_rate=1e-4
      tiny-audio remote-train --host 203.0.113.7 --port 22022 --status
      tiny-audio remote-train --host 203.0.113.7 --port 22022 --fetch
    """
    modes = {"--attach": attach, "--logs": logs, "--status": status, "--fetch": fetch, "--stop": stop}
    chosen = [name for name, given in modes.items() if given]
    starting = [overrides, config, budget_usd, usd_per_hour, budget_hours]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)}: one at a time")
    if chosen and (detach or any(value is not None for value in starting)):
        raise UserError(
            f"{chosen[0]} is about the run that was started: leave out the recipe, its overrides and budget"
        )
    if (to is not None or checkpoints) and chosen != ["--fetch"]:
        raise UserError("--to and --checkpoints go with --fetch")
    there = Host(host, port, user, identity, tuple(ssh_option or ()))
    request: dict[str, Any] = {}
    if not chosen:  # a mistake in the recipe is told before anything is asked of the host
        request = training_request(config, overrides or []) | {
            "budget_usd": budget_usd,
            "usd_per_hour": usd_per_hour,
            "budget_hours": budget_hours,
            "default_budget_hours": DEFAULT_BUDGET_HOURS,
            "linger_minutes": linger_minutes,
        }
        if request["saves_to_hub"]:
            from tiny_audio.publish.upload import check_token

            check_token()  # tonight, when the model is to be saved, is too late
    place = find_folder(there, folder)
    words = connection_words(there, folder)
    if not chosen:
        typer.echo(ask(there, place, "start", request), nl=False)
        if detach:
            typer.echo(f"follow it:  tiny-audio remote-train {words} --attach")
    elif fetch:
        fetch_results(there, place, to, checkpoints)
    elif status:
        typer.echo(ask(there, place, "status"), nl=False)
    elif stop:
        stop_run(there, place)
    if logs or attach:
        ask(there, place, "where")  # says what is missing: Tiny Audio, or a run
    if logs or attach or not (chosen or detach):
        code = show_log(there, place, "logs" if logs else "attach" if attach else "follow", words)
        if code in (0, FAILED_PUSH, INTERRUPTED, KILLED) and not logs:
            fetch_results(there, place, None, False)
        if code in (INTERRUPTED, KILLED):
            typer.echo(f"its checkpoints:  tiny-audio remote-train {words} --fetch --checkpoints --to DIR")
        raise typer.Exit(code or 0)


def stop_run(there: Host, place: str) -> None:
    """End the training and stop the pod, which may take the connection along."""
    ask(there, place, "where")
    typer.echo(
        "the training is asked to save and end: minutes, at most; Ctrl-C stops looking, not the stopping"
    )
    try:
        typer.echo(ask(there, place, "stop", {"environment": passed_environment()}), nl=False)
    except NoConnectionError as error:
        typer.echo(error.output, nl=False)
        if TOLD in error.output:
            return
        raise UserError(
            "The connection ended, as it does when a pod stops; the watchdog there goes on. Look again with --status:"
            " where nothing answers, RunPod's console shows whether the pod has stopped"
        ) from error


def training_request(config: str | None, overrides: list[str]) -> dict[str, Any]:
    """What is to be trained, checked here.  Raises UserError."""
    from tiny_audio.train.config import compose_config

    arguments = [*([f"+experiments={config}"] if config else []), *overrides]
    composed = compose_config(arguments)
    environment = passed_environment()
    if composed.training.hub_model_id and "HF_TOKEN" not in environment:
        raise UserError(
            "training.hub_model_id is set and HF_TOKEN is not: the host could not publish the model"
        )
    return {
        "arguments": arguments,
        "output_dir": composed.output_dir,
        "saves_to_hub": bool(composed.training.hub_model_id),
        "environment": environment,
    }


def passed_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in (*SECRETS, *SETTINGS) if os.environ.get(name)}


def show_log(there: Host, place: str, action: str, words: str) -> int | None:
    """Show the log as it comes; gives the exit code of the training, or None when the user has looked away."""
    # Standard input stays open for as long as we do; its end tells the other side that nobody reads any more.
    process = subprocess.Popen(there.command(host_script(place, action)), stdin=subprocess.PIPE)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        typer.echo(f"\nThe training goes on. Again:  tiny-audio remote-train {words} --attach")
        return None
    if code == CONNECTION_FAILED or code < 0:
        raise UserError(
            f"The connection is lost; the training goes on. Again:  tiny-audio remote-train {words} --attach"
        )
    return code


def fetch_results(there: Host, place: str, to: Path | None, checkpoints: bool) -> None:
    """Copy the run's folder to here.  Raises UserError where another run lies."""
    where = json.loads(ask(there, place, "where"))
    target = to or Path("outputs") / PurePosixPath(where["output_dir"]).name
    marker = target / FETCHED_FILE
    known = json.loads(marker.read_text(encoding="utf-8")).get("id") if marker.exists() else None
    if target.exists() and any(target.iterdir()) and known != where["id"]:
        raise UserError(f"{target} holds another run: rename it, or fetch with --fetch --to DIR")
    target.mkdir(parents=True, exist_ok=True)
    write_files({marker: json.dumps({"host": there.name, "id": where["id"]}) + "\n"})
    # Files and folders only: what a host sends must not point at anything of ours.
    options = [
        "-rtz",
        "--no-links",
        "--exclude=/.lock",
        *([] if checkpoints else ["--exclude=/checkpoints/"]),
    ]
    sources = [f"{there.rsync_address}:{where['output_dir']}/", f":{place}/.remote/train.log"]
    there.rsync([*options, *sources, f"{target}/"])
    names = sorted(path.name + "/" * path.is_dir() for path in target.iterdir() if path.name != FETCHED_FILE)
    typer.echo(f"fetched to {target}: {', '.join(names)}")
    if (target / "model").is_dir():
        typer.echo(f"next:  tiny-audio transcribe {target / 'model'} my.wav")


def tracked_files() -> tuple[Path, list[str], str | None]:
    """The checkout that we are in: its root, the files that git tracks and that are there, its commit.

    Raises UserError: not in one.
    """
    git = [find_program("git")]
    top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True)
    root = Path(top.stdout.strip())
    if top.returncode != 0 or not (root / "tiny_audio" / "remote" / "host.py").is_file():
        raise UserError(
            "deploy-runpod sends the checkout that it is run in: git clone Tiny Audio, and cd into it"
        )
    listed = subprocess.run([*git, "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    files = [
        name
        for name in listed.decode().split("\0")
        if name and ((root / name).is_file() or (root / name).is_symlink())
    ]
    query = [*git, "ls-files", "-z", "--others", "--exclude-standard"]
    others = subprocess.run(query, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        typer.echo(f"not sent, because git does not track them: {shown}")
    described = subprocess.run(
        [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return root, files, described.stdout.strip() or None


def check_no_secrets(root: Path, files: list[str]) -> None:
    """Raises UserError where a file that is about to be sent holds one of the secrets."""
    secrets = [os.environ[name].encode() for name in SECRETS if len(os.environ.get(name, "")) >= 8]
    for name in files if secrets else []:
        if (root / name).is_symlink():  # sent as a link
            continue
        content = (root / name).read_bytes()
        if any(secret in content for secret in secrets):
            raise UserError(f"{name} holds one of {', '.join(SECRETS)}: take it out; nothing was sent")


def send(there: Host, root: Path, files: list[str], place: str) -> None:
    code, _, problems = there.run(f"mkdir -p {place}")
    if code != 0:
        raise UserError(f"{place} cannot be made on the host: {problems.strip()}")
    names = "".join(f"{name}\0" for name in files).encode()
    arguments = ["-ltpz", "--files-from=-", "--from0", f"{root}/", f"{there.rsync_address}:{place}/"]
    there.rsync(arguments, stdin=names)


def find_folder(there: Host, folder: str | None) -> str:
    """The folder on the host, which every script and rsync can name without quotes."""
    place = folder or there.default_folder()
    if not re.fullmatch(r"[\w.+@/][\w.+@/-]*", place) or "//" in place[1:]:
        raise UserError(f"--folder {place}: expected a path of letters, digits and ./_+@-, without spaces")
    return place.rstrip("/") or "/"


def host_script(place: str, action: str) -> str:
    return (
        f"cd {place} 2>/dev/null && [ -f tiny_audio/remote/host.py ] && [ -x .venv/bin/python ] || exit {NOT_DEPLOYED};"
        f" exec .venv/bin/python -m tiny_audio.remote.host {action}"
    )


def ask(there: Host, place: str, action: str, request: dict[str, Any] | None = None) -> str:
    """Have the host do something; gives what it printed.  Raises UserError: what the host's own one said."""
    code, output, problems = there.run(host_script(place, action), json.dumps(request or {}))
    if code == NOT_DEPLOYED:
        raise UserError(
            f"Tiny Audio is not in {place} on {there.name}: tiny-audio deploy-runpod puts it there"
        )
    if code != 0:
        sys.stdout.write(output)
        lines = [line for line in problems.splitlines() if line.strip()] or [f"exit code {code}"]
        raise UserError(lines[-1].removeprefix("error: "))
    return output


def run_shown(there: Host, script: str, problem: str) -> None:
    """Run a script whose output the user sees as it comes.  Raises UserError."""
    code = subprocess.run(there.command(script), stdin=subprocess.DEVNULL).returncode
    if code == CONNECTION_FAILED:
        raise NoConnectionError(f"the connection to {there.name} broke (ssh's words are above): run it again")
    if code != 0:
        raise UserError(f"{problem} on {there.name} (exit code {code}; its words are above)")


def connection_words(there: Host, folder: str | None) -> str:
    """The options that reach this host again."""
    words = ["--host", there.name]
    if there.port is not None:
        words += ["--port", str(there.port)]
    if there.user is not None:
        words += ["--user", there.user]
    if there.identity is not None:
        words += ["--identity", str(there.identity)]
    for option in there.options:
        words += ["--ssh-option", option]
    if folder is not None:
        words += ["--folder", folder]
    return shlex.join(words)


def step(number: int, text: str) -> None:
    typer.echo(f"[{number}/4] {text}")
