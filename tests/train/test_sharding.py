"""Two processes that share a model train as one does that has it whole, and leave the same files behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.hub.encoder_towers import every_variant, make_clips, make_tower, pad_clips
from tests.tiny_models import examples, noise, save_bases, tiny_model
from tests.train.short_runs import assert_same, break_clip, break_features, settings, weights, write_speech
from tests.train.test_processes import SCRIPT, train
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_drafting import read_prompts_alone
from tiny_audio.hub.asr_encoders import run_encoder
from tiny_audio.hub.asr_longform import transcribe_waveforms
from tiny_audio.hub.asr_modeling import TinyAudioForConditionalGeneration
from tiny_audio.train.checkpoints import OPTIMIZER_FILE
from tiny_audio.train.records import read_metrics
from tiny_audio.train.run import run
from tiny_audio.train.sharding import assemble, evaluation, layers, shard
from tiny_audio.train.skipping import SKIPPED_FILE

SHARDED = "training.sharding=full"
ADAMW = "training.optimizer=adamw"  # nano's own needs whole matrices
LONG_PROMPT = (
    "model.prompt='Somebody speaks. Write down every word of it, and write down nothing else: <audio>'"
)

# Each process writes down what it holds of all, once it trains.
SCRIPT_WITH_SCALES = f"""
import json, os, sys
from pathlib import Path
from tiny_audio.train.loop import Trainer
stock = Trainer._after_step
def weigh(tensors):
    tensors = list(tensors)
    return [sum(tensor.to_local().nbytes for tensor in tensors), sum(tensor.nbytes for tensor in tensors)]
def after_step(self):
    stock(self)
    parts = self.bare_model.model
    shares = {{
        "encoder": weigh(parts.audio_tower.parameters()),
        "decoder": weigh(parts.language_model.parameters()),
        "moments": weigh(state["exp_avg"] for state in self.optimizer.state_dict()["state"].values()),
    }}
    Path(sys.argv[1]).with_suffix(f".{{os.environ['RANK']}}.json").write_text(json.dumps(shares))
Trainer._after_step = after_step
{SCRIPT}"""


def shares(folder: Path) -> list[dict[str, list[int]]]:
    """What each process held: (bytes, of all of them) by name."""
    return [json.loads(folder.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1)]


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)  # names, shapes and types, too


def optimizer_state(folder: Path) -> tuple[Any, Any]:
    saved = torch.load(folder / "checkpoints/step-4" / OPTIMIZER_FILE, weights_only=True)
    return saved["state"], saved["param_groups"]


def last_line(folder: Path) -> dict[str, Any]:
    return read_metrics(folder / "metrics.jsonl")[-1]


def test_two_processes_go_on_with_a_shared_model_as_one_would_and_one_goes_on_after_them(
    speech: Path, tmp_path: Path
) -> None:
    # 9 batches an epoch: the fifth step takes the one that is left over, and the first one of the next epoch.
    options = (ADAMW, "training.batch_seconds=4.5", "ctc.embedding_weight=0.3")
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    alone = train(1, speech, one, *options)
    resume = f"training.resume={one / 'checkpoints/step-2'}"
    sharded = train(2, speech, two, *options, SHARDED, resume, script=SCRIPT_WITH_SCALES)
    assert len(alone) == 6 and sharded == pytest.approx(alone[2:], rel=1e-4)
    for part in ("encoder", "decoder", "moments"):
        (first, all_of_it), (second, _) = (share[part] for share in shares(two))
        assert first + second == all_of_it and max(first, second) < 0.55 * all_of_it, part

    for figure in ("epoch", "gradient_norm", "embedding_loss", "dev_wer", "listening_gap"):
        assert last_line(two)[figure] == pytest.approx(last_line(one)[figure], rel=1e-3, abs=1e-3), figure
    assert (two / "samples.txt").read_text() == (one / "samples.txt").read_text()
    files = [sorted(path.name for path in (folder / "model").iterdir()) for folder in (one, two)]
    assert files[0] == files[1]
    for name in ("config.json", "generation_config.json"):
        assert (two / "model" / name).read_text() == (one / "model" / name).read_text()
    assert_close(weights(two / "model"), weights(one / "model"))
    results = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    for figure in ("wer", "parameters", "trained_parameters", "num_samples"):
        assert results[0][figure] == results[1][figure], figure

    # The checkpoints are alike down to the memory of the optimiser ...
    assert_close(weights(two / "checkpoints/step-4"), weights(one / "checkpoints/step-4"))
    (memory, groups), (expected, other_groups) = optimizer_state(two), optimizer_state(one)
    torch.testing.assert_close(memory, expected, rtol=1e-3, atol=1e-5)
    assert groups == other_groups
    # ... so that one process goes on where two stopped.
    resumed = train(1, speech, again, *options, f"training.resume={two / 'checkpoints/step-4'}")
    assert resumed == pytest.approx(alone[4:], rel=1e-4)
    assert_close(weights(again / "model"), weights(one / "model"))


@pytest.fixture
def _own_precision() -> Iterator[None]:
    """accelerate keeps the precision of a process's first run for all later ones."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("_own_precision")
