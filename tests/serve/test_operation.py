"""The server under load and in trouble: full, slow, left alone, failing, told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from starlette.types import Message, Scope

from tests.hub.recordings import trained_model
from tests.serve.serving import MODEL, PATH, Running, clip, hiss, long_recording, offline, running, until
from tests.tiny_models import SAMPLING_RATE
from tiny_audio.cli import main
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_windows import Window
from tiny_audio.serve import app, command, requests
from tiny_audio.serve.engine import Job, Kind, _Ticket, choose_batch
from tiny_audio.serve.logs import JsonFormatter, NotAgain
from tiny_audio.serve.requests import Deadline

BOUNDARY = "boundary"


def begin_upload(server: Running, length: int, sent: bytes, extra: str = "") -> socket.socket:
    """A connection with the beginning of a request of `length` bytes."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n{extra}"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + sent)
    return connection


def form(audio: bytes, **fields: str) -> bytes:
    head = 'Content-Disposition: form-data; name="{}"'
    parts = [f"--{BOUNDARY}\r\n{head.format(name)}\r\n\r\n{value}\r\n" for name, value in fields.items()]
    file = f'--{BOUNDARY}\r\n{head.format("file")}; filename="a"\r\n\r\n'
    return "".join(parts).encode() + file.encode() + audio + f"\r\n--{BOUNDARY}--\r\n".encode()


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and all else that comes until the other side closes."""
    data = b""
    with connection:
        while block := connection.recv(65_536):
            data += block
    return int(data.split()[1]), data


class SlowModel:
    """A real model whose passes take a while longer, or fail."""

    def __init__(self, seconds: float = 0.0, error: Exception | None = None, quick_passes: int = 0):
        self.model, self.seconds, self.error = trained_model()[0], seconds, error
        self.quick_passes = quick_passes
        self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def get_audio_features(self, *arguments: Any) -> Any:
        self.passes += 1
        if self.passes > self.quick_passes:
            time.sleep(self.seconds)
        if self.error is not None and self.passes > 1:
            raise self.error
        return self.model.get_audio_features(*arguments)


# Queue and time ------------------------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back() -> None:
    with running(max_requests=1) as server:
        audio, text = clip(0)
        body = form(audio, model=MODEL)
        begun = begin_upload(server, len(body), body[:-20])
        until(lambda: server.service.taken == 1)
        with pytest.raises(openai.RateLimitError) as error:
            server.client().audio.transcriptions.create(file=("a", audio), model=MODEL)
        assert error.value.code == "queue_full" and int(error.value.response.headers["retry-after"]) >= 1
        retried: list[str] = []
        retrying = threading.Thread(
            target=lambda: retried.append(
                server.client(max_retries=3).audio.transcriptions.create(file=("a", audio), model=MODEL).text
            )
        )
        retrying.start()
        begun.sendall(body[-20:])
        response = http.client.HTTPResponse(begun)  # head and body may come one after the other
        response.begin()
        assert json.loads(response.read())["text"] == text
        begun.close()
        retrying.join()
        assert retried == [text], "the client came back by itself"


def test_an_upload_that_does_not_come_and_work_that_takes_too_long() -> None:
    with running(SlowModel(0.5), timeout=0.3) as server:
        status, data = answer(begin_upload(server, 1000, b"--" + BOUNDARY.encode()))
        assert status == 408 and b"upload_timeout" in data
        with pytest.raises(openai.InternalServerError) as error:
            server.client(max_retries=3).audio.transcriptions.create(file=("a", clip(0)[0]), model=MODEL)
        assert error.value.status_code == 504 and error.value.code == "timeout"
        until(lambda: not server.service.engine.jobs)
        assert server.service.taken == 0


def test_a_stream_that_takes_too_long_ends_with_an_error() -> None:
    with running(SlowModel(6.0, quick_passes=1), timeout=5.0, max_batch_size=1) as server:
        stream = server.client().audio.transcriptions.create(
            file=("a", long_recording(40)), model=MODEL, stream=True
        )
        with pytest.raises(openai.APIError, match="longer than the limit of 5 s"):
            list(stream)


def test_a_client_that_does_not_read_its_stream_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LINGER_SECONDS", 0.1)
    places: list[str] = []

    async def read_nothing(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def events() -> AsyncIterator[str]:
        yield "one"

    scope: Scope = {"type": "http", "log": {}}
    stack = contextlib.ExitStack()
    stack.callback(places.append, "free")
    stream = app.EventStream(events(), stack, {}, Deadline(0.1))
    asyncio.run(asyncio.wait_for(stream(scope, None, read_nothing), 10))  # type: ignore[arg-type]
    assert places == ["free"] and scope["log"]["error"] == "client_stalled"


def test_an_upload_that_stops_in_the_middle_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "IDLE_UPLOAD_SECONDS", 0.3)
    with running(max_requests=1) as server:
        status, data = answer(begin_upload(server, 1000, b"--" + BOUNDARY.encode()))
        assert status == 408 and b"Nothing of the upload came for 0.3 s" in data
        assert server.post(clip(0)[0]).json()["text"] == clip(0)[1]


def test_connections_that_never_ask_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "HEADER_SECONDS", 0.5)
    closed: list[float] = []

    class Protocol:
        loop, cycle, transport = asyncio.new_event_loop(), None, None

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

    class Transport:
        def is_closing(self) -> bool:
            return bool(closed)

        def close(self) -> None:
            closed.append(time.monotonic())

    waiting, asking = command.impatient(Protocol)(), command.impatient(Protocol)()
    loop = Protocol.loop
    waiting.connection_made(Transport())
    loop.run_until_complete(asyncio.sleep(0.7))
    assert len(closed) == 1
    closed.clear()
    asking.connection_made(Transport())
    asking.cycle = object()
    loop.run_until_complete(asyncio.sleep(0.7))
    loop.close()
    assert not closed


def test_a_log_that_repeats_itself_is_thinned_out() -> None:
    again = NotAgain()
    record = logging.LogRecord("asyncio", logging.ERROR, "selector_events.py", 200, "no socket", (), None)
    other = logging.LogRecord("asyncio", logging.ERROR, "selector_events.py", 300, "no loop", (), None)
    assert [again.filter(record), again.filter(record), again.filter(other)] == [True, False, True]
    record.created += 2
    assert again.filter(record)


def test_odd_requests_are_the_clients_fault_and_health_answers_head() -> None:
    with running() as server:
        body = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"}
        refused = httpx.post(server.url + PATH, content=body, headers=headers)
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "invalid_form"
        assert httpx.head(f"{server.url}/health").status_code == 200


def test_a_key_that_no_client_could_send_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_AUDIO_API_KEY", "k\udce9y")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        command.read_key()


# Uploads -------------------------------------------------------------------------------------------------------------


def test_a_declared_upload_that_is_too_large_is_refused_before_it_is_read() -> None:
    with running() as server:
        connection = begin_upload(server, 10_000_000_000, b"")
        connection.settimeout(20)
        assert b" 413 " in connection.recv(1000).splitlines()[0], "it is said at once"
        connection.close()


def test_an_undeclared_upload_is_cut_off_at_the_limit() -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield form(b"", model=MODEL)[: -len(BOUNDARY) - 8]
        while True:
            sent += 65_536
            yield bytes(65_536)

    with running(max_upload_bytes=1_000_000) as server:
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        start = time.monotonic()
        try:
            response = httpx.post(server.url + PATH, content=endless(), headers=headers, timeout=30)
            assert response.status_code == 413 and response.json()["error"]["code"] == "too_large"
        except httpx.TransportError:  # the connection is reset before some systems let the client read why
            pass
        assert time.monotonic() - start < 15
        assert server.service.taken == 0
        assert server.post(clip(0)[0]).json()["text"] == clip(0)[1], "and the next one is served"


# Clients that leave --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["false", "true"])
def test_work_for_a_client_that_left_is_dropped(stream: str) -> None:
    model = SlowModel(0.1)
    with running(model, max_batch_size=1) as server:
        body = form(hiss(110), model=MODEL, stream=stream)
        connection = begin_upload(server, len(body), body)
        until(lambda: model.passes >= 1)
        connection.close()
        until(lambda: server.service.taken == 0 and not server.service.engine.jobs, 5)
        passes = model.passes
        assert server.post(clip(2)[0]).json()["text"] == clip(2)[1]
        assert model.passes <= passes + 2, "what waited was not recognised"
        assert server.service.metrics.abandoned._value.get() == 1


def test_a_client_that_leaves_in_the_middle_of_its_upload() -> None:
    with running() as server:
        body = form(hiss(10), model=MODEL)
        begin_upload(server, len(body), body[:10_000]).close()
        until(lambda: server.service.taken == 0)
        assert server.post(clip(2)[0]).json()["text"] == clip(2)[1]


# Fairness ------------------------------------------------------------------------------------------------------------


def tickets(*jobs: list[tuple[float, float]]) -> list[_Ticket]:
    """For each job its (turn, seconds)."""
    found = []
    for windows in jobs:
        job = Job(io.BytesIO(), Kind(), False, print)
        for turn, seconds in windows:
            window = Window(np.zeros(int(seconds * SAMPLING_RATE), np.float32), 0, 0, 1)
            found.append(_Ticket(job, window, turn))
    return found


def test_the_earliest_leads_and_takes_those_of_its_length() -> None:
    waiting = tickets([(10, 20.0), (30, 20.0), (50, 19.0)], [(12, 3.0)], [(12, 2.0)], [(13, 18.0)])
    batch = choose_batch(waiting, 3)
    assert [ticket.turn for ticket in batch] == [10, 30, 50], "nearest in length, none of a tenth of it"
    rest = [ticket for ticket in waiting if ticket not in batch]
    assert sorted(len(ticket.window.waveform) for ticket in choose_batch(rest, 3)) == [32_000, 48_000]


def test_a_short_recording_does_not_wait_for_a_long_one() -> None:
    with (
        running(SlowModel(0.1), max_batch_size=1, max_audio_seconds=1000) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        long = pool.submit(server.post, hiss(65))
        until(lambda: server.service.engine.num_waiting > 0)
        assert server.post(clip(2)[0]).json()["text"] == clip(2)[1]
        assert not long.done()
        assert long.result().status_code == 200


# Faults --------------------------------------------------------------------------------------------------------------


def test_a_fault_of_ours_keeps_its_words_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    model = SlowModel(error=RuntimeError("SECRET words"))
    with running(model) as server, caplog.at_level(logging.INFO):
        model.passes = 1
        for stream in ("false", "true"):
            response = server.post(clip(0)[0], stream=stream)
            assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
            assert (
                "SECRET" not in response.text and "SECRET" not in [r.getMessage() for r in caplog.records][-1]
            )
        model.error = None
        assert server.post(clip(0)[0]).json()["text"] == clip(0)[1], "and the server lives"


# Keys and logs -------------------------------------------------------------------------------------------------------


def test_the_key_is_asked_for_where_there_is_one() -> None:
    with running(api_key="right-kéy") as server:
        audio, text = clip(0)
        for key in ("wrong", "right-k", "right-key-and-more"):
            with pytest.raises(openai.AuthenticationError) as error:
                server.client(api_key=key).audio.transcriptions.create(file=("a", audio), model=MODEL)
            assert error.value.code == "invalid_api_key" and key not in str(error.value)
        for path in ("/v1/models", "/v1/nothing"):
            assert httpx.get(server.url + path).status_code == 401
        assert httpx.get(server.url + "/health").json() == {"status": "ok"}
        headers = {"Authorization": "Bearer right-kéy".encode()}
        assert server.post(audio, headers=headers).json()["text"] == text


def test_logs_say_what_happened_and_not_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), running() as server:  # the last line may come behind its answer
        audio, text = clip(0)
        headers = {"X-Request-Id": "my-number-1"}
        response = server.post(audio, headers=headers, prompt="private words", language="xx-private")
        assert response.headers["x-request-id"] == "my-number-1"
        assert (
            server.post(audio, headers={"X-Request-Id": "two\tparts"}).headers["x-request-id"] != "two\tparts"
        )
        server.post(b"no audio")
    lines = [JsonFormatter().format(record) for record in caplog.records if record.getMessage() == "request"]
    first, _, last = map(json.loads, lines)
    assert first["request_id"] == "my-number-1" and first["status"] == 200 and first["audio_seconds"] == 0.9
    assert first["upload_bytes"] == len(audio) and 0 < first["milliseconds"] < 60_000
    assert (last["status"], last["error"]) == (400, "invalid_audio")
    everything = " ".join(lines)
    assert not any(word in everything for word in ("private", "a.wav", *text.split()))


def test_a_logged_exception_keeps_its_words() -> None:
    words = "".join(["SEC", "RET"])
    try:
        raise ValueError(words)
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, "f", 1, "it\nfailed", (), sys.exc_info()
        )
    line = JsonFormatter().format(record)
    assert words not in line and "\n" not in line
    assert json.loads(line)["error"] == "ValueError" and "test_operation" in json.loads(line)["at"]


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    for part in trained_model():
        part.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def started(
    checkpoint: Path, *options: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tiny_audio", "serve", str(checkpoint), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(command.__file__).parents[2]), **environment},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://" in line, process.communicate()
        yield process, line.split(" at ")[1].split("/v1")[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be sent SIGTERM or Ctrl-C alone on Windows")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_what_was_taken_is_finished_before_the_end(checkpoint: Path, sign: signal.Signals) -> None:
    audio = long_recording(10)
    options = {"TINY_AUDIO_API_KEY": "key", "OMP_NUM_THREADS": "1"}
    with started(checkpoint, "--model-name", "run", "--max-batch-size", "1", **options) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0)
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(client.audio.transcriptions.create, file=("a", audio), model="run")
            until(lambda: "requests_taken 1.0" in httpx.get(f"{url}/metrics").text)
            process.send_signal(sign)
            until(lambda: httpx.get(f"{url}/health").status_code == 503)
            with pytest.raises(openai.InternalServerError) as error:
                client.audio.transcriptions.create(file=("a", clip(0)[0]), model="run")
            assert error.value.status_code == 503 and error.value.code == "shutting_down"
            assert taken.result().text == offline(audio).text
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and out == "stopped\n"
    requests = [json.loads(line) for line in err.splitlines()]
    assert [line["status"] for line in requests if line.get("path") == PATH] == [503, 200]
    assert "key" not in " ".join(
        value for line in requests for value in line.values() if isinstance(value, str)
    )


def test_mistakes_are_one_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*options: str) -> str:
        assert main(["serve", str(checkpoint), *options]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        return captured.err

    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "Take another --port" in error("--port", str(other.getsockname()[1]))
    assert "--host no.such.host.invalid" in error("--host", "no.such.host.invalid")
    assert "--max-batch-size" in error("--max-batch-size", "0")
    monkeypatch.setenv(command.KEY_VARIABLE, " ")
    assert "set but empty" in error()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert 'pip install "tiny-audio[serve]"' in error()


def test_names_and_limits(checkpoint: Path) -> None:
    from inspect import signature

    from tiny_audio.hub import handler

    assert (
        command.name_of(str(checkpoint)) == checkpoint.parent.name
        and command.name_of("you/model") == "you/model"
    )
    defaults = {name: value.default for name, value in signature(command.serve_command).parameters.items()}
    assert defaults["max_upload_megabytes"] * 1e6 == handler.MAX_UPLOAD_BYTES
    assert defaults["max_audio_seconds"] == handler.MAX_SECONDS


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_answers_do_not_wait_for_the_client_to_acknowledge_their_first_packet(host: str) -> None:
    async def accepted_option() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = command.bind(host, 0)
        async with await asyncio.start_server(accept, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            option = await found
            writer.close()
        return option

    assert asyncio.run(accepted_option())
