"""What a set of speech holds, found out before training on it: sizes, texts, duplicates, suspects.

Every row's metadata is looked at once; about 30 bytes of each are kept, so a set of ten million rows needs some
hundred megabytes. Audio is decoded for a seeded sample of rows only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tiny_audio.data.source import Source, show_progress
from tiny_audio.data.text import clean_transcript
from tiny_audio.data.utterance import Utterance, utterance_key
from tiny_audio.hub.asr_audio import SAMPLING_RATE

SAMPLE_SEED = 0
NUM_EXAMPLES = 8  # of each finding
NUM_REPEATED_TEXTS = 10
COUNTED_TEXTS = 200_000  # texts counted by name; beyond that only their hashes are
# Speech is 10-20 characters a second (14 in LibriSpeech). Outside these limits text and audio rarely belong together.
FASTEST_CHARACTERS_PER_SECOND = 30.0
SLOWEST_CHARACTERS_PER_SECOND = 3.0
SLOWEST_FROM_SECONDS = 3.0  # "yes" and a pause are no fault in a short clip
SILENT_DB = -60.0  # of full scale
CLIPPED_SHARE = 0.001  # of the samples at the very top
SHORTER_THAN_STATED, LONGER_THAN_STATED = 0.9, 1.1  # decoded length over the length that the metadata states
LONGEST_HEARD_SECONDS = 300.0  # a clip is decoded whole: this much takes 20 MB, and no training takes more
# Outside of these a stated length is a slip of the pen or of the unit.
SHORTEST_POSSIBLE_SECONDS, LONGEST_POSSIBLE_SECONDS = 1e-3, 86_400.0
LENGTH_PERCENTILES = (0, 1, 25, 50, 75, 99, 100)

# What a suspect is called, and what it means; in the order in which they are printed.
SUSPECTS = {
    "fast": f"more than {FASTEST_CHARACTERS_PER_SECOND:g} characters a second: text too long for its audio",
    "slow": f"fewer than {SLOWEST_CHARACTERS_PER_SECOND:g} characters a second in {SLOWEST_FROM_SECONDS:g} s or more:"
    " words are missing, or silence is long",
    "nothing but markup": "the transcript says nothing once it is tidied; training leaves it out",
    "duplicate": "same text and same length as an earlier row",
    "unreadable": "the audio cannot be decoded",
    "silent": f"never above {SILENT_DB:g} dB, and there is a transcript",
    "clipped": f"more than {CLIPPED_SHARE:.1%} of the samples at full scale",
    "shorter than stated": "the audio ends before the length that the metadata states",
    "longer than stated": "the audio goes on after the length that the metadata states, and training plans by that",
    "not heard out": f"longer than {LONGEST_HEARD_SECONDS:g} s, which is not decoded here",
    "impossible length": f"the metadata states under {SHORTEST_POSSIBLE_SECONDS:g} s or over a day",
    "repeated id": "an earlier row has the same id: reports cannot tell them apart",
}


@dataclass(frozen=True)
class Suspect:
    """A row to look at. `detail` says what was found."""

    kind: str
    id: str
    audio: str
    text: str
    detail: str


@dataclass
class Inspection:
    """What was found. Lengths are in seconds, levels in dB of full scale."""

    name: str
    num_rows: int = 0
    num_speakers: int = 0
    num_empty: int = 0
    num_words: int = 0
    num_unknown_length: int = 0
    num_tidied: int = 0
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    characters_per_second: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    characters: Counter[str] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    repeated_texts: list[tuple[str, int]] = field(default_factory=list)
    num_distinct_texts: int = 0
    tidied: list[tuple[str, str]] = field(default_factory=list)
    num_suspects: Counter[str] = field(default_factory=Counter)
    suspects: list[Suspect] = field(default_factory=list)
    num_decoded: int = 0
    levels_db: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    num_excluded: int = 0

    @property
    def hours(self) -> float:
        return float(np.nansum(self.seconds, dtype=np.float64)) / 3600

    def suspect(self, kind: str, row: Utterance, detail: str) -> None:
        """Counts a suspect and keeps the first of each kind."""
        self.num_suspects[kind] += 1
        if self.num_suspects[kind] <= NUM_EXAMPLES:
            self.suspects.append(Suspect(kind, row.id, str(row.audio), row.text, detail))

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        known = self.seconds[~np.isnan(self.seconds)]
        lengths = dict(zip(map(str, LENGTH_PERCENTILES), _percentiles(known), strict=True))
        return {
            "data": self.name,
            "rows": self.num_rows,
            "hours": round(self.hours, 4),
            "speakers": self.num_speakers,
            "words": self.num_words,
            "empty_transcripts": self.num_empty,
            "distinct_texts": self.num_distinct_texts,
            "rows_of_unknown_length": self.num_unknown_length,
            "seconds_percentiles": lengths,
            "transcripts_tidied": self.num_tidied,
            "characters": dict(self.characters.most_common()),
            "tags": dict(self.tags.most_common()),
            "rows_decoded": self.num_decoded,
            "unusable_rows": self.num_problems,
            "rows_left_out_by_rule": self.num_excluded,
            "suspects": dict(self.num_suspects),
        }


def inspect_source(source: Source, num_decoded: int = 200) -> Inspection:
    """Looks at every row of a source and listens to `num_decoded` of them, the same ones every time."""
    found = Inspection(source.name)
    found.num_problems, found.num_excluded = len(source.problems), len(source.excluded)
    found.problems = [str(problem) for problem in source.problems[:NUM_EXAMPLES]]
    rows = source.utterances()
    found.num_rows = len(rows)
    found.seconds = _possible_seconds(found, source)
    found.num_unknown_length = int(np.isnan(found.seconds).sum())
    _look_at_texts(found, rows)
    chosen = np.random.default_rng(SAMPLE_SEED).permutation(len(rows))[:num_decoded]
    # In the order of the source: shards are read once.
    _listen(found, source, [rows[int(index)] for index in np.sort(chosen)])
    found.suspects.sort(key=lambda suspect: list(SUSPECTS).index(suspect.kind))
    return found


def _possible_seconds(found: Inspection, source: Source) -> np.ndarray:
    """The stated lengths, float32 (rows,); NaN for those that cannot be, which are suspects."""
    with np.errstate(over="ignore"):
        seconds = source.seconds().astype(np.float32)
    impossible = (seconds < SHORTEST_POSSIBLE_SECONDS) | (seconds > LONGEST_POSSIBLE_SECONDS)
    rows = source.utterances()
    for index in np.flatnonzero(impossible):
        row = rows[int(index)]
        found.suspect("impossible length", row, f"{row.seconds:.6g} s")
    return np.where(impossible, np.float32(np.nan), seconds)


def _look_at_texts(found: Inspection, rows: Sequence[Utterance]) -> None:
    """Counts what transcripts hold, row by row."""
    rates = np.full(len(rows), np.nan, np.float32)
    text_keys = np.zeros(len(rows), np.uint64)
    row_keys = np.zeros(len(rows), np.uint64)
    id_keys = np.zeros(len(rows), np.uint64)
    speakers: set[int] = set()
    texts: Counter[str] = Counter()
    for index, row in enumerate(show_progress(rows, "reading transcripts", len(rows))):
        tidy = clean_transcript(row.text)
        id_keys[index] = utterance_key(row.id)
        if row.speaker is not None:
            speakers.add(utterance_key(row.speaker))
        found.num_words += len(tidy.split())
        found.characters.update(row.text)
        found.tags.update(re.findall(r"<[^<>\s]{1,24}>|\[[^\[\]]{1,24}\]|\{[^{}]{1,24}\}", row.text))
        if tidy != row.text:
            found.num_tidied += 1
            if len(found.tidied) < NUM_EXAMPLES and tidy:
                found.tidied.append((row.text, tidy))
        text_keys[index] = utterance_key(tidy)
        if len(texts) < COUNTED_TEXTS or tidy in texts:
            texts[tidy] += 1
        if not row.text.strip():
            found.num_empty += 1
            continue
        if not tidy:
            found.suspect("nothing but markup", row, row.text.strip())
            continue
        seconds = float(found.seconds[index])
        row_keys[index] = utterance_key(f"{tidy}\n{seconds:.3f}")
        if seconds > 0:
            rates[index] = rate = len(tidy) / seconds
            if rate > FASTEST_CHARACTERS_PER_SECOND:
                found.suspect("fast", row, f"{rate:.0f} characters a second")
            elif rate < SLOWEST_CHARACTERS_PER_SECOND and seconds >= SLOWEST_FROM_SECONDS:
                found.suspect("slow", row, f"{rate:.1f} characters a second, {seconds:.1f} s")
    found.characters_per_second = rates[~np.isnan(rates)]
    found.num_speakers = len(speakers)
    found.num_distinct_texts = len(np.unique(text_keys))
    found.repeated_texts = [
        (text, count) for text, count in texts.most_common(NUM_REPEATED_TEXTS) if count > 1 and text
    ]
    for index in _repeats(row_keys):
        if row_keys[index] and found.seconds[index] > 0:  # the text is not empty, and the length is known
            found.suspect("duplicate", rows[index], f"{found.seconds[index]:.2f} s")
    for index in _repeats(id_keys):
        found.suspect("repeated id", rows[index], str(rows[index].audio))


def _repeats(keys: np.ndarray) -> list[int]:
    """Rows whose key an earlier row has, in their order."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    return np.sort(order[1:][same]).tolist()


