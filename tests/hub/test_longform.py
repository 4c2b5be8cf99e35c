"""Recordings of any length: words merged by time, failures retried and reported, order, memory, streams."""

from __future__ import annotations

import functools
import gc
import io
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.hub.recordings import (
    ToneRecogniser,
    hear_tones,
    in_blocks,
    known_clips,
    random_words,
    tone_words,
    trained_model,
)
from tests.tiny_models import SAMPLING_RATE, noise, randomize, tiny_model
from tiny_audio.hub.asr_alignment import TimedWord
from tiny_audio.hub.asr_audio import AudioError, read_blocks
from tiny_audio.hub.asr_longform import Recogniser, TextStream, transcribe_waveforms
from tiny_audio.hub.asr_merging import Piece, Problem, Recognition, merge
from tiny_audio.hub.asr_windows import Window

WINDOW_SECONDS = 6.0
Failure = Callable[[Sequence[Window]], Exception | None]


@functools.cache
def parts() -> tuple[Any, Any]:
    """A random model with an alignment head that writes different things for different audio."""
    model, processor = tiny_model()
    randomize(model.model.language_model, "weight")
    return model, processor


def listener(**options: Any) -> ToneRecogniser:
    return ToneRecogniser(*parts(), **{"window_seconds": WINDOW_SECONDS, **options})


def result(recogniser: Recogniser, *recordings: np.ndarray) -> Recognition:
    (found,) = recogniser.recognise([in_blocks(recording) for recording in recordings])
    assert isinstance(found, Recognition), found
    return found


# Merging by time ---------------------------------------------------------------------------------------------


def piece(start: float, end: float, core: tuple[float, float], *words: tuple[str, float, float]) -> Piece:
    """A window from `start` to `end` seconds with these words in it."""
    a, b, c, d = (round(second * SAMPLING_RATE) for second in (start, end, *core))
    window = Window(np.zeros(b - a, np.float32), a, c, d, start > 0, True)
    timed = [TimedWord(*word, 0.9) for word in words]
    return Piece(window, " ".join(word.text for word in timed), timed)


def test_five_said_twice_across_the_border_is_kept_twice() -> None:
    said = [("four", 7.0, 7.4), ("five", 7.5, 7.95), ("five", 8.05, 8.5), ("six", 8.6, 9.0)]
    first = piece(0, 10, (0, 8), ("one", 1.0, 1.5), *said)
    second = piece(6, 16, (8, 16), *said, ("nine", 15.0, 15.5))
    assert merge([first, second]).text == "one four five five six nine"


@pytest.mark.parametrize("shift", [-0.12, -0.05, 0.0, 0.05, 0.12])
def test_a_word_across_the_border_is_kept_once_though_its_times_differ(shift: float) -> None:
    """Its middle may lie before the border by the one window's clock and behind it by the other's."""
    first = piece(0, 10, (0, 8), ("five", 7.0, 7.4), ("five", 7.8, 8.2), ("five", 8.5, 8.9))
    second = piece(
        6,
        16,
        (8, 16),
        ("five", 7.0, 7.4),
        ("five", 7.8 + shift, 8.2 + shift),
        ("five", 8.5, 8.9),
        ("two", 12, 13),
    )
    assert merge([first, second]).text == "five five five two"


def test_words_that_fill_the_overlap_leave_none_twice() -> None:
    """No time is free of words: the border is the middle, and every word has one side of it."""
    first = piece(0, 10, (0, 8), ("a", 5.0, 7.9), ("b", 7.9, 8.3), ("c", 8.3, 10.0))
    second = piece(6, 16, (8, 16), ("a", 6.0, 7.9), ("b", 7.9, 8.3), ("c", 8.3, 11.0), ("d", 11.0, 12.0))
    assert merge([first, second]).text == "a b c d"


