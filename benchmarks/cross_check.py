"""Our word error counts against those of jiwer, kaldialign and, where it is installed, NIST's sclite.

    python benchmarks/cross_check.py [--quick] [RUN ...]

Every kind of pair that has broken a scorer, and what an early nano wrote for the embedded corpus; RUN is a folder
of an evaluation whose texts, as they were scored, are checked besides. Pair by pair, substitutions, deletions and
insertions must be jiwer's and their sum kaldialign's: a pair that differs is printed and fails the benchmark.

sclite is shown for information. It weighs a substitution 4 and the others 3, so its alignments are not always of the
fewest errors, and its totals can be higher. Words go to it as numbers, since it gives some characters a meaning.

`ratio` is the share of pairs that agree.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import jiwer
import kaldialign
from common import print_table, write_result

from tiny_audio.evaluate.results import read_evaluation
from tiny_audio.evaluate.wer import EditCounts, align_many

RECOGNISED = Path(__file__).resolve().parents[1] / "tests" / "evaluate" / "recognised.tsv"
PAIRS, QUICK_PAIRS = 1000, 100
LONG_WORDS = 2000

Words = list[str]
Pair = tuple[Words, Words]

PLAIN = ["the", "a", "cat", "cats", "sat", "on", "mat", "oh", "zero", "one", "two", "don't", "ten", "eleven"]
# Marks joined to their letter and apart, scripts without spaces, right to left, a family of code points, what programs
# give a meaning of their own, half a surrogate pair.
STRANGE = [
    *[
        "na\u00efve",
        "nai\u0308ve",
        "\u00df",
        "ss",
        "日本",
        "日",
        "שלום",
        "مرحبا",
        "👩\u200d👩\u200d👧",
        "👩",
        "½",
        "1/2",
    ],
    *["İ", "i\u0307", "\u200bword", "word", "'", "-", "<unk>", "{}", "@", "%", "(noise)", "\ud800"],
]


def damaged(reference: Words, vocabulary: Words, draw: random.Random) -> Words:
    """What a middling recogniser makes of it."""
    hypothesis: Words = []
    for word in reference:
        luck = draw.random()
        if luck < 0.1:
            continue
        hypothesis.append(draw.choice(vocabulary) if luck < 0.2 else word)
        if luck > 0.93:
            hypothesis.append(draw.choice(vocabulary))
    return hypothesis


def recogniser(draw: random.Random) -> Pair:
    reference = draw.choices(PLAIN, k=draw.randint(1, 30))
    return reference, damaged(reference, PLAIN, draw)


def unicode(draw: random.Random) -> Pair:
    reference = draw.choices(STRANGE, k=draw.randint(1, 12))
    return reference, damaged(reference, STRANGE, draw)


def empty_side(draw: random.Random) -> Pair:
    words = draw.choices(PLAIN, k=draw.choice([0, 1, 2, 30]))
    return draw.choice([([], words), (words, []), ([], [])])


def repeated(draw: random.Random) -> Pair:
    """Few different words, said over and over, as a decoder in a loop does."""
    reference = draw.choices(PLAIN[: draw.choice([1, 2, 3])], k=draw.randint(1, 20))
    return reference, [word for word in reference for _ in range(draw.choice([0, 1, 1, 2, 12]))]


def unrelated(draw: random.Random) -> Pair:
    return draw.choices(PLAIN, k=draw.randint(0, 25)), draw.choices(PLAIN, k=draw.randint(0, 25))


def reordered(draw: random.Random) -> Pair:
    reference = draw.choices(PLAIN, k=draw.randint(2, 16))
    start = draw.randrange(len(reference))
    return reference, draw.choice([reference[::-1], reference[start:] + reference[:start]])


def very_long(draw: random.Random) -> Pair:
    reference = draw.choices(PLAIN, k=draw.randint(LONG_WORDS // 2, LONG_WORDS))
    return reference, damaged(reference, PLAIN, draw)


MADE: dict[str, Callable[[random.Random], Pair]] = {
    "as a recogniser errs": recogniser,
    "unicode": unicode,
    "an empty side, or both": empty_side,
    "repeated words, loops": repeated,
    "unrelated": unrelated,
    "reversed, rotated": reordered,
    "very long": very_long,
}


def make_sets(num_pairs: int, runs: list[Path]) -> dict[str, list[Pair]]:
    """The pairs of each kind: `num_pairs`, of very long ones a fiftieth."""
    lines = RECOGNISED.read_text(encoding="utf-8").splitlines()
    sets = {
        "an early nano, corpus:test": [
            (reference.split(), hypothesis.split())
            for reference, hypothesis in (line.split("\t") for line in lines)
        ]
    }
    for run in runs:
        sets[str(run)] = [
            (utterance.score.reference_normalized.split(), utterance.score.hypothesis_normalized.split())
            for utterance in read_evaluation(run).utterances
        ]
    draw = random.Random(0)
    for name, make in MADE.items():
        sets[name] = [make(draw) for _ in range(num_pairs // 50 if make is very_long else num_pairs)]
    return sets


def of_jiwer(pair: Pair) -> tuple[int, int, int]:
    found = jiwer.process_words(" ".join(pair[0]), " ".join(pair[1]))
    return found.substitutions, found.deletions, found.insertions


def of_kaldialign(pair: Pair) -> int:
    return kaldialign.edit_distance(*as_numbers([pair])[0])["total"]


def as_numbers(pairs: list[Pair]) -> list[Pair]:
    """The words by their number, equal ones alike: for programs that give characters a meaning of their own."""
    numbers: dict[str, str] = {}
    return [
        tuple([numbers.setdefault(word, f"w{len(numbers)}") for word in side] for side in pair)  # type: ignore[misc]
        for pair in pairs
    ]


def find_sclite() -> list[str] | None:
    """How sclite is called here: by its own name, or as Debian's package sctk has it."""
    if shutil.which("sclite"):
        return ["sclite"]
    return ["sctk", "sclite"] if shutil.which("sctk") else None


