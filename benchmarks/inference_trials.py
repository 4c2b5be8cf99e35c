"""The parts of `inference.py` that need more than the model: int8, a compiler, real weights or a trained model."""

from __future__ import annotations

import copy
import os
import shutil
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, print_table, take_turns
from sized_models import sound
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.generation import GenerationMixin
from tricks import Tricks, new_tokens_for, transcribe

from tiny_audio.data.sources import open_source
from tiny_audio.evaluate.normalize import basic
from tiny_audio.evaluate.wer import edit_distances
from tiny_audio.hub.asr_checkpoint import load_model
from tiny_audio.hub.asr_drafting import write_from_draft
from tiny_audio.hub.asr_losses import decode_ctc_text

WHISPER = "openai/whisper-base"
CONVERTED = RESULTS.parent / "converted"  # git ignores it
DRAFT_LIMIT = 80


def quantize(model: Any) -> Any:
    """A copy whose linear layers hold int8 weights, activations quantised as they come. The text may change."""
    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its successor
        convert = torch.ao.quantization.quantize_dynamic
        for name in ("audio_tower", "language_model"):
            setattr(model.model, name, convert(getattr(model.model, name), {nn.Linear}, dtype=torch.qint8))
        model.lm_head = convert(nn.Sequential(model.lm_head), {nn.Linear}, dtype=torch.qint8)[0]
    return model


@torch.inference_mode()
def compile_trial(model: Any, processor: Any, batch: int = 16, new_tokens: int = 10) -> dict[str, Any]:
    """A static cache, alone and with the decoder compiled by inductor: the time of the first call and of later ones."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        print("\n(a) torch.compile: skipped, it needs a C++ compiler (g++)")
        return {"skipped": "no C++ compiler"}
    inputs = processor([sound(3, seed) for seed in range(batch)])
    options: dict[str, Any] = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    compiled = copy.copy(model)  # another shell around the same modules
    compiled._modules = dict(model._modules)
    compiled._modules["model"] = copy.copy(model.model)
    compiled._modules["model"]._modules = dict(model.model._modules)
    compiled.model.language_model = torch.compile(model.model.language_model, dynamic=False)
    static = {**options, "cache_implementation": "static", "disable_compile": True}
    written: dict[str, Tensor] = {}
    candidates: dict[str, Callable[[], Any]] = {
        "growing cache": lambda: written.update(growing=model.generate(**inputs, **options)),
        "static cache": lambda: written.update(static=model.generate(**inputs, **static)),
        "static cache, compiled": lambda: written.update(compiled=compiled.generate(**inputs, **static)),
    }
    start = time.perf_counter()
    candidates["static cache, compiled"]()
    first = time.perf_counter() - start
    timings = take_turns(candidates, 3)
    rows = [(n, f"{timings.best(n):.2f}", f"{timings.ratio('growing cache', n):.2f}") for n in candidates]
    print_table(f"(a) {batch} clips of 3 s; the first compiled call took {first:.0f} s", ("", "s", "x"), rows)
    return {
        "first_call_seconds": first,
        "ratio_static": timings.ratio("growing cache", "static cache"),
        "ratio_compiled": timings.ratio("growing cache", "static cache, compiled"),
        "same_text": bool(torch.equal(written["growing"], written["compiled"])),
    }


def speech(count: int) -> tuple[list[np.ndarray], list[str]]:
    """Waveforms and references of the embedded test set, spread over all its voices."""
    source = open_source("corpus:test")
    utterances = source.utterances()
    chosen = [utterances[i * len(utterances) // count] for i in range(count)]
    return [source.read(utterance) for utterance in chosen], [utterance.text for utterance in chosen]


def error_rate(references: list[str], hypotheses: list[str]) -> float:
    words = [basic(text).split() for text in references]
    heard = [basic(text).split() for text in hypotheses]
    return sum(edit_distances(list(zip(words, heard, strict=True)))) / sum(map(len, words))


# (c) whisper-base ------------------------------------------------------------------------------------------------


def converted_whisper(folder: Path) -> Path:
    """whisper-base in CTranslate2's int8 form, made from the local folder on the first call."""
    if not (CONVERTED / "model.bin").is_file():
        from ctranslate2.converters import TransformersConverter

        files = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(str(folder), copy_files=files).convert(
            str(CONVERTED), quantization="int8", force=True
        )
    return CONVERTED