def test_where_a_window_has_failed_its_neighbours_keep_all_they_heard() -> None:
    first = piece(0, 10, (0, 8), ("one", 1, 2), ("two", 9, 9.5))
    failed = replace(piece(6, 16, (8, 14)), words=None, failure=RuntimeError("out of\nmemory"))
    third = piece(12, 20, (14, 20), ("three", 12.5, 13), ("four", 18, 19))
    merged = merge([first, failed, third])
    assert merged.text == "one two three four"
    assert merged.problems == [Problem(8.0, 14.0, "could not be recognised (out of memory)")]
    assert str(merged.problems[0]) == "8.0-14.0 s: could not be recognised (out of memory)"
    assert merged.seconds == 20.0


def test_segments_tell_when_their_words_were_said() -> None:
    merged = merge([piece(0, 10, (0, 8), ("one", 1, 2), ("two", 7, 7.5)), piece(6, 12, (8, 12))])
    assert [(s.text, s.start, s.end) for s in merged.segments] == [("one two", 1, 7.5)]
    assert [word.text for word in merged.words] == ["one", "two"]
    assert merge([]).text == "" and merge([]).seconds == 0.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("overlap", [(5.0, 5.0), (0.6, 0.9), (1.0, 0.5)])
def test_a_recording_without_a_pause_keeps_every_word_once(seed: int, overlap: tuple[float, float]) -> None:
    words = random_words(200, seed)
    found = result(listener(overlap_seconds=overlap), tone_words(words, gap=0.04 + 0.02 * seed, seed=seed))
    assert found.text == " ".join(words)
    assert found.problems == []


@pytest.mark.parametrize("pause", [0.3, 0.6, 2.0])
def test_a_recording_with_pauses_keeps_every_word_once(pause: float) -> None:
    words = random_words(120, 7)
    recording = tone_words(words, gap=pause)
    recogniser = listener()
    found = result(recogniser, recording)
    assert found.text == " ".join(words)
    assert not any(window.forced_end for batch in recogniser.batches for window in batch)
    truth = hear_tones(recording)
    assert [w.start for w in found.words] == pytest.approx([w.start for w in truth], abs=0.02)


# What fails --------------------------------------------------------------------------------------------------


def longer_than(seconds: float) -> Failure:
    def fails(windows: Sequence[Window]) -> Exception | None:
        longest = max(len(window.waveform) for window in windows) / SAMPLING_RATE
        return RuntimeError(f"{longest:.1f} s is too long") if longest > seconds else None

    return fails


def over(second: float) -> Failure:
    """No window that holds this point of the recording can be recognised."""

    def fails(windows: Sequence[Window]) -> Exception | None:
        holds = [w.start <= second * SAMPLING_RATE < w.start + len(w.waveform) for w in windows]
        return RuntimeError("broken\nhere") if any(holds) else None

    return fails


@pytest.mark.parametrize("gap", [0.07, 0.4], ids=["no pauses", "pauses"])
@pytest.mark.parametrize("longest", [4.0, 5.0, 11.0])
def test_windows_that_are_too_long_are_tried_narrower(longest: float, gap: float) -> None:
    """Also where nothing has succeeded before: a machine that can hold only short windows."""
    words = random_words(120, 3)
    found = result(listener(window_seconds=20.0, fails=longer_than(longest)), tone_words(words, gap=gap))
    assert found.problems == []
    if gap > 0.25:  # halves that meet in a word may well spoil it
        assert found.text == " ".join(words)
    assert abs(len(found.words) - len(words)) <= 20


def test_halves_of_overlapping_windows_keep_no_word_twice() -> None:
    words = [f"{word}" for word in ("one", "two", "three", "four", "five", "six", "seven") * 12]
    recording = tone_words(words)
    for longest in (2.6, 3.5, 5.0, 8.0):
        recogniser = listener(window_seconds=12.0, fails=longer_than(longest))
        # the first window is recognised whole, so that the model is known to work at all
        recogniser._succeeded = True
        found = result(recogniser, recording)
        times = [(word.start + word.end) / 2 for word in found.words]
        assert times == sorted(times), longest
        assert min(np.diff(times)) > 0.1, f"a word is there twice with windows of {longest} s"


