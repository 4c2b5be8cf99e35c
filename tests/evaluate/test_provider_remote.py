"""Recognisers on the network, against a real server on this machine that speaks their protocols and fails like them."""

from __future__ import annotations

import asyncio
import email
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import soundfile

from tiny_audio.errors import UserError
from tiny_audio.evaluate import provider_http
from tiny_audio.evaluate.provider_http import RemoteError, RetryPolicy, check_url, parse_retry_after
from tiny_audio.evaluate.provider_remote import (
    AssemblyAIProvider,
    HFEndpointProvider,
    OpenAIProvider,
    RemoteProvider,
)
from tiny_audio.evaluate.providers import check_provider, key_variable, load_provider

KEY = "sk-very-secret-0123456789"
FAST = RetryPolicy(
    max_tries=3, max_wait_seconds=3.0, first_wait_seconds=0.02, longest_wait_seconds=0.1, request_seconds=0.5
)
CLIPS = [np.full(1600 * (index + 1), 0.25, np.float32) for index in range(5)]
VARIABLES = (
    "ASSEMBLYAI_API_KEY",
    "ASSEMBLYAI_BASE_URL",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "HF_TOKEN",
)


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Answer:
    """What the server sends: JSON, or `raw` bytes; late, or cut off before its end."""

    value: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    delay_seconds: float = 0.0
    is_cut: bool = False


class Server(ThreadingHTTPServer):
    """Answers as the service of the test (`answer`), after the `failures` that have been put in its way."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[Request] = []
        self.failures: list[Answer] = []
        self.answer: Callable[[Request], Answer] = lambda request: Answer(status=404)
        self.lock = threading.Lock()
        self.num_active = self.most_active = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body, time.monotonic())
        with self.server.lock:
            self.server.requests.append(request)
            self.server.num_active += 1
            self.server.most_active = max(self.server.most_active, self.server.num_active)
            failure = self.server.failures.pop(0) if self.server.failures else None
        answer = failure or self.server.answer(request)
        time.sleep(answer.delay_seconds)
        with self.server.lock:
            self.server.num_active -= 1
        content = answer.raw if answer.raw is not None else json.dumps(answer.value).encode()
        try:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + (10 if answer.is_cut else 0)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the client has given up, which is what some tests are about
            pass
        self.close_connection = True

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def openai(server: Server, monkeypatch: pytest.MonkeyPatch) -> OpenAIProvider:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1/")
    server.answer = lambda request: Answer(
        {"text": f" {num_samples(form_fields(request)['file'])} samples\n"}
    )
    return OpenAIProvider("whisper-1", FAST)


def form_fields(request: Request) -> dict[str, bytes]:
    """A multipart/form-data body (RFC 7578), read by the standard library's own parser."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + request.body).get_payload()
    return {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in parts
    }


def num_samples(flac: bytes) -> int:
    info = soundfile.info(io.BytesIO(flac))
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16_000, 1)
    return info.frames


def test_openai_sends_what_the_protocol_asks_for(server: Server, openai: OpenAIProvider) -> None:
    assert openai.transcribe(CLIPS) == [f"{1600 * (index + 1)} samples" for index in range(5)]
    request = server.requests[0]
    assert (request.method, request.path) == ("POST", "/v1/audio/transcriptions")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    fields = form_fields(request)
    del fields["file"]
    assert fields == {
        "model": b"whisper-1",
        "language": b"en",
        "response_format": b"json",
        "temperature": b"0",
    }


def test_clips_are_sent_several_at_a_time(server: Server, openai: OpenAIProvider) -> None:
    answer = server.answer
    server.answer = lambda request: Answer(answer(request).value, delay_seconds=0.1)
    openai.transcribe(CLIPS * 2)
    assert server.most_active == FAST.num_connections


