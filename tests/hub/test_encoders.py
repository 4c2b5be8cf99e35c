"""Every encoder family and variant: frame counts, batch invariance, equality with transformers, training."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import (
    HubertConfig,
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
)

from tests.hub.encoder_towers import (
    MAX_SOURCE_POSITIONS,
    MEL_BINS,
    TINY_CONFORMER,
    TOLERANCE,
    VARIANTS,
    every_variant,
    features_are_mel,
    largest_difference,
    make_clips,
    make_tower,
    pad_clips,
    random_dropping,
    run_alone,
)
from tiny_audio.hub import asr_encoder_forward
from tiny_audio.hub.asr_encoders import (
    ENCODER_FAMILIES,
    encoder_family,
    encoder_geometry,
    encoder_max_feature_length,
    encoder_min_feature_length,
    encoder_output_length,
    encoder_width,
    run_encoder,
)

# Frame counts -----------------------------------------------------------------------------------------------


@every_variant
def test_output_length_is_the_towers_own_at_every_length(variant: str) -> None:
    tower = make_tower(variant)
    geometry = encoder_geometry(tower.config)
    assert json.loads(json.dumps(geometry)) == geometry
    shortest = encoder_min_feature_length(geometry)
    longest = encoder_max_feature_length(tower.config) or (200 if shortest == 1 else 4000)
    counts = [encoder_output_length(geometry, length) for length in range(longest + 1)]
    assert counts[:shortest] == [0] * shortest
    assert counts[shortest] == 1
    assert encoder_output_length(geometry, torch.arange(longest + 1)).tolist() == counts
    assert encoder_output_length(geometry, torch.tensor([[shortest]], dtype=torch.int32)).dtype == torch.int32
    # Neither count falls with length, so they agree everywhere when they agree on both sides of every step.
    steps = [length for length in range(shortest + 1, longest + 1) if counts[length] != counts[length - 1]]
    channels = (MEL_BINS,) if features_are_mel(tower) else ()
    with torch.no_grad():
        for length in {shortest, longest, *steps, *(step - 1 for step in steps)}:
            frames = run_encoder(tower, torch.randn(1, *channels, length))
            assert frames.shape == (1, counts[length], encoder_width(tower.config))


@every_variant
def test_clips_that_are_too_short_or_too_long_raise(variant: str) -> None:
    tower = make_tower(variant)
    shortest = encoder_min_feature_length(encoder_geometry(tower.config))
    longest = encoder_max_feature_length(tower.config)
    clip = make_clips(tower, (0.5,))[0]
    with pytest.raises(ValueError, match=f"clip 1 of the batch has {shortest - 1} .* at least {shortest}"):
        run_encoder(tower, *pad_clips([clip, clip[..., : shortest - 1]]))
    with pytest.raises(ValueError, match=f"clip 0 of the batch has {shortest - 1} .* at least {shortest}"):
        run_encoder(tower, clip[None, ..., : shortest - 1])
    if longest is not None:
        with pytest.raises(ValueError, match=f"{longest + 1} feature frames long.*at most {longest}: split"):
            run_encoder(tower, torch.randn(1, MEL_BINS, longest + 1))


def test_numbers_of_the_configs() -> None:
    whole = ParakeetCTCConfig(encoder_config=TINY_CONFORMER, vocab_size=20, pad_token_id=19)
    assert encoder_geometry(whole) == encoder_geometry(whole.encoder_config)
    assert encoder_geometry(whole)["model_type"] == "parakeet_encoder"
    for make_config in (*VARIANTS.values(), lambda: whole):
        config = make_config()
        assert encoder_width(config) == 32
    assert encoder_geometry(HubertConfig())["conv_stride"] == [5, 2, 2, 2, 2, 2, 2]
    assert encoder_output_length(encoder_geometry(HubertConfig()), 16_000) == 49
    assert encoder_output_length(encoder_geometry(WhisperConfig()), 3000) == 1500
    assert encoder_output_length(encoder_geometry(ParakeetEncoderConfig()), 1000) == 125
    assert encoder_max_feature_length(WhisperConfig()) == 3000
    assert encoder_max_feature_length(WavLMConfig()) is None


# Batch invariance -------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_clip_in_a_batch_is_the_clip_alone(variant: str, mode: str) -> None:
    tower = make_tower(variant).train(mode == "train")
    clips = make_clips(tower)
    extra = 36 if features_are_mel(tower) else 1117  # frames that belong to no clip
    features, mask = pad_clips(clips, extra)
    features = torch.where(mask[:, None] if features.dim() == 3 else mask, features, 100.0)  # not to be heard
    with torch.no_grad():
        frames = run_encoder(tower, features, mask)
        alone = run_alone(tower, clips)
    geometry = encoder_geometry(tower.config)
    assert frames.shape[1] == encoder_output_length(geometry, features.shape[-1])
    assert largest_difference(frames, alone) < TOLERANCE
    for row, own in zip(frames, alone, strict=True):
        assert row[len(own) :].abs().max() == 0.0


@every_variant
def test_gradients_of_a_batch_are_the_sum_of_its_clips(variant: str) -> None:
    tower = make_tower(variant).train()
    clips = make_clips(tower, (0.31, 0.5, 0.107))

    def gradients(frames: list[Tensor]) -> dict[str, Tensor]:
        tower.zero_grad()
        sum(clip.square().sum() for clip in frames).backward()
        return {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}

    batched = gradients(list(run_encoder(tower, *pad_clips(clips))))
    alone = gradients(run_alone(tower, clips))
    trainable = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert batched.keys() == alone.keys() == trainable
    for name, gradient in alone.items():
        scale = gradient.abs().max().item() + 1.0
        assert (batched[name] - gradient).abs().max().item() < 1e-3 * scale, name


@every_variant
def test_a_forward_that_ignores_padding_differs(variant: str) -> None:
    tower = make_tower(variant)
    clips = make_clips(tower)
    with torch.no_grad():
        ignorant = run_encoder(tower, pad_clips(clips)[0])  # no mask
        assert largest_difference(ignorant, run_alone(tower, clips)) > 100 * TOLERANCE


def test_each_rule_of_invariance_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks one rule at a time, the attention mask in place, and sees the invariance test's measure rise."""
    batched = asr_encoder_forward.FRONT_ENDS["layer"]
    monkeypatch.setitem(asr_encoder_forward.FRONT_ENDS, "group", batched)
    for variant in ("wav2vec2-group", "hubert-group", "wavlm-group"):
        tower = make_tower(variant)
        clips = make_clips(tower)
        with torch.no_grad():
            frames = run_encoder(tower, *pad_clips(clips))
            assert largest_difference(frames, run_alone(tower, clips)) > 100 * TOLERANCE

    def run_unmasked_between_convolutions(tower: Any, mel: Tensor, padding: Any, num_frames: int) -> Tensor:
        heard = torch.ones_like(padding.feature_mask)
        unmasked = asr_encoder_forward.Padding(padding.feature_lengths, heard, padding.frame_mask)
        return asr_encoder_forward.run_whisper(tower, mel, unmasked, num_frames)

    tower = make_tower("whisper")
    clips = make_clips(tower)
    features, mask = pad_clips(clips)
    with torch.no_grad():
        alone = run_alone(tower, clips)
    broken = dataclasses.replace(ENCODER_FAMILIES["whisper"], forward=run_unmasked_between_convolutions)
    monkeypatch.setitem(ENCODER_FAMILIES, "whisper", broken)
    with torch.no_grad():
        frames = run_encoder(tower, features, mask)
    assert largest_difference(frames, alone) > 100 * TOLERANCE


