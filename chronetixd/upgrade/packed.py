"""The daemon's shell as plain data: what one image hands over to the next beside the machines (``core.packed``).

A field named ``fd`` or so is a descriptor's number. Fields may be added with a default, never removed or given another
meaning, unless the format's version goes up (``snapshot``). Times are CLOCK_MONOTONIC, which an exec does not change.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chronetixd.core.death import Death
from chronetixd.core.packed import PackedCounters, PackedFlow, PackedRouter, PackedTimers, PackedWatch
from chronetixd.failures import FrameFailures
from chronetixd.journal import StoredFlow, StoredLife, StoredRevision
from chronetixd.keys import Key
from protocol.messages import Port


class Packed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is here is known: an older image must not pass over what a newer one meant."""


# -- shared memory -----------------------------------------------------------------------------------------


class PackedMemory(Packed, frozen=True):
    """A worker's arena. Stages are named by their place in :class:`PackedWiring`."""

    segments: dict[int, int] = {}
    unmapped: dict[int, list[int]] = {}
    undropped: dict[int, list[int]] = {}
    stages: int = 0
    incarnation: int = 0
    shown_so: list[int] = []
    dead: bool = False


class PackedStage(Packed, frozen=True):
    """A route's time with one RING. Memories are named by their place in :class:`PackedWiring`."""

    route: str
    epoch: int
    base_seq: int
    resume: int
    ring: int | None = None
    producer: int | None = None
    credit: int | None = None
    consumer: int | None = None
    consumer_incarnation: int | None = None
    """None in what an older release has packed: that of ``consumer``."""
    predecessor: int | None = None
    predecessor_incarnation: int = 0
    told_producer: bool = False
    relink: bool = False
    told_consumer: bool = False
    by_link: list[int] = []
    sent: list[int] = []
    dropping: list[int] = []
    ended: bool = False
    port: Port | None = None
    passed: int = 0
    returned: int = 0
    line: dict[Literal["producer", "consumer"], int] = {}
    """What is still to be given of it."""
    lines: int = 0


class PackedPlace(Packed, frozen=True):
    """A node. ``due`` and ``answers`` are pairs of stages: whose RINGs, whose CREDITs."""

    memory: int | None = None
    incarnation: int = 0
    configured: bool = False
    linked: bool = False
    ready: bool = False
    started: bool = False
    gone: bool = False
    due: list[tuple[list[int], list[int]]] = []
    later: list[int] = []
    answers: list[tuple[list[int], list[int]]] = []
    relinking: list[int] = []
    asked_relink: bool = False
    came_back: bool = False
    source: bool | None = None
    sent: int = 0


class PackedWiring(Packed, frozen=True):
    """The shared memory of one flow. ``last`` are the counters of routes that are over."""

    memories: list[PackedMemory]
    stages: list[PackedStage]
    chains: dict[str, list[int]]
    places: dict[str, PackedPlace]
    counters: dict[str, PackedCounters]
    ports: list[tuple[str, str, Port]] = []
    last: dict[str, dict[str, Any] | None] = {}


# -- processes ---------------------------------------------------------------------------------------------


class PackedConnection(Packed, frozen=True):
    """A control socket: what was read of a frame that has not ended, with descriptors that came along, and what waits
    to be sent, with those that go along."""

    fd: int
    reading: bool
    unwritable: bool = False
    unread: bytes = b""
    arrived: list[int] = []
    unsent: list[tuple[bytes, list[int]]] = []


class PackedOutput(Packed, frozen=True):
    """A pipe that a worker prints into; ``fd`` is None once nobody prints there. ``pieces`` are what was read of it and
    not looked at: bytes, numbers of bytes that were thrown away, None for its end."""

    fd: int | None
    lines_left: tuple[float, int]
    part: bytes = b""
    dropping: bool = False
    bytes_left: tuple[float, int] | None = None
    lost_bytes: int = 0
    lost_lines: int = 0
    told_ns: int = 0
    gap: bool = False
    rest: bytes = b""
    pieces: list[bytes | int | None] = []
    tail: list[str] = []


