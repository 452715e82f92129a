"""The state machines as plain data: what one image of the daemon hands over to the next. Each machine packs and unpacks
itself.

Fields may be added with a default. They are never removed and never get another meaning, unless the format's version is
raised (``chronetixd.upgrade.snapshot``).
"""

from __future__ import annotations

from typing import Any

import msgspec

from chronetixd.core.flow_messages import Deadline, FlowFailure, FlowState, Limits, StopRequested
from chronetixd.core.restart import CountedExit
from chronetixd.core.worker import Exit, Faulted, WorkerState

Key = tuple[str, str]
"""Names a worker: its flow and its node."""


class PackedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """The state machine of a worker. ``result`` is CBOR."""

    state: WorkerState
    history: list[str]
    incarnation: int = 0
    pid: int = 0
    exit: Exit | None = None
    fault: Faulted | None = None
    finished: bool = False
    result: bytes


class PackedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes that are restarted together."""

    nodes: tuple[str, ...]
    after_ns: int


class PackedFlow(msgspec.Struct, frozen=True, kw_only=True):
    """The state machine of a flow. ``parked`` are the exits of nodes that are to be restarted once the flow runs."""

    state: FlowState
    history: list[str]
    limits: Limits
    workers: dict[str, PackedWorker] = {}
    failure: FlowFailure | None = None
    killed: list[str] = []
    deadline: Deadline | None = None
    stop: StopRequested | None = None
    deaths: dict[str, list[CountedExit]] = {}
    groups: list[PackedGroup] = []
    parked: list[tuple[str, Exit]] = []


class PackedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request on the bus that has not ended. ``key`` is the id that its responder knows."""

    key: str
    asker: Key
    corr_id: str
    responder: Key
    topic: str
    timeout_ns: int


class PackedRouter(msgspec.Struct, frozen=True, kw_only=True):
    """Subscriptions in their order, open requests, and the next responder of each topic. Times are CLOCK_MONOTONIC, in
    ns. A topic is packed by its name: the flow of a peer completes the name."""

    topics: list[tuple[str, list[Key]]]
    requests: list[PackedRequest]
    deadlines: list[tuple[int, str]]
    serial: int
    turns: dict[str, int] = {}
    """Packed by images in which all flows shared all topics; not read any more."""
    late_replies: int
    turns_of: list[tuple[str, str, int]] = []
    """Flow (empty for a shared topic), name, and the number of requests that were delivered."""


class PackedTimer(msgspec.Struct, frozen=True, kw_only=True):
    """A timer of the bus."""

    owner: Key
    id: str
    start_ns: int
    interval_ns: int
    delivered: int
    withheld: int


class PackedTimers(msgspec.Struct, frozen=True, kw_only=True):
    """The live timers, the next due first."""

    timers: list[PackedTimer]
    missed: int


class PackedWatch(msgspec.Struct, frozen=True, kw_only=True):
    """The held frames that were warned of already, by route."""

    warned: dict[str, int] = {}


class PackedCounters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the past stages of a route have counted."""

    past: dict[str, int]
    drops: dict[str, int]
    greatest: dict[str, int]
    returned: int
    last: dict[str, Any] | None = None
