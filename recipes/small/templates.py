"""Sentences made by a grammar: telephone prompts, commands, numbers, dates, names. Text in, nothing installed.

The rules are in grammar.txt; `{name}` in one stands for another rule or for one of the functions in `SPOKEN`. Numbers
are written as they are said, since that is what a synthesiser is given to say.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
)
ONE, TEN, ORDINAL = ONES.split(), TENS.split(), ORDINALS.split()
SLOT = re.compile(r"\{(\w+)\}")


def number_words(number: int) -> str:
    """A whole number below a thousand million in words: 342 -> "three hundred and forty-two"."""
    if number < 20:
        return ONE[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TEN[tens] + (f"-{ONE[ones]}" if ones else "")
    for size, name in ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred")):
        if number >= size:
            head, rest = divmod(number, size)
            joint = " and " if rest and rest < 100 and size == 100 else " "
            return f"{number_words(head)} {name}" + (f"{joint}{number_words(rest)}" if rest else "")
    raise AssertionError("every number is below or above a hundred")


def ordinal_words(number: int) -> str:
    """1 to 39 as an ordinal: 23 -> "twenty-third"."""
    if number <= 20:
        return ORDINAL[number - 1]
    tens, ones = divmod(number, 10)
    return f"{TEN[tens]}-{ORDINAL[ones - 1]}" if ones else f"{TEN[tens][:-1]}ieth"  # thirty, thirtieth


def year_words(year: int) -> str:
    century, rest = divmod(year, 100)
    if rest == 0:
        return f"{number_words(century)} hundred" if century % 10 else number_words(year)
    if century == 20 and rest < 10:
        return f"two thousand and {ONE[rest]}"
    return f"{number_words(century)} {'oh ' if rest < 10 else ''}{number_words(rest)}"


def clock_words(rng: random.Random) -> str:
    hour, minute = rng.randrange(1, 13), rng.choice((0, 0, 15, 30, 45, rng.randrange(1, 60)))
    part = rng.choice(("", "", " in the morning", " in the afternoon", " in the evening", " at night"))
    if rng.random() < 0.3:
        other = number_words(hour % 12 + 1)
        return rng.choice(
            (
                f"a quarter past {ONE[hour]}",
                f"half past {ONE[hour]}",
                f"a quarter to {other}",
                f"ten to {other}",
            )
        )
    if minute == 0:
        return f"{ONE[hour]} o'clock{part}"
    return f"{ONE[hour]} {'oh ' if minute < 10 else ''}{number_words(minute)}{part}"


def digits(rng: random.Random, low: int, high: int) -> str:
    """Digits one by one, in groups as people read a number out."""
    words = [
        ONE[rng.randrange(10)] if rng.random() < 0.93 else "oh" for _ in range(rng.randrange(low, high + 1))
    ]
    if len(words) < 6:
        return " ".join(words)
    groups = []
    while words:
        size = rng.choice((2, 3, 3, 4))
        groups.append(words[:size])
        words = words[size:]
    return ", ".join(" ".join(group) for group in groups)


def money_words(rng: random.Random) -> str:
    amount = rng.choice((rng.randrange(1, 100), rng.randrange(100, 1000), rng.randrange(1, 50) * 100))
    unit = rng.choice(("dollar", "dollar", "euro", "pound"))
    text = f"{number_words(amount)} {unit}{'' if amount == 1 else 's'}"
    if rng.random() < 0.4 and unit != "pound":
        text += f" and {number_words(rng.randrange(2, 100))} cents"
    return text


def date_words(rng: random.Random) -> str:
    month, day = rng.choice(RULES["month"]), ordinal_words(rng.randrange(1, 32))
    text = rng.choice((f"{month} {day}", f"the {day} of {month}"))
    if rng.random() < 0.3:
        text = f"{rng.choice(RULES['weekday'])}, {text}"
    if rng.random() < 0.3:
        text += f", {year_words(rng.randrange(1850, 2035))}"
    return text


# What a number or a date looks like is worked out, not listed.
SPOKEN: dict[str, Callable[[random.Random], str]] = {
    "digit": lambda rng: ONE[rng.randrange(10)],
    "few": lambda rng: number_words(rng.randrange(2, 13)),
    "count": lambda rng: number_words(rng.choice((rng.randrange(2, 100), rng.randrange(100, 1000)))),
    "large": lambda rng: number_words(
        rng.choice((rng.randrange(1000, 10_000), rng.randrange(2, 900) * 1000, rng.randrange(2, 90) * 10**6))
    ),
    "extension": lambda rng: digits(rng, 3, 4),
    "telephone": lambda rng: digits(rng, 7, 11),
    "code": lambda rng: digits(rng, 4, 8),
    "year": lambda rng: year_words(rng.randrange(1700, 2035)),
    "clock": clock_words,
    "date": date_words,
    "money": money_words,
    "ordinal": lambda rng: ordinal_words(rng.randrange(1, 32)),
    "letter": lambda rng: rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "letters": lambda rng: " ".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randrange(3, 7))),
    "decimal": lambda rng: f"{number_words(rng.randrange(0, 100))} point {digits(rng, 1, 3)}",
}  # fmt: skip


def read_grammar(text: str) -> dict[str, list[str]]:
    """Rule -> its alternatives, from the form that `grammar.txt` has."""
    rules: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=\w+:\n)", re.sub(r"^#.*\n+", "", text, flags=re.MULTILINE)):
        name, _, body = block.strip().partition(":\n")
        rules[name] = [" ".join(alternative.split()) for alternative in body.split("|")]
    return rules


RULES = read_grammar(Path(__file__).with_name("grammar.txt").read_text(encoding="utf-8"))


def make_sentence(kind: str, rng: random.Random) -> str:
    """One utterance of `prompts`, `commands`, `facts` or `words`, with capital letters and full stops."""
    text = _expand(f"{{start_{kind}}}", rng)
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def _expand(text: str, rng: random.Random) -> str:
    def fill(match: re.Match[str]) -> str:
        name = match[1]
        return SPOKEN[name](rng) if name in SPOKEN else _expand(rng.choice(RULES[name]), rng)

    return SLOT.sub(fill, text)
