"""Recognisers that are asked over HTTP: AssemblyAI, OpenAI and what is compatible with it, HF Inference Endpoints.

Clips travel as 16-bit FLAC. Keys come from the environment and from nowhere else.
"""

from __future__ import annotations

import asyncio
import os
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tiny_audio.errors import UserError
from tiny_audio.evaluate.provider_http import (
    RemoteError,
    RetryPolicy,
    Service,
    encode_flac,
    read_key,
    run_to_end,
)
from tiny_audio.evaluate.providers import KEY_VARIABLES, Waveform

if TYPE_CHECKING:
    import httpx

# USD for an hour of audio at list price, without free tiers and discounts, by host and model: AssemblyAI's as a copy
# of its price page of 2026-10-07 had them, whisper-1 at $0.006 a minute. For other models no cost is shown rather than
# a wrong one.
PRICES_USD_PER_HOUR = {
    ("api.assemblyai.com", "universal-3-5-pro"): 0.21,
    ("api.assemblyai.com", "universal-2"): 0.15,
    ("api.openai.com", "whisper-1"): 0.36,
}
LANGUAGE = "en"


class RemoteProvider(ABC):
    """A recogniser behind HTTP. Subclasses say how one clip is transcribed (`transcribe_one`)."""

    max_seconds: float | None = None

    def __init__(self, provider: str, model: str, service: Service, options: str = "") -> None:
        self.model = model
        self.service = service
        self.identity = " ".join(filter(None, (provider, model, options, f"at {service.base_url}")))
        self.costs_money = not service.is_local

    @property
    def price_usd_per_hour(self) -> float | None:
        return PRICES_USD_PER_HOUR.get((urlsplit(self.service.base_url).hostname or "", self.model))

    def transcribe(self, waveforms: list[Waveform]) -> list[str | Exception]:
        """Several clips at a time. Raises UserError where no clip can succeed (a wrong key, a wrong address)."""
        return run_to_end(self._transcribe_all(waveforms))

    async def _transcribe_all(self, waveforms: list[Waveform]) -> list[str | Exception]:
        slots = asyncio.Semaphore(self.service.policy.num_connections)

        async def attempt(waveform: Waveform) -> str | Exception:
            async with slots:
                try:
                    return await self.transcribe_one(client, waveform)
                except RemoteError as error:
                    return error

        async with self.service.open_client() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(attempt(waveform)) for waveform in waveforms]
            except BaseExceptionGroup as failures:  # the first one has ended the others
                raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    @abstractmethod
    async def transcribe_one(self, client: httpx.AsyncClient, waveform: Waveform) -> str:
        """The transcript of one mono 16 kHz waveform (S,). Raises RemoteError or UserError."""

    def read_text(self, answer: Any) -> str:
        """The text of `{"text": ...}`. Raises RemoteError for anything else."""
        text = answer.get("text") if isinstance(answer, dict) else None
        if not isinstance(text, str):
            raise RemoteError(
                f"{self.service.name} answered without a text: {self.service.clean(repr(answer)[:1000])}"
            )
        return text.strip()


