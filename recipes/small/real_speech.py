"""Recordings of people that packages hold together with what is said in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import shutil
import struct
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.small.games import DRASCULA, QUEEN, SKY, drascula, queen, sky
from recipes.small.sentences import split_of
from recipes.small.shards import SAMPLING_RATE, Line, make_row, out_of_pace, write_shard
from tiny_audio.errors import UserError, first_line
from tiny_audio.hub.asr_audio import load_audio

PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
PROMPT_TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
STAMPS = Path("/usr/share/tuxpaint/stamps")
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
READERS = Path("speechbrain-1.0.1.tar.gz")  # source of a Python package, in the folder where this is run
READERS_SHA256 = "521202e32ba05ceb69db2908928b8eafdabd8c4674525d2734333d1c29f1ca70"
READERS_FOLDER = "speechbrain-1.0.1/tests/samples"
# Written down anew: the list there has other words than are said ("ken pairs"), and some clips under another's name.
READ_SENTENCES = {
    "ASR/spk1_snt1": "The child almost hurt the small dog.",
    "ASR/spk1_snt2": "Drop the two when you add the figures.",
    "ASR/spk1_snt3": "At that high level the air is pure.",
    "ASR/spk1_snt4": "A thin stripe runs down the middle.",
    "ASR/spk1_snt5": "Sunday is the best part of the week.",
    "ASR/spk1_snt6": "The pencils have all been used.",
    "ASR/spk2_snt1": "We are sure that one war is enough.",
    "ASR/spk2_snt2": "What joy there is in living.",
    "ASR/spk2_snt3": "Tear a thin sheet from the yellow pad.",
    "ASR/spk2_snt4": "Mend the coat before you go out.",
    "ASR/spk2_snt5": "Jump the fence and hurry up the bank.",
    "ASR/spk2_snt6": "Canned pears lack full flavor.",
    "TTS/LJ050-0131": "Unless a system is established for the frequent formal review of activities thereunder. "
    "In this regard,",
}


def line_of(path: Path, text: str, speaker: str | None) -> Line:
    return Line(path.stem, load(path) if path.is_file() else None, text, speaker)


def load(path: Path) -> np.ndarray:
    """float32 (samples,) at 16 kHz. G.722, which libsndfile does not read, by ffmpeg."""
    if path.suffix == ".g722":
        given, wanted = ["-f", "g722", "-i", str(path)], ["-f", "f32le", "-ac", "1", "-ar", "16000", "-"]
        done = subprocess.run(["ffmpeg", "-v", "error", *given, *wanted], check=True, capture_output=True)
        return np.frombuffer(done.stdout, np.float32)
    return load_audio(path)


def prompts() -> Iterator[Line]:
    """The prompts of the telephone exchange Asterisk, spoken by Allison Smith."""
    for line in gzip.decompress(PROMPT_TEXTS.read_bytes()).decode("utf-8").splitlines():
        name, colon, text = line.partition(": ")
        text = " ".join(re.sub(r"\[[^]]*\]|\([^)]*\)|<[^>]*>", "", text).split())  # tones, silence, notes
        if colon and text and not name.startswith(";"):
            yield line_of(PROMPTS / f"{name}.g722", text, "allison")


def stamps() -> Iterator[Line]:
    """What the pictures of Tux Paint show, said by several people who are not named."""
    for path in sorted(STAMPS.rglob("*_desc.ogg")):
        text = path.with_name(path.name.replace("_desc.ogg", ".txt"))
        if text.is_file():
            yield line_of(path, text.read_text(encoding="utf-8").splitlines()[0].strip(), None)


def librivox() -> Iterator[Line]:
    """Sentences of "Sense and Sensibility" as a volunteer of LibriVox read them."""
    for line in (LIBRIVOX / "transcription").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"<s> (.*) </s> \((\S+)\)", line.strip())
        if match:
            yield line_of(LIBRIVOX / f"{match[2]}.wav", match[1].strip(), "librivox")


def readers() -> Iterator[Line]:
    """Sentences that three people read, two of them Harvard's (IEEE, 1969): samples that SpeechBrain is tested with."""
    content = READERS.read_bytes()
    if hashlib.sha256(content).hexdigest() != READERS_SHA256:
        raise ValueError(f"{READERS} is not the file that PyPI holds")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for name, text in READ_SENTENCES.items():
            file = archive.extractfile(f"{READERS_FOLDER}/{name}.wav")
            assert file is not None, name
            clip = Path(name).name
            yield Line(clip, load_audio(file.read()), text, re.split("[-_]", clip)[0])


