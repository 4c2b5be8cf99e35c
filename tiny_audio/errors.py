"""The one error that users meet: a clear line instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: a wrong key, a missing file, a full disk.

    The message is one line that says what was found, what is allowed and what to do. The command line
    prints it as ``error: <message>`` and exits with code 2.
    """


def nearest(name: str, names: Iterable[str]) -> str:
    """The hint `` Did you mean "x"?`` for the entry of `names` closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line: its kind where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
