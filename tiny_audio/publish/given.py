"""What only the publisher knows about a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tiny_audio.errors import UserError


@dataclass(frozen=True)
class Given:
    """A licence, languages, the price of the machine, the power that it drew, and what its electricity emits.

    Raises UserError for a licence or a language that the hub would not know, and for CO2 without the energy.
    """

    license: str | None = None
    languages: tuple[str, ...] = ()
    usd_per_hour: float | None = None
    watts: float | None = None
    co2_grams_per_kwh: float | None = None

    def __post_init__(self) -> None:
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise UserError(
                f'--license {self.license}: the hub writes licences as in "apache-2.0" or "cc-by-4.0"'
            )
        for code in self.languages:
            if not re.fullmatch(r"[a-z]{2,3}", code):
                raise UserError(f'--language {code}: write an ISO 639 code, such as "en"')
        if self.co2_grams_per_kwh is not None and self.watts is None:
            raise UserError(
                "--co2-grams-per-kwh needs --watts: CO2 is the energy times what a kWh of it emits"
            )