def test_what_cannot_be_recognised_is_reported_and_the_rest_is_kept() -> None:
    words = random_words(150, 4)
    recording = tone_words(words, gap=0.3)
    truth = hear_tones(recording)
    found = result(listener(fails=over(30.0)), recording)
    (problem,) = found.problems
    assert problem.start <= 30.0 <= problem.end and problem.end - problem.start <= 4.1
    assert problem.reason == "could not be recognised (broken here)"
    outside = [w.text for w in truth if not problem.start <= (w.start + w.end) / 2 <= problem.end]
    assert found.text == " ".join(outside)
    assert len(outside) > 130


def test_the_longest_window_may_fail_first_and_the_others_are_kept() -> None:
    """Longest come first, and one of 30 s fails in eight parts before any other has been tried."""
    words = random_words(150, 5)
    recording = np.concatenate(
        [tone_words(words), np.zeros(2 * SAMPLING_RATE, np.float32), tone_words(words)]
    )
    recogniser = listener(window_seconds=30.0, batch_size=1)
    windows = list(recogniser.windows(in_blocks(recording)))
    longest = max(windows, key=lambda window: len(window.waveform))
    middle = (longest.start + len(longest.waveform) / 2) / SAMPLING_RATE
    broken = range(longest.start, longest.end)

    def fails(tried: Sequence[Window]) -> Exception | None:
        inside = [window.start in broken and window.end - 1 in broken for window in tried]
        return RuntimeError("broken here") if any(inside) else None

    found = result(listener(window_seconds=30.0, batch_size=1, fails=fails), recording)
    assert found.problems and found.problems[0].start <= middle
    assert len(found.words) > len(words), "of the other windows"


def test_a_batch_that_does_not_fit_is_halved_and_memory_is_let_go_first() -> None:
    """What the failed pass held is free before the next one begins: on a GPU it would fail again otherwise."""
    held: list[weakref.ref] = []
    alive_at_retry: list[bool] = []

    class OnceTooMuch(ToneRecogniser):
        def _attempt(self, windows: Sequence[Window]) -> list[Piece]:
            if held:
                alive_at_retry.append(held[0]() is not None)
            else:
                activations = torch.zeros(1000)
                held.append(weakref.ref(activations))
                self.batches.append(list(windows))
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._attempt(windows)

    texts = [random_words(6, seed) for seed in range(4)]
    recogniser = OnceTooMuch(*parts(), batch_size=4)
    found = list(recogniser.recognise([tone_words(words)] for words in texts))
    assert [r.text for r in found if isinstance(r, Recognition)] == [" ".join(words) for words in texts]
    assert [len(batch) for batch in recogniser.batches] == [4, 2, 2]
    assert alive_at_retry == [False, False]


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
@pytest.mark.parametrize("seconds", [1.0, 50.0])
@pytest.mark.parametrize("count", [1, 9])
def test_a_model_that_always_fails_raises_its_error(
    seconds: float, count: int, kind: type[Exception]
) -> None:
    recogniser = listener(fails=lambda _: kind("no kernel for this device"))
    recordings = [in_blocks(tone_words(random_words(int(seconds * 2.5), n))) for n in range(count)]
    raised: list[str] = []
    try:
        for found in recogniser.recognise(recordings):
            assert isinstance(found, Exception), "an empty text in place of an error"
            raised.append(str(found))
    except kind as error:
        raised.append(str(error))
    assert raised and set(raised) == {"no kernel for this device"}
    assert len(recogniser.batches) < 60, "it is not tried on every window of every recording"


@pytest.mark.parametrize("seconds", [0, 20])
def test_silence_before_speech_that_fails_does_not_make_it_an_empty_text(seconds: int) -> None:
    model, processor = parts()
    recording = np.concatenate([np.zeros(seconds * SAMPLING_RATE, np.float32), known_clips()[0][1]])
    with pytest.raises((ValueError, TypeError), match="num_baems"):
        transcribe_waveforms(model, processor, [recording], num_baems=3)


def test_wrong_options_of_generate_raise_at_once() -> None:
    model, processor = parts()
    with pytest.raises((ValueError, TypeError), match="num_baems"):
        transcribe_waveforms(model, processor, [noise(1.0)], num_baems=3)


