"""Checkpoints of both forms: bit-equal reloading, strictness, bases and their fingerprints, and the island."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.tiny_models import (
    LLAMA,
    architecture,
    examples,
    noise,
    randomize,
    run_outside,
    save_bases,
    tiny_config,
    tiny_model,
)
from tiny_audio.hub.asr_checkpoint import WEIGHTS_FILE, fingerprint, load_model, merge
from tiny_audio.hub.asr_longform import transcribe_waveforms
from tiny_audio.hub.asr_losses import LossWeights
from tiny_audio.train.build import build_model

WEIGHTS = LossWeights(ctc=1.0)


def logits(model: Any, processor: Any) -> torch.Tensor:
    batch = processor.collate(examples(processor))
    with torch.no_grad():
        return model(
            input_ids=batch["input_ids"],
            input_features=batch["input_features"],
            input_features_mask=batch["input_features_mask"],
        ).logits


def save(model: Any, processor: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of base models as a hub would have them: a whole Whisper and a causal LM with its tokenizer."""
    return save_bases(tmp_path_factory.mktemp("models"))


def adapter_model(
    bases: Path, monkeypatch: pytest.MonkeyPatch, decoder: str = "acme/lm-tied"
) -> tuple[Any, Any]:
    """Frozen bases named by id, LoRA on both, everything trainable away from its start."""
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(bases))
    config = tiny_config("ctc.embedding_weight=0.1")
    config.model.update(
        {
            "encoder_model_name": "acme/whisper-pico",
            "decoder_model_name": decoder,
            "tokenizer": None,
            "freeze_encoder": True,
            "freeze_decoder": True,
        }
    )
    config.encoder_lora.r = 4
    config.peft.update({"peft_method": "lora", "r": 4})
    model, processor = build_model(config)
    randomize(model, "lora_B")
    return model.eval(), processor


def test_full_checkpoint_reloads_bit_equal(tmp_path: Path) -> None:
    model, processor = tiny_model()
    again, processor_again = load_model(str(save(model, processor, tmp_path / "m")), device="cpu")
    assert torch.equal(logits(model, processor), logits(again, processor_again))
    assert processor_again.prompt_ids(3) == processor.prompt_ids(3)
    assert again.config.is_merged


@pytest.mark.parametrize("decoder", ["acme/lm-tied", "acme/lm-untied"])
def test_adapter_holds_no_base_weight_and_reloads_bit_equal(
    bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, decoder: str
) -> None:
    model, processor = adapter_model(bases, monkeypatch, decoder)
    folder = save(model, processor, tmp_path / "m")
    names = set(load_file(folder / WEIGHTS_FILE))
    assert all(
        "lora_" in n or "projector" in n or n.startswith(("ctc_head", "embedding_ctc")) for n in names
    ), names
    assert not (folder / "adapter_config.json").exists()
    raw = json.loads((folder / "config.json").read_text())
    assert raw["encoder_base"]["name"] == "acme/whisper-pico", "the id is recorded, not the local folder"
    again, processor_again = load_model(str(folder), device="cpu")
    assert torch.equal(logits(model, processor), logits(again, processor_again))


