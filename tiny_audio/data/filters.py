"""Which rows are trained on, by what their source states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiny_audio.data.utterance import Utterance

CHARACTERS_ALLOWED_AT_LEAST = 20  # a clip of a tenth of a second may be one word


@dataclass(frozen=True)
class Filters:
    """Limits of length, text and language.

    `max_characters_per_second` and `languages` are None where there is no such limit. Rows that state no language
    pass.
    """

    min_seconds: float
    max_seconds: float
    max_characters_per_second: float | None = None
    languages: Sequence[str] | None = None

    def reason_to_leave_out(self, utterance: Utterance, seconds: float, cleaned: str) -> str | None:
        """Why a row with the text `cleaned` is not trained on, or None."""
        if seconds > self.max_seconds:
            return f"longer than data.max_seconds={self.max_seconds:g}"
        if seconds < self.min_seconds:
            return f"shorter than data.min_seconds={self.min_seconds:g}"
        most, languages, language = self.max_characters_per_second, self.languages, utterance.language
        if most is not None and len(cleaned) > most * seconds + CHARACTERS_ALLOWED_AT_LEAST:
            return f"more text than data.max_characters_per_second={most:g} allows"
        if languages is not None and language is not None and base(language) not in map(base, languages):
            return f"not in data.languages=[{', '.join(languages)}]"
        # An empty transcript says that there is no speech; one that clean-up emptied says that nobody wrote
        # it down.
        if utterance.text.strip() and not cleaned:
            return "nothing but markup in the transcript"
        return None


def base(language: object) -> str:
    """`en` for `en-GB`, `en_US` and `EN`."""
    return str(language).strip().lower().replace("_", "-").partition("-")[0]
