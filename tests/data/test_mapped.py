"""Long arrays lie in files, and nobody who uses them can tell."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from tiny_audio.data import mapped
from tiny_audio.data.mapped import RecordWriter, load_records, pieces, release, save_records

PAIR = np.dtype([("number", "<i8"), ("share", "<f4")])


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mapped, "RECORDS_IN_MEMORY", 100)
    monkeypatch.setattr(mapped, "PIECE_ROWS", 30)
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))


def write(num_records: int) -> np.ndarray:
    writer = RecordWriter(PAIR)
    for number in range(num_records - num_records // 3):
        writer.append(number, number / 2)
    rest = np.arange(len(writer), num_records)
    writer.extend(np.array([(number, number / 2) for number in rest.tolist()], PAIR))
    assert len(writer) == num_records
    return writer.finish()


@pytest.mark.parametrize("num_records", [0, 1, 30, 100, 101, 1000])
def test_what_is_written_is_there(num_records: int, tmp_path: Path) -> None:
    records = write(num_records)
    assert isinstance(records, np.memmap) == (num_records > 100)
    assert records["number"].tolist() == list(range(num_records))
    np.testing.assert_array_equal(records["share"], np.arange(num_records) / 2)
    copy = pickle.loads(pickle.dumps(records))
    release(records)
    np.testing.assert_array_equal(copy, records)
    assert not list(tmp_path.rglob("cache/*"))  # no file with a name


def test_changes_in_place_outlive_the_memory() -> None:
    records = write(1000)
    records["number"][::2] = -1
    release(records)
    assert records["number"].tolist() == [-1 if number % 2 == 0 else number for number in range(1000)]


def test_where_nothing_can_be_written_it_stays_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, no folder", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        records = write(1000)
    assert not isinstance(records, np.memmap) and records["number"].tolist() == list(range(1000))
    assert caplog.text.count("TINY_AUDIO_CACHE names a folder") == 1


def test_a_disk_that_becomes_full_loses_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real limit of the system on the size of files."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        records = write(1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not isinstance(records, np.memmap) and records["number"].tolist() == list(range(1000))


def test_saved_and_mapped_again(tmp_path: Path) -> None:
    for num_records in (0, 10, 1000):
        save_records(tmp_path / "x" / "kept", write(num_records))
        np.testing.assert_array_equal(load_records(tmp_path / "x" / "kept", PAIR), write(num_records))
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["kept"]
    (tmp_path / "x" / "kept").write_bytes(b"half a record")
    with pytest.raises(ValueError, match="size"):
        load_records(tmp_path / "x" / "kept", PAIR)


def test_pieces_are_all_of_it() -> None:
    assert [row for piece in pieces(100) for row in range(100)[piece]] == list(range(100))
    assert list(pieces(0)) == []
