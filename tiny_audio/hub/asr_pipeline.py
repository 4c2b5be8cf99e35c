"""`pipeline("automatic-speech-recognition", ...)` for Tiny Audio: audio of any kind and length in, text out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import soxr
from torch.utils.data import Dataset
from transformers import Pipeline

from .asr_audio import (
    HIGHEST_SAMPLING_RATE,
    LOWEST_SAMPLING_RATE,
    SAMPLING_RATE,
    Damage,
    check_samples,
    read_blocks,
)
from .asr_longform import Blocks, Recogniser
from .asr_merging import Recognition

DEFAULT_BATCH_SIZE = 8
SHORTEST_WINDOW_SECONDS = 1.0


class TinyAudioPipeline(Pipeline):
    """A thin pipeline: reading is `asr_audio`'s, windows and merging `asr_longform`'s, generation the model's.

    Accepts a path, bytes, a binary file object, a mono array at 16 kHz, or
    `{"array" | "raw": ..., "sampling_rate": ...}`; or a list, generator or dataset of these. Lists give lists, the
    others generators.

    Args (of the constructor or of a call):
        chunk_length_s: the longest window, at most what the model takes (30); default: what it was trained on.
        stride_length_s: overlap before and after the border of two windows where no silence was found to cut at; one
            number or two. Default (5, 5).
        batch_size: windows in one pass, of one recording or of many. Default 8.
        return_timestamps: True for the time of each segment, "word" for that of each word with its confidence.
        stream: yield the text of one recording in pieces, as they are written.
        generate_kwargs: options of `generate`; further keyword arguments are the same (num_beams, do_sample,
            temperature, max_new_tokens for each window ...).

    Returns:
        `{"text": ...}`, with `"chunks": [{"text", "timestamp": (start, end)}]` where times were asked for, and
        `"problems": [{"start", "end", "reason"}]` where something could not be recognised.
    """

    _load_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_image_processor = False
    _pipeline_calls_generate = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.type = "seq2seq"
        self.model.eval()

    def _sanitize_parameters(
        self,
        chunk_length_s: float | None = None,
        stride_length_s: float | tuple[float, float] | None = None,
        return_timestamps: bool | str | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        options = {**(generate_kwargs or {}), **kwargs}
        for name in ("temperature", "repetition_penalty"):  # 2 is as good as 2.0, but not to transformers
            if isinstance(options.get(name), int):
                options[name] = float(options[name])
        settings: dict[str, Any] = {"generate": options}
        if chunk_length_s:
            settings["window_seconds"] = float(chunk_length_s)
            if chunk_length_s < SHORTEST_WINDOW_SECONDS:
                raise ValueError(
                    f"chunk_length_s must be at least {SHORTEST_WINDOW_SECONDS:g} (seconds), got {chunk_length_s}"
                )
        if stride_length_s is not None:
            both = np.asarray(stride_length_s, dtype=np.float64)
            if both.shape not in ((), (2,)) or not np.isfinite(both).all():
                raise ValueError(
                    f"stride_length_s must be a number of seconds, or two of them, got {stride_length_s!r}"
                )
            before, after = np.broadcast_to(both, 2).tolist()
            settings["overlap_seconds"] = (before, after)
        if return_timestamps not in (None, False, True, "word"):
            raise ValueError(f'return_timestamps must be True, False or "word", got {return_timestamps!r}')
        if return_timestamps:
            settings["word_times"] = True
        return {}, settings, {} if return_timestamps is None else {"return_timestamps": return_timestamps}

    def __call__(
        self, inputs: Any, *args: Any, batch_size: int | None = None, stream: bool = False, **kwargs: Any
    ) -> Any:
        kwargs.pop("num_workers", None)  # of stock pipelines; reading is not what takes time here
        _, settings, shown = self._sanitize_parameters(**kwargs)
        # transformers sets the constructor's options of `generate` aside.
        constructor = {**self._generate_kwargs, **self._forward_params.get("generate", {})}
        settings["generate"] = {**constructor, **settings["generate"]}
        settings = {**self._forward_params, **settings}
        sizes = (batch_size, self._batch_size, DEFAULT_BATCH_SIZE)
        settings["batch_size"] = next(size for size in sizes if size is not None)
        shown = {**self._postprocess_params, **shown}
        if stream and shown.get("return_timestamps"):
            raise ValueError("a stream is of text alone: leave return_timestamps out")
        if stream:
            return Recogniser(self.model, self.processor, **settings).stream(self.preprocess(inputs))
        is_file = hasattr(inputs, "read")  # which iterates over lines
        many = isinstance(inputs, (Iterator, Dataset, list, tuple)) and not is_file
        items = inputs if many else [inputs]
        if isinstance(inputs, Dataset) and hasattr(inputs, "__len__"):  # which need not raise IndexError
            items = (inputs[index] for index in range(len(inputs)))
        recordings = (self.preprocess(item) for item in items)
        results = (self.postprocess(result, **shown) for result in self._forward(recordings, **settings))
        if isinstance(inputs, (list, tuple)):
            return list(results)
        return results if many else next(results)

    def preprocess(self, inputs: Any, **_: Any) -> Blocks:
        return audio_blocks(inputs)

    def _forward(self, recordings: Iterable[Blocks], **settings: Any) -> Iterator[Recognition]:
        for result in Recogniser(self.model, self.processor, **settings).recognise(recordings):
            if isinstance(result, Exception):
                raise result
            yield result

    def postprocess(
        self, recognition: Recognition, return_timestamps: bool | str = False, **_: Any
    ) -> dict[str, Any]:
        result: dict[str, Any] = {"text": recognition.text}
        if return_timestamps == "word":
            result["chunks"] = [
                {"text": word.text, "timestamp": (word.start, word.end), "confidence": word.confidence}
                for word in recognition.words
            ]
        elif return_timestamps:
            result["chunks"] = [
                {"text": segment.text, "timestamp": (segment.start, segment.end)}
                for segment in recognition.segments
            ]
        if recognition.problems:
            result["problems"] = [vars(problem) for problem in recognition.problems]
        return result


def audio_blocks(inputs: Any) -> Generator[np.ndarray, None, Damage | None]:
    """Whatever a user may hold to blocks of 16 kHz float32. The input is left as it was. Returns what is missing.

    Raises AudioError or ValueError, at the first block, for what is not audio.
    """
    if isinstance(inputs, dict):
        array = inputs.get("array", inputs.get("raw"))
        if array is None or "sampling_rate" not in inputs:
            raise ValueError('a dict of audio needs "array" (or "raw") and "sampling_rate"')
        yield _mono(_array(array), inputs["sampling_rate"])
    elif isinstance(inputs, np.ndarray) or _is_tensor(inputs):
        yield _mono(_array(inputs), SAMPLING_RATE)
    else:
        return (yield from read_blocks(inputs))
    return None


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.startswith("torch") and hasattr(value, "detach")


def _array(values: Any) -> np.ndarray:
    """A list, an array or a tensor to an array; numpy has no bfloat16."""
    if not _is_tensor(values):
        return np.asarray(values)
    samples = values.detach().cpu()
    return (samples.float() if samples.is_floating_point() else samples).numpy()


def _mono(array: np.ndarray, sampling_rate: Any) -> np.ndarray:
    """Integers scaled to [-1, 1), channels averaged, rate changed: float32 (S,)."""
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(
            f"an array of audio has the shape (samples,) or (channels, samples), got {array.shape}"
        )
    try:
        sampling_rate = int(sampling_rate)
    except (TypeError, ValueError, OverflowError):
        sampling_rate = 0
    if not LOWEST_SAMPLING_RATE <= sampling_rate <= HIGHEST_SAMPLING_RATE:
        raise ValueError(
            f"sampling_rate must be a number from {LOWEST_SAMPLING_RATE:,} to {HIGHEST_SAMPLING_RATE:,}"
        )
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise ValueError(f"an array of audio holds numbers, not {array.dtype}")
    if array.dtype in (np.int64, np.uint64):  # what numpy makes of a list of whole numbers
        raise ValueError("64-bit integers have no full scale: give int16, or floats between -1 and 1")
    if np.issubdtype(array.dtype, np.integer):
        lowest, highest = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
        zero = 0 if lowest else (highest + 1) // 2  # unsigned samples swing around their middle
        array = (array.astype(np.float64) - zero) / (highest + 1 - zero)
    array = array.astype(np.float32)
    if array.ndim == 2:
        array = array.mean(axis=int(array.shape[0] > array.shape[1]))  # channels are the shorter axis
    check_samples(array, 0.0, "the array")
    return array if sampling_rate == SAMPLING_RATE else soxr.resample(array, sampling_rate, SAMPLING_RATE)
