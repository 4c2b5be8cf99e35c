"""Forced alignment against brute force, and word times against audio whose words lie where we put them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tiny_audio.hub.asr_alignment import TimedWord, align_words, forced_alignment, speech_evidence
from tiny_audio.hub.asr_losses import decode_ctc_text, encode_ctc_text

VOCABULARY = " 'abcdefghijklmnopqrstuvwxyz0123456789"
FRAME_SECONDS = 0.02


def collapse(path: tuple[int, ...]) -> list[int]:
    return [c for c, previous in zip(path, (0, *path), strict=False) if c and c != previous]


def spiky(frames: dict[int, str], num_frames: int, confidence: float = 0.97) -> torch.Tensor:
    """(F, V) log-probabilities with one character at each given frame and blanks elsewhere."""
    probabilities = torch.full((num_frames, len(VOCABULARY) + 1), (1 - confidence) / len(VOCABULARY))
    for frame in range(num_frames):
        character = frames.get(frame)
        probabilities[frame, VOCABULARY.index(character) + 1 if character else 0] = confidence
    return probabilities.log()


def tone(samples: int, *spans: tuple[float, float]) -> np.ndarray:
    """A quiet hiss (S,) at 16 kHz with a loud tone in each span of seconds."""
    time = np.arange(samples) / 16_000
    loud = sum((np.where((time >= a) & (time < b), 1.0, 0.0) for a, b in spans), np.zeros(samples))
    hiss = np.random.default_rng(0).normal(0, 1e-3, samples)
    return (hiss + 0.3 * loud * np.sin(2 * np.pi * 300 * time)).astype(np.float32)


def assert_well_formed(words: list[TimedWord], text: str, duration: float) -> None:
    assert " ".join(word.text for word in words) == " ".join(text.split())
    edges = [edge for word in words for edge in (word.start, word.end)]
    assert edges == sorted(edges), "words in order, none reaching into the next"
    assert all(0 <= edge <= duration for edge in edges)
    assert all(0 <= word.confidence <= 1 for word in words)


def test_the_path_is_the_best_of_all_that_write_the_target() -> None:
    torch.manual_seed(0)
    targets = [[1, 2, 2], [1, 1], [3], [], [2, 1, 2], [1, 2, 3, 3]]
    lengths = [6, 3, 5, 4, 3, 6]
    log_probabilities = (3 * torch.randn(len(targets), 6, 4)).log_softmax(dim=-1)
    padded = torch.full((len(targets), 4), -1)
    for row, target in enumerate(targets):
        padded[row, : len(target)] = torch.tensor(target, dtype=torch.long)
    paths, scores = forced_alignment(log_probabilities, torch.tensor(lengths), padded)
    for row, (target, length) in enumerate(zip(targets, lengths, strict=True)):
        candidates = {
            path: sum(log_probabilities[row, t, c].item() for t, c in enumerate(path))
            for path in itertools.product(range(4), repeat=length)
            if collapse(path) == target
        }
        best = max(candidates, key=candidates.__getitem__)
        states = paths[row].tolist()
        assert states[length:] == [-1] * (6 - length)
        assert tuple(target[s // 2] if s % 2 else 0 for s in states[:length]) == best
        assert scores[row].item() == pytest.approx(candidates[best], abs=1e-4)


@pytest.mark.parametrize(
    ("target", "frames", "possible"),
    [([1, 2], 2, True), ([1, 1], 2, False), ([1, 1], 3, True), ([1], 0, False), ([], 0, True)],
)
def test_a_target_longer_than_its_frames_has_no_path(target: list[int], frames: int, possible: bool) -> None:
    _, scores = forced_alignment(
        torch.zeros(1, 4, 3), torch.tensor([frames]), torch.tensor([target], dtype=torch.long)
    )
    assert torch.isfinite(scores).tolist() == [possible]


def test_expected_characters_are_the_mean_over_all_paths() -> None:
    torch.manual_seed(0)
    log_probabilities = torch.randn(2, 5, 4).log_softmax(dim=-1)
    lengths = torch.tensor([5, 3])
    expected = [
        sum(
            len(collapse(path))
            * torch.stack([log_probabilities[row, t, c] for t, c in enumerate(path)]).sum().exp()
            for path in itertools.product(range(4), repeat=length)
        )
        for row, length in enumerate(lengths.tolist())
    ]
    assert torch.allclose(speech_evidence(log_probabilities, lengths), torch.stack(expected), atol=1e-4)


def test_speech_evidence_tells_speech_from_silence() -> None:
    log_probabilities = torch.stack([spiky(dict(enumerate("the cat")), 50), spiky({}, 50, 0.999)])
    speech, silence = speech_evidence(log_probabilities, torch.tensor([50, 50])).tolist()
    assert speech == pytest.approx(7, abs=1.5)
    assert silence < 0.1


def test_words_end_behind_their_spikes_and_never_in_the_next_word() -> None:
    frames = {10: "a", 14: "b", 20: " ", 22: "c", 80: "d"}
    words = align_words(
        spiky(frames, 100)[None], torch.tensor([100]), ["Ab, Cd!"], VOCABULARY, FRAME_SECONDS
    )[0]
    assert_well_formed(words, "Ab, Cd!", 2.0)
    assert (words[0].start, words[0].end) == (pytest.approx(0.2), pytest.approx(0.44))  # the next one's spike
    assert (words[1].start, words[1].end) == (
        pytest.approx(0.44),
        pytest.approx(1.82),
    )  # 0.2 s behind its own


@pytest.mark.parametrize(("loudness", "offset"), [(1.0, 0.0), (0.01, 0.0), (0.01, 0.05)])
def test_a_waveform_puts_the_edges_where_the_sound_is(loudness: float, offset: float) -> None:
    spans = ((0.31, 0.83), (1.14, 1.47))
    spikes = spiky({20: "o", 24: "h", 34: " ", 62: "n", 66: "o"}, 100)[None]
    waveform = loudness * tone(32_000, *spans) + offset
    arguments = (spikes, torch.tensor([100]), ["oh no"], VOCABULARY, FRAME_SECONDS)
    words = align_words(*arguments, waveforms=[waveform])[0]
    assert_well_formed(words, "oh no", 2.0)
    for word, (start, end) in zip(words, spans, strict=True):
        assert word.start == pytest.approx(start, abs=0.021)
        assert word.end == pytest.approx(end, abs=0.021)
    plain = align_words(*arguments)[0]
    assert abs(plain[0].end - spans[0][1]) > 0.1, "the spikes alone do not know"


def test_a_waveform_without_a_pause_leaves_the_boundary_at_the_spike() -> None:
    spikes = spiky({20: "o", 24: "h", 34: " ", 40: "n", 44: "o"}, 60)[None]
    waveforms = [tone(19_200, (0.3, 1.1))]
    words = align_words(spikes, torch.tensor([60]), ["oh no"], VOCABULARY, FRAME_SECONDS, waveforms)[0]
    assert words[0].end == words[1].start == pytest.approx(0.8)
    assert words[1].end == pytest.approx(1.1, abs=0.021)


def test_noise_does_not_cut_the_quiet_end_off_a_word() -> None:
    """Noise 30 dB below a word, whose last sound rises only 8 dB above it: less range, a lower bar for sound."""
    noise = np.random.default_rng(1).normal(0, 0.0067, 19_200)
    waveform = tone(19_200, (0.3, 0.7)) + 0.073 * tone(19_200, (0.7, 0.85)) + noise
    spikes = spiky({20: "o", 30: "h"}, 60)[None]
    (word,) = align_words(spikes, torch.tensor([60]), ["oh"], VOCABULARY, FRAME_SECONDS, [waveform])[0]
    assert word.start == pytest.approx(0.3, abs=0.021)
    assert word.end == pytest.approx(0.85, abs=0.041)


@pytest.mark.parametrize("samples", [0, 100, 16_000])
def test_a_waveform_may_be_silent_or_shorter_than_its_frames(samples: int) -> None:
    spikes = spiky({20: "o", 24: "h", 90: "n"}, 100)[None]
    waveforms = [np.zeros(samples, dtype=np.float32)]
    words = align_words(spikes, torch.tensor([100]), ["oh n"], VOCABULARY, FRAME_SECONDS, waveforms)[0]
    assert_well_formed(words, "oh n", 2.0)


def test_words_that_the_head_cannot_write_lie_between_their_neighbours() -> None:
    spikes = spiky({10: "a", 11: " ", 60: "b"}, 100)[None]
    text = "– a — 世界 你好 b !"
    words = align_words(spikes, torch.tensor([100]), [text], VOCABULARY, FRAME_SECONDS)[0]
    assert_well_formed(words, text, 2.0)
    dash, a, middle, world, hello, b, mark = words
    assert dash.start == dash.end == a.start == pytest.approx(0.2)
    assert middle.start == middle.end == a.end
    assert world.end - world.start == pytest.approx(hello.end - hello.start)
    assert (world.start, hello.end) == (a.end, pytest.approx(b.start))
    assert mark.start == mark.end == b.end
    assert world.confidence == 0 < a.confidence


def test_a_text_that_the_head_cannot_write_at_all_fills_the_clip() -> None:
    words = align_words(spiky({}, 50)[None], torch.tensor([50]), ["世界 你好"], VOCABULARY, FRAME_SECONDS)[0]
    assert [(word.start, word.end) for word in words] == [(0.0, 0.5), (0.5, 1.0)]


@pytest.mark.parametrize("length", [0, 1, 5, 13])
def test_texts_longer_than_their_frames_are_spread_without_confidence(length: int) -> None:
    text = "much too long — it is"
    scores = [[0.0] * 6]
    for extra in ({}, {"waveforms": [tone(4_000)]}, {"word_log_probabilities": scores}):
        words = align_words(
            spiky({}, 13)[None], torch.tensor([length]), [text], VOCABULARY, FRAME_SECONDS, **extra
        )[0]
        assert_well_formed(words, text, length * FRAME_SECONDS)
        assert all(word.confidence == 0 for word in words)
        assert length == 0 or all(word.end > word.start for word in words)


def test_any_text_is_aligned_and_empty_ones_give_nothing() -> None:
    generator = np.random.default_rng(0)
    alphabet = [*"abc  '19é—世,.\u00a0ﬁ½"]
    texts = ["", "  \n ", *("".join(generator.choice(alphabet, size=size)) for size in range(1, 40))]
    torch.manual_seed(0)
    lengths = torch.randint(0, 60, (len(texts),))
    log_probabilities = torch.randn(len(texts), 60, len(VOCABULARY) + 1).log_softmax(dim=-1)
    waveforms = [tone(int(length) * 320, (0.2, 0.5), (0.7, 0.8)) for length in lengths]
    for given in (None, waveforms):
        results = align_words(log_probabilities, lengths, texts, VOCABULARY, FRAME_SECONDS, given)
        for words, text, length in zip(results, texts, lengths.tolist(), strict=True):
            assert_well_formed(words, text, length * FRAME_SECONDS)
    assert results[:2] == [[], []]
    assert align_words(log_probabilities[:0], lengths[:0], [], VOCABULARY, FRAME_SECONDS) == []


def test_words_spell_what_the_loss_was_trained_on() -> None:
    """A path through the words' own characters writes what `encode_ctc_text` makes of the whole text."""
    text = "It's  half-past\n3, café — ok"
    ids = encode_ctc_text(text, VOCABULARY)
    frames = {2 * place: VOCABULARY[character - 1] for place, character in enumerate(ids)}
    spikes = spiky(frames, 2 * len(ids), 0.99)
    assert decode_ctc_text(spikes.argmax(dim=-1).tolist(), VOCABULARY) == "it's half past 3 cafe ok"
    words = align_words(spikes[None], torch.tensor([2 * len(ids)]), [text], VOCABULARY, FRAME_SECONDS)[0]
    assert [word.confidence > 0.9 for word in words] == [True, True, True, True, False, True]
    assert words[2].start == pytest.approx(FRAME_SECONDS * 2 * "it's half past 3".index("3"))