@pytest.mark.parametrize(
    "failure",
    [
        Answer({"error": {"message": "later"}}, 500),
        Answer(status=503),
        Answer(status=429, headers={"Retry-After": "0"}),
        Answer({"text": "too late"}, delay_seconds=1.0),
        Answer({"text": "cut off"}, is_cut=True),
    ],
    ids=["500", "503", "429", "slow", "cut"],
)
def test_a_passing_failure_is_repeated(server: Server, openai: OpenAIProvider, failure: Answer) -> None:
    server.failures = [failure]
    assert openai.transcribe(CLIPS[:1]) == ["1600 samples"]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            Answer({"error": {"message": "down\nfor\x1b now"}}, 500),
            r"answered 500: down for\ufffd now \(3 tries\)",
        ),
        (Answer({"text": "x"}, delay_seconds=0.8), r"gave no whole answer within 0.5 s \(3 tries\)"),
        (Answer({"text": "x"}, is_cut=True), r"could not be reached \(.*\) \(3 tries\)"),
        (Answer({"error": "bad audio"}, 400), r"answered 400: bad audio$"),
        (Answer(raw=b"<html>hello</html>"), r"other than JSON: <html>hello</html>"),
        (Answer(raw=b"[" * 100_000), r"other than JSON"),
        (Answer(raw=b"\xff\x00"), r"other than JSON: \ufffd\ufffd"),
        (Answer({"text": 5}), r"without a text: \{'text': 5\}"),
        (Answer(["x"]), r"without a text"),
        (Answer(raw=b"1" * 300_000), r"more than 200,000 bytes"),
        (
            Answer(status=302, headers={"Location": "http://127.0.0.1:9/"}),
            r"a redirect, which is not followed",
        ),
        (Answer(status=429, headers={"Retry-After": "3600"}), r"asks to wait 3600 s more"),
    ],
)
def test_a_lasting_failure_is_that_of_its_clip(
    server: Server, openai: OpenAIProvider, monkeypatch: pytest.MonkeyPatch, failure: Answer, message: str
) -> None:
    monkeypatch.setattr(provider_http, "MAX_ANSWER_BYTES", 200_000)
    answer = server.answer
    server.answer = lambda request: (
        failure if num_samples(form_fields(request)["file"]) == 1600 else answer(request)
    )
    openai.service.has_answered = True  # as after an earlier clip
    failed, fine = (openai.transcribe([clip])[0] for clip in CLIPS[:2])
    if "3600" in message:  # everyone is to wait, and nobody waits that long
        assert "asks everyone to wait" in str(fine)
        assert len(server.requests) == 1
    else:
        assert fine == "3200 samples"
    assert isinstance(failed, RemoteError)
    assert re.search(message, str(failed)), str(failed)
    assert KEY not in str(failed)


