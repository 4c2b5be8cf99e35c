"""`EndpointHandler` for Hugging Face Inference Endpoints: audio in a request, text or a typed error in the answer.

Hugging Face's inference toolkit loads this file by its path, under the name `handler.EndpointHandler`, where neither
`from .asr_audio import ...` nor the installed package can be counted on. So nothing here imports a neighbour: the
pipeline comes from the checkpoint through `trust_remote_code`, and all else through the pipeline. An endpoint installs
the checkpoint's `requirements.txt`, if it has one, before it starts.

A request is `{"inputs": ..., "parameters": {...}}`. `inputs` is one recording, or a list of them (answered by a list):

* encoded audio: bytes (what the toolkit makes of a body with an audio content type), or a base64 string, plain
  or as a URL `data:audio/wav;base64,...`. A string is never opened as a path or a URL.
* samples: `{"array": [...], "sampling_rate": 16000}`, floats in -1..1, (samples,) or (channels, samples). "raw" is
  another name for "array".

`parameters` are those of `TinyAudioPipeline`: `return_timestamps` (true or "word"), `chunk_length_s`,
`stride_length_s`, `batch_size`, and options of generation, directly or under `generate_kwargs` (or
`generation_parameters`, as Hugging Face's clients call it). PARAMETERS and GENERATION name all that is accepted.

The answer is `{"text", "chunks"?, "problems"?}` for each recording, or `{"error": {"type", "message"}}` with one of
ERROR_TYPES. The toolkit sends whatever a handler returns with status 200, and turns an exception into status 400
with `{"error": "the exception's words"}`. Errors are returned, so that they keep their type and one bad recording of a
list does not cost the others: look for "error" in the answer. Where the endpoint's task is
automatic-speech-recognition, the toolkit itself decodes base64 that comes with parameters, and takes no data URLs or
lists there; with the task "custom" all of the above works.
"""

from __future__ import annotations

import base64
import binascii
import logging
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import pipeline

logger = logging.getLogger(__name__)

SAMPLING_RATE = 16_000
# Limits of one request, all its recordings together; arguments of the constructor, or the environment variables
# TINY_AUDIO_MAX_UPLOAD_BYTES and TINY_AUDIO_MAX_SECONDS, set others. An hour takes 230 MB of memory once decoded.
MAX_UPLOAD_BYTES = 200_000_000
MAX_SECONDS = 3600.0
MAX_RECORDINGS = 256
# Rates of samples, as in `asr_audio`: resampling from 1 Hz would ask for any amount of memory.
SAMPLING_RATES = (4_000, 768_000)
HIGHEST_AMPLITUDE = 100.0
WARM_UP_SECONDS = 1.0
WARM_UP_TOKENS = 8

ERROR_TYPES = {
    "invalid_request": 'the request has no "inputs", or something besides "inputs" and "parameters"',
    "invalid_parameter": "a parameter that does not exist, or a value that it cannot have",
    "invalid_input": "the input is of no kind that is accepted: a path, a URL, a string that is not base64 ...",
    "invalid_audio": "the input was decoded, but is not audio, or damaged, or holds no samples",
    "too_large": "more bytes, or more recordings, than one request may hold",
    "too_long": "more seconds of audio than one request may hold",
    "out_of_memory": "the device ran out of memory, even with one short window at a time",
    "internal_error": "anything else: a fault of the server, of which its log says more",
}


class RequestError(Exception):
    """Something the client can mend: one of ERROR_TYPES, and a message that says what."""

    def __init__(self, type: str, message: str):
        super().__init__(message)
        self.type = type


# Parameters -----------------------------------------------------------------------------------------------------------


def _number(low: float, high: float, whole: bool = False, above: bool = False) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, str):  # in a URL, of which the toolkit reads whole numbers and booleans alone
            value = int(value) if whole else float(value)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise TypeError
        if not low <= value <= high or (above and value == low):
            raise ValueError
        # JSON may write 2.0 as 2, which transformers takes for a mistake.
        return value if whole else float(value)

    check.__doc__ = f"a {'whole ' * whole}number {'above' if above else 'from'} {low:g} to {high:g}"
    return check


