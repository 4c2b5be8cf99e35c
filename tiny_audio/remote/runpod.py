"""RunPod's API, as far as it takes to stop one pod. It runs on the pod itself, so that no laptop needs to be awake.

REST (https://docs.runpod.io/api-reference/pods/POST/pods/podId/stop) is asked first, then GraphQL
(https://docs.runpod.io/sdks/graphql/manage-pods), which is older and takes keys that the other may refuse.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from tiny_audio.errors import UserError

KEY_VARIABLE, POD_VARIABLE = "RUNPOD_API_KEY", "RUNPOD_POD_ID"
# The names of RunPod's own Python package for the second, and ours for the first: a proxy, or a test.
REST_VARIABLE, GRAPHQL_VARIABLE = "RUNPOD_REST_BASE_URL", "RUNPOD_API_BASE_URL"
REST_URL, GRAPHQL_URL = "https://rest.runpod.io/v1", "https://api.runpod.io"
TIMEOUT_SECONDS = 30  # of a whole exchange
# A program that was started by ssh lacks the variables that RunPod gave the pod's first process.
FIRST_PROCESS = Path("/proc/1/environ")


class RefusedError(Exception):
    """Both interfaces said no, or did not answer; the message says what each said, without the key."""


@dataclass(frozen=True)
class Pod:
    """A pod that can be stopped."""

    pod_id: str
    key: str = field(repr=False)
    key_is_users: bool = True

    def describe(self) -> dict[str, Any]:
        """The pod's record, with `costPerHr` in dollars.  Raises RefusedError: this pod could not be stopped.

        An answer that does not speak of a pod, such as that of a proxy or of a maintenance, is none.
        """
        query = f'query {{ pod(input: {{ podId: "{self.pod_id}" }}) {{ id desiredStatus costPerHr }} }}'
        return self._ask("GET", "", query, "pod", ("id", "costPerHr"))

    def stop(self) -> dict[str, Any]:
        """Ask to stop it: billing for the GPU ends, the volume stays.  Raises RefusedError."""
        query = f'mutation {{ podStop(input: {{ podId: "{self.pod_id}" }}) {{ id desiredStatus }} }}'
        return self._ask("POST", "/stop", query, "podStop")

    def _ask(
        self, method: str, action: str, query: str, field_name: str, wanted: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The answer of the first interface that gives one, with any of the keys `wanted`."""

        def check(record: dict[str, Any]) -> dict[str, Any]:
            if wanted and not any(record.get(key) for key in wanted):
                raise RefusedError(_message_of(record) or "the answer says nothing about the pod")
            return record

        rest = os.environ.get(REST_VARIABLE, REST_URL)
        graphql = os.environ.get(GRAPHQL_VARIABLE, GRAPHQL_URL)
        refusals = []
        try:
            url = f"{rest}/pods/{self.pod_id}{action}"
            return check(_request(method, url, {"Authorization": f"Bearer {self.key}"}))
        except RefusedError as error:
            refusals.append(f"REST: {error}")
        try:
            body = json.dumps({"query": query})
            answer = _request("POST", f"{graphql}/graphql?api_key={quote(self.key, safe='')}", {}, body)
            data = answer.get("data")
            record = data.get(field_name) if isinstance(data, dict) else None
            if answer.get("errors") or not isinstance(record, dict):
                raise RefusedError(_message_of(answer) or f"no {field_name} in the answer")
            return check(record)
        except RefusedError as error:
            refusals.append(f"GraphQL: {error}")
        raise RefusedError("; ".join(refusals).replace(self.key, "***"))


def find_pod(environment: dict[str, str]) -> Pod | None:
    """The pod that this machine is, with a key that stops it: the user's in `environment`, else the pod's own.

    None where either is missing.  Raises UserError where user and machine name two pods: one would stop the wrong one.
    """
    pod_id = find_pod_id(environment)
    key = environment.get(KEY_VARIABLE) or _first_process().get(KEY_VARIABLE)
    if not pod_id or not key:
        return None
    return Pod(pod_id, key, key_is_users=KEY_VARIABLE in environment)


def find_pod_id(environment: dict[str, str]) -> str | None:
    """The pod that this machine is, whether or not there is a key that stops it.  Raises UserError as `find_pod`."""
    given, here = environment.get(POD_VARIABLE), _first_process().get(POD_VARIABLE)
    if given and here and given != here:
        raise UserError(
            f"{POD_VARIABLE} is {given} on your side, and this host is the pod {here}: unset it, or use the right host"
        )
    pod_id = here or given
    if pod_id and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", pod_id):
        raise UserError(
            f"{POD_VARIABLE} is {pod_id!r}: expected letters, digits and dashes, as RunPod shows them"
        )
    return pod_id


def _first_process() -> dict[str, str]:
    try:
        text = FIRST_PROCESS.read_bytes().decode("utf-8", "replace")
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in text.split("\0"))
    return {name: value for name, _, value in pairs if name in (KEY_VARIABLE, POD_VARIABLE) and value}


def _request(method: str, url: str, headers: dict[str, str], body: str | None = None) -> dict[str, Any]:
    """`_exchange`, for as long as TIMEOUT_SECONDS: an answer that drips in would hold up the watchdog for ever."""
    results: list[dict[str, Any] | RefusedError] = []

    def work() -> None:
        try:
            results.append(_exchange(method, url, headers, body))
        except RefusedError as error:
            results.append(error)
        except Exception as error:
            results.append(RefusedError(f"{urlsplit(url).hostname} cannot be asked ({type(error).__name__})"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    result = results[0] if results else RefusedError(f"no whole answer within {TIMEOUT_SECONDS} seconds")
    if isinstance(result, RefusedError):
        raise result
    return result


def _exchange(method: str, url: str, headers: dict[str, str], body: str | None) -> dict[str, Any]:
    """One exchange without redirects: the key goes nowhere but to the address that was named."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        headers = {"Content-Type": "application/json", "User-Agent": "tiny-audio", **headers}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read(1_000_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RefusedError(f"{parts.hostname} does not answer ({type(error).__name__})") from error
    finally:
        connection.close()
    try:
        answer = json.loads(text) if text.strip() else {}
    except ValueError:
        answer = None
    if not 200 <= response.status < 300:
        said = _message_of(answer) if isinstance(answer, dict) else ""
        raise RefusedError(f"{response.status} {said or response.reason}".strip())
    if not isinstance(answer, dict):  # a page that says "back soon", with the status of success
        raise RefusedError(f"{parts.hostname} answers {response.status} with something other than JSON")
    return answer


def _message_of(answer: dict[str, Any]) -> str:
    errors = answer.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        return str(errors[0].get("message", ""))[:200]
    return str(answer.get("message") or answer.get("error") or "")[:200]
