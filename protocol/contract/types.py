"""The contract's types, read and with defaults filled in. Plain frozen data; ``raw`` is always the original map.

Fields have the contract's own names, except that ``Manifest.node`` and ``Route.id``, ``source`` and ``target`` are
resolved. An optional number that was not given is None. Bounds and enums of fields are in this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

ORIGINS: Final = ("internal", "external")
CATEGORIES: Final = ("Business", "System", "Resource")
ARTIFACT_KINDS: Final = ("WasmComponent", "Dylib", "Process", "Python")
ATTACH: Final = "attach://"
URI_SCHEMES: Final = ("file", "builtin", "python", "attach")
QOS_CLASSES: Final = ("best-effort", "normal", "high", "realtime")
MISS_POLICIES: Final = ("skip", "catch_up", "coalesce")
ALIGNMENTS: Final = ("second", "minute", "hour", "day")
DELIVERIES: Final = ("at_most_once", "at_least_once")
CODECS: Final = ("json", "cbor")
PLANES: Final = ("control", "data")
POLICIES: Final = ("block", "drop_newest", "latest")
RESTARTS: Final = ("permanent", "transient", "temporary")
STRATEGIES: Final = ("one_for_one", "rest_for_one", "one_for_all")
ON_DAEMON_LOSS: Final = ("stop", "survive")
CONTENT_TYPES: Final = (
    "application/json",
    "application/cbor",
    "application/arrow-ipc",
    "application/octet-stream",
    "application/x-npy",
)
CONTENT_TYPE_ALIASES: Final = {"application/arrow+ipc": "application/arrow-ipc"}

MAX_NS: Final = (1 << 63) - 1
MAX_PRIORITY: Final = 7
MAX_WRITTEN_PRIORITY: Final = 255
"""Larger priorities are problems; those above MAX_PRIORITY count as that."""
MAX_BUFFER: Final = 1 << 16
"""The largest number of credits of one route. Its ring takes 144 bytes of shared memory for each credit, used or
not."""
DEFAULT_BUFFER: Final = 64
MIN_ARENA: Final = 1 << 18
DEFAULT_ARENA: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong (or, as a warning, odd) with the flow.

    ``path``: the field, as ``manifests[0].qos.priority``, empty for the flow itself. ``suggestion``: what to do, may
    be empty.
    """

    path: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return where + self.message + (f" ({self.suggestion})" if self.suggestion else "")


@dataclass(frozen=True, slots=True)
class Artifact:
    """The artifact that runs a node."""

    kind: Literal["WasmComponent", "Dylib", "Process", "Python"]
    """What kind of program it is. Python plugins, programs that speak the protocol (Process), shared libraries with a
    table of callbacks (Dylib) and builtins can be run; WasmComponent is refused at submit."""
    uri: str
    """Where it is: `python://module:object` or `python://file.py:object`, `file://path/to/program`,
    `builtin://chronetix/…`, or a bare path. Relative paths start from the folder of the flow file. With `attach://name`
    (kind Process or Python) the daemon starts nothing: a worker that starts by itself attaches under that name."""

    args: tuple[str, ...] = ()
    """Arguments of the program (kind Process). With `attach://name` the whole command line, for display."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the program, as the node's `env`; each variable at one of both places."""
    cwd: str = ""
    """Folder in which the program runs, as the node's `cwd`, at one of both places."""

    python_env: str = ""
    """Folder of the environment (venv, virtualenv, uv, conda) in whose Python the node runs (kind Python), relative to
    the flow's folder: other packages, or another Python from 3.11 on. Chronetix has to be installed there. Without it
    the node is forked from the daemon's own Python, which starts faster."""

    @property
    def attach(self) -> str:
        """The name by which the node's worker attaches; empty for a node whose worker the daemon starts."""
        return self.uri.removeprefix(ATTACH) if self.uri.startswith(ATTACH) else ""


@dataclass(frozen=True, slots=True)
class PortType:
    """The type of the frames of one input or output. The compile step compares the two ends of a route."""

    content_type: str
    """Content type of the frames. Has no effect after the compile step: a route's own `content_type` counts."""
    schema_ver: str
    """Version of the schema. Has no effect after the compile step."""
    schema_ref: str = ""
    """Where the schema is described. Has no effect yet: there is no registry of schemas."""