def test_a_recording_that_cannot_be_read_costs_the_others_nothing() -> None:
    def broken(message: str, after: np.ndarray | None = None) -> Iterator[np.ndarray]:
        if after is not None:
            yield after
        raise AudioError(message)

    texts = [random_words(5, seed) for seed in range(3)]
    recordings = [
        broken("first"),
        [tone_words(texts[0])],
        [tone_words(texts[1])],
        broken("middle", tone_words(random_words(60))),
        [tone_words(texts[2])],
        broken("last"),
    ]
    found = list(listener(batch_size=2).recognise(recordings))
    shown = [r.text if isinstance(r, Recognition) else str(r) for r in found]
    first, second, third = (" ".join(words) for words in texts)
    assert shown == ["first", first, second, "middle", third, "last"]


# Many recordings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_recordings_come_back_in_order_whatever_their_lengths(batch_size: int) -> None:
    lengths = [3, 60, 1, 1, 25, 2, 90, 4, 4, 30]
    texts = [random_words(count, seed) for seed, count in enumerate(lengths)]
    recogniser = listener(batch_size=batch_size)
    found = list(recogniser.recognise(in_blocks(tone_words(words, seed=3)) for words in texts))
    assert [r.text for r in found if isinstance(r, Recognition)] == [" ".join(words) for words in texts]
    assert max(len(batch) for batch in recogniser.batches) <= batch_size
    if batch_size > 1:  # windows of several recordings share a batch
        assert len(recogniser.batches) < sum(len(batch) for batch in recogniser.batches) / 2


def test_results_come_before_all_recordings_are_read() -> None:
    num_read = 0

    def recordings() -> Iterator[Any]:
        nonlocal num_read
        for number in range(40):
            num_read += 1
            yield [tone_words(random_words(4, number))]

    results = listener(batch_size=2).recognise(recordings())
    assert isinstance(next(results), Recognition)
    assert num_read < 20


def test_progress_adds_up_to_the_seconds_of_audio() -> None:
    done: list[float] = []
    recordings = [tone_words(random_words(count)) for count in (80, 5)]
    found = list(listener().recognise([[r] for r in recordings], done.append))
    seconds = [len(r) / SAMPLING_RATE for r in recordings]
    assert sum(done) == pytest.approx(sum(seconds), abs=0.01)
    assert [r.seconds for r in found if isinstance(r, Recognition)] == pytest.approx(seconds)


def test_an_empty_recording_has_an_empty_text() -> None:
    found = result(listener(), np.zeros(0, np.float32))
    assert (found.text, found.seconds, found.segments, found.problems) == ("", 0.0, [], [])


def test_the_audio_of_what_was_recognised_is_let_go() -> None:
    """Two hours of audio are 460 MB: only windows that wait for their turn may be held."""
    alive: list[weakref.ref] = []
    most = 0

    class Watching(ToneRecogniser):
        def windows(self, blocks: Any) -> Iterator[Window]:
            nonlocal most
            for window in super().windows(blocks):
                alive.append(weakref.ref(window.waveform))
                most = max(most, sum(reference() is not None for reference in alive))
                yield window

        def _attempt(self, windows: Sequence[Window]) -> list[Piece]:
            pieces = super()._attempt(windows)
            self.batches.clear()
            return pieces

    words = random_words(100, 5)
    recording = tone_words(words)
    recogniser = Watching(*parts(), window_seconds=WINDOW_SECONDS, batch_size=2)
    found = result(recogniser, np.concatenate([recording] * 12))
    gc.collect()
    assert len(alive) > 60
    assert most <= 12, f"{most} of {len(alive)} windows are held"
    assert len(found.words) == 1200


# With a model ------------------------------------------------------------------------------------------------


def with_pauses(waveforms: Sequence[np.ndarray], seconds: float) -> np.ndarray:
    pause = np.zeros(round(seconds * SAMPLING_RATE), np.float32)
    return np.concatenate([part for waveform in waveforms for part in (waveform, pause)])


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_neither_batch_size_nor_order_changes_a_text(batch_size: int) -> None:
    model, processor = trained_model()
    waveforms, texts = known_clips()
    recordings = waveforms * 3
    order = np.random.default_rng(batch_size).permutation(len(recordings))
    found = list(
        Recogniser(model, processor, batch_size=batch_size, word_times=True).recognise(
            [recordings[i]] for i in order
        )
    )
    assert [r.text for r in found if isinstance(r, Recognition)] == [(texts * 3)[i] for i in order]


