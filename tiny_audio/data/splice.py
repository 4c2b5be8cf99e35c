"""Splicing: new strings out of the words, or whole clips, of one speaker.

A recogniser of short strings otherwise learns its training strings by heart. Which pieces make up a row is
decided in the main process, by (seed, epoch, utterance id), because the planner has to know how long the row
becomes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tiny_audio.data.augment import SPLICE_STREAM, clip_generator, hashed_uniform
from tiny_audio.data.utterance import Utterance
from tiny_audio.hub.asr_audio import SAMPLING_RATE

GAP_SECONDS_RANGE = (0.03, 0.5)
PAUSE_SECONDS_RANGE = (0.5, 2.0)  # between sentences, which short clips never show and long recordings do
PAUSE_SHARE = 0.25  # of the gaps
EDGE_SECONDS_RANGE = (0.05, 0.3)  # silence before the first and after the last piece
LONG_EDGE_SECONDS_RANGE = (0.3, 1.0)
LONG_EDGE_SHARE = 0.25
DOUBLE_SHARE = 0.3  # of the strings have the words of two clips: longer than any clip may be
MOST_WORDS_OF_A_PIECE = 3  # words that were spoken together stay together this far, with their coarticulation
MOST_CLIPS_JOINED = 3
CONTEXT_SECONDS = 0.03  # kept on either side of a word where no other word is in the way
FADE_SECONDS = 0.005
LEVEL_SPREAD_DB = 3.0
FLOOR_DB_RANGE = (-75.0, -45.0)  # noise in the gaps, relative to the speech
DIGITAL_SILENCE_SHARE = 0.2  # of the strings have gaps of zeros


@dataclass(frozen=True, slots=True)
class Piece:
    """`start` to `end` seconds of row `row`; `end` None is the end of the clip."""

    row: int
    start: float
    end: float | None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A spliced row: its pieces, the silence before each and after the last, and what they say together."""

    pieces: tuple[Piece, ...]
    gaps: tuple[float, ...]
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Row:
    row: int
    text: str
    seconds: float
    words: tuple[str, ...]  # empty: the clip is joined whole
    spans: tuple[tuple[float, float], ...]


class Splicer:
    """Draws the recipes of an epoch for rows whose speaker has more than one clip."""

    def __init__(
        self,
        rows: Mapping[int, tuple[Utterance, str]],
        max_seconds: float,
    ) -> None:
        """`rows`: row numbers with their utterances and cleaned transcripts."""
        self._max_seconds = max_seconds - 0.01  # pieces are rounded to whole samples, each
        self._speakers: dict[str, list[_Row]] = defaultdict(list)
        self._speaker_of: dict[int, str] = {}
        for row, (utterance, text) in rows.items():
            if utterance.speaker is not None and text and utterance.seconds is not None:
                self._speakers[utterance.speaker].append(_splice_row(row, utterance, text))
                self._speaker_of[row] = utterance.speaker
        self._rows = np.array(
            [row for row, speaker in self._speaker_of.items() if len(self._speakers[speaker]) > 1],
            dtype=np.int64,
        )

    def draw(self, seed: int, epoch: int, keys: np.ndarray, probability: float) -> dict[int, Recipe]:
        """The recipes of an epoch by row number. `keys` (rows,) are the ``utterance_key`` of every row."""
        chosen = self._rows[hashed_uniform(seed, epoch, keys[self._rows], SPLICE_STREAM, 0) < probability]
        recipes = {}
        for row in chosen.tolist():
            generator = clip_generator(seed, epoch, int(keys[row]), SPLICE_STREAM)
            recipe = self._draw_recipe(self._speakers[self._speaker_of[row]], generator)
            if recipe is not None:
                recipes[row] = recipe
        return recipes

    def _draw_recipe(self, rows: Sequence[_Row], generator: np.random.Generator) -> Recipe | None:
        with_words = [row for row in rows if row.words]
        pool = with_words or rows
        # As many words as one clip of this speaker has, or two together.
        if with_words:
            num_clips = 2 if generator.random() < DOUBLE_SHARE else 1
            num_wanted = sum(len(pool[int(generator.integers(len(pool)))].words) for _ in range(num_clips))
        else:
            num_wanted = int(generator.integers(2, MOST_CLIPS_JOINED + 1))
        pieces: list[Piece] = []
        gaps: list[float] = []
        texts: list[str] = []
        seconds, trailing = _draw_edge(generator), _draw_edge(generator)
        gap = seconds
        while num_wanted > 0:
            row = pool[int(generator.integers(len(pool)))]
            piece, words = _draw_piece(row, num_wanted, generator)
            length = (row.seconds if piece.end is None else piece.end) - piece.start
            if seconds + length + trailing > self._max_seconds:
                break
            pieces.append(piece)
            gaps.append(gap)
            texts.append(words)
            num_wanted -= len(words.split()) if row.words else 1
            low, high = PAUSE_SECONDS_RANGE if generator.random() < PAUSE_SHARE else GAP_SECONDS_RANGE
            gap = low + (high - low) * generator.random() ** 2  # short ones are the common ones
            seconds += length + gap
        if not pieces:
            return None
        return Recipe(tuple(pieces), (*gaps, trailing), " ".join(texts), seconds - gap + trailing)


