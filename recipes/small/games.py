"""Speech of actors with its script, from three adventure games that Debian's main section holds.

A script says what each recording holds: no recogniser had a hand in the texts. Their makers gave the games away: each
package's /usr/share/doc/PACKAGE/copyright lets you change and share them, for free, with that text beside them. What is
known of their formats comes from the engines `queen`, `sky` and `drascula` of ScummVM; no code does.
"""

from __future__ import annotations

import io
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from recipes.small.shards import Line, at_16_khz
from tiny_audio.hub.asr_audio import load_audio

T = TypeVar("T")

QUEEN = Path("/usr/share/scummvm/flight-of-the-amazon-queen/queen.1c")
SKY = Path("/usr/share/scummvm/beneath-a-steel-sky")
DRASCULA = Path("/usr/share/scummvm/drascula/en")
# In the scripts of the first two.
ABBREVIATIONS = {"LINC", "ID", "TV", "HQ", "VHS", "SOS", "FX", "ASCII", "WD"}
GAME_RATE = 11_025  # of the two that are not in MP3, in Hz

RESPONSES = 40  # what Joe says to a command that leads nowhere, before what he says of things
VERBS = 12
# Texts of sky.dsk lie in eight files, from this one on; the recordings of a file's texts from 50,000 and these on.
SKY_TEXTS, SKY_SPEECH = 60_600, 50_000
SKY_RECORDINGS = (0, 600, 1_100, 2_430, 3_380, 4_530, 5_080, 5_230, 5_300)
SKY_HEAD = 22  # bytes before the samples of a recording
# Their Huffman code: the characters in the order of their codes, which count upwards, and how many bits each has.
SKY_CHARACTERS = (
    " eaostn.ir\0EumAlIdRNSTOhcDgLCpU!yMPvH?b'f,GBVkFqwK-WJ*zYj+Q\x85)Z\x8b<\x95~\x8a\x87:\x7f]#xX\x91\x88`20\x831"
    '/(=\x86^39\x984}8\\"\x90&\x8d56\x92\x8f\x8e\x93\x8c7\x80\x81\x99$@[\x9a_>\x96\x82%\t\x9c\x97{\x94!'
)
SKY_BITS = (  # each a digit in base 36
    "3445555554665556666665776667777776887778877799888998889999aa9aa9bbaaabbabbaccbccbccbbbccccddcccddddd"
    "dddeedeeeeffeeeffefffgg"
)
# In drascula.dat, in this order: the tables of what is said, by the first letters of the recordings' names.
SAID_BY = {"": "john", "d": "drascula", "b": "drunk", "bj": "bj", "e": "undertaker", "i": "igor", "l": "werewolf",
           "p": "pianist", "t": "bartender", "vb": "von braun"}  # fmt: skip
# The count's table has lines of others, too.
GUESTS = dict.fromkeys(range(56, 68), "john") | dict.fromkeys(range(68, 82), "blind man")
GUESTS |= {82: "bartender", 83: "trunk"}
FIRST_LINE = b"THAT'S THE SECOND BIGGEST DOOR"
LANGUAGES = 6  # of each table in drascula.dat; the first is English


# Flight of the Amazon Queen -----------------------------------------------------------------------------------


