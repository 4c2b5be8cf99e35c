"""The loop: resuming bit-equal, accumulation, schedules, checkpoints that are whole, and what a run leaves behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml

from tests.tiny_models import noise, tiny_config
from tests.train.short_runs import assert_same, settings, weights
from tiny_audio.data.loader import TrainData
from tiny_audio.data.sources import open_sources
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_checkpoint import load_model
from tiny_audio.hub.asr_projectors import PROJECTORS
from tiny_audio.train import checkpoints
from tiny_audio.train import run as run_module
from tiny_audio.train.build import build_data, build_model
from tiny_audio.train.checkpoints import list_checkpoints
from tiny_audio.train.config import compose_config, config_to_yaml
from tiny_audio.train.loop import Trainer
from tiny_audio.train.optimizer import build_optimizer, learning_rate_factor
from tiny_audio.train.records import draw_loss, read_metrics
from tiny_audio.train.run import run

FULL_DISK = Path("/dev/full")

GOLDEN_NANO_LOSSES = [12.616, 8.917, 5.643, 7.490]  # ctc of two steps, then lm and ctc of the third


@pytest.fixture(scope="module")
def finished(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(settings(speech, folder))
    return folder


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    present = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "metrics.json",
        "checkpoints",
        "model",
        "loss.png",
        "samples.txt",
    } <= present
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) >= {
        "wer",
        "cer",
        "substitutions",
        "deletions",
        "insertions",
        "reference_words",
        "num_samples",
        "wer_ci95",
        "rtfx",
        "train_seconds",
        "steps",
        "audio_hours",
    }
    assert metrics["steps"] == 6 and metrics["num_samples"] == 30
    assert metrics["wer"] == pytest.approx(
        (metrics["substitutions"] + metrics["deletions"] + metrics["insertions"]) / metrics["reference_words"]
    )
    lines = read_metrics(finished / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert ["dev_wer" in line for line in lines] == [False, False, True, False, False, True]
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["training"]["max_steps"] == 6
    assert config["run"]["packages"]["torch"] == version("torch")
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    model, _ = load_model(str(finished / "model"), device="cpu")
    assert_same(
        {n: w for n, w in model.state_dict().items() if n != "lm_head.weight"},
        weights(finished / "checkpoints/step-6"),
    )
    assert not [path for path in finished.rglob("*") if "partial" in path.name]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_is_bit_equal_to_never_stopped(
    speech: Path, finished: Path, tmp_path: Path, num_workers: int
) -> None:
    folder = tmp_path / "run"
    workers = f"training.num_workers={num_workers}"
    augmented = settings(speech, folder, workers)

    class Stop(Exception):
        pass

    def stop_after_step_5(line: dict[str, Any]) -> None:
        if line["step"] == 5:
            raise Stop

    stock = Trainer.__init__

    def stopping(self: Trainer, *arguments: Any, **named: Any) -> None:
        report = named["report"]
        named["report"] = lambda line: (report(line), stop_after_step_5(line))
        stock(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "__init__", stopping)
        run(augmented)
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step-2", "step-4"]
    run(settings(speech, folder, workers, "training.resume=true"))
    assert_same(weights(folder / "checkpoints/step-6"), weights(finished / "checkpoints/step-6"))
    strip = (
        "audio_seconds_per_second",
        "train_seconds",
        "utilization",
        "data_wait_share",
        "tflops",
        "seconds_left",
    )
    whole, resumed = (
        [{k: v for k, v in line.items() if k not in strip} for line in read_metrics(f / "metrics.jsonl")]
        for f in (finished, folder)
    )
    assert resumed == whole


def test_the_model_is_saved_before_its_window_is_settled(
    speech: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong there costs no model; what comes out of it is in the model's folder."""
    _, processor = load_model(str(finished / "model"), device="cpu")
    assert processor.window_seconds == json.loads((finished / "metrics.json").read_text())["window_seconds"]

    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError

    for chosen in (fail, lambda *arguments: (7.0, {7.0: 0.5})):
        monkeypatch.setattr(run_module, "choose_window", chosen)
        with suppress(ZeroDivisionError):
            run(settings(speech, tmp_path / "run", "training.max_steps=1", "ctc.alone_share=0"))
        _, processor = load_model(str(tmp_path / "run/model"), device="cpu")
    assert processor.window_seconds == 7.0


