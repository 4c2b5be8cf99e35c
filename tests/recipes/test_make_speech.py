"""Making speech: the plan, what becomes of a clip, and whole runs with a synthesiser of tones and with espeak-ng."""

from __future__ import annotations

import functools
import hashlib
import io
import random
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile

from recipes.small import games, make_speech, real_speech, sentences, shards, synthesizers
from recipes.small.make_speech import Shard
from tiny_audio.corpus.engines import espeak_library
from tiny_audio.corpus.voices import Voice
from tiny_audio.data.sources import open_source
from tiny_audio.errors import UserError

RATE = shards.SAMPLING_RATE


def load_tones(seed: int):
    """A synthesiser that gives each character 60 ms of a tone; the pitch is the voice's. It draws noise of its own."""
    noise = np.random.default_rng(seed)

    def speak(text: str, voice: Voice, rng: random.Random) -> tuple[np.ndarray, int]:
        time = np.arange(int(0.06 * len(text) * 24_000)) / 24_000
        tone = 0.1 * np.sin(2 * np.pi * float(voice.name) * time) + 0.001 * noise.standard_normal(len(time))
        return tone.astype(np.float32), 24_000

    return speak


@pytest.fixture
def tones(monkeypatch):
    """`tones` as the only engine, with two voices in training and one in each other split, and short fixed parts."""
    engine = synthesizers.Engine("tones", 1.0, 100, "none", "apt-get install tones", lambda: True, load_tones)
    names = {"train": ("200", "300"), "dev": ("400",), "test": ("500",), "newvoice": ("600",)}
    voices = tuple(
        Voice(f"tones-{name}", f"tone {name}", "tones", name, split, 1.0)
        for split, members in names.items()
        for name in members
    )
    animals = (
        "dogs",
        "cats",
        "birds",
        "mice",
        "cows",
        "pigs",
        "ants",
        "bees",
        "foxes",
        "frogs",
        "owls",
        "rats",
    )
    texts = [f"the {word} saw {animal} at home" for word in sentences.SPELLED for animal in animals]
    texts += [f"a {word} of {animal} was there" for word in sentences.SPELLED for animal in animals]
    source = sentences.TextSource("made up", 1.0, "none", "none", lambda: True, lambda: iter(texts))
    monkeypatch.setattr(synthesizers, "ENGINES", {"tones": engine})
    monkeypatch.setattr(synthesizers, "voices", lambda: voices)
    monkeypatch.setattr(sentences, "TEXT_SOURCES", (source,))
    monkeypatch.setattr(make_speech, "SHARD_SECONDS", 30.0)
    monkeypatch.setattr(
        make_speech,
        "FIXED_SECONDS",
        {"dev": 20.0, "test": 20.0, "newvoice/train": 40.0, "newvoice/test": 20.0},
    )
    sentences.pools.cache_clear()
    yield
    sentences.pools.cache_clear()


def run(out: Path, *options: str) -> int:
    return make_speech.main([str(out), "--engines", "tones", "--hours", "0.03", "--jobs", "1", *options])


def rows_of(folder: Path) -> list[dict]:
    return [
        row
        for path in sorted(folder.rglob("*.parquet"))
        for row in pyarrow.parquet.read_table(path).to_pylist()
    ]


def test_a_run_makes_sources_that_share_no_voice_and_no_sentence(tones, tmp_path, capsys) -> None:
    assert run(tmp_path) == 0
    heard = {split: rows_of(tmp_path / split) for split in ("train", "dev", "test", "newvoice")}
    assert all(heard.values())
    for split, rows in heard.items():
        for other, others in heard.items():
            if other != split:
                assert not {row["speaker"] for row in rows} & {row["speaker"] for row in others}
    parts = {
        split: {
            text
            for row in heard[split]
            for text in row["text"].replace("?", ".").split(".")
            if " " in text.strip()
        }
        for split in ("train", "test")
    }
    long = {text for text in parts["test"] if len(text.split()) > 4}
    assert long and not long & {text for text in parts["train"] if len(text.split()) > 4}
    source = open_source(str(tmp_path / "train"))
    assert source.problems == []
    assert 108 <= source.seconds().sum() <= 200
    clip = source.utterances()[0]
    assert len(source.read(clip)) == pytest.approx(clip.seconds * RATE, abs=1)
    printed = capsys.readouterr()
    assert "train           tones" in printed.out and "100%" in printed.err
    assert (tmp_path / "table.txt").read_text(encoding="utf-8").strip() == printed.out.strip()


