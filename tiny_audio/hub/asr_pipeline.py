"""`pipeline("automatic-speech-recognition", ...)` for Tiny Audio: any audio in, text out, without ffmpeg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr
import torch
from transformers import Pipeline

from .asr_audio import load_audio
from .asr_processing import TinyAudioProcessor


@torch.inference_mode()
def transcribe_waveforms(
    model: Any, processor: TinyAudioProcessor, waveforms: Sequence[np.ndarray], **generate_kwargs: Any
) -> list[str]:
    """One batch of 16 kHz float32 waveforms (S,) to transcripts. Raises ValueError for a clip longer than one pass."""
    if not len(waveforms):
        return []
    batch = processor.collate([processor.encode(waveform) for waveform in waveforms]).to(model.device)
    batch["input_features"] = batch["input_features"].to(model.dtype)
    return processor.batch_decode(model.generate(**batch, **generate_kwargs))


class TinyAudioPipeline(Pipeline):
    """A thin pipeline: decoding is `asr_audio`'s, batching `asr_processing`'s, and generation the model's.

    Accepts a path, bytes, a file object, a mono array at 16 kHz, `{"array" | "raw": ..., "sampling_rate": ...}`, or a
    list of these. Further keyword arguments go to `generate`.
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
        self, generate_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, {**(generate_kwargs or {}), **kwargs}, {}

    def preprocess(self, inputs: Any, **_: Any) -> dict[str, Any]:
        return {"waveform": as_waveform(inputs, self.processor.sampling_rate, self.processor.max_seconds)}

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        waveforms = model_inputs["waveform"]
        many = isinstance(waveforms, list)
        texts = transcribe_waveforms(
            self.model, self.processor, waveforms if many else [waveforms], **generate_kwargs
        )
        return {"text": texts if many else texts[0]}

    def postprocess(self, model_outputs: dict[str, Any], **_: Any) -> dict[str, str]:
        return {"text": model_outputs["text"]}


def as_waveform(inputs: Any, sampling_rate: int, max_seconds: float | None) -> np.ndarray:
    """Whatever a user may hold to float32 (S,) at `sampling_rate`. The input is left as it was."""
    if isinstance(inputs, dict):
        array = inputs.get("array", inputs.get("raw"))
        if array is None or "sampling_rate" not in inputs:
            raise ValueError('a dict of audio needs "array" (or "raw") and "sampling_rate"')
        return _mono(np.asarray(array), int(inputs["sampling_rate"]), sampling_rate)
    if isinstance(inputs, np.ndarray):
        return _mono(inputs, sampling_rate, sampling_rate)
    return load_audio(inputs, sampling_rate, max_seconds)


def _mono(array: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Integers scaled to [-1, 1), channels averaged, rate changed: float32 (S,)."""
    if np.issubdtype(array.dtype, np.integer):
        array = array / -float(np.iinfo(array.dtype).min or -1)
    array = array.astype(np.float32)
    if array.ndim == 2:
        array = array.mean(axis=int(array.shape[0] > array.shape[1]))  # channels are the shorter axis
    return array if from_rate == to_rate else soxr.resample(array, from_rate, to_rate)
