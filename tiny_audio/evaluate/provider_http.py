"""Requests to recognisers on the network: retried, slowed down when asked, limited in time and size, keyless in print.

What comes back is not trusted: its size is limited, it must be JSON, no redirect is followed (a key would follow
it), and its words are shown only after the key, should a server repeat it, has been taken out of them.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import random
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from tiny_audio.errors import UserError
from tiny_audio.evaluate.providers import SAMPLING_RATE, Waveform, printable

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES = 8 * 2**20  # the words of a day of speech, times that service gives for each, are less
MAX_SHOWN_CHARACTERS = 300
LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}
RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}
# Answers that the next clip would get as well, and what they mean.
KEY_STATUSES = (401, 403)
HOPELESS_STATUSES = {
    401: "refused the key",
    402: "wants to be paid first",
    403: "refused the key",
    404: "knows no such address or model",
}
QUOTA_IS_USED_UP = "insufficient_quota"  # OpenAI's code for it, under the same status as "too fast"

Result = TypeVar("Result")


class RemoteError(Exception):
    """Why one clip was not transcribed. One line, without the key."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often a service is asked.

    Waits double from `first_wait_seconds` up to `longest_wait_seconds`, with jitter, unless the service names one
    (Retry-After). `request_seconds` limits one attempt, from connecting to the last byte; `max_wait_seconds` all
    the waiting of one request.
    """

    max_tries: int = 6
    max_wait_seconds: float = 120.0
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 30.0
    request_seconds: float = 180.0
    num_connections: int = 4

    def wait_seconds(self, num_failures: int) -> float:
        """The pause after so many failures: half of it is certain, half is chance, so that clients spread out."""
        longest = min(self.first_wait_seconds * 2 ** (num_failures - 1), self.longest_wait_seconds)
        return longest * random.uniform(0.5, 1.0)


@dataclass
class Service:
    """A service: where it is, the key that it takes, and when it may be asked again.

    Args:
        name: what errors call it.
        base_url: http(s) address without a slash at its end; see `check_url`.
        key: the secret, None for a server without one.
        key_variable: the environment variable that holds it, for errors.
        key_prefix: what stands before the key in the Authorization header.
    """

    name: str
    base_url: str
    key: str | None = field(repr=False)
    key_variable: str
    key_prefix: str = "Bearer "
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    has_answered: bool = field(default=False, init=False)
    not_before: float = field(default=0.0, init=False)  # time.monotonic() before which nobody may ask

    def __post_init__(self) -> None:
        self.base_url = check_url(self.base_url, self.name)
        self.is_local = urlsplit(self.base_url).hostname in LOCAL_HOSTS
        if self.key and not self.is_local and not self.base_url.startswith("https:"):
            raise UserError(
                f"{self.name}: {self.base_url} is not encrypted, so anyone on the way could read your key."
                f" Use https, or unset {self.key_variable}."
            )

    def open_client(self) -> httpx.AsyncClient:
        """A client for one event loop. Times are limited by `request`; a local server is asked without a proxy."""
        import httpx

        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self.key:
            headers["Authorization"] = self.key_prefix + self.key
        return httpx.AsyncClient(
            headers=headers, timeout=None, follow_redirects=False, trust_env=not self.is_local
        )

    async def request(self, client: httpx.AsyncClient, method: str, url: str, **content: Any) -> Any:
        """The JSON that `url` answers, asked as often as the policy allows.

        Raises RemoteError for what only this request suffers, UserError for what every other one would.
        """
        import httpx

        waited = 0.0
        num_tries = 0
        while True:
            num_tries += 1
            waited += await self._wait_for_turn(waited)
            asked_wait = None
            is_too_fast = False
            try:
                async with asyncio.timeout(self.policy.request_seconds):
                    response, body = await self._ask(client, method, url, content)
            except TimeoutError:
                reason = f"gave no whole answer within {self.policy.request_seconds:g} s"
            except (httpx.HTTPError, OSError) as error:
                reason = f"could not be reached ({self.clean(str(error)) or type(error).__name__})"
            else:
                self.has_answered = True
                if response.is_success:
                    return self._parse(body)
                reason = self._judge(response.status_code, body)
                asked_wait = parse_retry_after(response.headers.get("Retry-After"))
                is_too_fast = response.status_code == HTTPStatus.TOO_MANY_REQUESTS
            pause = self.policy.wait_seconds(num_tries) if asked_wait is None else asked_wait
            if is_too_fast:
                self.not_before = max(self.not_before, time.monotonic() + pause)
            if num_tries >= self.policy.max_tries or waited + pause > self.policy.max_wait_seconds:
                tries = "1 try" if num_tries == 1 else f"{num_tries} tries"
                asked = "" if asked_wait is None else f"; it asks to wait {asked_wait:.0f} s more"
                message = f"{self.name} {reason} ({tries}{asked})"
                raise RemoteError(message) if self.has_answered else UserError(f"{message}: {self.base_url}")
            if not is_too_fast:  # else all wait for their turn
                await asyncio.sleep(pause)
                waited += pause

    def _judge(self, status: int, body: bytes) -> str:
        """Why a request that may be repeated was refused; raises where repeating it is of no use."""
        reason = f"answered {status}: {self._explain(status, body)}"
        if status in HOPELESS_STATUSES:
            holder = f"{self.key_variable}" if self.key else f"{self.key_variable}, which is not set"
            where = f" in {holder}" if status in KEY_STATUSES else ""
            raise UserError(f"{self.name} {HOPELESS_STATUSES[status]}{where}. It {reason}")
        if QUOTA_IS_USED_UP.encode() in body:
            raise UserError(f"{self.name}: the quota of your account is used up. It {reason}")
        if status not in RETRIED_STATUSES:
            raise RemoteError(f"{self.name} {reason}")
        return reason

    async def _wait_for_turn(self, waited: float) -> float:
        """Sleep while the service wants to be left alone, however many ask; the seconds that it took."""
        start = time.monotonic()
        while (pause := self.not_before - time.monotonic()) > 0:
            if waited + pause > self.policy.max_wait_seconds:
                raise RemoteError(f"{self.name} asks everyone to wait {pause:.0f} s more")
            await asyncio.sleep(pause + random.uniform(0, self.policy.first_wait_seconds / 4))
        return time.monotonic() - start

    async def _ask(
        self, client: httpx.AsyncClient, method: str, url: str, content: dict[str, Any]
    ) -> tuple[httpx.Response, bytes]:
        async with client.stream(method, url, **content) as response:
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise RemoteError(f"{self.name} answered with more than {MAX_ANSWER_BYTES:,} bytes")
            return response, bytes(body)

    def _parse(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise RemoteError(
                f"{self.name} answered with something other than JSON: {self._excerpt(body)}"
            ) from None

    def _explain(self, status: int, body: bytes) -> str:
        """What a service says about a failure: its JSON's `error` (or its message), else the text as it is."""
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return (
                "a redirect, which is not followed because your key would follow it; give the final address"
            )
        try:
            error = json.loads(body)["error"]
            return self.clean(str(error["message"] if isinstance(error, dict) else error))
        except (ValueError, RecursionError, KeyError, TypeError):
            return self._excerpt(body)

    def _excerpt(self, body: bytes) -> str:
        return self.clean(body.decode("utf-8", errors="replace")) or "(nothing)"

    def clean(self, text: str) -> str:
        """Words from outside as one short line that a terminal can show, without the key."""
        if self.key:
            text = text.replace(self.key, "[key]")
        text = printable(" ".join(text.split()))
        return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"


