"""One line that a worker printed or logged, as clients and files see it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Stream = Literal["stdout", "stderr", "log", "daemon"]


class LogRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of one worker; with ``stream`` daemon one that the daemon says about it."""

    unix_ns: int
    flow: str
    node: str
    stream: Stream
    level: str
    line: str
    fields: dict[str, Any] = {}
