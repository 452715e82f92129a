"""One line that a worker printed or logged, as it is sent to clients and written to files."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chronetix.protocol.messages import LogLevel

Stream = Literal["stdout", "stderr", "log", "daemon"]

MAX_LINE = 16 * 1024
"""How many bytes of a line are kept."""

CUT = f" … [cut: {MAX_LINE} bytes of a line are kept]"
"""Stands at the end of a line that was longer."""

LINES_A_SECOND, LINES_AT_ONCE = 2_000, 10_000
"""How many lines of one stream are kept, in the long run and of a burst; further lines are dropped and counted."""


class LogRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of one worker; with ``stream`` ``daemon`` a line of the daemon about this worker."""

    unix_ns: int
    flow: str
    node: str
    stream: Stream
    level: LogLevel
    """The level of the line: ``info`` for a line of stdout, ``warning`` for a line of stderr."""
    line: str
    fields: dict[str, Any] = {}
