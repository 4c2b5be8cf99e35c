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

_TAG = re.compile(r"<[^<>\s]{1,24}>|\[[^\[\]]{1,24}\]|\{[^{}]{1,24}\}")
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

    Unicode is composed (NFC); typographic quotes and dashes become plain; tags such as ``<unk>``, ``[noise]``
    and ``{laugh}`` go; quotes around the whole text go (Common Voice); a text without a lower-case letter
    becomes lower case (LibriSpeech), so that sets in capitals and sets in sentences teach one spelling.
    Returns an empty string for a placeholder: the caller leaves such rows out, for they may hold speech.
    """
    text = unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY)
    if not text.isprintable():  # else there is none of them, which is told a hundred times as fast
        text = "".join(
            " " if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") else character
            for character in text
        )
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
