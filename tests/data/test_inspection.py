"""A set is looked at before it is trained on: what is counted, and which rows are suspected of what."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.data.clips import loquacious_row, write_parquet
from tests.tiny_models import noise
from tiny_audio.cli import main
from tiny_audio.data import inspection
from tiny_audio.data.inspection import Inspection, draw_inspection, format_inspection, inspect_source
from tiny_audio.data.source import LazySequence, Source
from tiny_audio.data.sources import open_source
from tiny_audio.data.utterance import AudioRef, Utterance

GOOD = "the train leaves at nine"
VOCABULARY = " 'abcdefghijklmnopqrstuvwxyz0123456789"


def write_set(folder: Path) -> Path:
    """A good row, and one of every kind of fault."""
    folder.mkdir(parents=True)
    tone = 0.3 * np.sin(np.arange(32_000) / 9)
    rows: list[tuple[str, np.ndarray, str, dict[str, object]]] = [
        ("good", tone, GOOD, {"speaker": "ada"}),
        ("again", tone, f"{GOOD} ", {"speaker": "ada"}),  # the same words, the same length
        ("fast", tone[:8000], "far too many words for the half of a second that this clip is long", {}),
        ("slow", np.tile(tone, 4), "oh", {"speaker": "bob"}),
        ("silent", np.zeros(32_000), "nobody hears this", {}),
        ("clipped", np.sign(tone), "this is much too loud", {}),
        ("stated", tone, "this clip ends too early", {"seconds": 4.0}),
        ("tags", tone, "well <unk> said [noise]", {}),
        ("nothing", tone, "<unk>", {}),
        ("empty", noise(1.0) * 0.01, "", {}),
        ("umlaut", tone, "grüße", {}),
    ]
    lines = []
    for name, waveform, text, more in rows:
        soundfile.write(folder / f"{name}.flac", waveform, 16_000)
        seconds = len(waveform) / 16_000
        lines.append(json.dumps({"audio": f"{name}.flac", "text": text, "seconds": seconds, **more}))
    (folder / "broken.flac").write_bytes(b"fLaC" + bytes(40))
    lines.append(json.dumps({"audio": "broken.flac", "text": "cannot be heard", "seconds": 1.0}))
    (folder / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    return inspect_source(open_source(write_set(tmp_path_factory.mktemp("data") / "set")))


def test_every_fault_is_found_in_its_own_row(found: Inspection) -> None:
    ids: dict[str, set[str]] = {}
    for suspect in found.suspects:
        ids.setdefault(suspect.kind, set()).add(Path(suspect.id).stem)
    assert ids == {
        "fast": {"fast"},
        "slow": {"slow"},
        "nothing but markup": {"nothing"},
        "duplicate": {"again"},
        "unreadable": {"broken"},
        "silent": {"silent"},
        "clipped": {"clipped"},
        "shorter than stated": {"stated"},
    }
    assert found.num_suspects == Counter(dict.fromkeys(ids, 1))


def test_what_is_counted(found: Inspection) -> None:
    assert (found.num_rows, found.num_decoded, found.num_speakers) == (12, 12, 2)
    assert found.num_empty == 1 and found.num_unknown_length == 0
    assert found.num_words == 5 + 5 + 15 + 1 + 3 + 5 + 5 + 2 + 0 + 0 + 1 + 3
    assert found.hours == pytest.approx((2 + 2 + 0.5 + 8 + 2 + 2 + 4 + 2 + 2 + 1 + 2 + 1) / 3600)
    assert found.tags == Counter({"<unk>": 2, "[noise]": 1})
    assert found.repeated_texts == [(GOOD, 2)]
    assert ("well <unk> said [noise]", "well said") in found.tidied
    assert found.as_json()["suspects"]["silent"] == 1


def test_the_words_for_people(found: Inspection) -> None:
    text = format_inspection(found, VOCABULARY, (0.6, 5.0))
    for part in (
        "12 rows",
        "2 speakers",
        "shorter than the 0.6 s",
        "longer than the 5 s",
        "not in ctc.vocabulary: ü ß",
        "markup: <unk> 2, [noise] 1",
        "before: well <unk> said [noise]",
        "1 duplicate (same text and same length",
        "space e t",
    ):
        assert part in text, part


def test_pictures_are_drawn_of_anything(found: Inspection, tmp_path: Path) -> None:
    target = io.BytesIO()
    draw_inspection(found, target)
    assert target.getvalue().startswith(b"\x89PNG")
    draw_inspection(Inspection("nothing"), io.BytesIO())


def write_manifest(folder: Path, *rows: dict[str, object]) -> Path:
    """A manifest of one recording of 2 s, which all its rows name."""
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "a.flac", 0.3 * np.sin(np.arange(32_000) / 9), 16_000)
    lines = [json.dumps({"audio": "a.flac", "text": GOOD, "seconds": 2.0} | row) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def kinds(found: Inspection) -> Counter[str]:
    return found.num_suspects - Counter({"duplicate": found.num_suspects["duplicate"]})


def test_audio_that_is_longer_than_stated(tmp_path: Path) -> None:
    rows = [{"id": "half", "seconds": 1.0}, {"id": "nearly", "seconds": 1.9}]
    found = inspect_source(open_source(write_manifest(tmp_path, *rows)))
    assert kinds(found) == Counter(["longer than stated"])
    assert "half: 2.00 s instead of 1 s" in format_inspection(found, VOCABULARY, (0.6, 5.0))


@pytest.mark.parametrize("seconds", [100_000, 1e-42])
def test_lengths_that_cannot_be_are_told_and_left_out_of_all_figures(seconds: float, tmp_path: Path) -> None:
    rows = [{"id": "typo", "seconds": seconds}, {"id": "right"}]
    found = inspect_source(open_source(write_manifest(tmp_path, *rows)), num_decoded=0)
    assert found.hours == pytest.approx(2 / 3600) and len(found.characters_per_second) == 1
    assert kinds(found) == Counter(["impossible length"])
    assert f"typo: {seconds:.6g} s" in format_inspection(found, VOCABULARY, (0.6, 5.0))
    draw_inspection(found, io.BytesIO())


def test_long_audio_is_not_decoded_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "LONGEST_HEARD_SECONDS", 1.0)
    shard = write_parquet(tmp_path / "shards/a.parquet", [loquacious_row(0, 1.5), loquacious_row(1, 0.5)])
    for source in (write_manifest(tmp_path / "files", {"id": "long"}), shard, "corpus:test"):
        found = inspect_source(open_source(source), num_decoded=1000)
        longer = found.seconds > 1.0
        assert kinds(found)["not heard out"] == longer.sum() > 0
        assert len(found.levels_db) == found.num_rows - longer.sum()


def test_rows_with_the_same_id(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": "0001", "text": "one"}, {"id": "0002", "text": "two"}]
    found = inspect_source(open_source(write_manifest(tmp_path, *rows, {"id": "0001", "text": "three"})))
    assert found.num_suspects == Counter({"repeated id": 1})
    assert [(each.id, each.text) for each in found.suspects] == [("0001", "three")]


def test_nothing_that_is_printed_steers_the_terminal(tmp_path: Path) -> None:
    red, title = "\x1b[31m", "\x1b]0;gone\x07"
    rows: list[dict[str, object]] = [{"id": f"{red}1", "seconds": 1.0, "text": f"x <{red}> [{title}] {red}"}]
    rows.append({"audio": f"{red}not there.wav"})
    found = inspect_source(open_source(write_manifest(tmp_path / f"set{red}", *rows)))
    text = format_inspection(found, VOCABULARY, (0.6, 5.0))
    assert found.tags and found.suspects and found.problems
    assert "\x1b" not in text and "\x07" not in text


class ManyRows(Source):
    """A source of rows that are made when they are asked for, as those of large sets are."""

    def __init__(self, num_rows: int) -> None:
        self.name, self.problems, self._num_rows = "many", [], num_rows

    def utterances(self) -> Sequence[Utterance]:
        return LazySequence(
            self._num_rows,
            lambda row: Utterance(f"row{row}", f"text {row % 7} x", 2.0 + row % 3, AudioRef("shard", row)),
        )

    def seconds(self) -> np.ndarray:
        return (2.0 + np.arange(self._num_rows) % 3).astype(np.float32)

    def read(self, utterance: Utterance, max_seconds: float | None = None) -> np.ndarray:
        return noise(1.0)


def test_a_sample_is_listened_to_and_is_the_same_every_time() -> None:
    first, second = (inspect_source(ManyRows(3000), num_decoded=20) for _ in range(2))
    assert first.num_decoded == 20 and first.num_distinct_texts == 7
    assert first.num_suspects["shorter than stated"] == 20
    assert [each.id for each in first.suspects] == [each.id for each in second.suspects]
    # 7 texts x 3 lengths are 21 different rows
    assert first.num_suspects["duplicate"] == 3000 - 21


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "inspect", "set", "corpus:dev", "--listen", "5"]) == 0
    output = capsys.readouterr().out
    assert "12 rows" in output and "corpus:dev" in output
    for name in ("inspection.png", "inspection.json", "inspection.txt", "suspects.jsonl"):
        assert (tmp_path / "outputs" / "inspect_set" / name).is_file()
        assert (tmp_path / "outputs" / "inspect_corpus-dev" / name).is_file()
    suspects = (tmp_path / "outputs/inspect_set/suspects.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["kind"] for line in suspects} >= {"fast", "slow", "duplicate"}
    assert main(["data", "inspect", "nowhere"]) == 2
    assert "no such source" in capsys.readouterr().err
