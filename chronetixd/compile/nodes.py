"""One node of the DSL, long or short form → its PluginManifest.

Rules: defaults are those of the contract; unknown fields go into the manifest unchanged; deadline and priority are
filled in later, when the whole graph is known.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from chronetix.protocol.contract.wording import normalised
from chronetixd.compile import catalogue, form
from chronetixd.compile.artifacts import PluginReference, as_timer, read_plugin
from chronetixd.compile.fields import (
    count_of,
    kind_of,
    label_of,
    list_of,
    mapping_of,
    text_of,
    usual_choice_of,
    version_of,
    warn_near_misses,
)
from chronetixd.compile.problems import Findings
from chronetixd.compile.tree import SyntaxNode

LONG_FIELDS = tuple(form.LONG_NODE)
SHORT_FIELDS = tuple(form.SHORT_NODE)
ALSO_KNOWN = tuple(form.ANY_NODE)
QOS_FIELDS = (
    "deadline_ns", "priority", "qos", "retry", "max_inflight", "credit_high", "credit_low"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """One declared input or output."""

    content_type: str
    schema_ver: str
    source: SyntaxNode
    required: bool = True

    @property
    def type(self) -> tuple[str, str]:
        """Content type and schema version, which must agree along a route."""
        return self.content_type, self.schema_ver

    def __str__(self) -> str:
        return f"{self.content_type} {self.schema_ver}"


@dataclass(slots=True)
class Draft:
    """A node whose manifest is not complete yet."""

    id: str
    source: SyntaxNode
    plugin: PluginReference
    category: str
    inputs: list[Shape] = field(default_factory=list)
    outputs: list[Shape] = field(default_factory=list)
    qos: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def hears(self) -> bool:
        """Whether the node has a timer or a subscription, and so gets input without a route."""
        return bool(self.manifest.get("timers") or self.manifest.get("bus_subscriptions"))


def read_node(node: SyntaxNode, short: bool, default_type: str, findings: Findings) -> Draft | None:
    """Return the draft of a node; None, and a problem is noted, if the node has no id."""
    node_id = label_of(node, "id", findings, "node")
    if node_id is None:
        if node.get("id") is None:
            findings.problem(node.place, "InvalidField", "node without id", "give it one: id: my-node")
        return None
    owner = f"node {node_id}"
    known = SHORT_FIELDS + LONG_FIELDS if short else LONG_FIELDS
    warn_near_misses(node, known + ALSO_KNOWN, findings, owner)
    plugin = read_plugin(node, owner, findings)
    effect = "the node is treated as one of Business"
    category = usual_choice_of(node, "category", catalogue.CATEGORIES, findings, owner, effect) or plugin.category
    if plugin.type == catalogue.TIMER and category == "System":
        plugin = as_timer(plugin, node, owner, findings)
    draft = Draft(node_id, node, plugin, category)
    _fill_manifest(draft, known, default_type, owner, findings)
    return draft


def _fill_manifest(draft: Draft, known: tuple[str, ...], default_type: str, owner: str, findings: Findings) -> None:
    node, plugin = draft.source, draft.plugin
    builtin = catalogue.BUILTINS.get(plugin.uri, catalogue.NOT_DECLARED)
    effect = "it is passed on, and the plugin counts as external"
    origin = usual_choice_of(node, "origin", catalogue.ORIGINS, findings, owner, effect)
    manifest = draft.manifest
    manifest["node_id"] = draft.id
    manifest["plugin_id"] = _plugin_id(draft)
    manifest["version"] = label_of(node, "version", findings, owner) or "0.1.0"
    manifest["category"] = draft.category
    manifest["role"] = ""
    manifest["origin"] = origin or ("internal" if _is_internal(node, plugin) else "external")
    manifest["artifact"] = {"kind": plugin.kind, "uri": plugin.uri, **plugin.extra}
    _fill_io(draft, default_type, owner, findings)
    manifest["role"] = text_of(node, "role", findings, owner) or _role(draft)
    draft.qos = _qos(node, owner, findings)
    _fill_bindings(draft, owner, findings)
    declared: dict[str, dict[str, Any]] = {
        "features": builtin.features,
        "annotations": builtin.annotations,
        "params": {},
    }
    for key, defaults in declared.items():
        given = mapping_of(node, key, findings, owner)
        if defaults or given is not None:
            manifest[key] = {**defaults, **(given.plain() if given else {})}
    claims = mapping_of(node, "resources", findings, owner) if "resources" in known else None
    if claims is not None and node.get("resource_claims") is None:
        manifest["resource_claims"] = claims.plain()
    for key, passed_on in node.fields.items():
        if key not in manifest and key not in known:
            manifest[key] = passed_on.plain()


def _is_internal(node: SyntaxNode, plugin: PluginReference) -> bool:
    features = node.get("features")
    marked = features.get("internal") if features is not None else None
    return plugin.uri.startswith("builtin:") or (marked is not None and marked.value is True)


def _plugin_id(draft: Draft) -> str:
    if draft.plugin.id:
        return draft.plugin.id
    if draft.plugin.type == catalogue.TIMER and draft.category == "System":
        return draft.plugin.type
    if draft.category == "Resource" and draft.plugin.uri:
        return f"resource-{draft.plugin.last_part}"
    return draft.id


def _role(draft: Draft) -> str:
    platform = catalogue.PLATFORM.get(draft.plugin.type)
    if platform is not None:
        return platform.role
    if draft.category == "Resource":
        return "EnvProvider"
    if draft.plugin.role:
        return draft.plugin.role
    if draft.inputs and draft.outputs:
        return "SourceTransform"
    if draft.inputs:
        return "Sink"
    return "Source" if draft.outputs else ""


def _fill_io(draft: Draft, default_type: str, owner: str, findings: Findings) -> None:
    io = mapping_of(draft.source, "io", findings, owner)
    if io is None:
        return
    warn_near_misses(io, form.IO, findings, f"{owner}: io")
    written: dict[str, Any] = {}
    for key, shapes in (("inputs", draft.inputs), ("outputs", draft.outputs)):
        written[key] = []
        for port in list_of(io, key, findings, f"{owner}: io"):
            content_type = text_of(port, "content_type", findings, f"{owner}: io.{key}") or default_type
            version = version_of(port, "schema_ver", findings, f"{owner}: io.{key}") or "v1"
            required = port.get("required")
            shape = Shape(normalised(content_type), version, port, required is None or required.value is not False)
            shapes.append(shape)
            written[key].append(_port(draft, key, shape))
    for key, value in io.fields.items():
        if key not in written:
            written[key] = value.plain()
    draft.manifest["io"] = written


def _port(draft: Draft, key: str, shape: Shape) -> dict[str, Any]:
    port = {**shape.source.plain(), "content_type": shape.content_type, "schema_ver": shape.schema_ver}
    if key == "outputs" and draft.category == "Resource" and draft.plugin.uri.startswith("builtin:"):
        reference = f"registry://schemas/resource/{draft.plugin.last_part}@{shape.schema_ver}"
        port.setdefault("schema_ref", reference)
    return port


def _qos(node: SyntaxNode, owner: str, findings: Findings) -> dict[str, Any]:
    given = node.get("qos")
    qos: dict[str, Any] = {}
    if given is not None and isinstance(given.value, str):
        qos["qos"] = given.value
    elif given is not None and isinstance(given.value, dict):
        warn_near_misses(given, QOS_FIELDS, findings, f"{owner}: qos")
        qos.update((key, value.plain()) for key, value in given.value.items() if value.value is not None)
        _check_counts(given, f"{owner}: qos", findings)
    elif given is not None:
        message = f"{owner}: qos must be a mapping or the name of a class, it is {kind_of(given)}"
        findings.problem(given.place, "InvalidField", message)
    for key in ("deadline_ns", "priority"):
        value = count_of(node, key, findings, owner)
        if value is not None:
            qos.setdefault(key, value)
    return qos


def _check_counts(qos: SyntaxNode, owner: str, findings: Findings) -> None:
    for key in ("deadline_ns", "priority"):
        count_of(qos, key, findings, owner)


def _fill_bindings(draft: Draft, owner: str, findings: Findings) -> None:
    node, manifest = draft.source, draft.manifest
    bindings = mapping_of(node, "bindings", findings, owner)
    subscriptions: list[SyntaxNode] = []
    if bindings is not None:
        where = f"{owner}: bindings"
        warn_near_misses(bindings, form.BINDINGS, findings, where)
        timers = [timer.plain() for timer in list_of(bindings, "timer", findings, where)]
        if timers:
            manifest["timers"] = timers
        unused = _unknown(bindings, form.BINDINGS)
        bound_bus = mapping_of(bindings, "bus", findings, where)
        if bound_bus is not None:
            warn_near_misses(bound_bus, form.BOUND_BUS, findings, f"{where}.bus")
            subscriptions += list_of(bound_bus, "subscriptions", findings, f"{where}.bus")
            publications = list_of(bound_bus, "publications", findings, f"{where}.bus")
            if publications:
                manifest["bus_publications"] = [{"codec": "json", **entry.plain()} for entry in publications]
            if unused_of_bus := _unknown(bound_bus, form.BOUND_BUS):
                unused["bus"] = unused_of_bus
        if unused:
            manifest["bindings"] = unused
    bus = mapping_of(node, "bus", findings, owner)
    if bus is not None:
        subscriptions += list_of(bus, "subscribe", findings, f"{owner}: bus")
        if unused := _unknown(bus, ("subscribe",)):
            manifest["bus"] = unused
    if subscriptions:
        defaults = {"delivery": "at_most_once", "codec": "json"}
        manifest["bus_subscriptions"] = [{**defaults, **entry.plain()} for entry in subscriptions]


def _unknown(node: SyntaxNode, known: Collection[str]) -> dict[str, Any]:
    """Return the fields that are passed on because only other programs know them."""
    return {key: value.plain() for key, value in node.fields.items() if key not in known}