def test_after_too_many_requests_everyone_waits(server: Server, openai: OpenAIProvider) -> None:
    server.failures = [Answer(status=429, headers={"Retry-After": "1"})]
    assert openai.transcribe(CLIPS[:1]) == ["1600 samples"]
    assert server.requests[1].at - server.requests[0].at >= 1.0
    openai.service.not_before = time.monotonic() + 0.5
    start = time.monotonic()
    openai.transcribe(CLIPS)
    assert min(request.at for request in server.requests[2:]) - start >= 0.5


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "refused the key in OPENAI_API_KEY"), (403, "refused the key"), (404, "no such address or model")],
)
def test_what_no_clip_can_survive_ends_the_call(
    server: Server, openai: OpenAIProvider, status: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer = lambda request: Answer({"error": {"message": f"Incorrect key: {KEY}."}}, status)
    with pytest.raises(UserError, match=message) as caught:
        openai.transcribe(CLIPS)
    assert "Incorrect key: [key]." in str(caught.value)
    shown = f"{caplog.text} {caught.value!r} {openai!r} {openai.service!r} {openai.identity} {vars(openai)}"
    assert KEY not in shown


def test_a_used_up_quota_ends_the_call(server: Server, openai: OpenAIProvider) -> None:
    server.answer = lambda request: Answer({"error": {"message": "no", "code": "insufficient_quota"}}, 429)
    with pytest.raises(UserError, match="quota of your account is used up"):
        openai.transcribe(CLIPS)


def test_a_server_that_never_answers_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(UserError, match=r"could not be reached .*3 tries.*http://127\.0\.0\.1:1/v1"):
        OpenAIProvider(None, FAST).transcribe(CLIPS)


def test_it_runs_inside_a_running_loop(openai: OpenAIProvider) -> None:
    async def cell() -> Any:
        return openai.transcribe(CLIPS[:1])

    assert asyncio.run(cell()) == ["1600 samples"]


def test_a_local_server_needs_no_key_and_costs_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    server.answer = lambda request: Answer({"text": "hello"})
    provider = load_provider("openai", None)
    assert provider.transcribe(CLIPS[:1]) == ["hello"]
    assert "authorization" not in server.requests[0].headers
    assert not provider.costs_money
    assert provider.price_usd_per_hour is None


class AssemblyAI:
    """The documented jobs of AssemblyAI: an upload, a transcript that is queued, processed, then done."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.uploads: dict[str, bytes] = {}
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        self.end: dict[str, Any] = {"status": "completed", "text": "all right"}

    def __call__(self, request: Request) -> Answer:
        if request.headers.get("authorization") != KEY:
            return Answer({"error": "Authentication error, API token missing/invalid"}, 401)
        if (request.method, request.path) == ("POST", "/v2/upload"):
            url = f"{self.server.url}/upload/{len(self.uploads)}"
            self.uploads[url] = request.body
            return Answer({"upload_url": url})
        if (request.method, request.path) == ("POST", "/v2/transcript"):
            job = json.loads(request.body)
            assert num_samples(self.uploads[job["audio_url"]])
            assert job["speech_models"] == ["universal-2"]
            identifier = f"job-{len(self.jobs)}"
            self.jobs[identifier] = [{"status": "queued"}, {"status": "processing"}, self.end]
        else:
            identifier = request.path.removeprefix("/v2/transcript/")
        states = self.jobs[identifier]
        return Answer({"id": identifier, **(states.pop(0) if len(states) > 1 else states[0])})


@pytest.fixture
def assemblyai(server: Server, monkeypatch: pytest.MonkeyPatch) -> AssemblyAIProvider:
    monkeypatch.setenv(
        "ASSEMBLYAI_API_KEY", f"{KEY}\n"
    )  # as `export X=$(cat file)` would not, but a file may
    monkeypatch.setenv("ASSEMBLYAI_BASE_URL", server.url)
    server.answer = AssemblyAI(server)
    provider = AssemblyAIProvider("universal-2", FAST)
    provider.poll_seconds = (0.01, 0.02)
    return provider


def test_assemblyai_uploads_asks_and_waits(server: Server, assemblyai: AssemblyAIProvider) -> None:
    assert assemblyai.transcribe(CLIPS) == ["all right"] * 5
    assert KEY not in assemblyai.identity


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ({"status": "completed", "text": None}, "''"),
        ({"status": "error", "error": "no speech in it"}, "could not transcribe the clip: no speech in it"),
        ({"status": "asleep"}, "unknown status: 'asleep'"),
        ({"status": "processing"}, "did not finish transcript job-0 within 0.2 s"),
        ({"status": "completed", "text": 3}, "without a text"),
        ({"status": "queued", "id": "../../admin"}, "did not finish"),
    ],
)
def test_how_an_assemblyai_job_may_end(
    server: Server, assemblyai: AssemblyAIProvider, end: dict[str, Any], expected: str
) -> None:
    server.answer.end = end  # type: ignore[attr-defined]
    assemblyai.job_seconds = 0.2
    (result,) = assemblyai.transcribe(CLIPS[:1])
    assert expected in (repr(result) if isinstance(result, str) else str(result))
    assert not any("admin" in request.path for request in server.requests)


def test_an_assemblyai_job_with_a_strange_name_is_not_asked_for(
    server: Server, assemblyai: AssemblyAIProvider
) -> None:
    server.answer = lambda request: Answer({"upload_url": "u", "id": "../../admin", "status": "queued"})
    (result,) = assemblyai.transcribe(CLIPS[:1])
    assert "without the id of a transcript" in str(result)
    assert len(server.requests) == 2


def test_assemblyai_refuses_a_wrong_key(
    server: Server, assemblyai: AssemblyAIProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSEMBLYAI_API_KEY", "wrong")
    with pytest.raises(UserError, match=r"refused the key in ASSEMBLYAI_API_KEY.*Authentication error"):
        AssemblyAIProvider(None, FAST).transcribe(CLIPS)


def test_an_endpoint_gets_the_file_and_may_need_time_to_start(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", KEY)
    server.failures = [Answer({"error": "503 Service Unavailable"}, 503)]
    server.answer = lambda request: Answer({"text": f"{num_samples(request.body)}"})
    provider = HFEndpointProvider(server.url, FAST)
    assert provider.transcribe(CLIPS[:1]) == ["1600"]
    assert server.requests[1].headers["content-type"] == "audio/flac"
    assert server.requests[1].headers["authorization"] == f"Bearer {KEY}"
    server.answer = lambda request: Answer([{"text": "of a batch"}])
    assert provider.transcribe(CLIPS[:1]) == ["of a batch"]
    server.answer = lambda request: Answer({"error": {"type": "invalid_audio", "message": "too long"}})
    (failure,) = provider.transcribe(CLIPS[:1])
    assert "without a text: {'error'" in str(failure)


@pytest.mark.parametrize("name", ["assemblyai", "openai", "hf-endpoint"])
def test_a_missing_key_is_named(name: str) -> None:
    variable = key_variable(name)
    assert variable is not None
    with pytest.raises(UserError, match=f"set the environment variable {variable}"):
        check_provider(name, "https://x.endpoints.huggingface.cloud")


def test_other_providers_have_no_key() -> None:
    assert key_variable("tiny-audio") is None
    assert key_variable("cmd: x") is None


def test_a_mangled_key_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nX-Header: secret")
    with pytest.raises(UserError, match="no key has") as caught:
        load_provider("openai", None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://far.example.org/v1", "not encrypted.*unset OPENAI_API_KEY"),
        ("https://user:word@far.example.org", "holds a user name"),
        ("https://far.example.org/v1?token=word", "a query"),
        ("ftp://far.example.org", "is no address"),
        ("far.example.org", "is no address"),
        ("https://far.example.org:99999", "is no address"),
        ("https://", "is no address"),
    ],
)
def test_an_address_that_would_give_a_secret_away(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match=message) as caught:
        load_provider("openai", None)
    assert "word" not in str(caught.value)


def test_prices_are_those_of_the_service_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    provider: RemoteProvider = OpenAIProvider("whisper-1")
    assert provider.price_usd_per_hour == pytest.approx(0.006 * 60)
    assert provider.costs_money
    assert OpenAIProvider("a-new-model").price_usd_per_hour is None
    monkeypatch.setenv("OPENAI_BASE_URL", "https://far.example.org/v1")
    assert OpenAIProvider("whisper-1").price_usd_per_hour is None
    assert check_url("https://far.example.org/v1/ ", "x") == "https://far.example.org/v1"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("7", 7.0), ("-3", 0.0), ("nan", None), ("inf", None), ("soon", None)],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_retry_after_may_be_a_date() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert parse_retry_after(in_a_minute) == pytest.approx(60, abs=2)
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_ctrl_c_ends_it_at_once(server: Server) -> None:
    server.answer = lambda request: Answer({"text": "late"}, delay_seconds=5)
    script = (
        "import numpy, sys; from tiny_audio.evaluate.providers import load_provider\n"
        "print('ready', flush=True)\n"
        "load_provider('openai', None).transcribe([numpy.zeros(1600, numpy.float32)] * 8)"
    )
    environment = {**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while len(server.requests) < FAST.num_connections and process.poll() is None:
        time.sleep(0.02)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - start < 3
    assert errors.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert process.returncode != 0
