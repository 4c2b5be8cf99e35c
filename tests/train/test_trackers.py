"""What a tracker is given can be read back from its own files."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.train.short_runs import WORDS, settings
from tiny_audio.errors import UserError
from tiny_audio.train.records import read_metrics
from tiny_audio.train.run import NUM_SAMPLES_SHOWN, run
from tiny_audio.train.trackers import Trackers


def test_tensorboard_has_the_figures_and_clips_with_their_transcripts(speech: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = {"audio": 0, "tensors": 0, "scalars": 0}  # all of them are kept
    config = settings(speech, tmp_path / "run", "training.tracker=tensorboard", "training.eval_samples=20")
    run(config)
    kept = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance=sizes).Reload()
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [(event.step, event.value) for event in kept.Scalars("loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    names = kept.Tags()["audio"]
    assert 4 <= len(names) <= NUM_SAMPLES_SHOWN
    lengths = []
    for name in names:
        clips = kept.Audio(name)
        assert [clip.step for clip in clips] == [3, 6]
        samples, rate = soundfile.read(io.BytesIO(clips[-1].encoded_audio_string))
        lengths.append(len(samples))
        number = next(  # the very clip: nothing else sounds so
            n
            for n in range(30)
            if len(original := soundfile.read(speech / f"{n}.wav")[0]) == len(samples)
            and np.allclose(original, samples, atol=1e-3)
        )
        said = " ".join(WORDS[(number + i) % 10] for i in range(1 + number % 3))
        (*_, text) = kept.Tensors(f"{name}/text_summary")
        assert rate == 16000 and text.tensor_proto.string_val[0].decode().startswith(
            f"    reference:  {said}\n"
        )
    assert lengths == sorted(lengths)


def test_a_tracker_that_cannot_be_reached_ends_no_run_that_did_not_ask_for_it(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "tensorboard").write_text("a file where its folder should be")
    with (
        caplog.at_level(logging.WARNING),
        Trackers(settings(speech, tmp_path, "training.tracker=auto"), tmp_path) as trackers,
    ):
        trackers.log({"step": 1, "loss": 2.0})
    assert "tensorboard cannot be reached" in caplog.text and "metrics.jsonl alone" in caplog.text
    with pytest.raises(UserError, match=r"training.tracker=tensorboard: .*; or set training.tracker=none"):
        Trackers(settings(speech, tmp_path, "training.tracker=tensorboard"), tmp_path)
