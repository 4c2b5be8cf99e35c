"""The speed that runs reached, as `plan --measured` takes it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.train.short_runs import settings
from tiny_audio.cli import main
from tiny_audio.errors import UserError
from tiny_audio.provenance import hardware
from tiny_audio.train.measured import measured_speeds
from tiny_audio.train.plan import read_gpus
from tiny_audio.train.records import StepLog, read_metrics
from tiny_audio.train.run import run


def write_run(folder: Path, device: str, precision: str, rates: list[float]) -> Path:
    """What a run leaves of its speed: a line a second, of so many TFLOP/s."""
    folder.mkdir()
    made = OmegaConf.create({"run": {"hardware": device, "precision": precision}})
    OmegaConf.save(made, folder / "config.yaml")
    log = StepLog(folder / "metrics.jsonl", 0)
    for step, rate in enumerate(rates, start=1):
        log.write({"step": step, "loss": 1.0, "train_seconds": float(step), "tflops": rate})
    return folder


@pytest.fixture(scope="module")
def real_run(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without an evaluation at its end."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    result = run(settings(speech, folder, "data.test=null"))
    assert result is not None and result.evaluation is None and "wer" not in result.metrics
    return folder


def test_a_run_is_predicted_by_itself(real_run: Path) -> None:
    lines = [line for line in read_metrics(real_run / "metrics.jsonl") if "tflops" in line]
    seconds = [after["train_seconds"] - line["train_seconds"] for line, after in itertools.pairwise(lines)]
    work = sum(line["tflops"] * 1e12 * took for line, took in zip(lines[1:], seconds, strict=True))
    (speed,) = measured_speeds([real_run])
    assert (speed.device, speed.precision, speed.num_runs) == (hardware(), "float32", 1)
    assert speed.flops_per_second == pytest.approx(work / sum(seconds)) and speed.error > 0


def test_a_run_says_what_is_left(real_run: Path) -> None:
    lines = [line for line in read_metrics(real_run / "metrics.jsonl") if "loss" in line]
    left = [line["seconds_left"] for line in lines]
    assert left[-1] == 0 and all(earlier > 0 for earlier in left[:-1])
    assert lines[-1]["audio_hours"] * 3600 == pytest.approx(
        sum(4.0 for _ in lines), rel=0.5
    )  # steps of up to 4 s


def test_the_first_line_warms_up_and_one_run_says_how_its_lines_vary(tmp_path: Path) -> None:
    (speed,) = measured_speeds([write_run(tmp_path / "run", "NVIDIA A40", "bf16", [1, 60, 60, 60, 54, 66])])
    assert speed.flops_per_second == pytest.approx(60e12) and speed.error == pytest.approx(0.1)
    assert speed.said == "one run, whose lines vary by 10%"


def test_each_of_several_runs_is_predicted_by_the_others(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "one", "NVIDIA A40", "bf16", [0, 50, 50]),
        write_run(tmp_path / "two", "NVIDIA A40", "bf16", [0, 60, 60]),
        write_run(tmp_path / "other", "NVIDIA A40", "no", [5]),
    ]
    both, other = measured_speeds(folders)
    assert both.flops_per_second == pytest.approx(55e12) and both.error == pytest.approx(60 / 50 - 1)
    assert both.said == "2 runs; each is predicted by the others within 20%"
    assert (other.precision, other.flops_per_second) == ("float32", 5e12)


def test_the_plan_of_a_measured_machine(
    real_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert "NVIDIA A40" in {gpu.device for gpu in read_gpus().gpus}
    a40 = write_run(tmp_path / "a40", "NVIDIA A40", "bf16", [0, 149.7 * 0.30, 149.7 * 0.30])

    def rows(*options: str) -> dict[str, list[str]]:
        assert main(["plan", "+experiments=stage1", *options]) == 0
        output = capsys.readouterr().out
        lines = [line for line in output.splitlines() if line.startswith("│")]
        return {
            cells[0]: cells for cells in ([cell.strip() for cell in line.split("│")[1:-1]] for line in lines)
        }

    # A third less of the printed speed takes half as much time and money again.
    guessed, known = rows(), rows("--measured", str(a40), "--measured", str(real_run))
    assert float(known["A40"][6]) == pytest.approx(1.5 * float(guessed["A40"][6]), rel=0.01)
    assert known["A40"][5].endswith("±0%") and known["L4"] == guessed["L4"]
    assert known[f"{hardware()}, float32"][1:3] == ["-", "-"]


def test_folders_that_measured_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the folder of a run"):
        measured_speeds([tmp_path])
    with pytest.raises(UserError, match="says nothing of speed"):
        measured_speeds([write_run(tmp_path / "run", "NVIDIA A40", "bf16", [])])