def _listen(found: Inspection, source: Source, rows: Sequence[Utterance]) -> None:
    """Decodes rows and looks at their level and length."""
    levels = []
    for row in show_progress(rows, "listening", len(rows)):
        found.num_decoded += 1
        try:
            waveform = source.read(row, LONGEST_HEARD_SECONDS)
        except (OSError, ValueError) as error:  # AudioError is a ValueError
            # All sources say it in these words.
            kind = "not heard out" if "longer than the limit of" in str(error) else "unreadable"
            found.suspect(kind, row, " ".join(str(error).split()))
            continue
        heard = len(waveform) / SAMPLING_RATE
        size = np.abs(waveform)
        peak = _decibels(float(size.max(initial=0.0)))
        levels.append(_decibels(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))))
        if peak < SILENT_DB and row.text.strip():
            found.suspect("silent", row, f"peak {peak:.0f} dB")
        clipped = float((size >= 0.999).mean())
        if clipped > CLIPPED_SHARE:
            found.suspect("clipped", row, f"{clipped:.1%} of the samples")
        if row.seconds is not None:
            for kind, differs in (
                ("shorter than stated", heard < SHORTER_THAN_STATED * row.seconds),
                ("longer than stated", heard > LONGER_THAN_STATED * row.seconds),
            ):
                if differs:
                    found.suspect(kind, row, f"{heard:.2f} s instead of {row.seconds:.6g} s")
    found.levels_db = np.array(levels, np.float32)