def test_frozen_towers_in_bfloat16_with_adapters_and_a_step_that_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip without a finite loss is in the batch of one process alone, whose batches differ in size."""
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(save_bases(tmp_path / "models")))
    speech = write_speech(tmp_path / "speech")
    break_clip(speech, 17)
    options = (
        ADAMW,
        LONG_PROMPT,  # one process alone would read it once for all of its clips
        "training.bf16=true",
        "training.gradient_checkpointing=true",
        "model.encoder_model_name=acme/whisper-pico",
        "model.decoder_model_name=acme/lm-tied",
        "model.freeze_encoder=true",
        "model.freeze_decoder=true",
        "encoder_lora.r=4",
        "encoder_lora.target_modules=[q_proj,k_proj]",
        "peft.peft_method=lora",
        "peft.r=4",
        "peft.target_modules=[q_proj,v_proj]",
    )
    break_features(monkeypatch.setattr)
    alone = train(1, speech, tmp_path / "alone", *options)
    script = f"from tests.train.short_runs import break_features\nbreak_features()\n{SCRIPT_WITH_SCALES}"
    sharded = train(2, speech, tmp_path / "sharded", *options, SHARDED, script=script)
    one, two = (read_metrics(tmp_path / name / SKIPPED_FILE) for name in ("alone", "sharded"))
    assert len(alone) == 6 - len(one) < 6 and sharded == pytest.approx(alone, rel=1e-3)
    for clip, same in zip(one[0]["clips"], two[0]["clips"], strict=True):
        assert same["id"] == clip["id"]
        assert float(same["loss"]) == pytest.approx(float(clip["loss"]), rel=0.01, nan_ok=True)
    assert {clip["id"] for clip in two[0]["clips"] if clip["loss"] == "nan"} == {"17"}
    for part in ("encoder", "decoder"):
        held = [share[part][0] / share[part][1] for share in shares(tmp_path / "sharded")]
        assert sum(held) == 1 and max(held) < 0.55, part
    models = [weights(tmp_path / name / "model") for name in ("alone", "sharded")]
    assert models[0].keys() == models[1].keys() and any(".lora_" in name for name in models[0])
    # Where a gradient is about zero, rounding decides whether AdamW goes up or down.
    flat = [torch.cat([weight.flatten() for _, weight in sorted(model.items())]) for model in models]
    assert (flat[1] - flat[0]).norm() < 1e-3 * flat[0].norm()


@every_variant
def test_each_layer_of_an_encoder_runs_once_however_many_clips_there_are(variant: str) -> None:
    """Else a process with fewer clips would wait for ever for the others to gather a layer's weights."""
    tower = make_tower(variant)
    stack, clips, runs = layers(tower), make_clips(tower), Counter[Any]()
    assert len(stack) == tower.config.num_hidden_layers
    for layer in stack:
        layer.register_forward_hook(lambda module, *_: runs.update([module]))
    for batch in (clips[:1], clips):
        runs.clear()
        run_encoder(tower, *pad_clips(batch))
        assert runs == Counter(stack)


def test_each_layer_of_the_decoder_runs_once_although_clips_begin_alike() -> None:
    model, processor = tiny_model(LONG_PROMPT)
    language_model, runs = model.model.language_model, Counter[Any]()
    for layer in layers(language_model):
        layer.register_forward_hook(lambda module, *_: runs.update([module]))
    batch = processor.collate(examples(processor))
    with torch.no_grad():
        shared = model(**batch).loss
    assert set(runs.values()) == {2}  # the prompt, and what comes behind it
    read_prompts_alone(language_model)
    runs.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, shared)
    assert runs == Counter(layers(language_model))


@pytest.fixture
def _group_of_one() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_group_of_one")
def test_an_encoder_that_rests_in_training_is_there_for_evaluations() -> None:
    """As with features that are kept on the disk. Evaluations recognise in inference mode, and score without it."""
    model, processor = tiny_model("ctc.embedding_weight=0.3")
    clips = [noise(seconds, seed) for seed, seconds in enumerate((0.9, 1.6))]
    batch = dict(processor.collate(examples(processor)))
    with torch.no_grad():
        frames = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
    mask = torch.arange(frames.last_hidden_state.shape[1]) < frames.frame_lengths[:, None]
    encoded = {**batch, "encoder_frames": frames.last_hidden_state.mT, "input_features_mask": mask}
    del encoded["input_features"]
    texts, loss = transcribe_waveforms(model, processor, clips), float(model(**batch).loss.detach())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    skeleton = shard(model, torch.device("cpu"))
    model.train()(**encoded).loss.backward()
    with evaluation(model):
        assert transcribe_waveforms(model, processor, clips) == texts
        with torch.no_grad():
            assert float(model(**batch).loss) == pytest.approx(loss, rel=1e-5)
    assert model.training and model.model.audio_tower.conv1.weight.placements[0].is_shard()
    whole = assemble(skeleton, model)
    assert_same(dict(whole.state_dict()), before)
    assert type(whole) is TinyAudioForConditionalGeneration
    assert whole.lm_head.weight is whole.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        ((SHARDED, "training.optimizer=muon"), "training.optimizer=adamw"),
        ((SHARDED, ADAMW, "training.batch_seconds=auto"), "give the seconds"),
        ((SHARDED, ADAMW, "training.compile=true"), "training.compile=false"),
    ],
)
def test_what_a_sharded_run_cannot_do_is_refused_at_once(
    overrides: tuple[str, ...], advice: str, speech: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"{SHARDED}: .*{advice}"):
        run(settings(speech, tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_a_second_way_of_sharding_is_refused(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch --use_fsdp` sets it
    with pytest.raises(UserError, match=f"by {SHARDED}: launch without it"):
        run(settings(speech, tmp_path / "run"))


def test_one_process_trains_as_ever_and_says_so(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings(speech, tmp_path / "run", SHARDED, ADAMW, "ctc.alone_share=1", "training.max_steps=1"))
    said = " ".join(capsys.readouterr().err.split())
    assert f"{SHARDED}: there is one process, which holds all" in said
