"""Transcripts with times to subtitles (SRT, WebVTT), to marked text, and to one line of JSON.

Cues are chosen all at once: of all ways to cut a stretch of speech into cues that keep to the limits, the one that
costs least, where cutting between two words is cheap at the end of a sentence or at a pause, dearer at a comma, and
dearest anywhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiny_audio.hub.asr_merging import Recognition, Segment

# What broadcasters ask for: https://www.bbc.co.uk/accessibility/forproducts/guides/subtitles/ and Netflix's timed text
# style guide agree on two lines, on about 40 characters a line and on 7 seconds.
LINE_CHARACTERS = 42
LINES = 2
LONGEST_MILLISECONDS = 7000
# A cue stays as long as it takes to read, if the next one leaves it that much time.
SHORTEST_MILLISECONDS = 1000
CHARACTERS_PER_SECOND = 20
# Where more cues are due than time allows for (words without length), the next cue waits for so long at most.
LEAST_MILLISECONDS = 200

# A pause this long ends a cue, whatever comes after. A shorter one is a good place to.
LONG_PAUSE_MILLISECONDS = 1500
PAUSE_MILLISECONDS = 600
SHORT_PAUSE_MILLISECONDS = 250
SENTENCE_END = re.compile(r"""[.?!…。？！]["'”’»)\]]*$""")
CLAUSE_END = re.compile(r"""[,;:，、；：—–]["'”’»)\]]*$""")

# Costs, in cues.
COST_OF_BAD_CUT = 2.0
COST_OF_MISSED_CUT = 1.5
COST_OF_HASTE = 2.0
COST_OF_ROOM_LEFT = 0.3  # squared, so that cues of one sentence are of about one length

UNSURE_MARK = "[{}?]"
UNSURE_MARK_CHARACTERS = 3
# Characters that split or spoil a line of JSON in some reader; its escapes say the same.
JSON_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Control characters, which could do anything to a terminal, and halves of characters, which no file can hold.
NOT_PRINTABLE = dict.fromkeys(
    [*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)], "\N{REPLACEMENT CHARACTER}"
)


@dataclass(frozen=True)
class Token:
    """A word, or a part of one that is longer than a line, with its time in milliseconds."""

    text: str
    start: int
    end: int
    unsure: bool = False

    @property
    def marked(self) -> str:
        return UNSURE_MARK.format(self.text) if self.unsure else self.text


@dataclass(frozen=True)
class Cue:
    """What is shown from `start` to `end` (milliseconds): one or two lines of tokens."""

    start: int
    end: int
    lines: tuple[tuple[Token, ...], ...]


# Documents ------------------------------------------------------------------------------------------------------------


def to_text(recognition: Recognition, min_confidence: float | None = None) -> str:
    """The text on one line; words with less confidence than `min_confidence` as `[word?]`."""
    if min_confidence is None:
        return clean(recognition.text)
    return " ".join(token.marked for token in tokens(recognition, min_confidence, None))


def to_srt(recognition: Recognition, min_confidence: float | None = None) -> str:
    """A whole SubRip document; empty where nothing was said. Unsure words are written `[word?]`.

    SubRip has no escapes, so an arrow in the text, which a reader would take for a line of times, becomes "→".
    """
    blocks = []
    for number, cue in enumerate(cues(recognition, min_confidence), start=1):
        lines = (" ".join(token.marked for token in line).replace("-->", "→") for line in cue.lines)
        times = f"{timestamp(cue.start, ',')} --> {timestamp(cue.end, ',')}"
        blocks.append("\n".join([str(number), times, *lines]) + "\n")
    return "\n".join(blocks)


def to_vtt(recognition: Recognition, min_confidence: float | None = None) -> str:
    """A whole WebVTT document. Unsure words are written `<c.unsure>word</c>`.

    How those look is for the page to say: `::cue(.unsure) { font-style: italic }`. The document itself brings no
    STYLE block, at which ffmpeg 5.1 stops reading without an error.
    """
    blocks = ["WEBVTT\n"]
    for cue in cues(recognition, min_confidence):
        lines = (" ".join(_vtt(token) for token in line) for line in cue.lines)
        blocks.append("\n".join([f"{timestamp(cue.start)} --> {timestamp(cue.end)}", *lines]) + "\n")
    return "\n".join(blocks)