def join_pieces(
    waveforms: Sequence[np.ndarray], recipe: Recipe, generator: np.random.Generator
) -> np.ndarray:
    """The spliced waveform: float32 (S,). `waveforms` are the clips that the pieces are cut from."""
    cuts = []
    for waveform, piece in zip(waveforms, recipe.pieces, strict=True):
        end = len(waveform) if piece.end is None else round(piece.end * SAMPLING_RATE)
        cut = waveform[round(piece.start * SAMPLING_RATE) : end].copy()
        num_fade = min(round(FADE_SECONDS * SAMPLING_RATE), len(cut) // 2)
        ramp = np.linspace(0.0, 1.0, num_fade, endpoint=False, dtype=np.float32)
        cut[:num_fade] *= ramp
        cut[len(cut) - num_fade :] *= ramp[::-1]
        cuts.append(cut)
    levels = [float(np.sqrt(np.mean(np.square(cut)))) if len(cut) else 0.0 for cut in cuts]
    wanted = max(levels[0], 1e-3)
    num_gaps = [round(gap * SAMPLING_RATE) for gap in recipe.gaps]
    floor = wanted * 10.0 ** (generator.uniform(*FLOOR_DB_RANGE) / 20.0)
    floor *= generator.random() >= DIGITAL_SILENCE_SHARE
    result = generator.standard_normal(sum(num_gaps) + sum(map(len, cuts)), dtype=np.float32) * np.float32(
        floor
    )
    place = 0
    for num_gap, cut, level in zip(num_gaps, cuts, levels, strict=False):
        place += num_gap
        gain = (
            wanted / max(level, 1e-4) * 10.0 ** (generator.uniform(-LEVEL_SPREAD_DB, LEVEL_SPREAD_DB) / 20.0)
        )
        result[place : place + len(cut)] += cut * np.float32(gain)
        place += len(cut)
    return result


def _splice_row(row: int, utterance: Utterance, text: str) -> _Row:
    seconds = utterance.seconds or 0.0
    words = utterance.words or ()
    # Words that do not spell the transcript (punctuation, numbers as digits) cannot be labelled one by one.
    if [word.text for word in words] != text.split() or any(word.end <= word.start for word in words):
        return _Row(row, text, seconds, (), ())
    spans = []
    for index, word in enumerate(words):
        before = words[index - 1].end if index > 0 else 0.0
        after = words[index + 1].start if index + 1 < len(words) else seconds
        start = word.start - min(CONTEXT_SECONDS, max(0.0, (word.start - before) / 2))
        end = word.end + min(CONTEXT_SECONDS, max(0.0, (after - word.end) / 2))
        spans.append((max(0.0, start), min(seconds, end)))
    return _Row(row, text, seconds, tuple(word.text for word in words), tuple(spans))


def _draw_edge(generator: np.random.Generator) -> float:
    """Seconds of silence at one end."""
    chosen = LONG_EDGE_SECONDS_RANGE if generator.random() < LONG_EDGE_SHARE else EDGE_SECONDS_RANGE
    return float(generator.uniform(*chosen))


def _draw_piece(row: _Row, num_wanted: int, generator: np.random.Generator) -> tuple[Piece, str]:
    if not row.words:
        return Piece(row.row, 0.0, None), row.text
    count = min(
        num_wanted,
        len(row.words),
        int(generator.integers(1, MOST_WORDS_OF_A_PIECE + 1)),
    )
    first = int(generator.integers(len(row.words) - count + 1))
    last = first + count - 1
    return Piece(row.row, row.spans[first][0], row.spans[last][1]), " ".join(row.words[first : last + 1])
