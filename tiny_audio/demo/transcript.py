"""Transcripts as HTML: words to click, shaded by confidence, with what differs between two models marked."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tiny_audio.evaluate.wer import DELETION, HIT, INSERTION, Alignment, align
from tiny_audio.subtitles import to_json, to_srt, to_vtt

# What can be downloaded, by the ending of the file: its media type, and how it is made of a name and a `Recognition`.
DOWNLOADS: dict[str, tuple[str, Callable[[str, Any], str]]] = {
    "srt": ("application/x-subrip", lambda _, recognition: to_srt(recognition)),
    "vtt": ("text/vtt", lambda _, recognition: to_vtt(recognition)),
    "json": (
        "application/json",
        lambda name, recognition: to_json(name, recognition, bool(recognition.words)),
    ),
}
# A word with less confidence than this is shaded, from the second on more.
SHADES = ((0.5, "unsure-2"), (0.8, "unsure-1"))
PUNCTUATION = ".,;:!?…\"'“”‘’()[]{}–—-"


@dataclass(frozen=True)
class Word:
    """A word as written, its start and end in seconds, and how sure it is (0 to 1; None where that is unknown)."""

    text: str
    start: float
    end: float
    confidence: float | None = None


@dataclass
class Column:
    """What is shown of one model: text while it is written, then `recognition`; or `problem`, in words for people."""

    name: str
    text: str = ""
    heard_seconds: float = 0.0
    elapsed_seconds: float = 0.0
    recognition: Any = None
    problem: str | None = None

    @property
    def is_done(self) -> bool:
        return self.recognition is not None or self.problem is not None


def words_of(recognition: Any) -> list[Word]:
    """All words; without times, those of a segment begin where it does."""
    if recognition.words:
        return [Word(word.text, word.start, word.end, word.confidence) for word in recognition.words]
    return [
        Word(text, segment.start, segment.end)
        for segment in recognition.segments
        for text in segment.text.split()
    ]


def compared(words: Sequence[Word], others: Sequence[Word]) -> list[tuple[Word | None, str | None]]:
    """Each word with what another model wrote in its place: None for the same, "" for nothing.

    None as a word stands for a place where only the other model wrote something. Case and punctuation are left aside.
    """
    found: list[tuple[Word | None, str | None]] = []
    mine, theirs = iter(words), iter(others)
    for operation in _align(words, others).operations:
        word = None if operation == INSERTION else next(mine)
        other = "" if operation == DELETION else next(theirs).text
        if word is None and found and found[-1][0] is None:
            found[-1] = (None, f"{found[-1][1]} {other}")
        else:
            found.append((word, None if operation == HIT else other))
    return found


def count_differences(words: Sequence[Word], others: Sequence[Word]) -> int:
    """How many words one of two models wrote differently, or alone."""
    return _align(words, others).counts.errors


def _align(words: Sequence[Word], others: Sequence[Word]) -> Alignment:
    return align(*([_key(word.text) for word in each] for each in (words, others)))


def _key(text: str) -> str:
    return text.casefold().strip(PUNCTUATION) or text


def render(columns: Sequence[Column], seconds: float, file_name: str) -> str:
    """The part of the page below the recording.

    Args:
        columns: one, or two that are compared. seconds, file_name: of the recording.
    """
    listening = next((column for column in columns if not column.is_done), None)
    status = ""
    if listening is not None:
        who = f"{listening.name} is listening" if len(columns) > 1 else "Listening"
        far = f"{_seconds(listening.heard_seconds)} of {_seconds(seconds)}"
        status = (
            f'<div class="status" role="status"><span>{escape(who)}: {far}</span><button type="button" class="stop">'
            f'Stop</button><progress max="{seconds:.2f}" value="{listening.heard_seconds:.2f}"></progress></div>'
        )
    both = all(column.recognition is not None for column in columns)
    words = [words_of(column.recognition) for column in columns] if both else []
    shown = []
    for number, column in enumerate(columns):
        others = words[1 - number] if len(words) == 2 else None
        shown.append(_column(column, others, file_name, len(columns) > 1, column is listening))
    num_different = count_differences(*words) if len(words) == 2 else 0
    summary = ""
    if len(words) == 2:
        many = "word" if num_different == 1 else "words"
        found = (
            f"The models differ in {num_different} {many}."
            if num_different
            else "Both models wrote the same words."
            if words[0]
            else "Neither model wrote a word."
        )
        summary = f'<p class="summary">{found}</p>'
    hint = ""
    if listening is None and any(column.recognition and column.recognition.text for column in columns):
        differs = (
            " <b class=differs>Marked</b> words are not what the other model wrote." if num_different else ""
        )
        hint = (
            '<p class="hint">Click a word to hear it. Shaded words are less sure: '
            f'<span class="unsure-1">a little</span> <span class="unsure-2">a lot</span>.{differs}</p>'
        )
    return f'<div class="tiny-audio">{status}{summary}<div class="columns">{"".join(shown)}</div>{hint}</div>'


def message(text: str) -> str:
    """A problem with a recording as a whole."""
    return f'<div class="tiny-audio"><p class="problem" role="alert">{escape(text)}</p></div>'


def _column(
    column: Column, others: Sequence[Word] | None, file_name: str, is_named: bool, is_listening: bool
) -> str:
    heading = f"<h3>{escape(column.name)}</h3>" if is_named else ""
    if column.problem is not None:
        return f'<section>{heading}<p class="problem" role="alert">{escape(column.problem)}</p></section>'
    if column.recognition is None:
        live = " live" if is_listening else ""
        return f'<section>{heading}<p class="transcript{live}">{escape(column.text)}</p></section>'
    words = words_of(column.recognition)
    pairs = [(word, None) for word in words] if others is None else compared(words, others)
    body = " ".join(_gap(other) if word is None else _word(word, other) for word, other in pairs)
    facts = f"{_seconds(column.recognition.seconds)} of sound, written in {_seconds(column.elapsed_seconds)}"
    problems = "".join(
        f'<p class="problem">{escape(str(problem))}</p>' for problem in column.recognition.problems
    )
    if not words and not problems:
        body = "No speech was found in this recording. Speak close to the microphone, and try again."
        return f'<section>{heading}<p class="problem" role="alert">{body}</p></section>'
    stem = file_name.rpartition(".")[0] or file_name
    links = " ".join(
        _download(f"{stem}.{suffix}", media_type, make(file_name, column.recognition))
        for suffix, (media_type, make) in DOWNLOADS.items()
    )
    return (
        f'<section>{heading}<p class="transcript" dir="auto">{body}</p>{problems}'
        f'<p class="facts">{facts}</p><p class="downloads">{links}</p></section>'
    )


def _word(word: Word, other: str | None) -> str:
    about, classes = [f"{word.start:.1f} s"], ["word"]
    if word.confidence is not None:
        about.append(f"{word.confidence:.0%} sure")
        classes += [name for limit, name in SHADES if word.confidence < limit][:1]
    if other is not None:
        classes.append("differs")
        about.append(f'the other model: "{other}"' if other else "the other model wrote nothing here")
    return (
        f'<button type="button" class="{" ".join(classes)}" data-start="{word.start:.3f}" data-end="{word.end:.3f}"'
        f' title="{escape(", ".join(about))}">{escape(word.text)}</button>'
    )


def _gap(other: str | None) -> str:
    return f'<span class="differs gap" title="{escape(f"the other model: {other}")}">·</span>'


def _download(name: str, media_type: str, content: str) -> str:
    data = base64.b64encode(content.encode("utf-8", errors="replace")).decode()
    label = name.rpartition(".")[2].upper()
    return f'<a download="{escape(name)}" href="data:{media_type};base64,{data}">{label}</a>'


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
