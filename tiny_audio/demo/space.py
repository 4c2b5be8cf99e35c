"""`tiny-audio deploy-space`: the demo's page as a Space on the hub, tried out as it will run there."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

import tiny_audio
from tiny_audio.errors import UserError

PACKAGE = Path(tiny_audio.__file__).parent
PARTS = (
    "demo/listening.py",
    "demo/page.css",
    "demo/page.js",
    "demo/page.py",
    "demo/transcript.py",
    "evaluate/wer.py",
    "subtitles.py",
)
# What a deployment may replace; anything else in the Space stays.
SPACE_FILES = (
    "README.md",
    "app.py",
    "requirements.txt",
    "example_*.flac",
    *(Path(part).name for part in PARTS),
)
PACKAGE_IMPORT = re.compile(r"from tiny_audio\.(?:\w+\.)*(\w+) import")
TRY_SPACE = Path(__file__).with_name("try_space.py")

README = """\
---
title: {title}
sdk: gradio
sdk_version: {sdk_version}
python_version: "{python_version}"
app_file: app.py
models:
  - {model}
---

Speak to [{model}]({endpoint}/{model}), a speech recogniser made with Tiny Audio. Recordings are sent to this Space,
written down there, and removed within hours.
"""
APP = '''\
"""The page of a Tiny Audio model. Written by `tiny-audio deploy-space`, {version}."""

from pathlib import Path

from listening import Listener
from page import build_page, launch
from transformers import pipeline

MODEL = {model}
EXAMPLES = {examples}

listeners = [
    Listener.of_pipeline(MODEL, pipeline("automatic-speech-recognition", model=MODEL, trust_remote_code=True))
]
demo = build_page(listeners, {{text: str(Path(__file__).with_name(name)) for text, name in EXAMPLES.items()}}, MODEL)

if __name__ == "__main__":
    launch(demo)
'''


def deploy_space_command(
    model_id: Annotated[str, typer.Argument(metavar="MODEL_ID", help="A published model: you/digits.")],
    space_id: Annotated[
        str, typer.Option(help="Where to: USER/NAME or ORGANISATION/NAME.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    private: Annotated[
        bool, typer.Option("--private", help="Only you (or the organisation) can see it.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write and try out what would be published, and publish nothing."),
    ] = False,
) -> None:
    """Publish the page of `tiny-audio demo` as a Space on the Hugging Face hub, for a model that is there.

    What is published is tried out first, in a process without Tiny Audio. It goes up in one commit.

    Log in with `hf auth login`, or set HF_TOKEN.

    \b
    Examples:
      tiny-audio deploy-space you/digits --space-id you/digits-demo --dry-run
      tiny-audio deploy-space you/digits --space-id you/digits-demo
    """
    from tiny_audio.demo.command import check_gradio
    from tiny_audio.publish import upload

    upload.check_repo_id(space_id)
    if Path(model_id).expanduser().exists():
        raise UserError(
            f"{model_id} is a folder of this machine, and a Space fetches its model from the hub. Publish it first:"
            f" tiny-audio push {model_id} --repo-id you/name"
        )
    upload.check_repo_id(model_id)
    check_gradio()
    connection = None if dry_run else upload.connect()
    folder = Path("outputs") / f"space_{space_id.replace('/', '_')}"
    stage(model_id, space_id, folder)
    said, heard = try_out(folder)
    typer.echo(f'{folder}: works without Tiny Audio.   said: "{said}"   heard: "{heard}"')
    if connection is None:
        typer.echo("Nothing was published: leave --dry-run out to do it.")
        return
    api, user = connection
    needs_token = upload.ask(f"reading {model_id}", lambda: api.repo_info(model_id)).private
    is_private = upload.create(api, space_id, private, "space")
    commit = upload.commit_folder(api, space_id, folder, SPACE_FILES, f"The page of {model_id}", "space")
    shutil.rmtree(folder)
    seen = "private" if is_private else "public"
    typer.echo(f"Published as {user}: {api.endpoint}/spaces/{space_id} ({seen}), commit {commit}")
    typer.echo("It installs what it needs now, which takes minutes; its page shows how far it is.")
    if needs_token:
        typer.echo(f"{model_id} is private: in the Space's settings, add a secret HF_TOKEN that may read it.")


def stage(model: str, space_id: str, folder: Path) -> None:
    """Write the Space's folder, whole or not at all, in place of what an earlier command left there.

    Args:
        model: hub id (or folder) of the model that the page loads.

    Raises:
        UserError: there is no such model, or it is none of ours; a file would give away a key.
    """
    from huggingface_hub import constants

    from tiny_audio.demo.command import write_examples
    from tiny_audio.hub.asr_checkpoint import read_config
    from tiny_audio.publish import staging

    try:
        architecture = read_config(model)
    except (OSError, ValueError) as error:
        raise UserError(f"{model} cannot be shown: {' '.join(str(error).split())}") from error
    needed = staging.REQUIREMENTS + (() if architecture.is_merged else staging.ADAPTER_REQUIREMENTS)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        examples = {text: Path(path).name for text, path in write_examples(partial).items()}
        readme = README.format(
            title=json.dumps(space_id.partition("/")[2]),
            sdk_version=metadata.version("gradio"),
            python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
            model=model,
            endpoint=constants.ENDPOINT,
        )
        app = APP.format(
            version=tiny_audio.__version__,
            model=json.dumps(model),
            examples=json.dumps(examples, indent=4),
        )
        texts = {"README.md": readme, "app.py": app, "requirements.txt": "".join(f"{n}\n" for n in needed)}
        for part in PARTS:
            text = (PACKAGE / part).read_text(encoding="utf-8")
            # There they lie side by side, without a package around them.
            texts[Path(part).name] = PACKAGE_IMPORT.sub(r"from \1 import", text)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8", newline="\n")
        staging.check_nothing_private(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def try_out(folder: Path) -> tuple[str, Any]:
    """What is said in a bundled clip, and what the staged Space hears. Raises UserError where it does not work."""
    from tiny_audio.publish.verify import run_outside, write_clip

    with tempfile.TemporaryDirectory(prefix="tiny-audio-space-", ignore_cleanup_errors=True) as name:
        clip = Path(name) / "clip.wav"
        said = write_clip(clip)
        arguments = (str(folder.resolve()), str(clip))
        try:
            return said, run_outside(TRY_SPACE, *arguments, folder=Path(name), what=str(folder))
        except UserError as error:
            raise UserError(
                f"{error}. If an older version published the model: tiny-audio push --code-only"
            ) from error
