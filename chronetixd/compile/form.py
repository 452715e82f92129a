"""The fields of a flow file before it is compiled, in both of its forms, with what each of them means.

Rules: this module has only tables; the reference of flow files is made from them. A reader compares unknown fields with
the names here, so a field that is read and not listed is told to be misspelt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from chronetixd.compile.catalogue import ARTIFACT_KINDS, CATEGORIES, CHANNELS, ORIGINS, PLANES, PLATFORM, SHORT_KINDS


class Field(NamedTuple):
    """One field: the values that it takes, its default ("required" if it has none), and what it means."""

    takes: str
    default: str
    meaning: str


Form = Mapping[str, Field]
"""The fields of one mapping by their names."""


def _one_of(names: Mapping[str, object] | tuple[str, ...]) -> str:
    return "one of " + ", ".join(f"`{name}`" for name in names)


_SAME: Final = "as in the compiled form"

FLOW: Final[Form] = {
    "name": Field("text", "", "Name of the flow. `submit --name` replaces it; without a name the daemon finds one."),
    "nodes": Field("list of nodes", "required", "The nodes, in the long or the short form."),
    "routes": Field("list of routes", "none", "The routes between the nodes."),
    "edges": Field(
        "list of edges",
        "none",
        "The same as `routes`, in the short form. The default content type is `application/cbor`, and in a file that "
        "has no `routes` also of what its nodes declare.",
    ),
    "schemas": Field("list of maps", "none", "Schemas, beside those that nodes and routes name."),
    "defaults": Field(
        "map",
        "none",
        "`deadline_ns` and `priority` of the nodes that declare none, also below `qos`.",
    ),
    "strategy": Field(_SAME, "`one_for_one`", "Which nodes are restarted together with a failed one."),
    "dead_letter": Field("text", "none", "Topic on which frames are published that failed in every attempt."),
    "on_daemon_loss": Field(_SAME, "`stop`", "What the flow's workers do when the daemon dies."),
    "manifests": Field("list of maps", "", "Marks a flow that is compiled already: the file is passed on unchanged."),
}

OF_ARTIFACT: Final = ("args", "python_env")
"""Fields of a node's short form, and of ``plugin`` in the long one, that belong to the artifact."""

SHORT_NODE: Final[Form] = {
    "id": Field("text", "required", "Name of the node, unique in the flow. A number is taken for its text."),
    "kind": Field(
        _one_of((*SHORT_KINDS, *PLATFORM)),
        "what the routes tell",
        "What the node does: it becomes the role. A timer without `entry` and the platform nodes are builtins. The "
        "name of an `impl_kind` may stand here instead. Any other text is a role of its own.",
    ),
    "impl_kind": Field(
        _one_of(tuple(kind for kind in ARTIFACT_KINDS if kind != "platform")),
        "what `entry` tells",
        "Kind of the program. It may be left out for `python://…`, `builtin://…`, and files that end in `.wasm` or "
        "`.so`.",
    ),
    "entry": Field(
        "text",
        "required",
        "What runs the node: `python://file.py:object`, `file://path/to/program`, `builtin://…`. Builtins that are "
        "named by `kind` need none.",
    ),
    "args": Field("list of texts", "none", "Arguments of the program, for `impl_kind: process`."),
    "python_env": Field(
        "text",
        "the daemon's own",
        "Folder of the environment (venv, uv, conda …) in whose Python the node runs, for `impl_kind: python`.",
    ),
    "deadline_ns": Field("integer ≥ 0", "inherited", "The same as `qos.deadline_ns`."),
    "priority": Field("integer ≥ 0", "inherited", "The same as `qos.priority`."),
    "resources": Field("map", "none", "The same as `resource_claims`, in flows of older orchestrators."),
}
"""The fields that only the short form of a node has, and its ``id``."""

LONG_NODE: Final[Form] = {
    "id": Field("text", "required", "Name of the node, unique in the flow."),
    "plugin": Field("map", "required", "What runs the node. A node with this field is in the long form."),
    "origin": Field(
        _one_of(ORIGINS),
        "`internal` for builtins and with `features: {internal: true}`, else `external`",
        "Whether the plugin ships with Chronetix.",
    ),
    "category": Field(
        _one_of(CATEGORIES),
        "`System` for platform nodes, `Resource` for `kind: resource`, else `Business`",
        "What the plugin is for.",
    ),
    "role": Field("text", "from `category`, `io` and the routes", "What the node does."),
    "version": Field("text", "`0.1.0`", "Version of the plugin."),
    "io": Field("map", "none", "Types of what the node takes and sends."),
    "bindings": Field("map", "none", "Timers, and topics of the event bus."),
    "bus": Field("map", "none", "`subscribe`: subscriptions, the same as `bindings.bus.subscriptions`."),
    "qos": Field("map, or text", "none", "Quality of service. A text is the class: the same as `qos.qos`."),
    "params": Field("map", "none", "Parameters of the plugin: `ctx.params`."),
}
"""The fields of the long form of a node. The short form may have them too, but for ``plugin``."""

