"""What batching across requests is worth: many clients at once against one that asks again and again.

    python benchmarks/serving.py [--quick] [MODEL] [--data SOURCE] [--clients 64] [--seconds 120]

Two servers of the same model run side by side, `tiny-audio serve` as it is and with `--max-batch-size 1`. One client
sends one clip after another to the second; then all clients do so to the first, each as soon as it has its answer;
then the one client once more. Clients send FLAC files over connections that stay open and take no more of the machine
than they must.

Every answer is compared with the transcript that the same file has offline. Anything but a right transcript or an
honest 429 is an error, and fails the benchmark, and so does a server that does not end well when it is told to.

`ratio` is how many times as many requests a second are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import soundfile
from common import print_table, write_result

ROOT = Path(__file__).resolve().parents[1]
SAMPLING_RATE = 16_000
BOUNDARY = "a-boundary-between-parts"
MODEL_NAME = "benchmark"


@dataclass
class Load:
    """What clients saw of one server."""

    seconds: float = 0.0
    answered: int = 0
    audio_seconds: float = 0.0
    busy: int = 0  # 429
    wrong: int = 0  # another text than offline
    failures: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.answered / self.seconds

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.latencies, n=100, method="inclusive")[percent - 1]


@contextlib.contextmanager
def server(model: str, *options: str) -> Iterator[tuple[str, int]]:
    """A server in a process of its own; its address. Raises RuntimeError unless it starts and ends as it should."""
    command = [sys.executable, "-m", "tiny_audio", "serve", model, "--port", "0", "--model-name", MODEL_NAME]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            if "http://" not in line:
                raise RuntimeError("the server did not start")
            host, port = line.split("http://")[1].split("/")[0].rsplit(":", 1)
            yield host, int(port)
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 0:
                raise RuntimeError(f"the server ended with code {process.returncode}")
        finally:
            process.kill()


def request_bytes(audio: bytes) -> bytes:
    """A whole HTTP request that uploads a file."""
    disposition = 'Content-Disposition: form-data; name="{}"'
    parts = [
        f"--{BOUNDARY}\r\n{disposition.format('model')}\r\n\r\n{MODEL_NAME}\r\n".encode(),
        f'--{BOUNDARY}\r\n{disposition.format("file")}; filename="a.flac"\r\n\r\n'.encode(),
        audio,
        f"\r\n--{BOUNDARY}--\r\n".encode(),
    ]
    body = b"".join(parts)
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def client(
    load: Load,
    address: tuple[str, int],
    clips: list[tuple[bytes, str, float]],
    first: int,
    step: int,
    end: float,
) -> None:
    """Sends one clip after another until it is time to end."""
    reader, writer = await asyncio.open_connection(*address)
    number = first
    while time.perf_counter() < end:
        request, expected, seconds = clips[number % len(clips)]
        start = time.perf_counter()
        try:
            writer.write(request)
            status, headers, body = await read_answer(reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            load.failures[type(error).__name__] += 1
            return
        if status == 429:
            load.busy += 1
            await asyncio.sleep(float(headers["retry-after"]))
            continue
        number += step
        if status != 200:
            load.failures[str(status)] += 1
            continue
        load.latencies.append(time.perf_counter() - start)
        load.answered += 1
        load.audio_seconds += seconds
        load.wrong += json.loads(body)["text"] != expected
    writer.close()


def put_load(
    address: tuple[str, int], clips: list[tuple[bytes, str, float]], clients: int, seconds: float
) -> Load:
    """What so many clients see in so many seconds. The time counts until the last one has its answer."""

    async def run() -> Load:
        load = Load()
        start = time.perf_counter()
        await asyncio.gather(
            *(client(load, address, clips, number, clients, start + seconds) for number in range(clients))
        )
        load.seconds = time.perf_counter() - start
        return load

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="outputs/nano/model")
    parser.add_argument("--data", default="corpus:test")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    seconds = 10.0 if arguments.quick else arguments.seconds

    from tiny_audio.data.sources import open_source
    from tiny_audio.errors import UserError
    from tiny_audio.hub.asr_audio import read_blocks
    from tiny_audio.hub.asr_checkpoint import load_model
    from tiny_audio.hub.asr_longform import Recogniser
    from tiny_audio.serve.command import check_packages

    try:
        check_packages()
    except UserError as error:
        print(f"skipped: {error}")
        return
    source = open_source(arguments.data)
    waveforms = [source.read(utterance) for utterance in source.utterances()]
    files = []
    for waveform in waveforms:
        file = io.BytesIO()
        soundfile.write(file, waveform, SAMPLING_RATE, format="FLAC")
        files.append(file.getvalue())
    recogniser = Recogniser(*load_model(arguments.model, device="cpu"))
    offline = [result.text for result in recogniser.recognise(read_blocks(file) for file in files)]  # type: ignore[union-attr]
    clips = [
        (request_bytes(file), text, len(waveform) / SAMPLING_RATE)
        for file, text, waveform in zip(files, offline, waveforms, strict=True)
    ]
    with (
        server(arguments.model, "--max-batch-size", "1") as single,
        server(arguments.model, "--max-batch-size", str(arguments.max_batch_size)) as batching,
    ):
        put_load(single, clips, 1, 2)
        put_load(batching, clips, arguments.clients, 2)
        before = put_load(single, clips, 1, seconds / 4)
        many = put_load(batching, clips, arguments.clients, seconds)
        after = put_load(single, clips, 1, seconds / 4)
    loads = {"1 client, one at a time": before, f"{arguments.clients} clients": many, "1 client again": after}
    rows = [
        (
            name,
            f"{load.rate:.1f}",
            f"{load.audio_seconds / load.seconds:.0f}",
            f"{load.percentile(50) * 1000:.0f}",
            f"{load.percentile(95) * 1000:.0f}",
            str(load.answered),
            str(load.busy),
            str(load.wrong),
            str(sum(load.failures.values())),
        )
        for name, load in loads.items()
    ]
    header = ("load", "answers/s", "audio s/s", "p50 ms", "p95 ms", "answers", "429", "other text", "errors")
    print_table(f"{arguments.model}, {len(clips)} files of {arguments.data}", header, rows)
    ratio = many.rate / statistics.mean([before.rate, after.rate])
    write_result(
        "serving",
        {
            "ratio": ratio,
            "model": arguments.model,
            "data": arguments.data,
            "clients": arguments.clients,
            "seconds": seconds,
            "max_batch_size": arguments.max_batch_size,
            "loads": {
                name: {
                    "answers_per_second": load.rate,
                    "audio_seconds_per_second": load.audio_seconds / load.seconds,
                    "p50_seconds": load.percentile(50),
                    "p95_seconds": load.percentile(95),
                    "answered": load.answered,
                    "busy": load.busy,
                    "other_text": load.wrong,
                    "errors": dict(load.failures),
                }
                for name, load in loads.items()
            },
        },
        arguments.quick,
    )
    if any(load.wrong or load.failures for load in loads.values()):
        sys.exit("answers were wrong or failed: see the table")


if __name__ == "__main__":
    main()
