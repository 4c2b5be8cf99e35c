"""Fetches files over HTTP whose length and checksum are known: resumed where it stopped, and nothing else is kept.

What a server says is never believed: a file is what its checksum says, no larger than it must be, at a name of ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tiny_audio

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 4
ATTEMPTS_WITHOUT_ANSWER = 2  # no network is soon told
FIRST_WAIT_SECONDS = 1.0  # doubled after each attempt
LONGEST_WAIT_SECONDS = 20.0  # whatever Retry-After asks for
SILENCE_SECONDS = 10.0  # a connection without a byte for so long is given up
SLOWEST_BYTES_A_SECOND = 4_000  # and one slower than this, after the silence allowed
REDIRECTS = 5
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)


class Refused(Exception):
    """What lies at the address is not what it should be; trying again is of no use."""


class Unavailable(Exception):
    """Nothing was had from the server for now.

    `wait_seconds` is how long it asks to be left alone; `has_answered` whether there was an answer at all.
    """

    def __init__(self, reason: str, wait_seconds: float = 0.0, has_answered: bool = True):
        super().__init__(reason)
        self.wait_seconds, self.has_answered = wait_seconds, has_answered


@dataclass(frozen=True)
class RemoteFile:
    """`name` is a plain file name; `sha256` in lower-case hexadecimal digits."""

    name: str
    url: str
    sha256: str
    num_bytes: int


def fetch(
    client: httpx.Client,
    wanted: RemoteFile,
    folder: Path,
    progress: Callable[[int], None] = lambda num_bytes: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The file in `folder`, fetched unless it is there already.

    What has arrived of it is kept as NAME.part, with the server's name for that version in NAME.part.etag, and the
    next call goes on from there. `progress` is told how many bytes there are.

    Raises:
        Refused: another file than the one wanted, at this address.
        Unavailable: no network, or a server that is out of order, after some attempts.
        OSError: the folder cannot be written, or the disk is full.
    """
    target = folder / wanted.name
    if target.is_file() and target.stat().st_size == wanted.num_bytes and sha256_of(target) == wanted.sha256:
        progress(wanted.num_bytes)
        return target
    part, etag = folder / f"{wanted.name}.part", folder / f"{wanted.name}.part.etag"
    for attempt in range(ATTEMPTS):
        try:
            _receive(client, wanted, part, etag, progress)
            break
        except Unavailable as error:
            if attempt + 1 >= (ATTEMPTS if error.has_answered else ATTEMPTS_WITHOUT_ANSWER):
                raise
            sleep(min(LONGEST_WAIT_SECONDS, max(FIRST_WAIT_SECONDS * 2**attempt, error.wait_seconds)))
        except Refused:
            part.unlink(missing_ok=True)
            etag.unlink(missing_ok=True)
            raise
    part.replace(target)
    etag.unlink(missing_ok=True)
    return target


def _receive(
    client: httpx.Client, wanted: RemoteFile, part: Path, etag: Path, progress: Callable[[int], None]
) -> None:
    """One attempt: leaves the whole, checked file at `part`, or raises."""
    import httpx

    version = etag.read_text(encoding="utf-8") if etag.is_file() else ""
    size = part.stat().st_size if part.is_file() and version else 0
    if not 0 < size < wanted.num_bytes:
        size = 0
    # No compression: lengths and ranges are those of the file.
    headers = {"User-Agent": f"tiny-audio/{tiny_audio.__version__}", "Accept-Encoding": "identity"}
    if size:
        # Without If-Range, the end of a changed file could be joined to the beginning of the old one.
        headers |= {"Range": f"bytes={size}-", "If-Range": version}
    has_answered = False
    try:
        with contextlib.closing(_open(client, wanted.url, headers)) as answer:
            has_answered = True
            start = _check_answer(answer, wanted, size)
            if start == 0:
                _begin(part, etag, answer.headers.get("ETag", ""))
            size = _write(answer, wanted, part, start, progress)
    except (httpx.TransportError, httpx.StreamError) as error:
        if not has_answered:
            raise Unavailable(f"no answer ({type(error).__name__}: {error})", has_answered=False) from error
        size = part.stat().st_size if part.is_file() else 0
    if size < wanted.num_bytes:
        raise Unavailable(f"the connection ended after {size:,} of {wanted.num_bytes:,} bytes")
    found = sha256_of(part)
    if found == wanted.sha256:
        return
    etag.unlink(missing_ok=True)  # the next attempt begins at the beginning
    if start:
        raise Unavailable("what was there before does not fit what came now")
    raise Refused(
        f"sha256 is {found}, wanted {wanted.sha256}: the file was changed at its source or on the way"
    )


