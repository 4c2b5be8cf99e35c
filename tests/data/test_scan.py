"""One look at each transcript, remembered for as long as nothing has changed that decides what is found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.clips import MelProcessor, loquacious_row, write_manifest, write_parquet
from tiny_audio.data import mapped, scan
from tiny_audio.data.filters import Filters
from tiny_audio.data.loader import TrainData
from tiny_audio.data.manifest import ManifestSource
from tiny_audio.data.scan import CLIP, SAME_ID_STRIDE, Scan, scan_sources, tell_apart
from tiny_audio.data.sources import open_sources
from tiny_audio.data.utterance import Utterance
from tiny_audio.train.build import build_encoder_side
from tiny_audio.train.config import compose_config

FILTERS = Filters(0.0, 20.0, 400.0, None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scan, "ROWS_WORTH_KEEPING", 10)
    return tmp_path / "cache" / "scans"


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_encoder_side(compose_config([]))[1]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the rows of manifests whose transcripts were looked at."""
    seen: list[str] = []
    in_turn = ManifestSource._in_turn

    def watched(self: ManifestSource, first: int = 0) -> Iterator[Utterance]:
        for row in in_turn(self, first):
            seen.append(row.id)
            yield row

    monkeypatch.setattr(ManifestSource, "_in_turn", watched)
    return seen


def look(specs: Any, processor: Any, filters: Filters = FILTERS, clean_text: bool = True) -> Scan:
    return scan_sources(open_sources(specs), processor, filters, clean_text, False, False)


def same(first: Scan, second: Scan) -> bool:
    return (
        first.clips.tolist() == second.clips.tolist()
        and first.bounds.tolist() == second.bounds.tolist()
        and first.left_out == second.left_out
        and first.fingerprint() == second.fingerprint()
    )


def test_a_second_run_looks_at_no_transcript(processor: Any, looked_at: list[str], tmp_path: Path) -> None:
    many, few = tmp_path / "many", tmp_path / "few"
    write_manifest(many, [0.5] * 20 + [30.0])
    write_manifest(few, [0.4] * 3)
    first = look([many, few], processor)
    assert len(looked_at) == 24 and len(first) == 23
    assert first.left_out["longer than data.max_seconds=20"].names == ["c20"]
    looked_at.clear()
    assert same(look([many, few], processor), first) and looked_at == []


def test_of_several_processes_one_looks(processor: Any, looked_at: list[str], tmp_path: Path) -> None:
    write_manifest(tmp_path / "many", [0.5] * 20)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: look(tmp_path / "many", processor), range(4)))
    assert len(looked_at) == 20 and all(same(one, found[0]) for one in found)


def test_small_sets_are_looked_at_each_time(
    processor: Any, looked_at: list[str], tmp_path: Path, cache: Path
) -> None:
    write_manifest(tmp_path / "few", [0.4] * 9)
    look(tmp_path / "few", processor)
    look(tmp_path / "few", processor)
    assert len(looked_at) == 18 and not cache.exists()


def test_whatever_decides_is_looked_at_again(
    processor: Any, looked_at: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "many"
    write_manifest(folder, [0.5] * 20)
    looks = 0

    def expect_a_look(*arguments: Any, **options: Any) -> Scan:
        nonlocal looks
        looked_at.clear()
        found = look(folder, *arguments, **options)
        assert len(looked_at) >= 19
        looked_at.clear()
        assert same(look(folder, *arguments, **options), found) and looked_at == []
        looks += 1
        return found

    expect_a_look(processor)
    expect_a_look(processor, Filters(0.0, 20.0, 401.0, None))
    expect_a_look(processor, clean_text=False)
    other = build_encoder_side(compose_config(["model.tokenizer_words=[]"]))[1]
    assert expect_a_look(other).clips["tokens"].tolist() != look(folder, processor).clips["tokens"].tolist()
    manifest = folder / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    rows[3]["text"] = "other words"
    manifest.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    expect_a_look(processor)
    # A file that has gone moves all rows behind it, and the manifest is as it was.
    (folder / rows[5]["audio"]).unlink()
    assert len(expect_a_look(processor)) == 19
    assert looks == 6


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 33])
def test_a_scan_that_was_cut_short_is_made_again(
    content: bytes, processor: Any, looked_at: list[str], tmp_path: Path, cache: Path
) -> None:
    write_manifest(tmp_path / "many", [0.5] * 20)
    first = look(tmp_path / "many", processor)
    for kept in sorted(cache.glob("*.[cj]*")):
        whole = kept.read_bytes()
        kept.write_bytes(content)
        looked_at.clear()
        assert same(look(tmp_path / "many", processor), first) and len(looked_at) == 20
        assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_error(processor: Any, tmp_path: Path, cache: Path) -> None:
    write_manifest(tmp_path / "many", [0.5] * 20)
    cache.parent.mkdir()
    cache.write_text("a file, no folder", encoding="utf-8")
    assert len(look(tmp_path / "many", processor)) == 20


def test_shards_are_known_by_what_they_are(processor: Any, tmp_path: Path) -> None:
    rows = [loquacious_row(number) for number in range(30)]
    path = write_parquet(tmp_path / "x.parquet", rows, 10)
    first = look(path, processor)
    assert first.clips["group"].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert same(look(path, processor), first)
    rows[4]["text"] = "something else was said"
    write_parquet(path, rows, 10)
    assert look(path, processor).clips["tokens"][4] != first.clips["tokens"][4]


@pytest.mark.parametrize("at_a_time", [1, 7, 1000])
def test_clips_of_one_id_are_told_apart(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "KEYS_AT_A_TIME", at_a_time)
    monkeypatch.setattr(mapped, "PIECE_ROWS", 8)
    drawn = np.random.default_rng(0).integers(0, 12, 50).astype(np.uint64) * np.uint64(2**60 + 7)
    clips = np.zeros(50, CLIP)
    clips["key"] = drawn
    tell_apart(clips)
    seen: dict[int, int] = {}
    for key, found in zip(drawn.tolist(), clips["key"].tolist(), strict=True):
        assert found == (key + seen.get(key, 0) * int(SAME_ID_STRIDE)) % 2**64
        seen[key] = seen.get(key, 0) + 1
    assert len(set(clips["key"].tolist())) == 50


def test_batches_are_the_same_in_memory_and_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path / "many", [0.3 + 0.01 * number for number in range(40)])

    def batches() -> list[list[str]]:
        data = TrainData(
            open_sources([tmp_path / "many"]), MelProcessor(), seed=1, batch_seconds=4.0, max_clips=8
        )
        return [batch["utterance_ids"] for batch in data.batches(0)]

    in_memory = batches()
    monkeypatch.setattr(mapped, "RECORDS_IN_MEMORY", 10)
    monkeypatch.setattr(mapped, "PIECE_ROWS", 7)
    assert batches() == in_memory
