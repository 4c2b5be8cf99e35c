"""Recordings to text that can be watched while it is written. Also part of a Space, where Tiny Audio is not installed.

Legend: S samples at 16 kHz.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

SAMPLING_RATE = 16_000
MAX_SECONDS = 30 * 60.0  # of one recording


class Unusable(Exception):
    """A recording that gives no text; the message is for whoever made it."""


@dataclass(frozen=True)
class State:
    """How far a model is with a recording: the text so far and seconds heard; at the end a `Recognition`."""

    text: str
    heard_seconds: float
    elapsed_seconds: float
    recognition: Any = None


class Listener:
    """A model that writes down recordings.

    Args:
        name: what people call it. model, processor: of a checkpoint.
        code: its module `asr_pipeline`, of this package or the one that a checkpoint carries.
    """

    def __init__(self, name: str, model: Any, processor: Any, code: ModuleType | Any):
        self.name, self.model, self.processor, self.code = name, model, processor, code
        self.has_times = model.ctc_head is not None

    @classmethod
    def of_pipeline(cls, name: str, pipeline: Any) -> Listener:
        """Of what `transformers.pipeline(..., trust_remote_code=True)` returned."""
        return cls(name, pipeline.model, pipeline.processor, sys.modules[type(pipeline).__module__])

    def read(self, path: str, max_seconds: float = MAX_SECONDS) -> np.ndarray:
        """A file as float32 (S,). Raises Unusable for what is not audio, or longer than `max_seconds`."""
        try:
            return np.concatenate(list(self.code.read_blocks(path, max_seconds=max_seconds)))
        except (OSError, ValueError) as error:
            raise Unusable(f"{' '.join(str(error).replace(path, Path(path).name).split())}.") from error

    def listen(self, waveform: np.ndarray) -> Iterator[State]:
        """States of the work on float32 (S,), the last one with the `Recognition`.

        Raises what recognition raised. When the caller stops early, the work stops at its next token.
        """
        work = _Work(self, waveform)
        thread = threading.Thread(target=work.run, name="listen", daemon=True)
        thread.start()
        try:
            while True:
                update = work.updates.get()
                while (
                    not work.updates.empty()
                ):  # the newest says it all, and slow browsers must not fall behind
                    update = work.updates.get()
                if isinstance(update, BaseException):
                    raise update
                yield update
                if update.recognition is not None:
                    return
        finally:
            work.is_stopped = True
            thread.join()


class _Work:
    """Recognition of one recording, window by window; it is also the streamer and stopper of generation."""

    def __init__(self, listener: Listener, waveform: np.ndarray):
        self.waveform, self.tokenizer = waveform, listener.processor.tokenizer
        self.updates: queue.Queue[State | BaseException] = queue.Queue()
        self.is_stopped = False
        self.text, self.heard_seconds, self.began = "", 0.0, time.monotonic()
        self.ids: list[int] = []  # of the window that is being written
        options: dict[str, Any] = {"stopping_criteria": [self._should_stop]}
        if listener.model.generation_config.num_beams in (None, 1):  # beams cannot be watched
            options["streamer"] = self
        self.recogniser = listener.code.Recogniser(
            listener.model, listener.processor, batch_size=1, word_times=listener.has_times, generate=options
        )

    def run(self) -> None:
        try:
            recognition = self._recognise()
            self._tell(recognition.text, recognition)
        except BaseException as error:  # whatever it is, it belongs to the caller
            self.updates.put(error)

    def _recognise(self) -> Any:
        pieces: dict[int, Any] = {}
        self._tell("")
        for window in self.recogniser.windows([self.waveform]):
            self.ids = []
            pieces[window.core_start] = self.recogniser.recognise_windows([window])[0]
            self.heard_seconds = window.core_end / SAMPLING_RATE
            self.text = " ".join(piece.text for each in pieces.values() for piece in each if piece.text)
            self._tell(self.text)
            if self.is_stopped:
                break
        result = self.recogniser.result(pieces, None)
        if isinstance(result, Exception):
            raise result
        return result

    def _tell(self, text: str, recognition: Any = None) -> None:
        elapsed = time.monotonic() - self.began
        self.updates.put(State(text, self.heard_seconds, elapsed, recognition))

    def _should_stop(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.is_stopped, device=input_ids.device)

    def put(self, value: torch.Tensor) -> None:
        """A token that was written, as `generate` tells its streamer."""
        self.ids += value.flatten().tolist()
        written = self.tokenizer.decode(self.ids, skip_special_tokens=True).strip(
            "\N{REPLACEMENT CHARACTER} "
        )
        self._tell(f"{self.text} {written}".strip())

    def end(self) -> None:
        """The window's last token was written; what is made of it comes from the recogniser."""
