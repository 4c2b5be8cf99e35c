from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from recipes.small.requantize import requantize, round_weights
from tests.tiny_models import LLAMA


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_each_group_keeps_as_many_values_as_its_bits_allow(bits: int) -> None:
    torch.manual_seed(0)
    weights = torch.randn(6, 512)
    weights[0, :256] = 0
    rounded = round_weights(weights, bits, 256)
    for group in rounded.reshape(-1, 256):
        assert len(group.unique()) <= 2**bits - 1
    largest = weights.reshape(-1, 256).abs().amax(dim=1)
    step = largest / (2 ** (bits - 1) - 1)
    change = (rounded - weights).reshape(-1, 256).abs().amax(dim=1)
    assert (change <= step / 2 + 1e-6).all()


def test_the_copy_is_a_model_that_loads_with_its_embeddings_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {name: value for name, value in LLAMA.items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=64, **settings))
    model.save_pretrained(tmp_path / "model")
    share = requantize(tmp_path / "model", tmp_path / "rounded", 4, 32)
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded")
    assert 0.02 < share < 0.2
    assert torch.equal(copy.get_input_embeddings().weight, model.get_input_embeddings().weight)
    before, after = (m.model.layers[0].mlp.up_proj.weight for m in (model, copy))
    assert not torch.equal(before, after)
    assert torch.allclose(before, after, atol=float(before.detach().abs().max()) / 14 + 1e-6)
