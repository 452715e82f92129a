"""A worker's life as one node of a flow: which one it is, start, end, faults, and how it is meanwhile."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chronetix.protocol.messages.base import Count, LogLevel, Message
from chronetix.protocol.messages.memory import Port


class Timer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A timer whose ticks the worker will get."""

    id: str
    interval_ns: Count


class Assign(Message, tag="assign", frozen=True):
    """Daemon to a spare worker, before welcome: under which name it goes on, with which variables added and where."""

    name: str
    env: dict[str, str] = {}
    cwd: str = ""


class Configure(Message, tag="configure", frozen=True):
    """Daemon to worker, once, after welcome: which node it is.

    ``inputs`` names a route once for each of its stages that are not drained, oldest first. ``incarnation`` is how
    often the node was restarted before. With ``on_daemon_loss`` survive the worker goes on when its control connection
    ends, and comes back to ``socket`` with ``token`` (:class:`Reattach`).
    ``budget_ns``: its frames are due that long after their commit, 0 for whenever. ``max_inflight``: frames that an
    asynchronous plugin works on at once.
    With ``standby`` another worker of the node runs still: load and construct the plugin, make no memory, say
    :class:`Ready`, and wait for the configure that is meant. Only for workers with the feature ``handover``.
    """

    flow: str
    node: str
    plugin_id: str
    version: str
    kind: str
    uri: str
    inputs: list[Port] = []
    outputs: list[Port] = []
    timers: list[Timer] = []
    subscriptions: list[str] = []
    publications: list[str] = []
    params: dict[str, Any] = {}
    qos: dict[str, Any] = {}
    features: dict[str, Any] = {}
    annotations: dict[str, Any] = {}
    batch_hints: dict[str, Any] = {}
    arena_limit: Count = 1 << 30
    hugepages: bool = False
    base_dir: str = ""
    incarnation: Count = 0
    on_daemon_loss: Literal["stop", "survive"] = "stop"
    socket: str = ""
    token: str = ""
    budget_ns: Count = 0
    max_inflight: Count = 1
    standby: bool = False


class Ready(Message, tag="ready", frozen=True):
    """Worker to daemon: plugin loaded, every route linked. After a configure with ``standby``: plugin constructed."""


class Start(Message, tag="start", frozen=True):
    """Daemon to worker: call ``on_start`` and begin. Sinks get it first, sources last.

    ``handover``: what the worker that left its place to this one has finished with.
    """

    handover: Any = None


class Started(Message, tag="started", frozen=True):
    """Worker to daemon: ``on_start`` is done."""


class Drain(Message, tag="drain", frozen=True):
    """Daemon to worker: a source stops producing and closes its routes; others end when their inputs have."""


class Leave(Message, tag="leave", frozen=True):
    """Daemon to worker: its successor is ready. Work on what is there now and on nothing that comes later, call
    ``on_stop`` and finish, but close no route: the successor goes on with them. Only for workers with the feature
    ``handover``.
    """


class Finished(Message, tag="finished", frozen=True):
    """Worker to daemon: all inputs were consumed, outputs are closed, ``on_stop`` is done; it exits with 0 next. After
    a leave: it has given everything back, and its routes are its successor's.
    """

    result: Any = None


class Fault(Message, tag="fault", frozen=True):
    """Worker to daemon: the plugin raised, or cannot be run; it exits with a non-zero code next."""

    phase: Literal["load", "init", "start", "frame", "tick", "message", "source", "stop", "wiring"]
    error: str
    message: str
    traceback: str = ""


class FrameFailed(Message, tag="frame-failed", frozen=True):
    """Worker to daemon: a frame of input ``route`` made the plugin raise, and was retried as the node's qos says: it
    passed at the last of ``attempts``, or was set aside after them, as a dead letter or dropped.
    """

    route: str
    seq: Count
    attempts: Count
    error: str
    outcome: Literal["passed", "dead-letter", "dropped"]
    message: str = ""


class Ping(Message, tag="ping", frozen=True):
    """Daemon to worker: say where the plugin's thread is."""

    id: Count


class Pong(Message, tag="pong", frozen=True):
    """Worker to daemon, from a thread that the plugin cannot block: ``progress`` counts the steps of the
    plugin's thread; ``busy_ns`` is how long the current step has taken, 0 when it waits; ``doing`` names it.
    """

    id: Count
    progress: Count
    busy_ns: Count = 0
    doing: str = ""


class Log(Message, tag="log", frozen=True):
    """Worker to daemon: one structured log record of the plugin."""

    level: LogLevel
    message: str
    unix_ns: Count = 0
    fields: dict[str, Any] = {}
