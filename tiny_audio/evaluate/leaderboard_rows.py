"""The rows of the leaderboard: what each must hold, and the file in which they lie, one JSON object a line.

Rows come in by pull request, so that every value is checked as if a stranger had written it: names are of a small
alphabet, numbers of a plausible size, and the counts must give the word error rate.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tiny_audio.data.known_sets import ALL_SAMPLES, find_set, known_sets
from tiny_audio.errors import UserError, nearest
from tiny_audio.evaluate.normalize import NORMALIZERS

Row = dict[str, Any]

DATA_FILE = Path("docs/leaderboard.jsonl")
CORPUS_TEST = "corpus:test"
CORPUS_TEST_ROWS = 384  # the clips of that split: a row cannot say that there are fewer
VERIFIED, REPORTED = "verified", "reported"
RATE_TOLERANCE = 1e-9
# Of the rows that the table of sets states, what a run must have scored: they were counted with another normaliser.
MIN_SCORED_FRACTION = 0.99
MAX_RATE = 10.0  # 1,000%: a recogniser that repeats itself can have more than 100%
MAX_COUNT = 10**9

# No character that Markdown, HTML or a terminal takes as more than itself, and nothing that is made a link by itself.
TEXT = re.compile(r"(?!.*(?:www\.|://|\S@|@\S|__))[A-Za-z0-9][A-Za-z0-9 ._/+(),:@-]{0,119}")
MODEL = re.compile(r"(?!.*(?:www\.|__|  ))[A-Za-z0-9][A-Za-z0-9 ._/+()-]{0,79}")
CONTRIBUTOR = re.compile(
    r"@[A-Za-z0-9](?:[A-Za-z0-9-]{0,37}[A-Za-z0-9])?|(?!.*www\.)[^\W\d_][^\W\d_ .'-]*(?:[ .'-]{1,2}[^\W\d_]+){0,5}"
)
URL = re.compile(r"https://[A-Za-z0-9.-]+(?:/[A-Za-z0-9._~/%+-]*)?")
DATE = re.compile(r"20\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])")


def _matches(pattern: re.Pattern[str], longest: int = 200) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and len(value) <= longest and bool(pattern.fullmatch(value))


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
    )


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _interval(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(_number(0, MAX_RATE), value))
        and value[0] <= value[1]
    )


# Of each key: whether a value is right, what it should be, and whether null ("not known") is too.
KEYS: dict[str, tuple[Callable[[Any], bool], str, bool]] = {
    "set": (_matches(TEXT, 80), "the name of a set", False),
    "set_url": (_matches(URL), "an https address", True),
    "model": (_matches(MODEL), "up to 80 letters, digits and ._/+()-", False),
    "contributor": (_matches(CONTRIBUTOR, 80), "a GitHub name such as @ada, or a person's name", False),
    "state": (lambda value: value in (VERIFIED, REPORTED), f"{VERIFIED} or {REPORTED}", False),
    "wer": (_number(0, MAX_RATE), f"a fraction from 0 to {MAX_RATE:g}", False),
    "wer_ci95": (_interval, "two fractions, the lower one first", True),
    "substitutions": (_count, "a count", True),
    "deletions": (_count, "a count", True),
    "insertions": (_count, "a count", True),
    "reference_words": (_count, "a count", True),
    "samples": (_count, "a count", True),
    "rows": (_count, "a count", True),
    "failed": (_count, "a count", True),
    "normalizer": (lambda value: value in NORMALIZERS, " or ".join(NORMALIZERS), True),
    "rtfx": (_number(0, 1e6), "seconds of audio a second, up to 1,000,000", True),
    "hardware": (_matches(TEXT), "up to 120 letters, digits and ._/+(),-", True),
    "git_hash": (
        _matches(re.compile(r"[0-9a-f]{7,40}")),
        "7 to 40 hexadecimal digits, of a clean tree",
        False,
    ),
    "data_revision": (_matches(re.compile(r"[0-9a-f]{7,40}")), "7 to 40 hexadecimal digits", True),
    "date": (_matches(DATE), "a date such as 2026-11-21", False),
    "cost_usd": (_number(0, 1e6), "US dollars, up to 1,000,000", True),
}


def row_problems(row: Any) -> list[str]:
    """What is wrong with a row, one reason each; an empty list: nothing."""
    if not isinstance(row, dict):
        return ["is not a JSON object"]
    problems = [f"unknown key {_shown(key)}.{nearest(key, KEYS)}" for key in row if key not in KEYS]
    problems += [f"the key {key} is missing" for key in KEYS if key not in row]
    for key, (is_right, wanted, may_be_null) in KEYS.items():
        if key in row and not (row[key] is None and may_be_null) and not is_right(row[key]):
            problems.append(f"{key} is {_shown(row[key])}, not {wanted}")
    return problems or _set_problems(row) or _score_problems(row)


def set_name_of(data: str) -> str | None:
    """The leaderboard's name of a SOURCE, None for data that is not public by itself."""
    if data == CORPUS_TEST:
        return data
    known = find_set(data)
    return None if known is None else known.name