def test_times_and_confidence_do_not_depend_on_batch_mates() -> None:
    model, processor = trained_model()
    waveforms, texts = known_clips()

    def words(batch_size: int) -> list[TimedWord]:
        recogniser = Recogniser(model, processor, batch_size=batch_size, word_times=True)
        results = list(recogniser.recognise([waveform] for waveform in waveforms))
        return [word for one in results if isinstance(one, Recognition) for word in one.words]

    alone, together = words(1), words(4)
    assert " ".join(word.text for word in alone) == " ".join(texts)
    assert [(w.text, w.start, w.end) for w in together] == [(w.text, w.start, w.end) for w in alone]
    assert [w.confidence for w in together] == pytest.approx([w.confidence for w in alone], abs=1e-3)


@pytest.mark.parametrize("size", [1, 1000, 10**6])
def test_a_long_recording_reads_the_same_in_blocks_of_any_size(size: int) -> None:
    recording = tone_words(random_words(30, 1), gap=0.3)[: 12 * SAMPLING_RATE]
    blocks = in_blocks(recording, size) if size > 1 else [recording[:1], recording[1:2], recording[2:]]
    (found,) = listener().recognise([blocks])
    assert found == result(listener(), recording)


# Streaming ---------------------------------------------------------------------------------------------------

STREAMS: dict[str, Callable[[], np.ndarray]] = {
    "one window": lambda: noise(3.0, 5),
    "one known clip": lambda: known_clips()[0][1],
    "windows cut at pauses": lambda: with_pauses([noise(2.5, seed) for seed in range(6)], 0.6),
    "forced cuts": lambda: noise(16.0, 9),
    "forced cuts, then pauses": lambda: np.concatenate(
        [noise(11.0, 3), with_pauses([noise(1.5, 1), noise(2.0, 2)], 0.5), noise(7.0, 8)]
    ),
    "silence": lambda: np.zeros(20000, np.float32),
    "nothing": lambda: np.zeros(0, np.float32),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "max_new_tokens": 8}], ids=["greedy", "beams"])
@pytest.mark.parametrize("which", [parts, trained_model])
def test_a_stream_joins_to_the_unstreamed_text(
    name: str, options: dict[str, Any], which: Callable[[], tuple[Any, Any]]
) -> None:
    recogniser = Recogniser(
        *which(), window_seconds=5.0, batch_size=4, generate={"max_new_tokens": 20, **options}
    )
    recording = STREAMS[name]()
    (found,) = recogniser.recognise([in_blocks(recording)])
    pieces = list(recogniser.stream(in_blocks(recording)))
    assert isinstance(found, Recognition)
    assert "".join(pieces) == found.text
    assert all(pieces), "no piece is empty"
    if name == "one window" and not options:
        assert len(pieces) > 1, "text comes before it is whole"
    if name.startswith("forced"):
        assert any(w.forced_end for w in recogniser.windows([recording]))


def test_without_the_guard_a_stream_is_the_unguarded_text() -> None:
    model, processor = tiny_model()
    randomize(model.model.language_model, "weight")
    with torch.no_grad():
        model.ctc_head.bias[0] = 50.0  # hears nothing at all
    for guard in (False, True):
        recogniser = Recogniser(model, processor, guard=guard, generate={"max_new_tokens": 6})
        (found,) = recogniser.recognise([[noise(1.0)]])
        assert isinstance(found, Recognition)
        assert bool(found.text) is not guard
        assert "".join(recogniser.stream([noise(1.0)])) == found.text


def test_a_stream_of_tone_words_is_the_merged_text() -> None:
    words = random_words(90, 2)
    recording = np.concatenate([tone_words(words), np.zeros(SAMPLING_RATE, np.float32), tone_words(words)])

    class Streaming(ToneRecogniser):
        def _stream_window(self, window: Window) -> Iterator[str]:
            yield from filter(None, [self._attempt([window])[0].text])

    recogniser = Streaming(*parts(), window_seconds=WINDOW_SECONDS)
    assert "".join(recogniser.stream(in_blocks(recording))) == " ".join(words + words)


