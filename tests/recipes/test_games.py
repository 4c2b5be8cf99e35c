"""What actors say in three games: archives as the games have them, written here, are read back."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.small import games

TONE = (0.4 * np.sin(np.arange(11_025) * 0.3)).astype(np.float32)  # one second


def mp3() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, TONE, 11_025, format="MP3")
    return buffer.getvalue()


def string(text: str, align: int, place: int) -> bytes:
    """As at `place` of a file; the next field begins at a multiple of `align`."""
    packed = bytes([len(text)]) + text.encode("latin-1")
    return packed + bytes(-(place + len(packed)) % align)


def queen_archive(files: dict[str, bytes]) -> bytes:
    head, body = b"QTBLCEM10\0\0\0\1" + struct.pack(">H", len(files)), b""
    start = len(head) + 21 * len(files)
    for name, content in files.items():
        head += struct.pack(">12sBII", name.encode(), 1, start + len(body), len(content))
        body += content
    return head + body


def dialogue(
    key: int, joe: dict[int, str], person: dict[int, str], opening: str, again: tuple[str, str]
) -> bytes:
    """A .DOG file of one level; what both say when they meet again comes last."""
    body = bytearray(32 + 96)
    for number, lines in enumerate((joe, person)):
        if number == 1:
            struct.pack_into(">h", body, 22, len(body))
        for index, (head, text) in enumerate(lines.items()):
            # Joe's first line is his opening: no number of its own, and the field before its text is zero.
            body += struct.pack(">hH", 0, head)
            body += string(opening if number == 0 and index == 0 and opening else text, 4, len(body))
    struct.pack_into(">h", body, 26, len(body))
    for text in again:
        body += string(text, 2, len(body))
    struct.pack_into(">5h", body, 0, 1, 0, key, len(joe), len(person))
    return bytes(20) + bytes(body)


def scene(steps: list[str]) -> bytes:
    """A .CUT file; its first string says where Joe looks."""
    body = bytearray(12)
    struct.pack_into(">6h", body, 0, 0, len(steps), 0, 0, 12, 0)
    for text in ["*FR", *steps]:
        body += string(text, 2, len(body)) if text else b"\0"
    return bytes(20) + bytes(body)


def test_lines_of_the_amazon_queen_find_their_recordings(tmp_path: Path) -> None:
    # Rooms, names, objects and descriptions are counted in QUEEN.JAS; Joe's answers come behind twelve verbs.
    strings = [
        "A skull.*03",
        "A plane.",
        *["name"] * 3,
        "room",
        *["verb"] * 12,
        "I can't do THAT.*24",
        *["no"] * 39,
    ]
    files = {
        "BOB1.DOG": dialogue(
            2,
            {0: "", 0x1F: "Who are YOU?*03I'M Joe.*02"},
            {0x20: "Bob.*XY00(237,112)The trader^_."},
            "Hi, Bob!*03",
            ("You?", "Me."),
        ),
        "C1A.CUT": scene(["", "It CAN'T be.", "SQWAWK!*03Stop, I say. STOP!"]),
        "QUEEN.JAS": bytes(20) + struct.pack(">4H", 1, 3, 0, 2),
        "QUEEN2.JAS": "\r\n".join(strings).encode(),
    }  # fmt: skip
    recorded = [
        "02001FJ1",
        "02001FJ2",
        "020020P1",
        "020020P2",
        "02SSSSJ1",
        "02XXXXP1",
        "C1A__021",
        "C1A__032",
        "JOE00011",
        "JOE00421",
    ]
    archive = tmp_path / "queen.1c"
    archive.write_bytes(queen_archive(files | {f"{name}.SB": mp3() for name in recorded}))
    lines = {line.name: line for line in games.queen(archive)}
    heard = {name: (line.text, line.speaker) for name, line in lines.items() if line.audio is not None}
    assert heard == {
        "02001fj1": ("Who are you?", "joe"),
        "02001fj2": ("I'm Joe.", "joe"),
        "020020p1": ("Bob.", "bob"),
        "020020p2": ("The trader.", "bob"),
        "02ssssj1": ("Hi, Bob!", "joe"),
        "02xxxxp1": ("You?", "bob"),
        "c1a__021": ("It can't be.", None),
        "c1a__032": ("Stop, I say. Stop!", None),
        "joe00011": ("I can't do that.", "joe"),
        "joe00421": ("A plane.", "joe"),
    }
    assert lines["02xxxxj1"].audio is None  # a line that nobody recorded
    assert lines["c1a__031"].text == ""  # a cry
    assert len(lines["joe00011"].audio) == pytest.approx(16_000, abs=2_000)


class Packer:
    """Bits in words of 16, the lowest first, each word where its first bit was needed; bytes between them."""

    def __init__(self) -> None:
        self.out, self.word, self.used = bytearray(), 0, 16

    def bits(self, value: int, count: int) -> None:
        for place in range(count):
            if self.used == 16:
                self.word, self.used = len(self.out), 0
                self.out += bytes(2)
            self.out[self.word + self.used // 8] |= (value >> place & 1) << self.used % 8
            self.used += 1

    def number(self, value: int, codes: dict[int, str]) -> None:
        symbol = value.bit_length()
        for bit in codes[symbol]:
            self.bits(int(bit), 1)
        if symbol > 1:
            self.bits(value - (1 << symbol - 1), symbol - 1)


def pack(runs: list[tuple[bytes, int, int]]) -> bytes:
    """(bytes, distance back, length of the copy); the last one copies nothing."""
    packer = Packer()
    packer.bits(0, 2)
    # Numbers of 0 to 3 bits by codes of one to three bits: 0, 10, 110, 111 from the highest bit on.
    codes = {0: "0", 1: "10", 2: "110", 3: "111"}
    for _ in range(3):
        packer.bits(4, 5)
        for length in (1, 2, 3, 3):
            packer.bits(length, 4)
    packer.bits(len(runs), 16)
    size = 0
    for left, (literal, distance, length) in zip(range(len(runs), 0, -1), runs, strict=True):
        packer.number(len(literal), codes)
        packer.out += literal
        size += len(literal)
        if left > 1:
            packer.number(distance - 1, codes)
            packer.number(length - 2, codes)
            size += length
    return b"RNC\1" + struct.pack(">IIHHBB", size, len(packer.out), 0, 0, 0, 1) + bytes(packer.out)


RUNS = [(b"abc", 3, 7), (b"", 1, 2), (b"xy", 8, 9), (b"end", 0, 0)]


def test_what_was_packed_is_unpacked() -> None:
    assert games.unpack(pack(RUNS)) == b"abcabcabcaaaxyabcaaaxyaend"
    assert games.unpack(b"as it is") == b"as it is"


def test_a_damaged_recording_is_named() -> None:
    packed = bytearray(pack(RUNS))
    packed[7] += 1  # one byte more than there are
    with pytest.raises(ValueError, match="damaged"):
        games.unpack(bytes(packed))


def test_the_code_of_sky_is_the_one_of_its_makers() -> None:
    """As far as it can be told by hand: short codes for common letters, and the whole of the tree is used."""
    for bits, character in {"000": " ", "0010": "e", "0011": "a", "01010": "t", "0111": "r"}.items():
        assert games.SKY_CODES[bits] == character
    assert sum(2.0 ** -len(bits) for bits in games.SKY_CODES) == 1.0


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("I'M not JOE KING!", "I'm not Joe King!"),
        ("NOT the LINC's card, my ID card.", "Not the LINC's card, my ID card."),
        ("HA HA HA!", ""),
        ("TWO DAYS?!", "Two days?!"),
        ("It is I.", "It is I."),
    ],
)
def test_cries_are_in_small_letters_and_names_are_not(written: str, wanted: str) -> None:
    others = ["My name is Joe. They say Joe flies.", "So King it is, and not a not.", "two days"]
    assert games.readable([written, *others])[0] == wanted


def sky_texts(texts: list[str]) -> bytes:
    """A file of texts: lengths of the blocks of 32, lengths of all texts, the texts."""
    codes = {character: code for code, character in games.SKY_CODES.items()}
    packed = []
    for text in texts:
        bits = "".join(codes[character] for character in text + "\0")
        bits += "0" * (
            -len(bits) % (16 if len(bits) > 254 else 2)
        )  # longer ones are counted in eights of pairs
        packed.append(bits)
    pairs = [len(bits) // 2 for bits in packed]
    blocks = b"".join(struct.pack("<H", sum(pairs[start : start + 32])) for start in range(0, len(pairs), 32))
    lengths = bytes(count if count < 128 else 0x80 | count // 8 for count in pairs)
    body = "".join(packed)
    content = int(body + "0" * (-len(body) % 8), 2).to_bytes(-(-len(body) // 8), "big")
    return struct.pack("<HH", 4 + len(blocks), 4 + len(blocks) + len(lengths)) + blocks + lengths + content


def test_lines_under_a_steel_sky_find_their_recordings(tmp_path: Path) -> None:
    texts = [f"Number {number}." for number in range(70)]
    texts[3], texts[40] = "It's TOO late to talk about this. " * 6, "What is THAT, Joey?"
    files = {games.SKY_TEXTS + section: sky_texts(texts) for section in range(7)}
    head = bytes(22)
    files |= {50_003: head + pack(RUNS), 50_040: head + bytes([128, 255, 0] * 100), 51_169: head + bytes(40)}
    disk, index = bytearray(16), struct.pack("<I", len(files))
    for number, content in files.items():
        disk += bytes(-len(disk) % 16)
        index += (
            struct.pack("<H", number)
            + (len(disk) // 16 | 0x800000).to_bytes(3, "little")
            + len(content).to_bytes(3, "little")
        )
        disk += content
    (tmp_path / "sky.dsk").write_bytes(disk)
    (tmp_path / "sky.dnr").write_bytes(index)
    lines = list(games.sky(tmp_path))
    assert [(line.name, line.text) for line in lines] == [
        ("50003", " ".join(["It's too late to talk about this."] * 6)),
        ("50040", "What is that, Joey?"),
        ("51169", "Number 69."),
    ]
    assert np.abs(lines[1].audio).max() > 0.3 and len(lines[1].audio) == pytest.approx(
        300 * 16_000 / 11_025, abs=1
    )


def test_lines_of_drascula_find_their_recordings(tmp_path: Path) -> None:
    def table(lines: list[str]) -> bytes:
        out = struct.pack(">H", len(lines))
        for language in range(6):
            records = b""
            for line in lines:
                text = (line if language == 0 else "otro").encode() + b"\0"
                text += bytes(len(text) % 2)
                records += struct.pack(">H", len(text) + 2) + text
            out += struct.pack(">HH", len(records) + 2, 0) + records
        return out

    first = table(["", "THAT'S THE SECOND BIGGEST DOOR I'VE SEEN IN MY LIFE", "NOBODY SAYS THIS"])
    count = table(["", *(f"LINE {number}. AM I HERE?" for number in range(1, 84))])
    tables = [table(["", f"TABLE {number}"]) for number in range(3, 11)]
    (tmp_path / "drascula.dat").write_bytes(b"DRASCULA" + first + count + b"".join(tables))
    for name in ("1", "D1", "D57", "D68", "D82", "B1", "BJ1", "E1", "I1", "L1", "P1", "T1", "VB1"):
        (tmp_path / f"{name}.ALS").write_bytes(bytes([128, 200, 50] * 4_000))
    lines = {line.name: line for line in games.drascula(tmp_path)}
    assert {name: (line.text, line.speaker) for name, line in lines.items() if line.audio is not None} == {
        "1": ("That's the second biggest door I've seen in my life", "john"),
        "d1": ("Line 1. Am I here?", "drascula"),
        "d57": ("Line 57. Am I here?", "john"),
        "d68": ("Line 68. Am I here?", "blind man"),
        "d82": ("Line 82. Am I here?", "bartender"),
        "b1": ("Table 3", "drunk"),
        "bj1": ("Table 4", "bj"),
        "e1": ("Table 5", "undertaker"),
        "i1": ("Table 6", "igor"),
        "l1": ("Table 7", "werewolf"),
        "p1": ("Table 8", "pianist"),
        "t1": ("Table 9", "bartender"),
        "vb1": ("Table 10", "von braun"),
    }
    assert lines["2"].audio is None


INSTALLED = {
    "queen": (games.QUEEN, games.queen, "joe00011", "joe"),
    "sky": (games.SKY, games.sky, "50011", None),
    "drascula": (games.DRASCULA, games.drascula, "d1", "drascula"),
}


@pytest.mark.parametrize("game", INSTALLED)
def test_a_game_of_debian_is_read(game: str) -> None:
    path, read, name, speaker = INSTALLED[game]
    if not path.exists():
        pytest.skip("this game is not installed")
    line = next(line for line in read(path) if line.name == name)
    assert line.speaker == speaker and re.fullmatch(r"[A-Z][a-z' ]+.*", line.text)
    assert 0.02 < len(line.audio) / 16_000 / len(line.text) < 0.3
