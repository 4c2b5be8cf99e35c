"""Text normalisers: what two transcripts may differ in without counting as an error.

`english` and `basic` are Whisper's own (Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak
Supervision", appendix C), as the public leaderboards use them, from the package whisper-normalizer.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable

from tiny_audio.errors import UserError, nearest

logger = logging.getLogger(__name__)

Normalizer = Callable[[str], str]

DIGIT_NAMES = frozenset(
    ("zero", "oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
)


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


def english(text: str) -> str:
    """As `basic`, with numbers as digits, American spelling, contractions written out and no fillers.

    This is Whisper's EnglishTextNormalizer. It joins successive digits ("eight seven two" becomes the one
    word "872"), which is why digit corpora use `basic`. A text that it cannot digest (a recogniser's endless
    loop of digits, say) is normalised by `basic` instead of ending the evaluation, and logged.
    """
    try:
        return " ".join(_english_normalizer()(text).split())
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        logger.warning(
            "The English normaliser failed (%s: %s) on %r; using basic for this text.",
            type(error).__name__,
            error,
            text[:80],
        )
        return basic(text)


NORMALIZERS: dict[str, Normalizer] = {"none": none, "basic": basic, "english": english}


def get_normalizer(name: str) -> Normalizer:
    """The normaliser of that name. Raises UserError naming the nearest one and listing all."""
    if name not in NORMALIZERS:
        raise UserError(
            f'There is no normaliser "{name}".{nearest(name, NORMALIZERS)} Known: {", ".join(NORMALIZERS)}.'
        )
    return NORMALIZERS[name]


def default_normalizer(source_name: str, references: Iterable[str]) -> str:
    """The name of the normaliser a set is scored with unless the user says otherwise.

    `basic` for the embedded corpus (spoken number phrases) and for any set whose references consist of digit
    names only, whose errors must be counted digit by digit; `english` for everything else.
    """
    if source_name.startswith("corpus:"):
        return "basic"
    words = {word for reference in references for word in re.findall(r"\w+", reference.lower())}
    return "basic" if words and words <= DIGIT_NAMES else "english"


@functools.cache
def _basic_normalizer() -> Normalizer:
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer()


@functools.cache
def _english_normalizer() -> Normalizer:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
