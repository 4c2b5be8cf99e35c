"""A real HTTP server on this machine that serves one file, and misbehaves as a test asks it to."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler"], None]


class FileServer:
    """`with FileServer(content) as server:` serves `content` at any path of `server.url`.

    `behaviours` are used up one a request; after them the file is served as it should be. `requests` has the path and
    headers of each request.
    """

    def __init__(self, content: bytes, etag: str | None = '"one"', ranges: bool = True):
        self.content, self.etag, self.ranges = content, etag, ranges
        self.behaviours: list[Behaviour] = []
        self.requests: list[tuple[str, dict[str, str]]] = []

    def __enter__(self) -> FileServer:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfOneFile", (Handler,), {"owner": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/file.wav"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def asked_ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FileServer

    def do_GET(self) -> None:
        self.owner.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.close_connection = True
        behaviour = self.owner.behaviours.pop(0) if self.owner.behaviours else serve
        behaviour(self)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def file_answer(self) -> tuple[int, dict[str, str], bytes]:
        """As RFC 9110 has it: a range only where If-Range names this very version."""
        owner, content = self.owner, self.owner.content
        headers = {"ETag": owner.etag} if owner.etag else {}
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, owner.etag)
        if match and owner.ranges and same:
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        status = 206 if "Content-Range" in headers else 200
        return status, {**headers, "Content-Length": str(len(content))}, content


def serve(handler: Handler) -> None:
    handler.answer(*handler.file_answer())


def cut_after(num_bytes: int) -> Behaviour:
    """The connection ends in the middle of the body."""

    def behave(handler: Handler) -> None:
        status, headers, content = handler.file_answer()
        handler.answer(status, headers, content[:num_bytes])
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)

    return behave


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(code, {"Content-Length": str(len(body)), **given}, body)


def endless(handler: Handler) -> None:
    """Sends until nobody listens; no length is announced."""
    handler.answer(200, {})
    for _ in range(10_000):
        try:
            handler.wfile.write(bytes(1 << 16))
        except OSError:
            return


def trickle(handler: Handler) -> None:
    """A byte now and then, never a silence that is long enough to be one."""
    status, headers, content = handler.file_answer()
    handler.answer(status, headers)
    for value in content:
        try:
            handler.wfile.write(bytes([value]))
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)
