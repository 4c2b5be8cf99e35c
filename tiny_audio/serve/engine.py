"""Dynamic batching: windows of many requests go through the model together, and none is held up by a longer one.

Three kinds of threads: the server's event loop submits jobs and hears of results; a few readers decode audio, cut it
into windows and make features of them, never more than one batch ahead of the model for each job; workers run the
model, one on a GPU, and on a CPU as many as pay.

Which window is next is decided by start-time fair queueing (Goyal, Vin and Cheng, 1996): each job's windows are put
one behind the other on a common scale of audio seconds, a new job beginning where the model is now, and the earliest
leads the next batch. So a short recording goes before the rest of a long one, and a long one is never starved. The
leader's batch mates are those closest to it in length. What batch a window is in does not change its text (batch
invariance).
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from traceback import format_tb
from typing import Any, BinaryIO

from tiny_audio.hub.asr_audio import (
    SAMPLING_RATE,
    AudioError,
    Reading,
    declared_seconds,
    describe_source,
    read_blocks,
)
from tiny_audio.hub.asr_longform import Recogniser, TextStream
from tiny_audio.hub.asr_merging import Recognition, Segment
from tiny_audio.hub.asr_windows import Window
from tiny_audio.serve.metrics import Metrics

logger = logging.getLogger(__name__)

# How long an idle model waits for windows of requests that are still being decoded.
GATHER_SECONDS = 0.005
# Of the longest window in a batch to the shortest: beyond it padding costs more than a pass of its own.
MOST_LENGTH_RATIO = 2.0
SHORTEST_SAMPLES = SAMPLING_RATE // 4  # windows shorter than this count as equally long

Event = str | Recognition | Exception


@dataclass(frozen=True)
class Kind:
    """What has to be the same for all windows of a batch."""

    word_times: bool = False
    temperature: float = 0.0


class Job:
    """One recording on its way to text.

    Args:
        source: the upload, a binary file that can seek; closed by the engine.
        kind: how it is to be recognised.
        stream: whether `tell` is called with pieces of text as they are written.
        tell: called from other threads with pieces of text, and in the end once with a `Recognition` or an exception:
            AudioError where the audio is at fault, RuntimeError where we are.
    """

    def __init__(self, source: BinaryIO, kind: Kind, stream: bool, tell: Callable[[Event], None]):
        self.source, self.kind, self.tell = source, kind, tell
        self.name = describe_source(source)
        self.submitted = time.monotonic()
        self.queue_seconds: float | None = None  # until its first window's turn
        self.audio = Reading(())
        self.windows: Iterator[Window] = iter(())
        self.waiting: deque[_Ticket] = deque()
        self.running = 0  # windows in the model
        self.reading = self.ended = self.over = False
        self.read_until = 0.0  # where its next window lies on the common scale
        self.seconds = 0.0
        self.pieces: dict[int, list[Any]] = {}
        self.text: TextStream | None = None
        self.stream = stream
        self.written: list[str] = []


@dataclass(frozen=True, eq=False)
class _Ticket:
    """A window that waits for its turn."""

    job: Job
    window: Window
    turn: float


class Engine:
    """Takes jobs from any thread and recognises them in batches.

    Args:
        model, processor: of a checkpoint, the model in eval mode.
        max_batch_size: windows in one pass.
        max_audio_seconds: of one recording; reading stops where it is passed.
        readers: threads that decode audio.
        workers: threads that run the model, each with a batch of its own.
        metrics: what is counted.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        max_batch_size: int,
        max_audio_seconds: float,
        readers: int = 2,
        workers: int = 1,
        metrics: Metrics | None = None,
    ):
        self.model, self.processor = model, processor
        self.has_times = model.ctc_head is not None
        self.max_batch_size, self.max_audio_seconds = max_batch_size, max_audio_seconds
        self.metrics = metrics or Metrics()
        self.changed = threading.Condition()  # guards all below, and the jobs
        self.jobs: dict[int, Job] = {}  # by id(), in order of arrival
        self.now = 0.0  # where the model is on the common scale of seconds
        self.first_waits_since: float | None = None  # while the model is idle
        self.closed = False
        self.recognisers: dict[Kind, Recogniser] = {}
        self.readers = ThreadPoolExecutor(readers, thread_name_prefix="reader")
        self.workers = [
            threading.Thread(target=self._work, name="model", daemon=True) for _ in range(workers)
        ]
        for worker in self.workers:
            worker.start()

    @property
    def alive(self) -> bool:
        """Whether all workers run."""
        return all(worker.is_alive() for worker in self.workers)

    @property
    def num_waiting(self) -> int:
        """Windows that wait for their turn."""
        with self.changed:
            return sum(len(job.waiting) for job in self.jobs.values())

    def submit(self, job: Job) -> None:
        """Begin a job. Its `tell` hears what becomes of it."""
        recogniser = self._recogniser(job.kind)
        if job.stream:
            job.text = TextStream(recogniser)
        job.windows = self._windows(job, recogniser)
        with self.changed:
            self.jobs[id(job)] = job
            job.read_until = self.now
            self._read_on(job)

    def cancel(self, job: Job) -> None:
        """Drop what waits of a job; what runs ends with its window, and nobody is told. No harm when it is over."""
        with self.changed:
            self._end(job)

    def close(self) -> None:
        """End all threads; jobs that are not over are dropped."""
        with self.changed:
            self.closed = True
            for job in list(self.jobs.values()):
                self._end(job)
            self.changed.notify_all()
        for worker in self.workers:
            worker.join()
        self.readers.shutdown()

    def warm_up(self) -> None:
        """One pass over a second of noise, by a worker, so that the first request does not pay for it."""
        import io

        import numpy as np
        import soundfile

        noise = np.random.default_rng(0).normal(0, 0.05, SAMPLING_RATE)
        file = io.BytesIO()
        soundfile.write(file, noise, SAMPLING_RATE, format="WAV")
        done = threading.Event()
        heard: list[Event] = []

        def tell(event: Event) -> None:
            heard.append(event)
            done.set()

        self.submit(Job(file, Kind(word_times=self.has_times), False, tell))
        done.wait()
        if isinstance(heard[0], Exception):
            raise heard[0]

    def _recogniser(self, kind: Kind) -> Recogniser:
        with self.changed:
            if kind not in self.recognisers:
                sampling = {"do_sample": True, "temperature": kind.temperature} if kind.temperature else {}
                self.recognisers[kind] = Recogniser(
                    self.model,
                    self.processor,
                    batch_size=self.max_batch_size,
                    word_times=kind.word_times,
                    generate=sampling,
                )
            return self.recognisers[kind]

    # Readers -------------------------------------------------------------------------------------------------------

    def _windows(self, job: Job, recogniser: Recogniser) -> Iterator[Window]:
        """The job's windows with their features. Raises AudioError; by the header alone where it says enough."""
        limit = self.max_audio_seconds
        seconds = declared_seconds(job.source)
        if seconds is not None and seconds > limit:
            raise AudioError(f"{job.name}: lasts {seconds:,.1f} s, longer than the limit of {limit:g} s")
        job.audio = Reading(read_blocks(job.source, max_seconds=limit))
        for window in recogniser.windows(job.audio):
            yield recogniser.prepare(window)

    def _read_on(self, job: Job) -> None:
        """Have a reader go on with the job, unless one is at it or enough waits. The lock is held."""
        if not (job.over or job.reading or job.ended) and len(job.waiting) < self.max_batch_size:
            job.reading = True
            self.readers.submit(self._read, job)

    def _read(self, job: Job) -> None:
        """Read windows until a batch of them waits."""
        error: Exception | None = None
        more = True
        try:
            while more and not job.over and len(job.waiting) < self.max_batch_size:
                window = next(job.windows, None)
                more = window is not None
                if window is not None:
                    self._queue(job, window)
        except AudioError as caught:
            error = AudioError(str(caught).removeprefix(f"{job.name}: "))
        except Exception as caught:
            error = _failure("reading", caught)
        with self.changed:
            job.reading = False
            job.ended = not more
            if job.over:
                self._end(job)
            elif error is not None:
                self._finish(job, error)
            else:
                self._settle(job)
                self._read_on(job)
            self.changed.notify()

    def _queue(self, job: Job, window: Window) -> None:
        with self.changed:
            if job.over:
                return
            turn = max(job.read_until, self.now)
            job.waiting.append(_Ticket(job, window, turn))
            job.read_until = turn + len(window.waveform) / SAMPLING_RATE
            self.changed.notify()

    # Workers -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._next_batch():
            start = time.monotonic()
            try:
                self._recognise(batch)
            except Exception as error:  # of the model, for all of them
                failure = _failure("a batch", error)
                with self.changed:
                    for ticket in batch:
                        self._finish(ticket.job, failure)
            self.metrics.model_seconds.inc(time.monotonic() - start)
            self.metrics.batch_windows.observe(len(batch))
            with self.changed:
                for ticket in batch:
                    ticket.job.running -= 1
                    ticket.job.seconds = max(ticket.job.seconds, ticket.window.core_end / SAMPLING_RATE)
                    self._settle(ticket.job)
                    self._read_on(ticket.job)

    def _next_batch(self) -> list[_Ticket]:
        """The windows whose turn it is; none when the engine is closed."""
        with self.changed:
            while not self.closed and not self._is_due():
                self.changed.wait(GATHER_SECONDS if self._eligible() else None)
            if self.closed:
                return []
            batch = choose_batch(self._eligible(), self.max_batch_size)
            self.first_waits_since = None
            self.now = max(self.now, batch[0].turn)
            for ticket in batch:
                job = ticket.job
                job.waiting.remove(ticket)
                job.running += 1
                if job.queue_seconds is None:
                    job.queue_seconds = time.monotonic() - job.submitted
                    self.metrics.queue_seconds.observe(job.queue_seconds)
                self._read_on(job)
            self.changed.notify()  # another worker may take what is left
            return batch

    def _is_due(self) -> bool:
        """Whether a batch is to run now: it is full, or nobody is about to join it, or its first window has waited."""
        waiting = self._eligible()
        if not waiting:
            self.first_waits_since = None
            return False
        self.first_waits_since = self.first_waits_since or time.monotonic()
        others = any(job.reading and not job.waiting for job in self.jobs.values())
        waited = time.monotonic() - self.first_waits_since
        return len(waiting) >= self.max_batch_size or not others or waited >= GATHER_SECONDS

    def _eligible(self) -> list[_Ticket]:
        """Windows that may run now: of a stream the next one alone, as its text is told in order."""
        found: list[_Ticket] = []
        for job in self.jobs.values():
            found += job.waiting if not job.stream else [] if job.running else list(job.waiting)[:1]
        return found

    def _recognise(self, batch: list[_Ticket]) -> None:
        recogniser = self._recogniser(batch[0].job.kind)
        first = batch[0]
        if len(batch) == 1 and first.job.text is not None:
            # Alone, a stream is told word by word; in a batch, window by window.
            self._write(first.job, first.job.text.write(first.window))
            return
        results = recogniser.recognise_windows([ticket.window for ticket in batch])
        for ticket, pieces in zip(batch, results, strict=True):
            job = ticket.job
            if job.text is not None:
                self._write(job, job.text.add(ticket.window, pieces))
            else:
                job.pieces[ticket.window.core_start] = [
                    replace(piece, window=piece.window.without_audio()) for piece in pieces
                ]

    def _write(self, job: Job, pieces: Generator[str, None, None]) -> None:
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    if job.over:
                        return
                    job.written.append(piece)
                    job.tell(piece)
        except Exception as error:  # of this stream alone
            with self.changed:
                self._finish(job, _failure("a stream", error))

    # Ends, with the lock held ---------------------------------------------------------------------------------------

    def _settle(self, job: Job) -> None:
        """Tell the result if nothing of the job is left to do."""
        if job.over or not job.ended or job.waiting or job.running:
            return
        self.metrics.audio_seconds.inc(job.seconds)
        if job.text is not None:
            text = "".join(job.written)
            self._finish(job, Recognition([Segment(text, 0.0, job.seconds)] if text else [], job.seconds))
        else:
            result = self._recogniser(job.kind).result(job.pieces, None, job.audio.damage)
            self._finish(job, _failure("a recording", result) if isinstance(result, Exception) else result)

    def _finish(self, job: Job, event: Event) -> None:
        was_over = job.over
        self._end(job)
        if not was_over:  # told last: whoever hears of it finds the job over
            job.tell(event)

    def _end(self, job: Job) -> None:
        job.over = True
        job.waiting.clear()
        self.jobs.pop(id(job), None)
        if not job.reading:  # else its reader comes by here
            job.windows = iter(())
            job.source.close()


def _failure(what: str, error: Exception) -> RuntimeError:
    """What of our errors leaves this module: its kind. The log says where it was; its words could hold content."""
    logger.error(
        "%s failed with %s at\n%s", what, type(error).__name__, "".join(format_tb(error.__traceback__))
    )
    return RuntimeError(type(error).__name__)


def choose_batch(waiting: list[_Ticket], size: int) -> list[_Ticket]:
    """The window whose turn it is, and those that can go along: of its kind, and closest to it in length."""
    leader = min(waiting, key=lambda ticket: ticket.turn)
    own = _length(leader)
    mates = [
        ticket
        for ticket in waiting
        if ticket is not leader
        and ticket.job.kind == leader.job.kind
        and 1 / MOST_LENGTH_RATIO <= _length(ticket) / own <= MOST_LENGTH_RATIO
    ]
    mates.sort(key=lambda ticket: abs(math.log(_length(ticket) / own)))
    return [leader, *mates[: size - 1]]


def _length(ticket: _Ticket) -> int:
    return max(len(ticket.window.waveform), SHORTEST_SAMPLES)
