import random
import time

import jiwer
import kaldialign
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_audio.evaluate import wer
from tiny_audio.evaluate.wer import EditCounts, align, align_many, bootstrap_interval, edit_distances

WORDS = [
    "the",
    "a",
    "cat",
    "cats",
    "sat",
    "on",
    "mat",
    "oh",
    "zero",
    "one",
    "two",
    "don't",
    "naïve",
    "日本",
    "1",
    "11",
    "x",
]


def random_pairs(seed: int, num_pairs: int) -> list[tuple[list[str], list[str]]]:
    """Unrelated texts, texts damaged like a recogniser would, swaps, loops, and empty sides."""
    generator = random.Random(seed)

    def text(longest: int, vocabulary: int) -> list[str]:
        return generator.choices(WORDS[:vocabulary], k=generator.randint(0, longest))

    pairs = []
    for index in range(num_pairs):
        reference = text(generator.choice([3, 12, 40]), generator.choice([1, 2, 3, len(WORDS)]))
        kind = index % 6
        if kind == 0:
            hypothesis = text(30, generator.choice([1, 2, len(WORDS)]))
        elif kind == 1:
            kept = [word for word in reference if generator.random() > 0.15]
            hypothesis = [generator.choice(WORDS) if generator.random() < 0.2 else word for word in kept]
        elif kind == 2:
            hypothesis = [word for word in reference for _ in range(generator.choice([1, 1, 1, 2, 3]))]
        elif kind == 3:
            hypothesis = reference[1:] + reference[:1]
        elif kind == 4:
            hypothesis = reference[::-1]
        else:
            hypothesis = [] if generator.random() < 0.5 else list(reference)
        pairs.append((reference, hypothesis) if generator.random() < 0.9 else ([], hypothesis))
    return pairs


ADVERSARIAL = [
    ("", ""),
    ("", "a"),
    ("a", ""),
    ("a b", "b a"),
    ("a b c", "c a b"),
    ("a a a a", "a a"),
    ("a b a b", "b a b a"),
    ("one two three", "one two three three three three three three"),
    ("x " * 300, "x " * 299 + "y"),
    ("a b " * 150, "b a " * 150),
    ("the cat sat", "the cat sat on the mat"),
    ("on the mat", "the cat sat on the mat"),
    ("a x b y c z", "x y z"),
    ("eight seven two", "872"),
    ("don't stop", "dont stop"),
]


def jiwer_counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[int, int, int]:
    return output.substitutions, output.deletions, output.insertions


def test_every_pair_agrees_with_jiwer_in_kind_and_with_kaldialign_in_total() -> None:
    pairs = [(" ".join(reference), " ".join(hypothesis)) for reference, hypothesis in random_pairs(1, 3000)]
    pairs += [
        (" ".join(reference.split()), " ".join(hypothesis.split())) for reference, hypothesis in ADVERSARIAL
    ]
    alignments = align_many([(reference.split(), hypothesis.split()) for reference, hypothesis in pairs])
    for (reference, hypothesis), alignment in zip(pairs, alignments, strict=True):
        expected = jiwer.process_words(reference, hypothesis)
        counts = alignment.counts
        assert (counts.substitutions, counts.deletions, counts.insertions) == jiwer_counts(expected), (
            reference,
            hypothesis,
        )
        assert counts.rate == pytest.approx(expected.wer), (reference, hypothesis)
        assert counts.errors == kaldialign.edit_distance(reference.split(), hypothesis.split())["total"]

    corpus = jiwer.process_words(
        [reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs]
    )
    total = sum((alignment.counts for alignment in alignments), EditCounts())
    assert (total.substitutions, total.deletions, total.insertions) == jiwer_counts(corpus)
    assert total.rate == pytest.approx(corpus.wer)


def test_characters_agree_with_jiwer() -> None:
    pairs = [(" ".join(reference), " ".join(hypothesis)) for reference, hypothesis in random_pairs(2, 1000)]
    distances = edit_distances(pairs)
    for (reference, hypothesis), distance, alignment in zip(pairs, distances, align_many(pairs), strict=True):
        expected = jiwer_counts(jiwer.process_characters(reference, hypothesis))
        counts = alignment.counts
        assert (counts.substitutions, counts.deletions, counts.insertions) == expected, (
            reference,
            hypothesis,
        )
        assert distance == sum(expected)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_operations_spell_both_sides(reference: list[str], hypothesis: list[str]) -> None:
    operations = align(reference, hypothesis).operations
    row = column = 0
    for operation in operations:
        if operation == "=":
            assert reference[row] == hypothesis[column]
        if operation == "S":
            assert reference[row] != hypothesis[column]
        row += operation in "=SD"
        column += operation in "=SI"
    assert (row, column) == (len(reference), len(hypothesis))


def test_a_pair_is_aligned_alike_alone_and_among_longer_ones() -> None:
    pairs = random_pairs(3, 200)
    assert [align(*pair) for pair in pairs] == align_many(pairs)
    assert [edit_distances([pair])[0] for pair in pairs] == edit_distances(pairs)


def test_no_pairs() -> None:
    assert align_many([]) == [] and edit_distances([]) == []


def test_known_alignment() -> None:
    alignment = align(["two", "seven", "two", "zero"], ["two", "nine", "two", "zero", "zero"])
    assert alignment.operations in ("=S==I", "=S=I=")
    assert alignment.counts == EditCounts(substitutions=1, deletions=0, insertions=1, reference_length=4)
    assert alignment.counts.rate == 0.5


def test_rates_without_a_reference() -> None:
    assert align([], []).counts.rate == 0
    assert align([], ["a", "b"]).counts.rate == 2


def test_ten_thousand_utterances_take_seconds() -> None:
    generator = random.Random(4)
    pairs = []
    for _ in range(10_000):
        reference = generator.choices(WORDS, k=generator.randint(5, 35))
        pairs.append((reference, [word for word in reference if generator.random() > 0.1]))
    start = time.perf_counter()
    align_many(pairs)
    edit_distances([(" ".join(reference), " ".join(hypothesis)) for reference, hypothesis in pairs])
    assert time.perf_counter() - start < 15  # about 1 s; one cell at a time in Python takes minutes


def test_bootstrap_interval_covers_the_truth_and_repeats() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        lengths = generator.integers(1, 20, size=150)
        errors = generator.binomial(lengths, 0.1)
        low, high = bootstrap_interval(errors.tolist(), lengths.tolist(), seed=seed)
        assert low <= errors.sum() / lengths.sum() <= high
        covered += low <= 0.1 <= high
    assert 86 <= covered <= 100
    assert bootstrap_interval(errors.tolist(), lengths.tolist()) == bootstrap_interval(
        errors.tolist(), lengths.tolist()
    )
    assert bootstrap_interval(errors.tolist(), lengths.tolist()) != (low, high)  # of another seed


def test_bootstrap_interval_at_the_edges() -> None:
    assert bootstrap_interval([], []) == (0.0, 0.0)
    assert bootstrap_interval([2], [4]) == (0.5, 0.5)
    assert bootstrap_interval([0, 0], [0, 0]) == (0.0, 0.0)


def test_results_do_not_depend_on_how_work_is_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = random_pairs(5, 120)
    texts = [(" ".join(reference), " ".join(hypothesis)) for reference, hypothesis in pairs]

    def everything() -> tuple[object, ...]:
        return (
            align_many(pairs),
            edit_distances(texts),
            bootstrap_interval([1, 0, 3, 2] * 20, [5, 6, 7, 8] * 20),
        )

    whole = everything()
    monkeypatch.setattr(wer, "_MAX_CELLS", 200)
    assert everything() == whole
