"""The fields of OpenAI's `POST /v1/audio/transcriptions`: which have an effect here, which none, which are refused.

They are those of the openai package's `TranscriptionCreateParams`. A test compares the two, so a new field of the API
is noticed; until it has an entry here, it is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from typing import Any

from tiny_audio.errors import nearest
from tiny_audio.serve.errors import ApiError

STREAMABLE = ("json", "text")
MOST_CHARACTERS = 16_384


class Use(StrEnum):
    honoured = "honoured"
    without_effect = "accepted, without effect"
    refused = "refused"


@dataclass(frozen=True)
class Field:
    """A field: what becomes of it, what it is for, and the check of its values, which raises ValueError."""

    use: Use
    help: str
    read: Callable[[list[str]], Any]


@dataclass(frozen=True)
class Options:
    """A request's checked fields."""

    response_format: str = "json"
    temperature: float = 0.0
    words: bool = False
    segments: bool = True
    stream: bool = False
    logprobs: bool = False
    language: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def needs_word_times(self) -> bool:
        return self.logprobs or self.response_format in ("srt", "vtt", "verbose_json")


# Values ---------------------------------------------------------------------------------------------------------------


def _one(values: list[str]) -> str:
    if len(values) != 1:
        raise ValueError(f"must be given once, got it {len(values)} times")
    return values[0]


def _text(values: list[str]) -> str:
    text = _one(values)
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"must have at most {MOST_CHARACTERS:,} characters, got {len(text):,}")
    return text


def _choice(*choices: str) -> Callable[[list[str]], str]:
    def read(values: list[str]) -> str:
        value = _one(values)
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, got {shown(value)}")
        return value

    return read


def _choices(*choices: str) -> Callable[[list[str]], set[str]]:
    one = _choice(*choices)
    return lambda values: {one([value]) for value in values}


def _number(low: float, high: float) -> Callable[[list[str]], float]:
    def read(values: list[str]) -> float:
        text = _one(values)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}, got {shown(text)}")
        return value

    return read


def _boolean(values: list[str]) -> bool:
    return _choice("true", "false", "True", "False", "1", "0")(values) in ("true", "True", "1")


def _chunking(values: list[str]) -> str | None:
    """`auto`, or the object of a voice activity detector: as JSON, or as the fields chunking_strategy[...]."""
    text = _one(values)
    if text == "auto":
        return text
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    known = {"type", "prefix_padding_ms", "silence_duration_ms", "threshold"}
    if not isinstance(given, dict) or given.get("type") != "server_vad" or not given.keys() <= known:
        raise ValueError('must be "auto" or {"type": "server_vad", ...}, got ' + shown(text))
    return text


FIELDS = {
    "file": Field(
        Use.honoured, "The audio file itself, in any format that is read; never a path or a URL.", _one
    ),
    "model": Field(Use.honoured, "The name that GET /v1/models gives.", _text),
    "response_format": Field(
        Use.honoured,
        "json, text, srt, verbose_json or vtt. diarized_json is refused: speakers are not told apart.",
        _choice("json", "text", "srt", "verbose_json", "vtt"),
    ),
    "temperature": Field(
        Use.honoured, "0 to 1. 0 (the default) always writes the likeliest text; above, it samples.",
        _number(0, 1),
    ),
    "timestamp_granularities": Field(
        Use.honoured, "word, segment or both, with verbose_json.", _choices("word", "segment")
    ),
    "stream": Field(Use.honoured, "Server-sent events with the text as it is written.", _boolean),
    "include": Field(
        Use.honoured,
        "logprobs, with json and without stream: the decoder's log-probability of each word.",
        _choices("logprobs"),
    ),
    "chunking_strategy": Field(
        Use.without_effect, "Long audio is always cut at silences, as auto asks for.", _chunking
    ),
    "language": Field(
        Use.without_effect, "The model writes the languages it was trained on; verbose_json repeats the code.",
        _text,
    ),
    "languages": Field(Use.without_effect, "As language.", list),
    "prompt": Field(Use.without_effect, "The model knows one prompt, the one that it was trained with.", _text),
    "keywords": Field(Use.without_effect, "As prompt.", list),
    "known_speaker_names": Field(Use.refused, "Speakers are not told apart.", list),
    "known_speaker_references": Field(Use.refused, "Speakers are not told apart.", list),
}  # fmt: skip
# What is so unless asked for otherwise: asking for it is not worth a remark.
PLAIN_VALUES = {"chunking_strategy": "auto", "prompt": ""}