ANY_NODE: Final[Form] = {
    "features": Field("map", "none", "Features of the plugin: `ctx.features`."),
    "annotations": Field("map", "none", "Remarks for other programs: `ctx.annotations`."),
    "resource_claims": Field("map", "none", "What the node may use."),
    "restart": Field("text or map", "`temporary`", "Whether the node is started again after it ended."),
    "liveness": Field("map", "none", "How the daemon finds out that the plugin hangs."),
    "env": Field("map", "none", "Environment variables that are set for the node's process."),
    "cwd": Field("text", "the flow's folder", "Folder in which the node's process runs."),
    "user": Field("text", "the daemon's user", "User as whom the node's process runs."),
    "name": Field("text", "none", "A name for people. Has no effect."),
}
"""The fields of both forms of a node that go into its manifest as they are."""

PLUGIN: Final[Form] = {
    "kind": Field(_one_of(tuple(ARTIFACT_KINDS)), "what `artifact` tells", "Kind of the program."),
    "artifact": Field("text", "required", "What runs the node. Platform nodes need none."),
    "type": Field(_one_of(tuple(PLATFORM)), "none", "Which platform node this is, for `kind: platform`."),
    "id": Field(
        "text",
        "`timer-source` for a timer source of `category: System`; for `category: Resource` `resource-` and the end of "
        "the artifact; else the node's `id`",
        "Name of the plugin: `plugin_id` of the compiled form.",
    ),
    **{name: SHORT_NODE[name] for name in OF_ARTIFACT},
    "env": Field("map", "none", "Environment variables of the program, as the node's own `env`."),
    "cwd": Field("text", "the flow's folder", "Folder in which the program runs, as the node's own `cwd`."),
}

IO: Final[Form] = {
    "inputs": Field("list of maps", "none", "Types of what the node takes: `content_type`, `schema_ver`, `required`."),
    "outputs": Field("list of maps", "none", "Types of what the node sends: `content_type`, `schema_ver`."),
    "batch_hints": Field("map", "none", "How large the batches of `on_batch` should be."),
}

BINDINGS: Final[Form] = {
    "timer": Field("list of timers", "none", "Timers of the node: `timers` of the compiled form."),
    "bus": Field("map", "none", "Topics of the event bus."),
}

BOUND_BUS: Final[Form] = {
    "subscriptions": Field(
        "list of subscriptions",
        "none",
        "Topics whose messages the node gets: `bus_subscriptions` of the compiled form.",
    ),
    "publications": Field("list of publications", "none", "Topics that the node publishes on."),
}

_ENDS: Final[Form] = {
    "from": Field("text", "required", "Id of the node that sends."),
    "to": Field("text", "required", "Id of the node that gets what is sent."),
}

_ANY_ROUTE: Final[Form] = {
    "topic": Field(
        "text",
        "`flow/edge/FROM-TO`; `control/FROM/TO` on the control plane",
        "Topic of the route. A blank of a node's id is `%20` there.",
    ),
    "port": Field("text", "`dataport/FROM-TO`; none on the control plane", "Name of a data route."),
    "content_type": Field(
        "text",
        "the producer's, if it declares one; else `application/json`, of an edge `application/cbor`",
        "What the frames are.",
    ),
    "schema_ver": Field("text", "the producer's, if it declares one; else `v1`", "Version of the frames' schema."),
    "buffer": Field("integer ≥ 1", "64", "Credits of a data route."),
    "watermark": Field(
        "integer, 1 to `buffer`", "three quarters of `buffer`, at most 48", "Frames from which on it is full."
    ),
    "policy": Field(_SAME, "`block`; `drop_newest` for a best-effort producer", "What happens without a credit."),
    "limit_ms": Field(_SAME, "none", "How long in ms a producer with policy `block` waits for a credit."),
}

ROUTE: Final[Form] = {
    **_ENDS,
    "plane": Field(
        _one_of(PLANES),
        "`control` if `topic` begins with `control/` and none of `port`, `buffer` and `watermark` is given; else "
        "`data`",
        "Frames through shared memory (data), or messages of the event bus (control).",
    ),
    **_ANY_ROUTE,
}

EDGE: Final[Form] = {
    **_ENDS,
    "channel": Field(
        _one_of(CHANNELS),
        "`stream`",
        "`stream` and `blob-ref` are data routes, `event-bus` is a control route. Any other text counts as `stream`.",
    ),
    "label": Field(
        "text", "none", "The topic, if it looks like one (`a/b`, `a.b`) and `topic` is not given; else a remark."
    ),
    "topic_or_label": Field("text", "none", "The topic of a control route, else the same as `label`."),
    **_ANY_ROUTE,
}
