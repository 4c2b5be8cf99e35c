"""Errors as OpenAI's API writes them: `{"error": {"message", "type", "param", "code"}}` and a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Statuses below 500 that are not named here are the client's to mend.
TYPES = {429: "rate_limit_error"}
CLIENT_LEFT = 499  # what nginx calls it; nobody is there to read it


class ApiError(Exception):
    """What a client is told in place of a transcript. The message holds nothing of the audio or its text."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
