"""Whether the decoder listens is measured on real models: one that knows its clips, one that has heard nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny_models import CLIPS, noise, overfit, tiny_model
from tiny_audio.train.listening import DEAF_BELOW, LISTENS_FROM, ListeningMonitor, listening_gap


def clips() -> list[tuple[np.ndarray, str]]:
    return [(noise(seconds, seed), text) for seed, (seconds, text) in enumerate(CLIPS)]


def test_a_model_that_knows_its_clips_listens_and_a_new_one_does_not() -> None:
    model, processor = tiny_model()
    new = listening_gap(model, processor, clips())
    assert new is not None and abs(new) < DEAF_BELOW
    overfit(model, processor.collate([processor.encode(waveform, text) for waveform, text in clips()]))
    trained = listening_gap(model.eval(), processor, clips())
    assert trained is not None and trained > LISTENS_FROM


def test_without_two_texts_nothing_can_be_said() -> None:
    model, processor = tiny_model()
    assert listening_gap(model, processor, [(noise(1.0), "one"), (noise(2.0), "one")]) is None
    assert listening_gap(model, processor, [(noise(1.0), "one"), (noise(2.0), "")]) is None
    assert listening_gap(model, processor, []) is None
    some = [(noise(1.0), "one"), (noise(0.5, 1), "one"), (noise(2.0, 2), "two")]
    assert listening_gap(model, processor, some) is not None


def test_each_thing_is_said_once() -> None:
    monitor = ListeningMonitor(first_step=100, max_steps=1100, has_alignment_losses=True)
    assert monitor.look(200, 0.0) is None  # too early to tell
    alarm = monitor.look(400, 0.05)
    assert alarm is not None and "DOES NOT LISTEN" in alarm and "data inspect" in alarm
    assert monitor.look(500, 0.05) is None
    started = monitor.look(600, 0.7)
    assert started is not None and "started to listen" in started
    assert monitor.look(700, 0.8) is None and monitor.look(800, 0.0) is None


@pytest.mark.parametrize(("steps", "named"), [(100, True), (1000, False)])
def test_the_alarm_of_a_short_run_says_that_it_is_short(steps: int, named: bool) -> None:
    alarm = ListeningMonitor(20, 20 + steps, True).look(20 + steps, 0.0)
    assert alarm is not None and (f"leaves the decoder {steps} steps" in alarm) == named


@pytest.mark.parametrize(("has_losses", "named"), [(False, True), (True, False)])
def test_the_alarm_names_missing_alignment_losses(has_losses: bool, named: bool) -> None:
    alarm = ListeningMonitor(0, 10, has_losses).look(10, 0.0)
    assert alarm is not None and ("ctc.embedding_weight" in alarm) == named
