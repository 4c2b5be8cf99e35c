"""Parquet shards and hub data sets, with the columns of LoquaciousSet and of other public sets."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from tests.data.clips import clip, loquacious_row, wav_bytes, write_parquet
from tiny_audio.data import parquet, shards
from tiny_audio.data.hub import parse_hub_name
from tiny_audio.data.parquet import ParquetSource
from tiny_audio.data.sources import open_source
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_audio import AudioError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_loquacious_columns_in_shards(tmp_path: Path) -> None:
    for shard in range(2):
        rows = [loquacious_row(10 * shard + number, 0.2 + 0.1 * number) for number in range(6)]
        write_parquet(tmp_path / f"train-{shard}.parquet", rows)
    source = open_source(tmp_path)
    assert isinstance(source, ParquetSource)
    rows = source.utterances()
    assert [row.id for row in rows] == [f"clip_{n}" for n in [*range(6), *range(10, 16)]]
    assert rows[7].text == "CLIP NUMBER 11" and rows[7].speaker == "speaker_2"
    np.testing.assert_allclose(source.seconds(), [0.2, 0.3, 0.4, 0.5, 0.6, 0.7] * 2, atol=1e-6)
    assert source.groups().tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3]
    for index in (11, 0, 7):
        expected = clip(0.2 + 0.1 * (index % 6), 10 * (index // 6) + index % 6)
        np.testing.assert_allclose(source.read(rows[index]), expected, atol=1e-4)
    with pytest.raises(AudioError, match=r"train-0.parquet#5: .*longer than the limit of 0.5 s"):
        source.read(rows[5], max_seconds=0.5)


def test_a_pickled_source_reads_the_same_and_takes_no_audio_along(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "x.parquet", [loquacious_row(n, 1.0) for n in range(8)]))
    waveforms = [source.read(row) for row in source.utterances()]
    pickled = pickle.dumps(source)
    assert len(pickled) < 10_000
    copy = pickle.loads(pickled)
    for row, waveform in zip(copy.utterances(), waveforms, strict=True):
        np.testing.assert_array_equal(copy.read(row), waveform)


def test_the_cache_of_row_groups_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "AUDIO_CACHE_BYTES", 300_000)  # a row group of four clips of 1 s is 128 kB
    path = write_parquet(tmp_path / "x.parquet", [loquacious_row(n, 1.0) for n in range(40)])
    source = ParquetSource([str(path)], "x")
    for row in source.utterances():
        source.read(row)
        assert sum(table.nbytes for table in source._shards._caches["audio"]._tables.values()) <= 300_000
    assert len(source._shards._caches["audio"]._tables) == 2


def other_columns() -> list[dict[str, Any]]:
    return [
        {"sentence": "bytes alone", "audio": wav_bytes(clip(0.4)), "client_id": "c", "duration_ms": 400},
        {"sentence": "", "audio": wav_bytes(clip(0.5)), "client_id": None, "duration_ms": 500},
    ]


def test_other_names_of_columns(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "dev.parquet", other_columns()))
    rows = source.utterances()
    assert [(row.id, row.text, row.speaker) for row in rows] == [
        ("dev-0", "bytes alone", "c"),
        ("dev-1", "", None),
    ]
    np.testing.assert_allclose(source.seconds(), [0.4, 0.5])
    assert len(source.read(rows[1])) == 8000


def test_rows_that_hold_only_the_path_of_their_audio(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(wav_bytes(clip(0.4)))
    row = {"audio": {"bytes": None, "path": "clips/a.wav"}, "text": "far away", "seconds": 0.4}
    source = open_source(write_parquet(tmp_path / "x.parquet", [row]))
    assert len(source.read(source.utterances()[0])) == 6400


def test_bad_rows_are_named(tmp_path: Path) -> None:
    rows = [
        loquacious_row(0),
        loquacious_row(1, text=None),
        loquacious_row(2, duration=None),
        loquacious_row(3, duration=0.0),
        loquacious_row(4, wav={"bytes": b"not audio", "path": "x.wav"}),
        loquacious_row(5, wav={"bytes": None, "path": None}),
    ]
    path = write_parquet(tmp_path / "x.parquet", rows)
    source = open_source(path)
    assert [row.id for row in source.utterances()] == ["clip_0", "clip_4", "clip_5"]
    assert sorted(str(problem) for problem in source.problems) == [
        f"{path}#1: has no transcript",
        f"{path}#2: its duration is nan, not a positive number of seconds",
        f"{path}#3: its duration is 0, not a positive number of seconds",
    ]
    with pytest.raises(AudioError, match=r"x.parquet#4: .*not audio that can be read"):
        source.read(source.utterances()[1])
    with pytest.raises(AudioError, match="holds no audio"):
        source.read(source.utterances()[2])


def test_lengths_are_measured_once_and_kept(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"audio": {"bytes": wav_bytes(clip(0.1 * n)), "path": ""}, "text": "x"} for n in range(1, 6)]
    rows[2]["audio"] = {"bytes": b"junk", "path": ""}
    path = write_parquet(tmp_path / "x.parquet", rows)
    measured: list[Any] = []
    measure = parquet.audio_seconds
    monkeypatch.setattr(parquet, "audio_seconds", lambda audio: measured.append(audio) or measure(audio))
    first = open_source(path)
    assert len(measured) == 5 and len(list(own_cache.rglob("*.npy"))) == 1
    second = open_source(path)
    assert len(measured) == 6  # what could not be read is tried again
    for source in (first, second):
        np.testing.assert_allclose(source.seconds(), [0.1, 0.2, 0.4, 0.5], atol=1e-6)
        assert [str(problem) for problem in source.problems] == [f"{path}#2: holds no audio that can be read"]
    next(own_cache.rglob("*.npy")).write_bytes(b"broken")
    assert len(open_source(path).utterances()) == 4 and len(measured) == 11
    write_parquet(path, rows[3:])  # another file under the same name
    np.testing.assert_allclose(open_source(path).seconds(), [0.4, 0.5], atol=1e-6)


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "file"))
    path = write_parquet(tmp_path / "x.parquet", [{"audio": wav_bytes(clip(0.1)), "text": "x"}])
    with caplog.at_level(logging.WARNING):
        assert len(open_source(path).utterances()) == 1
    assert "lengths could not be kept" in caplog.text


def write_table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    num_rows = len(columns["text"])
    audio = [wav_bytes(clip(0.1 * (n + 1), n)) for n in range(num_rows)]
    pyarrow.parquet.write_table(pyarrow.table({"audio": audio, **columns}), path)
    return path


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "large_binary", "dictionary"])
def test_text_in_every_type_that_holds_it(kind: str, tmp_path: Path) -> None:
    written = ["über uns", None, "", "hello there"]
    text = pyarrow.array(written)
    text = text.dictionary_encode() if kind == "dictionary" else text.cast(pyarrow.type_for_alias(kind))
    speaker = pyarrow.array([b"ann", None, b"\xff", b"bo"])
    source = open_source(write_table(tmp_path / "x.parquet", text=text, speaker=speaker, id=[7, 8, 9, 10]))
    rows = [(row.id, row.text, row.speaker) for row in source.utterances()]
    assert rows == [("7", "über uns", "ann"), ("9", "", "\ufffd"), ("10", "hello there", "bo")]
    assert [str(problem) for problem in source.problems] == [f"{tmp_path}/x.parquet#1: has no transcript"]


def test_text_that_is_not_utf8_is_a_counted_problem(tmp_path: Path) -> None:
    offsets = pyarrow.py_buffer(np.array([0, 5, 8], np.int32).tobytes())
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"helloa\xff\xfe")]
    )
    # Without lengths, and with one that is none: the transcript of such a row is looked at, too.
    for columns in ({}, {"duration": [0.1, None]}):
        for text in (broken, broken.cast(pyarrow.binary())):
            path = write_table(tmp_path / "x.parquet", text=text, **columns)
            source = open_source(path)
            assert [row.text for row in source.utterances()] == ["hello"]
            assert f"{path}#1: its transcript is not UTF-8 text" in map(str, source.problems)
            assert all(problem.utterance is None for problem in source.problems)


@pytest.mark.parametrize("role", ["text", "id", "speaker"])
def test_a_column_of_another_type_is_named(role: str, tmp_path: Path) -> None:
    columns = {"text": ["a", "b"]} | {role: [["a"], ["b"]]}
    path = write_table(tmp_path / "x.parquet", **columns)
    with pytest.raises(UserError, match=rf"x.parquet: its column {role} \({role}\) holds list<.*>, not text"):
        open_source(path)


def test_durations_in_every_type_that_holds_them(tmp_path: Path) -> None:
    expected = [0.5, 1.5]
    for values in (
        pyarrow.array(expected, pyarrow.float32()),
        pyarrow.array(["0.5", "1.5"]),
        pyarrow.array([500, 1500], pyarrow.duration("ms")),
    ):
        path = write_table(tmp_path / "x.parquet", text=["a", "b"], duration=values)
        np.testing.assert_allclose(open_source(path).seconds(), expected)
    path = write_table(tmp_path / "x.parquet", text=["a", "b", "c"], duration=["0.5", "n/a", None])
    source = open_source(path)
    assert len(source.utterances()) == 1
    assert [str(problem) for problem in source.problems] == [
        f"{path}#1: its duration is n/a, not a positive number of seconds",
        f"{path}#2: its duration is nan, not a positive number of seconds",
    ]


def test_durations_that_mean_something_else_are_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    times = pyarrow.array([1, 2], pyarrow.timestamp("ms"))
    path = write_table(tmp_path / "x.parquet", text=["a", "b"], duration=times)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(open_source(path).seconds(), [0.1, 0.2])
    assert "its column duration holds timestamp[ms], which is no number of seconds" in caplog.text


def test_shards_with_other_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", text=["a"], duration=[0.1])
    write_table(tmp_path / "b.parquet", text=["b"], seconds=[0.1])
    with pytest.raises(
        UserError, match=r"b.parquet: has no column duration, as .*a.parquet has \(only audio, "
    ):
        open_source(tmp_path)
    write_table(tmp_path / "b.parquet", text=[["b"]], duration=[0.1])
    with pytest.raises(UserError, match=r"b.parquet: its column text \(text\) holds list"):
        open_source(tmp_path)


def test_lengths_of_files_that_rows_only_name_are_measured_each_time(tmp_path: Path) -> None:
    rows = [{"audio": f"c{n}.wav", "text": "x"} for n in range(3)]
    path = write_parquet(tmp_path / "x.parquet", rows)
    with pytest.raises(UserError, match="holds no audio that can be read"):
        open_source(path)
    for seconds in (0.3, 0.7):  # put there, then replaced
        for n in range(3):
            (tmp_path / f"c{n}.wav").write_bytes(wav_bytes(clip(seconds)))
        np.testing.assert_allclose(open_source(path).seconds(), [seconds] * 3)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"broken"])
def test_a_broken_cache_of_lengths_is_measured_again(content: bytes, tmp_path: Path, own_cache: Path) -> None:
    path = write_table(tmp_path / "x.parquet", text=["a", "b"])
    for _ in range(2):
        np.testing.assert_allclose(open_source(path).seconds(), [0.1, 0.2])
        next(own_cache.rglob("*.npy")).write_bytes(content)


def test_files_that_are_no_use(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"broken.parquet: not a readable parquet file"):
        open_source(broken)
    table = pyarrow.table({"text": ["a"], "label": [1]})
    pyarrow.parquet.write_table(table, tmp_path / "labels.parquet")
    with pytest.raises(UserError, match="no column of audio; its columns are text, label"):
        open_source(tmp_path / "labels.parquet")


def test_a_shard_at_an_address(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [loquacious_row(n) for n in range(5)])
    source = ParquetSource([f"file://{path}"], "somewhere else")  # file://: fsspec reads it as it reads hf://
    assert len(source.read(source.utterances()[4])) == 8000


README = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train-*}
  - {split: dev, path: dev/dev-*}
- config_name: clean
  data_files:
  - {split: train, path: clean/train-*}
---
A copy of speechbrain/LoquaciousSet.
"""