def _open(client: httpx.Client, url: str, headers: dict[str, str]) -> httpx.Response:
    """The answer, its body unread, after redirects: to https alone, or to http where the address itself is http."""
    import httpx

    allowed = ("https",) if url.startswith("https:") else ("http", "https")
    for _ in range(REDIRECTS + 1):
        answer = client.send(client.build_request("GET", url, headers=headers), stream=True)
        if answer.status_code not in REDIRECT_STATUSES:
            return answer
        location = answer.headers.get("Location", "")
        answer.close()
        try:
            target = httpx.URL(url).join(location)
        except httpx.InvalidURL:
            raise Refused(f"redirected to {location!r:.100}, which is no address") from None
        if target.scheme not in allowed or not target.host:
            raise Refused(f"redirected to {target!s:.100}, which is not {' or '.join(allowed)}")
        url = str(target)
    raise Refused(f"redirected more than {REDIRECTS} times")


def _check_answer(answer: httpx.Response, wanted: RemoteFile, size: int) -> int:
    """Where in the file the body of the answer begins: 0, or `size` where the server goes on from there."""
    status = answer.status_code
    if status in PASSING_STATUSES:
        raise Unavailable(f"the server answers {status}", _retry_after(answer))
    if status == 416:  # the file there is shorter than what we have of it
        raise Refused("the file at the address is shorter than it should be")
    if status not in (200, 206):
        raise Refused(f"the server answers {status}")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise Refused("a web page came instead of a recording; does this network want a log-in first?")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused("the server compresses what must come as it is")
    start = 0
    if status == 206:
        if (
            answer.headers.get("Content-Range") != f"bytes {size}-{wanted.num_bytes - 1}/{wanted.num_bytes}"
            or not size
        ):
            raise Refused(
                f"the server sends another part than asked for ({answer.headers.get('Content-Range')!r:.60})"
            )
        start = size
    length = answer.headers.get("Content-Length")
    if length is not None and length != str(wanted.num_bytes - start):
        raise Refused(f"the server announces {length:.30} bytes, wanted {wanted.num_bytes - start:,}")
    return start


def _retry_after(answer: httpx.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _begin(part: Path, etag: Path, version: str) -> None:
    """Forget what there was. A weak ETag ("W/...") names no exact bytes: nothing could be resumed by it."""
    etag.unlink(missing_ok=True)
    part.write_bytes(b"")
    if version.startswith('"') and version.isascii():
        etag.write_text(version, encoding="utf-8")


def _write(
    answer: httpx.Response, wanted: RemoteFile, part: Path, size: int, progress: Callable[[int], None]
) -> int:
    """Adds the body to `part` and returns its size. No server makes it longer, or takes for ever."""
    deadline = time.monotonic() + SILENCE_SECONDS + (wanted.num_bytes - size) / SLOWEST_BYTES_A_SECOND
    with part.open("ab") as file:
        for block in answer.iter_raw():
            if size + len(block) > wanted.num_bytes:
                raise Refused(f"the server sends more than the {wanted.num_bytes:,} bytes wanted")
            file.write(block)
            size += len(block)
            progress(size)
            if time.monotonic() > deadline:
                raise Unavailable(f"the connection is too slow: {size:,} of {wanted.num_bytes:,} bytes came")
    return size


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
