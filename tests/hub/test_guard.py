"""The guard: what was said survives however often it is repeated, and what nobody said does not."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import StoppingCriteriaList

from tests.tiny_models import noise, randomize, tiny_model
from tiny_audio.data.sources import open_source
from tiny_audio.hub.asr_guard import (
    FEWEST_COPIES,
    LONGEST_PIECE,
    MINIMUM_NEW_TOKENS,
    ClipLengthCriteria,
    RepetitionCriteria,
    ends_in_a_loop,
    has_speech,
    new_token_limits,
)
from tiny_audio.hub.asr_longform import Recogniser, transcribe_waveforms
from tiny_audio.train.build import byte_tokenizer

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TOKENIZERS = {"bytes": byte_tokenizer(), "words": byte_tokenizer(DIGITS)}


def stops(text: str, heard: float, kind: str) -> bool:
    """Whether a text is ended at any of its tokens when the alignment head expects `heard` characters."""
    tokenizer = TOKENIZERS[kind]
    criteria = RepetitionCriteria(tokenizer, torch.tensor([heard]))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return any(bool(criteria(torch.tensor([ids[:count]]), None)) for count in range(1, len(ids) + 1))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    "text",
    [
        "five five five five",
        "5000",
        "0000000000",
        "one one one one one one one one one one",
        "no no no no no no no, said the man",
        "ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha ha",
        "nine five nine five nine five nine five",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ],
)
@pytest.mark.parametrize("share_heard", [0.75, 1.0, 1.3])
def test_what_was_said_survives_however_often(text: str, kind: str, share_heard: float) -> None:
    assert not stops(text, share_heard * len(text), kind)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("piece", ["five ", "one two three four ", "5", "I don't know. "])
def test_a_loop_is_stopped_soon_after_what_was_heard(piece: str, kind: str) -> None:
    heard = 2.0 * len(piece)
    assert stops(piece * 40, heard, kind)
    tokenizer = TOKENIZERS[kind]
    criteria = RepetitionCriteria(tokenizer, torch.tensor([heard]))
    ids = tokenizer(piece * 40, add_special_tokens=False).input_ids
    end = next(n for n in range(1, len(ids) + 1) if bool(criteria(torch.tensor([ids[:n]]), None)))
    assert len(tokenizer.decode(ids[:end])) < max(1.2 * heard, 4 * len(piece)) + MINIMUM_NEW_TOKENS + 60


@settings(max_examples=100, deadline=None)
@given(
    before=st.lists(st.integers(0, 3), max_size=10),
    piece=st.lists(st.integers(0, 3), min_size=1, max_size=LONGEST_PIECE),
    copies=st.integers(1, 8),
)
def test_copies_at_the_end_are_a_loop_and_nothing_else_is(
    before: list[int], piece: list[int], copies: int
) -> None:
    ids = before + piece * copies
    expected = any(
        len(ids) >= FEWEST_COPIES * length
        and ids[-FEWEST_COPIES * length :] == ids[len(ids) - length :] * FEWEST_COPIES
        for length in range(1, LONGEST_PIECE + 1)
    )
    assert ends_in_a_loop(ids) == expected
    if copies >= FEWEST_COPIES:
        assert ends_in_a_loop(ids)
    assert not ends_in_a_loop([*ids, 4])


def test_repetition_is_judged_for_each_clip_alone() -> None:
    tokenizer = TOKENIZERS["bytes"]
    texts = [("five " * 12)[:56], "a sentence that says nothing twice and goes on for ever "]
    rows = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids for text in texts])
    heard = torch.tensor([10.0, 10.0])
    together = RepetitionCriteria(tokenizer, heard)(rows, None).tolist()
    alone = [RepetitionCriteria(tokenizer, heard[i : i + 1])(rows[i : i + 1], None).item() for i in (0, 1)]
    assert together == alone == [True, False]
    assert RepetitionCriteria(tokenizer, torch.tensor([60.0, 10.0]))(rows, None).tolist() == [False, False]
    beams = rows.repeat_interleave(3, dim=0)
    assert RepetitionCriteria(tokenizer, heard)(beams, None).tolist() == [True] * 3 + [False] * 3


def test_a_finished_clip_waiting_for_its_batch_is_no_loop() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer("five five", add_special_tokens=False).input_ids
    padded = torch.tensor([ids + [tokenizer.pad_token_id] * 71])
    assert not RepetitionCriteria(tokenizer, torch.tensor([9.0]))(padded, None).item()


def test_beams_of_a_clip_share_its_limit() -> None:
    criteria = ClipLengthCriteria(torch.tensor([3, 5]))
    done = [criteria(torch.zeros(4, length, dtype=torch.long), None).tolist() for length in (2, 3, 4, 5)]
    assert done == [[False] * 4, [True, True, False, False], [True, True, False, False], [True] * 4]


def probabilities(
    characters: list[int], num_frames: int, sure: float = 0.98, classes: int = 39
) -> torch.Tensor:
    """(F, V) log-probabilities of an alignment head that hears one character in each of these frames."""
    rows = torch.full((num_frames, classes), (1 - sure) / (classes - 1))
    rows[:, 0] = sure
    for frame in characters:
        rows[frame] = (1 - sure) / (classes - 1)
        rows[frame, 5] = sure
    return rows.log()


@pytest.mark.parametrize("seconds", [1, 30])
def test_one_short_word_is_speech_and_a_sure_blank_is_none(seconds: int) -> None:
    frames = 50 * seconds
    both = torch.stack(
        [
            probabilities([7, 11], frames, 0.9999),
            probabilities([7], frames, 0.9999),
            probabilities([], frames, 0.9999),
        ]
    )
    assert has_speech(both, torch.tensor([frames] * 3)).tolist() == [True, True, False]


def test_frames_of_padding_are_not_heard() -> None:
    clip = probabilities([], 100, 0.9999)
    clip[60:] = probabilities([2, 8, 14], 40)
    assert has_speech(clip[None], torch.tensor([60])).tolist() == [False]
    assert has_speech(clip[None], torch.tensor([100])).tolist() == [True]


@pytest.fixture(scope="module")
def talker() -> tuple[Any, Any]:
    """A random model that never ends, and writes the same piece again and again."""
    model, processor = tiny_model()
    randomize(model.model.language_model, "weight")
    model.generation_config.eos_token_id = [processor.audio_token_id]
    return model, processor


def that_hears(talker: tuple[Any, Any], blank_bias: float) -> tuple[Any, Any]:
    model, processor = copy.deepcopy(talker[0]), talker[1]
    with torch.no_grad():
        model.ctc_head.weight.zero_()
        model.ctc_head.bias.zero_()
        model.ctc_head.bias[0] = blank_bias
    return model, processor


def test_limits_hold_fast_speech_and_grow_with_the_clip(talker: tuple[Any, Any]) -> None:
    config = talker[0].config
    rows = open_source("corpus:dev").utterances()
    frames = torch.tensor([int(row.seconds / config.frame_seconds) for row in rows])  # type: ignore[operator]
    lengths = torch.tensor([len(row.text.encode()) + 1 for row in rows])
    assert (new_token_limits(config, frames, None) >= lengths).all()
    assert (new_token_limits(config, frames, lengths.float()) >= lengths).all()
    limits = new_token_limits(config, torch.tensor([50, 1500]), torch.tensor([0.0, 10.0]))
    assert limits.tolist() == [MINIMUM_NEW_TOKENS, MINIMUM_NEW_TOKENS + 20]
    assert new_token_limits(config, torch.tensor([1500]), None) > 20 * 30


def test_a_clip_that_says_nothing_gets_no_words_and_its_mates_keep_theirs(talker: tuple[Any, Any]) -> None:
    model, processor = that_hears(talker, 14.0)
    waveforms = [noise(1.5, 1) * np.float32(0.01), noise(2.5, 2)]
    assert transcribe_waveforms(model, processor, waveforms, max_new_tokens=8) == ["", ""]
    written = transcribe_waveforms(model, processor, waveforms, guard=False, max_new_tokens=8)
    assert all(written)

    with torch.no_grad():  # hears the second alone
        silent, loud = (
            model.get_audio_features(**_features(processor, waveform)).last_hidden_state[0]
            for waveform in waveforms
        )
        direction = loud.mean(dim=0) - silent.mean(dim=0)
        low, high = (silent @ direction).max(), (loud @ direction).max()
        assert low < high
        scale = 40 / (high - low)
        model.ctc_head.weight[3] = scale * direction
        model.ctc_head.bias[3] = 14.0 - scale * (low + high) / 2
    assert transcribe_waveforms(model, processor, waveforms, max_new_tokens=8) == ["", written[1]]


def _features(processor: Any, waveform: Any) -> dict[str, Any]:
    batch = processor([waveform])
    return {name: batch[name] for name in ("input_features", "input_features_mask")}


def test_a_decoder_that_loops_is_stopped_though_much_was_allowed(talker: tuple[Any, Any]) -> None:
    model, processor = that_hears(talker, 6.0)  # some 10 characters in 3 s
    batch = processor([noise(3.0)])
    free = model.generate(**batch, max_new_tokens=120)
    assert free.shape[1] == 120 and ends_in_a_loop(free[0].tolist()), "the fixture loops"
    held = model.generate(**batch, max_new_tokens=120, tokenizer=processor.tokenizer, ctc_decoding_weight=0.0)
    assert held.shape[1] < 80
    assert torch.equal(free[:, : held.shape[1]], held), "nothing is rewritten, only ended"
    short = model.generate(**batch, max_new_tokens=5, tokenizer=processor.tokenizer)
    assert short.shape[1] == 5, "given explicitly, the limit is a hard cap"


def test_the_clips_own_criteria_stay_in_force(talker: tuple[Any, Any]) -> None:
    model, processor = talker
    ended = ClipLengthCriteria(torch.tensor([3]))
    ids = model.generate(**processor([noise(1.0)]), stopping_criteria=StoppingCriteriaList([ended]))
    assert ids.shape[1] == 3


def test_without_an_alignment_head_the_length_alone_limits() -> None:
    model, processor = tiny_model("ctc.weight=0", "ctc.alone_share=0")
    assert model.ctc_head is None
    randomize(model.model.language_model, "weight")
    model.generation_config.eos_token_id = [processor.audio_token_id]
    recogniser = Recogniser(model, processor)
    assert not recogniser.guard
    (result,) = recogniser.recognise([[noise(1.0)]])
    assert 0 < len(processor.tokenizer(result.text).input_ids) <= MINIMUM_NEW_TOKENS + 30 + 8
