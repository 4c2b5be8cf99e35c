"""docs/LEADERBOARD.md and docs/leaderboard.svg, a pure function of the rows.

The drawing is written here rather than by a plotting library, whose output differs between its versions: a pull
request is checked by making both files again and comparing every byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tiny_audio.data.known_sets import find_set
from tiny_audio.evaluate.leaderboard_rows import (
    CORPUS_TEST,
    DATA_FILE,
    REPORTED,
    Row,
    key_of,
    required_samples,
    set_name_of,
)

PAGE_FILE = Path("docs/LEADERBOARD.md")
PLOT_FILE = Path("docs/leaderboard.svg")
REPOSITORY_URL = "https://github.com/alexkroman/tiny-audio"

HEAD = f"""# Leaderboard

<!-- Made by `tiny-audio leaderboard add` from {DATA_FILE.name}. Changes here are lost; change a row there and run
`tiny-audio leaderboard build`. -->

Word error rates of recognisers, each with its 95% bootstrap interval: lower is better. **verified** means that the
files of the evaluation gave this figure again when the row was added; **as reported** that somebody states it. A rank
with "=" is shared: the intervals of those rows overlap, so that the order among them may be chance. Ranks compare rows
of the same normaliser only.

Add yours: evaluate a model from a clean commit, add the row, and open a pull request with the changed files.

```bash
tiny-audio eval outputs/my-model/model --data LoquaciousSet
tiny-audio leaderboard add outputs/eval_my-model_LoquaciousSet --contributor @you --model my-model
tiny-audio leaderboard check
```

