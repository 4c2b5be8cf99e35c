"""Public sets by name: the table, and opening copies with each set's real columns."""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub
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
    "edinburghcstr/ami": lambda number, text: {
        "meeting_id": "EN2001a",
        "audio_id": f"AMI_{number}",
        "text": text,
        "audio": {"bytes": wav_bytes(clip(0.5, number)), "path": f"{number}.wav"},
        "begin_time": 1.0,
        "end_time": 1.5,
        "microphone_id": "H00",
        "speaker_id": "MEE068",
    },
    "sanchit-gandhi/earnings22_split": lambda number, text: {
        "source_id": "4420696",
        "audio": {"bytes": wav_bytes(clip(0.5, number)), "path": f"{number}.wav"},
        "segment_id": number,
        "sentence": text,
        "start_ts": 1.0,
        "end_ts": 1.5,
    },
    "speechcolab/gigaspeech": lambda number, text: {
        "segment_id": f"YOU{number}",
        "speaker": "N/A",
        "text": text,
        "audio": {"bytes": wav_bytes(clip(0.5, number)), "path": f"{number}.wav"},
        "begin_time": 1.0,
        "end_time": 1.5,
        "audio_id": "YOU",
        "title": "a talk",
        "url": "https://example.org",
        "source": 2,
        "category": 3,
        "original_full_path": "audio/youtube/P0000/YOU.opus",
    },
    "kensho/spgispeech": lambda number, text: {
        "wav_filename": f"32bcf9c9/{number}.wav",
        "wav_filesize": 16044,
        "transcript": text,
        "audio": {"bytes": wav_bytes(clip(0.5, number)), "path": f"{number}.wav"},
    },
    "sanchit-gandhi/tedlium-data": lambda number, text: {
        "audio": {"bytes": wav_bytes(clip(0.5, number)), "path": f"{number}.wav"},
        "text": text,
        "speaker_id": "Someone",
        "gender": 1,
        "file": f"{number}.sph",
        "id": f"Someone-{number}",
    },
    "facebook/voxpopuli": lambda number, text: {
        "audio_id": f"20180206-{number}",
        "language": 0,
        "audio": {"bytes": wav_bytes(clip(0.5, number)), "path": f"{number}.wav"},
        "raw_text": text,
        "normalized_text": "something else",
        "gender": "female",
        "speaker_id": "124737",
        "is_gold_transcript": True,
        "accent": "None",
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
        "edinburghcstr/ami": "AMI_1",
        "sanchit-gandhi/earnings22_split": "test-00000-of-00001-1",
        "speechcolab/gigaspeech": "YOU1",
        "kensho/spgispeech": "32bcf9c9/1.wav",
        "sanchit-gandhi/tedlium-data": "Someone-1",
        "facebook/voxpopuli": "20180206-1",
    }.get(entry.repository, "row-1")
    assert (rows[0].speaker is not None) == ("speaker" in entry.columns)


@pytest.mark.parametrize("name", known_sets())
def test_an_entry_is_complete(name: str) -> None:
    entry = known_sets()[name]
    assert entry.test_split in entry.splits and entry.licence and {"audio", "text"} <= set(entry.columns)
    assert entry.leaderboard_samples == "all" or isinstance(entry.leaderboard_samples, int)
    assert entry.scored_rows is None or (entry.rows is not None and entry.scored_rows <= entry.rows)
    assert not entry.configs or entry.config in entry.configs
    more = known_sets()[entry.more] if entry.more else None
    assert more is None or (more.more is None and set(entry.splits) <= set(more.splits))
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
    with pytest.raises(UserError, match=r"LibriSpeech-clean has no split 'train'.* It has test"):
        open_sources("LibriSpeech-clean")


def test_the_sets_of_the_public_leaderboard_can_be_trained_on(models: Path) -> None:
    """Its repository has test splits alone; the others are the makers'."""
    more = known_sets()["GigaSpeech-full"]
    write_copy(models, more, "m", {"train": ["ONE <COMMA> TWO <PERIOD>", "<SIL>"], "validation": ["THREE"]})
    [source] = open_sources("GigaSpeech")
    assert source.name == "GigaSpeech-full:train" and len(source.excluded) == 1
    assert [row.text for row in source.utterances()] == ["ONE, TWO."]
    assert open_source("gigaspeech-cleaned:dev").name == "GigaSpeech-full:dev"
    wanted = find_set("GigaSpeech/xl:train")
    assert wanted is not None and wanted.hub_name == "hub:speechcolab/gigaspeech/xl:train"
    for name, repository in (
        ("GigaSpeech", "hf-audio/open-asr-leaderboard"),
        ("AMI-full", "edinburghcstr/ami"),
    ):
        found = find_set(name)
        assert found is not None and found.entry.repository == repository and found.split == "test"
    with pytest.raises(UserError, match=r"GigaSpeech-full has no split 'dve'. Did you mean \"dev\"\?"):
        find_set("GigaSpeech:dve")


def test_words_that_nobody_wrote_down_are_not_learnt_to_be_skipped(models: Path) -> None:
    texts = ["<unk> and so on", "what a day", "so [Applause] well"]
    write_copy(models, known_sets()["TED-LIUM-full"], "default", {"train": texts})
    [source] = open_sources("TED-LIUM")
    assert [row.text for row in source.utterances()] == texts[1:]
    assert "has <unk> for words that nobody wrote down: '<unk> and so on'" in source.excluded[0].reason


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


def test_terms_to_agree_to_are_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"terms of SPGISpeech .*https://huggingface.co/datasets/kensho/"):
        open_source("SPGISpeech")
    # Of a copy on this machine there is nothing to agree to.
    write_copy(models, known_sets()["SPGISpeech-full"], "S", {"train": ["yes"]})
    with pytest.raises(UserError, match="BuilderConfig 'M' not found") as caught:
        open_sources("SPGISpeech")
    assert "terms" not in str(caught.value) and "README.md" not in str(caught.value)
    (models / "kensho/spgispeech/README.md").unlink()
    with pytest.raises(UserError, match=r"has no README.md: that of the hub names the configurations"):
        open_sources("SPGISpeech")


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
