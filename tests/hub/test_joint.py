import itertools
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import noise, randomize, tiny_model
from tiny_audio.hub import asr_embedding_ctc, asr_joint
from tiny_audio.hub.asr_embedding_ctc import EmbeddingCTC
from tiny_audio.hub.asr_guard import ends_in_a_loop
from tiny_audio.hub.asr_joint import HeardCharacters, HeardTokens, JointScores, extend, start
from tiny_audio.hub.asr_longform import transcribe_waveforms

NUM_FRAMES, NUM_CLASSES = 5, 3


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(c for c, _ in itertools.groupby(path) if c != 0)


def texts_by_chance(log_probabilities: Tensor) -> dict[tuple[int, ...], float]:
    """Of all texts, by adding up all paths."""
    chances: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(NUM_CLASSES), repeat=NUM_FRAMES):
        chances[collapsed(path)] += math.exp(
            sum(float(log_probabilities[frame, c]) for frame, c in enumerate(path))
        )
    return chances


@pytest.mark.parametrize("text", [(1,), (2, 1), (1, 1), (1, 2, 2), (1, 1, 1), (2, 1, 2, 1, 2)])
def test_prefixes_have_the_probability_of_all_texts_that_begin_with_them(text: tuple[int, ...]) -> None:
    torch.manual_seed(len(text))
    heard = torch.randn(NUM_FRAMES, NUM_CLASSES, dtype=torch.float64).log_softmax(dim=-1)
    chances = texts_by_chance(heard)
    assert sum(chances.values()) == pytest.approx(1)
    paths, total = start(heard[None, :, 0]), torch.zeros(1)
    for previous, label in zip((0, *text), text, strict=False):
        repeats = torch.tensor([previous == label])
        paths, total = extend(paths, heard[None, :, 0], heard[None, :, label], repeats)
    begins = sum(chance for other, chance in chances.items() if other[: len(text)] == text)
    assert total.exp().item() == pytest.approx(begins)
    assert paths[0, :, -1].logsumexp(0).exp().item() == pytest.approx(chances[text])


def test_a_text_that_the_frames_are_too_few_for_is_impossible_and_still_a_number() -> None:
    heard = torch.zeros(1, 2, dtype=torch.float64) - 1
    paths = start(heard)
    for _ in range(4):
        paths, total = extend(paths, heard, heard, torch.tensor([True]))
    assert total.item() < -1e20
    assert torch.isfinite(paths).all()


