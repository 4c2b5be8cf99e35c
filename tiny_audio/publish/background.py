"""Checkpoints to the hub beside training, which never waits for them and never fails because of them.

Each upload is a process of its own: it has its own memory and gets what processor time training leaves over. The newest
finished checkpoint is sent; while one is under way, others are passed over.
"""

from __future__ import annotations

import copy
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_audio.errors import UserError

SKELETON = ".push"  # in the run's folder: all of a model but its weights
LOG_FILE = "push.log"
NICENESS = 15


class BackgroundPush:
    """Sends checkpoints of a run to a private repository.

    Args:
        repo_id: USER/NAME. folder: the run's. model, processor: of the run.
        say: gets a line of text for the user, from another thread.
    """

    def __init__(self, repo_id: str, folder: Path, model: Any, processor: Any, say: Callable[[str], None]):
        self.repo_id, self.folder, self.say = repo_id, folder, say
        self.skeleton = folder / SKELETON
        self.process: subprocess.Popen | None = None
        self.watcher: threading.Thread | None = None
        self.closing = False
        try:
            save_skeleton(model, processor, self.skeleton)
            self._start(None)  # makes the repository: what is wrong with the token is known at once
        except Exception as error:  # whatever it is, training is worth more
            self.say(f"training goes on, but nothing will be pushed to {repo_id}: {error}")

    def offer(self, checkpoint: Path) -> None:
        """Send a finished checkpoint, unless an earlier one is still under way. Returns at once."""
        if self.watcher is not None and self.watcher.is_alive():
            return
        try:
            self._start(checkpoint)
        except Exception as error:
            self.say(f"{checkpoint.name} is not pushed: {error}")

    def close(self) -> None:
        """End an upload that is under way; a commit is whole or not there."""
        self.closing = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
        if self.watcher is not None:
            self.watcher.join()

    def _start(self, checkpoint: Path | None) -> None:
        what = [] if checkpoint is None else [str(self._with_weights(checkpoint))]
        with (self.folder / LOG_FILE).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, self.repo_id, str(self.folder), *what],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for training, which saves first
            )
        self.watcher = threading.Thread(target=self._watch, args=(self.process, checkpoint), daemon=True)
        self.watcher.start()

    def _with_weights(self, checkpoint: Path) -> Path:
        """The skeleton with a checkpoint's weights, which stay even when the checkpoint makes room for newer ones."""
        from tiny_audio.hub.asr_checkpoint import WEIGHTS_FILE
        from tiny_audio.publish.staging import link_or_copy

        target = self.skeleton / WEIGHTS_FILE
        target.unlink(missing_ok=True)
        link_or_copy(checkpoint / WEIGHTS_FILE, target)
        return self.skeleton

    def _watch(self, process: subprocess.Popen, checkpoint: Path | None) -> None:
        code = process.wait()
        if self.closing:
            return
        if code != 0:
            what = f"{checkpoint.name} was not pushed" if checkpoint else "pushing will not work"
            log = self.folder / LOG_FILE
            self.say(f"{what}; training goes on. {_last_line(log)} (more in {log})")
        elif checkpoint is not None:
            self.say(f"pushed {checkpoint.name} to {self.repo_id}")


def save_skeleton(model: Any, processor: Any, folder: Path) -> None:
    """A model folder without weights."""
    from tiny_audio.hub.asr_checkpoint import AUTO_MAP, CUSTOM_PIPELINES

    config = copy.deepcopy(model.config)
    config.auto_map, config.custom_pipelines = AUTO_MAP, CUSTOM_PIPELINES
    # A sharded model's class has another name in front.
    config.architectures, config.dtype = [type(model).__name__.removeprefix("FSDP")], model.dtype
    for part in (config, model.generation_config, processor):
        part.save_pretrained(folder)


def push_final(repo_id: str, model_folder: Path) -> str | None:
    """Publish the finished model, privately, as `tiny-audio push` does. Returns what to tell the user if it failed."""
    command = ["push", str(model_folder), "--repo-id", repo_id, "--private"]
    done = subprocess.run([sys.executable, "-m", "tiny_audio", *command])
    if done.returncode == 0:
        return None
    return (
        f"the model is in {model_folder} but not on the hub; try again with: tiny-audio {shlex.join(command)}"
    )


def push_checkpoint(repo_id: str, run_folder: Path, model_folder: Path | None) -> None:
    """In the process of its own: make the repository, and send one checkpoint without trying it out."""
    from tiny_audio.publish import upload
    from tiny_audio.publish.command import stage
    from tiny_audio.publish.given import Given
    from tiny_audio.publish.staging import OUR_FILES

    if hasattr(os, "nice"):
        os.nice(NICENESS)
    api, _ = upload.connect()
    upload.create(api, repo_id, private=True)
    if model_folder is not None:
        staged = run_folder / f"{SKELETON}.staged"
        stage(model_folder, staged, repo_id, Given(), [], in_training=True)
        upload.commit_folder(api, repo_id, staged, OUR_FILES, "A checkpoint of a training that is going on")


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


if __name__ == "__main__":
    try:
        push_checkpoint(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3:] else None)
    except UserError as problem:
        sys.exit(str(problem))