class AssemblyAIProvider(RemoteProvider):
    """AssemblyAI's pre-recorded API (https://www.assemblyai.com/docs): upload, create a transcript, ask until done.

    ASSEMBLYAI_BASE_URL names another of its regions, such as https://api.eu.assemblyai.com.
    """

    job_seconds = 900.0  # from creating a transcript to its end; jobs may queue
    poll_seconds = (0.5, 5.0)  # the first pause between two questions and the longest

    def __init__(self, model: str | None, policy: RetryPolicy | None = None) -> None:
        variable = KEY_VARIABLES["assemblyai"]
        service = Service(
            "AssemblyAI",
            os.environ.get("ASSEMBLYAI_BASE_URL") or "https://api.assemblyai.com",
            require_key(variable, "AssemblyAI"),
            variable,
            key_prefix="",
            policy=policy or RetryPolicy(),
        )
        super().__init__("assemblyai", model or "universal-3-5-pro", service, f"language {LANGUAGE}")

    async def transcribe_one(self, client: httpx.AsyncClient, waveform: Waveform) -> str:
        uploaded = await self._request(
            client,
            "POST",
            "upload",
            content=encode_flac(waveform),
            headers={"Content-Type": "application/octet-stream"},
        )
        job = await self._request(
            client,
            "POST",
            "transcript",
            json={
                "audio_url": uploaded.get("upload_url"),
                "speech_models": [self.model],
                "language_code": LANGUAGE,
            },
        )
        identifier = job.get("id")
        if not isinstance(identifier, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", identifier):
            raise RemoteError("AssemblyAI answered without the id of a transcript")
        try:
            async with asyncio.timeout(self.job_seconds):
                return await self._wait_for(client, identifier, job)
        except TimeoutError:
            raise RemoteError(
                f"AssemblyAI did not finish transcript {identifier} within {self.job_seconds:g} s"
            ) from None

    async def _wait_for(self, client: httpx.AsyncClient, identifier: str, job: dict[str, Any]) -> str:
        pause, longest_pause = self.poll_seconds
        while job.get("status") in ("queued", "processing"):
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, longest_pause)
            job = await self._request(client, "GET", f"transcript/{identifier}")
        if job.get("status") == "error":
            raise RemoteError(
                f"AssemblyAI could not transcribe the clip: {self.service.clean(str(job.get('error')))}"
            )
        if job.get("status") != "completed":
            raise RemoteError(
                f"AssemblyAI answered with an unknown status: {self.service.clean(repr(job.get('status')))}"
            )
        return "" if job.get("text") is None else self.read_text(job)  # null: it heard no speech

    async def _request(
        self, client: httpx.AsyncClient, method: str, path: str, **content: Any
    ) -> dict[str, Any]:
        answer = await self.service.request(client, method, f"{self.service.base_url}/v2/{path}", **content)
        if not isinstance(answer, dict):
            raise RemoteError(f"AssemblyAI answered {path.split('/')[0]} with JSON that is no object")
        return answer


class OpenAIProvider(RemoteProvider):
    """POST /v1/audio/transcriptions, as OpenAI defines it (https://platform.openai.com/docs/api-reference/audio).

    OPENAI_BASE_URL names another server that speaks it (with its /v1); such a one is asked without a key where
    OPENAI_API_KEY is not set.
    """

    max_seconds = 780.0  # OpenAI takes 25 MB; 16-bit samples at 16 kHz never need more than 32 kB a second

    def __init__(self, model: str | None, policy: RetryPolicy | None = None) -> None:
        variable = KEY_VARIABLES["openai"]
        base_url = os.environ.get("OPENAI_BASE_URL")
        key = read_key(variable) if base_url else require_key(variable, "OpenAI")
        service = Service(
            "The OpenAI-compatible server" if base_url else "OpenAI",
            base_url or "https://api.openai.com/v1",
            key,
            variable,
            policy=policy or RetryPolicy(),
        )
        super().__init__("openai", model or "whisper-1", service, f"language {LANGUAGE} temperature 0")

    async def transcribe_one(self, client: httpx.AsyncClient, waveform: Waveform) -> str:
        answer = await self.service.request(
            client,
            "POST",
            f"{self.service.base_url}/audio/transcriptions",
            files={"file": ("clip.flac", encode_flac(waveform), "audio/flac")},
            data={
                "model": self.model,
                "language": LANGUAGE,
                "response_format": "json",
                "temperature": "0",
            },
        )
        return self.read_text(answer)


class HFEndpointProvider(RemoteProvider):
    """A Hugging Face Inference Endpoint for speech recognition, named by its address; takes the bytes of a file."""

    # An endpoint that has been scaled to zero answers 503 for the minutes that it needs to start.
    policy = RetryPolicy(max_tries=30, max_wait_seconds=900.0)

    def __init__(self, model: str | None, policy: RetryPolicy | None = None) -> None:
        if model is None:
            raise UserError(
                "Which endpoint? Give its address as the model: https://….endpoints.huggingface.cloud"
            )
        variable = KEY_VARIABLES["hf-endpoint"]
        service = Service("The endpoint", model, read_key(variable), variable, policy=policy or self.policy)
        if service.key is None and not service.is_local:
            require_key(variable, "The endpoint")
        super().__init__("hf-endpoint", "", service)

    async def transcribe_one(self, client: httpx.AsyncClient, waveform: Waveform) -> str:
        answer = await self.service.request(
            client,
            "POST",
            self.service.base_url,
            content=encode_flac(waveform),
            headers={"Content-Type": "audio/flac"},
        )
        if isinstance(answer, list) and len(answer) == 1:  # some handlers answer a batch of one
            answer = answer[0]
        return self.read_text(answer)


def require_key(variable: str, name: str) -> str:
    """The secret in an environment variable. Raises UserError where there is none."""
    key = read_key(variable)
    if key is None:
        raise UserError(f"{name} needs a key: set the environment variable {variable}.")
    return key
