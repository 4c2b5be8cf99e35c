"""The embedded corpus: its splits, limits, word times and sample-exact clips."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tiny_audio.data import corpus
from tiny_audio.errors import UserError

DIGITS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
ENTRIES = {split: corpus.read_index(split) for split in corpus.SPLITS}
ALL = [entry for entries in ENTRIES.values() for entry in entries]


def every_stream(per_stream: int) -> list[corpus.CorpusEntry]:
    """A few clips of every stream of a sample of the streams."""
    names = sorted({entry.stream for entry in ALL})[::6]
    return [entry for name in names for entry in [e for e in ALL if e.stream == name][:per_stream]]


def test_limits() -> None:
    assert corpus.PATH.stat().st_size <= 12_000_000
    assert len(ALL) >= 3_500
    assert len({entry.speaker for entry in ALL}) >= 30
    assert len(ENTRIES["dev"]) >= 250 and len(ENTRIES["test"]) >= 350


def test_voices_keep_to_one_split() -> None:
    speakers = {split: {entry.speaker for entry in entries} for split, entries in ENTRIES.items()}
    assert not speakers["train"] & speakers["dev"]
    assert not speakers["train"] & speakers["test"]
    assert not speakers["dev"] & speakers["test"]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_several_engines_judge(split: str) -> None:
    assert len({entry.stream.split("-")[0] for entry in ENTRIES[split]}) >= 3


def test_ids_are_unique_and_texts_are_digit_strings() -> None:
    assert len({entry.id for entry in ALL}) == len(ALL)
    for entry in ALL:
        words = entry.text.split(" ")
        assert set(words) <= DIGITS and 1 <= len(words) <= 10


def test_digits_and_lengths_are_balanced() -> None:
    for entries in ENTRIES.values():
        counts = Counter(word for entry in entries for word in entry.text.split())
        assert min(counts.values()) > 0.7 * max(counts.values())
        assert {len(entry.text.split()) for entry in entries} == set(range(1, 11))


def test_word_times_are_in_order_inside_the_clip_and_match_the_text() -> None:
    timed = [entry for entry in ALL if entry.words is not None]
    assert len(timed) > 0.9 * len(ALL)
    too_short = []
    for entry in timed:
        assert entry.words is not None
        assert [word for word, _, _ in entry.words] == entry.text.split()
        edges = [edge for _, start, end in entry.words for edge in (start, end)]
        assert edges == sorted(edges), entry.id
        assert edges[0] >= 0 and edges[-1] <= entry.seconds + 0.001
        if any(end - start < 0.04 for _, start, end in entry.words):
            too_short.append(entry)
    # In connected speech a border between two words is a guess; hardly any may be off by most of a word.
    assert len(too_short) <= 0.001 * len(timed), [entry.id for entry in too_short]


def test_clips_of_a_stream_do_not_overlap() -> None:
    ends: dict[str, int] = {}
    for entry in sorted(ALL, key=lambda entry: (entry.stream, entry.start)):
        assert entry.start >= ends.get(entry.stream, 0)
        ends[entry.stream] = entry.start + entry.num_samples


def test_words_are_louder_than_what_lies_between() -> None:
    ratios: dict[str, list[float]] = {}
    for entry in every_stream(4):
        audio, rate = corpus.read_audio(entry)
        assert audio.dtype == np.float32 and audio.shape == (entry.num_samples,)
        assert entry.num_samples / rate == pytest.approx(entry.seconds)
        assert 0.02 < np.abs(audio).max() <= 1
        if entry.words is None:
            continue
        inside = np.zeros(len(audio), bool)
        for _, start, end in entry.words:
            inside[int(start * rate) : int(end * rate)] = True
        ratio = float((audio[inside] ** 2).mean() / ((audio[~inside] ** 2).mean() + 1e-9))
        ratios.setdefault(entry.stream.split("-")[0], []).append(ratio)
    everything = [ratio for engine in ratios.values() for ratio in engine]
    assert np.median(everything) > 20
    assert np.mean([ratio > 2 for ratio in everything]) > 0.9
    assert np.median(ratios["kokoro"]) > 5
    assert min(ratios.get("flite", []) + ratios.get("festival", []) + ratios.get("piper", [])) > 10


def test_streams_are_as_long_as_their_clips_say() -> None:
    """Opus must neither add nor lose samples: the last clip of a stream ends where the stream does, less a gap."""
    with zipfile.ZipFile(corpus.PATH) as archive:
        for name in sorted({entry.stream for entry in ALL})[::12]:
            information = soundfile.info(io.BytesIO(archive.read(name)))
            end = max(entry.start + entry.num_samples for entry in ALL if entry.stream == name)
            assert end <= information.frames <= end + 0.05 * information.samplerate


def test_the_order_of_reading_does_not_matter() -> None:
    entries = [entry for entry in ENTRIES["dev"] if entry.stream == ENTRIES["dev"][0].stream]
    forward = [corpus.read_audio(entry)[0] for entry in entries]
    corpus._stream.cache_clear()
    backward = [corpus.read_audio(entry)[0] for entry in reversed(entries)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))


def test_unknown_split_is_named_with_the_splits_there_are() -> None:
    with pytest.raises(UserError, match=r'no split "tset".*"test".*train, dev, test'):
        corpus.read_index("tset")


def test_a_damaged_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits.zip").write_bytes(b"PK nothing")
    monkeypatch.setattr(corpus, "PATH", tmp_path / "digits.zip")
    corpus._entries.cache_clear()
    try:
        with pytest.raises(UserError, match="reinstall"):
            corpus.read_index("dev")
    finally:
        corpus._entries.cache_clear()
