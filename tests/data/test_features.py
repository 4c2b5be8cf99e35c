"""A store of encoder frames: clips are told apart by where they lie, and what changed or broke is not read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import soundfile

from tests.data.clips import RATE, clip, loquacious_row, write_parquet
from tiny_audio.data.features import clip_identity
from tiny_audio.data.sources import open_source


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
def test_equally_named_clips_of_one_length_are_told_apart(write, tmp_path: Path) -> None:
    assert len(set(identities(str(write(tmp_path / "data"))))) == 2


@pytest.mark.parametrize("write", [write_speakers, write_shards])
def test_a_folder_that_lies_elsewhere_is_known_again(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
