"""One transcription as a request sees it: a bounded upload, events from the engine, a client that may leave."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from tiny_audio.serve.engine import Event
from tiny_audio.serve.errors import CLIENT_LEFT, ApiError

# A form has a file and few fields, which are short.
MOST_FIELDS = 64
MOST_FIELD_BYTES = 65_536
FORM_BYTES = 1_000_000  # of the form beside the file
# A client that sends nothing for so long has gone, or means no good: its place is others'.
IDLE_UPLOAD_SECONDS = 30.0
BODY_IS_READ = "tiny_audio.body_is_read"


class Deadline:
    """How long a request may still take."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(self.end - time.monotonic(), 0.0)

    def error(self, upload: bool) -> ApiError:
        """408 where the client was too slow, 504 where we were. Neither is worth trying again at once."""
        status, code = (408, "upload_timeout") if upload else (504, "timeout")
        doing = "The upload took" if upload else "The transcription took"
        message = (
            f"{doing} longer than the limit of {self.seconds:g} s; send less audio at once, or try later"
        )
        return ApiError(status, code, message, headers={"x-should-retry": "false"})


async def read_form(request: Request, max_upload_bytes: int, deadline: Deadline) -> FormData:
    """The form of a request, the file in memory or, if it is large, on disk. Raises ApiError while reading."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise ApiError(
            415,
            "unsupported_media_type",
            "Send the audio as multipart/form-data (in curl: -F file=@my.wav -F model=...)",
        )
    limit = max_upload_bytes + FORM_BYTES
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(max_upload_bytes)
    limited = Request(request.scope, _limited(request, limit, max_upload_bytes))
    try:
        async with asyncio.timeout(deadline.left):
            form = await limited.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=MOST_FIELD_BYTES)
    except TimeoutError:
        raise deadline.error(upload=True) from None
    except HTTPException as error:
        raise ApiError(400, "invalid_form", f"The form cannot be read: {error.detail}") from None
    except (ValueError, LookupError):  # of its character set
        raise ApiError(400, "invalid_form", "The form cannot be read: send its texts as UTF-8") from None
    except ClientDisconnect:
        raise client_left() from None
    return form


def find_upload(form: FormData, max_upload_bytes: int) -> tuple[UploadFile | None, list[tuple[str, str]]]:
    """The file of a form and its other fields."""
    upload: UploadFile | None = None
    fields: list[tuple[str, str]] = []
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields.append((name, value))
        elif name != "file":
            raise ApiError(400, "invalid_value", "The only file of a request is called file", param="file")
        else:
            upload = value
    if upload is not None and (upload.size or 0) > max_upload_bytes:
        raise _too_large(max_upload_bytes)
    return upload, fields


def _limited(request: Request, limit: int, max_upload_bytes: int) -> Receive:
    num_bytes = 0

    async def receive() -> Message:
        nonlocal num_bytes
        try:
            async with asyncio.timeout(IDLE_UPLOAD_SECONDS):
                message = await request.receive()
        except TimeoutError:
            text = f"Nothing of the upload came for {IDLE_UPLOAD_SECONDS:g} s"
            raise ApiError(408, "upload_timeout", text) from None
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            raise _too_large(max_upload_bytes)
        if message["type"] == "http.request" and not message.get("more_body", False):
            request.scope[BODY_IS_READ] = True
        return message

    return receive


def _too_large(max_upload_bytes: int) -> ApiError:
    message = (
        f"The upload is larger than the limit of {max_upload_bytes / 1e6:g} MB; send it in parts, or compressed "
        "(FLAC, Opus, MP3)"
    )
    return ApiError(413, "too_large", message, param="file")


def client_left() -> ApiError:
    return ApiError(CLIENT_LEFT, "client_left", "The client has left")


class Events:
    """What the engine tells of a job, for the event loop; ends early when the client leaves or time is up."""

    def __init__(self, request: Request, deadline: Deadline):
        self.request, self.deadline = request, deadline
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Event] = asyncio.Queue()
        self.left: asyncio.Task[None] | None = None

    def tell(self, event: Event) -> None:
        """For the engine's threads."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: a forced end
            self.loop.call_soon_threadsafe(self.queue.put_nowait, event)

    async def next(self) -> Event:
        """The next event. Raises ApiError when the time is up or the client has left."""
        self.left = self.left or asyncio.create_task(self._wait_for_departure())
        coming = asyncio.create_task(self.queue.get())
        try:
            done, _ = await asyncio.wait(
                {coming, self.left}, timeout=self.deadline.left, return_when=asyncio.FIRST_COMPLETED
            )
            if coming in done:
                return coming.result()
            raise client_left() if done else self.deadline.error(upload=False)
        finally:
            coming.cancel()

    async def all(self, first: Event) -> AsyncIterator[Event]:
        """`first` and what follows it, to the last."""
        event = first
        while isinstance(event, str):
            yield event
            event = await self.next()
        yield event

    def close(self) -> None:
        if self.left is not None:
            self.left.cancel()

    async def _wait_for_departure(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def shown_problems(problems: list[Any]) -> dict[str, str]:
    """For formats that have no place for them: a header with the stretches that could not be recognised."""
    if not problems:
        return {}
    stretches = ", ".join(f"{problem.start:.1f}-{problem.end:.1f} s" for problem in problems)
    return {"X-Tiny-Audio-Problems": stretches[:1000]}
