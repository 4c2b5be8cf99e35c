"""Prints the best and the worst transcripts of an evaluation, as the table of a model card.

    python -m recipes.small.examples outputs/judged/test [HOW_MANY]

In the order of errors a word; of equals the longer ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tiny_audio.evaluate.results import UtteranceResult, read_evaluation


def best_and_worst(
    utterances: Sequence[UtteranceResult], how_many: int
) -> tuple[list[UtteranceResult], list[UtteranceResult]]:
    """At most half of `utterances` each, the best first and the worst first."""
    how_many = min(how_many, len(utterances) // 2)
    longest_first = sorted(utterances, key=lambda one: -one.score.alignment.counts.reference_length)
    ordered = sorted(longest_first, key=lambda one: one.score.alignment.counts.rate)
    left = sorted(ordered[how_many:], key=lambda one: -one.score.alignment.counts.rate)
    return ordered[:how_many], left[:how_many]


def table(utterances: Sequence[UtteranceResult]) -> str:
    lines = ["| said | written | wrong |", "|---|---|---|"]
    for utterance in utterances:
        texts = [
            text.replace("|", "\\|") for text in (utterance.reference, utterance.hypothesis or "(nothing)")
        ]
        counts = utterance.score.alignment.counts
        lines.append(f"| {texts[0]} | {texts[1]} | {counts.errors} of {counts.reference_length} |")
    return "\n".join(lines)


if __name__ == "__main__":
    best, worst = best_and_worst(
        read_evaluation(Path(sys.argv[1])).utterances, int(sys.argv[2]) if len(sys.argv) > 2 else 10
    )
    print(f"{table(best)}\n\n{table(worst)}")