@torch.inference_mode()
def whisper_base(quantized: Any, model: Any, processor: Any, quick: bool) -> dict[str, Any]:
    """(c): RTFx of whisper-base, and of ours at `small`'s sizes writing 3.3 tokens a second of a batch's longest."""
    folder = Path(os.environ.get("TINY_AUDIO_MODELS", "")) / WHISPER
    if not os.environ.get("TINY_AUDIO_MODELS") or not folder.is_dir():
        print(f"\n(c) skipped: set TINY_AUDIO_MODELS to a folder that holds {WHISPER}")
        return {"skipped": f"no {WHISPER}"}
    clips, _ = speech(8 if quick else 16)
    seconds = sum(map(len, clips)) / 16000
    tokens = new_tokens_for(max(map(len, clips)) / 16000)
    stock, its_processor = (
        WhisperForConditionalGeneration.from_pretrained(folder).eval(),
        WhisperProcessor.from_pretrained(folder),
    )

    settings, token_id = stock.generation_config, its_processor.tokenizer.convert_tokens_to_ids
    if not hasattr(settings, "lang_to_id"):  # a folder with the first form of Whisper's generation config
        settings.lang_to_id = {"<|en|>": token_id("<|en|>")}
        settings.task_to_id = {"transcribe": token_id("<|transcribe|>")}
        settings.no_timestamps_token_id, settings.is_multilingual = token_id("<|notimestamps|>"), True

    def by_transformers() -> None:
        features = its_processor(clips, sampling_rate=16000, return_tensors="pt").input_features
        stock.generate(features, language="en", task="transcribe")

    candidates: dict[str, Callable[[], Any]] = {
        "whisper-base, transformers, one batch": by_transformers,
        "ours at small's sizes, one batch": lambda: transcribe(model, processor, clips, tokens, Tricks()),
        "ours, int8, one batch": lambda: transcribe(quantized, processor, clips, tokens, Tricks()),
        "ours, one by one": lambda: [
            transcribe(model, processor, [c], new_tokens_for(len(c) / 16000), Tricks()) for c in clips
        ],
        "ours, int8, one by one": lambda: [
            transcribe(quantized, processor, [c], new_tokens_for(len(c) / 16000), Tricks()) for c in clips
        ],
    }
    if find_spec("faster_whisper"):
        from faster_whisper import WhisperModel

        threads = torch.get_num_threads()
        fast = WhisperModel(
            str(converted_whisper(folder)),
            "cpu",
            compute_type="int8",
            cpu_threads=threads,
            local_files_only=True,
        )
        candidates["whisper-base, faster-whisper int8, one by one"] = lambda: [
            list(fast.transcribe(clip, language="en", beam_size=1, temperature=0.0)[0]) for clip in clips
        ]
    else:
        print("\n(c) without faster-whisper: pip install faster-whisper")
    timings = take_turns(candidates, 1 if quick else 2)
    rtfx = {name: seconds / timings.best(name) for name in candidates}
    rows = [(name, f"{timings.best(name):.2f}", f"{rtfx[name]:.1f}") for name in candidates]
    print_table(
        f"(c) {len(clips)} clips of speech, {seconds:.0f} s in all, RTFx = seconds of sound a second",
        ("", "seconds", "RTFx"),
        rows,
    )
    return {"clips": len(clips), "seconds": seconds, "rtfx": rtfx}


# (d) a trained model ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def write_batch(model: Any, processor: Any, clips: list[np.ndarray], way: str) -> list[str]:
    """Texts of one batch: "plain", or, clip by clip, with the CTC "draft"."""
    batch = processor(clips)
    audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
    input_ids, mask = batch["input_ids"], batch["attention_mask"]
    embeddings = model.model.splice(input_ids, audio)
    if way == "draft":
        heard = model.ctc_logits(audio.last_hidden_state).argmax(dim=-1)  # (B, F)
        written = []
        for row, classes in enumerate(heard):
            text = decode_ctc_text(classes[: audio.frame_lengths[row]].tolist(), model.config.ctc_vocabulary)
            ends, never = model.generation_config.eos_token_id, model.generation_config.suppress_tokens or ()
            prompt = embeddings[row : row + 1, mask[row].bool()]
            draft = processor.label_ids(text)
            written.append(
                write_from_draft(
                    model, prompt, draft, DRAFT_LIMIT, ends if isinstance(ends, list) else [ends], never
                )
            )
        return processor.batch_decode(written)
    return processor.batch_decode(
        GenerationMixin.generate(
            model, inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=DRAFT_LIMIT
        )
    )


def trained_model(where: str | None, quick: bool) -> dict[str, Any]:
    """(d): the tricks whose gain depends on what a model writes. Raises AssertionError where a text changes."""
    folder = Path(where or RESULTS.parents[1] / "outputs" / "nano" / "model")
    if not folder.is_dir():
        print(
            f"\n(d) skipped: there is no model at {where or 'outputs/nano/model'} (make quickstart trains one)"
        )
        return {"skipped": "no trained model"}
    model, processor = load_model(str(folder), device="cpu", dtype=torch.float32)
    model.eval()
    clips, references = speech(32 if quick else 384)
    order = sorted(range(len(clips)), key=lambda i: len(clips[i]))
    clips, references = [clips[i] for i in order], [references[i] for i in order]
    found: dict[str, Any] = {"clips": len(clips)}
    rows = []
    quantized = quantize(model)
    for size in (1, 16):
        texts: dict[str, list[str]] = {}

        def candidate(
            name: str, which: Any, way: str, size: int = size, texts: dict[str, list[str]] = texts
        ) -> Callable[[], None]:
            def run() -> None:
                starts = range(0, len(clips), size)
                batches = (write_batch(which, processor, clips[i : i + size], way) for i in starts)
                texts[name] = [text for batch in batches for text in batch]

            return run

        candidates = {way: candidate(way, model, way) for way in ("plain", "draft")}
        candidates["int8"] = candidate("int8", quantized, "plain")
        timings = take_turns(candidates, 1 if quick else 2, warm=False)
        assert texts["plain"] == texts["draft"], f"the draft changed a text at batch {size}"
        for name in candidates:
            changed = sum(a != b for a, b in zip(texts["plain"], texts[name], strict=True))
            row = (
                timings.best(name),
                timings.ratio("plain", name),
                changed,
                error_rate(references, texts[name]),
            )
            rows.append((f"batch {size}: {name}", f"{row[0]:.2f}", f"{row[1]:.2f}", changed, f"{row[3]:.4f}"))
            found[f"batch {size}: {name}"] = dict(
                zip(("seconds", "ratio", "changed_texts", "wer"), row, strict=True)
            )
    print_table(
        f"(d) a trained model on {len(clips)} clips of corpus:test",
        ("", "seconds", "x", "texts changed", "WER"),
        rows,
    )
    return found
