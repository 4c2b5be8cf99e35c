"""Transcripts as they come, and as they are trained on."""

from __future__ import annotations

import pytest

from tiny_audio.data.text import clean_transcript

EXPECTED = {
    "": "",
    "  Hello,\tworld\n ": "Hello, world",
    "HE BEGAN A CONFUSED COMPLAINT": "he began a confused complaint",
    "NASA said no": "NASA said no",
    "SO IT'S <COMMA> WELL <COMMA> FINE <PERIOD>": "so it's, well, fine.",
    "WHO ARE YOU <QUESTIONMARK> NO ONE <EXCLAMATIONPOINT>": "who are you? no one!",
    "and i <unk> think [laughter] so {breath}": "and i think so",
    "<beep ascending> press one": "press one",
    "it 's what we 're used to": "it's what we're used to",
    "rock 'n' roll": "rock 'n' roll",
    "\u201cIt\u2019s fine\u201d \u2013 she said\u2026": '"It\'s fine" - she said...',
    '"A whole sentence in quotes."': "A whole sentence in quotes.",
    '"One" and "two"': '"One" and "two"',
    "cafe\u0301 na\u00efve": "caf\u00e9 na\u00efve",
    "zero\u200bwidth\u00a0space": "zero width space",
    "\u0645\u06cc\u200c\u0631\u0648\u0645": "\u0645\u06cc\u200c\u0631\u0648\u0645",  # Persian "I go": one word
    "\u0dc1\u0dca\u200d\u0dbb\u0dd3 x": "\u0dc1\u0dca\u200d\u0dbb\u0dd3 x",  # Sinhala "Sri"
    "\u0d05\u0d35\u0d28\u0d4d\u200d x": "\u0d05\u0d35\u0d28\u0d4d\u200d x",  # Malayalam "he", the old chillu at its end
    "\u200cat \u200d the\u200c edges\u200d.": "at the edges.",
    "\u200eleft\u2060-to-\u202bri\u00adght\u202c\ufeff": "left-to-right",
    "\u0645\u06cc\u200c\u200e\u200c\u0631\u0648": "\u0645\u06cc\u200c\u0631\u0648",
    "e\u2060\u0301": "\u00e9",
    "ignore_time_segment_in_scoring": "",
    "<unk>": "",
    "<SIL> <PERIOD>": "",
    "[inaudible]": "",
    "5 < 6 and 7 > 2": "5 < 6 and 7 > 2",
    "5000 [sic]": "5000",
    "これはペンです": "これはペンです",
}


@pytest.mark.parametrize("text", EXPECTED)
def test_clean_transcript(text: str) -> None:
    assert clean_transcript(text) == EXPECTED[text]
    assert clean_transcript(EXPECTED[text]) == EXPECTED[text]
