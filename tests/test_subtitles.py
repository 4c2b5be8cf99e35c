"""Subtitles and JSON: what other people's readers make of them is what was said, when it was said."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pysubs2
import pytest
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_audio.hub.asr_alignment import TimedWord
from tiny_audio.hub.asr_merging import Problem, Recognition, Segment
from tiny_audio.subtitles import (
    LEAST_MILLISECONDS,
    LINE_CHARACTERS,
    LINES,
    LONGEST_MILLISECONDS,
    clean,
    cues,
    timestamp,
    to_json,
    to_srt,
    to_text,
    to_vtt,
)

Shown = list[tuple[int, int, str]]  # start and end in milliseconds, text with "\n" between lines


def recognition(*segments: list[TimedWord], **values: Any) -> Recognition:
    made = [
        Segment(" ".join(word.text for word in words), words[0].start, words[-1].end, words)
        for words in segments
    ]
    seconds = max((segment.end for segment in made), default=0.0)
    return Recognition(made, seconds, **values)


def spoken(
    text: str, start: float = 0.0, word_seconds: float = 0.3, confidence: float = 0.9
) -> list[TimedWord]:
    words = text.split()
    return [
        TimedWord(word, start + i * word_seconds, start + (i + 1) * word_seconds, confidence)
        for i, word in enumerate(words)
    ]


def texts(result: Recognition, min_confidence: float | None = None) -> list[str]:
    return [
        "\n".join(" ".join(token.marked for token in line) for line in cue.lines)
        for cue in cues(result, min_confidence)
    ]


# Other people's readers ----------------------------------------------------------------------------------------------


def _milliseconds(text: str) -> int:
    hours, minutes, seconds = re.fullmatch(r"(\d+):(\d\d):(\d\d[.,]\d{3})", text).groups()
    return round((int(hours) * 3600 + int(minutes) * 60) * 1000 + float(seconds.replace(",", ".")) * 1000)


def read_vtt(document: str) -> Shown:
    """By webvtt-py, which raises for whatever is malformed; it leaves the escapes in the text."""
    parsed = webvtt.WebVTT.from_string(document, strict=True)
    return [(_milliseconds(c.start), _milliseconds(c.end), html.unescape(c.text)) for c in parsed]


def read_srt(document: str) -> Shown:
    if not document:  # webvtt-py wants at least one cue
        return []
    parsed = webvtt.WebVTT.from_buffer(io.StringIO(document), format="srt")
    return [(_milliseconds(c.start), _milliseconds(c.end), c.raw_text) for c in parsed]


def read_with_pysubs2(document: str, format: str) -> Shown:
    options = {"keep_html_tags": True} if format == "srt" else {}
    parsed = pysubs2.SSAFile.from_string(document, format_=format, **options)
    return [(event.start, event.end, event.text.replace(r"\N", "\n")) for event in parsed]


def expected(result: Recognition, min_confidence: float | None = None) -> Shown:
    return [
        (cue.start, cue.end, text)
        for cue, text in zip(cues(result, min_confidence), texts(result, min_confidence), strict=True)
    ]


# Where it is cut ------------------------------------------------------------------------------------------------------


def test_documents_as_they_look() -> None:
    words = spoken("Good morning, everyone.") + spoken("It is half past nine.", 4.0, confidence=0.2)
    result = recognition(words)
    assert to_srt(result) == (
        "1\n00:00:00,000 --> 00:00:01,200\nGood morning, everyone.\n\n"
        "2\n00:00:04,000 --> 00:00:05,500\nIt is half past nine.\n"
    )
    assert to_vtt(result) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.200\nGood morning, everyone.\n\n"
        "00:00:04.000 --> 00:00:05.500\nIt is half past nine.\n"
    )


def test_nothing_said_is_a_valid_document() -> None:
    assert to_srt(Recognition()) == "" and to_text(Recognition()) == ""
    assert to_vtt(Recognition()) == "WEBVTT\n" and read_vtt(to_vtt(Recognition())) == []


def test_cut_at_the_end_of_a_sentence() -> None:
    text = (
        "We left the house before the sun came up. Nobody had thought of the keys, which were on the table."
    )
    assert texts(recognition(spoken(text))) == [
        "We left the house before the sun came up.",
        "Nobody had thought of the keys,\nwhich were on the table.",
    ]


def test_cut_at_a_pause_where_there_is_no_punctuation() -> None:
    words = spoken("turn left at the church and go on") + spoken("until you see the bridge", 3.2)
    assert texts(recognition(words)) == ["turn left at the church and go on", "until you see the bridge"]


def test_a_long_pause_always_ends_a_cue() -> None:
    words = spoken("Yes and") + spoken("no.", 3.0)
    assert texts(recognition(words)) == ["Yes and", "no."]
    assert cues(recognition(words))[0].end < 2000, "it does not hang about until the next one"


def test_short_sentences_share_a_cue() -> None:
    assert texts(recognition(spoken("No. Yes. Well, no."))) == ["No. Yes. Well, no."]


def test_speech_without_any_stop_leaves_no_orphan() -> None:
    shown = texts(recognition(spoken(" ".join(["seven"] * 30), word_seconds=0.25)))
    assert len(shown) == 3 and min(len(text) for text in shown) > 40


def test_a_short_cue_stays_as_long_as_it_takes_to_read() -> None:
    (cue,) = cues(recognition(spoken("Stop!", 2.0, word_seconds=0.2)))
    assert (cue.start, cue.end) == (2000, 3000)
    first, second = cues(
        recognition(spoken("Stop!", 2.0, 0.2) + spoken("Wait, there is somebody here.", 4.0))
    )
    assert first.end == 3000 and second.start == 4000
    (long,) = cues(recognition(spoken("a" * 40, 0.0, 0.5)))
    assert long.end == 41 * 50, "20 characters a second"


def test_words_longer_than_a_line() -> None:
    for confidence in (0.9, 0.1):
        result = recognition(spoken("a" * 100 + " end", confidence=confidence))
        shown = "\n".join(texts(result, 0.5)).split("\n")
        assert max(len(line) for line in shown) <= LINE_CHARACTERS
        assert re.sub(r"[\[\]?\s]", "", "".join(shown)) == "a" * 100 + "end"


def test_a_word_longer_than_a_cue_may_be() -> None:
    (cue,) = cues(recognition([TimedWord("Ommm", 1.0, 60.0, 0.9)]))
    assert (cue.start, cue.end) == (1000, 8000)


def test_many_words_in_no_time() -> None:
    words = [TimedWord("loop" * 5, 1.0, 1.0, 0.0)] * 40
    found = cues(recognition(words))
    assert found[0].start == 1000
    assert all(a.end == b.start and a.end - a.start >= LEAST_MILLISECONDS for a, b in pairwise(found))


def test_segments_without_words_share_their_time() -> None:
    text = "This model has no alignment head. Its words have no times, so they share those of their window."
    found = cues(Recognition([Segment(text, 10.0, 16.0)], 20.0))
    assert found[0].start == 10_000 and found[-1].end >= 16_000
    assert len(found) == 2 and 11_500 < found[1].start < 12_700
    assert " ".join(texts(Recognition([Segment(text, 10.0, 16.0)], 20.0))).replace("\n", " ") == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "00:00:00.000"),
        (59_999, "00:00:59.999"),
        (3_600_000, "01:00:00.000"),
        (359_999_999, "99:59:59.999"),
        (360_000_001, "100:00:00.001"),
        (3_600_000_000, "1000:00:00.000"),
    ],
)
def test_timestamps(milliseconds: int, text: str) -> None:
    assert timestamp(milliseconds) == text


@pytest.mark.parametrize("hours", [1, 26, 99, 100, 1234])
def test_times_far_into_a_recording(hours: int) -> None:
    result = recognition(spoken("Still talking.", hours * 3600 + 59.9996, 0.7))
    start = hours * 3_600_000 + 60_000  # rounded, the seconds are never 60
    for shown in (read_srt(to_srt(result)), read_vtt(to_vtt(result))):
        assert shown == [(start, start + 1400, "Still talking.")]


# What is in the text --------------------------------------------------------------------------------------------------

NASTY = [
    "a-->b",
    "-->",
    "00:00:01,000",
    "00:00:01.000-->00:00:02.000",
    "<i>",
    "</c>",
    "<00:00:05.000>",
    "&amp;",
    "&lt",
    "AT&T",
    "NOTE",
    "STYLE",
    "WEBVTT",
    "42",
    "{\\an8}",
    "\x1b[31m",
    "\x00",
    "a\nb",
    "a\r\n\r\nb",
    "\x85\u2028x\u2029",
    "\ud800",
    "\ufeff",
    "naïve",
    "日本語。",
    "😀",
    '"',
]


@pytest.mark.parametrize("text", NASTY)
def test_text_that_looks_like_something_else(text: str) -> None:
    result = recognition([TimedWord(text, 1.0, 2.0, 0.9)], spoken("then this", 2.5))
    said = expected(result)
    assert " ".join(said[0][2].split()).startswith(clean(text))
    assert read_vtt(to_vtt(result)) == said
    assert read_srt(to_srt(result)) == [(a, b, t.replace("-->", "→")) for a, b, t in said]
    for document in (to_vtt(result), to_srt(result), to_text(result), to_json("a.wav", result)):
        document.encode()  # no surrogates
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", document)
    assert json.loads(to_json("a.wav", result))["text"] == result.text, "JSON loses nothing"


def test_unsure_words_are_marked() -> None:
    sure, unsure = spoken("five & nine"), spoken("R&D", 0.9, confidence=0.3)
    result = recognition(sure + unsure)
    assert to_text(result) == "five & nine R&D"
    assert to_text(result, 0.5) == "five & nine [R&D?]"
    assert "five & nine [R&D?]\n" in to_srt(result, 0.5)
    assert "five &amp; nine <c.unsure>R&amp;D</c>\n" in to_vtt(result, 0.5)
    assert "unsure" not in to_vtt(result, 0.1)
    parsed = webvtt.WebVTT.from_string(to_vtt(result, 0.5), strict=True)
    assert html.unescape(parsed[0].text) == "five & nine R&D"
    assert to_text(result, 0.3) == "five & nine R&D", "below, not at"


# JSON -----------------------------------------------------------------------------------------------------------------


def test_json_document() -> None:
    words = [TimedWord("hello", 0.12345, 0.5, 0.91239), TimedWord("there", 0.5, 0.9, 0.25)]
    result = recognition(words, problems=[Problem(1.0, 2.00049, "could not be recognised (OSError)")])
    document = {
        "audio": "a\nb.wav",
        "seconds": 0.9,
        "text": "hello there",
        "segments": [{"text": "hello there", "start": 0.123, "end": 0.9}],
        "problems": [{"start": 1.0, "end": 2.0, "reason": "could not be recognised (OSError)"}],
    }
    listed = [
        {"text": "hello", "start": 0.123, "end": 0.5, "confidence": 0.9124},
        {"text": "there", "start": 0.5, "end": 0.9, "confidence": 0.25},
    ]
    assert json.loads(to_json("a\nb.wav", result)) == document
    assert json.loads(to_json("a\nb.wav", result, words=True)) == {**document, "words": listed}
    listed[1]["unsure"] = True
    assert json.loads(to_json("a\nb.wav", result, min_confidence=0.5)) == {**document, "words": listed}


# Any words ------------------------------------------------------------------------------------------------------------


@st.composite
def recognitions(draw: st.DrawFn, text: st.SearchStrategy[str]) -> Recognition:
    """Segments of words whose starts never decrease, with pauses, points, overlong and nameless words among them."""
    gap = st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 10))
    length = st.one_of(st.just(0.0), st.floats(0.05, 0.6), st.floats(0, 20))
    time = draw(st.one_of(st.just(0.0), st.floats(0, 400_000)))
    segments = []
    for _ in range(draw(st.integers(0, 4))):
        words = []
        for _ in range(draw(st.integers(1, 25))):
            start = time + draw(gap)
            time = start + draw(length)
            words.append(TimedWord(draw(text), start, time, draw(st.floats(0, 1))))
        timed = draw(st.booleans())
        joined = " ".join(word.text for word in words)
        segments.append(Segment(joined, words[0].start, words[-1].end, words if timed else None))
    return Recognition(segments, time)


THRESHOLD = st.one_of(st.none(), st.floats(0, 1))
ANY_TEXT = recognitions(st.one_of(st.sampled_from(NASTY), st.text(max_size=60)))
PLAIN_TEXT = recognitions(st.text("abcdefghij,.?!", min_size=1, max_size=50).map(lambda text: text + "x"))


@given(ANY_TEXT, THRESHOLD)
@settings(max_examples=60, deadline=None)
def test_cues_keep_to_the_limits_and_lose_nothing(result: Recognition, min_confidence: float | None) -> None:
    found = cues(result, min_confidence)
    for cue, text in zip(found, texts(result, min_confidence), strict=True):
        assert cue.start >= 0
        assert LEAST_MILLISECONDS <= cue.end - cue.start <= LONGEST_MILLISECONDS
        lines = text.split("\n")
        assert 1 <= len(lines) <= LINES
        assert all(line.strip() and len(line) <= LINE_CHARACTERS for line in lines)
    assert all(before.end <= after.start for before, after in pairwise(found))
    shown = "".join(token.text for cue in found for line in cue.lines for token in line)
    said = "".join(clean(segment.text) for segment in result.segments)
    assert "".join(shown.split()) == "".join(said.split())


@given(ANY_TEXT, THRESHOLD)
@settings(max_examples=60, deadline=None)
def test_readers_see_what_was_written(result: Recognition, min_confidence: float | None) -> None:
    marked, plain = expected(result, min_confidence), expected(result)
    assert read_srt(to_srt(result, min_confidence)) == [(a, b, t.replace("-->", "→")) for a, b, t in marked]
    assert read_vtt(to_vtt(result)) == plain
    shown = read_vtt(to_vtt(result, min_confidence))
    assert [(start, end) for start, end, _ in shown] == [(start, end) for start, end, _ in marked]
    unmarked = [
        "\n".join(" ".join(token.text for token in line) for line in cue.lines)
        for cue in cues(result, min_confidence)
    ]
    assert [text for _, _, text in shown] == unmarked


@given(PLAIN_TEXT)
@settings(max_examples=60, deadline=None)
def test_another_reader_agrees(result: Recognition) -> None:
    """pysubs2 reads SubRip up to 99 hours, and WebVTT up to 9999; other times are its own affair."""
    said = expected(result)
    if not said or said[-1][1] < 99 * 3_600_000:
        assert read_with_pysubs2(to_srt(result), "srt") == said
    if said:
        assert read_with_pysubs2(to_vtt(result), "vtt") == said


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_ffmpeg_agrees(tmp_path: Path, format: str) -> None:
    text = "It said <b> & [sic], {twice}. " + "Then there were many more words than two lines can hold. " * 3
    result = recognition(spoken(text, 3590.0, confidence=0.3), spoken("At last!", 360_000.0, 0.8))
    path = tmp_path / f"a.{format}"
    path.write_text(to_srt(result) if format == "srt" else to_vtt(result, 0.5), encoding="utf-8")
    command = ["ffmpeg", "-v", "error", "-i", str(path), str(tmp_path / "copy.vtt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr
    shown = read_vtt((tmp_path / "copy.vtt").read_text(encoding="utf-8"))
    said = expected(result, 0.5 if format == "vtt" else None)
    assert [times[:2] for times in shown] == [times[:2] for times in said]


@given(ANY_TEXT, THRESHOLD, st.text())
@settings(max_examples=60, deadline=None)
def test_json_is_one_line_that_reads_back(result: Recognition, threshold: float | None, name: str) -> None:
    line = to_json(name, result, True, threshold)
    assert len(line.splitlines()) == 1 and len(line.encode().splitlines()) == 1
    document = json.loads(line)
    assert document["audio"] == name and document["text"] == result.text
    assert [word["text"] for word in document["words"]] == [word.text for word in result.words]
    doubted = [word.confidence < threshold for word in result.words] if threshold is not None else []
    assert [word.get("unsure", False) for word in document["words"]] == (
        doubted or [False] * len(result.words)
    )


def test_an_hour_of_speech_takes_no_time() -> None:
    text = " ".join(["word"] * 9 + ["sentence."])
    words = [word for minute in range(60) for word in spoken(" ".join([text] * 15), minute * 60, 0.4)]
    start = time.perf_counter()
    to_srt(recognition(words))
    assert time.perf_counter() - start < 10, "9,000 words"
