"""`training.compile`: the same losses, and no code for another length, another batch, or text that is written."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from tests.tiny_models import LLAMA, SAMPLING_RATE, noise, randomize, tiny_config
from tests.train.short_runs import settings, weights
from tiny_audio.data.sources import open_sources
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_losses import LossWeights, encode_ctc_text
from tiny_audio.train.batch_budget import _key
from tiny_audio.train.build import build_data, build_model
from tiny_audio.train.compiling import check_compiler, compile_layers, transformer_layers
from tiny_audio.train.loop import Trainer
from tiny_audio.train.records import read_metrics
from tiny_audio.train.run import run

WAV2VEC2 = {
    "model_type": "wav2vec2",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 8],
    "conv_stride": [10, 32],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0),
}
WAVEFORMS = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": SAMPLING_RATE}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 16, "num_hidden_layers": 4, "num_key_value_heads": 1}
# Long enough to be read once for a batch of three clips and more.
PROMPT = 'model.prompt="Write down the words that you can hear in this: <audio>"'
LORA = ["peft.r=4", "model.freeze_encoder=true", "model.freeze_decoder=true"]
# The kinds of batches: clips of several lengths, with the prompt read once and not, a clip alone, clips of one length.
KINDS = [[1.0, 0.5, 0.7, 0.9], [1.3, 0.4], [0.8], [0.6, 0.6, 0.6]]


def batch_of(processor: Any, seconds: list[float]) -> dict[str, torch.Tensor]:
    rows = []
    for number, length in enumerate(seconds):
        text = "one two three"[: 1 + int(5 * length)]
        rows.append(processor.encode(noise(length, number), text))
        rows[-1]["ctc_labels"] = encode_ctc_text(text[:3], processor.ctc_vocabulary)
    return dict(processor.collate(rows))


def loss_and_gradients(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    loss = model(**batch, loss_weights=LossWeights(ctc=0.3)).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"loss": loss.detach(), **found}


@pytest.mark.parametrize("encoder", ["whisper", "wav2vec2"])
def test_new_lengths_and_batch_sizes_need_no_new_code(encoder: str) -> None:
    config = tiny_config(PROMPT, *LORA)
    if encoder == "whisper":
        config.encoder_lora.r, backend = 4, "eager"
    else:
        config.model.encoder_config, config.model.feature_extractor = WAV2VEC2, WAVEFORMS
        config.model.decoder_config = QWEN3
        backend = "aot_eager"  # takes a layer and its gradients apart, as the real one does
    plain, processor = build_model(config)
    randomize(plain, ".lora_")
    names, compiled = list(plain.state_dict()), copy.deepcopy(plain)
    if encoder == "wav2vec2":
        compiled.activation_checkpointing_enable()
    counter = CompileCounterWithBackend(backend)
    compile_layers(compiled, counter)
    assert list(compiled.state_dict()) == names
    counters.clear()

    def compare(seconds: list[float]) -> None:
        batch = batch_of(processor, seconds)
        expected = loss_and_gradients(plain.train(), batch)
        found = loss_and_gradients(compiled.train(), batch)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-7), (name, seconds)

    for seconds in KINDS:
        compare(seconds)
    # Of the encoder with a mask, without, and for a clip alone, each once more for a first layer with adapters, whose
    # input needs no gradient. Of the decoder the prompt, what follows it, several clips with a prompt each, and a clip.
    codes = counter.frame_count
    assert codes <= 10  # "aot_eager" is called once more for the first code of each tower
    draw = random.Random(1)
    for _ in range(12):
        compare([draw.uniform(0.3, 3.0) for _ in range(draw.randint(1, 12))])
    compare([2.2] * 5)
    compiled.eval()
    compiled.generate(**processor(noise(1.0), sampling_rate=SAMPLING_RATE), max_new_tokens=4)
    assert counter.frame_count == codes
    assert not counters["graph_break"]


def test_convolutions_and_whole_towers_are_no_layers_of_a_transformer() -> None:
    config = tiny_config()
    config.model.encoder_config, config.model.feature_extractor = WAV2VEC2, WAVEFORMS
    model, _ = build_model(config)
    layers = transformer_layers(model.model.audio_tower)
    assert layers == list(model.model.audio_tower.encoder.layers)
    assert transformer_layers(model.model.language_model) == list(model.model.language_model.layers)


def compiler_problem() -> str | None:
    try:
        check_compiler()
    except UserError as error:
        return str(error)
    return None


def test_a_run_with_the_real_compiler_is_the_same_run(speech: Path, tmp_path: Path) -> None:
    if problem := compiler_problem():
        pytest.skip(problem)
    # A prompt too short to be read once: less to compile.
    common = [
        "model.freeze_encoder=true",
        "ctc.alone_share=0",
        "training.max_steps=4",
        "model.prompt=Hear: <audio>",
    ]
    run(settings(speech, tmp_path / "plain", *common))
    counters.clear()
    run(settings(speech, tmp_path / "compiled", *common, "training.compile=true"))
    assert counters["stats"]["unique_graphs"] > 0
    plain, compiled = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("plain", "compiled"))
    for key in ("loss", "gradient_norm"):
        values = [line[key] for line in plain]
        assert [line[key] for line in compiled] == pytest.approx(values, rel=1e-4), key
    assert "dev_wer" in compiled[-1]
    # Nothing of it is in what is saved, and a run may go on with it or without it.
    for part in ("model", "checkpoints/step-2"):
        assert weights(tmp_path / "compiled" / part).keys() == weights(tmp_path / "plain" / part).keys()
    resume = f"training.resume={tmp_path}/compiled/checkpoints/step-2"
    run(settings(speech, tmp_path / "resumed", *common, "training.compile=true", resume))
    resumed = [line["loss"] for line in read_metrics(tmp_path / "resumed/metrics.jsonl")]
    assert resumed == pytest.approx([line["loss"] for line in compiled[2:]], rel=1e-4)


def test_a_machine_that_cannot_compile_says_so_before_the_run(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config as compiler_settings

    torch._dynamo.reset()  # what has been compiled needs no compiler
    monkeypatch.setattr(compiler_settings.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    with pytest.raises(
        UserError, match=r"No working C\+\+ compiler.*apt install.*training.compile=false"
    ) as caught:
        run(settings(speech, tmp_path / "run", "training.compile=true"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_fits_into_memory_is_tried_out_anew_for_compiled_layers(speech: Path, tmp_path: Path) -> None:
    keys = set()
    for compiled in ("true", "false"):
        config = settings(speech, tmp_path, f"training.compile={compiled}")
        model, processor = build_model(config)
        data = build_data(config, open_sources(config.data.train), processor)
        trainer = Trainer(config, model, data, tmp_path, report=lambda line: None)
        keys.add(_key(trainer, processor, data.length_buckets()))
    assert len(keys) == 2