def _decibels(amplitude: float) -> float:
    return float(20 * np.log10(max(amplitude, 1e-6)))


def _percentiles(values: np.ndarray) -> list[float | None]:
    if not len(values):
        return [None] * len(LENGTH_PERCENTILES)
    return [round(float(value), 3) for value in np.percentile(values, LENGTH_PERCENTILES)]


# For people ------------------------------------------------------------------------------------------------------


def format_inspection(found: Inspection, vocabulary: str, limits: tuple[float, float]) -> str:
    """What was found, in words.

    Args:
        vocabulary: the characters of the alignment head, to name those that it would not learn.
        limits: shortest and longest clip that training takes, in seconds.
    """
    known = found.seconds[~np.isnan(found.seconds)]
    sections = [_section("What is in it", _contents(found, known, limits))]
    sections.append(_section("Texts", _texts(found, vocabulary)))
    if found.num_decoded:
        sections.append(_section(f"Sound of {found.num_decoded:,} rows", _sound(found)))
    sections.append(_section("To look at", _suspicions(found)))
    return f"{_short(found.name)}\n\n" + "\n\n".join(sections)


def _section(title: str, lines: Iterable[str]) -> str:
    return title + "\n" + "\n".join(f"  {line}" for line in lines)


def _contents(found: Inspection, known: np.ndarray, limits: tuple[float, float]) -> Iterator[str]:
    speakers = f"{found.num_speakers:,} speakers" if found.num_speakers else "speakers not named"
    yield f"{found.num_rows:,} rows, {found.hours:,.2f} hours, {found.num_words:,} words, {speakers}"
    if len(known):
        low, _, quarter, median, three_quarters, _, high = np.percentile(known, LENGTH_PERCENTILES)
        yield (
            f"length: {low:.2f} to {high:.2f} s, median {median:.1f} s, half of them {quarter:.1f} to"
            f" {three_quarters:.1f} s"
        )
        for word, outside in (("shorter", known < limits[0]), ("longer", known > limits[1])):
            if outside.any():
                limit = limits[0] if word == "shorter" else limits[1]
                hours = float(known[outside].sum()) / 3600
                count = f"{int(outside.sum()):,} rows ({hours:,.2f} h)"
                yield f"{count} are {word} than the {limit:g} s that training takes"
    if found.num_unknown_length:
        yield f"{found.num_unknown_length:,} rows do not state their length: it is found when they are decoded"
    if found.num_excluded:
        yield f"{found.num_excluded:,} rows are left out by the rules of the set"
    if found.num_problems:
        yield f"{found.num_problems:,} rows cannot be used, such as {_short(found.problems[0], 200)}"


