"""report.html: an evaluation, or a comparison of two, as one file that opens without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import log10
from pathlib import Path
from typing import Any

from tiny_audio.evaluate import findings
from tiny_audio.evaluate.clips import MAX_CLIP_SECONDS, AudioReader, Clip, ClipMaker, audio_reader
from tiny_audio.evaluate.findings import Change, DiffToken, Group, Suspicion
from tiny_audio.evaluate.results import EvalResult, UtteranceResult
from tiny_audio.evaluate.significance import paired_bootstrap
from tiny_audio.evaluate.wer import EditCounts
from tiny_audio.files import write_files

__all__ = ["audio_reader", "write_page"]

NUM_WORST = 25
NUM_CHANGES = 12
NUM_SUSPICIONS = 12  # of each kind
NUM_WORDS = 20
NUM_GROUPS = 12  # more are folded away

GROUPINGS = {
    "length": ("By length of audio", "seconds", findings.by_length),
    "rate": ("By speaking rate", "words a second, as the reference has them", findings.by_rate),
    "speaker": ("By speaker", "highest error rate first", findings.by_speaker),
    "set": ("By set", "what stands before the first slash of an id", findings.by_set),
}
SUSPICION_TITLES = {
    findings.HALLUCINATION: "Possible hallucinations",
    findings.TRUNCATION: "Possible truncations",
    findings.REFERENCE_ERROR: "Possible errors in the reference",
}

# Control characters, lone surrogates, and the marks that turn the direction of the text around them: shown as a
# replacement character, since a transcript is a claim about words and must not rearrange the page.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Run:
    """An evaluation under the letter that the page calls it by, empty where there is only one."""

    letter: str
    result: EvalResult


@dataclass(frozen=True)
class CardRun:
    """What one run wrote for an utterance."""

    letter: str
    utterance: UtteranceResult
    tokens: list[DiffToken]
    counts: EditCounts


@dataclass(frozen=True)
class Card:
    """An utterance as it is shown at length. Its sound is in the page once; later cards name that `heard_at`."""

    anchor: str
    utterance: UtteranceResult
    runs: list[CardRun]
    clip: Clip | None
    heard_at: str | None
    reason: str | None = None


def write_page(results: Sequence[EvalResult], path: Path, read_audio: AudioReader) -> None:
    """Write the page of one evaluation, or of two on the same data, the first being the baseline.

    Args:
        results: one evaluation or two.
        path: the file, which appears whole or not at all.
        read_audio: gives the 16 kHz mono waveform (S,) of an utterance id, or None where it cannot be had.

    Raises:
        OSError: the file cannot be written; what was there before is then still there.
        ValueError: neither one result nor two.
    """
    write_files({path: render_page(results, read_audio)})


def render_page(results: Sequence[EvalResult], read_audio: AudioReader) -> str:
    """The HTML of `write_page`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    if len(results) not in (1, 2):
        raise ValueError(f"a page shows one evaluation or two, not {len(results)}")
    folder = Path(__file__).parent
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else shown(value),
    )
    environment.filters.update(percent=percent, signed_percent=partial(percent, signed=True))
    return environment.get_template("page.html.j2").render(
        **_content(results, ClipMaker(read_audio)),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def shown(value: Any) -> Any:
    """A value as the page may show it: of a text, all that is not to be trusted replaced."""
    return _UNSHOWABLE.sub("\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value


def percent(rate: float, signed: bool = False) -> str:
    """0.1234 as 12.3%; signed as +12.3."""
    if not signed:
        return f"{100 * rate:.1f}%"
    points = round(100 * rate, 1)
    return f"{points:+.1f}".replace("-", "−") if points else "0.0"


def axis_limit(value: float) -> float:
    """The round number (1, 2, 3, 4, 5 or 8 times a power of ten) that an axis from 0 to `value` ends at."""
    if value <= 0:
        return 0.01
    power = 10.0 ** int(log10(value) // 1)
    return next((step * power for step in (1, 2, 3, 4, 5, 8) if value <= step * power * 1.0001), 10 * power)


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline script or style that may be used."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def _content(results: Sequence[EvalResult], clip_maker: ClipMaker) -> dict[str, Any]:
    """Everything that the template names."""
    result, baseline = results[-1], results[0] if len(results) == 2 else None
    runs = [Run(letter, each) for letter, each in zip("AB" if baseline else [""], results, strict=False)]
    cards = _Cards(runs, clip_maker)
    # Sound goes to what the page shows first.
    comparison = None if baseline is None else _comparison(baseline, result, cards)
    worst = [cards.make(item) for item in findings.most_costly(result.utterances)[:NUM_WORST]]
    suspected = findings.suspicions(result, baseline)
    suspicions = _suspicion_sections(suspected, cards)
    costs = findings.word_costs(result.utterances)
    return {
        "runs": runs,
        "result": result,
        "comparison": comparison,
        "limit": axis_limit(max(run.result.metrics.wer_ci95[1] for run in runs)),
        "facts": [_facts(run.result) for run in runs],
        "groupings": [
            grouping
            for title, unit, make in GROUPINGS.values()
            if (grouping := _grouping(title, unit, [make(run.result.utterances) for run in runs], runs))
        ],
        "few": findings.FEW_UTTERANCES,
        "num_groups": NUM_GROUPS,
        "costs": costs[:NUM_WORDS],
        "errors_before": {}
        if baseline is None
        else {cost.word: cost.errors for cost in findings.word_costs(baseline.utterances)},
        "num_costly": len(costs),
        "confusions": findings.confusions(result.utterances)[:NUM_WORDS],
        "worst": worst,
        "num_wrong": sum(bool(item.score.alignment.counts.errors) for item in result.utterances),
        "suspicions": suspicions,
        "clips": clip_maker,
        "max_clip_seconds": MAX_CLIP_SECONDS,
        "records": _records(runs, suspected, cards),
    }


class _Cards:
    """Makes cards, each with an anchor of its own, and remembers where an utterance can be heard."""

    def __init__(self, runs: Sequence[Run], clip_maker: ClipMaker) -> None:
        self._by_id = [(run, {item.id: item for item in run.result.utterances}) for run in runs]
        self._clip_maker = clip_maker
        self._num_made = 0
        self.heard_at: dict[str, str | None] = {}  # None: it was tried, and there is no sound

    def make(self, utterance: UtteranceResult, reason: str | None = None) -> Card:
        """The card of an utterance, with what every run wrote for it."""
        self._num_made += 1
        anchor = f"u{self._num_made}"
        clip, heard_at = None, self.heard_at.get(utterance.id)
        if utterance.id not in self.heard_at:
            clip = self._clip_maker.make(utterance.id)
            self.heard_at[utterance.id] = anchor if clip else None
        return Card(
            anchor,
            utterance,
            [
                CardRun(letter, item, findings.diff_tokens(item), item.score.alignment.counts)
                for letter, item in self.written(utterance)
            ],
            clip,
            heard_at,
            reason,
        )

    def written(self, utterance: UtteranceResult) -> list[tuple[str, UtteranceResult]]:
        """The letter of each run that has the utterance, and what it made of it."""
        return [(run.letter, by_id[utterance.id]) for run, by_id in self._by_id if utterance.id in by_id]


def _facts(result: EvalResult) -> list[tuple[str, str]]:
    """What is known of a run beside its error rate: names and values."""
    seconds = [item.seconds for item in result.utterances if item.seconds is not None]
    facts = [
        ("Character error rate", percent(result.metrics.cer)),
        ("Utterances", f"{result.metrics.num_samples:,}"),
        ("Words spoken", f"{result.metrics.reference_words:,}"),
        ("Audio", f"{sum(seconds) / 60:,.1f} minutes" if seconds else "of unknown length"),
        ("Could not be transcribed", f"{len(result.failed):,}"),
        ("Speed (RTFx)", f"{result.metrics.rtfx:,.1f}× real time" if result.metrics.rtfx else "–"),
        ("Normaliser", result.normalizer),
    ]
    for name, value in result.details.items():
        if value is None or name == "audio_seconds":  # the audio stands above
            continue
        label, write = DETAILS.get(name, (name.replace("_", " ").capitalize(), _plain))
        facts.append((label, write(value)))
    return facts


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.strip("{}").replace('"', "")


def _day_and_time(value: Any) -> str:
    try:
        return f"{datetime.fromisoformat(value).astimezone(UTC):%d %B %Y, %H:%M} UTC"
    except (TypeError, ValueError, OverflowError):  # read back from a file of any content
        return _plain(value)


# How the page calls what an evaluation notes about itself, and how it writes the value.
DETAILS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "date": ("Begun", _day_and_time),
    "hardware": ("Computed on", _plain),
    "git_hash": ("Commit of Tiny Audio", _plain),
    "data_revision": ("Revision of the data", _plain),
    "num_rows": ("Utterances in the whole set", _plain),
    "max_samples": ("Sample of at most", _plain),
    "batch_size": ("Clips in a batch", _plain),
    "wall_seconds": ("Seconds of computing", _plain),
    "macro_average_wer": ("Average of the sets' error rates", _plain),
    "cost_usd": ("Cost in dollars", _plain),
}


def _grouping(
    title: str, unit: str, groups_of_runs: Sequence[list[Group]], runs: Sequence[Run]
) -> dict[str, Any] | None:
    """One chart: a row for each group of the last run, a bar for each run. None where there is nothing to tell."""
    shown_groups = groups_of_runs[-1]
    if len(shown_groups) < 2:
        return None
    named = [{group.name: group for group in groups} for groups in groups_of_runs]
    rows = [
        [
            (run.letter, groups[group.name])
            for run, groups in zip(runs, named, strict=True)
            if group.name in groups
        ]
        for group in shown_groups
    ]
    highest = max((group.interval or (0, group.counts.rate))[1] for row in rows for _, group in row)
    included = sum(group.num_utterances for group in shown_groups)
    return {
        "title": title,
        "unit": unit,
        "rows": rows,
        # A bar beyond all words wrong ends at the edge: one odd group should not flatten the others.
        "limit": min(axis_limit(highest), 1.0),
        "num_outside": len(runs[-1].result.utterances) - included,
    }


def _comparison(baseline: EvalResult, result: EvalResult, cards: _Cards) -> dict[str, Any]:
    pairs = findings.changes(baseline, result)
    by_size = sorted(pairs, key=lambda pair: (-abs(pair.errors_saved), pair.after.id))
    wins = [pair for pair in by_size if pair.errors_saved > 0]
    losses = [pair for pair in by_size if pair.errors_saved < 0]
    before = [pair.before.score.alignment.counts.errors for pair in pairs]
    after = [pair.after.score.alignment.counts.errors for pair in pairs]
    lengths = [pair.after.score.alignment.counts.reference_length for pair in pairs]
    drawn = paired_bootstrap(before, after, lengths)
    low, high = drawn.low, drawn.high
    better = "B makes fewer errors" if high < 0 else "A makes fewer errors"

    def cards_of(chosen: Iterable[Change]) -> list[Card]:
        return [cards.make(pair.after) for pair in chosen]

    return {
        "difference": (sum(after) - sum(before)) / max(sum(lengths), 1),
        "interval": (low, high),
        "verdict": "The interval holds 0: these runs may be equally good."
        if low <= 0 <= high
        else f"{better}; chance alone would hardly do that.",
        "num_shared": len(pairs),
        "num_unpaired": len(baseline.utterances) + len(result.utterances) - 2 * len(pairs),
        "sections": [
            ("wins", "Wins", "B makes fewer errors than A", len(wins), cards_of(wins[:NUM_CHANGES])),
            ("losses", "Losses", "B makes more errors than A", len(losses), cards_of(losses[:NUM_CHANGES])),
        ],
    }


def _suspicion_sections(
    suspected: Sequence[Suspicion], cards: _Cards
) -> list[tuple[str, str, int, list[Card]]]:
    """(anchor, title, how many there are, cards of the most costly) of each kind."""
    sections = []
    for kind, title in SUSPICION_TITLES.items():
        chosen = [suspicion for suspicion in suspected if suspicion.kind == kind]
        chosen.sort(key=lambda suspicion: -suspicion.utterance.score.alignment.counts.errors)
        made = [cards.make(item.utterance, item.reason) for item in chosen[:NUM_SUSPICIONS]]
        sections.append((kind.replace(" ", "-"), title, len(chosen), made))
    return sections


def _records(runs: Sequence[Run], suspected: Sequence[Suspicion], cards: _Cards) -> list[dict[str, Any]]:
    """All utterances of the last run for the script that lists them, with what every run wrote.

    Keys are short: a set can have many thousands. i id, p speaker, s seconds, h anchor of its player, q why it
    is suspected, r runs as [letter, reference, hypothesis, operations, error].
    """
    reasons: dict[str, list[str]] = {}
    for suspicion in suspected:
        reasons.setdefault(suspicion.utterance.id, []).append(
            f"Suspected {suspicion.kind}: {suspicion.reason}"
        )
    records = []
    for utterance in runs[-1].result.utterances:
        record = {
            "i": shown(utterance.id),
            "p": shown(utterance.speaker),
            "s": utterance.seconds,
            "h": cards.heard_at.get(utterance.id),
            "q": [shown(reason) for reason in reasons.get(utterance.id, [])],
            "r": [
                [
                    letter,
                    _joined(item.score.reference_normalized),
                    _joined(item.score.hypothesis_normalized),
                    item.score.alignment.operations,
                    shown(item.error),
                ]
                for letter, item in cards.written(utterance)
            ],
        }
        records.append({key: value for key, value in record.items() if value})
    return records


def _joined(text: str) -> str:
    """Words as they were aligned, a space between: Python and JavaScript disagree on what else divides words."""
    return " ".join(shown(word) for word in text.split())
