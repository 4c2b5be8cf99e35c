"""Public sets by name: the table, and opening copies with each set's real columns."""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.data.clips import RATE, clip, loquacious_row, wav_bytes, write_manifest, write_parquet
from tiny_audio.data.known_sets import KnownSet, expand_sets, find_set, groups, known_sets
from tiny_audio.data.sources import open_source, open_sources
from tiny_audio.errors import UserError


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies of hub sets lie; the working folder is empty."""
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(tmp_path / "models"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "models"


def flac_bytes(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC")
    return file.getvalue()


def open_asr_row(number: int, text: str) -> dict[str, Any]:
    """A row with the columns of hf-audio/open-asr-leaderboard."""
    seconds = 0.3 + 0.1 * number
    return {
        "audio": {"bytes": flac_bytes(clip(seconds, number)), "path": f"{number}.flac"},
        "dataset": "some set",
        "text": text,
        "id": f"row-{number}",
        "audio_length_s": seconds,
    }


ROWS_OF = {
    "speechbrain/LoquaciousSet": lambda number, text: loquacious_row(number, 0.5, text=text),
    "hf-audio/open-asr-leaderboard": open_asr_row,
    "fixie-ai/common_voice_17_0": lambda number, text: {
        "client_id": f"client-{number}",
        "path": f"common_voice_en_{number}.mp3",
        "audio": {"bytes": wav_bytes(clip(0.5, number)), "path": f"common_voice_en_{number}.mp3"},
        "sentence": text,
        "up_votes": 2,
    },
    "openslr/librispeech_asr": lambda number, text: {
        "file": f"103-1240-{number:04}.flac",
        "audio": {"bytes": flac_bytes(clip(0.5, number)), "path": f"103-1240-{number:04}.flac"},
        "text": text,
        "speaker_id": 103,
        "chapter_id": 1240,
        "id": f"103-1240-{number:04}",
    },
    "MLCommons/peoples_speech": lambda number, text: {
        "id": f"someone/{number}.flac",
        "audio": {"bytes": flac_bytes(clip(0.5, number)), "path": f"{number}.flac"},
        "duration_ms": 500,
        "text": text,
    },
}


def write_copy(models: Path, entry: KnownSet, config: str, splits: dict[str, list[str]]) -> None:
    """A copy of a set as the hub lays it out, with a card that lists its files."""
    folder = models / entry.repository
    card = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split, texts in splits.items():
        rows = [ROWS_OF[entry.repository](number, text) for number, text in enumerate(texts)]
        write_parquet(folder / config / f"{split}-00000-of-00001.parquet", rows)
        card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]), encoding="utf-8")


@pytest.mark.parametrize("name", known_sets())
def test_every_set_opens_with_its_columns(models: Path, name: str) -> None:
    entry = known_sets()[name]
    write_copy(models, entry, entry.config, {hub: ["two words", "and more"] for hub in entry.splits.values()})
    source = open_source(name)
    rows = source.utterances()
    assert source.name == f"{name}:{entry.test_split}" and [row.text for row in rows] == [
        "two words",
        "and more",
    ]
    assert all(source.read(row).shape == (round(row.seconds * RATE),) for row in rows if row.seconds)
    assert rows[1].id == {
        "speechbrain/LoquaciousSet": "clip_1",
        "fixie-ai/common_voice_17_0": "common_voice_en_1.mp3",
        "MLCommons/peoples_speech": "someone/1.flac",
        "openslr/librispeech_asr": "103-1240-0001",
    }.get(entry.repository, "row-1")
    assert (rows[0].speaker is not None) == ("speaker" in entry.columns)


@pytest.mark.parametrize("name", known_sets())
def test_an_entry_is_complete(name: str) -> None:
    entry = known_sets()[name]
    assert entry.test_split in entry.splits and entry.licence and {"audio", "text"} <= set(entry.columns)
    assert entry.leaderboard_samples == "all" or isinstance(entry.leaderboard_samples, int)
    assert entry.scored_rows is None or (entry.rows is not None and entry.scored_rows <= entry.rows)
    assert not entry.configs or entry.config in entry.configs
    assert set(entry.shared_splits) <= set(entry.splits)


def test_rows_that_must_not_be_scored_are_left_out_and_listed(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["hello <unk> there", "ignore_time_segment_in_scoring", "Mm-hmm, uh.", "", "good day"]
    write_copy(models, known_sets()["TED-LIUM"], "tedlium", {"test": texts})
    with caplog.at_level(logging.WARNING):
        source = open_source("tedlium")
    assert [row.text for row in source.utterances()] == ["hello  there", "good day"]
    assert [row.id for row in source.utterances()] == ["row-0", "row-4"] and source.problems == []
    reasons = [problem.reason for problem in source.excluded]
    assert "'ignore_time_segment_in_scoring' instead of words" in reasons[0]
    assert "no words after the English normaliser: 'Mm-hmm, uh.'" in reasons[1] and len(reasons) == 3
    assert all("test-00000-of-00001.parquet#" in problem.name for problem in source.excluded)
    assert "TED-LIUM:test: 3 of 5 rows are left out" in caplog.text
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read(copy.utterances()[1]), source.read(source.utterances()[1]))


def test_tags_of_gigaspeech_become_punctuation(models: Path) -> None:
    texts = ["yes <COMMA> it is <PERIOD>", "<MUSIC>", "is it <QUESTIONMARK>"]
    write_copy(models, known_sets()["GigaSpeech"], "gigaspeech", {"test": texts})
    source = open_source("GigaSpeech:test")
    assert [row.text for row in source.utterances()] == ["yes, it is.", "is it?"] and len(
        source.excluded
    ) == 1


def test_the_hub_name_of_a_known_set_has_the_same_rules(models: Path) -> None:
    write_copy(models, known_sets()["AMI"], "ami", {"test": ["yes", "uh"]})
    source = open_source("hub:hf-audio/open-asr-leaderboard/ami:test")
    assert source.name == "hub:hf-audio/open-asr-leaderboard/ami:test"
    assert len(source.utterances()) == len(source.excluded) == 1


def test_without_a_split_training_takes_train_and_an_evaluation_test(models: Path) -> None:
    write_copy(models, known_sets()["LoquaciousSet"], "small", {"train": ["a", "b"], "test": ["c"]})
    assert open_source("LoquaciousSet/small").name == "LoquaciousSet:test"
    [source] = open_sources(["LoquaciousSet/small"])
    assert source.name == "LoquaciousSet/small:train" and len(source.utterances()) == 2
    with pytest.raises(UserError, match=r"AMI has no split 'train'.* It has test"):
        open_sources("AMI")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("LoqaciousSet", 'Did you mean "LoquaciousSet"?'),
        ("librispeech-claen:test", 'Did you mean "LibriSpeech-clean"?'),
        ("LoquaciousSet:tset", "has no split 'tset'. Did you mean \"test\"? It has train, dev, test"),
        ("LoquaciousSet/smal", "has no config 'smal'. Did you mean \"small\"?"),
        ("open-asr", "open-asr stands for AMI-cleaned, Earnings22"),
        ("../../etc:passwd", "no such source"),
        ("C:\\clips", "no such source"),
        ("", "A source is"),
    ],
)
def test_names_that_do_not_exist(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        open_source(spec or "x/")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_the_name_hides_the_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_manifest(Path("AMI"), [0.2])
    assert len(open_source("AMI").utterances()) == 1
    assert "AMI: the folder of that name is meant, not the public set" in caplog.text
    assert expand_sets("AMI") == ["AMI"]


def test_terms_to_agree_to_are_named(models: Path) -> None:
    write_copy(models, known_sets()["AMI"], "ami", {"test": ["yes"]})
    with pytest.raises(UserError, match=r"terms of SPGISpeech .*https://huggingface.co/datasets/kensho/"):
        open_source("SPGISpeech")


def test_groups_are_of_known_sets_and_come_in_order() -> None:
    assert expand_sets("open_asr") == groups()["open-asr"] and len(groups()["open-asr"]) == 7
    assert all(name in known_sets() for members in groups().values() for name in members)
    assert expand_sets("corpus:test") == ["corpus:test"] and expand_sets("nothing") == ["nothing"]


def test_one_name_for_one_piece_of_data() -> None:
    names = ["LoquaciousSet", "loquacious_set/small:test", "hub:speechbrain/LoquaciousSet/large:test"]
    found = [find_set(name) for name in names]
    assert {split.name for split in found if split} == {"LoquaciousSet:test"} and all(found)
    small = find_set("LoquaciousSet/small:train")
    assert small and small.hub_name == "hub:speechbrain/LoquaciousSet/small:train"
    assert find_set("hub:speechbrain/LoquaciousSet/large:other") is None and find_set("corpus:test") is None