@dataclass(frozen=True, slots=True)
class Io:
    """Inputs and outputs of a node."""

    inputs: tuple[PortType, ...] = ()
    """Types of the frames that the node takes. The compile step refuses a flow in which a declared input gets
    nothing."""
    outputs: tuple[PortType, ...] = ()
    """Types of the frames that the node sends. A route that names no content type takes its producer's, if the
    producer declares exactly one."""
    batch_hints: Mapping[str, Any] = field(default_factory=dict)
    """How large the batches of `on_batch` should be."""


@dataclass(frozen=True, slots=True)
class BatchHints:
    """The known entries of ``Io.batch_hints``, which is passed on as given."""

    preferred_rows: int | None = None
    """Most frames of one batch; 256 if it is not given."""
    preferred_bytes: int | None = None
    """Most bytes of one batch. Has no effect yet."""


@dataclass(frozen=True, slots=True)
class Qos:
    """The quality of service of a node's frames."""

    deadline_ns: int | None = None
    """Budget of each frame in ns: a frame is due that long after it was sent, or when the frame that it was made from
    is due, if that is earlier. Consumers take frames that are due earlier first."""
    priority: int | None = None
    """Importance of the node; 7 is the highest, and what a larger one counts as. Handed to the plugin as
    `ctx.qos["priority"]`; has no other effect yet."""
    qos: Literal["best-effort", "normal", "high", "realtime"] = "normal"
    """Class of the node's frames. A consumer with several inputs takes frames of a higher class first. A route of a
    best-effort node drops frames that find no credit, unless the route says otherwise."""
    retry: int | None = None
    """How often a frame over which `on_frame` raised is given to the plugin again before it is set aside. Without it
    the node fails."""
    max_inflight: int | None = None
    """How many callbacks of an asynchronous plugin work on frames at the same time; 1 if it is not given. Has no
    effect on other plugins."""
    credit_high: int | None = None
    """Has no effect yet: the `watermark` of a route is the high mark."""
    credit_low: int | None = None
    """Frames under way at which a producer that waited for credit goes on; half of the route's `buffer` if it is not
    given, and always less than the `buffer`."""
    raw: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restart:
    """Whether a node's worker is started again after it ended. The name of a policy may stand for the whole map."""

    policy: Literal["permanent", "transient", "temporary"] = "temporary"
    """After which ends the worker is started again: after every end that is not its stream's (permanent), after
    failures (transient), never (temporary)."""
    max: int = 5
    """Most restarts within `window_ms`; the next failure fails the flow."""
    window_ms: int = 60_000
    """Length of the window in ms in which restarts are counted."""
    backoff_ms: int = 100
    """Pause in ms before the second restart of a window. The first one comes at once, and each further pause is twice
    as long as the one before."""
    backoff_max_ms: int = 10_000
    """Longest pause in ms, not less than `backoff_ms`."""
    jitter_pct: int = 20
    """How many percent of a pause are left out at most, by chance."""


@dataclass(frozen=True, slots=True)
class Liveness:
    """A probe of the plugin's thread. It fails when one callback has taken longer than ``limit_ms``, or when the worker
    does not answer for that long."""

    limit_ms: int
    """How long one callback may take, in ms."""
    period_ms: int
    """Time in ms from one probe to the next; half of `limit_ms` if it is not given."""
    delay_ms: int = 0
    """Time in ms from the start to the first probe."""
    failures: int = 1
    """After how many failed probes in a row the worker is killed."""


