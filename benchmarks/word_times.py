"""How well word times and word confidence fit: against the times of a corpus, and against the words that were right.

    python benchmarks/word_times.py [--quick] [MODEL] [--data SOURCE ...]

Times: the text (the reference, or the model's own words where they equal it) is aligned once by the alignment head's
spikes alone and once with the waveform at hand; errors are those of starts and ends against the source's own word
times. Confidence: words of the model's own transcripts are put into ten bins, and each bin's mean confidence is
compared with the share of its words that are right; the calibration error is the mean distance between the two,
weighted by words (Naeini et al., 2015). A word is right where the word alignment of the error rate says so.

`ratio` is how many times the largest of the median errors fits into the limit of 1.5 encoder frames.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, print_table, write_result

from tiny_audio.data.sources import open_source
from tiny_audio.data.utterance import Utterance
from tiny_audio.evaluate.normalize import basic
from tiny_audio.evaluate.runner import sample_indices
from tiny_audio.evaluate.wer import DELETION, HIT, INSERTION, align_many
from tiny_audio.hub.asr_alignment import TimedWord, align_words
from tiny_audio.hub.asr_checkpoint import load_model
from tiny_audio.hub.asr_generation import word_scores

LIMIT_FRAMES = 1.5
QUICK_CLIPS = 64
BATCH_CLIPS = 16
NUM_BINS = 10
EDGES = ("spikes", "waveform")
SCORES = ("head", "head+decoder")


@dataclass
class Measured:
    """What one set gave: errors in seconds by (text, edges), confidences with whether the word was right."""

    starts: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    ends: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    confidences: dict[str, list[tuple[float, bool]]] = field(default_factory=lambda: {s: [] for s in SCORES})
    seconds: float = 0.0
    alignment_seconds: float = 0.0

    def add(self, text: str, edges: str, found: TimedWord, true: Any) -> None:
        self.starts.setdefault((text, edges), []).append(found.start - true.start)
        self.ends.setdefault((text, edges), []).append(found.end - true.end)


@torch.inference_mode()
def measure(model: Any, processor: Any, source: Any, utterances: list[Utterance]) -> Measured:
    """Transcribes and aligns a set."""
    config, measured = model.config, Measured()
    ends = (processor.end_token_id, processor.pad_token_id)
    for offset in range(0, len(utterances), BATCH_CLIPS):
        clips = utterances[offset : offset + BATCH_CLIPS]
        waveforms = [source.read(clip) for clip in clips]
        measured.seconds += sum(map(len, waveforms)) / processor.sampling_rate
        batch = processor.collate([processor.encode(waveform) for waveform in waveforms]).to(model.device)
        batch["input_features"] = batch["input_features"].to(model.dtype)
        audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
        head = model.ctc_logits(audio.last_hidden_state).float().log_softmax(dim=-1)
        generated = model.generate(**batch, return_dict_in_generate=True, output_scores=True)
        ids = generated.sequences
        steps = torch.stack(generated.scores, dim=1).float().log_softmax(dim=-1)  # (B, T, V)
        token_scores = steps.gather(2, ids[..., None])[..., 0]  # (B, T)
        hypotheses = processor.batch_decode(ids)
        scores = []
        for text, row, row_scores in zip(hypotheses, ids.tolist(), token_scores.tolist(), strict=True):
            num_words = len(text.split())
            kept = list(takewhile(lambda token: token not in ends, row))
            found = word_scores(processor.tokenizer, kept, row_scores[: len(kept)])
            scores.append([*found, *[0.0] * num_words][:num_words])

        lengths, common = audio.frame_lengths, (config.ctc_vocabulary, config.frame_seconds)
        began = time.perf_counter()
        for edges, sound in (("spikes", None), ("waveform", waveforms)):
            references = align_words(head, lengths, [clip.text for clip in clips], *common, sound)
            for clip, words in zip(clips, references, strict=True):
                if clip.words is not None:
                    for word, true in zip(words, clip.words, strict=True):
                        measured.add("reference", edges, word, true)
        measured.alignment_seconds += time.perf_counter() - began
        judge(measured, clips, hypotheses, "spikes", "head", align_words(head, lengths, hypotheses, *common))
        aligned = align_words(head, lengths, hypotheses, *common, waveforms, scores)
        judge(measured, clips, hypotheses, "waveform", "head+decoder", aligned)
    return measured


def judge(
    measured: Measured,
    clips: list[Utterance],
    hypotheses: list[str],
    edges: str,
    score: str,
    aligned: list[list[TimedWord]],
) -> None:
    """Notes which of the model's own words are right, how sure they were, and how well the right ones lie."""
    pairs = [
        ([basic(word) for word in clip.text.split()], [basic(word) for word in text.split()])
        for clip, text in zip(clips, hypotheses, strict=True)
    ]
    for clip, words, alignment in zip(clips, aligned, align_many(pairs), strict=True):
        spoken, written = iter(clip.words or ()), iter(words)
        for operation in alignment.operations:
            true = None if operation == INSERTION else next(spoken, None)
            found = None if operation == DELETION else next(written)
            if found is not None:
                measured.confidences[score].append((found.confidence, operation == HIT))
                if true is not None and operation == HIT:
                    measured.add("hypothesis", edges, found, true)