class Bytes:
    """Big-endian fields of one file in a game's archive, read one after another from `place` on."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

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


def queen(archive: Path = QUEEN) -> Iterator[Line]:
    """Joe King, who flies the Amazon Queen, and everyone he meets: 4.5 hours, in MP3 at 11 kHz."""
    data = archive.read_bytes()
    files = {}
    for number in range(struct.unpack_from(">H", data, 13)[0]):
        name, offset, size = struct.unpack_from(">12sxII", data, 15 + 21 * number)
        files[name.rstrip(b"\0").decode("ascii")] = data[offset : offset + size]
    said: dict[str, tuple[str, str | None]] = {}  # name of a recording -> what, by whom
    for name, content in files.items():
        stem, _, kind = name.partition(".")
        if kind == "DOG":
            said.update(spoken(dialogue(Bytes(content[20:]), stem.lower().rstrip("0123456789"))))
        elif kind == "CUT":
            said.update(spoken(cutaway(Bytes(content[20:]), stem)))
    said.update(spoken(joe(files["QUEEN.JAS"][20:], files["QUEEN2.JAS"])))
    texts = readable([text for text, _ in said.values()])
    for text, (name, (_, speaker)) in zip(texts, said.items(), strict=True):
        sound = files.get(f"{name}.SB")
        yield Line(name.lower(), None if sound is None else load_audio(io.BytesIO(sound)), text, speaker)


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


def cutaway(file: Bytes, stem: str) -> Iterator[tuple[str, str, None]]:
    """Lines of a .CUT file, a scene; it does not say who speaks."""
    steps = abs(file.int16(2))
    file.place = file.int16(8)
    file.string()
    for step in range(1, steps + 1):
        if file.place < len(file.data):
            yield f"{stem:_<5}{step:02d}", file.string(), None


def joe(index: bytes, strings: bytes) -> Iterator[tuple[str, str, str]]:
    """What Joe says of things, and to commands that lead nowhere."""
    rooms, names, _, descriptions = struct.unpack_from(">4H", index)
    lines = strings.decode("latin-1").split("\r\n")
    first = descriptions + names + rooms + VERBS
    for number, line in enumerate(lines[first : first + RESPONSES] + lines[:descriptions], 1):
        yield f"JOE{number:04d}", line, "joe"


def spoken(lines: Iterable[tuple[str, str, str | None]]) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """A line is cut at its stage directions (*03, *FL, *XY00(237,112)); each piece is a recording."""
    for prefix, line, speaker in lines:
        for number, piece in enumerate(re.split(r"\*XY.{11}|\*..", line), 1):
            if piece.strip():
                yield f"{prefix}{number:x}".replace(" ", "0").upper(), (piece, speaker)


def readable(texts: Sequence[str]) -> list[str]:
    """Without the marks of a game's font, and what is CRIED in small letters, but for names and abbreviations.

    A name is what these texts write with one capital, in the middle of a sentence, more often than without. A cry that
    is no word (SQWAWK) becomes an empty text.
    """
    texts = [" ".join(re.sub(r"[\^_]", "", text).split()) for text in texts]
    capitals: Counter[str] = Counter()
    for text in texts:
        for word in re.finditer(r"[A-Za-z]+", text):
            if word[0].islower():
                capitals[word[0]] -= 1
            elif word[0].istitle() and not begins_sentence(word):
                capitals[word[0].lower()] += 1

    def in_small_letters(word: re.Match[str]) -> str:
        if word[1] in ABBREVIATIONS:
            return word[1] + (word[2] or "").lower()
        if word[1] == "I" or begins_sentence(word) or capitals[word[1].lower()] > 0:
            return word[0].capitalize()
        return word[0].lower()

    # One word, or that word again and again.
    cry = re.compile(r"[^A-Za-z]*\b([A-Z]+)\b([^A-Za-z]+\1\b)*[^A-Za-z]*")
    cried = re.compile(r"\b([A-Z]{2,}|I(?='))('[A-Z]+)?\b")
    return ["" if cry.fullmatch(text) else cried.sub(in_small_letters, text) for text in texts]


def begins_sentence(word: re.Match[str]) -> bool:
    before = word.string[: word.start()].rstrip(" \"'")
    return not before or before[-1] in ".!?"


# Beneath a Steel Sky ------------------------------------------------------------------------------------------


def sky(folder: Path = SKY) -> Iterator[Line]:
    """Robert Foster, the robot Joey and the people of Union City: 1.9 hours, packed, in 8 bits at 11 kHz.

    The script does not say who speaks. Unpacking takes a minute.
    """
    disk, index = (folder / "sky.dsk").read_bytes(), (folder / "sky.dnr").read_bytes()
    files = {}
    for entry in range(4, 4 + 8 * struct.unpack_from("<I", index)[0], 8):
        place, size = (int.from_bytes(index[entry + start : entry + start + 3], "little") for start in (2, 5))
        place = place * 16 & 0x7FFFFF0 if place & 0x800000 else place
        end = place + (size & 0x3FFFFF)
        if end > len(disk):
            raise ValueError(f"sky.dsk ends at {len(disk):,} bytes, within a file")
        files[struct.unpack_from("<H", index, entry)[0]] = disk[place:end]
    numbers, texts = [], []
    for section, (first, end) in enumerate(pairwise(SKY_RECORDINGS)):
        for number in range(first, end):
            if SKY_SPEECH + number in files:
                numbers.append(SKY_SPEECH + number)
                texts.append(sky_text(files[SKY_TEXTS + section], number - first))
    for number, text in zip(numbers, readable(texts), strict=True):
        yield Line(str(number), samples(unpack(files[number][SKY_HEAD:])), text, None)


def sky_text(file: bytes, number: int) -> str:
    """Text `number` of a file. Where it begins, in pairs of bits, is the sum of all lengths before it: of blocks of 32
    texts, which come first in the file, and of the texts of its own block."""
    block, within = divmod(number, 32)
    lengths, texts = struct.unpack_from("<HH", file)
    pairs = 4 * texts + sum(struct.unpack_from(f"<{block}H", file, 4))
    for length in file[lengths + 32 * block : lengths + 32 * block + within]:
        pairs += (length & 0x7F) << 3 if length & 0x80 else length
    bits = "".join(f"{byte:08b}" for byte in file[pairs // 4 : pairs // 4 + 512])
    place, text = 2 * (pairs % 4), ""
    while not text.endswith("\0"):
        length = next((length for length in range(3, 17) if bits[place : place + length] in SKY_CODES), 0)
        if not length:
            raise ValueError(f"text {number} of sky.dsk has no end")
        text += SKY_CODES[bits[place : place + length]]
        place += length
    return text[:-1]


def prefix_code(symbols: Iterable[tuple[T, int]]) -> dict[str, T]:
    """(symbol, bits of its code) in the order of the codes -> code -> symbol. Each code is the one before it plus one,
    made longer or shorter."""
    codes, value, last = {}, 0, 0
    for symbol, length in symbols:
        value = value << length >> last
        codes[f"{value:0{length}b}"] = symbol
        value, last = value + 1, length
    return codes


SKY_CODES = prefix_code(zip(SKY_CHARACTERS, (int(digit, 36) for digit in SKY_BITS), strict=True))


def unpack(packed: bytes) -> bytes:
    """Bytes as Rob Northen's ProPack leaves them (method 1: runs of bytes, and copies of what came before)."""
    if packed[:4] != b"RNC\1":
        return packed
    size, chunks = int.from_bytes(packed[4:8], "big"), packed[17]
    stream, out = PackedBits(packed, 18), bytearray()
    stream.read(2)
    for _ in range(chunks):
        runs, distances, lengths = (stream.read_codes() for _ in range(3))
        for left in range(stream.read(16), 0, -1):
            out += stream.read_bytes(stream.read_number(runs))
            if left > 1:
                distance, length = stream.read_number(distances) + 1, stream.read_number(lengths) + 2
                start = len(out) - distance
                if start < 0 or len(out) + length > size:
                    raise ValueError("a packed recording is damaged")
                for place in range(start, start + length):  # what is copied may be what has just been copied
                    out.append(out[place])
    if len(out) != size:
        raise ValueError("a packed recording is damaged")
    return bytes(out)


