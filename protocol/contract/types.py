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
URI_SCHEMES: Final = ("file", "builtin", "python", "attach")
QOS_CLASSES: Final = ("best-effort", "normal", "high", "realtime")
MISS_POLICIES: Final = ("skip", "catch_up", "coalesce")
ALIGNMENTS: Final = ("second", "minute", "hour")
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
    """The artifact that runs a node. ``uri``: file://, builtin://, python://module:object, attach://name, or a bare
    path."""

    kind: Literal["WasmComponent", "Dylib", "Process", "Python"]
    uri: str


@dataclass(frozen=True, slots=True)
class PortType:
    """The type of the frames of one input or output."""

    content_type: str
    schema_ver: str
    schema_ref: str = ""


@dataclass(frozen=True, slots=True)
class Io:
    """Inputs and outputs of a node; ``batch_hints`` as given, its numbers checked."""

    inputs: tuple[PortType, ...] = ()
    outputs: tuple[PortType, ...] = ()
    batch_hints: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Qos:
    """The quality of service of a node's frames. ``deadline_ns`` is a budget: ns for each frame."""

    deadline_ns: int | None = None
    priority: int | None = None
    qos: Literal["best-effort", "normal", "high", "realtime"] = "normal"
    retry: int | None = None
    max_inflight: int | None = None
    credit_high: int | None = None
    credit_low: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restart:
    """Whether a node's worker is started again after it ended: after every end that is not its stream's (permanent),
    after failures (transient), never (temporary).

    At most ``max`` times within ``window_ms``, then the flow fails. The first restart in a window comes at once, the
    next after ``backoff_ms``, which doubles up to ``backoff_max_ms``; up to ``jitter_pct`` percent of it is left out.
    """

    policy: Literal["permanent", "transient", "temporary"] = "temporary"
    max: int = 5
    window_ms: int = 60_000
    backoff_ms: int = 100
    backoff_max_ms: int = 10_000
    jitter_pct: int = 20


@dataclass(frozen=True, slots=True)
class Liveness:
    """A probe of the plugin's thread: it fails when one callback has taken longer than ``limit_ms``, or when the worker
    does not answer for that long. After ``failures`` in a row, ``period_ms`` apart, the worker is killed.

    The first probe comes ``delay_ms`` after the start.
    """

    limit_ms: int
    period_ms: int
    delay_ms: int = 0
    failures: int = 1


@dataclass(frozen=True, slots=True)
class ResourceClaims:
    """Limits of a node. ``arena_bytes`` limits the shared memory of its outputs, which is made of huge pages with
    ``hugepages``."""

    cpu_millis: int | None = None
    memory_bytes: int | None = None
    arena_bytes: int = DEFAULT_ARENA
    hugepages: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a timer is due: exactly one of ``interval_ms``, ``rate_hz`` and ``cron`` is given."""

    interval_ms: float | None = None
    rate_hz: float | None = None
    cron: str | None = None
    start_at: str | int | None = None
    align_to: Literal["second", "minute", "hour"] | None = None
    jitter_pct: float = 0

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
    schedule: Schedule
    miss_policy: Literal["skip", "catch_up", "coalesce"] = "coalesce"
    deadline_ns: int | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription of a node on the event bus."""

    pattern: str
    delivery: Literal["at_most_once", "at_least_once"] = "at_most_once"
    codec: Literal["json", "cbor"] = "json"
    filter: Any = None


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication of a node on the event bus; ``default_envelope`` as given."""

    topic: str
    codec: Literal["json", "cbor"] = "json"
    default_envelope: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One node. ``node`` is its id in this flow, unique; the free maps are handed to the plugin as they are. ``env``
    and ``cwd`` are variables and the folder of its process, ``user`` whose it is; an empty ``cwd`` is the flow's
    folder, an empty ``user`` the daemon's."""

    node: str
    plugin_id: str
    version: str
    origin: Literal["internal", "external"]
    category: Literal["Business", "System", "Resource"]
    role: str
    artifact: Artifact
    io: Io
    qos: Qos
    restart: Restart
    liveness: Liveness | None
    resource_claims: ResourceClaims
    timers: tuple[Timer, ...]
    bus_subscriptions: tuple[Subscription, ...]
    bus_publications: tuple[Publication, ...]
    params: Mapping[str, Any]
    features: Mapping[str, Any]
    annotations: Mapping[str, Any]
    env: Mapping[str, str]
    cwd: str
    user: str
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Route:
    """One route. ``id`` is unique in the flow; ``source`` and ``target`` are nodes of the flow.

    ``buffer``: credits, in frames; ``watermark``: the high mark, 1 … buffer. ``policy``: what happens to a frame that
    finds no credit; ``limit_ms`` (policy block): how long the producer waits for a credit before it closes the route,
    None for ever.
    """

    id: str
    source: str
    target: str
    plane: Literal["control", "data"]
    topic: str
    port: str
    content_type: str
    schema_ver: str
    buffer: int
    watermark: int
    policy: Literal["block", "drop_newest", "latest"]
    limit_ms: float | None
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SchemaDescriptor:
    """A schema that the flow names; ``schema_ref`` may be empty."""

    content_type: str
    schema_ver: str
    schema_ref: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow without problems: both ends of every route exist, and data routes form no cycle. ``name`` may be empty.

    ``strategy``: which nodes are restarted together with a failed one. ``dead_letter``: the topic for frames over which
    a plugin raised also when they were retried (``qos.retry``); empty if such frames are dropped. ``on_daemon_loss``:
    whether the flow's workers end when the daemon dies, so that the next daemon runs the flow from its beginning, or
    survive and are adopted.
    """

    name: str
    manifests: tuple[Manifest, ...]
    routes: tuple[Route, ...]
    schemas: tuple[SchemaDescriptor, ...]
    defaults: Mapping[str, Any]
    strategy: Literal["one_for_one", "rest_for_one", "one_for_all"]
    dead_letter: str
    on_daemon_loss: Literal["stop", "survive"]
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
