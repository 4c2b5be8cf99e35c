"""Text normalisers: what two transcripts may differ in without counting as an error.

`english` and `basic` are Whisper's own (Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak
Supervision", appendix C), from the package whisper-normalizer. `digits` is `basic` for strings of digits, and
`leaderboard` is `english` with what the Open ASR Leaderboard has changed in it.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Callable, Iterable

from tiny_audio.errors import UserError, nearest
from tiny_audio.evaluate import leaderboard_words as words

logger = logging.getLogger(__name__)

Normalizer = Callable[[str], str]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def none(text: str) -> str:
    """The text as it is, but for runs of white space: words are what lies between them."""
    return " ".join(text.split())


def basic(text: str) -> str:
    """Lower case without punctuation and without (remarks) and [remarks]; numbers and spelling stay.

    This is Whisper's BasicTextNormalizer: every mark, symbol and punctuation sign becomes a space, the
    apostrophe too, so that "don't" counts as the two words "don t". Both sides are treated alike, hence
    "dont" for "don't" is two errors.
    """
    return " ".join(_basic_normalizer()(text).split())


def digits(text: str) -> str:
    """As `basic`, with every digit a word of its own: "872", "8-7-2" and "eight seven two" are the same.

    So is "oh" the same as "zero". For strings of spoken digits, which one recogniser writes as words and another
    as a number: an error counts once for each digit.
    """
    spelled = re.sub("[0-9]", lambda match: f" {DIGITS[int(match[0])]} ", basic(text))
    return " ".join("zero" if word == "oh" else word for word in spelled.split())


def english(text: str) -> str:
    """As `basic`, with numbers as digits, American spelling, contractions written out and no fillers.

    This is Whisper's EnglishTextNormalizer. It joins successive digits ("eight seven two" becomes the one
    word "872"), which is why digit corpora use `digits`. A text that it cannot digest (a recogniser's endless
    loop of digits, say) is normalised by `basic` instead of ending the evaluation, and logged.
    """
    return _digest(_english_normalizer(), text)


def leaderboard(text: str) -> str:
    """As `english`, with the changes of the Open ASR Leaderboard (those listed in leaderboard_words.py).

    More fillers go; "'s" becomes " is" only where it cannot be a genitive; "wi-fi", "all right" and some other
    pairs are one word; so are letters and digits spelled one by one ("b b c", "5 g"); some spellings differ; and
    spellings of a name are one ("Stephen" is "steven").

    Two things that the board does to pairs rather than to texts are not done here. It leaves out utterances whose
    normalised reference is empty or "ignore time segment in scoring" (the gaps of TED-LIUM); here every
    utterance counts, and words written where nothing was said are insertions. And since 2026 it forgives a
    compound written apart on one side ("white paper" for "whitepaper"), so its rates can be a little lower.
    """
    return _digest(_leaderboard_normalizer(), text)


NORMALIZERS: dict[str, Normalizer] = {
    "none": none,
    "basic": basic,
    "digits": digits,
    "english": english,
    "leaderboard": leaderboard,
}


def get_normalizer(name: str) -> Normalizer:
    """The normaliser of that name. Raises UserError naming the nearest one and listing all."""
    if name not in NORMALIZERS:
        raise UserError(
            f'There is no normaliser "{name}".{nearest(name, NORMALIZERS)} Known: {", ".join(NORMALIZERS)}.'
        )
    return NORMALIZERS[name]


def default_normalizer(references: Iterable[str]) -> str:
    """The name of the normaliser a set is scored with unless the user says otherwise.

    `digits` for any set whose references consist of the names of digits only, such as the embedded corpus, so
    that errors are counted digit by digit; `english` for everything else.
    """
    spoken = {word for reference in references for word in basic(reference).split()}
    return "digits" if spoken and spoken <= {*DIGITS, "oh"} else "english"


@functools.cache
def _basic_normalizer() -> Normalizer:
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer()


@functools.cache
def _english_normalizer() -> Normalizer:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


@functools.cache
def _leaderboard_normalizer() -> Normalizer:
    """Whisper's normaliser with its tables exchanged, and with steps of the board's before and after its own."""
    from whisper_normalizer.english import EnglishTextNormalizer

    normalizer = EnglishTextNormalizer()
    normalizer.ignore_patterns = rf"\b({words.FILLERS})\b"
    replacers = normalizer.replacers
    for contraction in words.KEPT_CONTRACTIONS:
        replacers.pop(rf"\b{contraction}\b", None)  # older releases of the package do not have all of them
    del replacers[r"'s\b"]
    replacers[rf"\b({words.WORDS_BEFORE_IS})'s\b"] = r"\1 is"
    normalizer.standardize_spellings.mapping = {**normalizer.standardize_spellings.mapping, **words.SPELLINGS}
    numbers, spellings = normalizer.standardize_numbers, normalizer.standardize_spellings
    normalizer.standardize_numbers = lambda text: numbers(_join_compounds(text))
    normalizer.standardize_spellings = lambda text: _join_spelled_out(
        words.NAMES.get(word, word) for word in spellings(text).split()
    )
    return normalizer


def _join_compounds(text: str) -> str:
    for pair, compound in words.COMPOUNDS.items():
        text = re.sub(r"\b" + pair.replace(" ", r"\s+") + r"\b", compound, text)
    return text


def _join_spelled_out(tokens: Iterable[str]) -> str:
    """Runs of single letters and digits as one word; a run with "a" or "i", which are words too, from three on."""
    joined: list[str] = []
    for is_single, group in itertools.groupby(tokens, lambda token: len(token) == 1 and token.isalnum()):
        run = list(group)
        shortest = 3 if {"a", "i"} & set(run) else 2
        joined += ["".join(run)] if is_single and len(run) >= shortest else run
    return " ".join(joined)


def _digest(normalizer: Normalizer, text: str) -> str:
    try:
        return " ".join(normalizer(text).split())
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        logger.warning(
            "The English normaliser failed (%s: %s) on %r; using basic for this text.",
            type(error).__name__,
            error,
            text[:80],
        )
        return basic(text)
