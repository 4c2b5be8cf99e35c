"""What a check of the set-up finds, and what all findings come to. Standard library alone: all else may be broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

HUB_WORDS = "models and data from the hub"


class Level(StrEnum):
    """What a finding means, from good to bad."""

    OK = "ok"
    OPTIONAL = "optional"  # something that not everybody needs is not there
    NANO_ONLY = "nano only"  # the recipe that needs nothing works; the larger ones do not
    FAILED = "FAILED"


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Args:
        subject: what was looked at.
        found: what was seen, in a few words.
        remedy: what to type or do; None where nothing is to be done.
        without: what does not work for want of this, as a noun for "ready, without ..."; None leaves it out.
    """

    subject: str
    level: Level
    found: str
    remedy: str | None = None
    without: str | None = None


def is_ready(findings: Sequence[Finding]) -> bool:
    return all(finding.level != Level.FAILED for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """One sentence that says whether to go on."""
    failed = [finding.subject for finding in findings if finding.level == Level.FAILED]
    if failed:
        return f"NOT READY: {', '.join(failed)}. Mend what is listed above from the top, then run this again."
    missing = list(dict.fromkeys(finding.without for finding in findings if finding.without))
    without = f", without: {', '.join(missing)}" if missing else ""
    if any(finding.level == Level.NANO_ONLY for finding in findings):
        return f"READY FOR THE NANO RECIPE ONLY{without}. You can start the course: tiny-audio train"
    if missing:
        return f"READY{without}. You can start the course: tiny-audio train"
    return "READY. All checks passed! You can start the course: tiny-audio train"