def test_a_run_goes_on_where_it_stood_and_makes_the_same(tones, tmp_path, capsys) -> None:
    assert run(tmp_path) == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    times = {path: path.stat().st_mtime_ns for path in files}
    first, *rest = sorted(files)
    first.unlink()
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert f"{len(rest)} of {len(files)} shards are there already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == files
    assert {path: path.stat().st_mtime_ns for path in rest} == {path: times[path] for path in rest}
    assert not list(tmp_path.rglob("*.partial"))


def test_another_seed_says_other_things_and_wants_another_folder(tones, tmp_path, capsys) -> None:
    assert run(tmp_path / "a") == 0
    assert run(tmp_path / "b", "--seed", "1") == 0
    assert rows_of(tmp_path / "a/dev")[0]["text"] != rows_of(tmp_path / "b/dev")[0]["text"]
    assert run(tmp_path / "a", "--seed", "1") == 2
    assert "was made with --seed 0, not 1" in capsys.readouterr().err
    assert run(tmp_path / "a", "--texts", "words") == 2
    assert "not words; take another folder" in capsys.readouterr().err


def test_words_alone(tones, tmp_path) -> None:
    assert run(tmp_path, "--texts", "words") == 0
    texts = [row["text"] for row in rows_of(tmp_path)]
    assert len(set(texts)) > len(texts) / 2
    assert sum(len(text.split()) <= 3 for text in texts) > 0.8 * len(texts)  # numbers may be longer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engines", "kokora"], 'there is no kokora; .* Did you mean "kokoro"'),
        (["--engines", ","], "names no engine"),
        (["--texts", "word"], 'there is no word; .* Did you mean "words"'),
        (["--texts", ""], "names no kind of text"),
        (["--hours", "0"], "--hours 0 must be above 0"),
        (["--hours", "nan"], "--hours nan must be above 0"),
        (["--jobs", "0"], "--jobs 0 must be 1 or more"),
    ],
)
def test_options_that_cannot_be(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_speech.check(make_speech.parse(["out", *options]))


def test_a_missing_engine_names_how_to_install_it(monkeypatch) -> None:
    gone = synthesizers.Engine("gone", 1.0, 1, "none", "apt-get install gone", lambda: False, load_tones)
    there = synthesizers.Engine("there", 1.0, 1, "none", "", lambda: True, load_tones)
    monkeypatch.setattr(synthesizers, "ENGINES", {"gone": gone, "there": there})
    with pytest.raises(
        UserError, match=r"not installed: gone\. gone: apt-get install gone .*--engines there"
    ):
        synthesizers.require_engines(["gone", "there"])


def test_the_plan_adds_up_and_only_grows() -> None:
    engines = list(synthesizers.ENGINES)
    short, long = make_speech.plan(2.0, engines), make_speech.plan(5.0, engines)
    for hours, planned in ((2.0, short), (5.0, long)):
        assert sum(shard.seconds for shard in planned if shard.split == "train") == pytest.approx(
            hours * 3600, abs=10
        )
        assert len({shard.name for shard in planned}) == len(planned)
    # What the smaller plan made is of use in the larger; only the last, shorter shard of an engine stays short.
    assert {shard.name for shard in short} <= {shard.name for shard in long}
    speeds = [synthesizers.ENGINES[shard.engine].speed for shard in short]
    assert speeds == sorted(speeds, reverse=True)


def test_every_voice_is_in_one_split_and_the_new_one_alone() -> None:
    splits: dict[str, set[str]] = {}
    for voice in synthesizers.voices():
        splits.setdefault(voice.speaker, set()).add(voice.split)
    assert all(len(members) == 1 for members in splits.values())
    assert Counter(voice.split for voice in synthesizers.voices())["newvoice"] == 1
    mixed = {name for voice in synthesizers.voices() if len(voice.mixture) > 1 for name, _ in voice.mixture}
    held_out = {
        voice.name for voice in synthesizers.voices() if voice.engine == "kokoro" and voice.split != "train"
    }
    assert mixed and held_out and not mixed & held_out


def test_finish_trims_silence_and_sets_the_level() -> None:
    tone = 0.02 * np.sin(2 * np.pi * 300 * np.arange(24_000) / 24_000)
    audio = np.concatenate([np.zeros(48_000), tone, np.zeros(48_000)]).astype(np.float32)
    made = make_speech.finish(audio, 24_000, random.Random(0))
    assert 1.0 < len(made) / RATE < 1.8
    assert 20 * np.log10(np.sqrt(np.mean(made**2))) == pytest.approx(-23, abs=0.1)
    for nothing in (np.zeros(0, np.float32), np.zeros(8000, np.float32), np.full(8000, np.nan, np.float32)):
        assert len(make_speech.finish(nothing, RATE, random.Random(0))) == 0
    assert (
        np.abs(make_speech.finish(np.r_[np.ones(3), np.zeros(16_000)], RATE, random.Random(0))).max()
        <= 0.9001
    )


@pytest.mark.parametrize(
    ("seconds", "num_characters", "reason"),
    [
        (3.0, 40, None),
        (0.2, 8, "under"),
        (26.0, 300, "over"),
        (1.0, 100, "far quicker"),
        (20.0, 20, "far slower"),
    ],
)
def test_why_not(seconds: float, num_characters: int, reason: str | None) -> None:
    found = make_speech.why_not(seconds, num_characters)
    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_a_synthesiser_that_says_nothing_stops_the_run(tones, monkeypatch, tmp_path, capsys) -> None:
    silent = synthesizers.Engine("tones", 1.0, 100, "none", "", lambda: True,
                                 lambda seed: lambda text, voice, rng: (np.zeros(100, np.float32), RATE))  # fmt: skip
    monkeypatch.setattr(synthesizers, "ENGINES", {"tones": silent})
    assert run(tmp_path) == 2
    assert "21 of 21 clips are unusable (21 under 0.5 s)" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet*"))


def test_a_program_that_trips_over_a_sentence_loses_that_clip_only(
    tones, monkeypatch, tmp_path, capsys
) -> None:
    def load_clumsy(seed):
        speak = load_tones(seed)

        def clumsy(text: str, voice: Voice, rng: random.Random) -> tuple[np.ndarray, int]:
            if "cats" in text:
                raise subprocess.CalledProcessError(139, "clumsy")
            return speak(text, voice, rng)

        return clumsy

    engine = synthesizers.Engine("tones", 1.0, 100, "none", "", lambda: True, load_clumsy)
    monkeypatch.setattr(synthesizers, "ENGINES", {"tones": engine})
    assert run(tmp_path) == 0
    assert "tones failed with exit status 139" in capsys.readouterr().out
    assert not [row for row in rows_of(tmp_path) if "cats" in row["text"]]


def test_folders_that_cannot_be(tones, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert run(tmp_path / "file") == 2
    assert "file: " in capsys.readouterr().err
    (tmp_path / "speech.json").write_text("[]", encoding="utf-8")
    assert run(tmp_path) == 2
    assert "speech.json does not name a seed" in capsys.readouterr().err


@pytest.mark.skipif(espeak_library() is None, reason="espeak-ng is not installed")
def test_espeak_speaks_a_shard(tones, monkeypatch, tmp_path) -> None:
    monkeypatch.undo()
    text = "Please enter your password, followed by the pound key."
    source = sentences.TextSource("made up", 1.0, "none", "none", lambda: True, lambda: iter([text]))
    monkeypatch.setattr(sentences, "TEXT_SOURCES", (source,))
    make_speech.make_shard(Shard("espeak", sentences.split_of(text), 0, 8.0), tmp_path, 0, ["made up"])
    rows = rows_of(tmp_path)
    assert sum(row["seconds"] for row in rows) >= 8.0
    assert all(2.0 < row["seconds"] / row["text"].count("password") < 6.0 for row in rows)


def test_recordings_of_people_become_sources(monkeypatch, tmp_path) -> None:
    voice = 0.1 * np.random.default_rng(0).standard_normal(22_050).astype(np.float32)
    stamps, librivox = tmp_path / "stamps/animals", tmp_path / "librivox"
    stamps.mkdir(parents=True)
    librivox.mkdir()
    for name, text in (("cat", "A cat."), ("dog", "A dog."), ("untold", None)):
        soundfile.write(stamps / f"{name}_desc.ogg", voice, 22_050)
        if text:
            (stamps / f"{name}.txt").write_text(f"{text}\nfr.utf8=Un animal.\n", encoding="utf-8")
    soundfile.write(librivox / "a-1.wav", voice, 22_050)
    (librivox / "transcription").write_text(
        "<s> he was not ill </s> (a-1)\n<s> gone </s> (a-2)\n", encoding="utf-8"
    )
    monkeypatch.setattr(real_speech, "STAMPS", tmp_path / "stamps")
    monkeypatch.setattr(real_speech, "LIBRIVOX", librivox)
    monkeypatch.setattr(real_speech, "COLLECTIONS", (
        real_speech.Collection("stamps", "GPL-2.0", "stamps", lambda: True, real_speech.stamps),
        real_speech.Collection("librivox", "public domain", "librivox", lambda: True, real_speech.librivox, True),
    ))  # fmt: skip
    table = real_speech.make_real(tmp_path / "out")
    assert "librivox: 1 left out, without a recording" in table and "GPL-2.0" in table
    assert sorted(row["text"] for row in rows_of(tmp_path / "out/real/stamps")) == ["A cat.", "A dog."]
    source = open_source(str(tmp_path / "out/judge/librivox"))
    assert [clip.text for clip in source.utterances()] == ["he was not ill"]
    assert source.seconds()[0] == pytest.approx(1.0, abs=1e-3)


def test_no_voice_to_judge_by_is_among_those_of_the_corpus_that_train() -> None:
    """train.sh hears corpus:train as well. The new voice says digits there, which the documents say."""
    heard = {row.speaker for row in open_source("corpus:train").utterances()}
    by_split = {
        split: {voice.speaker for voice in synthesizers.voices() if voice.split == split}
        for split in ("dev", "test", "newvoice")
    }
    assert len(heard) > 50 and all(by_split.values())
    assert not heard & (by_split["dev"] | by_split["test"])
    assert heard & by_split["newvoice"] == {"awb"}


def archive_of(folder: Path, clips: dict[str, np.ndarray]) -> Path:
    path = folder / "package.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, audio in clips.items():
            wave = io.BytesIO()
            soundfile.write(wave, audio, 16_000, format="WAV")
            entry = tarfile.TarInfo(f"{real_speech.READERS_FOLDER}/{name}.wav")
            entry.size = wave.tell()
            archive.addfile(entry, io.BytesIO(wave.getvalue()))
    return path


def test_readers_come_out_of_a_package_that_is_the_one_meant(monkeypatch, tmp_path) -> None:
    clips = {
        name: 0.1 * np.random.default_rng(number).standard_normal(24_000 if number < 12 else 112_000)
        for number, name in enumerate(real_speech.READ_SENTENCES)
    }
    package = archive_of(tmp_path, clips)
    (readers,) = [one for one in real_speech.COLLECTIONS if one.name == "readers"]
    monkeypatch.setattr(real_speech, "READERS", package)
    monkeypatch.setattr(real_speech, "COLLECTIONS", (readers,))
    with pytest.raises(
        UserError, match=r"not the file that PyPI holds.*pip download .* speechbrain==1\.0\.1$"
    ):
        real_speech.make_real(tmp_path / "out")
    monkeypatch.setattr(real_speech, "READERS_SHA256", hashlib.sha256(package.read_bytes()).hexdigest())
    real_speech.make_real(tmp_path / "out")
    source = open_source(str(tmp_path / "out/judge/readers"))
    rows = source.utterances()
    assert [row.text for row in rows] == list(real_speech.READ_SENTENCES.values())
    assert {row.speaker for row in rows} == {"spk1", "spk2", "LJ050"}
    assert np.allclose(source.read(rows[7]), clips["ASR/spk2_snt2"], atol=1e-3)


def test_a_damaged_package_is_named(monkeypatch, tmp_path) -> None:
    (tmp_path / "queen.1c").write_bytes(b"QTBLCEM10\0\0\0\1\0\2 and then no more")
    read = functools.partial(games.queen, tmp_path / "queen.1c")
    damaged = real_speech.Collection("queen", "none", "flight-of-the-amazon-queen", lambda: True, read)
    monkeypatch.setattr(real_speech, "COLLECTIONS", (damaged,))
    with pytest.raises(UserError, match=r"queen cannot be read .* apt-get install --reinstall flight-of"):
        real_speech.make_real(tmp_path / "out")


def test_missing_recordings_name_their_packages(monkeypatch, tmp_path) -> None:
    gone = [
        real_speech.Collection(name, "none", install, lambda: False, real_speech.prompts, True, installer)
        for name, install, installer in (
            ("prompts", "some-sounds ffmpeg", real_speech.APT),
            ("readers", "a-package==1", real_speech.PIP),
            ("queen", "a-game", real_speech.APT),
        )
    ]
    monkeypatch.setattr(real_speech, "COLLECTIONS", tuple(gone))
    commands = r"apt-get install some-sounds ffmpeg a-game && pip download .* a-package==1$"
    with pytest.raises(UserError, match=rf"no recordings of prompts, readers, queen .* {commands}"):
        real_speech.make_real(tmp_path)
