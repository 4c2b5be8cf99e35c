"""Row groups from elsewhere: fetched once for all workers, again where the network fails, and never too large."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from tests.data.clips import MelProcessor, loquacious_row, write_manifest, write_parquet
from tests.data.far import FarFileSystem
from tiny_audio.data import group_cache, shards, windows
from tiny_audio.data.group_cache import DiskCache
from tiny_audio.data.loader import TrainData
from tiny_audio.data.parquet import ParquetSource
from tiny_audio.data.sources import open_source, open_sources
from tiny_audio.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FarFileSystem, "log", tmp_path / "fetched.log", raising=False)
    monkeypatch.setattr(FarFileSystem, "failures", [])
    monkeypatch.setattr(shards, "FIRST_WAIT_SECONDS", 0.0)
    return tmp_path / "cache" / "row_groups"


def far_source(folder: Path, num_rows: int = 40, rows_of_group: int = 10) -> ParquetSource:
    rows = [loquacious_row(n, 0.3 + 0.01 * (n * 7 % 40)) for n in range(num_rows)]
    path = write_parquet(folder / "x.parquet", rows, rows_of_group)
    return ParquetSource([f"far://{path}"], "somewhere else")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_row_group_is_fetched_once_for_all_workers(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = far_source(tmp_path, num_rows=600, rows_of_group=20)
    # A window of five of its 30 row groups, and a disk cache that holds three windows: workers are ahead.
    num_bytes = int(source.group_bytes().max())
    monkeypatch.setattr(windows, "WINDOW_BYTES", 5 * num_bytes)
    assert source._shards._disk is not None
    monkeypatch.setattr(source._shards._disk, "_limit", 15 * num_bytes)
    data = TrainData(source, MelProcessor(), seed=1, batch_seconds=6.0, max_clips=16, num_workers=num_workers)
    before = FarFileSystem.bytes_fetched()
    assert sum(len(batch["utterance_ids"]) for batch in data.batches(0)) == 600
    data.close()
    fetched = FarFileSystem.bytes_fetched() - before
    assert fetched < 1.2 * source.group_bytes().sum()
    kept = sum(path.stat().st_size for path in (tmp_path / "cache" / "row_groups").glob("*.arrow"))
    assert 10 * num_bytes < kept < 16 * num_bytes


def test_the_next_window_is_there_when_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = far_source(tmp_path, num_rows=600, rows_of_group=20)
    num_bytes = int(source.group_bytes().max())
    monkeypatch.setattr(windows, "WINDOW_BYTES", 5 * num_bytes)
    data = TrainData(source, MelProcessor(), seed=1, batch_seconds=6.0, max_clips=16)
    fetched = [FarFileSystem.bytes_fetched()]
    for epoch in range(2):
        for _ in data.batches(epoch):
            fetched.append(FarFileSystem.bytes_fetched())
    steps = np.diff(fetched)
    assert steps[0] > 3 * num_bytes  # the first window is waited for
    assert steps[1:].max() < 2.5 * num_bytes  # all others come a group or two at a time
    assert (
        fetched[-1] - fetched[0] < 1.2 * source.group_bytes().sum()
    )  # the second epoch has them from the disk
    # What cannot be fetched ahead is no error until it is read.
    for kept in (tmp_path / "cache" / "row_groups").glob("*.arrow"):
        kept.unlink()
    batches = data.batches(2)
    next(batches)
    FarFileSystem.failures.extend([FileNotFoundError("gone")] * 2)
    next(batches)
    assert len(FarFileSystem.failures) < 2
    FarFileSystem.failures.clear()
    assert sum(len(batch["utterance_ids"]) for batch in batches) > 500


def test_windows_of_several_sources_and_going_on_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [loquacious_row(n, 0.3 + 0.01 * (n * 7 % 40)) for n in range(60)]
    for row in rows[50:]:
        row["duration"] = 30.0  # left out: the last group of the first source has no rows
    write_parquet(tmp_path / "a.parquet", rows, 10)
    write_parquet(tmp_path / "b.parquet", rows[:50], 10)
    manifest = write_manifest(tmp_path / "c", [0.4] * 20)
    sources = open_sources([tmp_path / "a.parquet", manifest, tmp_path / "b.parquet"])
    num_bytes = int(max(sources[0].group_bytes().max(), sources[2].group_bytes().max()))
    monkeypatch.setattr(windows, "WINDOW_BYTES", 2 * num_bytes)

    def data() -> TrainData:
        return TrainData(sources, MelProcessor(), seed=1, batch_seconds=4.0, max_clips=8, max_seconds=20.0)

    whole = [batch["utterance_ids"] for batch in data().batches(0)]
    assert sum(map(len, whole)) == 120 and len({name for names in whole for name in names}) == 50 + 20
    for start in (3, len(whole) - 2):
        assert [batch["utterance_ids"] for batch in data().batches(0, start)] == whole[start:]
    # Rows are numbered through all sources: 60, 20 and 50.
    group_of = {row: row // 10 for row in range(60)} | {80 + row: 6 + row // 10 for row in range(50)}
    sequence = [
        {group_of[clip.row] for clip in batch["clips"] if clip.row in group_of} for batch in data().batches(0)
    ]
    at_once = [
        len(set().union(*sequence[: n + 1]) & set().union(*sequence[n:])) for n in range(len(sequence))
    ]
    assert max(at_once) == 2


def test_what_was_fetched_serves_the_next_run(tmp_path: Path) -> None:
    source = far_source(tmp_path)
    first = [source.read(row) for row in source.utterances()]
    fetched = FarFileSystem.bytes_fetched()
    copy = pickle.loads(pickle.dumps(source))
    for row, waveform in zip(source.utterances(), first, strict=True):
        np.testing.assert_array_equal(copy.read(row), waveform)
    assert FarFileSystem.bytes_fetched() == fetched


def test_a_group_that_was_cut_short_on_the_disk_is_fetched_again(tmp_path: Path, elsewhere: Path) -> None:
    source = far_source(tmp_path, num_rows=4)
    row = source.utterances()[0]
    waveform = source.read(row)
    kept = next(elsewhere.glob("*.arrow"))
    for content in (b"", kept.read_bytes()[:1000]):
        kept.write_bytes(content)
        np.testing.assert_array_equal(source.read(row), waveform)


def test_a_disk_without_room_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = far_source(tmp_path)

    def full(self: DiskCache, path: Path, table: pyarrow.Table) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskCache, "_write", full)
    with caplog.at_level(logging.WARNING):
        assert all(len(source.read(row)) > 0 for row in source.utterances())
    assert caplog.text.count("cannot be kept there") == 1 and "TINY_AUDIO_CACHE" in caplog.text


def test_the_least_recently_used_leave_the_disk(tmp_path: Path) -> None:
    table = pyarrow.table({"audio": [b"x" * 10_000]})
    cache = DiskCache(tmp_path / "kept", 35_000)
    fetched: list[str] = []

    def get(name: str) -> None:
        assert cache.table(name, lambda: fetched.append(name) or table) == table

    for name in ("a", "b", "c", "a", "d", "a", "c", "b"):  # with d there are four: b goes
        get(name)
    assert fetched == ["a", "b", "c", "d", "b"]
    assert len(list((tmp_path / "kept").glob("*.lock"))) <= group_cache.NUM_LOCKS


@pytest.mark.parametrize("error", [ConnectionError("reset by peer"), TimeoutError()])
def test_a_network_that_fails_for_a_moment_costs_no_clip(error: Exception, tmp_path: Path) -> None:
    source = far_source(tmp_path)
    data = TrainData(source, MelProcessor(), seed=1, batch_seconds=6.0, max_clips=16)
    source._shards._open_files.clear()
    FarFileSystem.failures = [error] * 4  # at opening and at reading
    assert sum(len(batch["utterance_ids"]) for batch in data.batches(0)) == 40
    assert not data.problems and not FarFileSystem.failures


def test_errors_of_libraries_that_are_no_oserrors_are_of_the_network_too(tmp_path: Path) -> None:
    class ReadTimeout(Exception):
        __module__ = "httpx._exceptions"

    source = far_source(tmp_path)
    FarFileSystem.failures = [ReadTimeout("timed out")]
    assert len(source.read(source.utterances()[0])) > 0


def test_a_network_that_fails_for_good_ends_the_run_and_books_no_row(tmp_path: Path) -> None:
    source = far_source(tmp_path)
    data = TrainData(source, MelProcessor(), seed=1, batch_seconds=6.0, max_clips=16)
    FarFileSystem.failures = [ConnectionError("reset\nby peer")] * 100
    with pytest.raises(
        UserError, match=r"far://.*x.parquet: cannot be fetched \(reset by peer; tried 5 times\)"
    ):
        list(data.batches(0))
    assert not data.problems


def test_a_file_that_is_not_there_is_not_asked_for_again(tmp_path: Path) -> None:
    source = far_source(tmp_path)
    FarFileSystem.failures = [FileNotFoundError("gone"), ConnectionError("never seen")]
    with pytest.raises(UserError, match="gone; tried 1 times"):
        source.read(source.utterances()[0])
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 and then nothing that is one")
    FarFileSystem.failures = []
    with pytest.raises(UserError, match=r"junk.parquet: not a readable parquet file"):
        ParquetSource([f"far://{tmp_path / 'junk.parquet'}"], "x")


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_OPEN_FILES", 3)
    for number in range(8):
        write_parquet(tmp_path / "set" / f"{number}.parquet", [loquacious_row(number)])
    source = open_source(tmp_path / "set")
    for row in [*source.utterances(), *source.utterances()]:
        assert len(source.read(row)) == 8000
        assert len(source._shards._open_files) <= 3


def test_a_row_group_too_large_for_memory_is_refused_with_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "pandas.parquet", [loquacious_row(n) for n in range(300)], 1_000_000)
    monkeypatch.setattr(shards, "LARGEST_GROUP_BYTES", 2_000_000)
    with pytest.raises(
        UserError, match=r"pandas.parquet: one of its row groups holds .* GB of wav"
    ) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    command = str(caught.value).partition('python -c "')[2].rstrip('"')
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    source = open_source(tmp_path / "rewritten.parquet")
    assert len(source.utterances()) == 300 and source.groups().max() == 2
    assert len(source.read(source.utterances()[299])) == 8000


def far_shards(folder: Path, num_files: int = 3, num_rows: int = 30) -> list[str]:
    files = []
    for number in range(num_files):
        rows = [loquacious_row(100 * number + n, 0.3 + 0.01 * n) for n in range(num_rows)]
        files.append(f"far://{write_parquet(folder / f'{number}.parquet', rows, 5)}")
    return files


def test_transcripts_are_fetched_at_once_and_once(tmp_path: Path) -> None:
    files = far_shards(tmp_path)
    source = ParquetSource(files, "somewhere else")
    opening = FarFileSystem.num_requests()
    # The end of a file and its footer; the columns before and behind the audio of each of six row groups.
    assert opening <= 1 + len(files) * (2 + 7)
    rows = list(source.utterances())
    assert FarFileSystem.num_requests() == opening
    near = ParquetSource([file.removeprefix("far://") for file in files], "here")
    assert [(row.id, row.text, row.seconds, row.speaker) for row in rows] == [
        (row.id, row.text, row.seconds, row.speaker) for row in near.utterances()
    ]
    assert source.groups().tolist() == near.groups().tolist()
    assert source.group_bytes().tolist() == near.group_bytes().tolist()
    # The next run has them from the disk, but for the names of the columns; so has a worker that is no fork.
    again = pickle.loads(pickle.dumps(ParquetSource(files, "somewhere else")))
    assert [row.text for row in again.utterances()] == [row.text for row in rows]
    assert FarFileSystem.num_requests() - opening <= 2
    np.testing.assert_array_equal(again.read(rows[70]), near.read(list(near.utterances())[70]))


def test_outlines_that_went_or_were_cut_short_are_fetched_again(tmp_path: Path) -> None:
    files = far_shards(tmp_path)
    source = ParquetSource(files, "somewhere else")
    texts = [row.text for row in source.utterances()]
    kept = sorted((tmp_path / "cache" / "outlines").glob("*.arrow"))
    assert len(kept) == 3
    kept[0].write_bytes(kept[0].read_bytes()[:-300])
    kept[1].unlink()
    assert [row.text for row in ParquetSource(files, "somewhere else").utterances()] == texts
    for path in kept:
        path.unlink()
    moved = pickle.loads(pickle.dumps(source))
    assert [row.text for row in moved.utterances()] == texts  # from elsewhere, a row group at a time


def test_outlines_that_cannot_be_kept_are_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = far_shards(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "outlines").write_text("a file, no folder", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        source = ParquetSource(files, "somewhere else")
    assert caplog.text.count("cannot be kept there") == 1 and "TINY_AUDIO_CACHE" in caplog.text
    assert len(list(source.utterances())) == 90


def test_what_is_wrong_with_one_of_many_files_is_said_of_that_file(tmp_path: Path) -> None:
    files = far_shards(tmp_path)
    damaged = Path(files[1].removeprefix("far://"))
    whole = damaged.read_bytes()
    group = pyarrow.parquet.ParquetFile(damaged).metadata.row_group(2)
    text = next(group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == "text")
    damaged.write_bytes(whole[: text.data_page_offset] + b"\xff" * 20 + whole[text.data_page_offset + 20 :])
    with pytest.raises(UserError, match=r"1\.parquet: is damaged"):
        ParquetSource(files, "somewhere else")
    table = pyarrow.parquet.read_table(files[2].removeprefix("far://"))
    damaged.write_bytes(whole)
    for path in (tmp_path / "cache" / "outlines").iterdir():
        path.unlink()
    pyarrow.parquet.write_table(table.drop_columns(["text"]), files[2].removeprefix("far://"))
    with pytest.raises(UserError, match=r"2\.parquet: has no column text"):
        ParquetSource(files, "somewhere else")


def test_a_network_that_fails_while_transcripts_are_fetched(tmp_path: Path) -> None:
    files = far_shards(tmp_path)
    FarFileSystem.failures.extend([ConnectionError("reset")] * 4)
    assert len(ParquetSource(files, "somewhere else").utterances()) == 90
    for path in (tmp_path / "cache" / "outlines").iterdir():
        path.unlink()
    FarFileSystem.failures.extend([ConnectionError("reset")] * 100)
    with pytest.raises(UserError, match="cannot be fetched"):
        ParquetSource(files, "somewhere else")


def test_a_window_of_row_groups_fits_what_a_process_keeps() -> None:
    assert windows.WINDOW_BYTES <= 0.8 * shards.AUDIO_CACHE_BYTES
    assert 2 * windows.WINDOW_BYTES < shards.SHARED_CACHE_BYTES