@pytest.fixture
def hub_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of LoquaciousSet where machines without network keep what they need of the hub."""
    folder = tmp_path / "models" / "speechbrain" / "LoquaciousSet"
    for shard in range(2):
        rows = [loquacious_row(10 * shard + number) for number in range(5)]
        write_parquet(folder / "small" / f"train-0000{shard}-of-00002.parquet", rows)
    write_parquet(folder / "dev" / "dev-00000-of-00001.parquet", [loquacious_row(99)])
    write_parquet(folder / "clean" / "train-00000-of-00001.parquet", [loquacious_row(50), loquacious_row(51)])
    (folder / "README.md").write_text(README, encoding="utf-8")
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return folder


def test_splits_and_configs_of_a_hub_data_set(hub_copy: Path) -> None:
    expected = {
        "small:train": [f"clip_{n}" for n in [*range(5), *range(10, 15)]],
        "small:dev": ["clip_99"],
        "clean:train": ["clip_50", "clip_51"],
    }
    for place, ids in expected.items():
        source = open_source(f"hub:speechbrain/LoquaciousSet/{place}")
        assert [row.id for row in source.utterances()] == ids
        assert len(source.read(source.utterances()[-1])) == 8000
        assert source.name == f"hub:speechbrain/LoquaciousSet/{place}"


def test_what_a_hub_data_set_does_not_have(hub_copy: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'trian'\. Did you mean .train.\? Its splits are dev,"):
        open_source("hub:speechbrain/LoquaciousSet/small:trian")
    with pytest.raises(UserError, match=r"'smal' not found. Available: .*small"):
        open_source("hub:speechbrain/LoquaciousSet/smal:train")


def test_rows_of_a_hub_data_set_name_no_files_outside_it(hub_copy: Path, tmp_path: Path) -> None:
    private = tmp_path / "private.wav"
    private.write_bytes(wav_bytes(clip(0.5)))
    (hub_copy / "dev" / "inside.wav").write_bytes(private.read_bytes())
    paths = ["inside.wav", str(private), "../../../../private.wav"]
    rows = [loquacious_row(n, wav={"bytes": None, "path": path}) for n, path in enumerate(paths)]
    shard = write_parquet(hub_copy / "dev" / "dev-00000-of-00001.parquet", rows)
    source = open_source("hub:speechbrain/LoquaciousSet/small:dev")
    inside, *outside = source.utterances()
    assert len(source.read(inside)) == 8000
    for row in outside:
        with pytest.raises(AudioError, match="names a file outside the data set"):
            source.read(row)
    # The user's own parquet file may name any.
    assert [len(open_source(shard).read(row)) for row in open_source(shard).utterances()] == [8000] * 3
    far = ParquetSource([f"file://{shard}"], "far")
    with pytest.raises(AudioError, match="only the path of its audio"):
        far.read(far.utterances()[1])


def test_a_hub_data_set_that_is_no_parquet_is_one_clear_line(hub_copy: Path) -> None:
    scripted = hub_copy.parent / "scripted"
    scripted.mkdir()
    (scripted / "scripted.py").write_text("print('run')\n", encoding="utf-8")
    with pytest.raises(UserError, match="made by a script has to be converted first"):
        open_source("hub:speechbrain/scripted:train")
    (hub_copy.parent / "empty").mkdir()
    with pytest.raises(UserError, match="there are no data files that can be read"):
        open_source("hub:speechbrain/empty:train")


def test_no_hub_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot be reached .*\$TINY_AUDIO_MODELS/no/where") as caught:
        open_source("hub:no/where:train")
    assert "\n" not in str(caught.value)


def test_names_of_hub_data_sets() -> None:
    assert parse_hub_name("hub:a/b:train") == ("a/b", None, "train")
    assert parse_hub_name("hub:a/b/c.d:test.clean") == ("a/b", "c.d", "test.clean")
    for name in ("hub:a/b", "hub:a:train", "hub:a/b/c/d:train", "hub:a//c:train", "hub:a/b:"):
        with pytest.raises(UserError, match="it should look like"):
            parse_hub_name(name)
