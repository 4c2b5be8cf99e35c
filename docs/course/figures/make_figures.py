"""Makes the figures of classes 1 to 3 and of the data trace, from the embedded corpus and a finished run of nano.

    python docs/course/figures/make_figures.py [outputs/nano/model]

Seeded. Drawn without a background, in colours that can be read on a light and on a dark page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from style import BLUE, GREEN, ORANGE, TEXT

from tiny_audio.data.sources import open_source
from tiny_audio.hub.asr_checkpoint import load_model
from tiny_audio.train.build import build_model
from tiny_audio.train.config import compose_config

FOLDER = Path(__file__).resolve().parent
SAMPLING_RATE = 16000
CLIP, CLIP_WITH_ERROR = "kokoro-pm_alex-021", "kokoro-if_sara-020"

plt.rcParams.update(
    {"font.size": 10, "axes.titlesize": 10, "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN])}
)


class Material:
    """What the figures are made from."""

    def __init__(self, model_folder: str):
        self.model, self.processor = load_model(model_folder, device="cpu", dtype=torch.float32)
        self.untrained = build_model(compose_config([]))[0].eval()
        self.source = open_source("corpus:test")
        self.clips = {clip.id: clip for clip in self.source.utterances()}

    def waveform(self, name: str) -> np.ndarray:
        return self.source.read(self.clips[name])

    @torch.no_grad()
    def hear(self, waveform: np.ndarray, model: Any = None) -> tuple[Any, Any]:
        """The batch of one clip, and its `AudioFeatures`."""
        batch = self.processor([waveform])
        features = (model or self.model).get_audio_features(
            batch["input_features"], batch["input_features_mask"]
        )
        return batch, features


def mark_words(axes: Any, clip: Any, height: float) -> None:
    for word in clip.words:
        axes.axvspan(word.start, word.end, color=TEXT, alpha=0.12, lw=0)
        axes.text((word.start + word.end) / 2, height, word.text, ha="center", va="bottom")


def draw_waveform(material: Material) -> Any:
    clip, waveform = material.clips[CLIP], material.waveform(CLIP)
    figure, axes = plt.subplot_mosaic([["whole", "whole"], ["vowel", "hiss"]], figsize=(8, 4.2))
    seconds = np.arange(len(waveform)) / SAMPLING_RATE
    axes["whole"].plot(seconds, waveform, lw=0.5)
    mark_words(axes["whole"], clip, waveform.max() * 1.05)
    axes["whole"].set(xlabel="seconds", ylabel="amplitude", ylim=(None, waveform.max() * 1.35))
    seven = next(word for word in clip.words if word.text == "seven")
    one = next(word for word in clip.words if word.text == "one")
    for name, start, title in (
        ("vowel", one.start + 0.22, "the vowel of “one”: it repeats"),
        ("hiss", seven.start + 0.01, "the /s/ of “seven”: it does not"),
    ):
        first = int(start * SAMPLING_RATE)
        part = waveform[first : first + int(0.04 * SAMPLING_RATE)]
        axes[name].plot(1000 * np.arange(len(part)) / SAMPLING_RATE, part, lw=0.9, color=ORANGE)
        axes[name].set(title=title, xlabel="milliseconds")
    return figure


def draw_log_mel(material: Material) -> Any:
    clip, waveform = material.clips[CLIP], material.waveform(CLIP)
    batch, audio = material.hear(waveform)
    length = len(waveform) / SAMPLING_RATE
    figure, axes = plt.subplots(3, 1, figsize=(8, 5.6), sharex=True, height_ratios=[1, 2, 2])
    axes[0].plot(np.arange(len(waveform)) / SAMPLING_RATE, waveform, lw=0.5)
    mark_words(axes[0], clip, waveform.max() * 1.05)
    axes[0].set(ylabel="16,000\nsamples/s", yticks=[], ylim=(None, waveform.max() * 1.6))
    mel = batch["input_features"][0].numpy()
    axes[1].imshow(
        mel,
        origin="lower",
        aspect="auto",
        extent=(0, length, 0, len(mel)),
        cmap="magma",
        interpolation="none",
        vmin=-2,
        vmax=2.5,
    )
    axes[1].set(ylabel=f"log-mel: {len(mel)} bands\n100 columns/s")
    frames = audio.last_hidden_state[0].numpy()
    frames = (frames - frames.mean(axis=0)) / frames.std(axis=0)
    order = np.argsort(frames.argmax(axis=0))  # dimensions in the order in which they are strongest
    picture = frames[:, order].T
    axes[2].imshow(
        picture,
        aspect="auto",
        extent=(0, length, len(picture), 0),
        cmap="magma",
        interpolation="none",
        vmin=-2,
        vmax=2.5,
    )
    axes[2].set(ylabel=f"encoder frames\n{len(picture)} numbers, 25/s", xlabel="seconds")
    return figure


def word_vectors(vectors: Any, clip: Any) -> Any:
    rate = len(vectors) / clip.seconds
    return torch.stack([vectors[int(w.start * rate) : int(w.end * rate) + 1].mean(dim=0) for w in clip.words])


def draw_embeddings(material: Material) -> Any:
    """Words of test voices, in the plane in which dev voices' digits are told apart best (linear discriminants)."""
    dev = open_source("corpus:dev")
    digits = sorted({word for clip in dev.utterances() for word in clip.text.split()})
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.9))
    colours = plt.get_cmap("tab10")
    for panel, model, title in zip(
        panels,
        (material.untrained, material.model),
        ("encoder before training", "after 860 steps"),
        strict=True,
    ):
        vectors, texts = {}, {}
        for split, source in (("dev", dev), ("test", material.source)):
            chosen = [clip for clip in source.utterances() if clip.words and clip.seconds < 3][::2]
            frames = [material.hear(source.read(clip), model)[1].last_hidden_state[0] for clip in chosen]
            words = [word_vectors(f, clip) for f, clip in zip(frames, chosen, strict=True)]
            vectors[split] = torch.cat(words).numpy().astype(np.float64)
            texts[split] = np.array([word.text for clip in chosen for word in clip.words])
        points = vectors["test"] @ discriminants(vectors["dev"], texts["dev"])
        for number, digit in enumerate(digits):
            own = points[texts["test"] == digit]
            panel.scatter(*own.T, s=9, color=colours(number), alpha=0.75, lw=0)
            if model is material.model:
                panel.text(*np.median(own, axis=0), digit, ha="center", weight="bold")
        panel.set(title=title, xticks=[], yticks=[])
    return figure