def _texts(found: Inspection, vocabulary: str) -> Iterator[str]:
    yield f"{found.num_distinct_texts:,} different texts, {found.num_empty:,} empty ones"
    if len(found.characters_per_second):
        rate = np.percentile(found.characters_per_second, (1, 50, 99))
        yield f"characters a second: median {rate[1]:.1f}, 98% between {rate[0]:.1f} and {rate[2]:.1f}"
    letters: Counter[str] = Counter()
    for character, count in found.characters.items():
        letters[character.lower()] += count
    unknown = {c: n for c, n in letters.items() if c not in vocabulary and c.isalnum()}
    yield "characters: " + " ".join(f"{_visible(c)}" for c, _ in letters.most_common(60))
    if unknown:
        share = sum(unknown.values()) / max(1, sum(n for c, n in letters.items() if c.isalnum()))
        yield f"not in ctc.vocabulary: {' '.join(list(unknown)[:30])} ({share:.2%} of letters and digits)"
    if found.tags:
        yield "markup: " + ", ".join(f"{_short(tag)} {count:,}" for tag, count in found.tags.most_common(8))
    yield f"{found.num_tidied:,} transcripts are changed by data.clean_text"
    for before, after in found.tidied[:3]:
        yield f"   before: {_short(before)}"
        yield f"   after:  {_short(after)}"
    for text, count in found.repeated_texts[:5]:
        yield f"{count:,} times: {_short(text)}"


def _sound(found: Inspection) -> Iterator[str]:
    if len(found.levels_db):
        low, median, high = np.percentile(found.levels_db, (5, 50, 95))
        yield f"level: median {median:.0f} dB, 90% between {low:.0f} and {high:.0f} dB of full scale"


def _suspicions(found: Inspection) -> Iterator[str]:
    if not found.num_suspects:
        yield "nothing suspicious"
    for kind, meaning in SUSPECTS.items():
        if found.num_suspects[kind]:
            yield f"{found.num_suspects[kind]:,} {kind} ({meaning})"
            shown = [suspect for suspect in found.suspects if suspect.kind == kind][:3]
            yield from (
                f"   {_short(each.id)}: {_short(each.detail)}: {_short(each.text, 60)}" for each in shown
            )


def _visible(character: str) -> str:
    if character == " ":
        return "space"
    return character if character.isprintable() else f"U+{ord(character):04X}"


def _short(text: str, width: int = 100) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= width else plain[: width - 3] + "..."


def draw_inspection(found: Inspection, target: Any) -> None:
    """Four pictures: lengths, speaking rates, levels and speech against text; written to `target`, a path or file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    title = f"{_short(found.name)}: {found.num_rows:,} rows, {found.hours:,.1f} hours"
    figure.suptitle(title, parse_math=False)  # a name may hold dollar signs
    panels: list[tuple[str, str, str, np.ndarray, Callable[[Any], None] | None]] = [
        ("Length", "seconds", "rows", found.seconds[~np.isnan(found.seconds)], None),
        ("Speaking rate", "characters a second", "rows", found.characters_per_second, _mark_rates),
        ("Level", "dB of full scale", "rows listened to", found.levels_db, None),
    ]
    axes = figure.subplots(2, 2).ravel()
    for place, (title, unit, what, values, mark) in zip(axes, panels, strict=False):
        place.set(title=title, xlabel=unit, ylabel=what)
        if not len(values):
            place.text(0.5, 0.5, "not known", ha="center", va="center", transform=place.transAxes)
            continue
        top = float(np.percentile(values, 99.8))
        place.hist(np.minimum(values, top), bins=60, color="tab:blue")
        if mark is not None:
            mark(place)
    letters = Counter({_visible(c): n for c, n in found.characters.items()}).most_common(40)
    axes[3].bar([letter for letter, _ in letters], [count for _, count in letters], color="tab:blue")
    axes[3].set(
        title="Characters, the 40 most frequent", ylabel="times", yscale="log" if letters else "linear"
    )
    axes[3].tick_params(axis="x", labelsize=7)
    figure.savefig(target, dpi=110)


def _mark_rates(place: Any) -> None:
    for limit in (SLOWEST_CHARACTERS_PER_SECOND, FASTEST_CHARACTERS_PER_SECOND):
        place.axvline(limit, color="tab:red", linestyle="--", linewidth=1)
