"""Draws the losses of one or more runs in a row in one picture, over the hours of audio that were heard.

python -m recipes.small.curves models/small/curves.svg outputs/small/{1,2,3}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

LOSSES = {
    "lm_loss": ("language model, a token", "#c4453b"),
    "embedding_loss": ("embedding CTC, a token", "#3b82c4"),
    "ctc_loss": ("alignment CTC, a character", "#3f9c6b"),
}
TEXT = "#7d8590"  # can be read on a light and on a dark page


def read_stage(folder: Path) -> list[dict[str, float]]:
    """The lines of a stage's metrics that have losses, with the hours heard by each of them."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    hours = seconds_before = 0.0
    rows = []
    for line in lines:
        if "audio_seconds_per_second" not in line:
            continue
        hours += line["audio_seconds_per_second"] * (line["train_seconds"] - seconds_before) / 3600
        seconds_before = line["train_seconds"]
        rows.append({**line, "hours": hours})
    return rows


def draw(stages: Sequence[Path], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    begin = 0.0
    labelled: set[str] = set()
    for folder in stages:
        rows = read_stage(folder)
        for name, (label, colour) in LOSSES.items():
            points = [(begin + row["hours"], row[name]) for row in rows if name in row]
            if points:
                first = name not in labelled
                axes.plot(
                    *zip(*points, strict=True), color=colour, linewidth=1.2, label=label if first else None
                )
                labelled.add(name)
        axes.axvline(begin, color=TEXT, linewidth=0.8, linestyle=":")
        place = axes.get_xaxis_transform()
        axes.text(begin, 1.0, f" {folder.name}", color=TEXT, fontsize=8, va="bottom", transform=place)
        begin += rows[-1]["hours"]
    axes.set(yscale="log", xlabel="hours of audio heard", ylabel="loss (nats)")
    axes.legend(frameon=False, labelcolor=TEXT, loc="upper right", bbox_to_anchor=(0.75, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=TEXT, which="both")
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(TEXT)
    figure.savefig(file, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    draw([Path(folder) for folder in sys.argv[2:]], Path(sys.argv[1]))