![Word error rates with their intervals, by set]({PLOT_FILE.name})
"""


COLUMNS = (
    *("rank", "model", "contributor", "WER", "95% interval", "samples", "normaliser"),
    *("RTFx", "hardware", "cost", "commit", "date", "state"),
)


def grouped(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """(set, its rows, the best first), sets of the table first, then the embedded corpus, then others."""
    names = sorted({row["set"] for row in rows}, key=lambda name: (_section(name), name))
    return [
        (name, sorted((row for row in rows if row["set"] == name), key=lambda row: (row["wer"], key_of(row))))
        for name in names
    ]


def ranks(rows: Sequence[Row]) -> list[str]:
    """The rank of each row of one set: 1, 2=, or a dash for rows without an interval.

    Ahead of a row are those whose whole interval lies below its own; "=" marks rows that overlap with another.
    """
    labels = []
    for row in rows:
        if row["wer_ci95"] is None:
            labels.append("–")
            continue
        low, high = row["wer_ci95"]
        others = [
            other["wer_ci95"]
            for other in rows
            if other is not row and other["wer_ci95"] is not None and other["normalizer"] == row["normalizer"]
        ]
        ahead = sum(other[1] < low for other in others)
        overlaps = any(other[0] <= high and low <= other[1] for other in others)
        labels.append(f"{ahead + 1}{'=' if overlaps else ''}")
    return labels


def format_page(rows: Sequence[Row]) -> str:
    """The content of docs/LEADERBOARD.md."""
    parts = [HEAD]
    headed_others = False
    for name, members in grouped(rows):
        if set_name_of(name) is None and not headed_others:
            parts.append("## Other sets\n\nNot in our table of public sets; the link says where each lies.\n")
            headed_others = True
        parts.append(f"{'###' if headed_others else '##'} {name}\n\n{_about(name, members)}\n")
        lines = [COLUMNS, ["---"] * len(COLUMNS), *table_cells(members, links=True)]
        parts.append("".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    return "\n".join(parts)


def table_cells(rows: Sequence[Row], links: bool) -> list[list[str]]:
    """The cells of the rows of one set. `links`: as Markdown."""
    cells = []
    for rank, row in zip(ranks(rows), rows, strict=True):
        wer, commit, contributor = percent(row["wer"]), row["git_hash"][:7], row["contributor"]
        if links:
            wer, commit = f"**{wer}**", f"[`{commit}`]({REPOSITORY_URL}/commit/{row['git_hash']})"
            if contributor.startswith("@"):
                contributor = f"[{contributor}](https://github.com/{contributor[1:]})"
        interval = row["wer_ci95"]
        samples = "" if row["samples"] is None else f"{row['samples']:,}"
        if row["samples"] is not None and row["samples"] != row["rows"]:
            samples += f" of {row['rows']:,}"
        if row["failed"]:
            samples += f" ({row['failed']:,} failed)"
        cells.append(
            [
                rank,
                row["model"],
                contributor,
                wer,
                "" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}",
                samples,
                row["normalizer"] or "",
                "" if row["rtfx"] is None else f"{row['rtfx']:,.1f}",
                row["hardware"] or "",
                "" if row["cost_usd"] is None else f"${row['cost_usd']:,.2f}",
                commit,
                row["date"],
                "as reported, not verified" if row["state"] == REPORTED else row["state"],
            ]
        )
    return cells


def percent(rate: float) -> str:
    """A fraction as people read it: 0.1214 as 12.14%."""
    return f"{100 * rate:.2f}%"


def _section(name: str) -> int:
    if name == CORPUS_TEST:
        return 1
    return 0 if set_name_of(name) is not None else 2


def _about(name: str, members: Sequence[Row]) -> str:
    if name == CORPUS_TEST:
        return "Tiny Audio's embedded corpus: spoken digit strings of synthetic voices. All rows are needed."
    known = find_set(name) if set_name_of(name) else None
    if known is None:
        addresses = sorted({row["set_url"] for row in members})
        return "Source: " + ", ".join(f"<{address}>" for address in addresses) + ". All rows are needed."
    rule = known.entry.leaderboard_samples
    needs = (
        "All rows are needed."
        if rule == "all"
        else f"At least {required_samples(name, 10**9):,} samples are needed."
    )
    link = f"[{known.entry.repository}](https://huggingface.co/datasets/{known.entry.repository})"
    return f"{link}, licence: {known.entry.licence}. {needs}"


# The drawing. Its colours have a contrast of at least 3.5 on white and on GitHub's dark #0d1117 alike.
INK, LINE, VERIFIED_COLOUR, REPORTED_COLOUR = "#737b85", "#8b949e", "#2f81f7", "#c8811a"
WIDTH, LEFT, RIGHT, ROW_HEIGHT = 860, 330, 150, 30
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MAX_SHOWN_RATE = 1.0
LABEL_CHARACTERS = 34


def format_plot(rows: Sequence[Row]) -> str:
    """The content of docs/leaderboard.svg: every row as a point with its interval, by set."""
    highest = min(max([_high(row) for row in rows] + [0.01]), MAX_SHOWN_RATE)
    step = next((step for step in TICK_STEPS if highest <= 6 * step), 1.0)
    limit = step * math.ceil(round(highest / step, 6))
    parts: list[str] = []
    y = 14
    for name, members in grouped(rows):
        y += ROW_HEIGHT
        parts.append(_text(16, y, name, weight=600))
        for row in members:
            y += ROW_HEIGHT
            parts += _drawn_row(row, y, limit)
        y += 6
    bottom = y + 18
    ticks = [index * step for index in range(round(limit / step) + 1)]
    grid = [
        f'<line x1="{_x(tick, limit)}" x2="{_x(tick, limit)}" y1="20" y2="{bottom}" stroke="{LINE}"'
        ' stroke-opacity="0.35"/>'
        for tick in ticks
    ]
    labels = [_text(_x(tick, limit), bottom + 18, f"{100 * tick:g}%", anchor="middle") for tick in ticks]
    caption = _text(
        16, bottom + 40, "word error rate with its 95% interval, lower is better; hollow: not verified"
    )
    height = bottom + 54
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
            f' role="img" font-family="{FONT}" font-size="14" fill="{INK}">',
            "<title>Word error rates with their 95% intervals, by set</title>",
            *grid,
            *parts,
            *labels,
            caption,
            "</svg>",
            "",
        ]
    )


def _drawn_row(row: Row, y: int, limit: float) -> list[str]:
    middle = y - 5
    colour = REPORTED_COLOUR if row["state"] == REPORTED else VERIFIED_COLOUR
    room = max(LABEL_CHARACTERS - len(row["contributor"]), 8)
    model = row["model"] if len(row["model"]) <= room else f"{row['model'][: room - 1]}…"
    parts = [_text(LEFT - 14, y, f"{model} · {row['contributor'][:LABEL_CHARACTERS]}", anchor="end")]
    if row["wer_ci95"] is not None:
        low, high = (_x(rate, limit) for rate in row["wer_ci95"])
        parts.append(
            f'<path d="M{low} {middle}H{high}M{low} {middle - 5}v10M{high} {middle - 5}v10" stroke="{colour}"'
            ' stroke-width="2" fill="none"/>'
        )
    fill = "none" if row["state"] == REPORTED else colour
    parts.append(
        f'<circle cx="{_x(row["wer"], limit)}" cy="{middle}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2"/>'
    )
    beyond = " →" if _high(row) > limit else ""
    parts.append(_text(_x(min(_high(row), limit), limit) + 12, y, percent(row["wer"]) + beyond, weight=600))
    return parts


def _high(row: Row) -> float:
    return float(max(row["wer"], row["wer_ci95"][1] if row["wer_ci95"] else 0))


def _x(rate: float, limit: float) -> float:
    """Where a rate lies across, in pixels to a tenth."""
    return round(LEFT + (WIDTH - LEFT - RIGHT) * min(rate, limit) / limit, 1)


def _text(x: float, y: float, text: str, anchor: str = "start", weight: int = 400) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