def test_a_streamed_window_that_fails_is_tried_narrower() -> None:
    words = random_words(60, 6)
    recording = tone_words(words, gap=0.4)

    class Streaming(ToneRecogniser):
        def _stream_window(self, window: Window) -> Iterator[str]:
            yield from filter(None, [self._attempt([window])[0].text])

    recogniser = Streaming(*parts(), window_seconds=20.0, fails=longer_than(5.0))
    assert "".join(recogniser.stream(in_blocks(recording))) == " ".join(words)


def test_a_stream_holds_a_word_over_a_window_without_any() -> None:
    """The window behind the silent one may still overlap the one before it, as `merge` knows."""
    first = piece(0, 10, (0, 8), ("one", 1, 2), ("two", 3, 4), ("three", 9.0, 9.6))
    silent = piece(6, 12, (8, 8.5))
    last = piece(7, 20, (8.5, 20), ("three", 9.0, 9.6), ("four", 12, 13))
    last.window = replace(last.window, forced_end=False)
    stream = TextStream(listener())
    pieces = [text for p in (first, silent, last) for text in stream.add(p.window, [p])]
    assert "".join(pieces) == merge([first, silent, last]).text == "one two three four"


def test_audio_that_ends_too_early_is_a_problem_of_the_transcript(tmp_path: Path) -> None:
    words = random_words(60, 7)
    files = {}
    for suffix, subtype in (("wav", None), ("flac", None), ("ogg", "VORBIS"), ("opus.ogg", "OPUS")):
        whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
        soundfile.write(whole, tone_words(words), SAMPLING_RATE, subtype=subtype)
        data = whole.read_bytes()
        cut.write_bytes(data[: len(data) * 6 // 10])
        files[whole] = files[cut] = suffix
    damaged = bytearray((tmp_path / "whole.flac").read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 300] = bytes(300)
    (tmp_path / "damaged.flac").write_bytes(damaged)
    recogniser = listener()
    for file in [*files, tmp_path / "damaged.flac"]:
        for source in (file, file.read_bytes(), io.BytesIO(file.read_bytes())):
            (found,) = recogniser.recognise([read_blocks(source)])
            assert isinstance(found, Recognition)
            if file.name.startswith("whole"):
                assert found.problems == [], file
            else:
                (problem,) = found.problems
                assert "the audio ends too early" in problem.reason, file
                assert problem.end >= problem.start > 1.0


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "generate_stream"]


def failing_model(after_steps: int) -> tuple[Any, Any]:
    """A real model whose decoder raises after so many steps."""
    model, processor = tiny_model()
    randomize(model.model.language_model, "weight")
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps > after_steps:
            raise RuntimeError("the decoder broke")

    model.lm_head.register_forward_pre_hook(count)
    return model, processor


@pytest.mark.parametrize("after_steps", [0, 6])
def test_an_exception_of_the_worker_reaches_the_caller(after_steps: int) -> None:
    stream = Recogniser(*failing_model(after_steps)).stream([noise(3.0)])
    pieces: list[str] = []
    with pytest.raises(RuntimeError, match="the decoder broke"):
        pieces.extend(stream)
    assert workers() == []
    assert bool(pieces) == (after_steps > 0)


def test_an_exception_of_the_reader_reaches_the_caller() -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield noise(3.0)
        raise AudioError("broken")

    with pytest.raises(AudioError, match="broken"):
        list(Recogniser(*parts(), window_seconds=1.0).stream(blocks()))
    assert workers() == []


@pytest.mark.parametrize("way", ["close", "break", "forget"])
def test_ending_a_stream_early_stops_the_work(way: str) -> None:
    model, processor = tiny_model()
    randomize(model.model.language_model, "weight")
    model.generation_config.eos_token_id = [processor.audio_token_id]  # goes on for ever
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    model.lm_head.register_forward_pre_hook(count)
    num_windows = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal num_windows
        for seed in range(100):
            num_windows += 1
            yield with_pauses([noise(3.0, seed)], 0.5)

    recogniser = Recogniser(model, processor, window_seconds=5.0, generate={"max_new_tokens": 2000})
    stream = recogniser.stream(blocks())
    assert next(stream)
    if way == "close":
        stream.close()  # type: ignore[attr-defined]
    elif way == "break":
        for _ in stream:
            break
        del stream
    else:
        del stream
    gc.collect()
    assert workers() == []
    assert steps < 1000 and num_windows < 10


def test_a_stream_that_nobody_reads_starts_no_work() -> None:
    model, processor = parts()
    batch = processor([noise(1.0)])
    stream = model.generate_stream(processor.tokenizer, **batch)
    assert workers() == []
    stream.close()
    with pytest.raises(ValueError, match="one clip"):
        next(model.generate_stream(processor.tokenizer, **processor([noise(1.0), noise(0.5)])))


def test_the_models_own_stream_joins_to_its_text() -> None:
    model, processor = trained_model()
    for waveform, text in zip(*known_clips(), strict=True):
        pieces = list(model.generate_stream(processor.tokenizer, **processor([waveform])))
        assert "".join(pieces) == text
        assert len(pieces) > 1


@pytest.mark.parametrize("text", ["naïve – 東京 🎉 ok", " blank at both ends ", "…", "", "a\n\nb"])
def test_pieces_of_many_bytes_a_character_are_whole(text: str) -> None:
    from tiny_audio.hub.asr_generation import _Pieces

    _, processor = parts()
    pieces = _Pieces(processor.tokenizer)
    for token in processor.label_ids(text):
        pieces.put(torch.tensor([token]))
    pieces.end()
    written = list(iter(pieces.queue.get, None))
    assert "".join(written) == text.strip()
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(written)


@pytest.mark.parametrize(
    "text", ["one two", "naïve – 東京 🎉", "a \u3000", "x \u2028y", "", " ", "1\u00a0000 five"]
)
def test_every_word_of_a_text_gets_one_score(text: str) -> None:
    """Bytes of a character that is not whole yet may look like a word, and turn out to be a blank."""
    from tiny_audio.hub.asr_generation import word_scores

    tokenizer = parts()[1].tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    scores = word_scores(tokenizer, ids, [-1.0] * len(ids))
    assert len(scores) == len(text.split())
    if scores:
        assert sum(scores) == pytest.approx(-len(ids), abs=1)


# Without an alignment head, and wrong settings ---------------------------------------------------------------


@pytest.fixture(scope="module")
def headless() -> tuple[Any, Any]:
    return tiny_model("ctc.weight=0", "ctc.alone_share=0")


def test_without_a_head_there_are_no_times_and_forced_cuts_are_told(
    headless: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"no alignment head.*ctc\.weight > 0"):
        Recogniser(*headless, word_times=True)
    words = random_words(60)
    recogniser = ToneRecogniser(*headless, window_seconds=WINDOW_SECONDS)
    found = result(recogniser, tone_words(words, gap=0.1))
    assert found.text == " ".join(words), "meeting windows are not merged by times that nobody knows"
    assert "no silence near" in caplog.text and "a word may be split" in caplog.text
    caplog.clear()
    assert result(recogniser, tone_words(words, gap=0.4)).text == " ".join(words)
    assert caplog.text == ""


def test_without_a_head_a_stream_still_joins_to_the_text(headless: tuple[Any, Any]) -> None:
    recogniser = Recogniser(*headless, window_seconds=4.0, generate={"max_new_tokens": 10})
    recording = noise(10.0, 2)
    assert "".join(recogniser.stream([recording])) == result(recogniser, recording).text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_seconds": 31.0}, "at most 30 s, got 31 s"),
        ({"window_seconds": 0.0}, "longer than 0 s"),
        ({"window_seconds": -1.0}, "longer than 0 s"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"overlap_seconds": (-1.0, 0.0)}, "must not be negative"),
        ({"generate": {"num_return_sequences": 2}}, "num_return_sequences must be 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recogniser(*parts(), **options)
