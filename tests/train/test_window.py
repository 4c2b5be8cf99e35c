from types import SimpleNamespace

import numpy as np
import pytest

from tiny_audio.hub.asr_audio import SAMPLING_RATE
from tiny_audio.hub.asr_merging import Recognition, Segment
from tiny_audio.train import window
from tiny_audio.train.window import choose_window, joined

CLIPS = [(np.full(2 * SAMPLING_RATE, number / 100, np.float32), f"word{number}") for number in range(1, 41)]
PROCESSOR = SimpleNamespace(max_seconds=30.0)


class Reader:
    """Hears the clips by their samples' value, and loses a word for each `limit` seconds that its window is longer."""

    limit = 8.0

    def __init__(self, model: object, processor: object, window_seconds: float, batch_size: int):
        self.window_seconds = window_seconds

    def recognise(self, recordings: list) -> list[Recognition]:
        values = [round(float(block[0]) * 100) for block in recordings[0] if len(block) and block[0]]
        lost = int(max(0.0, self.window_seconds - self.limit))
        text = " ".join(f"word{value}" for value in values[lost:])
        return [Recognition([Segment(text, 0.0, 1.0)])]


@pytest.mark.parametrize(("limit", "chosen"), [(8.0, 8.0), (99.0, 30.0), (0.5, 2.0)])
def test_the_longest_window_that_reads_as_well_as_any(
    limit: float, chosen: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reader, "limit", limit)
    monkeypatch.setattr(window, "Recogniser", Reader)
    seconds, rates = choose_window(None, PROCESSOR, CLIPS, "basic", 4)
    assert seconds == chosen
    assert list(rates) == [2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0]
    assert rates[chosen] == pytest.approx(min(rates.values()), abs=0.003)


def test_windows_that_the_model_or_the_clips_cannot_fill_are_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window, "Recogniser", Reader)
    assert list(choose_window(None, SimpleNamespace(max_seconds=5.0), CLIPS, "basic", 4)[1]) == [
        2.0,
        3.0,
        5.0,
    ]
    assert list(choose_window(None, PROCESSOR, CLIPS[:5], "basic", 4)[1]) == [2.0, 3.0, 5.0]


def test_joined_clips_keep_their_order_and_have_pauses() -> None:
    blocks = list(joined(CLIPS))
    assert len(blocks) == 80 and all(block[0] for block in blocks[::2])
    pauses = [len(block) / SAMPLING_RATE for block in blocks[1::2]]
    assert 0 <= min(pauses) < 0.3 and 1.7 < max(pauses) <= 2.0
