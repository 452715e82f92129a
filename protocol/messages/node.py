"""A worker as one node of a flow: its configuration, start and end, faults, probes and log records."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chronetix.protocol.messages.base import Count, LogLevel, WireMessage
from chronetix.protocol.messages.memory import Port


class TimerSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A timer whose ticks the daemon sends to the worker."""

    id: str
    interval_ns: Count


class Assign(WireMessage, tag="assign", frozen=True):
    """Daemon to a spare worker, before welcome: its new process name, environment variables to add, and its folder."""

    name: str
    env: dict[str, str] = {}
    cwd: str = ""


class Configure(WireMessage, tag="configure", frozen=True):
    """Daemon to worker, once, after welcome: the node that the worker runs.

    ``inputs`` names a route once for each of its stages that are not drained, oldest first. ``incarnation`` is how
    often the node was restarted before. With ``on_daemon_loss`` survive the worker goes on when its control connection
    ends, and reattaches at ``socket`` with ``token`` (:class:`Reattach`).
    ``budget_ns``: the worker's frames are due that long after their commit, 0 for no deadline. ``max_inflight``: how
    many frames an asynchronous plugin processes at once. ``end_ns``: how long the end of the worker's process may take
    after the node has finished or failed; then the worker reports what hangs and exits. ``terminate_ns``: the time
    between SIGTERM and SIGKILL. With ``standby`` another worker of the node still runs: load and construct the plugin,
    make no memory, send :class:`Ready`, and wait for a second configure. Only for workers with the feature
    ``handover``.
    """

    flow: str
    node: str
    plugin_id: str
    version: str
    kind: str
    uri: str
    inputs: list[Port] = []
    outputs: list[Port] = []
    timers: list[TimerSpec] = []
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
    end_ns: Count = 5_000_000_000
    terminate_ns: Count = 2_000_000_000


class Ready(WireMessage, tag="ready", frozen=True):
    """Worker to daemon: the plugin is loaded and every route is linked. After a configure with ``standby``: the plugin
    is constructed."""


class Start(WireMessage, tag="start", frozen=True):
    """Daemon to worker: call ``on_start`` and begin. Sinks get this message first, sources last.

    ``handover``: the result of the worker that handed the node over to this one.
    """

    handover: Any = None


class Started(WireMessage, tag="started", frozen=True):
    """Worker to daemon: ``on_start`` has returned."""


class Drain(WireMessage, tag="drain", frozen=True):
    """Daemon to worker: a source stops producing and closes its routes; other nodes end when their inputs have
    ended."""


class Leave(WireMessage, tag="leave", frozen=True):
    """Daemon to worker: its successor is ready. Process the frames that have arrived and none that come later, call
    ``on_stop`` and finish, but close no route: the successor goes on with the routes. Only for workers with the feature
    ``handover``.
    """


class Finished(WireMessage, tag="finished", frozen=True):
    """Worker to daemon: all inputs are consumed, outputs are closed, ``on_stop`` has returned; the worker exits with 0
    next. After a leave: the worker has returned all frames, and its successor takes over its routes.
    """

    result: Any = None


class Fault(WireMessage, tag="fault", frozen=True):
    """Worker to daemon: the plugin raised, or cannot be run; the worker exits with a non-zero code next.
    Of phase ``end``, and then also after finished: the process did not end in time, and ``message`` names what hung."""

    phase: Literal["load", "init", "start", "frame", "tick", "message", "source", "stop", "wiring", "end"]
    error: str
    message: str
    traceback: str = ""


class FrameFailed(WireMessage, tag="frame-failed", frozen=True):
    """Worker to daemon: the plugin raised over a frame of input ``route``, and the worker retried it as the node's qos
    says. The last of ``attempts`` succeeded, or the frame was set aside: published as a dead letter, or dropped.
    """

    route: str
    seq: Count
    attempts: Count
    error: str
    outcome: Literal["passed", "dead-letter", "dropped"]
    message: str = ""


class Ping(WireMessage, tag="ping", frozen=True):
    """Daemon to worker: report what the plugin's thread is doing."""

    id: Count


class Pong(WireMessage, tag="pong", frozen=True):
    """Worker to daemon, from a thread that the plugin cannot block: ``progress`` counts the steps of the
    plugin's thread; ``busy_ns`` is how long the current step has taken, 0 when it waits; ``doing`` names it.
    """

    id: Count
    progress: Count
    busy_ns: Count = 0
    doing: str = ""


class Log(WireMessage, tag="log", frozen=True):
    """Worker to daemon: one structured log record of the plugin."""

    level: LogLevel
    message: str
    unix_ns: Count = 0
    fields: dict[str, Any] = {}
