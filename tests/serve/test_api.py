"""The server through the official client: every format and field, every refusal, texts as they are offline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types.audio.transcription_create_params import (
    TranscriptionCreateParamsNonStreaming,
    TranscriptionCreateParamsStreaming,
)
from prometheus_client.parser import text_string_to_metric_families

from tests.hub.recordings import known_clips, trained_model
from tests.serve.serving import MODEL, PATH, Running, clip, encoded, hiss, long_recording, offline, running
from tests.tiny_models import SAMPLING_RATE
from tiny_audio import subtitles
from tiny_audio.serve.fields import FIELDS, Use


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def create(server: Running, audio: bytes, **fields: Any) -> Any:
    return server.client().audio.transcriptions.create(file=("a.flac", audio), model=MODEL, **fields)


def refused(server: Running, audio: bytes = b"", **fields: Any) -> dict[str, Any]:
    """The error of a request that must be refused; its form is that of OpenAI's."""
    response = server.post(audio or clip(2)[0], **fields)
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert response.status_code >= 400 and "\n" not in body["error"]["message"]
    return {"status": response.status_code, **body["error"]}


# Formats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_the_model_writes_what_it_was_taught(server: Running, number: int) -> None:
    audio, text = clip(number)
    answer = create(server, audio)
    assert answer.text == text == offline(audio).text
    assert answer.usage.type == "duration" and answer.usage.seconds == pytest.approx(
        [0.9, 2.35, 0.4, 1.6][number], abs=1e-3
    )


def test_text_and_subtitles(server: Running) -> None:
    audio = long_recording(2)
    with_words = offline(audio, word_times=True)
    assert with_words.text
    assert create(server, audio, response_format="text") == subtitles.to_text(with_words) + "\n"
    assert create(server, audio, response_format="srt") == subtitles.to_srt(with_words)
    assert create(server, audio, response_format="vtt") == subtitles.to_vtt(with_words)


