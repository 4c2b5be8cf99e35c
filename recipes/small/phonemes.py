"""English text as the phonemes that Kokoro was trained on (the alphabet of its phonemiser, misaki), by espeak-ng.

espeak-ng writes the International Phonetic Alphabet; Kokoro's own fallback for words that its lexicon lacks goes the
same way. Diphthongs and affricates are one symbol there: A as in day, I as in my, W as in now, Y as in boy, O as in go
(American), Q as in go (British).
"""

from __future__ import annotations

import ctypes
import re

from tiny_audio.corpus.engines import Espeak

UTF8, IPA_WITH_TIES = (
    1,
    0x02 | (1 << 7) | (ord("^") << 8),
)  # espeakCHARS_UTF8; espeakPHONEMES_IPA, tie character ^

# Longer ones first: with its tie, "a^ɪ" is one sound and "aɪ" would be two.
FROM_IPA: dict[str, tuple[tuple[str, str], ...]] = {
    "both": (
        ("a^ɪ", "I"), ("a^ʊ", "W"), ("e^ɪ", "A"), ("ɔ^ɪ", "Y"), ("d^ʒ", "ʤ"), ("t^ʃ", "ʧ"), ("ə^l", "ᵊl"),
        ("ʔ", "t"), ("r", "ɹ"), ("x", "k"), ("ç", "k"), ("ɬ", "l"), ("g", "ɡ"),
        ("ɐ", "ə"), ("ɚ", "əɹ"), ("ɹɹ", "ɹ"), ("ʲ", ""), ("\u0329", ""), ("\u0303", ""),
    ),
    "us": (("o^ʊ", "O"), ("ə^ʊ", "O"), ("ɜː", "ɜɹ"), ("ɜɹɹ", "ɜɹ"), ("ɪ^ə", "iə"), ("e^ə", "ɛ"), ("ʊ^ə", "ʊ"),
           ("e", "A"), ("ɾ", "T"), ("ɒ", "ɔ"), ("o", "ɔ"), ("ː", "")),
    "gb": (("ə^ʊ", "Q"), ("o^ʊ", "Q"), ("ɪ^ə", "ɪə"), ("e^ə", "ɛː"), ("ʊ^ə", "ʊə"), ("iə", "ɪə"), ("e", "ɛ"),
           ("o", "ɔ")),
}  # fmt: skip
ACCENTS = {"us": "en-us", "gb": "en"}  # names of espeak-ng's voices


def to_misaki(ipa: str, accent: str) -> str:
    """espeak-ng's IPA with ties (`^`) in Kokoro's alphabet. `accent` is a key of `ACCENTS`."""
    for sound, symbol in (*FROM_IPA["both"], *FROM_IPA[accent]):
        ipa = ipa.replace(sound, symbol)
    return ipa.replace("^", "").replace("-", "").replace("_", "")


class Phonemizer(Espeak):
    """Text -> misaki phonemes, with the punctuation that Kokoro reads its melody from."""

    def __init__(self) -> None:
        super().__init__()
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def phonemes(self, text: str, accent: str) -> str:
        """The phonemes of one sentence or more, e.g. "həlˈO, ðˈɛɹ." for "Hello, there."."""
        if self.library.espeak_SetVoiceByName(ACCENTS[accent].encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {ACCENTS[accent]}")
        spoken = []
        for part, mark in re.findall(r"([^,;:.?!]+)([,;:.?!]*)", re.sub(r"\b(Mrs?|Dr|Ms)\.", r"\1", text)):
            clauses = []
            buffer = ctypes.create_string_buffer(part.encode())
            place = ctypes.c_void_p(ctypes.addressof(buffer))
            while place.value:  # espeak-ng stops after each clause that it finds
                clauses.append(
                    self.library.espeak_TextToPhonemes(ctypes.byref(place), UTF8, IPA_WITH_TIES).decode()
                )
            spoken.append(to_misaki(" ".join(clauses).strip(), accent) + mark[:1])
        return " ".join(spoken)