class Letters:
    """A tokenizer whose token n is the n-th letter."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join("abcdefgh"[token] for token in ids)


def hearing(lengths: list[int]) -> HeardCharacters:
    torch.manual_seed(1)
    log_probabilities = torch.randn(len(lengths), max(lengths), 9).log_softmax(dim=-1)
    return HeardCharacters(log_probabilities, torch.tensor(lengths), Letters(), "abcdefgh")


def test_scores_are_those_of_a_clip_alone_whatever_was_asked_before() -> None:
    both, end = hearing([9, 6]), 8
    torch.manual_seed(2)
    joint = JointScores(both, 0.7, [end], candidates=5)
    texts = torch.empty(4, 0, dtype=torch.long)  # two beams of each of two clips
    for _ in range(4):
        scores = torch.randn(4, 9)
        found = joint(texts, scores)
        for row in range(4):
            clip, length = row // 2, [9, 6][row // 2]
            alone = HeardCharacters(
                both.log_probabilities[clip, None, :length], torch.tensor([length]), Letters(), "abcdefgh"
            )
            fresh = JointScores(alone, 0.7, [end], candidates=5)
            expected = fresh(texts[[row, row]], scores[[row, row]])[0]
            assert torch.allclose(found[row], expected, atol=1e-5)
            assert torch.isfinite(expected).sum() == 5
            # Without beams only what may win is weighed.
            greedy = fresh(texts[row, None], scores[row, None])[0]
            assert greedy.argmax() == expected.argmax()
            assert torch.allclose(greedy.max(), expected.max(), atol=1e-5)
        # The beams of a clip change places, as they do in a search.
        likeliest = found[:, :end].argmax(dim=-1)
        texts = torch.cat([texts, likeliest[:, None]], dim=1)[[1, 0, 3, 2]]


def test_the_end_is_scored_as_the_whole_text() -> None:
    heard = hearing([NUM_FRAMES])
    scores = torch.zeros(2, 9)
    joint = JointScores(heard, 1.0, [8], candidates=9)(torch.tensor([[0, 1]] * 2), scores)[0]
    paths = start(heard.blank)
    for label in (1, 2):
        paths, before = extend(paths, heard.blank, heard.log_probabilities[..., label], torch.tensor([False]))
    whole = paths[0, :, -1].logsumexp(0)
    assert joint[8].item() == pytest.approx(math.log(1 / 9) + (whole - before).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([], False),
        ([5, 5, 5], False),  # three times the same is said now and then
        ([1, 5, 5, 5, 5], True),
        ([1, 2, 1, 2], False),
        ([1, 2, 1, 2, 1], True),
        ([9, 1, 2, 3, 4, 5, 1, 2, 3, 4], False),
        ([9, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5], True),
        ([1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6], False),
        ([*range(40), *range(40)], True),
        ([*range(41), *range(41)], False),
    ],
)
def test_a_loop_is_a_piece_that_comes_again(ids: list[int], loops: bool) -> None:
    assert ends_in_a_loop(ids, asr_joint.LOOP_COPIES, asr_joint.FEWEST_REPEATED) == loops


def test_what_repeats_must_be_heard() -> None:
    heard, texts, scores = hearing([9]), torch.tensor([[1, 0, 0, 0]] * 2), torch.zeros(2, 9)
    quiet, loud = (JointScores(heard, weight, [8], candidates=9)(texts, scores)[0] for weight in (0.1, 1.0))
    assert quiet[0].item() == pytest.approx(loud[0].item()) and loud[0] < math.log(1 / 9) - 0.1
    for other in range(1, 9):  # the gains of all others have the weight that was asked for
        gains = [scores[other].item() - math.log(1 / 9) for scores in (quiet, loud)]
        assert gains[0] == pytest.approx(0.1 * gains[1], abs=1e-5)


def test_nothing_is_forbidden_where_the_frames_are_too_few() -> None:
    joint = JointScores(hearing([2]), 1.0, [8], candidates=9)
    scores = joint(torch.tensor([[0, 1, 2, 3, 4]] * 2), torch.zeros(2, 9))
    assert (scores >= math.log(1 / 9) - asr_joint.MOST_DOUBT).all()


@pytest.mark.parametrize("tokens_a_piece", [1, 100])
def test_what_is_heard_of_tokens_is_a_distribution_over_the_vocabulary(
    tokens_a_piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(asr_embedding_ctc, "SCORES_A_PIECE", tokens_a_piece * 40)
    module, table = EmbeddingCTC(16, 40), torch.randn(40, 16)
    tokens, lengths = torch.randn(9, 16), torch.tensor([6, 3])
    tokens[1:3] = tokens[7] = 3 * table[17]
    heard, drafts = module.listen(tokens, lengths, table)
    clips = torch.tensor([0, 1])
    emissions = torch.stack(
        [heard.emissions(clips, torch.full((2,), token)) for token in range(40)], dim=1
    )  # (B, V, F)
    everything = torch.logaddexp(emissions.logsumexp(dim=1), heard.blank)
    assert torch.allclose(everything[0], torch.zeros(6, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(everything[1, :3], torch.zeros(3, dtype=torch.float64), atol=1e-5)
    assert (heard.blank[1, 3:] == 0).all() and (emissions[1, :, 3:] < -1000).all()
    for clip, draft in enumerate(drafts):
        both = torch.cat([heard.blank[clip, None], emissions[clip]])[:, : lengths[clip]]
        best = [c for c, _ in itertools.groupby(both.argmax(dim=0).tolist()) if c]
        assert draft == [c - 1 for c in best]
        assert 17 in draft


def test_a_table_that_changed_is_measured_anew() -> None:
    torch.manual_seed(0)
    module, table = EmbeddingCTC(16, 40), torch.randn(40, 16)
    tokens, lengths = torch.randn(7, 16), torch.tensor([7])
    scale = module.listen(tokens, lengths, table)[0].scale
    assert module.listen(tokens, lengths, table)[0].scale is scale
    table[3] *= 2
    assert module.listen(tokens, lengths, table)[0].scale[3] == pytest.approx(scale[3].item() / 2)


def test_what_is_heard_is_what_the_embedding_loss_scores() -> None:
    torch.manual_seed(0)
    module, table = EmbeddingCTC(16, 40), torch.randn(40, 16)
    tokens = torch.randn(1, 7, 16)
    heard, _ = module.listen(tokens[0], torch.tensor([7]), table)
    paths = start(heard.blank)
    for label in (3, 30):
        emissions = heard.emissions(torch.tensor([0]), torch.tensor([label]))
        paths, _ = extend(paths, heard.blank, emissions, torch.tensor([False]))
    loss, _ = module(tokens, torch.tensor([7]), torch.tensor([[3, 30]]), table)
    assert -paths[0, :, -1].logsumexp(0).item() == pytest.approx(loss.item(), abs=1e-4)


@pytest.fixture(scope="module", params=["characters", "tokens"])
def parts(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A random model that hears "acb" by either of its heads, at frames of its own choice."""
    model, processor = tiny_model(f"ctc.embedding_weight={float(request.param == 'tokens')}")
    randomize(model.model.language_model, "weight")
    return model, processor


