"""Splicing makes new strings of one speaker's words that say what their transcript says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.clips import RATE
from tiny_audio.data.splice import (
    EDGE_SECONDS_RANGE,
    GAP_SECONDS_RANGE,
    LONG_EDGE_SECONDS_RANGE,
    PAUSE_SECONDS_RANGE,
    Piece,
    Recipe,
    Splicer,
    join_pieces,
)
from tiny_audio.data.utterance import AudioRef, Utterance, Word, utterance_key

WORD_HERTZ = {"one": 300.0, "two": 500.0, "three": 800.0, "four": 1300.0}


def utterance(number: int, text: str, speaker: str | None, with_words: bool = True) -> Utterance:
    """Words of 0.3 s with pauses of 0.2 s: word k from 0.1 + 0.5 k on."""
    words = tuple(Word(word, 0.1 + 0.5 * k, 0.4 + 0.5 * k) for k, word in enumerate(text.split()))
    seconds = 0.5 * len(words) + 0.1
    return Utterance(
        f"u{number}", text, seconds, AudioRef(f"{number}.wav"), speaker, words if with_words else None
    )


def waveform(row: Utterance) -> np.ndarray:
    """Each word is a tone of its own."""
    samples = np.zeros(round(row.seconds * RATE), np.float32)  # type: ignore[operator]
    for word in row.words or ():
        start, end = round(word.start * RATE), round(word.end * RATE)
        samples[start:end] = 0.2 * np.sin(2 * np.pi * WORD_HERTZ[word.text] * np.arange(end - start) / RATE)
    return samples


def heard(samples: np.ndarray) -> list[str]:
    """The words of a waveform by their tones: at least five frames of 20 ms, with silence in between."""
    words: list[str] = []
    current: list[str] = []
    for frame in samples[: len(samples) // 320 * 320].reshape(-1, 320):
        if np.sqrt(np.mean(frame**2)) > 0.03:
            hertz = np.abs(np.fft.rfft(frame)).argmax() * RATE / 320
            current.append(min(WORD_HERTZ, key=lambda name: abs(WORD_HERTZ[name] - hertz)))
        elif current:
            words += [max(set(current), key=current.count)] if len(current) >= 5 else []
            current = []
    return words


SPEECH = ["one two three", "four", "two four one three", "three one", "four two"]


def make(
    with_words: bool = True, max_seconds: float = 20.0
) -> tuple[dict[int, Utterance], Splicer, np.ndarray]:
    rows = {n: utterance(n, text, f"speaker {n % 2}", with_words) for n, text in enumerate(SPEECH * 4)}
    rows[20] = utterance(20, "one one", "speaks once")
    rows[21] = utterance(21, "two two", None)
    keys = np.array([utterance_key(row.id) for row in rows.values()], np.uint64)
    return rows, Splicer({n: (row, row.text) for n, row in rows.items()}, max_seconds), keys


def test_spliced_words_are_heard_as_written() -> None:
    rows, splicer, keys = make()
    recipes = [recipe for epoch in range(5) for recipe in splicer.draw(1, epoch, keys, 1.0).items()]
    for row, recipe in recipes:
        assert {rows[piece.row].speaker for piece in recipe.pieces} == {rows[row].speaker}
        joined = join_pieces(
            [waveform(rows[piece.row]) for piece in recipe.pieces], recipe, np.random.default_rng(row)
        )
        assert len(joined) / RATE == pytest.approx(recipe.seconds, abs=0.001)
        assert len(recipe.gaps) == len(recipe.pieces) + 1
        for gap in recipe.gaps[1:-1]:
            assert GAP_SECONDS_RANGE[0] <= gap <= PAUSE_SECONDS_RANGE[1]
        for edge in (recipe.gaps[0], recipe.gaps[-1]):
            assert EDGE_SECONDS_RANGE[0] <= edge <= LONG_EDGE_SECONDS_RANGE[1]
        assert heard(joined) == recipe.text.split()
    texts = {recipe.text for _, recipe in recipes}
    assert len(texts - set(SPEECH)) > 20  # strings nobody said
    assert max(len(text.split()) for text in texts) == 8  # as many words as two clips have


def test_pauses_and_edges_of_every_length_occur() -> None:
    """Long recordings pause between sentences, and begin and end in silence; short clips never show it."""
    _, splicer, keys = make()
    recipes = [recipe for epoch in range(60) for recipe in splicer.draw(1, epoch, keys, 1.0).values()]
    gaps = np.array([gap for recipe in recipes for gap in recipe.gaps[1:-1]])
    edges = np.array([edge for recipe in recipes for edge in (recipe.gaps[0], recipe.gaps[-1])])
    assert np.mean(gaps > PAUSE_SECONDS_RANGE[0]) == pytest.approx(0.25, abs=0.05)
    assert gaps.min() < 0.05 and gaps.max() > 1.8
    assert np.median(gaps) < 0.3, "short ones are the common ones"
    assert np.mean(edges > LONG_EDGE_SECONDS_RANGE[0]) == pytest.approx(0.25, abs=0.05)
    assert edges.min() < 0.07 and edges.max() > 0.95


def test_some_strings_have_gaps_of_digital_silence_and_others_of_faint_noise() -> None:
    recipe = Recipe((Piece(0, 0.0, None), Piece(0, 0.0, None)), (0.1, 0.8, 0.1), "a b", 2.0)
    tone = 0.2 * np.sin(np.arange(8000) * 0.3).astype(np.float32)
    levels = []
    for seed in range(150):
        joined = join_pieces([tone, tone], recipe, np.random.default_rng(seed))
        gap = joined[1600 + 8000 : 1600 + 8000 + 12800]
        levels.append(float(np.std(gap) / np.std(joined[1600:9600])))
        assert (levels[-1] == 0) == (not joined[:1600].any()) == (not joined[-1600:].any())
    silent = np.array(levels) == 0
    assert np.mean(silent) == pytest.approx(0.2, abs=0.1)
    assert np.array(levels)[~silent].min() > 1e-4 and max(levels) < 0.01


def test_speakers_with_one_clip_or_without_name_are_left_alone() -> None:
    _, splicer, keys = make()
    assert sorted(splicer.draw(1, 0, keys, 1.0)) == list(range(20))
    assert splicer.draw(1, 0, keys, 0.0) == {}


def test_the_same_seed_and_epoch_splice_the_same() -> None:
    _, splicer, keys = make()
    assert splicer.draw(1, 0, keys, 0.5) == splicer.draw(1, 0, keys, 0.5)
    assert splicer.draw(1, 0, keys, 0.5) != splicer.draw(1, 1, keys, 0.5)
    share = np.mean([len(splicer.draw(seed, 0, keys, 0.3)) / 20 for seed in range(100)])
    assert share == pytest.approx(0.3, abs=0.05)


def test_clips_without_word_times_are_joined_whole() -> None:
    rows, splicer, keys = make(with_words=False)
    for recipe in splicer.draw(1, 0, keys, 1.0).values():
        assert 2 <= len(recipe.pieces) <= 3
        assert recipe.text == " ".join(rows[piece.row].text for piece in recipe.pieces)
        assert all((piece.start, piece.end) == (0.0, None) for piece in recipe.pieces)


def test_words_that_do_not_spell_the_transcript_are_not_cut_apart() -> None:
    rows = {n: utterance(n, "one two", "s") for n in range(4)}
    splicer = Splicer({n: (row, "One, two.") for n, row in rows.items()}, 20.0)
    for recipe in splicer.draw(1, 0, np.arange(4, dtype=np.uint64), 1.0).values():
        assert set(recipe.text.replace("One, two.", "|").split()) == {"|"}


def test_spliced_clips_stay_below_the_limit() -> None:
    _, splicer, keys = make(max_seconds=1.5)
    for epoch in range(20):
        assert all(recipe.seconds < 1.5 for recipe in splicer.draw(1, epoch, keys, 1.0).values())


def test_pieces_are_joined_at_about_one_level_without_clicks() -> None:
    loud = 0.5 * np.sin(2 * np.pi * 300 * np.arange(8000) / RATE).astype(np.float32)
    recipe = Recipe((Piece(0, 0.013, 0.313), Piece(1, 0.0, None)), (0.1, 0.2, 0.1), "a b", 1.2)
    joined = join_pieces([loud, loud * 0.05], recipe, np.random.default_rng(0))
    first, second = joined[1600:6400], joined[9600:17600]
    assert 0.5 < np.std(first) / np.std(second) < 2.0
    assert np.abs(np.diff(joined)).max() < 1.5 * 0.5 * 2 * np.pi * 300 / RATE * 10 ** (3 / 20)
    assert np.std(joined[6500:9500]) < 0.01  # the gaps are quiet
