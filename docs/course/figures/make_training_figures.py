"""Draws the figures of classes 4 and 5 from real runs.

    python docs/course/figures/make_training_figures.py --run outputs/nano --experiments outputs

`--run` is a finished run of the recipe nano; `--experiments` holds the folders that class 4's exercise 5 leaves
(rate-*, rank-*, clips-* ...). A figure whose runs are not there is left as it is, with a word about it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from style import BLUE, GREEN, ORANGE, RED, TEXT

from tiny_audio.train.config import compose_config
from tiny_audio.train.optimizer import learning_rate_factor

FIGURES = Path(__file__).resolve().parent
RECIPES = ("nano", "small", "stage1")
# Folder of an experiment -> its label. "rank-8" is the run that all others change in one thing.
EXPERIMENTS = {
    "learning rate": {"rate-1e-4": "1e-4", "rate-1e-3": "1e-3", "rank-8": "3e-3", "rate-3e-2": "3e-2"},
    "rank": {
        "rank-0": "none",
        "rank-1": "1",
        "rank-8": "8",
        "rank-32": "32",
        "everything": "all\nweights",
    },
    "training clips": {"clips-25": "25", "clips-100": "100", "rank-8": "1,000"},
    "seconds in a batch": {"rank-8": "12", "batch-48": "48", "batch-192": "192"},
}

plt.rcParams["legend.frameon"] = False


def save(figure: Any, name: str) -> None:
    figure.savefig(FIGURES / name, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    print(FIGURES / name)


def draw_schedules() -> None:
    """The learning rate of three recipes over their own steps, from the function that training uses."""
    figure, all_axes = plt.subplots(1, len(RECIPES), figsize=(9, 2.4))
    for axes, recipe in zip(all_axes, RECIPES, strict=True):
        settings = compose_config([f"+experiments={recipe}"]).training
        steps = range(0, settings.max_steps, max(settings.max_steps // 500, 1))
        rates = [settings.learning_rate * learning_rate_factor(step, settings) for step in steps]
        axes.plot(steps, rates, color=BLUE)
        axes.axvspan(0, settings.warmup_steps, color=ORANGE, alpha=0.3, linewidth=0)
        axes.set(title=recipe, xlabel="step", ylim=(0, None))
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    all_axes[0].set_ylabel("learning rate")
    save(figure, "schedules.svg")


def draw_losses(run: Path) -> None:
    """The losses of a run, and what the decoder makes of it on the dev set."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(figsize=(8, 3.6))
    for name, label, colour in (
        ("ctc_loss", "alignment (CTC), nats a character", GREEN),
        ("lm_loss", "language model, nats a token", BLUE),
        ("dev_wer", "word error rate on dev", RED),
    ):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(
            *zip(*points, strict=True), label=label, color=colour, marker="o" if name == "dev_wer" else None
        )
    first = next(line["step"] for line in lines if "lm_loss" in line)
    axes.axvline(first, color=TEXT, linestyle=":")
    axes.annotate(" the decoder wakes up", (first, 4), fontsize=9, color=TEXT)
    axes.set(xlabel="step", yscale="log")
    axes.legend(fontsize=9)
    save(figure, "nano-loss.svg")


def draw_experiments(folder: Path) -> None:
    """The word error rate of each experiment of class 4 with its interval."""
    figure, all_axes = plt.subplots(1, len(EXPERIMENTS), figsize=(11, 2.8), sharey=True)
    for axes, (title, runs) in zip(all_axes, EXPERIMENTS.items(), strict=True):
        for position, name in enumerate(runs):
            metrics = json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))
            low, high = metrics["wer_ci95"]
            axes.plot([position, position], [low, high], color=BLUE, alpha=0.5)
            axes.plot(position, metrics["wer"], "o", color=RED if name == "rank-8" else BLUE)
        axes.set(title=title, ylim=(0, 1))
        axes.set_xticks(range(len(runs)), runs.values())
    all_axes[0].set_ylabel("word error rate")
    save(figure, "experiments.svg")


def draw_diagnosis() -> None:
    """Where a fault can lie, and which instrument looks there (class 5)."""
    figure, axes = plt.subplots(figsize=(9, 2.7))
    parts = ("sound", "features,\nencoder", "projector", "prompt,\ndecoder", "end of\ntext")
    for position, part in enumerate(parts):
        axes.add_patch(plt.Rectangle((2 * position, 0), 1.5, 1, facecolor="none", edgecolor=BLUE))
        axes.text(2 * position + 0.75, 0.5, part, ha="center", va="center", fontsize=10)
        if position:
            axes.annotate(
                "",
                (2 * position, 0.5),
                (2 * position - 0.5, 0.5),
                arrowprops={"arrowstyle": "->", "color": TEXT},
            )
    reaches = (
        (0, 1.5, -0.5, "your ears"),
        (0, 3.5, -1.1, "alignment head: right or wrong?"),
        (0, 7.5, 1.4, "listening gap: does the text hang on the sound?"),
        (6, 9.5, -0.5, "kinds of errors: S, D, I, and where in the text"),
    )
    for start, end, height, text in reaches:
        axes.plot([start, end], [height, height], color=ORANGE, linewidth=3, solid_capstyle="butt")
        axes.text((start + end) / 2, height + 0.1, text, ha="center", fontsize=9)
    axes.set(xlim=(-0.2, 9.8), ylim=(-1.3, 1.9))
    axes.axis("off")
    save(figure, "diagnosis.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("outputs/nano"))
    parser.add_argument("--experiments", type=Path, default=Path("outputs"))
    arguments = parser.parse_args()
    draw_schedules()
    draw_diagnosis()
    for draw, folder in ((draw_losses, arguments.run), (draw_experiments, arguments.experiments)):
        try:
            draw(folder)
        except FileNotFoundError as error:
            print(f"left as it is: {error.filename} is missing")


if __name__ == "__main__":
    main()
