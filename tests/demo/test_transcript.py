"""Transcripts as HTML: words with times, doubts and differences, and nothing of a text taken for markup."""

from __future__ import annotations

import base64
import json
import re

from tiny_audio.demo.transcript import Column, Word, compared, count_differences, render
from tiny_audio.hub.asr_alignment import TimedWord
from tiny_audio.hub.asr_merging import Problem, Recognition, Segment
from tiny_audio.subtitles import to_srt

HOSTILE = "</button><script>window.hacked=1</script>\"'"


def recognition(*texts: str, confidence: float = 0.9) -> Recognition:
    words = [TimedWord(text, index, index + 0.5, confidence) for index, text in enumerate(texts)]
    return Recognition([Segment(" ".join(texts), 0.0, len(texts), words)], len(texts))


def column(*texts: str, confidence: float = 0.9) -> Column:
    return Column("model", recognition=recognition(*texts, confidence=confidence))


def words(*texts: str) -> list[Word]:
    return [Word(text, 0.0, 1.0) for text in texts]


def test_words_are_shaded_by_doubt_and_carry_their_times() -> None:
    def shade(confidence: float) -> list[str]:
        return re.findall(r"unsure-\d", render([column("one", confidence=confidence)], 1.0, "a.wav"))[:-2]

    assert (shade(0.9), shade(0.7), shade(0.2)) == ([], ["unsure-1"], ["unsure-2"])
    html = render([column("one", "two")], 2.0, "a.wav")
    assert 'data-start="1.000" data-end="1.500" title="1.0 s, 90% sure">two</button>' in html


def test_a_text_is_never_markup() -> None:
    broken = Column(HOSTILE, problem=HOSTILE)
    for columns in ([column(HOSTILE)], [column(HOSTILE), column("one")], [broken], [Column("m", HOSTILE)]):
        html = render(columns, 1.0, HOSTILE)
        assert "<script" not in html and "</button>&lt;script" not in html and "window.hacked" in html


def test_two_transcripts_are_compared_word_by_word() -> None:
    first, second = words("One", "two,", "three", "five"), words("one", "too", "three", "four", "five")
    pairs = [(word and word.text, other) for word, other in compared(first, second)]
    assert pairs == [("One", None), ("two,", "too"), ("three", None), (None, "four"), ("five", None)]
    assert [other for word, other in compared(second, first) if word and word.text == "four"] == [""]
    assert count_differences(first, second) == 2
    repeated = words("a", "b", "c", "x"), words("c", "x", "a", "y", "c", "z")
    assert count_differences(*repeated) == 4, "the fewest, whatever the longest stretch in common"
    assert "The models differ in 1 word." in render([column("one"), column("two")], 1.0, "a.wav")
    assert "Both models wrote the same words." in render([column("One."), column("one")], 1.0, "a.wav")


def test_downloads_are_the_documents_of_transcribe() -> None:
    links = re.findall(
        r'download="([^"]+)" href="data:[^;]+;base64,([^"]+)"', render([column("one")], 1.0, "my.talk.wav")
    )
    files = {name: base64.b64decode(data).decode() for name, data in links}
    assert files.keys() == {"my.talk.srt", "my.talk.vtt", "my.talk.json"}
    assert files["my.talk.srt"] == to_srt(recognition("one")) and files["my.talk.vtt"].startswith("WEBVTT")
    assert json.loads(files["my.talk.json"])["words"][0]["text"] == "one"


def test_gaps_and_words_without_times_are_shown() -> None:
    gap = Recognition([Segment("one two", 3.0, 5.0)], 9.0, [Problem(5.0, 9.0, "could not be recognised")])
    html = render([Column("model", recognition=gap)], 9.0, "a.wav")
    assert "5.0-9.0 s: could not be recognised" in html and html.count('data-start="3.000"') == 2
