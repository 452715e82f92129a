"""The names that the compile step knows: artifact kinds, platform nodes, and the manifests of the builtins.

Rules: this module has only tables. A builtin's entry holds the values of its own manifest; a node's fields and the
flow's defaults win over them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ARTIFACT_KINDS: dict[str, str] = {
    "wasm": "WasmComponent",
    "dylib": "Dylib",
    "process": "Process",
    "python": "Python",
    "platform": "WasmComponent",
}
"""The DSL's plugin kinds → the contract's artifact kinds."""

SCHEMES: dict[str, tuple[str, ...]] = {
    "WasmComponent": ("file", "builtin"),
    "Dylib": ("file", "builtin"),
    "Process": ("file", "attach", "builtin"),
    "Python": ("python", "file", "attach", "builtin"),
}
"""The schemes that the uri of each kind of artifact may have."""

CATEGORIES = ("Business", "System", "Resource")
ORIGINS = ("internal", "external")
PLANES = ("control", "data")

SHORT_KINDS: dict[str, str] = {
    "source": "Source",
    "map": "Transform",
    "transform": "Transform",
    "filter": "Transform",
    "sink": "Sink",
    "timer": "Timer",
    "resource": "EnvProvider",
}
"""The role that each ``kind`` of the short form means."""

CHANNELS: dict[str, str] = {"event-bus": "control", "stream": "data", "blob-ref": "data"}
"""The short form's channels → planes. The frames of a ``blob-ref`` are references to blobs."""


@dataclass(frozen=True, slots=True)
class Platform:
    """A node type that ships with Chronetix."""

    uri: str
    role: str


TIMER = "timer-source"

PLATFORM: dict[str, Platform] = {
    TIMER: Platform("builtin://chronetix/system/timer", "Timer"),
    "eventbus-source": Platform("builtin://chronetix/system/eventbus-source", "Source"),
    "eventbus-sink": Platform("builtin://chronetix/system/eventbus-sink", "Sink"),
}


@dataclass(frozen=True, slots=True)
class Builtin:
    """The values that a builtin's own manifest declares."""

    qos: dict[str, int] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, Any] = field(default_factory=dict)


BUILTINS: dict[str, Builtin] = {
    "builtin://chronetix/system/timer": Builtin(qos={"deadline_ns": 1_000_000, "priority": 6}),
    "builtin://chronetix/resource/netinfo": Builtin(
        qos={"deadline_ns": 2_000_000, "priority": 5},
        features={"inproc": True, "ipc": True},
        annotations={"provides": ["ip", "netmask", "gateway", "ports", "media_location"]},
    ),
}

NOT_DECLARED = Builtin()
"""The values for artifacts that are no builtins."""
