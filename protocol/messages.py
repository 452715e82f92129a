"""Every message that crosses a Unix socket, as one frozen struct each.

On the wire a message is a CBOR map whose key ``type`` names the struct (see PROTOCOL.md). Rules:

* Fields may be added, never removed or given another meaning; a reader ignores keys it does not know.
* A message whose struct has ``descriptors`` is followed, in order, by that many SCM_RIGHTS descriptors.
* Times are integers: ``*_ns`` on CLOCK_MONOTONIC unless the name says ``unix``.
* Nothing here reads a clock, opens a descriptor or knows a socket.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""An integer that is never negative and fits a signed 64-bit: counts, indices, ids, process ids, times in ns."""

Priority = Annotated[int, msgspec.Meta(ge=0, le=7)]
"""0 lowest … 7 highest, 4 normal."""

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
"""How severe a record is."""

LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
"""The least severe first."""

PROTOCOL_VERSIONS = (1,)
"""Versions of this protocol that this code speaks, best first."""

MAX_FRAME = 16 * 1024 * 1024
"""Largest frame in bytes, length prefix not counted: bounds what a peer can make us allocate."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What every message has in common: nothing but its tag."""


# -- both ways, first on every connection ------------------------------------------------------------------


class Hello(Message, tag="hello", frozen=True):
    """First message of whoever connects: which versions it speaks and as what it comes."""

    protocol: list[Count]
    role: Literal["client", "worker"]
    software: str = ""
    features: list[str] = []
    pid: Count = 0


class Welcome(Message, tag="welcome", frozen=True):
    """The daemon's answer to a hello it accepts; a refusal is a :class:`Failure` and the end."""

    protocol: Count
    daemon: str
    features: list[str] = []
    max_frame: Count = MAX_FRAME


class Failure(Message, tag="error", frozen=True):
    """Something was refused or went wrong; ``code`` and ``name`` are of the error catalogue.

    With ``id`` it ends that call; without, it concerns the connection.
    """

    code: Count
    name: str
    message: str
    hint: str = ""
    id: Count | None = None
    details: dict[str, Any] = {}


# -- clients -----------------------------------------------------------------------------------------------


class Call(Message, tag="call", frozen=True):
    """A client asks for ``verb``; ends with exactly one :class:`Result` or :class:`Failure` of the same id.

    ``descriptors``: how many travel with it; only for verbs that ask for some.
    """

    id: Count
    verb: str
    args: dict[str, Any] = {}
    descriptors: Count = 0


class Item(Message, tag="item", frozen=True):
    """One element of a streaming answer (logs, events), before the call's end. ``descriptors``: how many travel with
    it."""

    id: Count
    value: Any
    descriptors: Count = 0


class Result(Message, tag="result", frozen=True):
    """The call's end, with its value."""

    id: Count
    value: Any = None


class Cancel(Message, tag="cancel", frozen=True):
    """The client no longer wants the call; it still ends with a Result or Failure."""

    id: Count


# -- workers: wiring ---------------------------------------------------------------------------------------


