"""Cached features: training on them is training on the audio, and nothing stale, missing or half-written is read."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from tests.tiny_models import noise
from tests.train.short_runs import assert_same, settings, weights, write_speech
from tiny_audio.data import features as stored
from tiny_audio.data.sources import open_sources
from tiny_audio.errors import UserError
from tiny_audio.train import features
from tiny_audio.train.build import build_data, build_model
from tiny_audio.train.config import check_config
from tiny_audio.train.features import cache_features, open_store
from tiny_audio.train.loop import Trainer
from tiny_audio.train.records import read_metrics
from tiny_audio.train.run import run

NUM_CLIPS = 30
AUGMENTATION = (
    "augmentation.noise_probability=0.5",
    "augmentation.speed_probability=0.5",
    "augmentation.splice_probability=0.5",
    "augmentation.non_speech_probability=0.3",
    "augmentation.time_masks=1",
    "data.features_cache_variants=2",
)


@pytest.fixture(autouse=True)
def _hub(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(bases))


@pytest.fixture
def configured(speech: Path, tmp_path: Path) -> Callable[..., Any]:
    """A recipe on a frozen pretrained encoder, which the features in `tmp_path` are of."""

    def configure(*overrides: str, name: str = "run", data: Path = speech, cached: bool = True) -> Any:
        config = settings(
            data,
            tmp_path / name,
            "training.optimizer=adamw",
            "model.freeze_encoder=true",
            "data.short_first=false",
            "augmentation.gain_db=[0,0]",
            *(
                f"augmentation.{kind}_probability=0"
                for kind in ("speed", "tempo", "noise", "reverb", "splice")
            ),
            *(f"augmentation.{kind}_probability=0" for kind in ("band_limit", "equalizer", "non_speech")),
            "augmentation.frequency_warp_probability=0",
            "augmentation.time_masks=0",
            "augmentation.frequency_masks=0",
            *overrides,
        )
        config.model.encoder_model_name = "acme/whisper-pico"
        config.data.features_cache = str(tmp_path / "features") if cached else None
        return check_config(config)

    return configure


def cache(config: Any, dtype: torch.dtype = torch.bfloat16) -> list[str]:
    notes: list[str] = []
    cache_features(config, dtype, note=notes.append)
    return notes


def losses(config: Any, tmp_path: Path, num_steps: int = 8) -> list[float]:
    """Of the first steps, which reach into the second epoch."""
    config.training.max_steps = num_steps
    model, processor = build_model(config)
    store = open_store(config, model, processor)
    variants = 1 if store else None
    sources = open_sources(config.data.train, with_audio=store is None)
    data = build_data(config, sources, processor, variants=variants, store=store)
    assert data.num_batches(0) < num_steps
    lines: list[dict[str, Any]] = []
    Trainer(config, model, data, tmp_path, report=lines.append).run()
    return [line["loss"] for line in lines]


def test_a_run_on_cached_features_is_the_run_on_audio(configured: Any, tmp_path: Path) -> None:
    cache(configured(), torch.float32)
    for name, cached in (("on_features", True), ("on_audio", False)):
        run(configured(name=name, cached=cached))
    assert_same(weights(tmp_path / "on_features/model"), weights(tmp_path / "on_audio/model"))
    curves = [
        [(line["loss"], line.get("dev_wer")) for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("on_features", "on_audio")
    ]
    assert curves[0] == curves[1]


def test_bfloat16_rounds_the_losses_and_no_more(configured: Any, tmp_path: Path) -> None:
    cache(configured("training.batch_seconds=8"))
    on_features = losses(configured("training.batch_seconds=8"), tmp_path)
    on_audio = losses(configured("training.batch_seconds=8", cached=False), tmp_path)
    assert on_features == pytest.approx(on_audio, rel=2e-3) and on_features != on_audio


def test_variants_are_the_sounds_of_the_first_epochs_again(configured: Any) -> None:
    config = configured(*AUGMENTATION)
    cache(config, torch.float32)
    model, processor = build_model(config)
    sources = open_sources(config.data.train)
    store = open_store(config, model, processor)
    on_features = build_data(config, sources, processor, variants=2, store=store)
    on_audio = build_data(config, sources, processor, variants=2)
    texts = []
    for epoch in range(3):
        texts.append(set())
        for cached, heard in zip(on_features.batches(epoch), on_audio.batches(epoch), strict=True):
            assert cached["utterance_ids"] == heard["utterance_ids"]
            assert cached["audio_seconds"] == heard["audio_seconds"]
            for key in ("input_ids", "labels", "ctc_labels"):
                assert torch.equal(cached[key], heard[key]), key
            with torch.no_grad():
                audio = model.get_audio_features(heard["input_features"], heard["input_features_mask"])
            frames = cached["encoder_frames"].transpose(1, 2)
            assert torch.allclose(frames, audio.last_hidden_state, atol=1e-5)
            texts[-1] |= {str(row[row >= 0].tolist()) for row in cached["labels"]}
    assert texts[0] == texts[2] != texts[1]


def test_training_needs_no_audio(configured: Any, tmp_path: Path) -> None:
    train = write_speech(tmp_path / "train")
    cache(configured(f"data.train={train}"))
    for file in train.glob("*.wav"):
        file.unlink()
    run(configured(f"data.train={train}", "training.num_workers=1", "training.max_steps=2"))


def test_caching_again_encodes_what_is_new(configured: Any, tmp_path: Path) -> None:
    train = write_speech(tmp_path / "train")
    config = configured(f"data.train={train}")
    assert "30 of 30 sounds to encode" in " ".join(cache(config))
    assert "0 of 30 sounds to encode" in " ".join(cache(config))
    shutil.copy(train / "3.wav", train / "new.wav")
    with (train / "manifest.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"audio": "new.wav", "text": "nine", "seconds": 0.7}))
    with pytest.raises(
        UserError, match=r"1 of 31 clips, such as new, have no frames .* tiny-audio cache-features"
    ):
        losses(config, tmp_path)
    assert "1 of 31 sounds to encode" in " ".join(cache(config))
    assert losses(config, tmp_path, 12)


def test_a_killed_command_goes_on(configured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SHARD_BYTES", 10_000)
    config = configured()
    encode = features.Encoder.__call__
    encoded: list[int] = []

    def die_in_the_third_batch(self: Any, *batch: torch.Tensor) -> Any:
        if len(encoded) == 2:
            raise SystemExit
        encoded.append(len(batch[0]))
        return encode(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(features.Encoder, "__call__", die_in_the_third_batch)
        with pytest.raises(SystemExit):
            cache(config)
    monkeypatch.setattr(stored, "ABANDONED_SECONDS", 0.0)
    notes = cache(config)
    left = int(notes[1].split()[0])
    assert NUM_CLIPS - sum(encoded) <= left < NUM_CLIPS
    assert "0 of 30" in cache(config)[1]
    (folder,) = Path(config.data.features_cache).iterdir()
    assert not list(folder.glob("*.partial"))
    assert {path.stem for path in folder.glob("*.frames")} == {path.stem for path in folder.glob("*.npy")}


def test_a_full_disk_keeps_finished_shards(configured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SHARD_BYTES", 10_000)
    config = configured()
    flush = stored._close_flushed
    flushed: list[int] = []

    def full(file: Any) -> None:
        flush(file)
        flushed.append(1)
        if len(flushed) == 4:  # the second shard's entries
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stored, "_close_flushed", full)
        with pytest.raises(UserError, match=r"no space left .* goes on"):
            cache(config)
    (folder,) = Path(config.data.features_cache).iterdir()
    assert sorted(path.suffix for path in folder.iterdir()) == [".frames", ".json", ".npy"]
    assert 0 < int(cache(config)[1].split()[0]) < NUM_CLIPS


def test_no_room_is_said_before_anything_is_computed(
    configured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match=r"kB are needed and 1 B are free"):
        cache(configured())
    assert not Path(configured().data.features_cache).exists()


def test_a_clip_that_cannot_be_read_is_told_in_training_too(configured: Any, tmp_path: Path) -> None:
    train = write_speech(tmp_path / "train")
    (train / "4.wav").write_bytes(b"RIFF, but not really")
    config = configured(f"data.train={train}")
    assert "1 of 30 sounds to encode" in " ".join(cache(config) and cache(config))
    model, processor = build_model(config)
    data = build_data(
        config,
        open_sources(config.data.train),
        processor,
        variants=1,
        store=open_store(config, model, processor),
    )
    heard = [name for batch in data.batches(0) for name in batch["utterance_ids"]]
    assert sorted(heard, key=int) == [str(n) for n in range(NUM_CLIPS) if n != 4]
    assert [str(problem) for problem in data.problems] == [
        "4: could not be read when its features were cached"
    ]


def record_anew(file: Path) -> None:
    """Another sound of the same length, in as many bytes."""
    soundfile.write(file, noise(soundfile.info(file).duration, 99), 16000)


def test_audio_that_changed_is_encoded_anew(configured: Any, tmp_path: Path) -> None:
    train = write_speech(tmp_path / "train")
    config = configured(f"data.train={train}")
    cache(config)
    shutil.copytree(train, tmp_path / "before")
    record_anew(train / "7.wav")
    changed = r"1 of 30 clips, such as 7, have no frames there, or their audio has changed since: run"
    with pytest.raises(UserError, match=changed):
        losses(config, tmp_path)
    assert "1 of 30 sounds to encode" in " ".join(cache(config))
    after = losses(config, tmp_path)
    (train / "7.wav").unlink()  # what was encoded last is what it was
    assert losses(config, tmp_path) == after
    shutil.copy(tmp_path / "before/7.wav", train / "7.wav")  # as it was: its frames are still there
    assert "0 of 30 sounds to encode" in " ".join(cache(config))
    assert losses(config, tmp_path) != after


def test_a_clip_spliced_from_audio_that_changed_is_encoded_anew(configured: Any, tmp_path: Path) -> None:
    train = write_speech(tmp_path / "train")
    config = configured(
        f"data.train={train}", "augmentation.splice_probability=1", "data.features_cache_variants=1"
    )
    cache(config)
    data = build_data(config, open_sources(config.data.train), build_model(config)[1], variants=1)
    pieces_of = {row: [row] for row in range(NUM_CLIPS)}
    pieces_of |= {row: [piece.row for piece in each.pieces] for row, each in data._recipes(0).items()}
    record_anew(train / "7.wav")
    num_touched = sum(7 in pieces for pieces in pieces_of.values())
    assert num_touched > 1
    assert f"{num_touched} of 30 sounds to encode" in " ".join(cache(config))


def test_two_projects_share_a_cache(configured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for project in ("first", "second"):
        (tmp_path / project).mkdir()
        recordings = write_speech(tmp_path / project / "recordings")
    for file in recordings.glob("*.wav"):
        record_anew(file)
    config = configured("data.train=recordings")
    curves = []
    for project in ("first", "second", "first"):
        monkeypatch.chdir(tmp_path / project)
        notes = " ".join(cache(config))
        assert ("30 of 30 sounds" if len(curves) < 2 else "0 of 30 sounds") in notes
        curves.append(losses(config, tmp_path))
    assert curves[0] == curves[2] != curves[1]


def test_a_damaged_shard_is_encoded_anew(configured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SHARD_BYTES", 10_000)
    config = configured()
    cache(config)
    (folder,) = Path(config.data.features_cache).iterdir()
    shard = min(folder.glob("*.frames"))
    shard.write_bytes(shard.read_bytes()[:-2])
    assert 0 < int(cache(config)[1].split()[0]) < NUM_CLIPS
    assert not shard.exists() and "0 of 30" in cache(config)[1]
    spare = folder / "spare.npy"
    spare.write_bytes(b"cut off")
    assert "0 of 30" in cache(config)[1] and not spare.exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.freeze_encoder=false"], "the encoder trains, .* model.freeze_encoder=true"),
        (["encoder_lora.r=4"], "the encoder trains, .* encoder_lora.r=0"),
        (
            ["augmentation.noise_probability=0.1"],
            "augmentation.noise_probability .* data.features_cache_variants",
        ),
        (["augmentation.gain_db=[-6,6]"], "augmentation.gain_db .* sounds otherwise in every epoch"),
        (["data.features_cache_variants=0"], "at least 1"),
        (["data.features_cache_variants=2"], "without augmentation all are the same"),
    ],
)
def test_what_cannot_be_cached_is_refused(configured: Any, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        configured(*overrides)


def test_features_of_something_else_are_not_read(configured: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is empty or not there: run tiny-audio cache-features"):
        losses(configured(), tmp_path)
    cache(configured(*AUGMENTATION))
    with pytest.raises(UserError, match=r"was made with another augmentation: run"):
        losses(configured(), tmp_path)
    with pytest.raises(UserError, match=r"was made with another augmentation: run"):
        losses(configured(*AUGMENTATION, "seed=7"), tmp_path)


def test_features_with_other_noises_are_others(configured: Any, tmp_path: Path) -> None:
    noises = tmp_path / "noises"
    noises.mkdir()
    soundfile.write(noises / "one.wav", noise(0.5, 1), 16000)
    options = ("augmentation.noise_probability=1", "data.features_cache_variants=1")
    noisy = configured(*options, f"augmentation.noise_files={noises}")
    cache(noisy)
    with pytest.raises(UserError, match=r"was made with another augmentation: run"):
        losses(configured(*options), tmp_path)
    heard = losses(noisy, tmp_path)
    assert len(heard) == 8
    soundfile.write(noises / "two.wav", noise(0.7, 2), 16000)
    with pytest.raises(UserError, match=r"was made with another augmentation: run"):
        losses(noisy, tmp_path)


def test_a_checkpoint_reads_the_features_of_its_base(configured: Any, tmp_path: Path) -> None:
    cache(configured("training.batch_seconds=8"))
    model, processor = build_model(configured())
    for part in (model, processor):
        part.save_pretrained(tmp_path / "first")
    config = configured("training.batch_seconds=8", f"init_from={tmp_path}/first")
    assert "0 of 30" in cache(config)[1]
    assert losses(config, tmp_path)
    model.model.audio_tower.conv1.weight.data += 0.1
    model.config.encoder_in_checkpoint = True
    model.save_pretrained(tmp_path / "first")
    with pytest.raises(UserError, match="was made with another encoder"):
        losses(config, tmp_path)
    assert "30 of 30" in cache(config)[1]
