"""recipes/small/pack.py: a trained model in half the bytes, in a folder that has more than the model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from recipes.small.pack import pack
from tests.tiny_models import randomize, tiny_model
from tiny_audio.hub.asr_checkpoint import load_model

CARD = "a model card, written by hand"


def test_it_halves_the_weights_and_nothing_else_changes(tmp_path: Path) -> None:
    model, processor = tiny_model("encoder_lora.r=2", "peft.r=2")
    randomize(model, "lora_")
    trained, packed = tmp_path / "trained", tmp_path / "packed"
    model.save_pretrained(trained)
    processor.save_pretrained(trained)
    before = {file.name: file.read_bytes() for file in trained.iterdir() if file.is_file()}
    packed.mkdir()
    (packed / "README.md").write_text(CARD)
    (packed / "model.safetensors").write_bytes(b"the one of before")

    pack(trained, packed)
    again = {file.name: file.read_bytes() for file in trained.iterdir() if file.is_file()}
    assert again == before, "what was trained is read only"
    assert (packed / "README.md").read_text() == CARD
    assert (packed / "model.safetensors").stat().st_size < 0.6 * len(before["model.safetensors"])
    for name, weight in load_file(packed / "model.safetensors").items():
        assert weight.dtype == torch.bfloat16, name
    tokenizer = (packed / "tokenizer.json").read_bytes()
    assert json.loads(tokenizer) == json.loads(before["tokenizer.json"])
    assert len(tokenizer) < 0.8 * len(before["tokenizer.json"])

    loaded, _ = load_model(str(packed), device="cpu")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    expected = model.state_dict()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, expected[name].to(torch.bfloat16).float()), name