def test_verbose_json(server: Running) -> None:
    audio = long_recording(2)
    expected = offline(audio, word_times=True)
    answer = create(server, audio, response_format="verbose_json", language="en")
    assert answer.text == expected.text and answer.duration == pytest.approx(expected.seconds, abs=1e-3)
    assert answer.language == "en" and answer.words is None
    assert [segment.text for segment in answer.segments] == [segment.text for segment in expected.segments]
    tokenizer = trained_model()[1].tokenizer
    for segment in answer.segments:
        assert tokenizer.decode(segment.tokens) == segment.text and segment.temperature == 0
        assert -5 < segment.avg_logprob < 0 and segment.start < segment.end
    both = create(server, audio, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert [(word.word, word.start) for word in both.words] == [
        (word.text, pytest.approx(word.start, abs=1e-3)) for word in expected.words
    ]
    assert both.segments == answer.segments
    words = create(server, audio, response_format="verbose_json", timestamp_granularities=["word"])
    assert words.words == both.words and words.segments is None


def test_log_probabilities_make_the_text(server: Running) -> None:
    audio, text = clip(3)
    answer = create(server, audio, include=["logprobs"])
    assert "".join(token.token for token in answer.logprobs) == text
    assert all(bytes(map(int, token.bytes)).decode() == token.token for token in answer.logprobs)
    assert all(-5 < token.logprob <= 0 for token in answer.logprobs)


@pytest.mark.parametrize("clips", [1, 3])
def test_a_stream_tells_the_same_text_in_pieces(server: Running, clips: int) -> None:
    audio = clip(1)[0] if clips == 1 else long_recording(clips)
    events = list(create(server, audio, stream=True))
    deltas = [event.delta for event in events[:-1]]
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"} and len(deltas) > 1
    assert events[-1].type == "transcript.text.done"
    assert "".join(deltas) == events[-1].text == offline(audio).text


def test_a_stream_is_told_while_it_is_written(server: Running) -> None:
    """The first piece of a long recording is there long before the last."""
    audio = long_recording(24)
    with httpx.stream(
        "POST",
        server.url + PATH,
        files={"file": ("a.flac", audio)},
        data={"model": MODEL, "stream": "true"},
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        next(lines)
        assert server.service.taken == 1 and server.service.engine.jobs, "it is still at work"
        assert '"transcript.text.done"' in [line for line in lines if line][-1]


# Audio ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "rate"), [("MP3", 44_100), ("WAV", 8_000), ("OGG", 48_000)])
def test_stereo_at_other_rates(server: Running, format: str, rate: int) -> None:
    import soxr

    mono = soxr.resample(known_clips()[0][1], SAMPLING_RATE, rate)
    audio = encoded(np.stack([mono, 0.5 * mono], axis=1), format, rate)
    assert create(server, audio).text == offline(audio).text


def test_silence_gives_no_words(server: Running) -> None:
    audio = encoded(np.zeros(2 * SAMPLING_RATE))
    assert create(server, audio).text == ""
    assert create(server, audio, response_format="srt") == ""
    assert create(server, audio, response_format="verbose_json").segments == []
    assert [event.type for event in create(server, audio, stream=True)] == ["transcript.text.done"]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (b"", "is empty"),
        (b"this is text, whatever its name says", "is not audio"),
        (b"#EXTM3U\nfile:///etc/hostname\n", "is not audio"),
        (encoded(np.zeros(0), "WAV"), "no samples"),
        (encoded(np.full(100, np.nan, np.float32), "WAV")[:44], "no samples"),
    ],
)
def test_what_is_not_audio(server: Running, audio: bytes, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        create(server, audio)
    assert error.value.code == "invalid_audio" and error.value.param == "file" and message in str(error.value)
    with pytest.raises(openai.BadRequestError):
        create(server, audio, stream=True)


def test_what_is_cut_off_is_read_as_far_as_it_goes(server: Running) -> None:
    audio = encoded(known_clips()[0][1], "MP3")
    cut = audio[: len(audio) // 2]
    assert create(server, cut).text == offline(cut).text
    whole = encoded(known_clips()[0][1], "WAV")
    answer = server.post(whole[: len(whole) // 2], response_format="verbose_json")
    assert "ends too early" in answer.json()["problems"][0]["reason"]


def test_too_long_by_its_header_and_without_one(server: Running) -> None:
    minutes = encoded(np.zeros(SAMPLING_RATE * 600, np.int16))
    assert len(minutes) < 100_000, "a small upload"
    assert "lasts 600.0 s, longer than the limit of 120 s" in refused(server, minutes)["message"]
    undeclared = bytearray(minutes)
    undeclared[21] &= 0xF0  # the number of samples in FLAC's header
    undeclared[22:26] = bytes(4)
    error = refused(server, bytes(undeclared))
    assert error["code"] == "invalid_audio" and "longer than the limit of 120 s" in error["message"]


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": "docx"}, "response_format", "one of json, text"),
        ({"response_format": "diarized_json"}, "response_format", "one of json, text"),
        ({"temperature": "1.5"}, "temperature", "from 0 to 1"),
        ({"temperature": "nan"}, "temperature", "from 0 to 1"),
        ({"stream": "maybe"}, "stream", "true"),
        ({"stream": "true", "response_format": "srt"}, "stream", "json or text"),
        ({"stream": "true", "include__": "logprobs"}, "include", "no stream"),
        ({"include__": "secrets"}, "include", "logprobs"),
        ({"timestamp_granularities__": "word"}, "timestamp_granularities", "verbose_json"),
        (
            {"timestamp_granularities__": "letter", "response_format": "verbose_json"},
            "timestamp_granularities",
            "word, segment",
        ),
        ({"chunking_strategy": "magic"}, "chunking_strategy", "server_vad"),
        ({"chunking_strategy": "[" * 10_000}, "chunking_strategy", "server_vad"),
        ({"known_speaker_names__": "Ann"}, "known_speaker_names", "not supported"),
        ({"language": ["en", "de"]}, "language", "once"),
        ({"temprature": "0"}, None, 'Did you mean "temperature"'),
        ({"prompt": "a" * 20_000}, "prompt", "16,384"),
    ],
)
def test_fields_that_cannot_be(server: Running, fields: Any, param: str | None, message: str) -> None:
    error = refused(server, **fields)
    assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert message in error["message"] and len(error["message"]) < 300


def test_what_has_no_effect_is_said(server: Running) -> None:
    audio, text = clip(0)
    response = server.post(audio, prompt="dear", languages__="en", chunking_strategy="auto")
    assert response.json()["text"] == text
    assert response.headers["x-tiny-audio-without-effect"] == "prompt, languages"
    raw = server.client().audio.transcriptions.with_raw_response.create(
        file=("a.flac", audio), model=MODEL, chunking_strategy={"type": "server_vad", "threshold": 0.5}
    )
    assert raw.headers["x-tiny-audio-without-effect"] == "chunking_strategy"


def test_temperature_is_taken(server: Running) -> None:
    audio, text = clip(3)
    assert create(server, audio, temperature=0.01).text == text
    assert isinstance(create(server, audio, temperature=1.0).text, str)


def test_every_field_of_the_client_is_known() -> None:
    known = (
        TranscriptionCreateParamsNonStreaming.__annotations__
        | TranscriptionCreateParamsStreaming.__annotations__
    )
    assert set(FIELDS) == set(known)
    assert {field.use for field in FIELDS.values()} == set(Use)


def test_models_and_wrong_ones(server: Running) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("whisper-1")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.audio.transcriptions.create(file=("a.flac", clip(0)[0]), model="whisper-1")


def test_translations_are_refused(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        server.client().audio.translations.create(file=("a.flac", clip(0)[0]), model=MODEL)
    assert error.value.code == "unsupported_endpoint" and "does not translate" in str(error.value)


def test_forms_that_cannot_be(server: Running) -> None:
    url = server.url + PATH
    for response, status, code in (
        (httpx.post(url, json={"model": MODEL}), 415, "unsupported_media_type"),
        (httpx.post(url, data={"model": MODEL, "file": "/etc/hostname"}), 415, "unsupported_media_type"),
        (httpx.post(url, data={"model": MODEL}, files={"wav": ("a", b"x")}), 400, "invalid_value"),
        (httpx.post(url, files={"file": ("a", clip(0)[0])}), 400, "invalid_value"),
        (httpx.post(url, files=[("file", ("a", b"x")), ("file", ("b", b"x"))]), 400, "invalid_form"),
        (httpx.post(url, data={"model": "x" * 70_000}, files={"file": ("a", b"x")}), 400, "invalid_form"),
        (httpx.post(url, content=b"--b\r\nnonsense", headers={"Content-Type": "multipart/form-data; boundary=b"}),
         400, "invalid_value"),
        (httpx.post(url, content=b"x", headers={"Content-Type": "multipart/form-data"}), 400, "invalid_form"),
        (httpx.get(url), 405, "invalid_request"),
        (httpx.get(server.url + "/v1/nothing"), 404, "invalid_request"),
    ):  # fmt: skip
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    paths = {"model": (None, MODEL), "file": (None, "file:///etc/hostname")}
    assert "are not opened" in httpx.post(url, files=paths).json()["error"]["message"]


# Many at once ---------------------------------------------------------------------------------------------------------


def test_many_at_once_get_what_each_gets_alone(server: Running) -> None:
    audio = [clip(number)[0] for number in range(4)] + [long_recording(3, seed) for seed in range(2)]
    audio += [hiss(seconds) for seconds in (0.2, 1.1)]
    expected = [offline(file).text for file in audio]
    order = np.random.default_rng(0).integers(len(audio), size=24).tolist()
    formats = ["json", "verbose_json", "stream"]

    def ask(place: int) -> str:
        number, format = order[place], formats[place % 3]
        if format == "stream":
            return list(create(server, audio[number], stream=True))[-1].text
        return create(server, audio[number], response_format=format).text

    with ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(ask, range(len(order))))
    assert texts == [expected[number] for number in order]
    figures = metrics(server)
    assert (
        figures["tiny_audio_batch_windows_sum"] > figures["tiny_audio_batch_windows_count"]
    )  # some were shared


def metrics(server: Running) -> dict[str, float]:
    """The figures without labels, read as Prometheus reads them."""
    text = httpx.get(f"{server.url}/metrics").text
    families = text_string_to_metric_families(text)
    return {
        sample.name: sample.value for family in families for sample in family.samples if not sample.labels
    }


def test_metrics_count(server: Running) -> None:
    before = metrics(server)
    create(server, clip(0)[0])
    after = metrics(server)
    assert after["tiny_audio_audio_seconds_total"] - before[
        "tiny_audio_audio_seconds_total"
    ] == pytest.approx(0.9)
    assert after["tiny_audio_model_seconds_total"] > before["tiny_audio_model_seconds_total"]
    assert after["tiny_audio_requests_taken"] == after["tiny_audio_windows_waiting"] == 0


def test_the_described_form_has_every_field(server: Running) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    form = document["paths"][PATH]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == set(FIELDS)


def test_the_page_of_fields_loads_nothing(server: Running) -> None:
    page = httpx.get(f"{server.url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://|<script|@import|url\(", page.text)
    for name in FIELDS:
        assert f"<code>{escape(name)}</code>" in page.text