def of_sclite(command: list[str], pairs: list[Pair]) -> tuple[int, int, int]:
    """Substitutions, deletions and insertions over all pairs."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "reference.trn"), Path(folder, "hypothesis.trn")
        numbered = as_numbers(pairs)
        for side, file in enumerate(files):
            lines = [f"{' '.join(pair[side])} (u_{index})\n" for index, pair in enumerate(numbered)]
            file.write_text("".join(lines), encoding="ascii")
        arguments = [
            "-r",
            str(files[0]),
            "trn",
            "-h",
            str(files[1]),
            "trn",
            "-i",
            "rm",
            "-s",
            "-o",
            "rsum",
            "stdout",
        ]
        report = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True).stdout
    # | Sum  |  sentences  words | correct substituted deleted inserted errors wrong sentences |
    found = re.search(r"\| Sum +\|([ \d]+)\|([ \d]+)\|", report)
    if found is None:
        raise RuntimeError(f"sclite printed no sum: {report[-500:]!r}")
    _, substitutions, deletions, insertions, *_ = map(int, found[2].split())
    return substitutions, deletions, insertions


def check(name: str, pairs: list[Pair], sclite: list[str] | None) -> tuple[dict[str, object], list[str]]:
    """The row of the table for a set, and the pairs on which we differ from jiwer or kaldialign."""
    ours = [alignment.counts for alignment in align_many(pairs)]
    theirs = [of_jiwer(pair) for pair in pairs]
    totals = [of_kaldialign(pair) for pair in pairs]
    wrong = [
        f"{name}: {pair}: ours {counts}, jiwer {expected}, kaldialign {total}"
        for pair, counts, expected, total in zip(pairs, ours, theirs, totals, strict=True)
        if (counts.substitutions, counts.deletions, counts.insertions) != expected or counts.errors != total
    ]
    whole = sum(ours, EditCounts())
    row = {
        "pairs": len(pairs),
        "words": whole.reference_length,
        "ours": [whole.substitutions, whole.deletions, whole.insertions],
        "jiwer": [sum(column) for column in zip(*theirs, strict=True)],
        "ours_total": whole.errors,
        "kaldialign_total": sum(totals),
        "sclite": None if sclite is None else list(of_sclite(sclite, pairs)),
    }
    return row, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()

    sclite = find_sclite()
    if sclite is None:
        print("sclite is not installed (Debian: apt install sctk); its column is left out.")
    rows, wrong = {}, []
    for name, pairs in make_sets(QUICK_PAIRS if arguments.quick else PAIRS, arguments.runs).items():
        rows[name], differing = check(name, pairs, sclite)
        wrong += differing
    print_table(
        "Substitutions/deletions/insertions, and their sum",
        ["pairs of", "pairs", "words", "ours", "jiwer", "ours", "kaldialign", "sclite", ""],
        [
            [
                name, row["pairs"], row["words"], triple(row["ours"]), triple(row["jiwer"]), row["ours_total"],
                row["kaldialign_total"], triple(row["sclite"]), "" if row["sclite"] is None else sum(row["sclite"]),
            ]
            for name, row in rows.items()
        ],
    )  # fmt: skip
    num_pairs = sum(row["pairs"] for row in rows.values())
    for line in wrong[:10]:
        print(line)
    write_result(
        "cross_check",
        {"ratio": 1 - len(wrong) / num_pairs, "pairs": num_pairs, "sets": rows},
        arguments.quick,
    )
    return 1 if wrong else 0


def triple(counts: list[int] | None) -> str:
    return "-" if counts is None else "/".join(map(str, counts))


if __name__ == "__main__":
    raise SystemExit(main())
