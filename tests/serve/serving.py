"""A real server in a thread, its address, and audio to send."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import openai
import soundfile
import uvicorn

from tests.hub.recordings import known_clips, trained_model
from tests.tiny_models import SAMPLING_RATE, noise
from tiny_audio.hub.asr_audio import read_blocks
from tiny_audio.hub.asr_longform import Recogniser
from tiny_audio.hub.asr_merging import Recognition
from tiny_audio.serve.app import Limits, Service, create_app
from tiny_audio.serve.engine import Engine

MODEL = "tiny"
PATH = "/v1/audio/transcriptions"


@dataclass
class Running:
    """A server that runs."""

    service: Service
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        settings = {"api_key": "any", "max_retries": 0, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)

    def post(self, audio: bytes, url: str = PATH, headers: Any = None, **fields: Any) -> httpx.Response:
        """A request of one's own making: fields as they are."""
        data = {"model": MODEL, **{name.replace("__", "[]"): value for name, value in fields.items()}}
        return httpx.post(
            self.url + url, files={"file": ("a.wav", audio)}, data=data, headers=headers, timeout=60
        )


@contextlib.contextmanager
def running(
    model: Any = None,
    api_key: str | None = None,
    max_requests: int = 64,
    max_upload_bytes: int = 10_000_000,
    timeout: float = 60.0,
    max_audio_seconds: float = 120.0,
    **options: Any,
) -> Iterator[Running]:
    trained, processor = trained_model()
    engine = Engine(
        model or trained, processor, options.pop("max_batch_size", 8), max_audio_seconds, **options
    )
    service = Service(engine, MODEL, Limits(max_requests, max_upload_bytes, timeout), api_key)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    until(lambda: server.started)
    try:
        yield Running(service, listener.getsockname()[1])
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        engine.close()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def encoded(waveform: np.ndarray, format: str = "FLAC", rate: int = SAMPLING_RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=format)
    return file.getvalue()


def clip(number: int) -> tuple[bytes, str]:
    """A file of a clip that the model knows, and its text."""
    waveforms, texts = known_clips()
    return encoded(waveforms[number]), texts[number]


def long_recording(clips: int, seed: int = 0) -> bytes:
    """Known clips one after another, with pauses."""
    waveforms, _ = known_clips()
    order = np.random.default_rng(seed).integers(len(waveforms), size=clips)
    pause = np.zeros(SAMPLING_RATE, np.float32)
    return encoded(np.concatenate([part for number in order for part in (waveforms[number], pause)]))


def hiss(seconds: float) -> bytes:
    return encoded(noise(seconds, seed=7))


def offline(audio: bytes, **options: Any) -> Recognition:
    """What `tiny-audio transcribe` makes of a file."""
    (result,) = Recogniser(*trained_model(), **options).recognise([read_blocks(audio)])
    assert isinstance(result, Recognition)
    return result
