"""The web application: OpenAI's routes for transcription, health and metrics, and what every request goes through."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiny_audio.hub.asr_audio import AudioError
from tiny_audio.serve.answers import event, render
from tiny_audio.serve.engine import Engine, Event, Job, Kind
from tiny_audio.serve.errors import CLIENT_LEFT, ApiError
from tiny_audio.serve.fields import fields_page, form_schema, read_fields
from tiny_audio.serve.requests import (
    BODY_IS_READ,
    Deadline,
    Events,
    find_upload,
    read_form,
    shown_problems,
)

logger = logging.getLogger(__name__)

TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
MODELS, HEALTH, METRICS = "/v1/models", "/health", "/metrics"
DOCS = "/docs"
PATHS = (TRANSCRIPTIONS, TRANSLATIONS, MODELS, HEALTH, METRICS)
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# A refused upload of unknown size is read on for so long, so that its client sees why, and no longer.
LINGER_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 60


@dataclass(frozen=True)
class Limits:
    """Of one server and of each of its requests."""

    max_requests: int
    max_upload_bytes: int
    request_timeout_seconds: float


class Service:
    """The engine, and who is in it: requests are taken up to a number, and none any more once it drains."""

    def __init__(self, engine: Engine, model_name: str, limits: Limits, api_key: str | None = None):
        self.engine, self.model_name, self.limits = engine, model_name, limits
        self.api_key = api_key
        self.created = int(time.time())
        self.taken = 0
        self.draining = False
        self.empty = asyncio.Event()
        self.usual_seconds = 1.0  # that a request takes, a moving average
        self.metrics = engine.metrics
        self.metrics.watch("requests_taken", "Requests being read, waiting or at work.", lambda: self.taken)
        self.metrics.watch("windows_waiting", "Windows that wait for the model.", lambda: engine.num_waiting)
        encode = engine.processor.tokenizer
        self.encode: Callable[[str], list[int]] = lambda text: (
            encode(text, add_special_tokens=False).input_ids
        )

    def drain(self) -> None:
        """Take no more requests; `empty` is set when those taken are answered."""
        self.draining = True
        if not self.taken:
            self.empty.set()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests taken. Raises ApiError 503 or 429."""
        if self.draining:
            raise ApiError(503, "shutting_down", "The server is stopping", headers={"Retry-After": "5"})
        if self.taken >= self.limits.max_requests:
            seconds = min(max(math.ceil(self.usual_seconds), 1), LONGEST_RETRY_SECONDS)
            message = f"All {self.limits.max_requests} places are taken; try again in {seconds} s"
            raise ApiError(429, "queue_full", message, headers={"Retry-After": str(seconds)})
        self.taken += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self.taken -= 1
            spent = time.monotonic() - start
            self.usual_seconds += 0.1 * (spent - self.usual_seconds)
            self.metrics.request_seconds.observe(spent)
            if self.draining and not self.taken:
                self.empty.set()

    async def transcribe(self, request: Request) -> Response:
        """Answer one request. Raises ApiError."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.place())
            deadline = Deadline(self.limits.request_timeout_seconds)
            form = await read_form(request, self.limits.max_upload_bytes, deadline)
            try:
                upload, fields = find_upload(form, self.limits.max_upload_bytes)
                options = read_fields(fields, self.model_name, self.engine.has_times)
                if upload is None:
                    message = "file is missing: send the audio as a file (in curl: -F file=@my.wav)"
                    raise ApiError(400, "missing_file", message, param="file")
                if not upload.size:
                    raise ApiError(400, "invalid_audio", "file: is empty (0 bytes)", param="file")
            except ApiError:
                await form.close()
                raise
            about = request.scope["log"]
            about["upload_bytes"] = upload.size
            events = Events(request, deadline)
            stack.callback(events.close)
            word_times = options.needs_word_times and self.engine.has_times
            kind = Kind(word_times, round(options.temperature, 2))
            job = Job(upload.file, kind, options.stream, events.tell)
            stack.callback(self._leave, job, about)
            self.engine.submit(job)
            first = await events.next()
            headers = {"X-Tiny-Audio-Without-Effect": ", ".join(options.ignored)} if options.ignored else {}
            if isinstance(first, Exception):
                raise as_api_error(first)
            if options.stream:
                return EventStream(events.all(first), stack.pop_all(), headers, deadline)
            assert not isinstance(first, str)
            body, media_type = await asyncio.to_thread(render, first, options, self.encode)
            headers |= shown_problems(first.problems)
            return Response(body, media_type=media_type, headers=headers)

    def _leave(self, job: Job, about: dict[str, Any]) -> None:
        if not job.over:
            self.metrics.abandoned.inc()
        self.engine.cancel(job)
        about["audio_seconds"] = round(job.seconds, 3)
        if job.queue_seconds is not None:
            about["queue_milliseconds"] = round(job.queue_seconds * 1000, 1)


class EventStream(Response):
    """Server-sent events of a transcription; gives its place back when it ends, however it does."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[Event],
        stack: contextlib.ExitStack,
        headers: dict[str, str],
        deadline: Deadline,
    ):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self.events, self.stack, self.deadline = events, stack, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(body: bytes, more: bool = True) -> None:
            """Waits for a client that does not read, but not past the deadline and a moment for the last word."""
            async with asyncio.timeout(self.deadline.left + LINGER_SECONDS):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        with self.stack:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            try:
                try:
                    async for found in self.events:
                        await tell(self._write(found))
                except ApiError as error:
                    scope["log"]["error"] = error.code
                    await tell(event(error.body))
                await tell(b"", more=False)
            except TimeoutError:  # without a last chunk, the client knows that it has not got all
                scope["log"]["error"] = "client_stalled"

    def _write(self, found: Event) -> bytes:
        if isinstance(found, str):
            return event({"type": "transcript.text.delta", "delta": found})
        if isinstance(found, Exception):
            raise as_api_error(found)
        return event({"type": "transcript.text.done", "text": found.text})


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of a job that failed."""
    if isinstance(error, AudioError):
        return ApiError(400, "invalid_audio", f"file: {error}", param="file")
    return ApiError(500, "internal_error", f"Recognition failed ({error}); the server's log says where")


def create_app(service: Service) -> FastAPI:
    """The application around a service."""
    # FastAPI's own page of documents is a script from elsewhere, and blank where nothing else can be reached.
    app = FastAPI(
        title="Tiny Audio",
        description="Transcription as OpenAI's API has it.",
        docs_url=None,
        redoc_url=None,
    )

    @app.post(TRANSCRIPTIONS, openapi_extra=form_schema())
    async def transcribe(request: Request) -> Response:
        return await service.transcribe(request)

    @app.post(TRANSLATIONS)
    async def translate(request: Request) -> Response:
        message = f'The model "{service.model_name}" transcribes and does not translate; use {TRANSCRIPTIONS}'
        raise ApiError(400, "unsupported_endpoint", message, param="model")

    card = {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "tiny-audio",
    }

    @app.get(MODELS)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get(MODELS + "/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.model_name:
            raise ApiError(404, "model_not_found", f'This server has "{service.model_name}"', param="model")
        return card

    @app.api_route(HEALTH, methods=["GET", "HEAD"])
    async def health() -> Response:
        state = "draining" if service.draining else "ok" if service.engine.alive else "failed"
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.get(DOCS, include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(fields_page(TRANSCRIPTIONS))

    @app.get(METRICS)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return Refusal(error)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:100]}: {error.detail}"
        return Refusal(ApiError(error.status_code, "invalid_request", message, headers=error.headers))

    app.add_middleware(Gate, service=service)
    return app


class Refusal(JSONResponse):
    """An error. Where the client is still sending, it is listened to a little longer and then cut off."""

    def __init__(self, error: ApiError):
        super().__init__(error.body, error.status, headers=error.headers)
        self.code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.get("log", {})["error"] = self.code
        headers = dict(scope["headers"])
        sends = int(headers.get(b"content-length", b"0") or 0) > 0 or b"transfer-encoding" in headers
        if not sends or scope.get(BODY_IS_READ) or self.status_code == CLIENT_LEFT:
            await super().__call__(scope, receive, send)
            return
        # Closing at once would reset the connection before most clients have read the answer.
        self.headers["Connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Gate:
    """What every request goes through: its number, the key, its line in the log, its place in the metrics."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        number = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        path = next((path for path in PATHS if scope["path"].startswith(path)), "other")
        about: dict[str, Any] = {"request_id": number, "method": scope["method"], "path": path}
        scope["log"] = about
        status = 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
            await send(message)

        try:
            if scope["path"].startswith("/v1/") and not self._may_enter(headers):
                error = ApiError(
                    401,
                    "invalid_api_key",
                    "Wrong or missing API key: send Authorization: Bearer KEY",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await Refusal(error)(scope, receive, note)
            else:
                await self.app(scope, receive, note)
        except Exception:
            logger.exception("a request failed", extra={"fields": {"request_id": number}})
            if status == 500:
                failure = ApiError(500, "internal_error", "The server failed; its log says where")
                with contextlib.suppress(RuntimeError):  # the answer had begun
                    await Refusal(failure)(scope, receive, note)
        finally:
            about |= {"status": status, "milliseconds": round((time.monotonic() - start) * 1000, 1)}
            self.service.metrics.requests.labels(path, str(status)).inc()
            logger.info("request", extra={"fields": about})

    def _may_enter(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the request has the key, compared in a time that does not tell how much of it is right."""
        if self.service.api_key is None:
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(key.strip(), self.service.api_key.encode())
        return scheme.lower() == b"bearer" and right
