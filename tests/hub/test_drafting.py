import copy
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.generation import GenerationMixin

from tests.tiny_models import examples, noise, randomize, tiny_model
from tiny_audio.hub import asr_drafting as drafting
from tiny_audio.hub.asr_drafting import (
    has_plain_cache,
    share_prompt,
    shared_prompt_length,
    write_from_draft,
)
from tiny_audio.hub.asr_generation import TokenScores
from tiny_audio.hub.asr_longform import transcribe_waveforms

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    prompt = "You hear someone speak; write down their words, and write down nothing else: <audio>"
    model, processor = tiny_model(f"model.prompt='{prompt}'")
    randomize(model.model.language_model, "weight")  # else it writes one token for ever
    return model, processor


def prepare(parts: tuple[Any, Any], lengths: list[float]) -> tuple[Any, torch.Tensor]:
    model, processor = parts
    batch = processor([noise(seconds, seed) for seed, seconds in enumerate(lengths)])
    with torch.no_grad():
        audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
        return batch, model.model.splice(batch["input_ids"], audio)


def write(model: Any, embeddings: torch.Tensor, mask: torch.Tensor, **options: Any) -> list[list[int]]:
    with torch.no_grad():
        written = GenerationMixin.generate(
            model,
            inputs_embeds=embeddings,
            attention_mask=mask,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            **options,
        )
    return [row.tolist() for row in written]


@pytest.mark.parametrize("lengths", [[1.2, 0.4, 2.3], [1.0, 1.0, 1.0]])
def test_a_prompt_read_once_leaves_the_texts_as_they_are(
    parts: tuple[Any, Any], lengths: list[float]
) -> None:
    model, _ = parts
    batch, embeddings = prepare(parts, lengths)
    with torch.no_grad():
        moved, mask, cache = share_prompt(model, batch["input_ids"], embeddings, batch["attention_mask"])
    assert cache is not None and cache.get_seq_length() > 60
    expected = write(model, embeddings, batch["attention_mask"])
    assert len({tuple(row) for row in expected}) > 1 or lengths[0] == lengths[1]
    assert write(model, moved, mask, past_key_values=cache) == expected


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_prompt_read_once_gives_the_same_loss_and_gradients(
    parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, checkpointed: bool
) -> None:
    processor = parts[1]
    batch = processor.collate(examples(processor))
    lengths_read: list[int] = []
    results = []
    for from_positions in (10**9, drafting.SHARE_FROM_POSITIONS):
        monkeypatch.setattr(drafting, "SHARE_FROM_POSITIONS", from_positions)
        model = copy.deepcopy(parts[0]).train()
        if checkpointed:
            model.activation_checkpointing_enable()
        first_layer = model.model.language_model.layers[
            0
        ].mlp  # run again in the backward pass where checkpointed
        first_layer.register_forward_hook(lambda module, given, out: lengths_read.append(given[0].shape[1]))
        output = model(**batch)
        output.loss.backward()
        results.append(
            (output.loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        )
    (whole, whole_gradients), (shared, gradients) = results
    num_tokens = batch["input_ids"].shape[1]
    assert set(lengths_read) == {num_tokens, 78, num_tokens - 78}, "the prompt's 78 tokens by themselves"
    assert shared.item() == pytest.approx(whole.item(), abs=1e-5)
    assert gradients.keys() == whole_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, whole_gradients[name], atol=2e-5), name


def test_a_prompt_that_saves_little_is_not_read_by_itself(parts: tuple[Any, Any]) -> None:
    batch, embeddings = prepare(parts, [1.2, 0.4])
    given = (embeddings, batch["attention_mask"])
    unchanged = share_prompt(parts[0], batch["input_ids"], *given)
    assert unchanged[2] is None and unchanged[0] is embeddings


def test_only_tokens_that_all_clips_have_before_their_audio_are_shared() -> None:
    audio, pad = 9, 0
    ids = torch.tensor([[pad, 1, 2, audio, audio, 3], [1, 2, audio, audio, audio, 3]])
    mask = (ids != pad).long()
    assert shared_prompt_length(ids, mask, audio) == 2
    assert shared_prompt_length(ids[:1], mask[:1], audio) == 0  # a clip alone
    other = ids.clone()
    other[0, 1] = 4
    assert shared_prompt_length(other, mask, audio) == 0
    assert shared_prompt_length(ids[:, 2:], mask[:, 2:], audio) == 0  # of other lengths


