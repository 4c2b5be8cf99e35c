"""The generator of the corpus: its parts on made-up sounds, and a small real run with espeak-ng."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tiny_audio.corpus import compose, engines, pack, speech, voices
from tiny_audio.corpus.inventory import Item
from tiny_audio.corpus.speech import DIGITS, Recording, Word

RATE = 16_000


def beeps(words: tuple[str, ...]) -> Recording:
    """A tone of its own for every word, 0.2 s long, 0.1 s apart."""
    audio = np.zeros(int((0.3 * len(words) + 0.1) * RATE), np.float32)
    times = []
    for index, word in enumerate(words):
        start = 0.1 + 0.3 * index
        tone = np.sin(2 * np.pi * (200 + 150 * DIGITS.index(word)) * np.arange(int(0.2 * RATE)) / RATE)
        audio[int(start * RATE) :][: len(tone)] = 0.3 * tone
        times.append(Word(word, start, start + 0.2))
    return Recording(audio, RATE, times)


def pitch_of(audio: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 1 << 17))
    return float(np.argmax(spectrum) * rate / (1 << 17))


def test_every_voice_is_in_one_split_and_blends_only_mix_training_voices() -> None:
    table = voices.table(16)
    assert len({voice.id for voice in table}) == len(table)
    by_speaker: dict[str, set[str]] = {}
    for voice in table:
        by_speaker.setdefault(voice.speaker, set()).add(voice.split)
    assert all(len(splits) == 1 for splits in by_speaker.values())
    assert all(
        name in voices.KOKORO_TRAIN for voice in table if voice.name == "blend" for name, _ in voice.mixture
    )


def test_cut_words_keep_their_sound_and_joined_times_are_exact() -> None:
    recording = beeps(("three", "nine"))
    parts = [speech.cut_word(recording, index) for index in (1, 0)]
    joined = speech.join(parts, [0.2, 0.5, 0.1])
    assert joined.words and [word.text for word in joined.words] == ["nine", "three"]
    for word in joined.words:
        audio = joined.audio[int((word.start + 0.02) * RATE) : int((word.end - 0.02) * RATE)]
        assert pitch_of(audio, RATE) == pytest.approx(200 + 150 * DIGITS.index(word.text), abs=15)
    assert joined.words[1].start - joined.words[0].end >= 0.5


def test_change_of_size_moves_pitch_and_times_together() -> None:
    smaller = speech.change_size(beeps(("zero",)), 1.25)
    assert smaller.words and smaller.words[0].start == pytest.approx(0.08)
    assert pitch_of(smaller.audio, RATE) == pytest.approx(250, abs=5)


def test_band_limit_silences_what_lies_outside() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    power = np.abs(np.fft.rfft(speech.band_limit(noise, RATE, 300, 3400))) ** 2
    assert power[:150].mean() < 0.01 * power[500:3000].mean()
    assert power[4200:].mean() < 0.001 * power[500:3000].mean()


def test_digits_are_balanced_and_doubles_occur() -> None:
    digits = compose.Digits(random.Random(0))
    words = [word for _ in range(300) for word in digits.string(6)]
    counts = [words.count(digit) for digit in DIGITS]
    assert min(counts) > 0.75 * max(counts)
    assert any(a == b for a, b in itertools.pairwise(words))


def test_clips_return_from_the_codec_where_the_index_says() -> None:
    items = [Item((digit,), False, beeps((digit,))) for digit in DIGITS]
    items.append(Item(("four", "two", "two"), True, beeps(("four", "two", "two"))))
    if importlib.util.find_spec("pyworld") is None:
        pytest.skip("pyworld is not installed (pip install pyworld)")
    clips = compose.utterances(items, 12, "seed", 0.0)
    again = compose.utterances(items, 12, "seed", 0.0)
    assert all(
        np.array_equal(a.recording.audio, b.recording.audio) for a, b in zip(clips, again, strict=True)
    )
    voice = voices.table(0)[0]
    streams, rows = pack.encode(voice, clips)
    assert len(rows) == 12 and sum(clip.narrow for clip in clips) not in (0, 12)
    originals = [clip for narrow in (False, True) for clip in clips if clip.narrow == narrow]
    for row, clip in zip(rows, originals, strict=True):
        decoded, rate = soundfile.read(io.BytesIO(streams[row["stream"]]), dtype="float32")
        audio = decoded[row["start"] : row["start"] + row["num_samples"]]
        assert (
            row["text"] == clip.text
            and rate == row["sampling_rate"]
            and len(audio) == len(clip.recording.audio)
        )
        reference = clip.recording.audio
        best = max(
            range(-8, 9), key=lambda lag: float(np.dot(audio[20:-20], np.roll(reference, lag)[20:-20]))
        )
        assert abs(best) <= 1  # half the period of the highest tone is 5 samples at 8 kHz


def test_missing_engines_are_named_with_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_audio.corpus import make_corpus

    monkeypatch.setattr(engines, "missing", lambda: {"flite": engines.INSTALL["flite"]})
    assert make_corpus.main(["--out", "x.zip", "--engines", "flite"]) == 2
    assert "apt-get install flite" in capsys.readouterr().err


@pytest.mark.skipif(engines.espeak_library() is None, reason="espeak-ng is not installed")
def test_espeak_tells_the_times_of_its_words() -> None:
    words = ["six", "zero", "one", "two"]
    recording = engines.Espeak().speak("en-us+m3", words, " ", {"rate": 150})
    assert recording.words and [word.text for word in recording.words] == words
    level = speech.envelope(recording.audio, recording.sampling_rate)
    assert level.max() > 0.01
    assert all(0.1 < word.end - word.start < 0.8 for word in recording.words)


@pytest.mark.skipif(engines.espeak_library() is None, reason="espeak-ng is not installed")
@pytest.mark.skipif(
    importlib.util.find_spec("pyworld") is None, reason="pyworld is not installed (pip install pyworld)"
)
def test_a_small_corpus_is_made_from_espeak(tmp_path: Path) -> None:
    out = tmp_path / "small corpus.zip"
    command = [
        sys.executable,
        "-m",
        "tiny_audio.corpus.make_corpus",
        "--out",
        str(out),
        "--engines",
        "espeak",
    ]
    command += ["--utterances", "40", "--only", "klatt", "--cache", str(tmp_path / "cache")]
    root = str(Path(engines.__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root})
    assert done.returncode == 0, done.stderr
    assert "utterances" in done.stdout
    with zipfile.ZipFile(out) as archive:
        rows = [json.loads(line) for line in archive.read("index.jsonl").splitlines()]
        assert {row["stream"] for row in rows} | {"index.jsonl"} == set(archive.namelist())
    assert {row["split"] for row in rows} == {"train", "dev", "test"}
    assert [path.name for path in tmp_path.glob("*.part")] == []
