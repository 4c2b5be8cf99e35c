"""The best and the worst transcripts of an evaluation: all of them, in order, none of them chosen."""

from __future__ import annotations

from recipes.small.examples import best_and_worst, table
from tiny_audio.evaluate.results import UtteranceResult
from tiny_audio.evaluate.scoring import score_texts

TEXTS = [
    ("Yes.", "yes"),
    ("press one now", "Press one now."),
    ("press the pound key", "press a pound"),
    ("a|b", ""),
    ("goodbye", "good bye"),
]


def utterances() -> list[UtteranceResult]:
    scores = score_texts([said for said, _ in TEXTS], [written for _, written in TEXTS], "basic")
    return [
        UtteranceResult(f"u{index}", f"{index}.wav", 1.0, None, said, written, score)
        for index, ((said, written), score) in enumerate(zip(TEXTS, scores, strict=True))
    ]


def test_the_order_is_errors_a_word_and_then_length() -> None:
    best, worst = best_and_worst(utterances(), 2)
    assert [one.id for one in best] == ["u1", "u0"], "both without errors, the longer first"
    assert [one.id for one in worst] == ["u4", "u3"], "two errors in a word, then all words of a text"


def test_nothing_is_in_both() -> None:
    best, worst = best_and_worst(utterances(), 10)
    assert len(best) == len(worst) == 2 and not {one.id for one in best} & {one.id for one in worst}


def test_a_row_says_how_much_is_wrong_and_stays_one_row() -> None:
    lines = table(utterances()).splitlines()[2:]
    assert lines[2] == "| press the pound key | press a pound | 2 of 4 |"
    assert lines[3].startswith("| a\\|b | (nothing) | ")