def drafts(text: list[int]) -> dict[str, list[int]]:
    wrong = [token + 1 for token in text]
    return {
        "right": text,
        "none": [],
        "all wrong": wrong,
        "one wrong": [*text[:5], wrong[5], *text[6:]],
        "one too many": [*text[:5], wrong[5], *text[5:]],
        "one too few": [*text[:5], *text[6:]],
        "too short": text[:7],
        "too long": [*text, *text],
    }


@pytest.mark.parametrize("kind", list(drafts([0] * NEW_TOKENS)))
def test_a_draft_right_or_wrong_leaves_the_text_as_it_is(parts: tuple[Any, Any], kind: str) -> None:
    model, _ = parts
    batch, embeddings = prepare(parts, [1.7])
    expected = write(model, embeddings, batch["attention_mask"])[0]
    never = model.generation_config.suppress_tokens
    with torch.no_grad():
        written = write_from_draft(model, embeddings, drafts(expected)[kind], NEW_TOKENS, (), never)
    assert written == expected


def test_writing_ends_with_the_end_token_wherever_it_comes(parts: tuple[Any, Any]) -> None:
    model, _ = parts
    batch, embeddings = prepare(parts, [1.7])
    expected = write(model, embeddings, batch["attention_mask"])[0]
    end = expected[9]
    first = expected.index(end) + 1
    for draft in (expected, [], expected[:4]):
        with torch.no_grad():
            written = write_from_draft(
                model, embeddings, draft, NEW_TOKENS, {end}, [model.config.audio_token_id]
            )
        assert written == expected[:first]


def test_scores_criteria_and_streams_see_what_they_see_in_generate(parts: tuple[Any, Any]) -> None:
    model, _ = parts
    batch, embeddings = prepare(parts, [1.7])
    plain, drafted, streamed = TokenScores(), TokenScores(), []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            streamed.extend(value.flatten().tolist())

    def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([ids.shape[1] == 13])

    expected = write(model, embeddings, batch["attention_mask"], logits_processor=plain.as_list())[0]
    draft = drafts(expected)["one wrong"]
    never = [
        *model.generation_config.suppress_tokens,
        *model.generation_config.eos_token_id,
    ]  # so does generate
    with torch.no_grad():
        written = write_from_draft(
            model, embeddings, draft, NEW_TOKENS, (), never, drafted.as_list(), [stop], Streamer()
        )
    assert written == streamed == expected[:13]
    found, wanted = drafted.finish(torch.tensor([written])), plain.finish(torch.tensor([expected]))
    torch.testing.assert_close(found, wanted[:, :13], rtol=1e-4, atol=1e-4)


def test_a_right_draft_takes_few_passes(parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = parts
    batch, embeddings = prepare(parts, [1.7])
    expected = write(model, embeddings, batch["attention_mask"])[0]
    passes = []
    run = model.model.language_model.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        passes.append(1)
        return run(*arguments, **options)

    monkeypatch.setattr(model.model.language_model, "forward", counted)
    never = model.generation_config.suppress_tokens
    with torch.no_grad():
        write_from_draft(model, embeddings, expected, NEW_TOKENS, (), never)
    assert len(passes) == 2  # 24 tokens in windows of 16 and the one that each window adds


def test_decoders_that_forget_are_left_alone() -> None:
    assert has_plain_cache(LlamaConfig())
    assert not has_plain_cache(Gemma3TextConfig(sliding_window=512))


def test_a_prompt_is_recalled_until_a_weight_changes(parts: tuple[Any, Any]) -> None:
    model, processor = copy.deepcopy(parts[0]), parts[1]
    waveforms = [noise(1.0, 3), noise(1.7, 4)]
    first = [transcribe_waveforms(model, processor, [w], guard=False, max_new_tokens=12) for w in waveforms]
    memory = model._recalled_prompt
    length = memory[1].get_seq_length()
    assert length > 60
    again = [transcribe_waveforms(model, processor, [w], guard=False, max_new_tokens=12) for w in waveforms]
    assert model._recalled_prompt is memory and again == first
    assert memory[1].get_seq_length() == length, "nobody writes into it"

    with torch.no_grad():
        model.model.language_model.layers[0].self_attn.v_proj.weight.neg_()
    changed = [transcribe_waveforms(model, processor, [w], guard=False, max_new_tokens=12) for w in waveforms]
    assert model._recalled_prompt is not memory
    fresh = copy.deepcopy(model)
    del fresh._recalled_prompt
    expected = [
        transcribe_waveforms(fresh, processor, [w], guard=False, max_new_tokens=12) for w in waveforms
    ]
    assert changed == expected != first
