"""espeak-ng's phonemes in Kokoro's alphabet."""

from __future__ import annotations

import pytest

from recipes.small.phonemes import FROM_IPA, Phonemizer, to_misaki
from tiny_audio.corpus.engines import espeak_library

# What Kokoro was trained on (misaki's vowels, consonants and marks), American and British together.
ALPHABET = set("AIOQWYTabdfhijklmnpstuvwzæðŋɐɑɒɔəɚɛɜɡɪɹɾʃʊʌʒʤʧˈˌːθᵊᵻ ,.;:?!")


@pytest.mark.parametrize(
    ("ipa", "accent", "expected"),
    [
        ("həlˈo^ʊ", "us", "həlˈO"),
        ("həlˈə^ʊ", "gb", "həlˈQ"),
        ("d^ʒˈʌd^ʒ", "us", "ʤˈʌʤ"),
        ("t^ʃˈa^ɪld", "us", "ʧˈIld"),
        ("bˈɔ^ɪ nˈa^ʊ dˈe^ɪ", "us", "bˈY nˈW dˈA"),
        ("bˈɜːd", "us", "bˈɜɹd"),
        ("bˈɜːd", "gb", "bˈɜːd"),
        ("wˈɔːɾɚ", "us", "wˈɔTəɹ"),
        ("bˈʌʔn̩", "us", "bˈʌtn"),
        ("lˈɪɾə^l", "us", "lˈɪTᵊl"),
    ],
)
def test_to_misaki(ipa: str, accent: str, expected: str) -> None:
    assert to_misaki(ipa, accent) == expected


def test_every_symbol_that_is_written_is_one_of_kokoros() -> None:
    written = {symbol for pairs in FROM_IPA.values() for _, text in pairs for symbol in text}
    assert written <= ALPHABET


@pytest.mark.skipif(espeak_library() is None, reason="espeak-ng is not installed")
@pytest.mark.parametrize(
    ("accent", "expected"),
    [
        ("us", "həlˈO, mˈɪstəɹ smˈɪθ. ɪz ðə bˈɜɹd nˌɪɹ ðə wˈɔTəɹ?"),
        ("gb", "həlˈQ, mˈɪstə smˈɪθ. ɪz ðə bˈɜːd nˌiə ðə wˈɔːtə?"),
    ],
)
def test_a_sentence_keeps_its_marks(accent: str, expected: str) -> None:
    phonemizer = Phonemizer()
    spoken = phonemizer.phonemes("Hello, Mr. Smith. Is the bird near the water?", accent)
    assert set(spoken) <= ALPHABET
    # Stress of small words differs between versions of espeak-ng; sounds and marks do not.
    assert spoken.replace("ˌ", "").replace("ˈ", "") == expected.replace("ˌ", "").replace("ˈ", "")
