"""From sources to batches: the same for any number of workers and after any restart."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.data.clips import RATE, MelProcessor, clip, loquacious_row, spoken, write_manifest, write_parquet
from tiny_audio.data.augment import Augmentation
from tiny_audio.data.loader import TrainData
from tiny_audio.data.scan import LeftOut
from tiny_audio.data.sources import open_source, open_sources
from tiny_audio.errors import UserError

LENGTHS = [0.3 + 0.1 * (number % 9) for number in range(30)]
HEAVY = {
    "speed": [0.8, 1.2], "speed_probability": 0.7, "tempo": [0.9, 1.1], "tempo_probability": 0.3,
    "noise_probability": 0.5,
    "reverb_probability": 0.5, "band_limit_probability": 0.5, "gain_db": [-6, 6], "splice_probability": 0.4,
    "time_masks": 1, "frequency_masks": 1,
}  # fmt: skip


def train_data(sources: Any, **changes: Any) -> TrainData:
    settings: dict[str, Any] = {
        "seed": 3,
        "batch_seconds": 6.0,
        "max_clips": 8,
        "max_seconds": 20.0,
    } | changes
    return TrainData(open_sources(sources), settings.pop("processor", None) or MelProcessor(), **settings)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("clips"), LENGTHS, speaker="s")


def test_an_epoch_holds_every_clip_once_with_its_own_text(manifest: Path) -> None:
    data = train_data(manifest)
    batches = list(data.batches(0))
    assert len(batches) == data.num_batches(0)
    ids = [name for batch in batches for name in batch["utterance_ids"]]
    assert sorted(ids) == sorted(f"c{n}" for n in range(30))
    for index, batch in enumerate(batches):
        assert (batch["epoch"], batch["batch_index"]) == (0, index)
        numbers = [int(name[1:]) for name in batch["utterance_ids"]]
        assert spoken(batch) == [("clip " + "na " * number).strip() for number in numbers]
        assert batch["audio_seconds"] == pytest.approx(sum(LENGTHS[number] for number in numbers))
        assert batch["input_features"].shape[0] == len(numbers) <= 8
        assert len(numbers) * max(LENGTHS[number] for number in numbers) <= 6.0
    assert data.num_clips == 30 and data.hours == pytest.approx(sum(LENGTHS) / 3600)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_do_not_depend_on_workers(manifest: Path, tmp_path: Path, num_workers: int) -> None:
    shards = write_parquet(tmp_path / "x.parquet", [loquacious_row(number) for number in range(10)])
    alone = train_data([manifest, shards], augmentation=HEAVY)
    helped = train_data([manifest, shards], augmentation=HEAVY, num_workers=num_workers)
    for epoch in (0, 1):
        expected, found = list(alone.batches(epoch)), list(helped.batches(epoch))
        assert len(expected) == len(found) > 5
        assert all(same(first, second) for first, second in zip(expected, found, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_going_on_in_the_middle_gives_the_very_same_batches(manifest: Path, num_workers: int) -> None:
    whole = list(train_data(manifest, augmentation=HEAVY).batches(1))
    again = train_data(manifest, augmentation=HEAVY, num_workers=num_workers)
    for start in (3, 0, len(whole) - 1, len(whole)):  # the same loader, started over and over
        rest = list(again.batches(1, start))
        assert len(rest) == len(whole) - start
        assert all(same(first, second) for first, second in zip(whole[start:], rest, strict=True))
    interrupted = again.batches(0)
    next(interrupted)
    interrupted.close()
    assert same(next(again.batches(1, 2)), whole[2])


def test_epochs_and_seeds_differ_in_order_and_in_sound(manifest: Path) -> None:
    def features(seed: int, epoch: int) -> dict[str, torch.Tensor]:
        data = train_data(manifest, seed=seed, augmentation=HEAVY | {"splice_probability": 0.0}, max_clips=1)
        return {batch["utterance_ids"][0]: batch["input_features"] for batch in data.batches(epoch)}

    first = features(3, 0)
    for other in (features(3, 1), features(4, 0)):
        assert list(first) != list(other)
        changed = [not torch.equal(first[name], other[name]) for name in first]
        assert np.mean(changed) > 0.9


def test_the_planner_knows_how_long_augmented_clips_are(manifest: Path) -> None:
    data = train_data(manifest, augmentation=HEAVY, batch_seconds=3.0)
    share = data.padding_share(0)
    padded = heard = 0.0
    for batch in data.batches(0):
        seconds = batch["input_features"].shape[-1] * 0.01
        assert len(batch["utterance_ids"]) == 1 or seconds * len(batch["utterance_ids"]) < 3.2
        padded += seconds * len(batch["utterance_ids"])
        heard += batch["audio_seconds"]
    assert 1 - heard / padded == pytest.approx(share, abs=0.03)


def test_spliced_rows_say_new_things_and_keep_their_ids(tmp_path: Path) -> None:
    lines = []
    for number in range(20):
        words = ["one two", "three", "four five six"][number % 3].split()
        soundfile.write(tmp_path / f"{number}.wav", clip(0.5 * len(words), number), RATE)
        times = [[word, 0.5 * k + 0.05, 0.5 * k + 0.45] for k, word in enumerate(words)]
        row = {"audio": f"{number}.wav", "text": " ".join(words), "speaker": "s", "words": times}
        lines.append(json.dumps(row))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = train_data(tmp_path, augmentation=Augmentation(splice_probability=1.0))
    ids, texts = [], []
    for batch in data.batches(0):
        ids += batch["utterance_ids"]
        texts += spoken(batch)
    assert sorted(ids, key=int) == [str(number) for number in range(20)]
    assert len(set(texts) - {"one two", "three", "four five six"}) >= 5
    assert {word for text in texts for word in text.split()} <= {"one", "two", "three", "four", "five", "six"}


def break_clips(folder: Path, numbers: list[int]) -> None:
    """Damage that only reading shows: the manifest states the seconds."""
    for number in numbers:
        path = folder / f"c{number}.wav"
        if number % 2:
            path.write_bytes(b"RIFF but not really")
        else:
            soundfile.write(path, np.full(4000, np.nan), RATE, subtype="FLOAT")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_clips_that_cannot_be_read_are_named_and_the_batch_goes_on(tmp_path: Path, num_workers: int) -> None:
    path = write_manifest(tmp_path, LENGTHS)
    break_clips(tmp_path, [4, 7])
    data = train_data(path, num_workers=num_workers)
    for epoch in (0, 1):  # a clip that fails again is still one clip
        ids = [name for batch in data.batches(epoch) for name in batch["utterance_ids"]]
        assert sorted(ids) == sorted(f"c{n}" for n in range(30) if n not in (4, 7))
    assert sorted(problem.name for problem in data.problems) == ["c4", "c7"]
    assert "NaN" in str(data.problems) and "not audio" in str(data.problems)
    assert any("left out 2 clips, unusable: c" in line for line in data.summary())


def test_a_batch_that_loses_all_its_clips_is_passed_over_and_the_numbers_stay(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [0.5] * 6)
    break_clips(tmp_path, [1])
    data = train_data(path, max_clips=1)
    healthy = train_data(write_manifest(tmp_path / "healthy", [0.5] * 6), max_clips=1)
    expected = {
        b["batch_index"]: b["utterance_ids"] for b in healthy.batches(0) if b["utterance_ids"] != ["c1"]
    }
    assert {batch["batch_index"]: batch["utterance_ids"] for batch in data.batches(0)} == expected
    assert len(expected) == 5 and data.num_batches(0) == 6


def test_clips_that_turn_out_unusable_are_told_once(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, LENGTHS)
    break_clips(tmp_path, [4, 7])
    data, told = train_data(path), list[str]()
    data.note_problem = lambda problem: told.append(problem.name)
    for epoch in (0, 1):
        list(data.batches(epoch))
    assert sorted(told) == ["c4", "c7"]


@pytest.mark.parametrize("stated", [0.2, 4.0])
def test_audio_of_another_length_than_stated_is_no_clip(tmp_path: Path, stated: float) -> None:
    path = write_manifest(tmp_path, [0.5, 1.4, 0.6])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[1]["seconds"] = stated
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = train_data(path)
    assert [name for batch in data.batches(0) for name in batch["utterance_ids"]] in (
        ["c0", "c2"],
        ["c2", "c0"],
    )
    (problem,) = data.problems
    assert str(problem) == f"c1: lasts 1.40 s, not the {stated:.2f} s that are stated"


def test_what_the_processor_refuses_is_a_clip_less(tmp_path: Path) -> None:
    class Short(MelProcessor):
        def features(self, waveform: np.ndarray) -> torch.Tensor:
            if len(waveform) > 0.7 * RATE:
                raise ValueError("one pass takes at most 0.7 s")
            return super().features(waveform)

    data = train_data(write_manifest(tmp_path, [0.5, 0.8]), processor=Short())
    assert [batch["utterance_ids"] for batch in data.batches(0)] == [["c0"]]
    assert [str(problem) for problem in data.problems] == ["c1: one pass takes at most 0.7 s"]


def test_more_text_than_anybody_says_is_left_out(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [1.0] * 4)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[2]["text"] = "word " * 4000
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = train_data(path, max_characters_per_second=40.0)
    assert data.left_out == {"more text than data.max_characters_per_second=40 allows": LeftOut(1, ["c2"])}
    assert train_data(path).num_clips == 4


def test_other_languages_are_left_out(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [1.0] * 4)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row, language in zip(rows, ["en-GB", "de", None, "EN"], strict=True):
        row["language"] = language
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert train_data(path, languages=["en"]).left_out == {"not in data.languages=[en]": LeftOut(1, ["c1"])}
    assert train_data(path, languages=["de", "en_US"]).num_clips == train_data(path).num_clips == 4


def test_the_language_column_of_parquet(tmp_path: Path) -> None:
    rows = [loquacious_row(number, language=("en", "fr")[number % 2]) for number in range(6)]
    assert train_data(write_parquet(tmp_path / "x.parquet", rows), languages=["en"]).num_clips == 3
    rows = [loquacious_row(number, language=number) for number in range(6)]
    assert train_data(write_parquet(tmp_path / "y.parquet", rows), languages=["en"]).num_clips == 6


def test_clips_of_one_id_sound_each_in_its_own_way(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [1.0] * 40, id="same")
    data = train_data(path, augmentation=Augmentation(speed=(0.8, 1.2), speed_probability=1.0))
    lengths = {num_samples for batch in data.batches(0) for num_samples in batch["num_samples"]}
    assert len(lengths) > 10


def test_the_fingerprint_is_of_the_clips(tmp_path: Path) -> None:
    first = train_data(write_manifest(tmp_path / "a", [0.5, 0.6, 0.7])).fingerprint
    assert train_data(write_manifest(tmp_path / "b", [0.5, 0.6, 0.7]), seed=8).fingerprint == first
    assert train_data(write_manifest(tmp_path / "c", [0.5, 0.6])).fingerprint != first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_unreadable_clips_stop_the_run_with_one_line(tmp_path: Path, num_workers: int) -> None:
    path = write_manifest(tmp_path, LENGTHS)
    break_clips(tmp_path, list(range(8)))
    data = train_data(path, num_workers=num_workers)
    with pytest.raises(UserError) as caught:
        list(data.batches(0))
    message = str(caught.value)
    assert "of 30 rows cannot be used, more than the 3 that data.max_bad_fraction=0.01 allows" in message
    assert "\n" not in message and "Traceback" not in message and message.count("c0") <= 2
    patient = train_data(path, max_bad_fraction=0.5)
    assert sum(len(batch["utterance_ids"]) for batch in patient.batches(0)) == 22


def test_too_many_bad_rows_of_the_scan_stop_the_run_before_it_begins(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [0.3] * 4)
    with path.open("a", encoding="utf-8") as file:
        file.write("{}\n" * 4)
    with pytest.raises(UserError, match=r'4 of 8 rows cannot be used.*manifest.jsonl line 5: has no "audio"'):
        train_data(path)


class PickyProcessor(MelProcessor):
    def assemble(self, features: torch.Tensor, text: str | None) -> dict[str, Any]:
        raise UserError("the tokenizer knows no letters; choose another")


def test_an_error_of_a_worker_arrives_as_its_one_line(manifest: Path) -> None:
    data = TrainData(
        open_source(manifest), PickyProcessor(), seed=1, batch_seconds=5, max_clips=4, num_workers=2
    )
    with pytest.raises(UserError) as caught:
        next(data.batches(0))
    assert str(caught.value) == "the tokenizer knows no letters; choose another"


def test_workers_leave_ctrl_c_to_the_main_process() -> None:
    program = (
        "import signal, torch; from tiny_audio.data.reader import start_worker; start_worker(0);"
        "signal.raise_signal(signal.SIGINT); print('still here', torch.get_num_threads())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "still here 1"


def test_closing_ends_the_workers_and_going_on_starts_them_again(manifest: Path) -> None:
    data = train_data(manifest, num_workers=2)
    before = {process.pid for process in multiprocessing.active_children()}
    batches = data.batches(0)
    first = next(batches)
    assert len({process.pid for process in multiprocessing.active_children()} - before) == 2
    batches.close()
    data.close()
    assert not {process.pid for process in multiprocessing.active_children()} - before
    assert same(next(data.batches(0)), first)


def test_filters_count_and_name_what_they_leave_out(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [0.05, 0.5, 0.6, 3.0, 3.5])
    extra = [
        {"audio": "c1.wav", "text": "<unk>", "id": "markup"},
        {"audio": "c1.wav", "text": "  ", "id": "silence"},
        {"audio": "c1.wav", "text": "LOUD [noise] WORDS", "id": "loud"},
    ]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in extra)
    data = train_data(path, min_seconds=0.1, max_seconds=2.0)
    assert data.left_out == {
        "shorter than data.min_seconds=0.1": LeftOut(1, ["c0"]),
        "longer than data.max_seconds=2": LeftOut(2, ["c3", "c4"]),
        "nothing but markup in the transcript": LeftOut(1, ["markup"]),
    }
    texts = {
        name: text
        for batch in data.batches(0)
        for name, text in zip(batch["utterance_ids"], spoken(batch), strict=True)
    }
    assert texts == {"c1": "clip na", "c2": "clip na na", "silence": "", "loud": "loud words"}
    summary = data.summary()
    assert "4 clips" in summary[0] and "padding" in summary[0]
    assert "left out 2 clips, longer than data.max_seconds=2: c3, c4" in summary
    raw = train_data(path, min_seconds=0.1, max_seconds=2.0, clean_text=False)
    assert any("LOUD [noise] WORDS" in spoken(batch) for batch in raw.batches(0))
    with pytest.raises(
        UserError, match=r"no clip is left to train on \(left out 7 clips, longer .* 1 clip, shorter"
    ):
        train_data(path, max_seconds=0.2, min_seconds=0.1)


def heard(data: TrainData, epoch: int) -> dict[str, int]:
    """How often each clip is in an epoch."""
    return dict(Counter(name for batch in data.batches(epoch) for name in batch["utterance_ids"]))


def two_sources(folder: Path) -> list[str]:
    write_manifest(folder / "many", LENGTHS[:10])
    rows = [json.loads(line) for line in write_manifest(folder / "few", LENGTHS[:3]).open(encoding="utf-8")]
    lines = [json.dumps({**row, "id": f"few-{number}"}) for number, row in enumerate(rows)]
    (folder / "few" / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [str(folder / "many"), str(folder / "few")]


def test_weights_are_kept_exactly_over_epochs(tmp_path: Path) -> None:
    many, few = two_sources(tmp_path)
    data = train_data([f"{many}*0.3", f"{few}*2.5"], augmentation={"noise_probability": 1.0})
    total: Counter[str] = Counter()
    for epoch in range(20):
        now = heard(data, epoch)
        total.update(now)
        # 3 of the 10 clips, 7 or 8 of the 3 clips: none twice more than another of its source
        assert sum(n for name, n in now.items() if name.startswith("c")) == 3
        assert sum(n for name, n in now.items() if name.startswith("few")) == (7, 8)[epoch % 2]
        if epoch % 10 == 9:
            assert all(total[f"c{n}"] == 0.3 * (epoch + 1) for n in range(10))
            assert all(total[f"few-{n}"] == 2.5 * (epoch + 1) for n in range(3))
    assert set(heard(data, 0)) != set(heard(data, 1))


def test_a_clip_heard_again_sounds_otherwise_and_every_batch_can_be_had_again(tmp_path: Path) -> None:
    many, few = two_sources(tmp_path)
    sources = [many, f"{few}*4"]
    data = train_data(sources, augmentation={"noise_probability": 1.0, "speed_probability": 1.0}, max_clips=1)
    whole = list(data.batches(2))
    sounds = [batch["input_features"] for batch in whole if batch["utterance_ids"] == ["few-1"]]
    assert len(sounds) == 4 and len({sound.sum().item() for sound in sounds}) == 4
    again = train_data(
        sources, augmentation={"noise_probability": 1.0, "speed_probability": 1.0}, max_clips=1, num_workers=1
    )
    rest = list(again.batches(2, 5))
    assert len(rest) == len(whole) - 5 and all(map(same, whole[5:], rest))
    again.close()


def test_the_summary_counts_each_source(tmp_path: Path) -> None:
    many, few = two_sources(tmp_path)
    data = train_data([many, f"{few}*2.5"])
    hours = [sum(LENGTHS[:count]) / 3600 for count in (10, 3)]
    first, second = data.summary()[1:3]
    assert f"{many}: 10 clips" in first and "heard once an epoch" in first
    assert f"{few}: 3 clips" in second and f"heard 2.5 times an epoch: {2.5 * hours[1]:.2f} hours" in second
    assert data.num_clips == 13 and data.hours == pytest.approx(sum(hours))


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "two", "", "1e9"])
def test_a_weight_that_is_none_is_refused(tmp_path: Path, weight: str) -> None:
    many, _ = two_sources(tmp_path)
    with pytest.raises(UserError, match=r"after \* goes how often"):
        open_sources([f"{many}*{weight}"])


@pytest.mark.skipif(sys.platform == "win32", reason="no file is called so there")
def test_a_file_that_is_called_so_is_meant(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few").rename(tmp_path / "few*3")
    write_manifest(tmp_path / "few*3", LENGTHS[:2])
    (source,) = open_sources(str(tmp_path / "few*3"))
    assert source.weight == 1 and len(source.utterances()) == 2


def test_what_is_encoded_is_encoded_once(tmp_path: Path) -> None:
    many, few = two_sources(tmp_path)
    data = train_data([f"{many}*0.3", f"{few}*4"], variants=1)
    assert heard(data, 0) == {**{f"c{n}": 1 for n in range(10)}, **{f"few-{n}": 1 for n in range(3)}}