def _boolean(value: Any) -> bool:
    """true or false"""
    if not isinstance(value, bool):
        raise TypeError
    return value


def _timestamps(value: Any) -> bool | str:
    """true, false or "word\""""
    return value if value == "word" else _boolean(value)


def _overlap(value: Any) -> Any:
    """seconds from 0 to 30, or two of them"""
    seconds = _number(0, 30)
    if isinstance(value, (list, tuple)):
        before, after = value
        return seconds(before), seconds(after)
    return seconds(value)


# A closed list: `generate` has options that load code from anywhere or take any amount of memory.
GENERATION: dict[str, Callable[[Any], Any]] = {
    "max_new_tokens": _number(1, 4096, whole=True),
    "min_new_tokens": _number(0, 4096, whole=True),
    "num_beams": _number(1, 16, whole=True),
    "length_penalty": _number(-10, 10),
    "early_stopping": _boolean,
    "do_sample": _boolean,
    "temperature": _number(0.01, 10),
    "top_k": _number(1, 1000, whole=True),
    "top_p": _number(0, 1, above=True),
    "repetition_penalty": _number(0.1, 10),
    "no_repeat_ngram_size": _number(0, 100, whole=True),
}
PARAMETERS: dict[str, Callable[[Any], Any]] = {
    "return_timestamps": _timestamps,
    "chunk_length_s": _number(1, 3600),
    "stride_length_s": _overlap,
    "batch_size": _number(1, 64, whole=True),
    **GENERATION,
}
NESTED = ("generate_kwargs", "generation_parameters")


def check_parameters(given: Any) -> dict[str, Any]:
    """The pipeline's arguments, from the `parameters` of a request. Raises RequestError (invalid_parameter)."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise RequestError(
            "invalid_parameter", f"parameters must be an object of names and values, not {_kind(given)}"
        )
    checked: dict[str, Any] = {}
    for name, value in given.items():
        nested = name in NESTED
        if nested and value is not None and not isinstance(value, dict):
            raise RequestError("invalid_parameter", f"{name} must be an object, not {_kind(value)}")
        for option, content in (value or {}).items() if nested else [(name, value)]:
            known = GENERATION if nested else PARAMETERS
            if option not in known:
                raise RequestError(
                    "invalid_parameter", f"there is no parameter {_shown(option)}; known: {', '.join(known)}"
                )
            if content is None:
                continue  # as if it had been left out
            try:
                checked[option] = known[option](content)
            except (TypeError, ValueError, OverflowError):
                raise RequestError(
                    "invalid_parameter", f"{option} must be {known[option].__doc__}, got {_shown(content)}"
                ) from None
    return checked


# Inputs ---------------------------------------------------------------------------------------------------------------


class _Budget:
    """What is left of a request's bytes and seconds, taken from while reading."""

    def __init__(self, max_bytes: int, max_seconds: float):
        self.max_bytes, self.max_seconds = max_bytes, max_seconds
        self.bytes = self.seconds = 0.0

    def take_bytes(self, count: float) -> None:
        self.bytes += count
        if self.bytes > self.max_bytes:
            raise RequestError(
                "too_large",
                f"the audio of this request is larger than the limit of {self.max_bytes:,} bytes; send it in parts, "
                "or compressed (FLAC, Opus, MP3)",
            )

    def take_seconds(self, seconds: float) -> None:
        self.seconds += seconds
        if self.seconds > self.max_seconds:
            raise RequestError(
                "too_long",
                f"the audio of this request lasts longer than the limit of {self.max_seconds:g} s; send it in parts",
            )


