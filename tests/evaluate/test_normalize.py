import pytest

from tiny_audio.errors import UserError
from tiny_audio.evaluate.normalize import (
    NORMALIZERS,
    basic,
    default_normalizer,
    english,
    get_normalizer,
    none,
)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize(
    "text", ["", "   ", "Hello,  World!", "it's 5.50$ (laughs) [noise] — naïve", "\tzwölf\n日本"]
)
def test_normalised_text_is_stable_and_single_spaced(name: str, text: str) -> None:
    normalized = NORMALIZERS[name](text)
    assert normalized == " ".join(normalized.split())
    assert NORMALIZERS[name](normalized) == normalized


def test_what_each_changes() -> None:
    text = "  Don't pay, the COLOUR of twenty-one \t (cough) tickets! "
    assert none(text) == "Don't pay, the COLOUR of twenty-one (cough) tickets!"
    assert basic(text) == "don t pay the colour of twenty one tickets"
    assert english(text) == "do not pay the color of 21 tickets"


def test_digit_strings_stay_words_under_basic_only() -> None:
    assert basic("Eight, seven two.") == "eight seven two"
    assert english("eight seven two") == "872"


def test_text_that_breaks_the_english_normaliser_is_still_scored(caplog: pytest.LogCaptureFixture) -> None:
    loop = "Well, " + "1" * 5000  # Python refuses to make a number of so many digits
    assert english(loop) == basic(loop)
    assert "English normaliser failed" in caplog.text


def test_unknown_normaliser_names_the_nearest() -> None:
    with pytest.raises(UserError, match='Did you mean "english"'):
        get_normalizer("englsh")


@pytest.mark.parametrize(
    ("source_name", "references", "expected"),
    [
        ("corpus:test", ["the train leaves at nine"], "basic"),
        ("../speech/human-digits", ["six six eight", "Two, seven."], "basic"),
        ("digits", ["oh one"], "basic"),
        ("digits", ["six six eight", "six hundred"], "english"),
        ("prompts", ["press one", "six"], "english"),
        ("numerals", ["1 2 3"], "english"),
        ("silence", ["", " "], "english"),
        ("nothing", [], "english"),
    ],
)
def test_default_normaliser(source_name: str, references: list[str], expected: str) -> None:
    assert default_normalizer(source_name, references) == expected
