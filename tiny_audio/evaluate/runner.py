"""Runs a recogniser over a source of speech and counts what it got wrong.

Every utterance of the set is in the score: an empty transcript, an empty reference, and a clip that could not
be transcribed at all (counted as if every word had been deleted, and listed with its reason).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np

from tiny_audio.data.source import Source, allowed_problems, list_problems
from tiny_audio.data.utterance import Utterance
from tiny_audio.errors import UserError
from tiny_audio.evaluate.normalize import default_normalizer, get_normalizer
from tiny_audio.evaluate.providers import SAMPLING_RATE, Provider, Waveform, describe_failure
from tiny_audio.evaluate.results import EvalResult, UtteranceResult
from tiny_audio.evaluate.scoring import score_texts, summarize
from tiny_audio.evaluate.store import StoredTranscript, TranscriptStore
from tiny_audio.provenance import git_hash, hardware

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 16
# Audio held in memory at a time, read in the source's own order and then sorted by length: an hour is 230 MB.
WINDOW_SECONDS = 3600.0
# A recogniser that fails on this many clips without a single success is broken, not unlucky.
MAX_FAILURES_WITHOUT_SUCCESS = 20
SAMPLE_SEED = 0
# Rows of a source that may be unusable before the score of the rest would mislead.
MAX_LEFT_OUT_FRACTION = 0.01


def evaluate(
    provider: Provider,
    source: Source,
    *,
    model_name: str,
    normalizer: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    max_samples: int | None = None,
    store: TranscriptStore | None = None,
    show_progress: bool = False,
) -> EvalResult:
    """Transcribe a source and score it.

    Args:
        provider: the recogniser; see `tiny_audio.evaluate.providers`.
        source: an open source of speech with transcripts.
        model_name: what the reports call the recogniser.
        normalizer: a name of `NORMALIZERS`; None chooses by the references of the whole set.
        batch_size: clips in one call. A call that fails is repeated clip by clip, so that one clip cannot
            spoil the others.
        max_samples: score a sample of this many utterances, the same ones every time; None scores all.
        store: where transcripts are kept as they come in, and taken from where they are known already.
        show_progress: a progress bar on standard error.

    Raises:
        UserError: an unknown normaliser, a source with too many unusable rows, or a recogniser that fails
            on everything.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    rows = source.utterances()
    num_rows = len(rows) + len(source.problems)
    if len(source.problems) > allowed_problems(num_rows, MAX_LEFT_OUT_FRACTION):
        raise UserError(
            f"{source.name}: {len(source.problems)} of {num_rows} rows hold no usable speech with transcript,"
            f" so a score of the rest would mislead; mend or remove them: {list_problems(source.problems)}"
        )
    # Behind the rows that can be read: those of which only the words are known.
    unheard = [(problem.utterance, problem) for problem in source.problems if problem.utterance is not None]
    if normalizer is None:
        normalizer = default_normalizer(row.text for row in rows)
    get_normalizer(normalizer)  # an unknown one must fail now, not after an hour
    chosen = sample_indices(len(rows) + len(unheard), max_samples)
    utterances = [rows[i] if i < len(rows) else unheard[i - len(rows)][0] for i in chosen]

    num_twice = len(utterances) - len({utterance.id for utterance in utterances})
    if num_twice:
        logger.warning("%s: %d of its ids stand there more than once", source.name, num_twice)

    run = _Run(provider, batch_size, store)
    run.errors = {n: str(unheard[i - len(rows)][1]) for n, i in enumerate(chosen) if i >= len(rows)}
    utterances_to_hear = utterances[: len(utterances) - len(run.errors)]
    with _progress_bar(len(utterances_to_hear), show_progress) as advance:
        for window in _windows(utterances_to_hear):
            clips = []
            for index in window:
                waveform = run.read(source, index, utterances[index])
                if waveform is not None and not run.recall(index, waveform):
                    clips.append((index, waveform))
            advance(len(window) - len(clips), run)
            clips.sort(key=lambda clip: len(clip[1]), reverse=True)
            for start in range(0, len(clips), batch_size):
                run.transcribe(clips[start : start + batch_size])
                advance(len(clips[start : start + batch_size]), run)
    if utterances and len(run.errors) == len(utterances):
        first = min(run.errors)
        raise UserError(
            f"None of the {len(utterances)} utterances of {source.name} could be transcribed."
            f" The first failure, of {utterances[first].id}: {run.errors[first]}"
        )

    hypotheses = [run.hypotheses.get(index, "") for index in range(len(utterances))]
    scores = score_texts([utterance.text for utterance in utterances], hypotheses, normalizer)
    return EvalResult(
        metrics=summarize(scores, audio_seconds=run.audio_seconds, wall_seconds=run.wall_seconds),
        utterances=[
            UtteranceResult(
                id=utterance.id,
                audio=str(utterance.audio),
                seconds=run.seconds.get(index, utterance.seconds),
                speaker=utterance.speaker,
                reference=utterance.text,
                hypothesis=hypotheses[index],
                score=scores[index],
                error=run.errors.get(index),
            )
            for index, utterance in enumerate(utterances)
        ],
        normalizer=normalizer,
        model=model_name,
        data=source.name,
        left_out=[*(problem for problem in source.problems if problem.utterance is None), *source.excluded],
        details={
            "date": started,
            "hardware": hardware(),
            "git_hash": git_hash(),
            "data_revision": source.revision,
            "num_rows": len(rows) + len(unheard),
            "max_samples": max_samples,
            "batch_size": batch_size,
            "audio_seconds": round(run.audio_seconds, 2),
            "wall_seconds": round(run.wall_seconds, 2),
            "cost_usd": run.cost_usd,
        },
    )