def to_json(
    audio: str, recognition: Recognition, words: bool = False, min_confidence: float | None = None
) -> str:
    """One line of JSON: {"audio", "seconds", "text", "words"?, "segments", "problems"}, with times in seconds.

    Args:
        audio: the file's name.
        words: whether to list the words, each {"text", "start", "end", "confidence"}.
        min_confidence: list them, and give those with less confidence `"unsure": true`.
    """
    document: dict[str, Any] = {
        "audio": audio,
        "seconds": round(recognition.seconds, 3),
        "text": recognition.text,
    }
    if words or min_confidence is not None:
        document["words"] = [
            {
                "text": word.text,
                "start": round(word.start, 3),
                "end": round(word.end, 3),
                "confidence": round(word.confidence, 4),
                **({"unsure": True} if _is_unsure(word, min_confidence) else {}),
            }
            for word in recognition.words
        ]
    document["segments"] = [
        {"text": segment.text, "start": round(segment.start, 3), "end": round(segment.end, 3)}
        for segment in recognition.segments
    ]
    document["problems"] = [
        {"start": round(problem.start, 3), "end": round(problem.end, 3), "reason": problem.reason}
        for problem in recognition.problems
    ]
    return to_json_line(document)


def to_json_line(document: dict[str, Any]) -> str:
    """JSON that is one line to every reader, whatever the texts in it hold, and reads back as it was."""
    text = json.dumps(document, ensure_ascii=False)
    return JSON_ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def timestamp(milliseconds: int, decimal_mark: str = ".") -> str:
    """`HH:MM:SS.mmm`, with more digits for the hours from 100 on."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{decimal_mark}{rest:03}"


def clean(text: str) -> str:
    """`text` on one line: blanks of all kinds as single spaces, and nothing that a terminal or a file cannot hold."""
    return " ".join(text.split()).translate(NOT_PRINTABLE)


def _vtt(token: Token) -> str:
    text = token.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<c.unsure>{text}</c>" if token.unsure else text


# Words ----------------------------------------------------------------------------------------------------------------


def _is_unsure(word: Any, min_confidence: float | None) -> bool:
    return min_confidence is not None and word.confidence < min_confidence


def tokens(
    recognition: Recognition, min_confidence: float | None, longest: int | None = LINE_CHARACTERS
) -> list[Token]:
    """The words in their order, none longer than `longest` characters with its mark; starts never decrease."""
    found: list[Token] = []
    earliest = 0
    for segment in recognition.segments:
        for text, start, end, unsure in _words(segment, min_confidence):
            room = longest - UNSURE_MARK_CHARACTERS * unsure if longest else len(text)
            parts = [text[first : first + room] for first in range(0, len(text), room)]
            first_millisecond = max(round(start * 1000), earliest)
            length = max(round(end * 1000) - first_millisecond, 0)
            for index, part in enumerate(parts):
                begin = first_millisecond + length * index // len(parts)
                stop = first_millisecond + length * (index + 1) // len(parts)
                found.append(Token(part, begin, stop, unsure))
                earliest = begin
    return found


def _words(segment: Segment, min_confidence: float | None) -> Iterator[tuple[str, float, float, bool]]:
    """Clean text, start, end and doubt of each word. Without times, a segment's words share its time by length."""
    if segment.words:
        for word in segment.words:
            if text := clean(word.text):
                yield text, word.start, word.end, _is_unsure(word, min_confidence)
        return
    texts = clean(segment.text).split()
    share = (segment.end - segment.start) / max(sum(len(text) + 1 for text in texts), 1)
    start = segment.start
    for text in texts:
        end = start + share * (len(text) + 1)
        yield text, start, end, False
        start = end


# Cues -----------------------------------------------------------------------------------------------------------------