APT, PIP = "apt-get install", "pip download --no-deps --no-binary speechbrain"


@dataclass(frozen=True)
class Collection:
    """One package of recordings. `judge_only`: few and precious, so never trained on."""

    name: str
    licence: str
    install: str
    is_there: Callable[[], bool]
    read: Callable[[], Iterator[Line]]
    judge_only: bool = False
    installer: str = APT


COLLECTIONS = (
    Collection("prompts", "CC BY-SA 3.0, Allison Smith",
               "asterisk-core-sounds-en asterisk-core-sounds-en-g722 ffmpeg",
               lambda: PROMPT_TEXTS.is_file() and PROMPTS.is_dir() and shutil.which("ffmpeg") is not None, prompts),
    Collection("stamps", "GPL-2.0, Tux Paint", "tuxpaint-stamps-default", STAMPS.is_dir, stamps),
    Collection("queen", "free of charge, J. Passfield and S. Stamatiadis", "flight-of-the-amazon-queen",
               QUEEN.is_file, queen),
    Collection("sky", "free of charge, Revolution Software", "beneath-a-steel-sky", SKY.is_dir, sky),
    Collection("librivox", "public domain, LibriVox", "pocketsphinx-testdata", LIBRIVOX.is_dir, librivox, True),
    Collection("drascula", "free of charge, Alcachofa Soft", "drascula", DRASCULA.is_dir, drascula, True),
    Collection("readers", "Apache-2.0, SpeechBrain; public domain, LJ Speech", "speechbrain==1.0.1",
               lambda: READERS.is_file(), readers, True, PIP),
)  # fmt: skip


DAMAGED = (LookupError, ValueError, RuntimeError, struct.error)  # what reading a damaged package comes to


def make_real(out: Path) -> str:
    """Writes OUT/real/NAME/{train,test} and, of what is only for judging, OUT/judge/NAME; a table of what was written.

    Raises:
        UserError: names the packages that are not installed.
    """
    missing = [collection for collection in COLLECTIONS if not collection.is_there()]
    if missing:
        names = ", ".join(collection.name for collection in missing)
        commands = [
            f"{installer} {' '.join(one.install for one in missing if one.installer == installer)}"
            for installer in dict.fromkeys(one.installer for one in missing)
        ]
        raise UserError(f"no recordings of {names} on this machine; get them: {' && '.join(commands)}")
    table = [f"{'folder':<22} {'clips':>5} {'minutes':>7}  licence"]
    for collection in COLLECTIONS:
        try:
            rows, dropped = sort(collection)
        except DAMAGED as error:
            anew = " --reinstall" if collection.installer == APT else ""
            raise UserError(
                f"{collection.name} cannot be read ({first_line(error)}); get it anew: "
                f"{collection.installer}{anew} {collection.install}"
            ) from error
        for folder, members in sorted(rows.items()):
            write_shard(out / folder / f"{collection.name}.parquet", members, dropped)
            minutes = sum(row["seconds"] for row in members) / 60
            table.append(f"{folder:<22} {len(members):5} {minutes:7.1f}  {collection.licence}")
        table += [f"{collection.name}: {count} left out, {reason}" for reason, count in dropped.items()]
    return "\n".join(table)


def sort(collection: Collection) -> tuple[dict[str, list[dict]], Counter[str]]:
    """Its rows by folder, and why lines were left out -> how often."""
    rows: dict[str, list[dict]] = {}
    dropped: Counter[str] = Counter()
    for line in collection.read():
        if line.audio is None or not line.text:
            dropped["without a recording" if line.audio is None else "without words"] += 1
            continue
        reason = out_of_pace(len(line.audio) / SAMPLING_RATE, len(line.text))
        if reason:
            dropped[reason] += 1
            continue
        # A transcript lies on one side, whichever recordings have it; dev is too small to be of use here.
        side = "test" if split_of(line.text) != "train" else "train"
        folder = f"judge/{collection.name}" if collection.judge_only else f"real/{collection.name}/{side}"
        members = rows.setdefault(folder, [])
        identity = f"{collection.name}-{line.name}-{len(members):03d}"
        members.append(make_row(identity, line.audio, line.text, line.speaker, collection.name))
    return rows, dropped