def test_a_decoder_without_sense_writes_what_is_heard(parts: tuple[Any, Any], monkeypatch: Any) -> None:
    model, processor = parts
    ids = processor.tokenizer("acb", add_special_tokens=False).input_ids
    letters = processor.tokenizer("abcdefghijklmnopqrstuvwxyz", add_special_tokens=False).input_ids
    others = [token for token in range(len(processor.tokenizer)) if token not in letters]
    # What is no letter is not heard, and costs nothing: a decoder without sense would write that.
    silent = [token for token in others if token != processor.end_token_id]
    monkeypatch.setattr(model.generation_config, "suppress_tokens", silent)
    real = type(model)._hear

    def hear(self: Any, audio: Any, *others: Any) -> tuple[Any, list[int]]:
        """The head's own classes, with a clear voice."""
        hearing, draft = real(self, audio, *others)
        num_clips, num_frames = hearing.blank.shape
        classes = hearing.classes(ids)
        hearing.blank = torch.full((num_clips, num_frames), -0.01, dtype=torch.float64)
        hearing.blank[:, 1 : 2 * len(classes) : 2] = -9.0

        def emissions(clips: Tensor, asked: Tensor) -> Tensor:
            clear = torch.full((len(clips), num_frames), -9.0, dtype=torch.float64)
            for place, label in enumerate(classes):
                clear[:, 2 * place + 1] = torch.where(asked == label, -0.01, -9.0)
            return clear

        hearing.emissions = emissions
        return hearing, draft

    monkeypatch.setattr(type(model), "_hear", hear)
    monkeypatch.setattr("tiny_audio.hub.asr_generation.CANDIDATES", 100)
    clips = [noise(3.0), noise(2.0, 1)]
    assert transcribe_waveforms(model, processor, clips, guard=False, ctc_decoding_weight=50.0) == [
        "acb",
        "acb",
    ]
    alone = [
        transcribe_waveforms(model, processor, [c], guard=False, ctc_decoding_weight=50.0)[0] for c in clips
    ]
    assert alone == ["acb", "acb"]
    beams = transcribe_waveforms(model, processor, clips, guard=False, ctc_decoding_weight=50.0, num_beams=3)
    assert beams == ["acb", "acb"]
    assert "acb" not in transcribe_waveforms(model, processor, clips, guard=False, ctc_decoding_weight=0.0)


def test_sampling_is_the_decoders_alone(parts: tuple[Any, Any]) -> None:
    model, processor = parts
    texts = []
    for weight in (0.0, 50.0):
        torch.manual_seed(5)
        options = {"do_sample": True, "ctc_decoding_weight": weight, "max_new_tokens": 12}
        texts += transcribe_waveforms(model, processor, [noise(1.0)], guard=False, **options)
    assert texts[0] == texts[1] != ""


def test_a_token_heard_scores_higher(parts: tuple[Any, Any]) -> None:
    model, processor = parts
    batch = processor([noise(1.0)])
    with torch.no_grad():
        audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
        hearing, _ = model._hear(audio, model.alignment(audio), processor.tokenizer)
    assert isinstance(hearing, HeardTokens if model.embedding_ctc is not None else HeardCharacters)
    assert hearing.blank.dtype == torch.float64 and (hearing.blank <= 0).all()
