"""Events of flows, workers and the daemon: a bounded ring of numbered events that clients can read and follow."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import structlog

from chronetix.protocol.events import CATALOGUE
from chronetixd.records.feed import Feed

EVENT_CAPACITY = 4096
"""How many events are kept: those of some hundred runs of a ten-node flow."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event. ``kind`` is an entry of the catalogue (:mod:`chronetix.protocol.events`)."""

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
        """Record an event of ``kind`` with the present time. ``data`` must be encodable as CBOR. Raises LookupError for
        a kind that the catalogue does not have."""
        known = CATALOGUE.get(kind)
        if known is None:
            raise LookupError(f"no event {kind!r} in protocol/events.json")
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
        where = {key: value for key, value in (("flow", flow), ("node", node), ("message", message)) if value}
        getattr(self._log, known.level)(kind, **where, **data)
