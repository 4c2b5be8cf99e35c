"""A store of encoder frames: clips are told apart by where they lie, and what changed or broke is not read."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.data.clips import RATE, clip, loquacious_row, write_parquet
from tiny_audio.data import features
from tiny_audio.data.features import (
    FrameStore,
    FrameWriter,
    audio_fingerprints,
    clip_identity,
    file_fingerprint,
    joined_fingerprint,
)
from tiny_audio.data.sources import open_source
from tiny_audio.data.utterance import AudioRef, Utterance
from tiny_audio.errors import UserError

Write = Callable[[Path], Path]
WIDTH = 8


def identities(spec: str) -> list[int]:
    source = open_source(spec)
    return [clip_identity(source, utterance) for utterance in source.utterances()]


def write_speakers(folder: Path) -> Path:
    """A folder for each speaker, with a list of transcripts whose ids begin anew in each."""
    for number, speaker in enumerate(("anna", "bert")):
        (folder / speaker).mkdir(parents=True)
        soundfile.write(folder / speaker / "0001.wav", clip(1.0, number), RATE)
        (folder / speaker / f"{speaker}.trans.txt").write_text(f"0001 {speaker} speaks\n")
    return folder


def write_shards(folder: Path) -> Path:
    """A folder for each language, with equally named shards whose rows have no ids."""
    for number, language in enumerate(("de", "en")):
        row = {key: value for key, value in loquacious_row(number).items() if key != "ID"}
        write_parquet(folder / language / "0000.parquet", [row])
    return folder


@pytest.mark.parametrize("write", [write_speakers, write_shards])
def test_equally_named_clips_of_one_length_are_told_apart(write: Write, tmp_path: Path) -> None:
    assert len(set(identities(str(write(tmp_path / "data"))))) == 2


@pytest.mark.parametrize("write", [write_speakers, write_shards])
def test_a_folder_that_lies_elsewhere_is_known_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = []
    for machine in ("here", "there"):
        (tmp_path / machine).mkdir()
        monkeypatch.chdir(tmp_path / machine)
        write(Path("data"))
        known.append(identities("data"))
    assert known[0] == known[1]
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    at_home = identities("~/data")
    shutil.move(tmp_path / "here", tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    assert identities("~/data") == at_home


def test_a_copy_of_a_hub_set_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = []
    for machine in ("here", "there"):
        write_parquet(
            tmp_path / machine / "acme" / "speech" / "data" / "train-0000.parquet", [loquacious_row(0)]
        )
        monkeypatch.setenv("TINY_AUDIO_MODELS", str(tmp_path / machine))
        known.append(identities("hub:acme/speech:train"))
    assert known[0] == known[1]


def frames_of(clip: int, num_frames: int = 5) -> torch.Tensor:
    return torch.full((num_frames, WIDTH), float(clip))


def open_store(folder: Path) -> FrameStore:
    return FrameStore(folder, torch.float32, WIDTH)


def found(store: FrameStore, *clips: int, audio: list[int] | None = None) -> list[float | None]:
    """What the frames of each clip are full of; None without an entry, NaN without frames."""
    keys = np.array(clips, np.uint64)
    numbers = store.find(0, keys, None if audio is None else np.array(audio, np.uint64)).tolist()
    frames = [None if number < 0 else store.read(number) for number in numbers]
    return [None if each is None else each.mean().item() for each in frames]


def write_store(folder: Path, *clips: int, audio: int = 7) -> Path:
    """A store with a shard of these clips. Returns the shard's path, without its ending."""
    before = set(folder.glob("*.npy"))
    writer = FrameWriter(folder, {})
    for each in clips:
        writer.add(each, 0, frames_of(each), 800, audio)
    writer.finish_shard()
    (entries,) = set(folder.glob("*.npy")) - before
    return entries.with_suffix("")


def test_frames_of_changed_audio_are_not_found(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path, {})
    for value, audio in ((1, 11), (2, 12)):  # recorded anew, or of another project
        writer.add(5, 0, frames_of(value), 800, audio)
        writer.finish_shard()
    writer.add(6, 0, frames_of(3), 800, 0)  # on a server
    writer.add(7, 0, frames_of(4), 800, 14)
    writer.add(7, 0, None)  # it could not be read the last time
    writer.finish_shard()
    store = open_store(tmp_path)
    assert found(store, 5, 5, 5, 5, audio=[11, 12, 13, 0]) == [1, 2, None, 2]
    assert found(store, 6, 7, 8, audio=[13, 14, 15]) == [3, 4, None]
    assert found(store, 5, 6, 7, 8) == [2, 3, 4, None]
    assert store.entries["num_frames"][store.find(0, *np.array([[7], [15]], np.uint64))] == 0
    assert store.find(1, np.array([5], np.uint64)).tolist() == [-1]