def read_key(variable: str) -> str | None:
    """The secret in an environment variable, None where there is none. Raises UserError for a mangled one."""
    key = os.environ.get(variable, "").strip()
    if any(not "!" <= character <= "~" for character in key):
        raise UserError(
            f"The key in {variable} has spaces or characters that no key has; copy it again (it is not shown here)."
        )
    return key or None


def check_url(url: str, name: str) -> str:
    """The address without slashes at its end.

    Raises UserError for what is no http(s) address, and for one with a password or a query, which may be secrets
    and would stand in reports.
    """
    try:
        parts = urlsplit(url.strip())
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not url.strip().isascii() or not url.strip().isprintable() or " " in url.strip():
        raise UserError(f'{name}: "{printable(url)}" is no address; it must begin with https://')
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"{name}: the address on {parts.hostname} holds a user name, a query or a fragment; leave them out"
            " (keys are read from the environment)."
        )
    return url.strip().rstrip("/")


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3: seconds or a date), None where it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def run_to_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine; Ctrl-C cancels all that it has begun. In a notebook, whose loop is running, in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def encode_flac(waveform: Waveform) -> bytes:
    """A mono 16 kHz waveform (S,) as a 16-bit FLAC file. Samples outside [-1, 1] are clipped."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform, -1.0, 1.0), SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
