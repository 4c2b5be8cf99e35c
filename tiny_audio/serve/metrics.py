"""What `/metrics` tells Prometheus: how much is asked, how long it takes, how full the batches are."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
WINDOWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tiny_audio_requests", "Requests answered.", ["path", "status"], registry=self.registry
        )
        self.request_seconds = self._histogram(
            "request_seconds", "From the first byte of a transcription to its answer.", SECONDS
        )
        self.queue_seconds = self._histogram(
            "queue_seconds", "From the end of an upload to its first window's turn.", SECONDS
        )
        self.batch_windows = self._histogram("batch_windows", "Windows in one pass of the model.", WINDOWS)
        self.audio_seconds = self._counter("audio_seconds", "Seconds of audio transcribed.")
        self.model_seconds = self._counter("model_seconds", "Seconds that the model was at work.")
        self.abandoned = self._counter("abandoned", "Requests whose client left or whose time was up.")

    def watch(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"tiny_audio_{name}", help, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(f"tiny_audio_{name}", help, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"tiny_audio_{name}", help, buckets=buckets, registry=self.registry)
