"""Ordinary English sentences out of Debian packages, cleaned until the written form is what is said."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.small.templates import make_sentence
from tiny_audio.errors import UserError

WORDNET = Path("/usr/share/wordnet")
FORTUNES = Path("/usr/share/games/fortunes")
# The other files of the package hold program listings, verse in dialect, or definitions full of abbreviations.
FORTUNE_FILES = (
    "fortunes literature kids love people politics science wisdom work miscellaneous humorists platitudes cookie "
    "computers men-women education food medicine law news sports travel riddles art pets"
)

# Characters per second of speech at an ordinary pace: what is longer than 25 s is not worth synthesising.
LONGEST_CHARACTERS = 330
SHORTEST_CHARACTERS = 8
TITLES = frozenset({"Mr", "Mrs", "Dr", "Ms"})
SPELLED = frozenset(
    {"TV", "DVD", "CD", "OK", "FBI", "CIA", "USA", "BBC", "ID"}
)  # by every engine, letter by letter
TO_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\t": " ", "\u00a0": " "}
)
WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*'?")
SENTENCE_END = re.compile(
    r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bMs\.)(?<!\b[A-Z]\.)(?<=[.?!])[\"']*\s+(?=[\"'A-Z])"
)
SHARE_OF_SPLIT = {"test": 0.04, "dev": 0.03}  # of all sentences; the rest is for training


def clean(text: str) -> str | None:
    """The sentence as Whisper would write it, or None where what is written is not what would be said."""
    text = text.translate(TO_PLAIN).replace('"', " ").replace("`", " ")
    text = re.sub(
        r"(?<!\w)'+|'+(?!\w)", lambda match: "'" if match[0] == "'" and _is_plural(text, match) else " ", text
    )
    text = re.sub(r"\s*(?:--+| - |\.{3,}(?=\s*\w))\s*", ", ", text)
    text = re.sub(r"\.{3,}", ".", text)
    text = re.sub(r"([?!])[?!]+", r"\1", text)
    text = " ".join(re.sub(r"\s+([,.;:?!])", r"\1", text).split()).strip(" ,;:-")
    if text and text[-1] not in ".?!":
        text += "."
    if not SHORTEST_CHARACTERS <= len(text) <= LONGEST_CHARACTERS or not re.fullmatch(
        r"[A-Za-z',;:.?! -]+", text
    ):
        return None
    if re.search(r"[.?!][A-Za-z]|,{2}|[,;:] ?[,;:.?!]|-(?!\w)|(?<!\w)-", text):
        return None
    words = re.split(r"[ -]", text)
    if len(words) < 2 or not all(_is_said(word.strip(",;:.?!"), word) for word in words):
        return None
    return text[0].upper() + text[1:]


def _is_plural(text: str, match: re.Match[str]) -> bool:
    """Whether an apostrophe at the end of a word belongs to it: "the boys' books"."""
    return match.start() > 0 and text[match.start() - 1] == "s" and "'" not in text[: match.start()]


def _is_said(word: str, with_mark: str) -> bool:
    if not WORD.fullmatch(word):
        return False
    if with_mark.endswith(".") and word in {
        "etc",
        "vs",
        "Inc",
        "Ltd",
        "Jr",
        "Sr",
        "St",
        "Prof",
        "Co",
        "Corp",
        "No",
    }:
        return False
    if word in TITLES or word in SPELLED:
        return True
    if len(word) == 1:
        return word in "AaIO"
    if word.isupper() or re.search(r"[a-z][A-Z]", re.sub(r"^(Mc|Mac|[OD]')", "", word)):
        return False
    return bool(re.search(r"[aeiouy]", word, re.IGNORECASE)) and not re.search(
        r"[bcdfghjklmnpqrstvwxz]{6}", word
    )


def split_of(sentence: str) -> str:
    """`train`, `dev` or `test`, by a hash of the words alone: the same sentence is in one split for ever."""
    letters = re.sub(r"[^a-z]+", " ", sentence.lower()).strip()
    place = int.from_bytes(hashlib.blake2b(letters.encode(), digest_size=4).digest(), "little") / 2**32
    for split, share in SHARE_OF_SPLIT.items():
        if place < share:
            return split
        place -= share
    return "train"


# Sources ----------------------------------------------------------------------------------------------------


def wordnet_examples(folder: Path = WORDNET) -> Iterator[str]:
    """The example sentences and phrases of WordNet's glosses."""
    for path in sorted(folder.glob("data.*")):
        with path.open(encoding="latin-1") as file:
            for line in file:
                yield from re.findall(r'"([^"]{10,300})"', line.partition(" | ")[2])


