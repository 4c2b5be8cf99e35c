"""The whole model: batch invariance, learning, what trains, decoders of every kind, LoRA, generation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import (
    CLIPS,
    LLAMA,
    architecture,
    examples,
    noise,
    overfit,
    randomize,
    tiny_config,
    tiny_model,
)
from tiny_audio.hub.asr_checkpoint import merge
from tiny_audio.hub.asr_longform import transcribe_waveforms
from tiny_audio.hub.asr_losses import LossWeights
from tiny_audio.hub.asr_projectors import PROJECTORS
from tiny_audio.train.build import build_model, checkpointed_towers, freeze

ALL_LOSSES = LossWeights(ctc=1.0, embedding=0.5, balance=0.1)
DECODERS = {
    "llama": LLAMA,
    "smollm3": {**LLAMA, "model_type": "smollm3", "no_rope_layer_interval": 2},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False},
    "gemma3_text": {**LLAMA, "model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma2": {**LLAMA, "model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
    },
    "granite": {**LLAMA, "model_type": "granite", "logits_scaling": 3.0},
}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("projector_type", PROJECTORS)
def test_loss_of_a_batch_is_the_sum_of_its_clips(projector_type: str) -> None:
    model, processor = tiny_model(
        f"model.projector_type={projector_type}", "ctc.embedding_weight=0.3", "model.stack_factor=1"
    )
    clips = examples(processor)
    with torch.no_grad():
        together = model(**processor.collate(clips), loss_weights=ALL_LOSSES)
        alone = [model(**processor.collate([clip]), loss_weights=ALL_LOSSES) for clip in clips]
    for name, total in together.loss_sums.items():
        assert sum(one.loss_sums[name] for one in alone).item() == pytest.approx(total.item(), abs=1e-3)
    assert together.infeasible == sum(one.infeasible for one in alone)


def test_split_batches_with_shared_normalizers_give_the_gradient_of_the_whole() -> None:
    model, processor = tiny_model()
    clips = examples(processor)
    whole = processor.collate(clips)
    model(**whole, loss_weights=ALL_LOSSES_WITHOUT_EMBEDDING).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    counts = {"lm": int((whole["labels"] != -100).sum()), "ctc": int((whole["ctc_labels"] >= 0).sum())}
    for part in (clips[:1], clips[1:]):
        batch = processor.collate(part)
        model(**batch, loss_weights=ALL_LOSSES_WITHOUT_EMBEDDING, normalizers=counts).loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name


ALL_LOSSES_WITHOUT_EMBEDDING = LossWeights(ctc=1.0)


def test_overfits_one_batch_and_writes_it() -> None:
    model, processor = tiny_model()
    batch = processor.collate(examples(processor))
    assert overfit(model, batch) < 0.05
    waveforms = [noise(seconds, seed) for seed, (seconds, _) in enumerate(CLIPS)]
    expected = [text for _, text in CLIPS]
    assert transcribe_waveforms(model, processor, waveforms) == expected
    assert [transcribe_waveforms(model, processor, [w])[0] for w in waveforms] == expected
    assert transcribe_waveforms(model, processor, waveforms, num_beams=3) == expected
    assert transcribe_waveforms(model, processor, waveforms[:1], max_new_tokens=3) == ["one"]
    sampled = transcribe_waveforms(
        model, processor, waveforms[:1], do_sample=True, temperature=0.5, max_new_tokens=9
    )
    assert len(sampled[0]) <= 9
    assert transcribe_waveforms(
        model, processor, waveforms, num_beams=2, length_penalty=0.5, num_return_sequences=1
    )


@pytest.mark.parametrize("name", DECODERS)
def test_any_decoder_scores_text_as_its_stock_model_does(name: str) -> None:
    config = tiny_config()
    config.model.decoder_config = DECODERS[name]
    model, processor = build_model(config)
    model.eval()
    stock = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    stock.base_model.load_state_dict(model.model.language_model.state_dict())
    stock.get_output_embeddings().weight.data.copy_(model.lm_head.weight.data)
    ids = torch.tensor([processor.label_ids("seven four")])
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, stock(input_ids=ids).logits, atol=1e-5)
        loss = model(**processor.collate(examples(processor)), loss_weights=LossWeights(ctc=1.0)).loss
    assert torch.isfinite(loss)
    assert transcribe_waveforms(model, processor, [noise(0.5)], max_new_tokens=4) is not None


@pytest.mark.parametrize("variant", ["plain", "use_rslora", "use_dora"])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_lora_alone_trains_and_folds_into_the_same_model(side: str, variant: str) -> None:
    config = tiny_config()
    settings = {**LORA, "use_rslora": variant == "use_rslora", "use_dora": variant == "use_dora"}
    key = "encoder_lora" if side == "encoder" else "peft"
    config[key].update({**settings, **({"peft_method": "lora"} if side == "decoder" else {})})
    model, processor = build_model(config)
    freeze(model, freeze_encoder=True, freeze_decoder=True)
    tower = model.model.audio_tower if side == "encoder" else model.model.language_model
    other = model.model.language_model if side == "encoder" else model.model.audio_tower
    assert not any(p.requires_grad for p in other.parameters())
    randomize(model, "lora_B")
    batch = processor.collate(examples(processor))
    model.train()
    model(**batch, loss_weights=LossWeights(ctc=1.0)).loss.backward()
    for name, parameter in tower.named_parameters():
        if "lora_" in name:
            assert parameter.grad is not None and parameter.grad.abs().any(), name
        else:
            assert parameter.grad is None, name
    model.eval()
    with torch.no_grad():
        before = model(**batch, loss_weights=LossWeights(ctc=1.0)).loss
        after = merge(model)(**batch, loss_weights=LossWeights(ctc=1.0)).loss
    assert after.item() == pytest.approx(before.item(), abs=1e-4)
    assert not any("lora_" in name for name in merge(model).state_dict())


def test_frozen_towers_stay_in_eval_and_get_no_gradient() -> None:
    config = tiny_config()
    config.model.encoder_config.dropout = 0.5
    model, processor = build_model(config)
    freeze(model, freeze_encoder=True, freeze_decoder=True)
    model.train()
    assert model.model.multi_modal_projector.training
    assert not any(module.training for module in model.model.audio_tower.modules())
    batch = processor.collate(examples(processor))
    first, second = (model(**batch, loss_weights=LossWeights(ctc=1.0)).loss for _ in range(2))
    assert first.item() == second.item(), "dropout of a frozen tower is at work"
    first.backward()
    trained = {
        name.split(".")[1] if name.startswith("model.") else name.split(".")[0]
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    assert trained == {"multi_modal_projector", "ctc_head"}


def test_only_label_positions_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model()
    batch = processor.collate(examples(processor))
    scored: list[int] = []
    stock = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda x: (scored.append(x.shape[0]), stock(x))[1])
    model(**batch)
    assert scored == [int((batch["labels"] != -100).sum())]


def test_default_length_grows_with_the_clip_and_not_with_its_batch_mates() -> None:
    model, processor = tiny_model()
    with torch.no_grad():  # a decoder that never ends
        model.lm_head.weight[processor.end_token_id] = -100 * model.lm_head.weight.mean(dim=0)
    model.generation_config.eos_token_id = [processor.audio_token_id]
    short, long = noise(0.5), noise(6.0)

    def count(waveforms: list[Any]) -> list[int]:
        batch = processor.collate([processor.encode(w) for w in waveforms])
        ids = model.generate(**batch)
        return [int((row != processor.pad_token_id).sum()) for row in ids]

    alone = count([short]) + count([long])
    assert count([short, long]) == alone
    assert alone[0] < 40 < alone[1]


def test_wrong_number_of_placeholders_is_refused() -> None:
    model, processor = tiny_model()
    batch = processor.collate(examples(processor)[:1])
    batch["input_ids"][0, 1] = processor.end_token_id
    with pytest.raises(ValueError, match="placeholders"):
        model(**batch)


@pytest.mark.parametrize("setting", [True, "encoder", "decoder"])
def test_gradient_checkpointing_changes_nothing_but_memory(setting: bool | str) -> None:
    model, processor = tiny_model()
    batch = processor.collate(examples(processor))
    twin = copy.deepcopy(model)
    for tower in checkpointed_towers(twin, setting):
        tower.activation_checkpointing_enable()
    passes = {"encoder": 0, "decoder": 0}
    for name, tower in (("encoder", twin.model.audio_tower), ("decoder", twin.model.language_model)):
        counted = tower.layers[0].self_attn.q_proj

        def count(*_: Any, name: str = name) -> None:
            passes[name] += 1

        counted.register_forward_hook(count)
    for one in (model, twin):
        one.train()
        one(**batch, loss_weights=LossWeights(ctc=1.0)).loss.backward()
    for (name, left), right in zip(model.named_parameters(), twin.parameters(), strict=True):
        if left.grad is not None:
            assert torch.allclose(left.grad, right.grad, atol=1e-6), name
    assert passes == {name: 2 if setting in (True, name) else 1 for name in passes}


def test_a_frozen_decoder_that_gradients_pass_through_is_checkpointed() -> None:
    """Its layers are in eval mode, where transformers checkpoints nothing by itself; dropout has to stay off."""
    model, processor = tiny_model()
    batch = processor.collate(examples(processor))
    model.model.language_model.requires_grad_(False)
    model.model.language_model.layers[0].self_attn.attention_dropout = 0.5
    plain = model(**batch, loss_weights=LossWeights()).loss
    model.activation_checkpointing_enable()
    model.train()
    passes: list[int] = []
    model.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    loss = model(**batch, loss_weights=LossWeights()).loss
    loss.backward()
    assert len(passes) == 2
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5)
    assert model.model.multi_modal_projector.output_norm.weight.grad is not None


def test_layers_of_a_frozen_decoder_that_apply_dropout_themselves_do_not() -> None:
    """OPT's do; a checkpointed layer counts as training."""
    config = tiny_config("model.freeze_encoder=true", "model.freeze_decoder=true")
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_attention_heads": 2}
    config.model.decoder_config = {"model_type": "opt", "num_hidden_layers": 2, "dropout": 0.5, **sizes}
    model, processor = build_model(config)
    model.activation_checkpointing_enable()
    batch = processor.collate(examples(processor))
    first, second = (model.train()(**batch).loss.item() for _ in range(2))
    assert first == second == pytest.approx(model.eval()(**batch).loss.item(), abs=1e-5)


def test_same_seed_same_weights() -> None:
    config = tiny_config()
    first, _ = build_model(config)
    second, _ = build_model(config)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert architecture(LLAMA).hidden_size == first.config.text_config.hidden_size
