"""Text: what is kept of it, which split it falls into, and the grammar."""

from __future__ import annotations

import random
import re

import pytest

from recipes.small import sentences, templates
from tiny_audio.errors import UserError


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a high-resolution lens", "A high-resolution lens."),
        ("“You’re right,”  he said.", "You're right, he said."),
        ("Mr. Smith met Mrs. O'Brien at McDonald's!", "Mr. Smith met Mrs. O'Brien at McDonald's!"),
        ("The boys' books -- all of them -- were lost...", "The boys' books, all of them, were lost."),
        ("Really?!! Yes", "Really? Yes."),
        ("'Tis wise to learn", "Tis wise to learn."),
        ("wait for the TV news", "Wait for the TV news."),
    ],
)
def test_clean_writes_what_is_said(written: str, expected: str) -> None:
    assert sentences.clean(written) == expected


@pytest.mark.parametrize(
    "written",
    [
        "36 is a multiple of 9",
        "he had a bank job in St. Louis",
        "one (or two) of them",
        "WAIT FOR ME",
        "see http://example.com for more",
        "the getSize function",
        "hope, faith, etc.",
        "word",
        "the xkcdq of it",
        "an x in the box",
        "end.Start",
        "über alles",
        "a very " * 60 + "long sentence",
    ],
)
def test_clean_leaves_out_what_is_said_otherwise(written: str) -> None:
    assert sentences.clean(written) is None


def test_a_cleaned_sentence_stays_as_it_is() -> None:
    for text in ("The boys' books, all of them, were lost.", "Mr. Smith came; he saw: nothing!"):
        assert sentences.clean(text) == text


def test_split_of_hears_words_not_marks() -> None:
    assert {sentences.split_of(text) for text in ("Hello, world.", "hello world", "HELLO   WORLD!")} == {
        sentences.split_of("hello world")
    }
    splits = [
        sentences.split_of(f"{first} {second}")
        for first in templates.ONE
        for second in templates.RULES["city"]
    ]
    assert 0.01 < splits.count("test") / len(splits) < 0.08
    assert 0.01 < splits.count("dev") / len(splits) < 0.07


def test_sources_are_read_from_their_files(tmp_path) -> None:
    (tmp_path / "data.noun").write_text(
        '1740 03 n 01 entity 0 003 | that which is; "it was full of rackets, balls and other objects"; "a dog"\n',
        encoding="latin-1",
    )
    assert list(sentences.wordnet_examples(tmp_path)) == ["it was full of rackets, balls and other objects"]
    (tmp_path / "wisdom").write_text(
        'Be wise.  Mr. Twain\nwas.\n\t\t-- Mark Twain\n%\nSecond "one."\n%\n', encoding="utf-8"
    )
    assert list(sentences.fortunes(tmp_path)) == ["Be wise.", "Mr. Twain was.", 'Second "one."']


def test_draw_keeps_to_its_split(monkeypatch) -> None:
    texts = [
        f"the {first} {second} went home" for first in templates.ONE for second in templates.RULES["last"]
    ]
    source = sentences.TextSource("made up", 1.0, "none", "none", lambda: True, lambda: iter(texts))
    monkeypatch.setattr(sentences, "TEXT_SOURCES", (source,))
    sentences.pools.cache_clear()
    rng = random.Random(0)
    for split in ("train", "dev", "test"):
        known = set(sentences.pools("made up")[split])
        assert known
        for _ in range(100):
            text = sentences.draw(split, rng, [*sentences.shares()])
            assert len(text) <= sentences.LONGEST_CHARACTERS
            parts = re.findall(r"The \w+ \w+ went home\.", text)
            assert set(parts) <= known if parts else sentences.split_of(text) == split
    sentences.pools.cache_clear()


def test_a_missing_text_source_names_its_package(monkeypatch) -> None:
    source = sentences.TextSource(
        "poems", 1.0, "none", "apt-get install poems", lambda: False, lambda: iter(())
    )
    monkeypatch.setattr(sentences, "TEXT_SOURCES", (source,))
    with pytest.raises(UserError, match=r"no sentences of poems .* apt-get install poems"):
        sentences.require_text_sources()


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (342, "three hundred and forty-two"),
        (1000, "one thousand"),
        (1205, "one thousand two hundred and five"),
        (2_000_010, "two million ten"),
    ],
)
def test_number_words(number: int, expected: str) -> None:
    assert templates.number_words(number) == expected


def test_ordinals_and_years() -> None:
    assert [templates.ordinal_words(number) for number in (1, 12, 20, 21, 30, 31)] == [
        "first", "twelfth", "twentieth", "twenty-first", "thirtieth", "thirty-first",
    ]  # fmt: skip
    assert [templates.year_words(year) for year in (1700, 1905, 1984, 2000, 2007, 2026)] == [
        "seventeen hundred", "nineteen oh five", "nineteen eighty-four", "two thousand", "two thousand and seven",
        "twenty twenty-six",
    ]  # fmt: skip


def test_every_slot_of_the_grammar_is_filled_and_every_rule_used() -> None:
    named = {
        slot for rules in templates.RULES.values() for rule in rules for slot in templates.SLOT.findall(rule)
    }
    assert named <= set(templates.RULES) | set(templates.SPOKEN)
    assert set(templates.RULES) - named == {
        "start_prompts",
        "start_commands",
        "start_facts",
        "start_words",
    }
    assert set(templates.SPOKEN) <= named


@pytest.mark.parametrize("kind", [*sentences.GRAMMAR_SHARES, "words"])
def test_sentences_of_the_grammar_are_clean(kind: str) -> None:
    rng = random.Random(kind)
    made = [templates.make_sentence(kind, rng) for _ in range(500)]
    assert made == [templates.make_sentence(kind, rng) for rng in [random.Random(kind)] for _ in range(500)]
    assert len(set(made)) > 100
    for text in made:
        assert re.fullmatch(r"[A-Z][A-Za-z',.? -]*[.?]", text), text
        assert not re.search(r"[.?] [a-z]|\s{2}|\.\.", text), text
