"""How all figures of the course look: no background, colours that can be read on a light and on a dark page."""

from __future__ import annotations

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

TEXT, BLUE, ORANGE, GREEN, RED = "#7d8590", "#3b82c4", "#d9822b", "#3f9c6b", "#c4453b"

plt.rcParams.update(
    {
        "svg.hashsalt": "tiny-audio",
        "savefig.transparent": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(
            (
                "text.color",
                "axes.labelcolor",
                "axes.edgecolor",
                "axes.titlecolor",
                "xtick.color",
                "ytick.color",
            ),
            TEXT,
        ),
    }
)
