"""Speech of actors with its script, from two adventure games that Debian's main section holds.

Both were given away by their makers, with the right to change and share them. A script says what each recording holds:
no recogniser had a hand in the texts. Formats as ScummVM documents them in the engines `queen` and `drascula`.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from recipes.small.shards import Recording, at_16_khz

QUEEN = Path("/usr/share/scummvm/flight-of-the-amazon-queen/queen.1c")
DRASCULA = Path("/usr/share/scummvm/drascula/en")
GAME_RATE = 11_025  # of both games, in Hz

RESPONSES = 40  # what Joe says to a command that leads nowhere, before what he says of things
VERBS = 12
# In drascula.dat, in this order: the tables of what is said, by the first letters of the recordings' names.
SAID_BY = {"": "john", "d": "drascula", "b": "drunk", "bj": "bj", "e": "undertaker", "i": "igor", "l": "werewolf",
           "p": "pianist", "t": "bartender", "vb": "von braun"}  # fmt: skip
LANGUAGES = 6  # of each table in drascula.dat; the first is English


# Flight of the Amazon Queen -----------------------------------------------------------------------------------


class Bytes:
    """Big-endian fields of one file in a game's archive, read one after another from `place` on."""

    def __init__(self, data: bytes, place: int = 0) -> None:
        self.data, self.place = data, place

    def int16(self, place: int | None = None) -> int:
        if place is not None:
            self.place = place
        self.place += 2
        return struct.unpack_from(">h", self.data, self.place - 2)[0]

    def string(self, align: int = 2) -> str:
        """A byte that holds the length, then the text; the next field begins at a multiple of `align`."""
        start = self.place + 1
        end = start + self.data[self.place]
        self.place = -(-end // align) * align if end > start else start
        return self.data[start:end].decode("latin-1")


def queen(archive: Path = QUEEN) -> Iterator[Recording]:
    """Joe King, who flies the Amazon Queen, and everyone he meets: 4.5 hours, in MP3 at 11 kHz."""
    data = archive.read_bytes()
    files = {}
    for number in range(struct.unpack_from(">H", data, 13)[0]):
        name, offset, size = struct.unpack_from(">12sxII", data, 15 + 21 * number)
        files[name.rstrip(b"\0").decode("ascii")] = data[offset : offset + size]
    said: dict[str, tuple[str, str]] = {}  # name of a recording -> what, by whom
    for name, content in files.items():
        stem, _, kind = name.partition(".")
        if kind == "DOG":
            lines = dialogue(Bytes(content[20:]), stem.lower())
        elif kind == "CUT":
            lines = cutaway(Bytes(content[20:]), stem)
        else:
            continue
        said.update(spoken(lines))
    said.update(spoken(joe(files["QUEEN.JAS"][20:], files["QUEEN2.JAS"])))
    for name, (text, speaker) in sorted(said.items()):
        if not re.search("[a-z]", text):
            continue  # ZZZZ and SQWAWK
        sound = files.get(f"{name}.SB")
        yield Recording(
            name.lower(), None if sound is None else decode(sound), readable(text), f"queen-{speaker}"
        )


def decode(sound: bytes) -> np.ndarray:
    audio, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
    return at_16_khz(audio, rate)


def dialogue(file: Bytes, person: str) -> Iterator[tuple[str, str, str]]:
    """Lines of a .DOG file, a talk between Joe and one person: first letters of the recordings, text, who says it."""
    levels, _, key, joe_lines, person_lines = abs(file.int16(0)), *(file.int16() for _ in range(4))
    person_place, second_place, joe_place = file.int16(22), file.int16(26), 32 + 96 * levels
    for speaker, letter, place, count in (
        ("joe", "J", joe_place, joe_lines),
        (person, "P", person_place, person_lines),
    ):
        file.place = place
        for _ in range(count):
            file.place += 2
            number = file.int16() & 0xFFFF
            yield f"{key:2d}{number:4x}{letter}", file.string(align=4), speaker
    if file.int16(joe_place + 2) == 0:  # what Joe opens with
        yield f"{key:2d}SSSSJ", file.string(), "joe"
    file.place = second_place  # how both begin when they meet again
    yield f"{key:2d}XXXXP", file.string(), person
    yield f"{key:2d}XXXXJ", file.string(), "joe"


def cutaway(file: Bytes, stem: str) -> Iterator[tuple[str, str, str]]:
    """Lines of a .CUT file, a scene; it does not say who speaks."""
    steps = abs(file.int16(2))
    file.place = file.int16(8)
    file.string()
    for step in range(1, steps + 1):
        if file.place < len(file.data):
            yield f"{stem:_<5}{step:02d}", file.string(), f"scene-{stem.lower()}"


def joe(index: bytes, strings: bytes) -> Iterator[tuple[str, str, str]]:
    """What Joe says of things, and to commands that lead nowhere."""
    rooms, names, _, descriptions = struct.unpack_from(">4H", index)
    lines = strings.decode("latin-1").split("\r\n")
    first = descriptions + names + rooms + VERBS
    for number, line in enumerate(lines[first : first + RESPONSES] + lines[:descriptions], 1):
        yield f"JOE{number:04d}", line, "joe"


def spoken(lines: Iterator[tuple[str, str, str]]) -> Iterator[tuple[str, tuple[str, str]]]:
    """A line is cut at its stage directions (*03, *FL, *XY00(237,112)); each piece is a recording."""
    for prefix, line, speaker in lines:
        for number, piece in enumerate(re.split(r"\*XY.{11}|\*..", line), 1):
            if piece.strip():
                yield f"{prefix}{number:x}".replace(" ", "0").upper(), (piece.strip(), speaker)


def readable(text: str) -> str:
    """Without the marks of the game's font, and what is CRIED in small letters."""
    text = re.sub(r"[\^_]", "", text)
    return re.sub(r"\b[A-Z]{2,}('[A-Z]+)?\b|\bI'[A-Z]+", lambda word: small_letters(word, text), text)


def small_letters(word: re.Match[str], text: str) -> str:
    begins = word.start() == 0 or text[: word.start()].rstrip()[-1:] in ".!?" or word[0].startswith("I'")
    return word[0].capitalize() if begins else word[0].lower()


# Drascula: The Vampire Strikes Back ---------------------------------------------------------------------------


def drascula(folder: Path = DRASCULA) -> Iterator[Recording]:
    """John Hacker, Count Drascula and eight others: 0.7 hours, unpacked, in 8 bits at 11 kHz."""
    data = (folder / "drascula.dat").read_bytes()
    place = (
        data.index(b"THAT'S THE SECOND BIGGEST DOOR") - 12
    )  # the first line of the first table, which has a head of 12 bytes
    for letters, speaker in SAID_BY.items():
        (count,) = struct.unpack_from(">H", data, place)
        place += 2
        for language in range(LANGUAGES):
            end = place + 2 + struct.unpack_from(">H", data, place)[0]
            record = place + 4
            for number in range(count):
                (size,) = struct.unpack_from(">H", data, record)
                text = data[record + 2 : record + size].split(b"\0")[0].decode("latin-1")
                record += size
                if language == 0 and text:
                    yield Recording(
                        f"{letters}{number}",
                        unpacked(folder / f"{letters.upper()}{number}.ALS"),
                        as_sentences(text),
                        f"drascula-{speaker}",
                    )
            place = end


def as_sentences(text: str) -> str:
    """The script is all in capitals."""
    text = re.sub(r"\bi\b", "I", text.lower())
    return re.sub(r"(^|[.!?] +)([a-z])", lambda start: start[1] + start[2].upper(), text)


def unpacked(path: Path) -> np.ndarray | None:
    """Unsigned samples of 8 bits. None without such a file."""
    if not path.is_file():
        return None
    return at_16_khz((np.frombuffer(path.read_bytes(), np.uint8).astype(np.float32) - 128) / 128, GAME_RATE)