def test_a_vocabulary_without_spaces() -> None:
    vocabulary = "ab"
    log_probabilities = torch.full((1, 20, 3), 0.01)
    log_probabilities[0, :, 0] = 0.9
    log_probabilities[0, 5], log_probabilities[0, 12] = torch.tensor([[0.01, 0.9, 0.01], [0.01, 0.01, 0.9]])
    words = align_words(log_probabilities.log(), torch.tensor([20]), ["a b"], vocabulary, 0.04)[0]
    assert [word.start for word in words] == [pytest.approx(0.2), pytest.approx(0.48)]


def test_a_clip_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    log_probabilities = torch.randn(3, 40, len(VOCABULARY) + 1).log_softmax(dim=-1)
    lengths, texts = torch.tensor([40, 17, 30]), ["one two three", "eight", "a b c d e f"]
    together = align_words(log_probabilities, lengths, texts, VOCABULARY, FRAME_SECONDS)
    for row, length in enumerate(lengths.tolist()):
        part = log_probabilities[row : row + 1, :length]
        alone = align_words(part, lengths[row : row + 1], texts[row : row + 1], VOCABULARY, FRAME_SECONDS)
        assert alone[0] == together[row]


def test_confidence_falls_where_the_head_hears_something_else() -> None:
    spikes = spiky({10: "a", 14: "b", 18: " ", 22: "c", 26: "d"}, 60)[None]
    lengths = torch.tensor([60])
    right = align_words(spikes, lengths, ["ab cd"], VOCABULARY, FRAME_SECONDS)[0]
    assert [word.confidence for word in right] == [pytest.approx(0.97)] * 2
    half = align_words(spikes, lengths, ["ab cx"], VOCABULARY, FRAME_SECONDS)[0]
    assert half[0].confidence == pytest.approx(0.97)
    other = 0.03 / len(VOCABULARY)
    assert half[1].confidence == pytest.approx((0.97 * other) ** 0.5, rel=1e-3)
    scores = [[float(np.log(0.5)), 0.0]]
    both = align_words(spikes, lengths, ["ab cd"], VOCABULARY, FRAME_SECONDS, word_log_probabilities=scores)[
        0
    ]
    assert [word.confidence for word in both] == [pytest.approx(0.735), pytest.approx(0.985)]


def test_confidence_takes_a_character_where_it_is_surest() -> None:
    """How many frames a character is held does not matter, nor how it fades in and out."""
    frames = [spiky({frame: "a"}, 10, sure)[frame] for frame, sure in ((4, 0.6), (5, 0.9), (6, 0.7))]
    held = torch.cat([spiky({}, 4), torch.stack(frames), spiky({}, 3)])[None]
    (word,) = align_words(held, torch.tensor([10]), ["a"], VOCABULARY, FRAME_SECONDS)[0]
    assert word.confidence == pytest.approx(0.9)
    assert word.start == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"texts": ["a", "b"]}, "1 clips of log-probabilities but 2 texts"),
        ({"waveforms": []}, "0 waveforms"),
        ({"word_log_probabilities": [[0.0, 0.0]]}, "1 words but 2 log-probabilities"),
    ],
)
def test_counts_that_do_not_fit_are_refused(extra: dict, message: str) -> None:
    arguments = {"texts": ["a"], "vocabulary": VOCABULARY, "frame_seconds": FRAME_SECONDS, **extra}
    with pytest.raises(ValueError, match=message):
        align_words(spiky({}, 5)[None], torch.tensor([5]), **arguments)
