"""What happened to flows and workers, as a bounded ring of numbered events that clients can read back and follow."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import structlog

from chronetixd.records.feed import Feed

EVENT_CAPACITY = 4096
"""Events kept: some hundred lives of a ten-node flow."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event. ``kind`` is flow-STATE, worker-STATE, or a name of its own such as ``launcher-restarted``."""

    sequence: int
    unix_ns: int
    kind: str
    flow: str = ""
    node: str = ""
    message: str = ""
    data: dict[str, Any] = {}


class Events:
    """The daemon's events. Each one also goes to the daemon's log."""

    def __init__(self, capacity: int = EVENT_CAPACITY) -> None:
        self.feed: Feed[Event] = Feed(capacity)
        self._log = structlog.get_logger("chronetixd.records.events")

    def emit(self, kind: str, *, flow: str = "", node: str = "", message: str = "", **data: Any) -> None:
        """Note that ``kind`` happened now. ``data`` must be CBOR-able."""
        event = Event(
            sequence=self.feed.appended + 1,
            unix_ns=time.time_ns(),
            kind=kind,
            flow=flow,
            node=node,
            message=message,
            data=data,
        )
        self.feed.append(event)
        bad = kind in ("flow-failed", "worker-failed", "worker-faulted", "launcher-lost")
        log = self._log.warning if bad else self._log.info if kind.startswith("flow-") else self._log.debug
        where = {key: value for key, value in (("flow", flow), ("node", node), ("message", message)) if value}
        log(kind, **where, **data)
