import json
from pathlib import Path

import pytest

from recipes.small.curves import draw, read_stage


def write_metrics(folder: Path, rate: float) -> Path:
    folder.mkdir()
    lines = [
        {"step": step, "ctc_loss": 3.0 / step, "audio_seconds_per_second": rate, "train_seconds": 60.0 * step}
        for step in (1, 2, 3)
    ]
    lines.insert(1, {"step": 1, "dev_wer": 0.5})  # a line of an evaluation has no losses
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_hours_are_those_that_were_heard(tmp_path: Path) -> None:
    rows = read_stage(write_metrics(tmp_path / "1-align", 30.0))
    assert [row["hours"] for row in rows] == pytest.approx([0.5, 1.0, 1.5])


def test_all_stages_are_in_one_picture(tmp_path: Path) -> None:
    stages = [write_metrics(tmp_path / name, 30.0) for name in ("1-align", "2-read")]
    draw(stages, tmp_path / "curves.svg")
    picture = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert "1-align" in picture and "2-read" in picture