def test_merged_agrees_with_adapter_and_stands_alone(
    bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, processor = adapter_model(bases, monkeypatch)
    folder = save(merge(model), processor, tmp_path / "merged")
    monkeypatch.delenv("TINY_AUDIO_MODELS")
    merged, merged_processor = load_model(str(folder), device="cpu")
    assert torch.allclose(logits(model, processor), logits(merged, merged_processor), atol=1e-4)
    assert torch.equal(logits(merge(model), processor), logits(merged, merged_processor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_folded_for_inference_where_nothing_is_lost(
    bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: torch.dtype
) -> None:
    model, processor = adapter_model(bases, monkeypatch)
    folder = save(model.to(dtype), processor, tmp_path / "m")
    plain, processor = load_model(str(folder), device="cpu")
    model, _ = load_model(str(folder), device="cpu", inference_only=True)
    folded = dtype == torch.float32
    assert model.dtype == plain.dtype == dtype
    assert any("lora_" in name for name in model.state_dict()) != folded
    assert (model.config.decoder_lora is None) == folded
    assert torch.allclose(logits(plain, processor), logits(model, processor), atol=1e-4)


def test_adapters_are_folded_before_weights_are_cast(
    bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = save(*adapter_model(bases, monkeypatch), tmp_path / "m")
    exact, _ = load_model(str(folder), device="cpu", inference_only=True)
    model, _ = load_model(str(folder), device="cpu", dtype=torch.bfloat16, inference_only=True)
    assert model.config.decoder_lora is None
    expected = exact.state_dict()
    assert all(torch.equal(w, expected[name].to(w.dtype)) for name, w in model.state_dict().items())


@pytest.mark.parametrize("merged", [False, True])
def test_rotary_frequencies_stay_exact_in_bfloat16(
    bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, merged: bool
) -> None:
    model, processor = adapter_model(bases, monkeypatch)
    folder = save(merge(model) if merged else model, processor, tmp_path / "m")
    loaded, _ = load_model(str(folder), device="cpu", dtype=torch.bfloat16)
    rotary, expected = (each.model.language_model.rotary_emb.inv_freq for each in (loaded, model))
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert rotary.dtype == torch.float32 and torch.equal(rotary, expected)


def test_another_base_is_noticed(
    bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = adapter_model(bases, monkeypatch)
    folder = save(model, processor, tmp_path / "m")
    other = tmp_path / "models/acme"
    other.mkdir(parents=True)
    for name in ("whisper-pico", "lm-tied"):
        os.symlink(bases / "acme" / name, other / name)
    torch.manual_seed(8)
    os.unlink(other / "lm-tied")
    AutoModelForCausalLM.from_config(architecture({**LLAMA, "vocab_size": 259})).save_pretrained(
        other / "lm-tied"
    )
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(tmp_path / "models"))
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("tiny_audio"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        load_model(str(folder), device="cpu")
    assert "not those this checkpoint was trained against" in caplog.text
    assert "acme/lm-tied" in caplog.text and "acme/whisper-pico" not in caplog.text


def test_missing_base_is_one_clear_line(bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, processor = adapter_model(bases, monkeypatch)
    folder = save(model, processor, tmp_path / "m")
    monkeypatch.delenv("TINY_AUDIO_MODELS")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="TINY_AUDIO_MODELS") as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["full", "adapter"])
@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_raise(
    bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str, damage: str
) -> None:
    model, processor = tiny_model() if form == "full" else adapter_model(bases, monkeypatch)
    folder = save(model, processor, tmp_path / "m")
    weights = load_file(folder / WEIGHTS_FILE)
    name = "model.multi_modal_projector.output_norm.weight"
    if damage == "missing":
        del weights[name]
    elif damage == "unexpected":
        weights["model.multi_modal_projector.surplus"] = torch.zeros(3)
    else:
        weights[name] = torch.zeros(5)
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"output_norm|surplus"):
        load_model(str(folder), device="cpu")


def test_other_models_and_empty_folders_are_refused(bases: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'llama' model, not a Tiny Audio one"):
        load_model(str(bases / "acme/lm-tied"))
    with pytest.raises(OSError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_newer_format_is_refused(tmp_path: Path) -> None:
    folder = save(*tiny_model(), tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "format_version": 99}))
    with pytest.raises(ValueError, match="format_version 99"):
        load_model(str(folder))


def test_fingerprint_sees_weights_but_neither_precision_nor_lora() -> None:
    config = tiny_config()
    plain, _ = build_model(config)
    tower = plain.model.language_model
    before = fingerprint(tower)
    assert fingerprint(tower.to(torch.bfloat16)) == before
    with_lora = OmegaConf.merge(config, {"peft": {"peft_method": "lora", "r": 2}})
    model, _ = build_model(with_lora)
    assert fingerprint(model.model.language_model) == before
    with torch.no_grad():
        tower.layers[0].mlp.up_proj.weight[0, 0] += 1.0
    assert fingerprint(tower) != before


ISLAND = """
import sys
sys.modules["tiny_audio"] = None  # whoever imports the package fails
import numpy as np
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline
folder, = sys.argv[1:]
waveform = np.load(folder + "/clip.npy")
pipe = pipeline("automatic-speech-recognition", model=folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True)
ids = model.generate(**processor(waveform, sampling_rate=16000), max_new_tokens=8)
print("RESULT", [pipe(waveform, max_new_tokens=8)["text"], processor.batch_decode(ids)[0]])
"""


@pytest.mark.parametrize("form", ["full", "adapter"])
def test_checkpoint_works_where_the_package_is_not_installed(
    bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    import numpy as np

    model, processor = tiny_model() if form == "full" else adapter_model(bases, monkeypatch)
    folder = save(model, processor, tmp_path / "m")
    np.save(folder / "clip.npy", noise(1.0))
    expected = transcribe_waveforms(model, processor, [noise(1.0)], max_new_tokens=8)[0]
    output = run_outside(ISLAND, str(folder), folder=tmp_path)
    assert f"RESULT {[expected, expected]}" in output
