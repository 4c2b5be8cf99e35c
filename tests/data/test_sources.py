"""Folders, LibriSpeech layout and manifests: what is found, and what is said about the rest."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.data.clips import RATE, clip, loquacious_row, write_manifest, write_parquet
from tiny_audio.data import corpus
from tiny_audio.data.source import allowed_problems, check_problems
from tiny_audio.data.sources import open_source, open_sources
from tiny_audio.data.utterance import Problem, Word
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_audio import AudioError

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
}


def write_clip(path: Path, seconds: float = 0.5, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, subtype = FORMATS[path.suffix[1:].lower()]
    soundfile.write(path, clip(seconds), RATE, format=kind, subtype=subtype)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return path


def reasons(problems: list[Problem]) -> str:
    return " | ".join(str(problem) for problem in problems)


def test_a_folder_holds_every_format_with_text_beside_it(tmp_path: Path) -> None:
    for suffix in FORMATS:
        write_clip(tmp_path / "set one" / f"clip {suffix}.{suffix}", text=f"  said in\n{suffix} ")
    write_clip(tmp_path / "set two" / "LOUD.WAV", text="")
    source = open_source(tmp_path)
    rows = source.utterances()
    assert [row.id for row in rows] == [f"set one/clip {name}" for name in sorted(FORMATS)] + ["set two/LOUD"]
    assert [row.text for row in rows[:6]] == [f"said in {name}" for name in sorted(FORMATS)]
    assert rows[6].text == "" and not source.problems
    for row in rows:
        assert row.seconds == pytest.approx(0.5, abs=0.15)
        assert len(source.read(row)) == pytest.approx(8000, abs=2400)
    np.testing.assert_allclose(source.seconds(), [row.seconds for row in rows], rtol=1e-6)


def test_what_is_wrong_in_a_folder_is_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "good.wav", text="good")
    write_clip(tmp_path / "same.wav", text="one")
    write_clip(tmp_path / "same.flac")
    write_clip(tmp_path / "mute.wav")
    (tmp_path / "alone.txt").write_text("nobody says this", encoding="utf-8")
    (tmp_path / "list.wav").write_text("milk, eggs", encoding="utf-8")
    (tmp_path / "list.txt").write_text("milk eggs", encoding="utf-8")
    soundfile.write(tmp_path / "nothing.wav", np.zeros((0, 1)), RATE)
    (tmp_path / "nothing.txt").write_text("nothing", encoding="utf-8")
    write_clip(tmp_path / "latin.wav")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    write_clip(tmp_path / ".hidden" / "x.wav")
    (tmp_path / "._mac.wav").write_bytes(b"\0")
    source = open_source(tmp_path)
    assert [row.id for row in source.utterances()] == ["good", "same.flac", "same.wav"]
    assert sorted(problem.name for problem in source.problems) == [
        "alone.txt", "latin.txt", "list.wav", "mute.wav", "nothing.wav"
    ]  # fmt: skip
    found = reasons(source.problems)
    assert "mute.wav: has no transcript mute.txt beside it" in found
    assert "alone.txt: is a transcript without audio beside it" in found
    assert "list.wav: is not audio that can be read" in found
    assert "nothing.wav: holds no samples" in found
    assert "latin.txt: is not UTF-8 text" in found


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_clip(folder / "day" / "a.wav", text="one")
    write_clip(tmp_path / "elsewhere" / "b.wav", text="two")
    (folder / "again").symlink_to(folder / "day")  # sorts before what it leads to
    (folder / "day" / "up").symlink_to(folder)
    (folder / "out").symlink_to(tmp_path)  # holds the folder itself
    (folder / "far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    source = open_source(folder)
    assert [row.id for row in source.utterances()] == ["day/a", "far/b"] and not source.problems
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert [row.id for row in open_source(linked).utterances()] == ["day/a", "far/b"]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_a_folder_holds_what_ffmpeg_reads(tmp_path: Path) -> None:
    wav = write_clip(tmp_path / "clip.wav")
    for suffix in ("m4a", "webm"):
        command = ["ffmpeg", "-v", "error", "-i", str(wav), str(tmp_path / f"clip {suffix}.{suffix}")]
        subprocess.run(command, check=True)
        (tmp_path / f"clip {suffix}.txt").write_text(suffix, encoding="utf-8")
    wav.unlink()
    source = open_source(tmp_path)
    assert [row.text for row in source.utterances()] == ["m4a", "webm"]
    assert all(len(source.read(row)) == pytest.approx(8000, abs=2400) for row in source.utterances())


def test_a_folder_of_shards_of_several_splits_wants_one_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        write_parquet(folder / "data" / f"{name}.parquet", [loquacious_row(number)])
    write_parquet(folder / "validation" / "0000.parquet", [loquacious_row(3)])
    with pytest.raises(
        UserError, match=rf"several splits \(test, train, validation\); name .* {folder}:test$"
    ):
        open_source(folder)
    for split, ids in {"train": ["clip_0", "clip_1"], "test": ["clip_2"], "dev": ["clip_3"]}.items():
        source = open_source(f"{folder}:{split}")
        assert [row.id for row in source.utterances()] == ids and source.name == f"{folder}:{split}"
    with pytest.raises(
        UserError, match=r"no .parquet files of a split 'trian'; its splits are test, train, val"
    ):
        open_source(f"{folder}:trian")
    # Words inside others are no splits, and the folder's own path says nothing.
    other = tmp_path / "train and test" / "contest"
    for name in ("testimony", "trainer"):
        write_parquet(other / f"{name}.parquet", [loquacious_row(len(name))])
    assert len(open_source(other).utterances()) == 2


def test_librispeech_layout(tmp_path: Path) -> None:
    chapter = tmp_path / "LibriSpeech" / "test-clean" / "61" / "70968"
    write_clip(chapter / "61-70968-0001.flac")
    write_clip(chapter / "61-70968-0000.flac")
    write_clip(chapter / "61-70968-0007.flac")
    (chapter / "61-70968.trans.txt").write_text(
        "61-70968-0000 HE BEGAN A CONFUSED COMPLAINT\n61-70968-0001 GIVE NOT SO EARNEST A MIND\n\n"
        "61-70968-0002 A GOLDEN FORTUNE\n",
        encoding="utf-8",
    )
    source = open_source(tmp_path)
    assert [(row.id, row.speaker, row.text) for row in source.utterances()] == [
        ("61-70968-0000", "61", "HE BEGAN A CONFUSED COMPLAINT"),
        ("61-70968-0001", "61", "GIVE NOT SO EARNEST A MIND"),
    ]
    assert len(source.read(source.utterances()[0])) == 8000
    found = reasons(source.problems)
    assert "line 4: names 61-70968-0002, which has no audio file beside it" in found
    assert "61-70968-0007.flac: is in no *.trans.txt beside it" in found


def test_a_manifest_with_everything_it_may_hold(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", clip(1.0), RATE)
    (tmp_path / "sub").mkdir()
    soundfile.write(tmp_path / "sub" / "bé.wav", clip(0.5), RATE)
    absolute = str(tmp_path / "a.wav")
    lines = [
        {"audio": "a.wav", "text": "hello you", "seconds": 1, "speaker": 7, "words": [["hello", 0.1, 0.4],
        ["you", 0.5, 0.9]]}, {"audio": "sub/bé.wav", "text": "über", "extra": [1, 2]},
        {"audio": absolute, "text": "", "id": "again"},
        {"audio": "../" + tmp_path.name + "/a.wav", "text": "up and down"},
    ]  # fmt: skip
    text = "\ufeff" + "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    (tmp_path / "manifest.jsonl").write_text(text, encoding="utf-8")
    for spec in (tmp_path, tmp_path / "manifest.jsonl", str(tmp_path)):
        source = open_source(spec)
        rows = source.utterances()
        assert not source.problems and len(rows) == 4
        assert rows[0].words == (Word("hello", 0.1, 0.4), Word("you", 0.5, 0.9))
        assert (rows[0].id, rows[0].speaker, rows[1].id, rows[1].text) == ("a", "7", "sub/bé", "über")
        assert (rows[2].id, rows[2].text, rows[-1].text) == ("again", "", "up and down")
        assert source.seconds() == pytest.approx([1.0, 0.5, 1.0, 1.0])
        assert [len(source.read(row)) for row in rows] == [16000, 8000, 16000, 16000]
    with pytest.raises(AudioError, match=r"longer than the limit of 0\.3 s"):
        source.read(rows[1], max_seconds=0.3)
    with pytest.raises(IndexError):
        rows[4]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.utterances()[1] == rows[1] and [row.id for row in copy.utterances()] == [
        row.id for row in rows
    ]


BAD_LINES = {
    "{": "line 2: is not valid JSON",
    '["a.wav", "hello"]': "line 2: must be an object",
    '{"audio": "a.wav"}': 'line 2: has no "text"; its keys are audio',
    '{"path": "a.wav", "text": "x"}': 'line 2: has no "audio"; its keys are path, text',
    '{"audio": "a.wav", "text": null}': 'line 2: "text" must be a string, not null',
    '{"audio": 3, "text": "x"}': 'line 2: "audio" must be a string, not a number',
    '{"audio": " ", "text": "x"}': 'line 2: "audio" is not a path',
    '{"audio": "https://x.org/a.wav", "text": "x"}': "line 2: .*local path, not the address https",
    '{"audio": "a.wav", "text": "x", "seconds": -1}': 'line 2: "seconds" must be a positive number of .*, not -1',
    '{"audio": "a.wav", "text": "x", "seconds": 1e39}': 'line 2: "seconds" must be a positive number of at most',
    f'{{"audio": "a.wav", "text": "x", "seconds": {"9" * 401}}}': 'line 2: "seconds" must be a positive number',
    f'{{"audio": "a.wav", "text": "x", "words": [["x", 0, {"9" * 401}]]}}': 'line 2: "words" must be a list',
    '{"audio": "a.wav", "text": "well \\ud83d"}': 'line 2: "text" holds half a character',
    '{"audio": "a.wav", "text": "x", "seconds": NaN}': 'line 2: "seconds" must be a positive number',
    '{"audio": "a.wav", "text": "x", "seconds": true}': 'line 2: "seconds" must be a positive number',
    '{"audio": "a.wav", "text": "x", "words": [["x", 0]]}': 'line 2: "words" must be a list',
    '{"audio": "b.wav", "text": "x", "seconds": 1}': "line 2: b.wav: no such file",
    '{"audio": "b.wav", "text": "x"}': "line 2: b.wav: no such file",
    '{"audio": "manifest.jsonl", "text": "x"}': "line 2: manifest.jsonl: is not audio that can be read",
    '{"audio": ".", "text": "x"}': "line 2: .: is a folder",
    '"\\ud800': "line 2: is not valid JSON",
    "[" * 100_000: "line 2: is not valid JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=[line[:40] for line in BAD_LINES])
def test_a_bad_line_of_a_manifest_is_named_and_the_rest_is_read(line: str, tmp_path: Path) -> None:
    import re

    soundfile.write(tmp_path / "a.wav", clip(0.5), RATE)
    good = '{"audio": "a.wav", "text": "hello"}'
    (tmp_path / "manifest.jsonl").write_text(f"{good}\n{line}\n{good}", encoding="utf-8")
    source = open_source(tmp_path)
    assert [row.text for row in source.utterances()] == ["hello", "hello"]
    assert len(source.problems) == 1
    assert re.search(BAD_LINES[line], str(source.problems[0])), source.problems
    assert "\n" not in str(source.problems[0])


def test_an_id_of_null_is_none(tmp_path: Path) -> None:
    write_manifest(tmp_path, [0.2, 0.3], id=None)
    assert [row.id for row in open_source(tmp_path).utterances()] == ["c0", "c1"]


def test_a_manifest_that_is_changed_while_it_is_read(tmp_path: Path) -> None:
    source = open_source(write_manifest(tmp_path, [0.2, 0.3]))
    rows = source.utterances()
    text = (tmp_path / "manifest.jsonl").read_text(encoding="utf-8")
    (tmp_path / "manifest.jsonl").write_text(text[20:], encoding="utf-8")
    with pytest.raises(UserError, match="was changed or taken away while it was read"):
        rows[1]
    (tmp_path / "manifest.jsonl").unlink()
    with pytest.raises(UserError, match="was changed or taken away while it was read"):
        rows[0]


def test_a_manifest_that_is_not_utf8(tmp_path: Path) -> None:
    write_manifest(tmp_path, [0.2])
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(b'{"audio": "c0.wav", "text": "caf\xe9"}\n')
    assert str(open_source(tmp_path).problems[0]) == "manifest.jsonl line 2: is not UTF-8"


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    (tmp_path / "notes.docx").write_text("x", encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    only_bad = tmp_path / "bad"
    only_bad.mkdir()
    write_clip(only_bad / "a.wav")
    for spec, message in {
        tmp_path / "recording": 'no such source. Did you mean "recordings"',
        tmp_path / "recordings": "no audio in this folder",
        tmp_path / "notes.docx": "a file ending in .docx is not a source",
        tmp_path / "empty.jsonl": "no usable speech with transcript found",
        only_bad: "no usable speech with transcript found: a.wav: has no transcript a.txt beside it",
        "corpus:trian": 'Did you mean "train"',
        "hub:LoquaciousSet": "it should look like hub:ORGANISATION/NAME",
    }.items():
        with pytest.raises(UserError) as caught:
            open_source(spec)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no source of data given"):
        open_sources([])


def test_one_source_or_several(tmp_path: Path) -> None:
    first, second = write_manifest(tmp_path / "a", [0.2]), write_manifest(tmp_path / "b", [0.2, 0.3])
    assert [len(source.utterances()) for source in open_sources(str(first))] == [1]
    assert [len(source.utterances()) for source in open_sources([first, second])] == [1, 2]


def test_how_many_bad_rows_are_too_many() -> None:
    assert [allowed_problems(rows, 0.01) for rows in (1, 300, 399, 400, 1000)] == [3, 3, 3, 4, 10]
    assert allowed_problems(1000, 0) == 0
    problems = [Problem(f"f{number}.wav", "holds no samples") for number in range(8)]
    check_problems(problems[:3], 20, 0.01, "here")
    with pytest.raises(UserError) as caught:
        check_problems(problems, 20, 0.01, "here")
    assert str(caught.value) == (
        "here: 8 of 20 rows cannot be used, more than the 3 that data.max_bad_fraction=0.01 allows: "
        "f0.wav: holds no samples; f1.wav: holds no samples; f2.wav: holds no samples; "
        "f3.wav: holds no samples; "
        "f4.wav: holds no samples; and 3 more"
    )


def test_the_embedded_corpus_is_a_source() -> None:
    source = open_source("corpus:dev")
    rows = source.utterances()
    source.prepare()
    streams_read = corpus._stream.cache_info().currsize
    for row in rows[:: len(rows) // 20]:
        assert len(source.read(row)) == pytest.approx(row.seconds * RATE, abs=1)  # type: ignore[operator]
        assert row.words is None or [word.text for word in row.words] == row.text.split()
    assert corpus._stream.cache_info().currsize == streams_read > 0
    with pytest.raises(AudioError, match=r"longer than the limit of 0\.1 s"):
        source.read(rows[0], max_seconds=0.1)
