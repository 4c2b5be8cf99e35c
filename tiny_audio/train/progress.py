"""The live display of a run: a bar with losses, dev WER, speed and time left, or plain lines where nobody watches."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

WIDE = 120  # characters of a terminal that has room for a bar
NOTABLE_WAIT = 0.05  # share of the time without a batch


class TrainingDisplay:
    """Shows each line of metrics on standard error."""

    def __init__(self, max_steps: int, first_step: int = 0):
        self.console = Console(stderr=True)
        self.live = sys.stderr.isatty()
        self.max_steps = max_steps
        self.dev_wer = ""
        self.bar = Progress(
            *([BarColumn(bar_width=24)] if self.console.width >= WIDE else []),
            TextColumn("[bold]{task.completed}/{task.total} steps"),
            TextColumn("after"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[status]}", table_column=Column()),  # the one that may take a second line
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("training", total=max_steps, completed=first_step, left="", status="")

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False, markup=False, emoji=False)

    def show(self, line: dict[str, Any]) -> None:
        if "dev_wer" in line:
            self.dev_wer = f"dev WER {100 * line['dev_wer']:.1f}%"
        if "loss" not in line:
            return
        parts = [f"loss {line['loss']:.3f}"]
        if "ctc_loss" in line:
            parts.append(f"ctc {line['ctc_loss']:.3f}")
        parts += [self.dev_wer, f"{line['audio_seconds_per_second']:.0f} s audio/s"]
        if "utilization" in line:
            parts.append(f"{line['utilization']:.0%} of the machine")
        if line.get("data_wait_share", 0) > NOTABLE_WAIT:
            parts.append(f"{line['data_wait_share']:.0%} waiting for data")
        if line.get("skipped_steps"):
            parts.append(f"{line['skipped_steps']} skipped")
        if "dollars" in line:
            parts.append(f"${line['dollars']:.2f}")
        status = "  ".join(part for part in parts if part)
        left = f"left {timedelta(seconds=round(line['seconds_left']))}"
        self.bar.update(self.task, completed=line["step"], left=left, status=status)
        if not self.live:
            self.note(f"step {line['step']}/{self.max_steps}  {left}  {status}")
