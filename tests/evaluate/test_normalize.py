import pytest

from tiny_audio.errors import UserError
from tiny_audio.evaluate import leaderboard_words as words
from tiny_audio.evaluate.normalize import (
    NORMALIZERS,
    basic,
    default_normalizer,
    digits,
    english,
    get_normalizer,
    leaderboard,
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


def test_strings_of_digits() -> None:
    for text in ("Eight, seven two.", "872", "8-7-2", "8 72"):
        assert digits(text) == "eight seven two"
    assert digits("Oh, 5550 oh!") == "zero five five five zero zero"
    assert basic("Eight, seven 2.") == "eight seven 2"
    assert english("eight seven two") == "872"


def test_text_that_breaks_the_english_normaliser_is_still_scored(caplog: pytest.LogCaptureFixture) -> None:
    loop = "Well, " + "1" * 5000  # Python refuses to make a number of so many digits
    assert english(loop) == basic(loop)
    assert "English normaliser failed" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Huh, ah well, em... uhm, yes", "well yes"),
        ("John's dog. It's here; what's that?", "john s dog it is here what is that"),
        ("kinda, sorta, dunno, cause", "kinda sorta dunno cause"),
        ("I won't; I'm gonna", "i will not i am going to"),
        ("The Wi-Fi e-mail at 5 p.m. is all right, OK?", "the wifi email at 5 pm is alright okay"),
        ("the B B C on 5 G or a B C and a b", "the bbc on 5g or abc and a b"),
        ("Stephen and Catherine cancelled the flyer", "steven and catherine canceled the flier"),
        ("Kathryn's colour, archaeological", "catherine s color archeological"),
        ("<unk> [noise] (laughs)", ""),
        ("ignore_time_segment_in_scoring", "ignore time segment in scoring"),
        ("eight seven two, and twenty dollars", "872 and $20"),
    ],
)
def test_the_leaderboards_changes(text: str, expected: str) -> None:
    assert leaderboard(text) == expected


def test_the_leaderboards_changes_leave_whispers_normaliser_alone() -> None:
    leaderboard("warm")
    assert english("Huh, John's kinda B B C, OK Stephen") == "huh john is kind of b b c ok stephen"


def test_leaderboard_words_settle_in_one_step() -> None:
    for table in (words.NAMES, words.SPELLINGS):
        assert {table.get(value, value) for value in table.values()} == set(table.values())
    assert len(words.NAMES) == 152


def test_a_text_that_breaks_the_leaderboards_normaliser_is_scored_too() -> None:
    loop = "Well, " + "1" * 5000
    assert leaderboard(loop) == basic(loop)


def test_unknown_normaliser_names_the_nearest() -> None:
    with pytest.raises(UserError, match='Did you mean "english"'):
        get_normalizer("englsh")


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["six six eight", "Two, seven."], "digits"),
        (["oh one"], "digits"),
        (["six six eight", "six hundred"], "english"),
        (["press one", "six"], "english"),
        (["1 2 3"], "english"),
        (["", " "], "english"),
        ([], "english"),
    ],
)
def test_default_normaliser(references: list[str], expected: str) -> None:
    assert default_normalizer(references) == expected
