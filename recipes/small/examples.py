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

    def rate_and_length(utterance: UtteranceResult) -> tuple[float, int]:
        words = max(1, len(utterance.score.reference_normalized.split()))
        return utterance.score.alignment.counts.errors / words, -words

    best = sorted(utterances, key=rate_and_length)[:how_many]
    left = [utterance for utterance in utterances if utterance not in best]
    return best, sorted(left, key=lambda one: (-rate_and_length(one)[0], rate_and_length(one)[1]))[:how_many]


def table(utterances: Sequence[UtteranceResult]) -> str:
    lines = ["| said | written | wrong |", "|---|---|---|"]
    for utterance in utterances:
        texts = [
            text.replace("|", "\\|") for text in (utterance.reference, utterance.hypothesis or "(nothing)")
        ]
        errors = utterance.score.alignment.counts.errors
        lines.append(
            f"| {texts[0]} | {texts[1]} | {errors} of {len(utterance.score.reference_normalized.split())} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    best, worst = best_and_worst(
        read_evaluation(Path(sys.argv[1])).utterances, int(sys.argv[2]) if len(sys.argv) > 2 else 10
    )
    print(f"{table(best)}\n\n{table(worst)}")