def bins_of(confidences: Sequence[tuple[float, bool]]) -> list[dict[str, float]]:
    """The filled ones of ten equal bins: mean confidence, share of right words, number of words."""
    values, right = np.array(confidences, dtype=float).reshape(-1, 2).T
    place = np.minimum((values * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        {"confidence": float(values[own].mean()), "right": float(right[own].mean()), "words": int(own.sum())}
        for own in (place == number for number in range(NUM_BINS))
        if own.any()
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    words = sum(one["words"] for one in bins)
    return sum(abs(one["confidence"] - one["right"]) * one["words"] for one in bins) / max(words, 1)


def time_errors(measured: Measured, frame_seconds: float) -> list[dict[str, Any]]:
    rows = []
    for (text, edges), starts in sorted(measured.starts.items(), reverse=True):
        row: dict[str, Any] = {"text": text, "edges": edges, "words": len(starts)}
        for name, values in (("start", starts), ("end", measured.ends[text, edges])):
            errors = np.abs(values)
            row[f"{name}_median_ms"] = 1000 * float(np.median(errors))
            row[f"{name}_median_frames"] = float(np.median(errors)) / frame_seconds
            row[f"{name}_p90_ms"] = 1000 * float(np.quantile(errors, 0.9))
        rows.append(row)
    return rows


def save_plot(path: Path, curves: dict[str, list[dict[str, float]]]) -> None:
    """Reliability: share of right words against confidence, a curve for each set and score."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="as sure as right")
    for name, bins in curves.items():
        x, y = [one["confidence"] for one in bins], [one["right"] for one in bins]
        line = axes.plot(x, y, label=name)[0]
        axes.scatter(x, y, s=[4 + 2 * one["words"] ** 0.5 for one in bins], color=line.get_color())
    axes.set(xlabel="confidence of a word", ylabel="share of words that are right", xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Word confidence (larger dots: more words)", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="outputs/nano/model")
    parser.add_argument("--data", nargs="+", default=["corpus:test"], metavar="SOURCE")
    parser.add_argument("--quick", action="store_true", help=f"at most {QUICK_CLIPS} clips of each set")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    model, processor = load_model(arguments.model, device=arguments.device)
    frame_seconds = model.config.frame_seconds
    sets: dict[str, Any] = {}
    for spec in arguments.data:
        source = open_source(spec)
        rows = sample_indices(len(source.utterances()), QUICK_CLIPS if arguments.quick else None)
        utterances = [source.utterances()[row] for row in rows]
        measured = measure(model, processor, source, utterances)
        bins = {score: bins_of(measured.confidences[score]) for score in SCORES}
        right = [correct for _, correct in measured.confidences[SCORES[0]]]
        sets[spec.rstrip("/").rpartition("/")[2]] = {
            "clips": len(utterances),
            "times": time_errors(measured, frame_seconds),
            "transcribed_words": len(right),
            "right": float(np.mean(right)) if right else None,
            "calibration_error": {score: calibration_error(found) for score, found in bins.items()},
            "reliability": bins,
            # The reference was aligned twice, with and without its waveform.
            "alignment_rtfx": 2 * measured.seconds / max(measured.alignment_seconds, 1e-9),
        }

    columns = [
        f"{edge}_{key}" for edge in ("start", "end") for key in ("median_ms", "median_frames", "p90_ms")
    ]
    lines: list[tuple[Any, ...]] = []
    for name, found in sets.items():
        for row in found["times"]:
            figures = (f"{row[key]:.{2 if key.endswith('frames') else 0}f}" for key in columns)
            lines.append((name, row["text"], row["edges"], row["words"], *figures))
    header = (
        "set",
        "text",
        "edges",
        "words",
        "start, ms",
        "frames",
        "p90, ms",
        "end, ms",
        "frames",
        "p90, ms",
    )
    print_table(
        f"Median absolute errors of word times (frames of {1000 * frame_seconds:g} ms)", header, lines
    )
    lines = []
    for name, found in sets.items():
        figures = (f"{found['calibration_error'][score]:.3f}" for score in SCORES)
        lines.append((name, found["transcribed_words"], f"{found['right'] or 0:.3f}", *figures))
    print_table("Calibration error of word confidence", ("set", "words", "right", *SCORES), lines)

    if not arguments.quick:
        curves = {f"{name}, {s}": found["reliability"][s] for name, found in sets.items() for s in SCORES}
        save_plot(RESULTS / "reliability.png", curves)
    worst = {
        edges: max(
            (
                max(row["start_median_frames"], row["end_median_frames"])
                for found in sets.values()
                for row in found["times"]
                if row["edges"] == edges
            ),
            default=None,
        )
        for edges in EDGES
    }
    result = {
        "ratio": LIMIT_FRAMES / worst["waveform"] if worst["waveform"] else None,
        "limit_frames": LIMIT_FRAMES,
        "worst_median_frames": worst,
        "frame_seconds": frame_seconds,
        "sets": sets,
    }
    write_result("word_times", result, arguments.quick)


if __name__ == "__main__":
    main()
