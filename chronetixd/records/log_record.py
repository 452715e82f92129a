"""One line that a worker printed or logged, as clients and files see it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chronetix.protocol.messages import LogLevel

Stream = Literal["stdout", "stderr", "log", "daemon"]

MAX_LINE = 16 * 1024
"""Bytes of a line that are kept."""

LINES_A_SECOND, LINES_AT_ONCE = 2_000, 10_000
"""Lines of one stream that are kept, on the long run and of a burst; what is more is left out and counted."""


class LogRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of one worker; with ``stream`` daemon one that the daemon says about it."""

    unix_ns: int
    flow: str
    node: str
    stream: Stream
    level: LogLevel
    """What is printed to stdout is ``info``, and to stderr ``warning``."""
    line: str
    fields: dict[str, Any] = {}