def required_samples(set_name: str, num_rows: int) -> int:
    """How many of `num_rows` rows a run must have scored for the leaderboard."""
    if set_name == CORPUS_TEST:
        return max(num_rows, CORPUS_TEST_ROWS)
    known = find_set(set_name) if set_name_of(set_name) else None
    if known is None:
        return num_rows
    if known.entry.leaderboard_samples != ALL_SAMPLES:
        return min(num_rows, int(known.entry.leaderboard_samples))
    is_counted = known.split == known.entry.test_split and known.entry.scored_rows is not None
    return max(num_rows, math.ceil(MIN_SCORED_FRACTION * (known.entry.scored_rows or 0)) if is_counted else 0)


def key_of(row: Row) -> tuple[str, ...]:
    """What no two rows may have in common, and the order of the file: set, normaliser, model, contributor, commit."""
    return tuple(str(row[key]) for key in ("set", "normalizer", "model", "contributor", "git_hash"))


def dump_rows(rows: list[Row]) -> str:
    """The content of the data file: sorted, one line a row, so that two additions merge without a conflict."""
    lines = (
        json.dumps({key: row[key] for key in KEYS}, ensure_ascii=False, allow_nan=False)
        for row in sorted(rows, key=key_of)
    )
    return "".join(f"{line}\n" for line in lines)


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """The good rows of a data file, and what is wrong with it (one reason each, with the line).

    Raises UserError if there is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run this in a checkout of Tiny Audio.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    rows: list[Row] = []
    problems: list[str] = []
    keys: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        try:
            row = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_object_without_repeats)
            wrong = row_problems(row)
        except (ValueError, RecursionError) as error:
            wrong = [f"is not one JSON object ({' '.join(str(error).split())[:120]})"]
        if not wrong and key_of(row) in keys:
            wrong = [
                f"is the same row as line {keys[key_of(row)]}: set, normalizer, model, contributor, git_hash"
            ]
        if wrong:
            problems += [f"line {number}: {reason}" for reason in wrong]
        else:
            keys[key_of(row)] = number
            rows.append(row)
    if not problems and text != dump_rows(rows):
        problems.append(
            "the lines are not sorted, or not written as `tiny-audio leaderboard add` writes them"
        )
    return rows, problems


def _set_problems(row: Row) -> list[str]:
    try:
        canonical = set_name_of(row["set"])
    except UserError as error:
        return [str(error)]
    if canonical is None and row["set_url"] is None:
        return [
            f"set {row['set']} is neither {CORPUS_TEST} nor a known set, and no set_url says where it lies."
            f"{nearest(row['set'], [*(f'{name}:test' for name in known_sets()), CORPUS_TEST])}"
        ]
    if canonical is not None and canonical != row["set"]:
        return [f"set is {row['set']}; its one name is {canonical}"]
    if canonical is not None and row["set_url"] is not None and row["state"] == VERIFIED:
        return [f"set_url is for other sets; {canonical} is in the table"]
    return []


def _score_problems(row: Row) -> list[str]:
    if row["state"] == REPORTED:
        return []
    missing = [key for key in KEYS if row[key] is None and key in NEEDED_FOR_VERIFIED]
    if missing:
        return [f"a {VERIFIED} row needs {', '.join(missing)}"]
    errors = row["substitutions"] + row["deletions"] + row["insertions"]
    problems = []
    if row["reference_words"] == 0 or abs(row["wer"] - errors / row["reference_words"]) > RATE_TOLERANCE:
        problems.append(
            f"wer is {row['wer']}, but {errors} errors in {row['reference_words']} words are another rate"
        )
    if not row["wer_ci95"][0] - RATE_TOLERANCE <= row["wer"] <= row["wer_ci95"][1] + RATE_TOLERANCE:
        problems.append(f"wer {row['wer']} lies outside its interval {row['wer_ci95']}")
    if row["substitutions"] + row["deletions"] > row["reference_words"]:
        problems.append("more words are substituted or deleted than there are")
    if row["failed"] > row["samples"] or row["samples"] > row["rows"]:
        problems.append(
            f"{row['failed']} failed, {row['samples']} samples and {row['rows']} rows do not fit together"
        )
    needed = required_samples(row["set"], row["rows"])
    if row["samples"] < needed:
        problems.append(f"{row['samples']} samples; a row of {row['set']} needs {needed}")
    return problems


NEEDED_FOR_VERIFIED = {
    *("wer_ci95", "substitutions", "deletions", "insertions", "reference_words"),
    *("samples", "rows", "failed", "normalizer"),
}


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _shown(value: Any) -> str:
    """A hostile value in an error message: short, on one line, in plain ASCII."""
    return ascii(value)[:60]
