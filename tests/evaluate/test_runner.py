from pathlib import Path

import pytest

from tests.evaluate.listener import Listener, write_manifest
from tiny_audio.data.sources import open_source
from tiny_audio.errors import UserError
from tiny_audio.evaluate import runner
from tiny_audio.evaluate.results import EvalResult
from tiny_audio.evaluate.runner import evaluate, sample_indices
from tiny_audio.evaluate.scoring import evaluate_batches, score_texts, summarize

ROWS = [
    ("a1", 4000, "the cat sat on the mat"),
    ("a2", 8000, "good morning"),
    ("b1", 6000, ""),
    ("b2", 12000, "yes"),
    ("b3", 5000, "no"),
]
ANSWERS: dict[int, str | Exception] = {
    4000: "The cat sat, on a mat",
    8000: "",
    6000: "hello",
    12000: "Yes.",
    5000: "no",
}


def run(
    folder: Path, answers: dict[int, str | Exception], rows: list = ROWS, **options: object
) -> EvalResult:
    source = open_source(write_manifest(folder, rows))
    return evaluate(Listener(answers), source, model_name="listener", **options)  # type: ignore[arg-type]


def test_counts_of_a_whole_set(tmp_path: Path) -> None:
    result = run(tmp_path, ANSWERS)
    metrics = result.metrics
    assert result.normalizer == "english"
    # the/a substituted; both words of "good morning" deleted; "hello" inserted into silence
    assert (metrics.substitutions, metrics.deletions, metrics.insertions) == (1, 2, 1)
    assert metrics.reference_words == 10 and metrics.num_samples == 5
    assert metrics.wer == pytest.approx(0.4)
    characters = len("the cat sat on the mat" + "good morning" + "yes" + "no")
    assert metrics.cer == pytest.approx((3 + 12 + 5) / characters)
    low, high = metrics.wer_ci95
    assert 0 <= low <= metrics.wer <= high
    assert metrics.rtfx > 0
    assert [utterance.id for utterance in result.utterances] == ["a1", "a2", "b1", "b2", "b3"]
    assert result.utterances[0].speaker == "a" and result.utterances[0].seconds == 0.25
    assert result.failed == []


def test_batches_hold_clips_of_like_length_and_the_first_call_is_a_warm_up(tmp_path: Path) -> None:
    listener = Listener(ANSWERS)
    evaluate(listener, open_source(write_manifest(tmp_path, ROWS)), model_name="listener", batch_size=2)
    assert listener.calls == [[8000], [12000, 8000], [6000, 5000], [4000]]


def test_windows_bound_the_audio_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "WINDOW_SECONDS", 0.9)  # 0.25 + 0.5 s | 0.375 s | 0.75 s | 0.3125 s
    listener = Listener(ANSWERS)
    result = evaluate(listener, open_source(write_manifest(tmp_path, ROWS)), model_name="listener")
    assert listener.calls[1:] == [[8000, 4000], [6000], [12000], [5000]]
    assert result.metrics.wer == pytest.approx(0.4)


def test_one_clip_that_fails_costs_its_own_words_only(tmp_path: Path) -> None:
    result = run(tmp_path, {**ANSWERS, 4000: RuntimeError("the\nbeam is empty")})
    assert [(utterance.id, utterance.error) for utterance in result.failed] == [
        ("a1", "RuntimeError: the beam is empty")
    ]
    assert result.metrics.deletions == 6 + 2 and result.metrics.num_samples == 5
    assert result.utterances[3].hypothesis == "Yes."


def test_a_clip_beyond_the_limit_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    rows = [*ROWS, ("c1", 40_000, "far too long")]
    source = open_source(write_manifest(tmp_path, rows))
    result = evaluate(Listener(ANSWERS, max_seconds=2.0), source, model_name="listener")
    (failure,) = result.failed
    assert failure.id == "c1" and failure.error is not None and "limit of 2 s" in failure.error
    assert failure.score.alignment.counts.deletions == 3
    assert failure.seconds == 2.5


def test_audio_that_vanished_is_a_failure(tmp_path: Path) -> None:
    source = open_source(write_manifest(tmp_path, ROWS))
    (tmp_path / "b3.wav").unlink()
    result = evaluate(Listener(ANSWERS), source, model_name="listener")
    assert [utterance.id for utterance in result.failed] == ["b3"]
    assert result.metrics.reference_words == 10


def test_a_recogniser_that_always_fails_stops_early(tmp_path: Path) -> None:
    rows = [(f"x{index}", 1000 + index, "word") for index in range(60)]
    listener = Listener({num_samples: RuntimeError("no such kernel") for _, num_samples, _ in rows})
    with pytest.raises(UserError, match=r"first 20 clips all failed.*no such kernel"):
        evaluate(listener, open_source(write_manifest(tmp_path, rows)), model_name="listener", batch_size=4)
    assert len(listener.calls) < 30


def test_a_set_of_which_nothing_could_be_transcribed_has_no_score(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"None of the 5 utterances.*out of luck"):
        run(tmp_path, {num_samples: RuntimeError("out of luck") for num_samples in ANSWERS})