class PackedBits:
    """Words of 16 bits, the lowest bit first, with bytes between them."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place = data + bytes(4), place
        self.bits = self.count = 0  # what is left of the last word

    def peek(self) -> int:
        """What is left of the last word and, above it, the next one: 16 bits at least."""
        return self.bits | int.from_bytes(self.data[self.place : self.place + 2], "little") << self.count

    def read(self, count: int) -> int:
        if count > self.count:
            self.bits = self.peek()
            self.place += 2
            self.count += 16
        value = self.bits & ((1 << count) - 1)
        self.bits >>= count
        self.count -= count
        return value

    def read_bytes(self, count: int) -> bytes:
        self.place += count
        return self.data[self.place - count : self.place]

    def read_codes(self) -> dict[tuple[int, int], int]:
        """(length, code) -> bits of a number. The codes count upwards, the shortest first, highest bit first."""
        lengths = [self.read(4) for _ in range(self.read(5))]
        used = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
        codes = prefix_code((symbol, length) for length, symbol in used)
        return {(len(code), int(code[::-1], 2)): symbol for code, symbol in codes.items()}

    def read_number(self, codes: dict[tuple[int, int], int]) -> int:
        coming = self.peek()
        for length in range(1, 17):
            symbol = codes.get((length, coming & ((1 << length) - 1)))
            if symbol is not None:
                self.read(length)
                return symbol if symbol < 2 else 1 << (symbol - 1) | self.read(symbol - 1)
        raise ValueError("a packed recording is damaged")


# Drascula: The Vampire Strikes Back ---------------------------------------------------------------------------


def drascula(folder: Path = DRASCULA) -> Iterator[Line]:
    """John Hacker, Count Drascula and eleven others: 0.8 hours, unpacked, in 8 bits at 11 kHz."""
    data = (folder / "drascula.dat").read_bytes()
    # Before it: count, length, two bytes, line 0, which is empty, and this one's size.
    place = data.index(FIRST_LINE) - 12
    for letters, person in SAID_BY.items():
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
                    sound = folder / f"{letters.upper()}{number}.ALS"
                    audio = samples(sound.read_bytes()) if sound.is_file() else None
                    speaker = GUESTS.get(number, person) if letters == "d" else person
                    yield Line(f"{letters}{number}", audio, as_sentences(text), speaker)
            place = end


def as_sentences(text: str) -> str:
    """The script is all in capitals."""
    text = re.sub(r"\bi\b", "I", text.lower())
    return re.sub(r"(^|[.!?] +)([a-z])", lambda start: start[1] + start[2].upper(), text)


def samples(unsigned: bytes) -> np.ndarray:
    return at_16_khz((np.frombuffer(unsigned, np.uint8).astype(np.float32) - 128) / 128, GAME_RATE)