class Port(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One end of one stage of a data route, as a worker needs to know it. ``route`` is unique within the flow.

    A stage is a route's time with one RING; ``epoch`` counts the rings. ``limit_ns`` (policy block): how long the
    producer waits for a credit before it gives the route up, 0 for ever. ``resume``: the highest input_seq that
    predecessors of the producer committed to this route; what a successor sends up to it may be a duplicate. ``qos``:
    the class in which the consumer serves it. ``tap_of`` (outputs added to a running node, policy latest): it listens,
    and gets what is sent to that route.
    """

    route: str
    peer: str
    topic: str = ""
    content_type: str = "application/json"
    schema_ver: str = "v1"
    credits: Count = 64
    watermark: Count = 48
    credit_low: Count = 32
    policy: Literal["block", "drop_newest", "latest"] = "block"
    epoch: Count = 0
    base_seq: Count = 0
    limit_ns: Count = 0
    resume: Count = 0
    qos: Literal["best-effort", "normal", "high", "realtime"] = "normal"
    tap_of: str = ""


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


class Extend(Message, tag="extend", frozen=True):
    """Daemon to worker, any time after its ready: further routes, or next stages of routes that it has.

    A higher epoch of an input that is there means that the producer of the stage before has done with it and that the
    stage ends at sequence number ``base_seq`` of this one. Answered by one :class:`Offer` for exactly these ports.

    Outputs that are no taps, and ``leave``, take effect between two frames, all at once: a higher epoch of an output
    that is there takes its place, and begins where that one ends; outputs in ``leave`` are closed. Frames for what is
    not linked yet wait. Only for workers with the feature ``handover``.
    """

    inputs: list[Port] = []
    outputs: list[Port] = []
    leave: list[str] = []


class Offer(Message, tag="offer", frozen=True):
    """Worker to daemon, once after configure and once after each extend: the memory it made. Descriptors:
    one RING for each of ``rings`` (its output routes), one CREDIT for each of ``credits`` (its input routes, in
    the order of the ports), one ARENA segment for each index of ``segments`` (those not offered before).
    """

    rings: list[str] = []
    credits: list[str] = []
    segments: list[Count] = []

    @property
    def descriptors(self) -> int:
        """How many descriptors travel with this message."""
        return len(self.rings) + len(self.credits) + len(self.segments)


class InputLink(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stage of an input route ready to be mapped. With ``predecessor`` an end before this one died within the
    stage: its CREDIT comes along, to be read.
    """

    route: str
    segments: list[Count]
    epoch: Count = 0
    predecessor: bool = False


class Link(Message, tag="link", frozen=True):
    """Daemon to worker: the other ends. Descriptors: for each of ``outputs`` the consumer's CREDIT and the
    producer's end of a line to it; then for each of ``inputs`` the producer's RING, the consumer's end of a line to it,
    its segments and, with ``predecessor``, the CREDIT of the end before. Nobody else has that end of the line.

    The first one is answered by :class:`Ready`. It comes again after an extend, and for an output whose consumer has a
    successor; then :class:`Linked` is the answer. ``epochs``, if given, says which stage of each output is meant;
    without, the present one.
    """

    outputs: list[str] = []
    inputs: list[InputLink] = []
    epochs: list[Count] = []

    @property
    def descriptors(self) -> int:
        """How many descriptors travel with this message."""
        return 2 * len(self.outputs) + sum(2 + len(link.segments) + link.predecessor for link in self.inputs)


class Linked(Message, tag="linked", frozen=True):
    """Worker to daemon: everything of a later link is mapped; ``routes`` are those that it named, outputs first."""

    routes: list[str] = []


class Drained(Message, tag="drained", frozen=True):
    """Worker to daemon: this stage of an input, with which its producer has done, is empty, returned and unmapped.

    Daemon to a producer that lives: so it is; what it has of that stage can be given up.
    """

    route: str
    epoch: Count


class Conclude(Message, tag="conclude", frozen=True):
    """Daemon to consumer: input ``route`` ends for good at sequence number ``seq``. When all before it is taken and
    returned the stage is :class:`Drained`, and the route forgotten. Only for workers with the feature ``handover``.
    """

    route: str
    seq: Count


class Segment(Message, tag="segment", frozen=True):
    """An arena grew by segment ``index``. Descriptors: that segment.

    Worker to daemon with ``route`` empty; daemon to each consumer once for each route it shares with that producer,
    with the ``epoch`` of the stage.
    """

    index: Count
    route: str = ""
    epoch: Count = 0
    descriptors = 1


class SegmentMapped(Message, tag="segment-mapped", frozen=True):
    """Consumer to daemon: it can follow descriptors into ``index`` of the stage ``epoch`` of ``route``.

    Daemon to producer (``route`` empty) when every consumer can: from now on the producer may use the segment.
    """

    index: Count
    route: str = ""
    epoch: Count = 0


class SegmentDropped(Message, tag="segment-dropped", frozen=True):
    """A segment of an arena was given back; what was in it has come back from every consumer.

    Worker to daemon with ``route`` empty; daemon to each consumer that maps it, once for each route, with the ``epoch``
    of the stage; consumer to daemon when it has unmapped it; daemon to producer (``route`` empty) when all have: from
    now on the index may be used for another segment.
    """

    index: Count
    route: str = ""
    epoch: Count = 0


# -- workers: the daemon's return --------------------------------------------------------------------------


class Stage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stage of a route that a worker has an end of. ``linked``: it maps the other end. ``segments`` (inputs): those
    of the producer that it maps; ``resume``: as its :class:`Port` said."""

    route: str
    epoch: Count = 0
    linked: bool = True
    segments: list[Count] = []
    resume: Count = 0


class Reattach(Message, tag="reattach", frozen=True):
    """Worker to daemon, second on a new connection: it has outlived the daemon that it had, and this is how far it is
    and all its memory. Descriptors: one RING for each of ``outputs``, one CREDIT for each of ``inputs``, one ARENA
    segment for each index of ``segments``; with ``pipes`` reading ends of its stdout and stderr.

    ``unconfirmed`` are those of ``segments`` that it may not use yet, ``dropped`` others that it has given back and
    whose numbers it may not use again yet. Answered by :class:`Reattached`, or a :class:`Failure`, after which the
    worker ends. Once taken back it says what it has subscribed to at run time, and ``finished`` (again) if it has.
    """

    flow: str
    node: str
    token: str
    state: Literal["starting", "started", "draining"]
    incarnation: Count = 0
    outputs: list[Stage] = []
    inputs: list[Stage] = []
    segments: list[Count] = []
    unconfirmed: list[Count] = []
    dropped: list[Count] = []
    pipes: bool = False

    @property
    def descriptors(self) -> int:
        """How many descriptors travel with this message."""
        return len(self.outputs) + len(self.inputs) + len(self.segments) + 2 * self.pipes


class Reattached(Message, tag="reattached", frozen=True):
    """Daemon to worker: it is its node's worker again; the connection goes on as the one before. Descriptors: its
    stdout and stderr from now on: writing ends of the ``pipes`` that it has shown, or of new ones.
    """

    descriptors = 2


# -- workers: life -----------------------------------------------------------------------------------------


class Ready(Message, tag="ready", frozen=True):
    """Worker to daemon: plugin loaded, every route linked. After a configure with ``standby``: plugin constructed."""


class Start(Message, tag="start", frozen=True):
    """Daemon to worker: call ``on_start`` and begin. Sinks get it first, sources last.

    ``handover``: what the worker that left its place to this one has finished with.
    """

    handover: Any = None


class Started(Message, tag="started", frozen=True):
    """Worker to daemon: ``on_start`` is done."""


class Detach(Message, tag="detach", frozen=True):
    """Daemon to producer: the consumer of ``route`` is gone for good. Sends to it fail, also one that waits."""

    route: str


class GaveUp(Message, tag="gave-up", frozen=True):
    """Worker to daemon: ``route`` (policy block with a limit) had no credit for ``waited_ns`` while a frame waited for
    it. It is closed; what goes to the worker's other outputs from now on is counted as lost to this one.
    """

    route: str
    waited_ns: Count


class Retract(Message, tag="retract", frozen=True):
    """Daemon to producer: send nothing more on output ``route`` and close it; the node runs on with the others."""

    route: str


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


# -- the event bus -----------------------------------------------------------------------------------------


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Head of every bus message. ``deadline_ns`` is absolute Unix time, 0 for none; ``priority`` 0 … 7, 4 normal.

    Bus messages carry it as the map that arrived, so that unknown keys travel on; this struct is its checked reading.
    """

    topic: str
    src: str = ""
    dst: str = ""
    corr_id: str = ""
    deadline_ns: Count = 0
    priority: Priority = 4
    content_type: str = "application/json"
    schema_ver: str = "v1"
    headers: dict[str, str] = {}
    trace: str = ""
    ext: dict[str, Any] = {}


class Publish(Message, tag="publish", frozen=True):
    """Worker or client to daemon: to everyone who subscribed to the envelope's topic."""

    envelope: dict[str, Any]
    payload: bytes


class Deliver(Message, tag="deliver", frozen=True):
    """Daemon to subscriber: a published message. With ``envelope.corr_id`` it is a request that wants a
    :class:`Reply`.
    """

    envelope: dict[str, Any]
    payload: bytes


class Subscribe(Message, tag="subscribe", frozen=True):
    """Worker to daemon: wants ``topic`` (exact) from now on."""

    topic: str


class Unsubscribe(Message, tag="unsubscribe", frozen=True):
    """Worker to daemon: no longer wants ``topic``."""

    topic: str


class Request(Message, tag="request", frozen=True):
    """Worker to daemon: one subscriber of the topic is to answer. ``envelope.corr_id`` is the asker's own.

    Ends exactly once: :class:`Reply` or :class:`RequestFailed`.
    """

    envelope: dict[str, Any]
    payload: bytes
    timeout_ns: Count = 5_000_000_000


class Reply(Message, tag="reply", frozen=True):
    """Answer to a delivered request, and its forwarding to the asker."""

    corr_id: str
    payload: bytes
    content_type: str = "application/json"


class RequestFailed(Message, tag="request-failed", frozen=True):
    """Daemon to asker: the request ended without a reply; ``reason`` is one of the three ends."""

    corr_id: str
    reason: Literal["timeout", "no-subscriber", "peer-gone"]
    message: str


class Tick(Message, tag="tick", frozen=True):
    """Daemon to worker: timer ``id`` was due at ``due_ns``; ``missed`` ticks before it were not delivered."""

    id: str
    sequence: Count
    due_ns: Count
    missed: Count = 0


# -- the launcher ------------------------------------------------------------------------------------------


class Spawn(Message, tag="spawn", frozen=True):
    """Daemon to launcher: start one worker. Descriptors: its control socket, its stdout, its stderr and, with
    ``cgroup``, the folder of the control group that it is born in.

    With empty ``argv`` a warm fork that runs a Python worker; else that program is executed. A ``spare`` one says hello
    and then waits for :class:`Assign`. ``data_limit``: bytes of private memory that it may add to what it is born with
    (RLIMIT_DATA), 0 for no limit.
    """

    id: Count
    name: str
    argv: list[str] = []
    env: dict[str, str] = {}
    cwd: str = ""
    spare: bool = False
    cgroup: bool = False
    data_limit: Count = 0

    @property
    def descriptors(self) -> int:
        """How many descriptors travel with this message."""
        return 3 + self.cgroup


class Spawned(Message, tag="spawned", frozen=True):
    """Launcher to daemon: worker ``id`` lives, as the daemon's own child. Descriptors: its pidfd."""

    id: Count
    pid: Count
    descriptors = 1


class SpawnFailed(Message, tag="spawn-failed", frozen=True):
    """Launcher to daemon: worker ``id`` was not started."""

    id: Count
    errno: Count
    message: str


class LauncherReady(Message, tag="launcher-ready", frozen=True):
    """Launcher to daemon, first: everything is imported, forks are cheap now."""

    pid: Count


HANDOVER = "handover"
"""The feature in the hello of a worker that may stand by, and leave its place to another one."""

REATTACH = "reattach"
"""The feature in the hello of a worker that comes back: a :class:`Reattach` is next."""

ClientMessage = Hello | Call | Cancel
"""What a client may send."""

ConnectingMessage = ClientMessage | Reattach
"""What may come on the control socket, before it is known who has connected."""

WorkerMessage = (
    Hello
    | Reattach
    | Offer
    | Linked
    | Drained
    | GaveUp
    | Segment
    | SegmentMapped
    | SegmentDropped
    | Ready
    | Started
    | Finished
    | Fault
    | FrameFailed
    | Pong
    | Log
    | Publish
    | Subscribe
    | Unsubscribe
    | Request
    | Reply
)
"""What a worker may send."""

ToClient = Welcome | Failure | Item | Result
"""What the daemon sends to clients."""

ToWorker = (
    Welcome
    | Failure
    | Assign
    | Configure
    | Reattached
    | Extend
    | Link
    | Drained
    | Conclude
    | Segment
    | SegmentMapped
    | SegmentDropped
    | Start
    | Detach
    | Retract
    | Drain
    | Leave
    | Ping
    | Deliver
    | Reply
    | RequestFailed
    | Tick
)
"""What the daemon sends to workers."""

LauncherMessage = LauncherReady | Spawned | SpawnFailed
"""What the launcher sends."""

ToLauncher = Spawn
"""What the daemon sends to the launcher: this one alone."""