def decode_base64(text: str, budget: _Budget) -> bytes:
    """The bytes of a base64 string, plain or as a data URL. Raises RequestError; opens nothing."""
    advice = "send audio as bytes, or as a base64 string; paths and URLs are not opened"
    text = text.lstrip()
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise RequestError(
                "invalid_input", f"a data URL must have the form data:audio/...;base64,...; {advice}"
            )
    # Before decoding, which would take the memory. Line breaks, at most one in 60 characters, do not matter here.
    budget.take_bytes(len(text) * 3 // 4 - text[-2:].count("="))
    try:
        text = "".join(text.split()).replace("-", "+").replace("_", "/")  # the form for URLs is as good
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise RequestError(
            "invalid_input", f"the string of {len(text):,} characters is not base64; {advice}"
        ) from None


def check_samples(given: dict[str, Any], budget: _Budget) -> dict[str, Any]:
    """`{"array": float32, "sampling_rate"}` of a request's samples. Raises RequestError."""
    names = set(given)
    if names not in ({"array", "sampling_rate"}, {"raw", "sampling_rate"}):
        raise RequestError(
            "invalid_input",
            'an object of audio must hold "array" (or "raw") and "sampling_rate", and nothing else; '
            f"got {', '.join(_shown(name) for name in list(given)[:5]) or 'an empty one'}",
        )
    rate, samples = given["sampling_rate"], given.get("array", given.get("raw"))
    low, high = SAMPLING_RATES
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not low <= rate <= high or rate % 1:
        raise RequestError(
            "invalid_input",
            f"sampling_rate must be a whole number of samples a second from {low:,} to {high:,}, got {_shown(rate)}",
        )
    if not isinstance(samples, (list, tuple, np.ndarray)):
        raise RequestError("invalid_input", f"the samples must be a list of numbers, not {_kind(samples)}")
    try:
        array = np.asarray(samples, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(
            "invalid_input", "the samples must be numbers, as many in each channel as in the others"
        ) from None
    if array.ndim not in (1, 2) or array.size == 0:
        raise RequestError(
            "invalid_audio",
            f"samples have the shape (samples,) or (channels, samples), and at least one; got {array.shape}",
        )
    budget.take_bytes(array.nbytes)
    budget.take_seconds(max(array.shape) / rate)
    peak = float(np.abs(array).max())
    if not math.isfinite(peak):
        raise RequestError("invalid_audio", "the samples hold NaN or infinity")
    if peak > HIGHEST_AMPLITUDE:
        raise RequestError(
            "invalid_audio",
            f"samples reach {peak:,.0f} where full scale is 1.0; divide 16-bit integers by 32768",
        )
    return {"array": array, "sampling_rate": int(rate)}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _shown(value: Any) -> str:
    """A name or a parameter for a message: short, on one line, and never the content of audio or text."""
    try:
        text = ascii(value) if isinstance(value, (str, int, float, bool)) else _kind(value)
    except ValueError:  # Python writes no integer of thousands of digits
        text = "a huge number"
    return text if len(text) <= 40 else f"{text[:37]}..."


# The handler ----------------------------------------------------------------------------------------------------------


class EndpointHandler:
    """Loads a checkpoint once, warms it up, and answers requests. Whatever happens in a request, it never raises.

    Args, each of which may also come from the environment:
        path: the checkpoint's folder (or hub id); default: the folder that this file lies in.
        device: TINY_AUDIO_DEVICE; "auto" (cuda, mps or cpu, whichever is there first) or a torch device.
        dtype: TINY_AUDIO_DTYPE; "auto" (bfloat16 on a CUDA device that computes in it, else float32), float32,
            bfloat16 or float16.
        max_upload_bytes: TINY_AUDIO_MAX_UPLOAD_BYTES; of one request, after base64. Default MAX_UPLOAD_BYTES.
        max_seconds: TINY_AUDIO_MAX_SECONDS; of audio in one request. Default MAX_SECONDS.

    Raises:
        ValueError: a setting that cannot be.  OSError and others: the checkpoint cannot be loaded or does not run.
    """

    def __init__(
        self,
        path: str = "",
        device: str | None = None,
        dtype: str | None = None,
        max_upload_bytes: int | None = None,
        max_seconds: float | None = None,
    ):
        self.device = pick_device(device or os.environ.get("TINY_AUDIO_DEVICE") or "auto")
        self.dtype = pick_dtype(dtype or os.environ.get("TINY_AUDIO_DTYPE") or "auto", self.device)
        self.max_upload_bytes = int(
            _limit(max_upload_bytes, "TINY_AUDIO_MAX_UPLOAD_BYTES", float(MAX_UPLOAD_BYTES))
        )
        self.max_seconds = _limit(max_seconds, "TINY_AUDIO_MAX_SECONDS", MAX_SECONDS)
        start = time.perf_counter()
        self.pipeline = pipeline(
            "automatic-speech-recognition",
            model=str(path) or str(Path(__file__).parent),
            trust_remote_code=True,
            device=self.device,
            dtype=self.dtype,
        )
        loaded = time.perf_counter()
        self._warm_up()
        logger.info(
            "loaded in %.1f s on %s in %s, warmed up in %.1f s; requests of up to %g s and %s bytes",
            loaded - start,
            self.device,
            str(self.dtype).removeprefix("torch."),
            time.perf_counter() - loaded,
            self.max_seconds,
            f"{self.max_upload_bytes:,}",
        )

    def _warm_up(self) -> None:
        """A second of quiet noise through reading and windows, and past the guard through the decoder."""
        noise = np.random.default_rng(0).standard_normal(int(WARM_UP_SECONDS * SAMPLING_RATE))
        noise = (0.01 * noise).astype(np.float32)
        self.pipeline(noise, max_new_tokens=WARM_UP_TOKENS)
        inputs = self.pipeline.processor(noise, sampling_rate=SAMPLING_RATE).to(self.device)
        inputs["input_features"] = inputs["input_features"].to(self.dtype)
        self.pipeline.model.generate(**inputs, max_new_tokens=WARM_UP_TOKENS)

    def __call__(self, data: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """The answer to one request, in values that JSON has; see the head of this file."""
        start = time.perf_counter()
        budget = _Budget(self.max_upload_bytes, self.max_seconds)
        try:
            inputs, parameters = self._open(data)
            many = isinstance(inputs, (list, tuple))
            answers = self._answer(list(inputs) if many else [inputs], parameters, budget)
            answer = answers if many else answers[0]
        except Exception as error:
            answers = [self._error(error)]
            answer = answers[0]
        failed = [answer["error"]["type"] for answer in answers if "error" in answer]
        logger.info(
            "%d recordings of %.1f s in %.2f s%s",
            len(answers),
            budget.seconds,
            time.perf_counter() - start,
            f", errors: {' '.join(failed)}" if failed else "",
        )
        return answer

    def _open(self, data: Any) -> tuple[Any, dict[str, Any]]:
        """The inputs and checked parameters of a request."""
        if not isinstance(data, dict) or data.get("inputs") is None:
            raise RequestError("invalid_request", 'a request must be an object with "inputs"')
        unknown = [name for name in data if name not in ("inputs", "parameters")]
        if unknown:
            raise RequestError(
                "invalid_request",
                f'a request holds "inputs" and "parameters" alone, not {_shown(unknown[0])}; options of '
                'recognition belong into "parameters"',
            )
        inputs = data["inputs"]
        if isinstance(inputs, (list, tuple)):
            if not inputs:
                raise RequestError("invalid_input", "the list of recordings is empty")
            if isinstance(inputs[0], (int, float)):
                raise RequestError(
                    "invalid_input",
                    'a bare list of numbers has no sampling rate; send {"array": [...], "sampling_rate": ...}',
                )
            if len(inputs) > MAX_RECORDINGS:
                raise RequestError(
                    "too_large",
                    f"{len(inputs):,} recordings are more than the limit of {MAX_RECORDINGS} a request",
                )
        return inputs, check_parameters(data.get("parameters"))

    def _answer(self, inputs: list[Any], parameters: dict[str, Any], budget: _Budget) -> list[dict[str, Any]]:
        """Each recording's result or error, in order."""
        answers: dict[int, dict[str, Any]] = {}
        recordings: dict[int, dict[str, Any]] = {}
        for index, item in enumerate(inputs):
            try:
                recordings[index] = self._decode(item, budget)
            except RequestError as error:
                answers[index] = self._error(error)
        answers.update(zip(recordings, self._recognise(list(recordings.values()), parameters), strict=True))
        return [answers[index] for index in range(len(inputs))]

    def _recognise(
        self, recordings: list[dict[str, Any]], parameters: dict[str, Any]
    ) -> list[dict[str, Any]]:
        if not recordings:
            return []
        try:
            answers = self.pipeline(recordings, **parameters)
            for answer in answers:
                for problem in answer.get("problems", ()):  # whose reasons are an exception's own words
                    problem["reason"] = "could not be recognised"
            return answers
        except Exception as error:
            if len(recordings) > 1:  # each alone, so that only those fail that must
                return [answer for one in recordings for answer in self._recognise([one], parameters)]
            if isinstance(error, ValueError) and parameters:  # the pipeline's or generation's own checks
                message = " ".join(str(error).split())
                return [self._error(RequestError("invalid_parameter", message))]
            return [self._error(error)]

    def _decode(self, item: Any, budget: _Budget) -> dict[str, Any]:
        """One recording as samples at its rate. Raises RequestError; reading stops where a limit is passed."""
        if isinstance(item, dict):
            return check_samples(item, budget)
        if isinstance(item, str):
            encoded = decode_base64(item, budget)
        elif isinstance(item, (bytes, bytearray, memoryview)):
            encoded = bytes(item)
            budget.take_bytes(len(encoded))
        else:
            raise RequestError(
                "invalid_input",
                f'a recording is bytes, a base64 string or {{"array", "sampling_rate"}}, not {_kind(item)}',
            )
        blocks = list(self._read(encoded, budget, isinstance(item, str)))
        return {"array": np.concatenate(blocks), "sampling_rate": SAMPLING_RATE}

    def _read(self, encoded: bytes, budget: _Budget, was_text: bool) -> Iterator[np.ndarray]:
        """Blocks of 16 kHz float32."""
        try:
            for block in self.pipeline.preprocess(encoded):
                budget.take_seconds(len(block) / SAMPLING_RATE)
                yield block
        except (OSError, ValueError) as error:  # AudioError is a ValueError
            message = " ".join(str(error).split())
            if was_text:  # "/srv/a/wave" is base64, too
                message += "; strings are taken for base64, paths and URLs are not opened"
            raise RequestError("invalid_audio", message) from error

    def _error(self, error: Exception) -> dict[str, Any]:
        """An answer in place of a result. Of what is not the client's fault, no words leave this process."""
        if isinstance(error, RequestError):
            return {"error": {"type": error.type, "message": str(error)}}
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.error("out of memory on %s", self.device)
            message = (
                f"{self.device} ran out of memory; try again, with a smaller batch_size or shorter audio"
            )
            return {"error": {"type": "out_of_memory", "message": message}}
        # Where it happened, and not its words, which could hold what was said.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("a request failed with %s at\n%s", type(error).__name__, frames)
        message = f"recognition failed ({type(error).__name__}); the server's log says where"
        return {"error": {"type": "internal_error", "message": message}}


def pick_device(name: str) -> torch.device:
    """The named device, or for "auto" the best one that is there. Raises ValueError for one that is not."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch is compiled without CUDA
        raise ValueError(
            f"TINY_AUDIO_DEVICE must be auto or a device of this machine, got {name!r}"
        ) from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named precision, or for "auto" the best one for `device`. Raises ValueError for another name."""
    if name == "auto":
        computes = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if computes else torch.float32
    names = ("float32", "bfloat16", "float16")
    if name not in names:
        raise ValueError(f"TINY_AUDIO_DTYPE must be auto, {', '.join(names)}, got {name!r}")
    return getattr(torch, name)


def _limit(given: float | None, variable: str, default: float) -> float:
    value = given if given is not None else os.environ.get(variable) or default
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{variable} must be a positive number, got {value!r}")
    return number