@dataclass(frozen=True, slots=True)
class ResourceClaims:
    """Limits of a node."""

    cpu_millis: int | None = None
    """Claimed processor time in thousandths of a processor: the node's share when processors are scarce. Takes a
    control group."""
    memory_bytes: int | None = None
    """Most memory of the worker and its children in bytes, beside the arena. The kernel kills a worker that takes
    more."""
    arena_bytes: int = DEFAULT_ARENA
    """Most bytes of shared memory for the frames that the node sends."""
    hugepages: bool = False
    """Whether the shared memory is made of pages of 2 MiB, where the machine has them."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a timer is due: exactly one of ``interval_ms``, ``rate_hz`` and ``cron`` is given."""

    interval_ms: float | None = None
    """Time in ms from one tick to the next."""
    rate_hz: float | None = None
    """Ticks per second."""
    cron: str | None = None
    """A cron expression. Refused at submit: only intervals are supported yet."""
    start_at: str | int | None = None
    """Time of the first tick, as text or in ns since 1970. Has no effect yet."""
    align_to: Literal["second", "minute", "hour", "day"] | None = None
    """Unit of time on whose beginning ticks fall. Has no effect yet."""
    jitter_pct: float = 0
    """How many percent of an interval ticks may be off, by chance. Has no effect yet."""

    @property
    def interval_ns(self) -> int | None:
        """Nanoseconds between ticks, at least 1; None for a cron schedule."""
        if self.interval_ms is not None:
            return max(1, round(self.interval_ms * 1_000_000))
        return max(1, round(1_000_000_000 / self.rate_hz)) if self.rate_hz is not None else None


