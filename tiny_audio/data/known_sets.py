"""Public sets of speech by name: where they lie, their columns, and which rows hold no speech to score.

The table is known_sets.yaml, with the source of every fact.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.data.source import Source
from tiny_audio.errors import UserError, nearest

logger = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("known_sets.yaml")
ALL_SAMPLES = "all"


@dataclass(frozen=True)
class TextRules:
    """What a set's transcripts hold besides words. Picklable, since sources travel to worker processes."""

    replace: Mapping[str, str]
    leave_out: frozenset[str]
    leave_out_holding: tuple[str, ...]
    leave_out_wordless: bool

    def clean(self, text: str) -> str:
        """The transcript with the tags of the set replaced."""
        for piece, replacement in self.replace.items():
            text = text.replace(piece, replacement)
        return text

    def reason_to_leave_out(self, text: str) -> str | None:
        """Why a row with this transcript is not speech to be scored or learnt from, or None where it is."""
        if " ".join(text.lower().replace("_", " ").split()) in self.leave_out:
            return f"says {text.strip()!r} instead of words"
        for piece in self.leave_out_holding:
            if piece in text.lower():
                return f"has {piece} for words that nobody wrote down: {text.strip()[:60]!r}"
        if self.leave_out_wordless:
            from tiny_audio.evaluate.normalize import english

            if not english(text):
                return f"has no words after the English normaliser: {text.strip()[:60]!r}"
        return None


@dataclass(frozen=True)
class KnownSet:
    """An entry of the table; the fields are described there."""

    name: str
    repository: str
    config: str
    columns: Mapping[str, str | None]
    splits: Mapping[str, str]
    test_split: str
    hours: Mapping[str, float]
    licence: str
    terms: str | None
    rows: int | None
    scored_rows: int | None
    leaderboard_samples: int | str
    configs: Sequence[str] = ()
    more: str | None = None
    shared_splits: Sequence[str] = ()
    replace: Mapping[str, str] | None = None
    leave_out: Sequence[str] = ()
    leave_out_holding: Sequence[str] = ()
    leave_out_wordless: bool = False

    @property
    def text_rules(self) -> TextRules:
        """The rules for its transcripts."""
        return TextRules(
            dict(self.replace or {}),
            frozenset(self.leave_out),
            tuple(self.leave_out_holding),
            self.leave_out_wordless,
        )


@dataclass(frozen=True)
class SetSplit:
    """A split of a known set."""

    entry: KnownSet
    config: str
    split: str

    @property
    def name(self) -> str:
        """The one SOURCE that names this data: without a config where all configs have the same split."""
        is_plain = self.config == self.entry.config or self.split in self.entry.shared_splits
        return f"{self.entry.name}{'' if is_plain else '/' + self.config}:{self.split}"

    @property
    def hub_name(self) -> str:
        """The same as ``hub:NAME/CONFIG:SPLIT``."""
        return f"hub:{self.entry.repository}/{self.config}:{self.entry.splits[self.split]}"


@functools.cache
def known_sets() -> dict[str, KnownSet]:
    """All sets of the table by name."""
    return {name: KnownSet(name=name, **entry) for name, entry in _table()["sets"].items()}


def groups() -> dict[str, list[str]]:
    """Names that stand for several sets, in the order in which those are evaluated."""
    return dict(_table()["groups"])


def find_set(spec: str, default_split: str | None = None) -> SetSplit | None:
    """The set that ``NAME[/CONFIG][:SPLIT]`` names, in any spelling of case, ``-`` and ``_``; None: no such name.

    Args:
        spec: as the user wrote it. The ``hub:`` form of a known set is found too. What an entry does not have may be in
            the one that its `more` names.
        default_split: what a name without a split means; None: the test split.

    Raises:
        UserError: the set is known, but not that config or split of it.
    """
    if spec.startswith("hub:"):
        return _find_hub_name(spec)
    match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:/([A-Za-z0-9_.-]+))?(?::([A-Za-z0-9_.-]+))?", spec)
    entry = match and {_folded(name): known for name, known in known_sets().items()}.get(_folded(match[1]))
    if not match or entry is None:
        return None
    split = match[3] or default_split or entry.test_split
    if entry.more is not None and (match[2] or split not in entry.splits):
        entry = known_sets()[entry.more]
    config = match[2] or entry.config
    for kind, value, known in (
        ("config", config, [*entry.configs] or [entry.config]),
        ("split", split, [*entry.splits]),
    ):
        if value not in known:
            raise UserError(
                f"{spec}: {entry.name} has no {kind} {value!r}.{nearest(value, known)} It has {', '.join(known)}"
            )
    return SetSplit(entry, config, split)


def expand_sets(name: str) -> list[str]:
    """The SOURCEs that `name` stands for: those of a group in order, or `name` alone."""
    by_folded_name = {_folded(group): members for group, members in groups().items()}
    if name.startswith(("hub:", "corpus:")) or Path(name).expanduser().exists():
        return [name]
    return list(by_folded_name.get(_folded(name), [name]))


def open_known_set(wanted: SetSplit, label: str | None = None) -> Source:
    """Open a split of a known set from the hub, or from a copy under ``$TINY_AUDIO_MODELS``.

    What its rules leave out stands in `excluded` of the source and is said once, as a count. `label` is what
    reports call it, if not ``NAME:SPLIT``.

    Raises:
        UserError: it cannot be reached, or asks for a login.
    """
    from tiny_audio.data.hub import local_copy, open_hub_source

    try:
        source = open_hub_source(
            wanted.hub_name, label or wanted.name, wanted.entry.columns, wanted.entry.text_rules
        )
    except UserError as error:
        if wanted.entry.terms is None or local_copy(wanted.entry.repository) is not None:
            raise
        raise UserError(
            f"{error} (the terms of {wanted.entry.name} have to be agreed to first: {wanted.entry.terms})"
        ) from error
    if source.excluded:
        num_rows = len(source.utterances()) + len(source.problems) + len(source.excluded)
        logger.warning(
            "%s: %d of %d rows are left out, as the set's own rules say; the first: %s",
            source.name,
            len(source.excluded),
            num_rows,
            source.excluded[0],
        )
    return source


def is_set_name(name: str) -> bool:
    """Whether a file or folder of this name hides a set."""
    return _folded(name) in map(_folded, known_sets())


def names_to_suggest() -> list[str]:
    """Every name that a user may have meant."""
    return [*known_sets(), *groups()]


def _find_hub_name(spec: str) -> SetSplit | None:
    from tiny_audio.data.hub import parse_hub_name

    repository, config, split = parse_hub_name(spec)
    for entry in known_sets().values():
        split_names = {hub: ours for ours, hub in entry.splits.items()}
        configs = [*entry.configs] or [entry.config]
        if entry.repository == repository and (config or entry.config) in configs and split in split_names:
            return SetSplit(entry, config or entry.config, split_names[split])
    return None


def _folded(name: str) -> str:
    return re.sub(r"[-_.]", "", name).lower()


@functools.cache
def _table() -> dict[str, Any]:
    from omegaconf import OmegaConf

    table = OmegaConf.to_container(OmegaConf.load(TABLE))
    assert isinstance(table, dict)
    return {str(key): value for key, value in table.items()}
