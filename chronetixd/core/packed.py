"""The state machines as plain data: what one image of the daemon hands over to the next. No machine reads its own state
from anywhere else.

Fields may be added with a default, never removed or given another meaning, unless the format's version goes up
(``chronetixd.upgrade.snapshot``).
"""

from __future__ import annotations

from typing import Any

import msgspec

from chronetixd.core.flow_messages import Deadline, Failure, FlowState, Limits, StopRequested
from chronetixd.core.restart import Death
from chronetixd.core.worker import Exit, Faulted, WorkerState

Key = tuple[str, str]
"""A worker: its flow and its node."""


class PackedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's machine. ``result`` is CBOR."""

    state: WorkerState
    history: list[str]
    incarnation: int = 0
    pid: int = 0
    exit: Exit | None = None
    fault: Faulted | None = None
    finished: bool = False
    result: bytes


class PackedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes that come back together."""

    nodes: tuple[str, ...]
    after_ns: int


class PackedFlow(msgspec.Struct, frozen=True, kw_only=True):
    """A flow's machine. ``parked`` are the exits of nodes that are to be restarted once the flow runs."""

    state: FlowState
    history: list[str]
    limits: Limits
    workers: dict[str, PackedWorker] = {}
    failure: Failure | None = None
    killed: list[str] = []
    deadline: Deadline | None = None
    stop: StopRequested | None = None
    deaths: dict[str, list[Death]] = {}
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
    """Subscriptions in their order, open requests, whose turn it is. Times are CLOCK_MONOTONIC. A topic is packed by
    its name: the flows of its peers tell whose it is."""

    topics: list[tuple[str, list[Key]]]
    requests: list[PackedRequest]
    deadlines: list[tuple[int, str]]
    serial: int
    turns: dict[str, int] = {}
    """Of an image whose flows shared all topics; says nothing any more."""
    late_replies: int
    turns_of: list[tuple[str, str, int]] = []
    """Flow (empty for a shared topic), name, and how many requests have been handed out."""


class PackedTimer(msgspec.Struct, frozen=True, kw_only=True):
    """A timer of the bus."""

    owner: Key
    id: str
    start_ns: int
    interval_ns: int
    delivered: int
    withheld: int


class PackedTimers(msgspec.Struct, frozen=True, kw_only=True):
    """Those that live, the next due first."""

    timers: list[PackedTimer]
    missed: int


class PackedWatch(msgspec.Struct, frozen=True, kw_only=True):
    """Which kept frames were warned of already, by route."""

    warned: dict[str, int] = {}


class PackedCounters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the past stages of a route have counted."""

    past: dict[str, int]
    drops: dict[str, int]
    greatest: dict[str, int]
    returned: int
    last: dict[str, Any] | None = None