def discriminants(vectors: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(D, 2): the directions in which classes differ most against the spread within them (Fisher, 1936)."""
    means = {text: vectors[texts == text].mean(axis=0) for text in set(texts)}
    within = np.cov((vectors - np.stack([means[text] for text in texts])).T)
    within += (
        0.1 * np.trace(within) / len(within) * np.eye(len(within))
    )  # more dimensions than words can fill
    between = np.cov(np.stack(list(means.values())).T)
    values, directions = np.linalg.eig(np.linalg.solve(within, between))
    return directions[:, np.argsort(-values.real)[:2]].real


def draw_next_token(material: Material) -> Any:
    """The probabilities at each greedy step, for a clip with an error."""
    clip = material.clips[CLIP_WITH_ERROR]
    batch, audio = material.hear(material.waveform(CLIP_WITH_ERROR))
    tokenizer, table = material.processor.tokenizer, material.model.get_input_embeddings()
    steps = []
    with torch.no_grad():
        embeddings = material.model.model.splice(batch["input_ids"], audio)
        while len(steps) < 8:
            hidden = material.model.model.language_model(inputs_embeds=embeddings).last_hidden_state
            probabilities = material.model.lm_head(hidden[0, -1]).softmax(dim=-1)
            best, tokens = probabilities.topk(3)
            steps.append([(tokenizer.decode(t).strip(), float(p)) for t, p in zip(tokens, best, strict=True)])
            if int(tokens[0]) == material.processor.end_token_id:
                break
            embeddings = torch.cat([embeddings, table(tokens[:1])[None]], dim=1)
    figure, panels = plt.subplots(1, len(steps), figsize=(8, 2.1), sharey=True)
    for number, (panel, candidates) in enumerate(zip(panels, steps, strict=True)):
        names = [name.replace("<eos>", "end") for name, _ in candidates]
        shown = [value for _, value in candidates]
        panel.barh(range(3), shown, color=[ORANGE if shown[0] < 0.9 else BLUE, TEXT, TEXT], height=0.6)
        panel.set(xlim=(0, 1.35), xticks=[], yticks=[], title=f"token {number + 1}", ylim=(2.6, -0.6))
        for row, (name, value) in enumerate(zip(names, shown, strict=True)):
            panel.text(value + 0.04, row, f"{name} {value:.2f}", va="center", fontsize=8)
    figure.supxlabel(f"spoken: {clip.text}", fontsize=10, color=TEXT)
    return figure


def box(
    axes: Any, x: float, y: float, width: float, height: float, colour: str, label: str = "", size: int = 8
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08", fc=colour, ec=TEXT, lw=0.6
        )
    )
    axes.text(x + width / 2, y + height / 2, label, ha="center", va="center", fontsize=size, color="white")


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=TEXT, lw=0.8))


def bare_axes(width: float, height: float, size: tuple[float, float]) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=size)
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def draw_stacking(material: Material) -> Any:
    """mlp with a stack factor of 4, at nano's sizes."""
    figure, axes = bare_axes(16, 6.6, (8, 3.3))
    for number in range(12):
        box(axes, 0.4 + 1.25 * number, 5.0, 1.0, 0.9, BLUE, f"f{number + 1}")
    axes.text(0.4, 6.15, "encoder frames: 25 a second, width 160")
    for group in range(3):
        middle = 0.4 + 5 * group + 2.4
        box(
            axes,
            0.4 + 5 * group,
            3.4,
            4.75,
            0.7,
            BLUE,
            f"f{4 * group + 1} … f{4 * group + 4} end to end: 640 numbers",
        )
        for number in range(4):
            arrow(axes, (0.9 + 5 * group + 1.25 * number, 5.0), (0.9 + 5 * group + 1.25 * number, 4.12))
        box(axes, middle - 1.5, 1.9, 3.0, 0.7, TEXT, "640 → 256 → 128")
        arrow(axes, (middle, 3.4), (middle, 2.62))
        box(axes, middle - 0.7, 0.5, 1.4, 0.8, ORANGE, f"a{group + 1}: 128")
        arrow(axes, (middle, 1.9), (middle, 1.32))
    axes.text(0.4, 0.1, "audio tokens: 6.25 a second, as wide as the decoder's word embeddings", va="bottom")
    return figure


def draw_splice(material: Material) -> Any:
    figure, axes = bare_axes(16, 5.2, (8, 2.6))
    words = ["Transcribe", "the", "speech", ":"]
    written = ["three", "seven", "…", "end"]
    positions = [0.3 + 1.3 * number for number in range(12)]
    labels = [*words, *["<audio>"] * 4, *written]
    kinds = [BLUE] * 4 + [TEXT] * 4 + [GREEN] * 4
    for x, label, colour in zip(positions, labels, kinds, strict=True):
        box(axes, x, 3.4, 1.2, 0.8, colour, label, size=7)
        arrow(axes, (x + 0.6, 3.4), (x + 0.6, 2.25))
    for x, colour in zip(positions, kinds, strict=True):
        box(axes, x + 0.25, 1.4, 0.7, 0.8, ORANGE if colour == TEXT else colour)
    for x in positions[4:8]:
        arrow(axes, (x + 0.6, 0.55), (x + 0.6, 1.38))
    axes.text(0.3, 4.45, "token numbers")
    axes.text(0.3, 0.95, "vectors that the decoder reads")
    axes.text(positions[4] - 0.1, 0.15, "audio tokens from the projector", color=ORANGE)
    axes.text(positions[8], 4.45, "in training: the transcript, scored", color=GREEN)
    return figure


def draw_data_trace(material: Material) -> Any:
    """One recording in five pictures on one time axis, and the probabilities of what is written."""
    clip, waveform = material.clips[CLIP], material.waveform(CLIP)
    batch, audio = material.hear(waveform)
    length = len(waveform) / SAMPLING_RATE
    log_probabilities = material.model.alignment(audio)[0].numpy()
    figure, axes = plt.subplots(5, 1, figsize=(8, 8.4), sharex=True, height_ratios=[1, 2, 2, 1.6, 1.7])
    axes[0].plot(np.arange(len(waveform)) / SAMPLING_RATE, waveform, lw=0.5)
    mark_words(axes[0], clip, waveform.max() * 1.05)
    axes[0].set(yticks=[], ylim=(None, waveform.max() * 1.6))
    axes[0].set_title(f"1. waveform: {len(waveform):,} samples", loc="left")
    pictures = (
        (batch["input_features"][0].numpy(), "2. log-mel features: {1} columns of {0}"),
        (audio.last_hidden_state[0].T.numpy(), "3. encoder: {1} frames of {0}"),
        (audio.pooler_output.T.numpy(), "5. projector: {1} audio tokens of {0}"),
    )
    for panel, (picture, title) in zip((axes[1], axes[2], axes[4]), pictures, strict=True):
        limit = float(np.percentile(np.abs(picture), 99))
        style = {"origin": "lower", "aspect": "auto", "cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        panel.imshow(picture, extent=(0, length, 0, len(picture)), interpolation="none", **style)
        panel.set_title(title.format(*picture.shape), loc="left")
        panel.set(yticks=[])
    seconds = (np.arange(len(log_probabilities)) + 0.5) * length / len(log_probabilities)
    best = log_probabilities.argmax(axis=1)
    axes[3].plot(seconds, np.exp(log_probabilities[:, 0]), color=TEXT, lw=0.9)
    axes[3].text(length, 0.95, " blank", va="center")
    vocabulary = material.model.config.ctc_vocabulary
    for number, (second, character) in enumerate(zip(seconds, best, strict=True)):
        if character and (number == 0 or best[number - 1] != character):
            value = float(np.exp(log_probabilities[number, character]))
            axes[3].bar(second, value, width=0.03, color=ORANGE)
            axes[3].text(
                second, value + 0.03, vocabulary[character - 1].replace(" ", "␣"), ha="center", fontsize=9
            )
    axes[3].set(yticks=[0, 1], ylim=(0, 1.3))
    axes[3].set_title("4. alignment head: the likeliest character of each frame", loc="left")
    axes[4].set(xlabel="seconds")
    return figure


FIGURES: dict[str, Callable[[Material], Any]] = {
    "waveform": draw_waveform,
    "log-mel": draw_log_mel,
    "embeddings": draw_embeddings,
    "next-token": draw_next_token,
    "stacking": draw_stacking,
    "splice": draw_splice,
    "data-trace": draw_data_trace,
}


def main(model_folder: str = "outputs/nano/model") -> None:
    material = Material(model_folder)
    for name, draw in FIGURES.items():
        figure = draw(material)
        figure.tight_layout()
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        print(f"{name}.svg: {(FOLDER / f'{name}.svg').stat().st_size / 1024:.0f} KB", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