# The stock forward, LoRA, checkpointing ---------------------------------------------------------------------


@every_variant
def test_one_clip_gives_what_transformers_gives(variant: str) -> None:
    tower = make_tower(variant)
    family, _ = encoder_family(tower.config)
    stock = family.model_class(tower.config).eval()
    stock.load_state_dict(tower.state_dict())
    if variant == "whisper":  # right on a full window only
        features = torch.randn(2, MEL_BINS, 2 * MAX_SOURCE_POSITIONS)
    else:
        features = make_clips(tower, (2.337,))[0][None]
    with torch.no_grad():
        expected = stock(features.transpose(1, 2) if variant == "parakeet" else features).last_hidden_state
        assert (run_encoder(tower, features) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("variant", ["wavlm-group", "wavlm-layer"])
def test_wavlm_attention_with_padding_gives_what_transformers_gives(variant: str) -> None:
    tower = make_tower(variant)
    stock = WavLMModel(tower.config).eval()
    stock.load_state_dict(tower.state_dict())
    hidden = torch.randn(3, 70, 32)
    mask = torch.arange(70) < torch.tensor([[70], [33], [1]])
    with torch.no_grad():
        ours = tower.encoder(hidden.clone(), attention_mask=mask).last_hidden_state
        expected = stock.encoder(hidden.clone(), attention_mask=mask).last_hidden_state
    assert (ours - expected)[mask].abs().max() < 1e-5


@every_variant
@pytest.mark.parametrize("use_dora", [False, True])
def test_lora_reaches_every_adapter_and_nothing_else(variant: str, use_dora: bool) -> None:
    tower = make_tower(variant)
    clips = make_clips(tower, (0.5, 0.307))
    features, mask = pad_clips(clips)
    with torch.no_grad():
        before = run_encoder(tower, features, mask)
    # random adapters instead of PEFT's zero product, so that both halves of each have a gradient
    lora = LoraConfig(r=2, target_modules=["q_proj", "k_proj"], use_dora=use_dora, init_lora_weights=False)
    tower = inject_adapter_in_model(lora, tower).train()
    frames = run_encoder(tower, features, mask)
    assert (frames - before).abs().max() > 1e-3
    frames.square().sum().backward()
    adapted = {name for name, parameter in tower.named_parameters() if "lora_" in name}
    assert len(adapted) == 2 * 2 * (3 if use_dora else 2)  # layers * targets * weights
    for name, parameter in tower.named_parameters():
        if name in adapted:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
    with torch.no_grad():
        assert largest_difference(frames, run_alone(tower, clips)) < TOLERANCE


def test_a_frozen_front_end_keeps_nothing_for_the_backward_pass() -> None:
    """The stock front end asks for gradients at the waveform, which keeps all of its activations."""
    tower = make_tower("hubert-layer").requires_grad_(False).train()
    assert not run_encoder(tower, make_clips(tower, (0.5,))[0][None]).requires_grad


@every_variant
def test_gradient_checkpointing_changes_no_number(variant: str) -> None:
    tower = make_tower(variant).train()
    features, mask = pad_clips(make_clips(tower, (0.5, 0.307)))
    calls: list[int] = []
    projection = next(
        part for name, part in tower.named_modules() if re.search(r"layers\.1\..*q_proj$", name)
    )
    projection.register_forward_hook(lambda *arguments: calls.append(1))

    def step() -> tuple[Tensor, dict[str, Tensor], int]:
        calls.clear()
        tower.zero_grad()
        frames = run_encoder(tower, features, mask)
        frames.square().sum().backward()
        trained = {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}
        return frames.detach(), trained, len(calls)

    frames, gradients, plain_calls = step()
    tower.activation_checkpointing_enable()
    frames_again, gradients_again, checkpointed_calls = step()
    assert (plain_calls, checkpointed_calls) == (1, 2)  # run once more in the backward pass
    assert torch.equal(frames, frames_again)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, gradients_again[name], rtol=1e-4, atol=1e-4), name


