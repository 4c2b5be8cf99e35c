"""A recognition as each `response_format` of the API has it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tiny_audio import subtitles
from tiny_audio.serve.fields import Options

if TYPE_CHECKING:
    from tiny_audio.hub.asr_merging import Recognition, Segment

Encode = Callable[[str], list[int]]
UNKNOWN_LANGUAGE = "unknown"
SEEK_FRAMES_PER_SECOND = 100  # of Whisper, whose unit the field has


def render(recognition: Recognition, options: Options, encode: Encode) -> tuple[str, str]:
    """The body of an answer and its media type. `encode` makes token ids of a text."""
    return RENDERERS[options.response_format](recognition, options, encode)


def _text(recognition: Recognition, options: Options, encode: Encode) -> tuple[str, str]:
    return subtitles.to_text(recognition) + "\n", "text/plain"


def _srt(recognition: Recognition, options: Options, encode: Encode) -> tuple[str, str]:
    return subtitles.to_srt(recognition), "text/plain"


def _vtt(recognition: Recognition, options: Options, encode: Encode) -> tuple[str, str]:
    return subtitles.to_vtt(recognition), "text/vtt"


def _json(recognition: Recognition, options: Options, encode: Encode) -> tuple[str, str]:
    document: dict[str, Any] = {"text": recognition.text}
    if options.logprobs:
        document["logprobs"] = _logprobs(recognition)
    return _document(document, recognition)


def _verbose(recognition: Recognition, options: Options, encode: Encode) -> tuple[str, str]:
    document: dict[str, Any] = {
        "task": "transcribe",
        "language": options.language or UNKNOWN_LANGUAGE,
        "duration": round(recognition.seconds, 3),
        "text": recognition.text,
    }
    if options.words:
        document["words"] = [
            {
                "word": word.text,
                "start": round(word.start, 3),
                "end": round(word.end, 3),
                "confidence": round(word.confidence, 4),
            }
            for word in recognition.words
        ]
    if options.segments:
        document["segments"] = [
            _segment(number, segment, options.temperature, encode)
            for number, segment in enumerate(recognition.segments)
        ]
    return _document(document, recognition)


def _segment(number: int, segment: Segment, temperature: float, encode: Encode) -> dict[str, Any]:
    """A segment with all the fields that the API's has.

    A window in which the alignment head hears no speech makes no segment, hence `no_speech_prob`. The average of
    log-probabilities is null where words were not asked for.
    """
    tokens = encode(segment.text)
    scores = [word.log_probability for word in segment.words or []]
    known = [score for score in scores if score is not None]
    text = segment.text.encode()
    return {
        "id": number,
        "seek": int(segment.start * SEEK_FRAMES_PER_SECOND),
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": tokens,
        "temperature": temperature,
        "avg_logprob": round(sum(known) / max(len(tokens), 1), 4) if known else None,
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0,
    }


def _logprobs(recognition: Recognition) -> list[dict[str, Any]]:
    """A token of this list is a word with the blank before it: tokens joined are the text."""
    listed = []
    for number, word in enumerate(recognition.words):
        token = f" {word.text}" if number else word.text
        score = None if word.log_probability is None else round(word.log_probability, 4)
        listed.append({"token": token, "logprob": score, "bytes": list(token.encode())})
    return listed


def _document(document: dict[str, Any], recognition: Recognition) -> tuple[str, str]:
    document["usage"] = {"type": "duration", "seconds": round(recognition.seconds, 3)}
    if recognition.problems:
        document["problems"] = [vars(problem) for problem in recognition.problems]
    return json.dumps(document, ensure_ascii=True), "application/json"


RENDERERS: dict[str, Callable[[Recognition, Options, Encode], tuple[str, str]]] = {
    "json": _json,
    "text": _text,
    "srt": _srt,
    "verbose_json": _verbose,
    "vtt": _vtt,
}


def event(document: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=True)}\n\n".encode()