@dataclass(frozen=True, slots=True)
class Timer:
    """A timer of a node."""

    id: str
    """Name of the timer, unique in the node; `tick.id` in the plugin."""
    schedule: Schedule
    """When the timer is due."""
    miss_policy: Literal["skip", "catch_up", "coalesce"] = "coalesce"
    """What happens to ticks that the node missed. Has no effect yet: missed ticks are always counted in the next one
    (coalesce)."""
    deadline_ns: int | None = None
    """Time in ns after which a tick is late. Has no effect yet."""
    priority: int | None = None
    """Importance of a tick, as of the node. Has no effect yet."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription of a node on the event bus."""

    pattern: str
    """The topic, in full. Wildcards (`*`) are refused at submit."""
    delivery: Literal["at_most_once", "at_least_once"] = "at_most_once"
    """What the bus promises. `at_least_once` is refused at submit: the bus delivers at most once."""
    codec: Literal["json", "cbor"] = "json"
    """Encoding of the messages. Has no effect yet: a message says itself what it is."""
    filter: Any = None
    """Which messages are delivered. Has no effect yet: all are."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication of a node on the event bus."""

    topic: str
    """The topic: `ctx.publish(None, …)` publishes on it."""
    codec: Literal["json", "cbor"] = "json"
    """Encoding of the messages. Has no effect yet: `ctx.publish(…, content_type=…)` says it, JSON otherwise."""
    default_envelope: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the envelope of each message (`priority`, `deadline`). Has no effect yet."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One node. The free maps are handed to the plugin as they are."""

    node: str
    """Name of the node in the flow, unique. Without it a route names the node by its `plugin_id`."""
    plugin_id: str
    """Name of the plugin. Shown by `describe`."""
    version: str
    """Version of the plugin. Handed to the worker; has no other effect yet."""
    origin: Literal["internal", "external"]
    """Whether the plugin ships with Chronetix. Has no effect yet."""
    category: Literal["Business", "System", "Resource"]
    """What the plugin is for. Has no effect after the compile step."""
    role: str
    """What the node does: Source, Transform, SourceTransform, Sink, Timer, EnvProvider, or any other text. Shown by
    `describe`; finds the node of a timer's or a resource's route in a flow without node ids."""
    artifact: Artifact
    """What runs the node."""
    io: Io
    """What the node takes and sends."""
    qos: Qos
    """Quality of service of the node's frames. The whole map is `ctx.qos`."""
    restart: Restart
    """Whether the node is started again after it ended: the name of a policy, or a map."""
    liveness: Liveness | None
    """How the daemon finds out that the plugin hangs. A node without it is not probed."""
    resource_claims: ResourceClaims
    """What the node may use."""
    timers: tuple[Timer, ...]
    """Timers whose ticks the node gets."""
    bus_subscriptions: tuple[Subscription, ...]
    """Topics whose messages the node gets, beside those of its control routes."""
    bus_publications: tuple[Publication, ...]
    """Topics that the node publishes on, beside those of its control routes."""
    params: Mapping[str, Any]
    """Parameters of the plugin: `ctx.params`."""
    features: Mapping[str, Any]
    """Features of the plugin: `ctx.features`. Chronetix itself does not read them."""
    annotations: Mapping[str, Any]
    """Remarks for other programs: `ctx.annotations`. Chronetix itself does not read them."""
    env: Mapping[str, str]
    """Environment variables that are set for the node's process, as text; at most 64 KiB together."""
    cwd: str
    """Folder in which the node's process runs, relative to the flow's folder; empty for the flow's folder itself."""
    user: str
    """User as whom the node's process runs, a name or a number; empty for the daemon's own user. Takes a daemon of
    root, and the right to admin unless it is the user who submits. Not with `on_daemon_loss: survive`."""
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Route:
    """One route. ``source`` and ``target`` are nodes of the flow.

    ``id`` is the route's port, else its two ends, made unique in the flow. ``watermark`` is at most ``buffer``.
    """

    id: str
    source: str
    """Node that sends."""
    target: str
    """Node that gets what is sent."""
    plane: Literal["control", "data"]
    """Frames through shared memory (data), or messages of the event bus (control)."""
    topic: str
    """Topic of a control route, required there. A data route may be named by its topic in `ctx.send(…, to=…)`."""
    port: str
    """Name of a data route; its two ends if it is empty (`FROM-TO`)."""
    content_type: str
    """What the frames are. Each content type takes certain Python values. Has no effect on control routes."""
    schema_ver: str
    """Version of the frames' schema. Shown to the plugin in `ctx.inputs` and `ctx.outputs`."""
    buffer: int
    """Credits of the route: how many frames may be under way or held by the consumer at once. Has no effect on control
    routes."""
    watermark: int
    """Frames under way from which on the route counts as full (`ctx.high`, and the mark BOTTLENECK of `top`), at most
    `buffer`; three quarters of the `buffer`, but at most 48, if it is not given."""
    policy: Literal["block", "drop_newest", "latest"]
    """What happens to a frame that finds no credit: it waits (block), is dropped (drop_newest), or overwrites the
    oldest (latest). If it is not given, `drop_newest` for a producer of class best-effort, else `block`."""
    limit_ms: float | None
    """How long in ms the producer waits for a credit before it closes the route, with policy `block` only. Without it
    the producer waits for ever."""
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SchemaDescriptor:
    """A schema that the flow names. Has no effect yet: payloads are not compared with schemas."""

    content_type: str
    """Content type that the schema describes."""
    schema_ver: str
    """Version of the schema."""
    schema_ref: str = ""
    """Where the schema is described."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow without problems: both ends of every route exist, and data routes form no cycle."""

    name: str
    """Name of the flow. `submit --name` replaces it; without a name the daemon finds one."""
    manifests: tuple[Manifest, ...]
    """The nodes, at least one."""
    routes: tuple[Route, ...]
    """The routes. Data routes must not form a cycle."""
    schemas: tuple[SchemaDescriptor, ...]
    """Schemas that nodes and routes name."""
    defaults: Mapping[str, Any]
    """`deadline_ns` and `priority` of nodes that declare none; read by the compile step alone."""
    strategy: Literal["one_for_one", "rest_for_one", "one_for_all"]
    """Which nodes are restarted together with a failed one: none, all downstream of it by data routes, all."""
    dead_letter: str
    """Topic on which frames are published that failed in every attempt (`qos.retry`). If it is empty, such frames are
    dropped."""
    on_daemon_loss: Literal["stop", "survive"]
    """What the flow's workers do when the daemon dies: they end, and the next daemon runs the flow from its beginning
    (stop), or they run on and the next daemon adopts them (survive)."""
    raw: Mapping[str, Any]

    @property
    def data_routes(self) -> tuple[Route, ...]:
        """The data routes."""
        return tuple(route for route in self.routes if route.plane == "data")

    def manifest(self, node: str) -> Manifest:
        """Return the node's manifest. Raises LookupError for a node that the flow does not have."""
        for manifest in self.manifests:
            if manifest.node == node:
                return manifest
        raise LookupError(f"no node {node!r} in the flow")


@dataclass(frozen=True, slots=True)
class Validation:
    """The result of reading a flow: the flow, or None and the problems; warnings in both cases."""

    flow: Flow | None
    problems: list[Problem]
    warnings: list[Problem]
