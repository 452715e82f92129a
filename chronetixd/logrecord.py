"""One line that a worker printed or logged, as clients and files see it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from protocol.messages import LogLevel

Stream = Literal["stdout", "stderr", "log", "daemon"]


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
