"""`tiny-audio serve`: a server for clients of OpenAI's transcription API, with its own model behind it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiny_audio.devices import DeviceOption, Dtype, DtypeOption
from tiny_audio.errors import UserError

if TYPE_CHECKING:
    from tiny_audio.serve.app import Service

KEY_VARIABLE = "TINY_AUDIO_API_KEY"
PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
# Proxies keep idle connections for a minute; a server that lets go first makes them answer 502 now and then.
KEEP_ALIVE_SECONDS = 75
HEADER_SECONDS = 20  # for a connection's first request to say what it wants
READERS = 2
MOST_WORKERS = 2


def serve_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the model, such as outputs/nano/model.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for all of the machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    model_name: Annotated[
        str | None,
        typer.Option(
            help='What clients call the model ("whisper-1", if they are fixed). Left out: its run or hub id.',
            show_default=False,
        ),
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Windows of audio in one pass.")] = 16,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests being read, waiting or at work; more are told to come later.")
    ] = 128,
    max_upload_megabytes: Annotated[float, typer.Option(min=0.001, help="Of one file.")] = 200.0,
    max_audio_seconds: Annotated[float, typer.Option(min=0.1, help="Of one recording.")] = 3600.0,
    request_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a request, from its first byte to its answer.")
    ] = 600.0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
) -> None:
    """Serve a model to clients of OpenAI's transcription API.

    With the environment variable TINY_AUDIO_API_KEY, /v1 asks for that key. Ctrl-C or SIGTERM: no new
    requests are taken, those taken are answered, then the server ends; a second one ends it at once.

    \b
    Examples:
      tiny-audio serve outputs/nano/model
      tiny-audio serve outputs/nano/model --model-name whisper-1 --port 9000
      TINY_AUDIO_API_KEY=... tiny-audio serve outputs/nano/model --host 0.0.0.0
    """
    check_packages()
    api_key = read_key()
    listener = bind(host, port)
    with listener:
        from tiny_audio.evaluate.providers import TinyAudioProvider
        from tiny_audio.serve.engine import Engine

        provider = TinyAudioProvider.load(model, device, dtype)
        workers = share_processor() if provider.model.device.type == "cpu" else 1
        engine = Engine(
            provider.model, provider.processor, max_batch_size, max_audio_seconds, READERS, workers
        )
        try:
            engine.warm_up()
            name = model_name or name_of(model)
            run(engine, name, listener, max_queue, max_upload_megabytes, request_timeout, api_key)
        finally:
            engine.close()


def check_packages() -> None:
    """Raises UserError where the packages of a server are not installed."""
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f'A server needs the package {package}: pip install "tiny-audio[serve]"'
            ) from error


def read_key() -> str | None:
    """The key that clients must send, from the environment alone: arguments are seen by everyone on the machine."""
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise UserError(f"{KEY_VARIABLE} is set but empty: give it a key, or unset it to serve everyone.")
    try:
        (key or "").encode()
    except UnicodeEncodeError:
        raise UserError(f"{KEY_VARIABLE} is not UTF-8 text, which a client could not send.") from None
    return None if key is None else key.strip()


def bind(host: str, port: int) -> socket.socket:
    """A socket that holds the address before minutes go into loading. Raises UserError where it cannot be had."""
    try:
        # asyncio sends small answers at once (TCP_NODELAY) on sockets alone whose protocol is said: with that left to
        # the system, an answer's second packet waits 40 ms for the client to acknowledge the first.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror or error}") from error
    try:
        if os.name != "nt":  # there the option would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise UserError(f"Cannot listen at {host}, port {port}: {reason}. Take another --port.") from error
    return listener


def share_processor() -> int:
    """How many batches to work at side by side on a CPU; each gets its share of torch's threads.

    Two with half the threads each do more than one with all of them, as benchmarks/README.md has it. Of more than
    two, Python's lock leaves little.
    """
    import torch

    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    torch.set_num_threads(max(torch.get_num_threads() // workers, 1))
    return workers


def name_of(model: str) -> str:
    """What a model is called where nothing else is said: the run of a folder, or the hub id."""
    path = Path(model).expanduser()
    if not path.exists():
        return model
    path = path.resolve()
    return (path.parent if path.name == "model" else path).name


def run(
    engine: Any,
    name: str,
    listener: socket.socket,
    max_queue: int,
    max_upload_megabytes: float,
    request_timeout: float,
    api_key: str | None,
) -> None:
    """Serve until a signal says to stop."""
    import uvicorn

    from tiny_audio.serve.app import Limits, Service, create_app
    from tiny_audio.serve.logs import write_logs

    write_logs()
    service = Service(
        engine, name, Limits(max_queue, int(max_upload_megabytes * 1e6), request_timeout), api_key
    )
    raise_file_limit()
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,  # after the last answer: for connections that do not close
    )
    config.load()
    config.http_protocol_class = impatient(config.http_protocol_class)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if api_key is None and not host.startswith(("127.", "::1")):
        print(
            f"warning: no {KEY_VARIABLE} is set, so everyone who reaches this address is served",
            file=sys.stderr,
        )
    greeting = f'serving "{name}" at http://{shown}:{port}/v1 (fields: /docs); Ctrl-C stops it'
    server = make_server(config, service, lambda: print(greeting, flush=True))
    server.run(sockets=[listener])
    print("stopped", flush=True)


def raise_file_limit() -> None:
    """As many open files as the system allows: each connection is one, and 1,024 are soon taken."""
    if os.name == "posix":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # macOS has a limit of its own below "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def impatient(protocol: type) -> type:
    """uvicorn's protocol, but connections that have sent no whole header after a while are closed."""

    class Impatient(protocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(HEADER_SECONDS, self.close_unless_asked)

        def close_unless_asked(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return Impatient


def make_server(config: Any, service: Service, started: Callable[[], None]) -> Any:
    """uvicorn's server, but that the first signal lets it finish what it took, with new requests told so.

    `started` is called when it listens.
    """
    import uvicorn

    class Server(uvicorn.Server):
        draining: asyncio.Task[None] | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            self.loop = asyncio.get_running_loop()
            try:
                await super().startup(sockets)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(
                    f"Cannot listen: {reason}. Another server took the port meanwhile."
                ) from error
            started()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if service.draining:  # a second signal
                self.force_exit = self.should_exit = True
                if sig == signal.SIGINT:
                    self._captured_signals.append(sig)
                return
            service.draining = True
            self.loop.call_soon_threadsafe(self._drain)

        def _drain(self) -> None:
            service.drain()
            self.draining = self.loop.create_task(self._leave_when_empty())

        async def _leave_when_empty(self) -> None:
            await service.empty.wait()
            self.should_exit = True

    return Server(config)