def test_same_seed_gives_the_same_losses_and_another_seed_others(
    speech: Path, finished: Path, tmp_path: Path
) -> None:
    run(settings(speech, tmp_path / "again"))
    run(settings(speech, tmp_path / "other", "seed=43"))
    whole, again, other = (
        [line["loss"] for line in read_metrics(f / "metrics.jsonl")]
        for f in (finished, tmp_path / "again", tmp_path / "other")
    )
    assert again == whole
    assert other != whole


def test_golden_losses_of_the_nano_recipe(tmp_path: Path) -> None:
    """The recipe as it is shipped, three steps on the dev voices. New figures here want a reason in docs/LOG.md."""
    overrides = ["data.train=corpus:dev", "training.max_steps=3", "training.logging_steps=1"]
    config = compose_config([*overrides, "training.num_workers=0"])
    model, processor = build_model(config)
    data = build_data(config, open_sources(config.data.train), processor)
    lines: list[dict[str, Any]] = []
    Trainer(config, model, data, tmp_path, report=lines.append).run()
    losses = [round(line[key], 3) for line in lines for key in ("lm_loss", "ctc_loss") if key in line]
    assert losses == pytest.approx(GOLDEN_NANO_LOSSES, abs=0.01)


@pytest.mark.parametrize("projector", sorted(set(PROJECTORS) - {"mlp"}))  # which all others here train
def test_every_projector_goes_through_a_whole_run(projector: str, speech: Path, tmp_path: Path) -> None:
    run(settings(speech, tmp_path / "run", f"model.projector_type={projector}", "training.max_steps=2"))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(math.isfinite(line["loss"]) and line["utilization"] > 0 for line in lines)
    assert ("balance_loss" in lines[-1]) == (projector == "moe")


def test_the_decoder_rests_at_first(speech: Path, tmp_path: Path) -> None:
    before = dict(build_model(settings(speech, tmp_path))[0].state_dict())
    share = ["ctc.weight=1", "ctc.alone_share=0.4", "training.max_steps=5"]
    run(settings(speech, tmp_path / "run", *share, "training.save_steps=1"))
    moved = [
        {name.split(".")[1] for name, value in weights(path).items() if not torch.equal(value, before[name])}
        for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    ]
    assert "audio_tower" in moved[1] and not {"language_model", "multi_modal_projector"} & moved[1]
    assert {"language_model", "multi_modal_projector", "audio_tower"} <= moved[2]
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert ["lm_loss" in line for line in lines] == [False, False, True, True, True]
    assert [line["step"] for line in lines if "dev_wer" in line] == [3, 5]


def test_accumulated_batches_make_the_step_of_one_big_batch(speech: Path, tmp_path: Path) -> None:
    """Gradients of the same thirty clips, in one batch and in thirty, are the same but for rounding."""

    def gradients(batch_seconds: float) -> dict[str, torch.Tensor]:
        config = settings(
            speech, tmp_path, f"training.batch_seconds={batch_seconds}", "training.max_grad_norm=1e9"
        )
        model, processor = build_model(config)
        data = TrainData(
            open_sources(str(speech)), processor, seed=1, batch_seconds=batch_seconds, max_clips=64
        )
        batches = [{**batch, "turn": turn} for turn, batch in enumerate(data.batches(0))]
        trainer = Trainer(config, model, data, tmp_path, report=lambda line: None)
        trainer.optimizer.step = lambda *a, **k: None
        trainer.optimizer.zero_grad = lambda *a, **k: None
        trainer.model.eval()
        trainer._step(batches)
        assert (len(batches) == 1) == (batch_seconds > 100)
        return {name: p.grad for name, p in trainer.bare_model.named_parameters() if p.grad is not None}

    whole, parts = gradients(1000), gradients(1.2)
    for name, gradient in whole.items():
        assert torch.allclose(gradient, parts[name], atol=1e-5), name


