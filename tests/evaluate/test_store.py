import json
from pathlib import Path

import numpy as np
import pytest

from tiny_audio.evaluate.store import StoredTranscript, TranscriptStore, cache_folder, cached_store

TONE, OTHER = np.full(100, 0.5, np.float32), np.full(100, 0.25, np.float32)
TEXT = StoredTranscript("good\nmorning \u2028 \udcff", 1.5, 0.25)


def test_what_is_kept_is_found_by_another_process(tmp_path: Path) -> None:
    store = TranscriptStore(tmp_path / "new" / "folder" / "kept.jsonl", "a model")
    assert store.get(store.key(TONE)) is None and not store.path.exists()
    store.add([(store.key(TONE), TEXT)])
    again = TranscriptStore(store.path, "a model")
    assert len(again) == 1 and again.get(again.key(TONE)) == TEXT
    assert again.get(again.key(OTHER)) is None
    again.remove()
    assert not store.path.exists() and len(again) == 0


def test_another_model_does_not_find_it(tmp_path: Path) -> None:
    store = TranscriptStore(tmp_path / "kept.jsonl", "a model")
    store.add([(store.key(TONE), TEXT)])
    other = TranscriptStore(store.path, "another model")
    assert other.get(other.key(TONE)) is None and len(other) == 0


def test_a_line_cut_short_costs_only_itself(tmp_path: Path) -> None:
    store = TranscriptStore(tmp_path / "kept.jsonl", "a model")
    store.add([(store.key(TONE), TEXT), (store.key(OTHER), TEXT)])
    store.path.write_bytes(store.path.read_bytes()[:-7])
    cut = TranscriptStore(store.path, "a model")
    assert len(cut) == 1 and cut.get(cut.key(TONE)) == TEXT
    cut.add([(cut.key(OTHER), TEXT)])
    whole = TranscriptStore(store.path, "a model")
    assert len(whole) == 2 and whole.get(whole.key(OTHER)) == TEXT


@pytest.mark.parametrize(
    "line", ["[]", "3", '{"key": "a"}', '{"key": 1, "text": null, "audio_seconds": []}', "\0"]
)
def test_lines_that_say_something_else_are_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "kept.jsonl"
    key = TranscriptStore(path, "a model").key(TONE)
    row = {"key": key, "text": "t", "audio_seconds": 1, "wall_seconds": 2}
    path.write_text(line + "\n" + json.dumps(row), encoding="utf-8")
    store = TranscriptStore(path, "a model")
    assert len(store) == 1 and store.get(key) == StoredTranscript("t", 1.0, 2.0)


def test_the_cache_folder_is_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    store = cached_store("a service")
    store.add([(store.key(TONE), TEXT)])
    assert cached_store("a service").get(store.key(TONE)) == TEXT and len(cached_store("another")) == 0
