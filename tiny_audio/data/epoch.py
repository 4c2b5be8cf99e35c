"""What an epoch hears and in which batches, worked out a window at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tiny_audio.data.batching import WindowPlan
from tiny_audio.data.source import show_progress
from tiny_audio.data.splice import Recipe


@dataclass(frozen=True, slots=True)
class Heard:
    """The clips of a window, as arrays (clips,): their rows, their positions among all clips, and how they sound."""

    rows: np.ndarray
    positions: np.ndarray
    keys: np.ndarray  # seed their augmentation
    rates: np.ndarray  # (clips, 2) speed and tempo
    lengths: np.ndarray  # seconds
    tokens: np.ndarray  # of their texts
    recipes: dict[int, Recipe]  # by row


class EpochPlan:
    """The batches of an epoch by number. One window of them is in memory at a time."""

    def __init__(self, num_windows: int, plan: Callable[[int], tuple[Heard, WindowPlan]]) -> None:
        self._plan = plan
        self._held: tuple[int, tuple[Heard, WindowPlan]] | None = None
        self._num_windows = num_windows
        counts, audible, padded = [0], 0.0, 0.0
        for window in show_progress(range(num_windows), "planning batches", num_windows):
            heard, batches = self.window(window)
            counts.append(len(batches))
            audible += float(heard.lengths.sum())
            padded += batches.padded(heard.lengths)
        self._bounds = np.cumsum(counts)  # (windows + 1,) the first batch of each
        self.padding_share = 1.0 - audible / padded if padded > 0 else 0.0

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def window(self, number: int) -> tuple[Heard, WindowPlan]:
        if self._held is None or self._held[0] != number:
            self._held = None  # there is room for one: some 200 bytes a clip
            self._held = (number, self._plan(number))
        return self._held[1]

    def windows(self) -> Iterator[Heard]:
        return (self.window(number)[0] for number in range(self._num_windows))

    def place(self, index: int) -> tuple[int, int, int]:
        """The window of a batch, the number of the batch therein, and how many batches that window has."""
        number = int(np.searchsorted(self._bounds, index, side="right")) - 1
        first, end = self._bounds[number : number + 2].tolist()
        return number, index - first, end - first

    def batch(self, index: int) -> tuple[Heard, list[int]]:
        """What is heard in the window of a batch, and the numbers therein of the batch's clips."""
        number, place, _ = self.place(index)
        heard, batches = self.window(number)
        return heard, batches[place]


class Turns:
    """How often each clip is heard in an epoch, where sources have weights.

    A source of n clips with weight w gives the clips from w n epoch to w n (epoch + 1) of an endless repetition of
    its clips in one seeded order. So after any number of epochs, no clip was heard twice more than another.

    Args:
        bounds: (sources + 1,) the position of the first clip of each source, and the end.
    """

    def __init__(self, bounds: np.ndarray, weights: Sequence[float], seed: int, epoch: int) -> None:
        self._bounds = bounds
        self._times: list[int | np.ndarray] = []  # of each source: of all of its clips, or (clips,)
        for number, weight in enumerate(weights):
            num_clips = int(bounds[number + 1] - bounds[number])
            share = Fraction(str(weight)) * num_clips  # exact, however many epochs
            first, end = math.floor(share * epoch), math.floor(share * (epoch + 1))
            if weight == int(weight) or num_clips == 0:
                self._times.append(int(weight))
                continue
            whole, rest = divmod(end - first, num_clips)
            order = np.random.default_rng([seed, number]).permutation(num_clips)
            times = np.full(num_clips, whole, np.uint16)
            times[order[np.arange(first, first + rest) % num_clips]] += 1
            self._times.append(times)

    def heard(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (n,), each as often as it is heard, and how often it was there before."""
        sources = np.searchsorted(self._bounds, positions, side="right") - 1
        times = np.empty(len(positions), np.int64)
        for source in np.unique(sources).tolist():
            of_source = sources == source
            known = self._times[source]
            times[of_source] = (
                known if isinstance(known, int) else known[positions[of_source] - self._bounds[source]]
            )
        before = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        return np.repeat(positions, times), before
