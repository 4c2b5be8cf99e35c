"""Logs as lines of JSON that say what happened and never what was said: no text, no names of files, no keys."""

from __future__ import annotations

import json
import logging
import sys
import time
from traceback import format_tb

LOGGERS = ("tiny_audio", "uvicorn.error", "asyncio", "python_multipart")
SECONDS_BETWEEN = (
    1.0  # of lines of one place in the code of others: out of sockets, each attempt to accept fails
)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON. Of an exception, its kind and where it was: its words could hold content."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["at"] = "".join(format_tb(record.exc_info[2]))
        return json.dumps(line)


class NotAgain(logging.Filter):
    """Lets one place in the code speak once in `SECONDS_BETWEEN`."""

    def __init__(self) -> None:
        super().__init__()
        self._spoke: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        may_speak = record.created - self._spoke.get(place, 0.0) >= SECONDS_BETWEEN
        if may_speak:
            self._spoke[place] = record.created
        return may_speak


def write_logs() -> None:
    """Send the logs of the server to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    for name in ("asyncio", "python_multipart"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).addFilter(NotAgain())
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its start and end are said by us