def sample_indices(num_rows: int, max_samples: int | None) -> list[int]:
    """Which rows are scored: all, or a seeded sample in the order of the source."""
    if max_samples is None or max_samples >= num_rows:
        return list(range(num_rows))
    chosen = np.random.default_rng(SAMPLE_SEED).choice(num_rows, size=max_samples, replace=False)
    return sorted(chosen.tolist())


class _Run:
    """What has been transcribed so far: results by index of the utterance, and the time it took."""

    def __init__(self, provider: Provider, batch_size: int, store: TranscriptStore | None) -> None:
        self.provider = provider
        self.batch_size = batch_size
        self.store = store
        self.hypotheses: dict[int, str] = {}
        self.errors: dict[int, str] = {}
        self.seconds: dict[int, float] = {}
        self.audio_seconds = 0.0
        self.wall_seconds = 0.0
        self.num_failures = 0
        self.is_warm = False

    def read(self, source: Source, index: int, utterance: Utterance) -> Waveform | None:
        """The clip, or None with its error noted."""
        try:
            waveform = source.read(utterance, max_seconds=self.provider.max_seconds)
            if len(waveform) == 0:
                raise ValueError("holds no samples (0 s of audio)")
        except (OSError, ValueError) as error:  # AudioError is a ValueError
            self.errors[index] = describe_failure(error)
            return None
        self.seconds[index] = len(waveform) / SAMPLING_RATE
        return waveform

    @property
    def cost_usd(self) -> float | None:
        """What the audio recognised so far costs by the list price, None where nobody is paid."""
        price = self.provider.price_usd_per_hour
        return None if price is None else round(price * self.audio_seconds / 3600, 4)

    def recall(self, index: int, waveform: Waveform) -> bool:
        """Take the transcript from the store, with the time that it took then. False when it is not there."""
        known = None if self.store is None else self.store.get(self.store.key(waveform))
        if known is None:
            return False
        self.hypotheses[index] = known.text
        self.audio_seconds += known.audio_seconds
        self.wall_seconds += known.wall_seconds
        return True

    def transcribe(self, clips: list[tuple[int, Waveform]]) -> None:
        """One batch; if it fails, each of its clips alone."""
        waveforms = [waveform for _, waveform in clips]
        if not self.is_warm and not self.provider.costs_money:
            # The first call pays for compilation and memory that no later call needs: it is not timed.
            self._attempt([min(waveforms, key=len)])
            self.is_warm = True
        start = time.perf_counter()
        outcome = self._attempt(waveforms)
        elapsed = time.perf_counter() - start
        if isinstance(outcome, Exception):
            if len(clips) > 1:
                logger.info(
                    "A batch of %d clips failed (%s); trying them one by one.",
                    len(clips),
                    describe_failure(outcome),
                )
                for clip in clips:
                    self.transcribe([clip])
                return
            outcome = [outcome]
        total = sum(map(len, waveforms))
        kept = []
        for (index, waveform), text in zip(clips, outcome, strict=True):
            if isinstance(text, Exception):
                self._note_failure(index, text)
                continue
            seconds, share = len(waveform) / SAMPLING_RATE, elapsed * len(waveform) / total
            self.hypotheses[index] = text
            self.audio_seconds += seconds
            self.wall_seconds += share
            if self.store is not None:
                kept.append((self.store.key(waveform), StoredTranscript(text, seconds, share)))
        if self.store is not None and kept:
            self.store.add(kept)

    def _attempt(self, waveforms: list[Waveform]) -> Sequence[str | Exception] | Exception:
        try:
            texts = self.provider.transcribe(waveforms)
        except UserError:
            raise
        except Exception as error:  # whatever a recogniser raises is its failure on these clips
            logger.debug("transcription failed", exc_info=True)
            return error
        if len(texts) != len(waveforms):
            raise UserError(
                f"The recogniser returned {len(texts)} transcripts for {len(waveforms)} clips;"
                " it must return one each."
            )
        return texts

    def _note_failure(self, index: int, error: Exception) -> None:
        self.errors[index] = describe_failure(error)
        self.num_failures += 1
        if not self.hypotheses and self.num_failures >= MAX_FAILURES_WITHOUT_SUCCESS:
            raise UserError(
                f"The first {MAX_FAILURES_WITHOUT_SUCCESS} clips all failed, the last with:"
                f" {describe_failure(error)}"
            ) from error


def _windows(utterances: Sequence[Utterance]) -> Iterator[list[int]]:
    """Indices in order, cut where `WINDOW_SECONDS` of audio have come together (10 s for unknown lengths)."""
    window: list[int] = []
    total = 0.0
    for index, utterance in enumerate(utterances):
        seconds = 10.0 if utterance.seconds is None else utterance.seconds
        if window and total + seconds > WINDOW_SECONDS:
            yield window
            window, total = [], 0.0
        window.append(index)
        total += seconds
    if window:
        yield window


@contextmanager
def _progress_bar(num_utterances: int, visible: bool) -> Iterator[Callable[[int, _Run], None]]:
    """A function to call with the number of utterances done since the last call.

    It moves the bar on standard error.
    """
    if not visible:
        yield lambda done, run: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("transcribing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=num_utterances, speed="")

        def advance(done: int, run: _Run) -> None:
            speed = f"{run.audio_seconds / run.wall_seconds:.1f} s of audio/s" if run.wall_seconds else ""
            cost = "" if run.cost_usd is None else f"  ${run.cost_usd:.2f}"
            progress.update(task, advance=done, speed=speed + cost)

        yield advance