def test_a_recogniser_that_loses_clips_is_refused(tmp_path: Path) -> None:
    class Forgetful(Listener):
        def transcribe(self, waveforms: list) -> list[str]:
            return super().transcribe(waveforms)[:1]

    with pytest.raises(UserError, match="returned 1 transcripts for 5 clips"):
        evaluate(Forgetful(ANSWERS), open_source(write_manifest(tmp_path, ROWS)), model_name="forgetful")


def test_many_unusable_rows_stop_and_few_are_listed(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, ROWS)
    good = manifest.read_text(encoding="utf-8")
    manifest.write_text(good + '{"audio": "a1.wav"}\n', encoding="utf-8")
    result = evaluate(Listener(ANSWERS), open_source(manifest), model_name="listener")
    assert len(result.left_out) == 1 and result.metrics.num_samples == 5
    manifest.write_text(good + '{"audio": "a1.wav"}\n' * 4, encoding="utf-8")
    with pytest.raises(UserError, match="4 of 9 rows"):
        evaluate(Listener(ANSWERS), open_source(manifest), model_name="listener")


def test_ids_that_stand_twice_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = write_manifest(tmp_path, ROWS)
    lines = manifest.read_text(encoding="utf-8").splitlines()
    manifest.write_text("\n".join([*lines, lines[0]]) + "\n", encoding="utf-8")
    result = evaluate(Listener(ANSWERS), open_source(manifest), model_name="listener")
    assert result.metrics.num_samples == 6 and "1 of its ids stand there more than once" in caplog.text


def test_speech_that_cannot_be_read_counts_as_lost_words(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, ROWS)
    whole = evaluate(Listener(ANSWERS), open_source(manifest), model_name="listener")
    (tmp_path / "a1.wav").unlink()
    (tmp_path / "a2.wav").write_bytes(b"RIFF")
    lost = evaluate(Listener(ANSWERS), open_source(manifest), model_name="listener")
    assert lost.metrics.num_samples == whole.metrics.num_samples == lost.details["num_rows"]
    assert lost.metrics.reference_words == whole.metrics.reference_words and not lost.left_out
    assert {row.id: row.hypothesis for row in lost.failed} == {"a1": "", "a2": ""}
    words = {row.id: row.score.alignment.counts.deletions for row in lost.failed}
    assert words == {row[0]: len(row[2].split()) for row in ROWS if row[0] in ("a1", "a2")}
    assert "no such file" in str(lost.failed[-1].error)  # what the scan found stands behind the others


def test_samples_are_the_same_every_time_and_in_order(tmp_path: Path) -> None:
    chosen = sample_indices(1000, 10)
    assert chosen == sample_indices(1000, 10) == sorted(set(chosen)) and len(chosen) == 10
    assert chosen != list(range(10))
    assert sample_indices(3, 10) == sample_indices(3, None) == [0, 1, 2]
    assert run(tmp_path, ANSWERS, max_samples=2).metrics.num_samples == 2


def test_the_normaliser_is_chosen_by_the_whole_set(tmp_path: Path) -> None:
    rows = [("a1", 1000, "eight seven two"), ("a2", 1001, "nine")]
    result = run(tmp_path, {1000: "eight seven", 1001: "nine"}, rows)
    assert result.normalizer == "digits"
    assert (result.metrics.deletions, result.metrics.reference_words) == (1, 4)
    in_english = run(tmp_path, {1000: "eight seven", 1001: "nine"}, rows, normalizer="english")
    assert (in_english.metrics.substitutions, in_english.metrics.reference_words) == (1, 2)


def test_an_unknown_normaliser_fails_before_anything_is_transcribed(tmp_path: Path) -> None:
    listener = Listener(ANSWERS)
    with pytest.raises(UserError, match="no normaliser"):
        evaluate(
            listener, open_source(write_manifest(tmp_path, ROWS)), model_name="listener", normalizer="basics"
        )
    assert listener.calls == []


def test_evaluate_batches_takes_batches_of_any_type() -> None:
    batches = [({"texts": ["ONE two", "three"]}, ["one two", "four"]), ({"texts": [""]}, ["five"])]
    metrics, pairs = evaluate_batches(lambda batch: batch["texts"], batches, "basic")
    assert (metrics.substitutions, metrics.deletions, metrics.insertions, metrics.reference_words) == (
        1,
        1,
        0,
        4,
    )
    assert metrics.num_samples == 3 and metrics.wer == 0.5 and metrics.rtfx == 0
    assert pairs == [("one two", "ONE two"), ("four", "three"), ("five", "")]


def test_evaluate_batches_refuses_a_missing_transcript() -> None:
    with pytest.raises(ValueError, match="zip"):
        evaluate_batches(lambda batch: ["one"], [("", ["one", "two"])], "basic")


def test_the_corpus_rate_is_not_the_mean_of_the_utterances() -> None:
    metrics = summarize(score_texts(["a", "b c d e"], ["x", "b c d e"], "none"))
    assert metrics.wer == pytest.approx(1 / 5)


def test_an_empty_set_scores_zero() -> None:
    metrics = summarize([])
    assert (metrics.wer, metrics.cer, metrics.wer_ci95, metrics.num_samples) == (0.0, 0.0, (0.0, 0.0), 0)