@pytest.mark.parametrize("fitting_clips", [5, 1])
def test_a_batch_that_does_not_fit_into_memory_is_taken_in_parts(
    speech: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, fitting_clips: int
) -> None:
    """The error comes in the backward pass, where some gradients are there already."""

    def train(most_clips: int) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], list[int]]:
        config = settings(
            speech, tmp_path, "training.max_steps=2", "training.batch_seconds=8", "ctc.alone_share=0"
        )
        config.training.gradient_accumulation_steps = 2
        model, processor = build_model(config)
        data = build_data(config, open_sources(config.data.train), processor)
        lines: list[dict[str, Any]] = []
        trainer = Trainer(config, model, data, tmp_path, report=lines.append)
        backward, sizes = trainer.accelerator.backward, []

        def run_out(loss: torch.Tensor) -> None:
            backward(loss)
            sizes.append(clips[-1])
            if clips[-1] > most_clips:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        clips: list[int] = []
        trainer.model.register_forward_pre_hook(
            lambda module, given, named: clips.append(len(named["input_ids"])), with_kwargs=True
        )
        trainer.accelerator.backward = run_out
        trainer.run()
        return dict(trainer.bare_model.state_dict()), lines, sizes

    whole, lines, _ = train(10**6)
    parts, lines_of_parts, sizes = train(fitting_clips)
    assert max(sizes) > fitting_clips and sizes[-1] <= fitting_clips
    for name, weight in whole.items():
        assert torch.allclose(weight, parts[name], atol=2e-4), name
    for line, same in zip(lines, lines_of_parts, strict=True):
        for key in ("loss", "lm_loss", "ctc_loss", "gradient_norm", "infeasible_ctc_targets"):
            assert line.get(key) == pytest.approx(same.get(key), rel=1e-3), key
    assert "out of memory in step 1" in caplog.records[0].getMessage()
    with pytest.raises(UserError, match=r"out of memory with a single clip: lower data.max_seconds"):
        train(0)


@pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no file that is always full")
def test_a_full_disk_keeps_the_last_checkpoint_whole(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = checkpoints.save_file

    def fill_disk(*arguments: Any, **named: Any) -> None:
        stock(*arguments, **named)
        if list_checkpoints(tmp_path / "run/checkpoints"):
            monkeypatch.setattr(checkpoints, "OPTIMIZER_FILE", str(FULL_DISK))

    monkeypatch.setattr(checkpoints, "save_file", fill_disk)
    with pytest.raises(UserError, match=r"no space left .* training\.resume=true"):
        run(settings(speech, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-2"]
    assert weights(tmp_path / "run/checkpoints/step-2")


def test_no_room_is_said_before_the_first_step(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(
        UserError, match=r"are needed and 1 B are free; free some, or name another output_dir"
    ):
        run(settings(speech, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_only_the_last_checkpoints_are_kept(speech: Path, tmp_path: Path) -> None:
    run(settings(speech, tmp_path / "run", "training.save_steps=1", "training.save_total_limit=2"))
    assert [path.name for path in list_checkpoints(tmp_path / "run/checkpoints")] == ["step-5", "step-6"]


def test_an_earlier_run_is_kept_beside(speech: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("earlier: true")
    result = run(settings(speech, folder, "training.max_steps=1"))
    assert result.previous_run == tmp_path / "run.1"
    assert (tmp_path / "run.1/config.yaml").read_text() == "earlier: true"
    stranger = tmp_path / "thesis"
    stranger.mkdir()
    (stranger / "chapter.tex").write_text("precious")
    with pytest.raises(UserError, match="holds files of something else"):
        run(settings(speech, stranger))
    assert (stranger / "chapter.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.resume=true"], "holds no checkpoint"),
        (["training.resume=nowhere"], "is no checkpoint"),
        (["data.train=nowhere"], "nowhere"),
        (["init_from=nowhere"], "nowhere"),
        (["model.encoder_model_name=./nowhere"], "nowhere"),
        (["data.min_seconds=5"], "no clip is left"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(
    speech: Path, tmp_path: Path, overrides: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=words) as caught:
        run(settings(speech, tmp_path / "run", *overrides))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_model_is_refused(speech: Path, finished: Path, tmp_path: Path) -> None:
    config = settings(
        speech, tmp_path / "run", f"training.resume={finished}/checkpoints/step-4", "model.stack_factor=3"
    )
    with pytest.raises(UserError, match="cannot resume from"):
        run(config)


def test_fine_tuning_starts_from_the_given_model(speech: Path, finished: Path, tmp_path: Path) -> None:
    run(
        settings(
            speech,
            tmp_path / "run",
            f"init_from={finished}/model",
            "training.max_steps=1",
            "training.learning_rate=1e-12",
            "training.muon_learning_rate=1e-12",
        )
    )
    left, right = weights(tmp_path / "run/model"), weights(finished / "model")
    assert left.keys() == right.keys()
    assert all(torch.allclose(left[name], right[name], atol=1e-6) for name in left)


def test_schedule_warms_up_and_ends_at_the_floor() -> None:
    config = tiny_config(
        "training.warmup_steps=10", "training.max_steps=110", "training.min_learning_rate_ratio=0.1"
    ).training
    factors = [learning_rate_factor(step, config) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == pytest.approx(1.0)
    assert factors[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[60] == pytest.approx(0.55, abs=0.01)


def test_parts_have_their_own_learning_rates_and_norms_no_decay() -> None:
    config = tiny_config(
        "training.encoder_learning_rate=1e-5",
        "training.decoder_learning_rate=2e-5",
        "training.learning_rate=3e-5",
        "training.weight_decay=0.1",
    )
    model, _ = build_model(config)
    rates = {}
    for group in build_optimizer(model, config.training).param_groups:
        for parameter in group["params"]:
            rates[parameter] = (group["lr"], group["weight_decay"])
    assert rates[model.model.audio_tower.conv1.weight] == (1e-5, 0.1)
    assert rates[model.model.audio_tower.conv1.bias] == (1e-5, 0.0)
    assert rates[model.model.language_model.norm.weight] == (2e-5, 0.0)
    assert rates[model.model.multi_modal_projector.output_norm.weight] == (3e-5, 0.0)
    assert rates[model.ctc_head.weight] == (3e-5, 0.1)
    assert model.model.audio_tower.embed_positions.weight not in rates


def test_draw_loss_without_a_line_draws_nothing(tmp_path: Path) -> None:
    assert draw_loss(tmp_path, "empty") is None


def test_a_step_without_a_word_weighs_as_one_of_its_length(speech: Path, tmp_path: Path) -> None:
    """Clips longer than any speech make batches of their own: their losses are those of a text of their length."""
    folder = tmp_path / "noisy"
    shutil.copytree(speech, folder)
    with (folder / "manifest.jsonl").open("a") as manifest:
        for number in range(8):
            soundfile.write(folder / f"noise{number}.wav", noise(3.0, number), 16000)
            manifest.write("\n" + json.dumps({"audio": f"noise{number}.wav", "text": "", "seconds": 3.0}))
    run(settings(folder, tmp_path / "run", "training.max_steps=30", "data.test=null", "ctc.alone_share=0"))
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 30 and lines[-1]["skipped_steps"] == 0
    assert max(line["ctc_loss"] for line in lines) < 60  # six times as much where such a step is divided by 1


INTERRUPTED = """
import sys
from omegaconf import OmegaConf
from tiny_audio.train.config import check_config
from tiny_audio.train.run import run
config = OmegaConf.load(sys.argv[1])
config.pop("run", None)
try:
    run(check_config(config))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of other processes work differently there")
@pytest.mark.parametrize("ended_by", ["Ctrl-C", "SIGTERM to the whole group"])
def test_ctrl_c_saves_and_kill_loses_nothing(speech: Path, tmp_path: Path, ended_by: str) -> None:
    config = settings(
        speech,
        tmp_path / "run",
        "training.num_workers=1",
        "training.max_steps=100000",
        "training.save_steps=100000",
        "training.eval_steps=100000",
    )
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "config.yaml")],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    threading.Thread(target=process.stderr.read, daemon=True).start()
    deadline = time.time() + 120
    while len(read_metrics(tmp_path / "run/metrics.jsonl")) < 3 and time.time() < deadline:
        time.sleep(0.1)
    if ended_by == "Ctrl-C":
        os.kill(process.pid, signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 130
    (saved,) = list_checkpoints(tmp_path / "run/checkpoints")
    step = json.loads((saved / "state.json").read_text())["step"]
    assert step >= 3 and saved.name == f"step-{step}"
    resumed = run(
        settings(speech, tmp_path / "run", "training.resume=true", f"training.max_steps={step + 2}")
    )
    assert resumed.metrics["steps"] == step + 2
