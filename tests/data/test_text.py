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
    "it 's what we 're used to": "it's what we're used to",
    "rock 'n' roll": "rock 'n' roll",
    "\u201cIt\u2019s fine\u201d \u2013 she said\u2026": '"It\'s fine" - she said...',
    '"A whole sentence in quotes."': "A whole sentence in quotes.",
    '"One" and "two"': '"One" and "two"',
    "cafe\u0301 na\u00efve": "caf\u00e9 na\u00efve",
    "zero\u200bwidth\u00a0space": "zero width space",
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
