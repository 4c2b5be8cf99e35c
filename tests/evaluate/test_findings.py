import pytest

from tiny_audio.evaluate import findings
from tiny_audio.evaluate.findings import HALLUCINATION, REFERENCE_ERROR, TRUNCATION
from tiny_audio.evaluate.results import EvalResult, UtteranceResult
from tiny_audio.evaluate.scoring import score_texts, summarize

Row = tuple[str, str, str]


def make_result(rows: list[Row], seconds: float | None = 2.0) -> EvalResult:
    """An evaluation of (id, reference, hypothesis) rows; speakers are the first letters of ids."""
    scores = score_texts([row[1] for row in rows], [row[2] for row in rows], "basic")
    utterances = [
        UtteranceResult(name, f"{name}.wav", seconds, name[0], reference, hypothesis, score)
        for (name, reference, hypothesis), score in zip(rows, scores, strict=True)
    ]
    return EvalResult(summarize(scores), utterances, "basic", "model", "data")


def reasons(result: EvalResult, baseline: EvalResult | None = None) -> dict[tuple[str, str], str]:
    return {(item.utterance.id, item.kind): item.reason for item in findings.suspicions(result, baseline)}


def test_costs_count_each_edit_of_a_word() -> None:
    result = make_result([("a", "six six seven", "six five"), ("b", "six", "six six"), ("c", "two", "two")])
    costs = {cost.word: cost for cost in findings.word_costs(result.utterances)}
    assert "two" not in costs and "five" not in costs
    assert sum(cost.errors for cost in costs.values()) == 3
    assert costs["six"].spoken == 3 and costs["six"].inserted == 1
    assert [cost.errors for cost in findings.word_costs(result.utterances)] == [2, 1]


def test_confusions_are_pairs_in_order_of_frequency() -> None:
    result = make_result([("a", "one two", "one five"), ("b", "two", "five"), ("c", "one", "nine")])
    assert findings.confusions(result.utterances) == [("two", "five", 2), ("one", "nine", 1)]


def test_the_most_costly_come_first_and_right_ones_not_at_all() -> None:
    result = make_result(
        [("right", "a", "a"), ("one", "a b", "a"), ("three", "a b c", ""), ("half", "a", "")]
    )
    assert [item.id for item in findings.most_costly(result.utterances)] == ["three", "half", "one"]


def test_groups_hold_every_utterance_once_and_small_ones_have_no_interval() -> None:
    rows = [(f"a{index}", "one two", "one") for index in range(12)] + [("b0", "one", "one")]
    result = make_result(rows)
    speakers = findings.by_speaker(result.utterances)
    assert [(group.name, group.num_utterances) for group in speakers] == [("a", 12), ("b", 1)]
    assert speakers[0].counts.rate == 0.5 and speakers[0].interval == (0.5, 0.5)
    assert speakers[1].interval is None
    assert [group.name for group in findings.by_length(result.utterances)] == ["2 to 3"]
    assert [group.name for group in findings.by_rate(result.utterances)] == ["under 1", "1 to 1.5"]
    assert findings.by_length(make_result(rows, seconds=None).utterances) == []
    assert [group.name for group in findings.by_length(make_result(rows, seconds=99).utterances)] == [
        "30 and more"
    ]


def test_sets_are_what_stands_before_a_slash() -> None:
    result = make_result([("clean/1", "a", "a"), ("noisy/1", "a", "b"), ("noisy/2", "a", "a")])
    assert [(group.name, group.num_utterances) for group in findings.by_set(result.utterances)] == [
        ("noisy", 2),
        ("clean", 1),
    ]
    assert findings.by_set(make_result([("x", "a", "a"), ("y", "a", "a")]).utterances) == []


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("", ("", 0)),
        ("a b c", ("a", 1)),
        ("a a a b", ("a", 3)),
        ("x so it is so it is so it is y", ("so it is", 3)),
        ("a b a b a", ("a b", 2)),
    ],
)
def test_longest_loop(text: str, loop: tuple[str, int]) -> None:
    assert findings.longest_loop(text.split()) == loop


def test_hallucinations() -> None:
    found = reasons(
        make_result(
            [
                ("silence", "", "thank you for watching"),
                ("loop", "thank you", "thank you thank you thank you thank you"),
                ("added", "a b", "a b and then we all went home again"),
                ("said so", "six six six six five", "six six six six nine"),
                ("quiet", "", ""),
            ]
        )
    )
    assert found["silence", HALLUCINATION] == "The reference is empty, yet 4 words were written."
    assert found["loop", HALLUCINATION] == "“thank you” is written 4 times in a row."
    assert found["added", HALLUCINATION] == "7 words were added to a reference of 2."
    assert len(found) == 3


def test_truncations() -> None:
    found = reasons(
        make_result(
            [
                ("cut", "a b c d e", "a b"),
                ("all", "a b c", ""),
                ("short", "a b c", "a"),
                ("mid", "a b c d e", "a e"),
            ]
        )
    )
    assert found["cut", TRUNCATION] == "The last 3 of 5 words are missing."
    assert found["all", TRUNCATION] == "Nothing was written, though the reference has 3 words."
    assert {name for name, _ in found} == {"cut", "all"}


def test_references_that_cannot_be_right() -> None:
    good = [(f"g{index}", "one two three four five", "one two three four five") for index in range(9)]
    other_clip = ("wrong", "one two three four five", "my dog has no nose")
    assert "another clip" in reasons(make_result([*good, other_clip]))["wrong", REFERENCE_ERROR]
    assert not reasons(make_result([other_clip])), "in a set where nothing agrees it says nothing"
    too_fast = make_result([("fast", " ".join("abcdefgh"), "hello")], seconds=1.0)
    assert "8.0 words a second" in reasons(too_fast)["fast", REFERENCE_ERROR]


def test_two_runs_that_agree_against_the_reference() -> None:
    rows = [("a", "colour of it", "color of it"), ("b", "one two", "one"), ("c", "six", "five")]
    baseline = make_result([rows[0], ("b", "one two", "two"), ("c", "six", "six")])
    assert list(reasons(make_result(rows), baseline)) == [("a", REFERENCE_ERROR)]
    assert not reasons(make_result(rows), make_result(rows)), "runs alike agree on everything"


def test_a_failed_utterance_is_no_suspect() -> None:
    result = make_result([("a", "a b c d", "")])
    result.utterances[0] = UtteranceResult(
        **{**vars(result.utterances[0]), "error": "RuntimeError: broken"},
    )
    assert not reasons(result)


def test_changes_are_paired_by_id() -> None:
    before = make_result([("a", "one two", ""), ("b", "one two", "one two"), ("x", "one", "")])
    after = make_result([("b", "one two", "one"), ("a", "one two", "one two"), ("y", "one", "")])
    pairs = findings.changes(before, after)
    assert [(pair.after.id, pair.errors_saved) for pair in pairs] == [("b", -1), ("a", 2)]