@every_variant
def test_train_mode_is_deterministic(variant: str) -> None:
    """Layer drop and random masking, on in most pretrained configs, are off; so is batch norm's averaging."""
    tower = make_tower(variant, **random_dropping(variant))
    features, mask = pad_clips(make_clips(tower))
    statistics = {name: value.clone() for name, value in tower.named_buffers()}
    with torch.no_grad():
        expected = run_encoder(tower, features, mask)
        tower.train()
        for _ in range(3):
            assert torch.equal(run_encoder(tower, features, mask), expected)
    assert all(torch.equal(value, statistics[name]) for name, value in tower.named_buffers())


@every_variant
def test_configured_dropout_works_in_train_mode_only(variant: str) -> None:
    tower = make_tower(variant, attention_dropout=0.5)
    features, mask = pad_clips(make_clips(tower, (0.5, 0.307)))
    with torch.no_grad():
        assert torch.equal(run_encoder(tower, features, mask), run_encoder(tower, features, mask))
        tower.train()
        assert not torch.equal(run_encoder(tower, features, mask), run_encoder(tower, features, mask))


@every_variant
def test_a_bfloat16_tower_takes_float32_features(variant: str) -> None:
    tower = make_tower(variant)
    features, mask = pad_clips(make_clips(tower))
    with torch.no_grad():
        expected = run_encoder(tower, features, mask)
        frames = run_encoder(tower.to(torch.bfloat16), features, mask)
        assert frames.dtype == torch.bfloat16
        assert (frames - expected).square().mean() < 0.01 * expected.square().mean()


@every_variant
def test_mixed_precision_training(variant: str) -> None:
    tower = make_tower(variant).train()
    features, mask = pad_clips(make_clips(tower, (0.5, 0.307)))
    with torch.no_grad():
        expected = run_encoder(tower, features, mask)
    with torch.autocast("cpu", torch.bfloat16):
        frames = run_encoder(tower, features, mask)
    assert (frames - expected).square().mean() < 0.01 * expected.square().mean()
    frames.float().square().sum().backward()
    for name, parameter in tower.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("variant", ["whisper", "wavlm-layer"])
def test_compiled_in_one_graph(variant: str) -> None:
    tower = make_tower(variant)
    features, mask = pad_clips(make_clips(tower, (0.5, 0.307)))
    compiled = torch.compile(run_encoder, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert (compiled(tower, features, mask) - run_encoder(tower, features, mask)).abs().max() < 1e-5
