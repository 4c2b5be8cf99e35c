"""Training data that turns out unusable while it is read, and data that changes between two parts of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.data.clips import MelProcessor, write_manifest
from tests.train.short_runs import settings, write_speech
from tiny_audio.data.loader import TrainData
from tiny_audio.data.sources import open_sources
from tiny_audio.errors import UserError
from tiny_audio.train.checkpoints import Progress
from tiny_audio.train.loop import Trainer
from tiny_audio.train.run import run


def break_audio(folder: Path, numbers: list[int]) -> None:
    for number in numbers:
        (folder / f"{number}.wav").write_bytes(b"RIFF but not really")


def test_clips_that_cannot_be_read_are_counted_and_listed(tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech")
    break_audio(speech, [3, 8])
    result = run(
        settings(
            speech,
            tmp_path / "run",
            f"data.eval={speech}",
            "training.max_steps=12",
            "data.max_bad_fraction=0.2",
        )
    )
    assert result is not None and result.metrics["unusable_clips"] == 2
    lines = (tmp_path / "run/unusable.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["3", "8"]


def test_an_epoch_without_a_readable_clip_ends_the_run(tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech")
    break_audio(speech, list(range(30)))
    healthy = write_speech(tmp_path / "healthy")
    with pytest.raises(UserError, match=r"no clip of an epoch could be read: .*not audio"):
        run(
            settings(
                speech,
                tmp_path / "run",
                f"data.eval={healthy}",
                f"data.test={healthy}",
                "data.max_bad_fraction=1",
            )
        )


def test_going_on_with_other_data_is_said(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = write_speech(tmp_path / "speech")
    options = ("training.max_steps=3", "training.save_steps=1", "training.resume=true")
    run(settings(mine, tmp_path / "run", "training.max_steps=2", "training.save_steps=1"))
    run(settings(mine, tmp_path / "run", *options))
    assert "is not what it was" not in " ".join(capsys.readouterr().err.split())
    lines = (mine / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    (mine / "manifest.jsonl").write_text("\n".join(lines[1:]), encoding="utf-8")
    run(
        settings(
            mine, tmp_path / "run", "training.max_steps=4", "training.save_steps=1", "training.resume=true"
        )
    )
    assert "the training data is not what it was at that checkpoint" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_batch_that_one_process_cannot_read_costs_the_others_nothing(tmp_path: Path) -> None:
    """Two processes replayed: where they stand after each step, and that who goes on from there hears all of it."""
    path = write_manifest(tmp_path, [0.5] * 12)
    (tmp_path / "c4.wav").write_bytes(b"RIFF but not really")
    data = [
        TrainData(open_sources(str(path)), MelProcessor(), seed=3, batch_seconds=6.0, max_clips=1)
        for _ in range(2)
    ]
    ranks: list[Any] = []
    for index in range(2):
        accelerator = SimpleNamespace(num_processes=2, process_index=index, device=torch.device("cpu"))
        ranks.append(SimpleNamespace(accelerator=accelerator, progress=Progress(), data=data[index]))
        ranks[-1]._count_device = lambda: torch.device("cpu")
    taken = [Trainer._batches(rank) for rank in ranks]
    readable = {(epoch, batch["batch_index"]) for epoch in range(3) for batch in data[0].batches(epoch)}
    heard: set[tuple[int, int]] = set()
    for _ in range(data[0].num_batches(0)):  # of two epochs
        places: list[torch.Tensor] = []
        for rank, batches in zip(ranks, taken, strict=True):
            batch = next(batches)
            heard.add((batch["epoch"], batch["batch_index"]))
            rank.accelerator.gather = lambda place, places=places: places.append(place) or place
            Trainer._note_place(rank, batch)
        ranks[1].accelerator.gather = lambda place, places=places: torch.cat(places)
        Trainer._note_place(ranks[1], batch)
        place = (ranks[1].progress.epoch, ranks[1].progress.batch)
        assert {number for number in readable if number < place} <= heard