@pytest.mark.parametrize("place", ["head", "middle", "tail", "length"])
def test_a_file_is_known_by_its_parts(place: str, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(100_000)
    at = {"head": 50, "middle": 50_000, "tail": 99_990, "length": len(content)}[place]
    for folder, changed in (("a", content), ("b", content), ("c", content[:at] + b"!" + content[at + 1 :])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.wav").write_bytes(changed)
        os.utime(tmp_path / folder / "x.wav", (1, 1))
    one, same, other = (file_fingerprint(str(tmp_path / folder / "x.wav")) for folder in "abc")
    assert 0 != one == same != other


def test_a_fingerprint_takes_little_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "shard.parquet"
    with large.open("wb") as file:
        file.truncate(2**30)
    read: list[int] = []
    monkeypatch.setattr(features, "open", lambda *a, **k: Counted(large, read), raising=False)
    before = file_fingerprint(str(large))
    assert len(read) == 67 and sum(read) < 300_000
    with large.open("rb+") as file:
        file.seek(2**29 + 10)
        file.write(b"in the middle")
    assert file_fingerprint(str(large)) != before
    monkeypatch.undo()
    for nothing in ("corpus:train", "hf://datasets/acme/speech@1/0.parquet", str(tmp_path), "a\0b"):
        assert file_fingerprint(nothing) == 0


class Counted:
    """A file that notes how much is read of it at a time."""

    def __init__(self, path: Path, read: list[int]) -> None:
        self._file, self._read = path.open("rb", buffering=0), read

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def read(self, num_bytes: int) -> bytes:
        self._read.append(num_bytes)
        return self._file.read(num_bytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_fingerprints_of_clips(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_text(name)
    a, b = (Utterance("1", "x", 1.0, AudioRef(str(tmp_path / name))) for name in ("a.wav", "b.wav"))
    gone = Utterance("1", "x", 1.0, AudioRef(str(tmp_path / "gone.wav")))
    prints = audio_fingerprints([a, a, b, gone], np.array([1, 1, 2, 3], np.uint64)).tolist()
    assert prints[0] == prints[1] != prints[2] and prints[3] == 0
    assert 0 != joined_fingerprint(prints[:3]) != joined_fingerprint(prints[2:0:-1])
    assert joined_fingerprint(prints) == 0
    with pytest.raises(UserError, match=r"cannot tell .*a.wav from .*b.wav: give them other ids"):
        audio_fingerprints([a, b, gone], np.array([1, 1, 2], np.uint64))


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def write_earlier_format(path: Path) -> None:
    entries = np.load(path)
    names = [name for name in entries.dtype.names if name != "audio"]
    np.save(path, entries[names].astype([(name, entries.dtype[name]) for name in names]))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        *((".npy", lambda path, size=size: cut(path, size)) for size in (0, 100, 200)),
        (".npy", lambda path: path.write_bytes(b"no array at all, but as long as one may be")),
        (".npy", write_earlier_format),
        (".frames", lambda path: cut(path, 100)),
        (".frames", Path.unlink),
    ],
)
def test_broken_shards_are_left_alone_and_then_replaced(
    suffix: str, damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = write_store(tmp_path, 1, 2), write_store(tmp_path, 3, 4)
    damage(broken.with_suffix(suffix))
    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)
    assert "1 of 2 shards are damaged or of an earlier version" in caplog.text
    assert found(store, 1, 2, 3) == [1, 2, None] and store.broken == [broken.name]
    FrameWriter(tmp_path, {}, store.broken)
    assert {path.stem for path in tmp_path.iterdir()} == {"about", whole.name}


def test_a_store_whose_description_is_damaged(tmp_path: Path) -> None:
    for name, content in (("a", '{"encoder": 1, "seed"'), ("b", '{"encoder": 1, "seed": 2}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "about.json").write_text(content)
    assert features.differences(tmp_path, {"encoder": 1, "seed": 3}) == ["seed"]


def test_two_writers_may_clear_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.partial", "b.partial"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1, 1))
    stat, unlink = Path.stat, Path.unlink

    def gone_before_it_is_looked_at(path: Path, **options: Any) -> os.stat_result:
        if path.name == "a.partial":
            path.unlink(missing_ok=True)
        return stat(path, **options)

    def gone_before_it_is_removed(path: Path, **options: Any) -> None:
        if path.name == "b.partial":
            os.unlink(path)
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", gone_before_it_is_looked_at)
        patch.setattr(Path, "unlink", gone_before_it_is_removed)
        FrameWriter(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["about.json"]


@pytest.mark.parametrize("written", [0, 40, 160])
@pytest.mark.parametrize("goes_on", [False, True])
def test_ctrl_c_while_frames_are_written(written: int, goes_on: bool, tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path, {})
    writer.add(1, 0, frames_of(1))
    file = writer._file

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def write(self, data: memoryview) -> None:
            file.write(data.cast("B")[:written])
            raise KeyboardInterrupt

    writer._file = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        writer.add(2, 0, frames_of(2))
    writer._file = file
    if goes_on:
        writer.add(3, 0, frames_of(3))
    writer.finish_shard()
    store = open_store(tmp_path)
    assert found(store, 1, 2, 3) == [1, None, 3 if goes_on else None] and not store.broken