def read_fields(items: Iterable[tuple[str, str]], model_name: str, has_times: bool) -> Options:
    """The options of a request from its form fields, all but the file. Raises ApiError.

    Args:
        items: names and values as they came, lists as `name[]` or `name` again and again.
        model_name: the only one there is.
        has_times: whether the model can time words.
    """
    given: dict[str, list[str]] = {}
    detector: dict[str, str] = {}
    for name, value in items:
        base, _, inner = name.partition("[")
        if base == "chunking_strategy" and inner.rstrip("]"):
            detector[inner.rstrip("]")] = value
        else:
            given.setdefault(base if inner in ("", "]") else name, []).append(value)
    if detector:
        given.setdefault("chunking_strategy", []).append(json.dumps(detector))
    values = {name: _read(name, texts) for name, texts in given.items()}
    if "model" not in values:
        raise _wrong("model", f'model is missing: send the name of the model, "{model_name}"')
    if values["model"] != model_name:
        message = f'The model {shown(values["model"])} does not exist; this server has "{model_name}"'
        raise ApiError(404, "model_not_found", message, param="model")
    granularities = values.get("timestamp_granularities", set())
    ignored = [
        name
        for name in values
        if FIELDS[name].use is Use.without_effect and values[name] != PLAIN_VALUES.get(name)
    ]
    options = Options(
        response_format=values.get("response_format", "json"),
        temperature=values.get("temperature", 0.0),
        words="word" in granularities,
        segments="word" not in granularities or "segment" in granularities,
        stream=values.get("stream", False),
        logprobs="logprobs" in values.get("include", ()),
        language=values.get("language"),
        ignored=tuple(ignored),
    )
    _check_together(options, bool(granularities), has_times)
    return options


def _read(name: str, texts: list[str]) -> Any:
    if name not in FIELDS:
        hint = nearest(name, FIELDS) or f" Known: {', '.join(FIELDS)}."
        raise _wrong(None, f"There is no field {shown(name)}.{hint}", "unknown_parameter")
    if name == "file":
        raise _wrong(
            "file", "file must be an uploaded file (in curl: -F file=@my.wav); paths and URLs are not opened"
        )
    field = FIELDS[name]
    if field.use is Use.refused:
        raise _wrong(name, f"{name} is not supported: {field.help}", "unsupported_parameter")
    try:
        return field.read(texts)
    except ValueError as error:
        raise _wrong(name, f"{name} {error}") from None


def _check_together(options: Options, granularities: bool, has_times: bool) -> None:
    """What fields may not be with each other, or with this model."""
    format = options.response_format
    if granularities and format != "verbose_json":
        raise _wrong(
            "timestamp_granularities",
            f"timestamp_granularities needs response_format=verbose_json, got {format}",
        )
    if options.stream and format not in STREAMABLE:
        raise _wrong("stream", f"stream needs response_format json or text, got {format}")
    if options.logprobs and (format != "json" or options.stream):
        raise _wrong("include", "include[]=logprobs needs response_format=json and no stream")
    if (options.words or options.logprobs) and not has_times:
        name = "timestamp_granularities" if options.words else "include"
        raise _wrong(name, "this model has no alignment head, so it can neither time nor score words")


def _wrong(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, code, message, param=param)


def shown(value: str) -> str:
    """A client's own word in a message: short, on one line."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def form_schema() -> dict[str, Any]:
    """The form for the OpenAPI document."""
    properties: dict[str, Any] = {
        name: {"type": "string", "description": f"{field.use.capitalize()}. {field.help}"}
        for name, field in FIELDS.items()
    }
    properties["file"]["format"] = "binary"
    form = {"type": "object", "required": ["file", "model"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def fields_page(path: str) -> str:
    """A page of HTML for people with what the fields of `path` do; it loads nothing."""
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(field.use)}<td>{escape(field.help)}"
        for name, field in FIELDS.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Tiny Audio: fields</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;"
        "border-bottom:1px solid #ccc}</style>"
        f"<h1>POST {escape(path)}</h1><p>A form (multipart/form-data). The same for programs: "
        '<a href="/openapi.json">openapi.json</a>.<table><tr><th>field<th>here<th>what it does'
        f"{rows}</table></html>"
    )