class PackedMarks(Packed, frozen=True):
    """How what a worker started is recognised."""

    pid: int
    started: int
    pipes: list[int]
    memory: list[int]
    doomed: list[tuple[int, int]] = []


class PackedProcess(Packed, frozen=True):
    """A worker's process. Without ``pidfd`` it has none: it has ended, or, with ``asked``, is not born yet."""

    pid: int = 0
    asked: bool = False
    incarnation: int = 0
    started_unix_ns: int = 0
    born_ns: int = 0
    features: tuple[str, ...] = ()
    fault: dict[str, Any] | None = None
    progress: dict[str, int] | None = None
    pidfd: int | None = None
    leaf: str | None = None
    marks: PackedMarks | None = None
    oom_before: int | None = None
    killed_with: str = ""
    unlogged: tuple[int, int] = (0, 0)
    connection: PackedConnection | None = None
    stdout: PackedOutput | None = None
    stderr: PackedOutput | None = None


class PackedStrays(Packed, frozen=True):
    """Children that are nobody's. Keys are pid and start."""

    inherited: list[int]
    killed: list[tuple[int, int]]
    out_of_reach: list[tuple[int, int]]
    ended: int
    reaped: int


class PackedServer(Packed, frozen=True):
    """The control socket. ``inode`` is 0 for one that the supervisor made."""

    fd: int
    path: str
    inode: int


class PackedGroups(Packed, frozen=True):
    """Where control groups are made; or why none are."""

    group: str | None
    reason: str


# -- what has happened -------------------------------------------------------------------------------------


class PackedFeed(Packed, frozen=True):
    """Records, the oldest first, each packed by itself, with what it takes."""

    records: list[bytes]
    sizes: list[int]
    appended: int


class PackedLogs(Packed, frozen=True):
    """The workers' lines. ``run`` and ``unwritten``: see LogFiles; ``waiting`` are lines that no file has yet."""

    feed: PackedFeed
    cut_lines: int
    dropped_bytes: int
    run: int
    unwritten: int
    waiting: list[tuple[tuple[str, str], bytes]]


class PackedAudit(Packed, frozen=True):
    """The audit log beside its file. ``owed`` are records that could not be written."""

    feed: PackedFeed
    calls: int
    lost: int
    owed: int
    failing: bool


# -- flows -------------------------------------------------------------------------------------------------


class PackedRevival(Packed, frozen=True):
    """Why a node was last restarted, when it is next, and when its timer is due."""

    last_reason: str = ""
    next_restart_unix_ns: int = 0
    due_ns: int | None = None


class PackedRun(Packed, frozen=True):
    """A flow. ``deadline_ns``: when the armed deadline is due. ``silent``: nodes that have closed their control socket
    and live on."""

    machine: PackedFlow
    wiring: PackedWiring
    workers: dict[str, PackedProcess]
    submitted_unix_ns: int
    changed_unix_ns: int
    reason: str
    failures: dict[str, FrameFailures]
    deadline_ns: int | None
    last_deaths: dict[str, Death]
    revivals: dict[str, PackedRevival]
    silent: list[str]
    on_bus: bool
    lives: list[StoredLife]
    warned: PackedWatch
    taps: int
    kept: list[Key] = []
    """What the supervisor keeps of it."""


class PackedListed(Packed, frozen=True):
    """A flow as the journal has it, and as it is."""

    stored: StoredFlow
    run: PackedRun
    revisions: list[StoredRevision] = []


class PackedFlows(Packed, frozen=True):
    """All that are listed, in their order."""

    flows: list[PackedListed]
    serial: int


class PackedBus(Packed, frozen=True):
    """The event bus. ``slow`` are workers that do not read what they get."""

    router: PackedRouter
    timers: PackedTimers
    dropped: int
    slow: list[tuple[str, str]]


class Upgraded(Packed, frozen=True):
    """An upgrade as its result is told. ``failed``: why the version ``after`` did not come up, if it did not."""

    id: str
    before: str
    after: str = ""
    pause_ns: int = 0
    flows: int = 0
    workers: int = 0
    failed: str = ""
