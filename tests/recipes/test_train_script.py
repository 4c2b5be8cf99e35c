"""The command of recipes/small/train.sh is one that tiny-audio takes, and goes on with what was begun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from recipes.small import real_speech

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script is one for bash")

ROOT = Path(__file__).parents[2]

# Takes the command line as tiny-audio does, up to the point where it would read speech, and leaves a model as it does.
CHECKER = """import json, sys
from pathlib import Path
import numpy
from safetensors.numpy import save_file
from tiny_audio.train.config import compose_config
command, *overrides = sys.argv[1:]
config = compose_config(overrides)
sources = [source.removeprefix("speech/") for source in [*config.data.train, config.data.eval, config.data.test]]
how = "resumed" if config.training.resume is True else "anew"
start = json.loads(Path(config.init_from, "config.json").read_text()) if config.init_from else {}
strength = start.get("encoder_lora", {}).get("lora_alpha", 0)
print(json.dumps([command, config.output_dir, how, strength, config.encoder_lora.lora_alpha, sources]))
model = Path(config.output_dir, "model")
model.mkdir(parents=True, exist_ok=True)
Path(config.output_dir, "metrics.json").write_text("{}")
(model / "config.json").write_text(json.dumps({"encoder_lora": {"lora_alpha": config.encoder_lora.lora_alpha}}))
weights = {"model.audio_tower.fc1.lora_B.default.weight": numpy.float32([Path(config.output_dir).name])}
save_file(weights, model / "model.safetensors")
"""


def start_script(folder: Path) -> subprocess.CompletedProcess[str]:
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    checker = folder / "checker.py"
    checker.write_text(CHECKER, encoding="utf-8")
    tiny_audio = f'env PYTHONPATH="{ROOT}" "{sys.executable}" "{checker}"'
    for name, command in (("tiny-audio", tiny_audio), ("python", f'"{sys.executable}"')):
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)  # the script finds its own modules, from any folder
    script = ["bash", str(ROOT / "recipes/small/train.sh"), "speech", "out here"]
    return subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True)


def run_script(folder: Path) -> list[Any]:
    """Its runs: command, folder, resumed or anew, alpha that it starts from, alpha, sources."""
    (folder / "speech/kokoro/train").mkdir(parents=True, exist_ok=True)
    done = start_script(folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder and the runs of a script that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "out here", run_script(folder)


def test_it_trains_on_what_make_speech_writes_and_on_nothing_to_judge_with(
    whole: tuple[Path, list[Any]],
) -> None:
    people = {f"real/{one.name}/train" for one in real_speech.COLLECTIONS if not one.judge_only}
    for number, (*_, sources) in enumerate(whole[1], start=1):
        names = [source.partition("*")[0] for source in sources]
        more = {"kokoro/train"} if number == 3 else set()
        assert set(names[:-2]) == {"train", "words/train", "corpus:train"} | people | more
        assert all(name.startswith("real/") and name.endswith("/test") for name in names[-2:])
    assert {one.name for one in real_speech.COLLECTIONS if one.judge_only} == {
        "librivox",
        "drascula",
        "readers",
    }


def test_each_run_begins_where_the_one_before_ended_and_the_second_at_half_of_its_encoder(
    whole: tuple[Path, list[Any]],
) -> None:
    out, (first, second, third) = whole
    assert first[:4] == ["train", "out here/1", "anew", 0]
    assert second[:4] == ["train", "out here/2", "anew", first[4] / 2]
    assert third[:4] == ["train", "out here/3", "anew", second[4]]
    # Half the strength at half the alpha: the weights themselves are those of the first run.
    assert load_file(out / "half/model.safetensors")[
        "model.audio_tower.fc1.lora_B.default.weight"
    ].tolist() == [1.0]
    for run in (second, third):
        assert run[4] == run[3], "a config that says otherwise is not followed, and warned of"


def test_the_model_is_the_mean_of_the_last_two_with_a_weaker_encoder(whole: tuple[Path, list[Any]]) -> None:
    out, (*_, last) = whole
    assert load_file(out / "mean/model.safetensors")[
        "model.audio_tower.fc1.lora_B.default.weight"
    ].tolist() == [0.75 * 2.5]
    assert json.loads((out / "mean/config.json").read_text())["encoder_lora"]["lora_alpha"] == last[4]


def test_speech_that_is_missing_is_missed_at_once(tmp_path: Path) -> None:
    done = start_script(tmp_path)
    assert done.returncode == 1
    assert "speech/kokoro/train" in done.stderr
    assert not (tmp_path / "out here").exists()


def test_a_run_that_was_begun_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "out here/1/checkpoints/step-50").mkdir(parents=True)
    (tmp_path / "out here/2/checkpoints/.step-50.partial").mkdir(parents=True)  # killed while it was written
    assert [run[2] for run in run_script(tmp_path)] == ["resumed", "anew", "anew"]
    assert run_script(tmp_path) == [], "all are done"
    (tmp_path / "out here/2/metrics.json").unlink()  # killed when the model was there, but not measured yet
    (tmp_path / "out here/2/checkpoints/step-50").mkdir(parents=True)
    assert [run[1:3] for run in run_script(tmp_path)] == [["out here/2", "resumed"]]
