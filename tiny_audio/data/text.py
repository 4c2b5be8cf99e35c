"""Transcripts as training targets: markup out, spelling and case left to what was said.

The rules are those that the public English sets need; each is named beside the set that needs it.
"""

from __future__ import annotations

import re
import unicodedata

# GigaSpeech writes punctuation as words.
PUNCTUATION_TAGS = {
    "<comma>": ",",
    "<period>": ".",
    "<questionmark>": "?",
    "<exclamationpoint>": "!",
}
# Rows that hold speech without a transcript: TED-LIUM, GigaSpeech (<SIL>, <MUSIC>, <NOISE>, <OTHER>), AMI.
PLACEHOLDERS = frozenset({"ignore_time_segment_in_scoring", "inaudible", "[inaudible]", "(inaudible)", "n/a"})
# Persian writes a prefix and its verb as one word with U+200C between them; U+200D makes conjuncts in Sinhala and, at
# the end of a word too, the chillus of Malayalam (https://www.unicode.org/reports/tr31/#Layout_and_Format_Control_Characters).
JOINERS = "\u200c\u200d"
VIRAMA_CLASS = 9  # canonical combining class
ZERO_WIDTH_SPACE = "\u200b"  # shows where a word ends, in Thai and Khmer

_JOINERS = re.compile(f"[{JOINERS}]+")
_TAG = re.compile(r"<(?! )[^<>]{1,24}(?<! )>|\[[^\[\]]{1,24}\]|\{[^{}]{1,24}\}")
_SPACE_BEFORE_PUNCTUATION = re.compile(r"\s+([,.?!;:])(?=\s|$)")
_SPLIT_CONTRACTION = re.compile(r"(?<=\w) (?='(?:s|t|m|d|re|ve|ll)\b)", re.IGNORECASE)  # TED-LIUM: "it 's"
_TYPOGRAPHY = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u02bc": "'",
        "`": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u201e": '"',
        "\u00ab": '"',
        "\u00bb": '"',
    }
    | {
        "\u2010": "-",
        "\u2011": "-",
        "\u2012": "-",
        "\u2013": "-",
        "\u2014": "-",
        "\u2026": "...",
        "\u00ad": "",
        "\ufeff": "",
    }
)


def clean_transcript(text: str) -> str:
    """`text` as a training target.

    Unicode is composed (NFC); typographic quotes and dashes become plain; invisible characters go, but for the
    joiners inside words that Persian, Sinhala and others are spelt with; tags such as ``<unk>``, ``[noise]``
    and ``{laugh}`` go; quotes around the whole text go (Common Voice); a text without a lower-case letter
    becomes lower case (LibriSpeech), so that sets in capitals and sets in sentences teach one spelling.
    Returns an empty string for a placeholder: the caller leaves such rows out, for they may hold speech.
    """
    text = unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY)
    if not text.isprintable():  # else there is none of them, which is told a hundred times as fast
        text = unicodedata.normalize("NFC", _without_format_characters(text))
    if text.strip().lower() in PLACEHOLDERS:
        return ""
    text = _TAG.sub(lambda match: PUNCTUATION_TAGS.get(match[0].lower(), " "), text)
    text = _SPACE_BEFORE_PUNCTUATION.sub(r"\1", text)
    text = _SPLIT_CONTRACTION.sub("", text)
    text = " ".join(text.split())
    if len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        text = text[1:-1].strip()
    if not any(character.isalnum() for character in text):
        return ""  # what is left of "<unk> ." says nothing
    return text.lower() if text.isupper() else text


def _without_format_characters(text: str) -> str:
    """Separators as spaces, and nothing of what only steers the display (category Cf) but joiners inside words."""
    categories = map(unicodedata.category, text)
    kept = (
        " " if category in ("Cc", "Zl", "Zp") or character == ZERO_WIDTH_SPACE else character
        for character, category in zip(text, categories, strict=True)
        if category != "Cf" or character in JOINERS or character == ZERO_WIDTH_SPACE
    )
    return _JOINERS.sub(_joiner_inside_word, "".join(kept))


def _joiner_inside_word(match: re.Match[str]) -> str:
    """The first of the joiners where they stand between letters, or after the virama that they give another form."""
    before, after = (
        match.string[max(0, match.start() - 1) : match.start()],
        match.string[match.end() : match.end() + 1],
    )
    is_joined = _is_of_word(before) and _is_of_word(after)
    return match[0][0] if is_joined or (before and unicodedata.combining(before) == VIRAMA_CLASS) else ""


def _is_of_word(character: str) -> bool:
    return character != "" and unicodedata.category(character)[0] in "LM"  # letters, and marks on them
