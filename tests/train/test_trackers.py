"""What a tracker is given can be read back from its own files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.train.short_runs import WORDS, settings
from tiny_audio.train.records import read_metrics
from tiny_audio.train.run import NUM_SAMPLES_SHOWN, run


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