def fortunes(folder: Path = FORTUNES) -> Iterator[str]:
    """The sentences of quotations and jokes, without who said them."""
    for name in FORTUNE_FILES.split():
        path = folder / name
        if not path.is_file():
            continue
        for entry in re.split(r"^%$", path.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE):
            lines = [line for line in entry.splitlines() if not re.match(r"\s*--", line)]
            yield from filter(None, SENTENCE_END.split(" ".join(" ".join(lines).split())))


def bible_verses(command: str = "bible") -> Iterator[str]:
    """Verses of the King James Bible; those of one sentence or less."""
    printed = subprocess.run(
        [command, "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True
    ).stdout
    for line in printed.splitlines():
        yield re.sub(r"^\S+\s+", "", line)


@dataclass(frozen=True)
class TextSource:
    """Where sentences come from, and how large a share of all utterances they are."""

    name: str
    share: float
    licence: str
    install: str
    is_there: Callable[[], bool]
    read: Callable[[], Iterator[str]]


TEXT_SOURCES = (
    TextSource("wordnet", 0.27, "WordNet 3.0 licence", "apt-get install wordnet-base",
               lambda: (WORDNET / "data.noun").is_file(), wordnet_examples),
    TextSource("fortunes", 0.19, "quotations collected by the BSD fortune program", "apt-get install fortunes",
               lambda: (FORTUNES / "literature").is_file(), fortunes),
    TextSource("bible", 0.06, "public domain", "apt-get install bible-kjv",
               lambda: shutil.which("bible") is not None, bible_verses),
)  # fmt: skip
GRAMMAR_SHARES = {"prompts": 0.20, "commands": 0.08, "facts": 0.10}
WORDS_SHARE = 0.10  # a model that heard sentences alone takes "yankee" for the end of one
JOINED_SHARE = 0.4  # of the sentences of a text source that are followed by another of it, for longer clips


def require_text_sources() -> None:
    """Raises UserError where a text source is not installed: leaving one out would change every clip after it."""
    missing = [source for source in TEXT_SOURCES if not source.is_there()]
    if missing:
        packages = " ".join(source.install.split()[-1] for source in missing)
        names = ", ".join(source.name for source in missing)
        raise UserError(f"no sentences of {names} on this machine; install them: apt-get install {packages}")


@functools.cache
def pools(name: str) -> dict[str, tuple[str, ...]]:
    """Split -> all clean sentences of a text source that lie in it, each once, in the order of the source."""
    (source,) = (source for source in TEXT_SOURCES if source.name == name)
    found: dict[str, dict[str, None]] = {"train": {}, "dev": {}, "test": {}}
    for text in map(clean, source.read()):
        if text:
            found[split_of(text)][text] = None
    return {split: tuple(texts) for split, texts in found.items()}


@functools.cache
def vocabulary() -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The words of all sentences that occur twice at least, and weights: the root of how often, added up."""
    counts = Counter(
        word
        for source in TEXT_SOURCES
        for texts in pools(source.name).values()
        for text in texts
        for word in re.findall(r"\b(?<!')[a-z]+(?:'[a-z]+)?\b", text[0].lower() + text[1:])
    )
    words = tuple(sorted(word for word, count in counts.items() if count > 1))
    return words, tuple(itertools.accumulate(counts[word] ** 0.5 for word in words))


def few_words(rng: random.Random) -> str:
    """One to three words: of the grammar, of the vocabulary, or out of the middle of a sentence."""
    if rng.random() < 0.5:
        return make_sentence("words", rng)
    if rng.random() < 0.6:
        words, weights = vocabulary()
        (text,) = rng.choices(words, cum_weights=weights)
    else:
        sentence = rng.choice(pools(rng.choice(TEXT_SOURCES).name)["train"]).split()
        length = rng.choice((2, 3))
        first = rng.randrange(max(len(sentence) - length, 0) + 1)
        text = " ".join(sentence[first : first + length]).strip(",;:.?!")
    return f"{text[0].upper()}{text[1:]}."


def shares() -> dict[str, float]:
    """Kind of text -> how large a share of all utterances it is."""
    return {**{source.name: source.share for source in TEXT_SOURCES}, **GRAMMAR_SHARES, "words": WORDS_SHARE}


def draw(split: str, rng: random.Random, kinds: Sequence[str]) -> str:
    """One utterance for `split`: a sentence of a source or of the grammar, now and then two in a row."""
    (kind,) = rng.choices(kinds, [shares()[kind] for kind in kinds])
    while kind not in {source.name for source in TEXT_SOURCES}:
        text = few_words(rng) if kind == "words" else make_sentence(kind, rng)
        if split_of(text) == split and len(text) <= LONGEST_CHARACTERS:
            return text
    sentences = pools(kind)[split]
    text = rng.choice(sentences)
    while rng.random() < JOINED_SHARE:
        longer = f"{text} {rng.choice(sentences)}"
        if len(longer) > LONGEST_CHARACTERS:
            break
        text = longer
    return text