def cues(recognition: Recognition, min_confidence: float | None = None) -> list[Cue]:
    """The words in cues of at most two lines and seven seconds, in order, none empty and no two overlapping."""
    words = tokens(recognition, min_confidence)
    groups: list[list[Token]] = []
    for index, word in enumerate(words):
        if index == 0 or word.start - words[index - 1].end >= LONG_PAUSE_MILLISECONDS:
            groups.append([])
        groups[-1].append(word)
    return _timed([cue for group in groups for cue in _cut(group)])


def _cut(group: Sequence[Token]) -> list[Sequence[Token]]:
    """The cheapest way to cut words into cues, by dynamic programming over where the last cue begins."""
    quality = [_cut_quality(word, following) for word, following in pairwise(group)]
    quality.append(1.0)  # the end of the group
    cheapest = [0.0] + [float("inf")] * len(group)  # cost of the first n words
    begins = [0] * (len(group) + 1)
    for first in range(len(group)):
        missed = 0.0
        num_lines, characters = 1, -1
        for last in range(first, len(group)):
            length = len(group[last].marked)
            characters += 1 + length
            if characters > LINE_CHARACTERS:
                num_lines, characters = num_lines + 1, length
            shown = group[last].end - group[first].start
            if last > first and (num_lines > LINES or shown > LONGEST_MILLISECONDS):
                break
            following = group[last + 1].start if last + 1 < len(group) else None
            haste = 0.0
            if following is not None:
                haste = max(0.0, 1 - (following - group[first].start) / SHORTEST_MILLISECONDS)
            room = 1 - ((num_lines - 1) * LINE_CHARACTERS + characters) / (LINES * LINE_CHARACTERS)
            cost = cheapest[first] + 1 + missed + COST_OF_BAD_CUT * (1 - quality[last])
            cost += COST_OF_HASTE * haste + COST_OF_ROOM_LEFT * room**2
            if cost < cheapest[last + 1]:
                cheapest[last + 1], begins[last + 1] = cost, first
            missed += COST_OF_MISSED_CUT * quality[last] ** 2
    found: list[Sequence[Token]] = []
    end = len(group)
    while end:
        found.append(group[begins[end] : end])
        end = begins[end]
    return found[::-1]


def _cut_quality(word: Token, following: Token) -> float:
    """How good a place for a cut the gap between two words is: 0 for none to 1 for the end of a sentence."""
    pause = following.start - word.end
    if SENTENCE_END.search(word.text) or pause >= PAUSE_MILLISECONDS:
        return 1.0
    if CLAUSE_END.search(word.text) or pause >= SHORT_PAUSE_MILLISECONDS:
        return 0.6
    return 0.0


def _timed(groups: list[Sequence[Token]]) -> list[Cue]:
    """Each cue from its first word to its last, or for as long as it takes to read, up to the next one."""
    found: list[Cue] = []
    free_from = 0
    for index, words in enumerate(groups):
        start = max(words[0].start, free_from)
        characters = sum(len(word.text) + 1 for word in words)
        reading = max(SHORTEST_MILLISECONDS, characters * 1000 // CHARACTERS_PER_SECOND)
        end = max(words[-1].end, start + reading)
        if index + 1 < len(groups):
            end = min(end, groups[index + 1][0].start)
        end = min(max(end, start + LEAST_MILLISECONDS), start + LONGEST_MILLISECONDS)
        found.append(Cue(start, end, _lines(words)))
        free_from = end
    return found


def _lines(words: Sequence[Token]) -> tuple[tuple[Token, ...], ...]:
    """One line if they fit, else two of about one length, the first of them rather ending at punctuation."""
    lengths = [len(word.marked) for word in words]
    if sum(lengths) + len(words) - 1 <= LINE_CHARACTERS:
        return (tuple(words),)

    def cost(first: int) -> tuple[bool, int]:
        upper, lower = (sum(part) + len(part) - 1 for part in (lengths[:first], lengths[first:]))
        stop = SENTENCE_END.search(words[first - 1].text) or CLAUSE_END.search(words[first - 1].text)
        return max(upper, lower) > LINE_CHARACTERS, abs(upper - lower) - (LINE_CHARACTERS // 3 if stop else 0)

    border = min(range(1, len(words)), key=cost)
    return tuple(words[:border]), tuple(words[border:])
