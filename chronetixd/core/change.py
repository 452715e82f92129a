"""The difference between a running flow and the flow that is to replace it. Pure.

A node is replaced when anything that its worker is told differs, or a file of its plugin's code. Its routes alone do
not count: routes are added and removed while the worker runs, as long as the node keeps at least one input if it had
inputs, and one output if it had outputs. A route is switched to a new stage at a frame boundary when its ring would
differ, or when the node at either of its ends is replaced. Everything that is the same in both flows is left untouched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from chronetix.protocol.configure import configure
from chronetix.protocol.contract import Flow, Manifest, Route
from chronetix.protocol.contract.graph import drawn, find_cycle
from chronetix.protocol.messages import Configure

Kind = Literal["added", "removed", "changed"]

ABSENT = "-"
"""Stands in place of a value that one of the two flows does not have."""

Digests = Mapping[str, Mapping[str, str]]
"""By node: the digest of each file of its plugin's code, by the file's path."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that differs: its path below the node or route, and its value in each of the two flows."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """A node or route that was added, removed or changed. ``fields`` lists what differs when both flows have it."""

    name: str
    kind: Kind
    fields: tuple[FieldChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """The change from one flow to another. ``nodes`` and ``routes`` are in the order of the new flow, followed by what
    was removed."""

    nodes: tuple[Difference, ...] = ()
    routes: tuple[Difference, ...] = ()
    notes: tuple[FieldChange, ...] = field(default=())
    """Fields that no worker is told: the new values are kept, and nothing that runs changes."""
    ends: frozenset[str] = frozenset()
    """Nodes at the ends of routes that differ."""

    def __bool__(self) -> bool:
        """Return whether anything that runs has to change."""
        return bool(self.nodes or self.routes)

    def named(self, kind: Kind) -> frozenset[str]:
        """Return the nodes whose difference is of this kind: added, removed or changed."""
        return frozenset(each.name for each in self.nodes if each.kind == kind)


def compare(
    old: Flow,
    new: Flow,
    folders: tuple[str, str] = ("", ""),
    replaced: Collection[str] = (),
    code: tuple[Digests, Digests] = ({}, {}),
) -> Change:
    """Return the change from ``old`` to ``new``. ``folders`` are the folders that their relative paths start from;
    nodes in ``replaced`` count as changed in any case. ``code``: for each flow the digests of its plugins' files; the
    code of a node differs only if it is known in both flows."""
    nodes = tuple(_nodes(old, new, folders, replaced, code))
    routes = tuple(_routes(old, new))
    touched = {each.name for each in nodes}
    notes = [
        FieldChange(f"{manifest.node}.{each.path}", each.old, each.new)
        for manifest in new.manifests
        if manifest.node not in touched and _has(old, manifest.node)
        for each in fields(old.manifest(manifest.node).raw, manifest.raw)
    ]
    differing = {each.name for each in routes}
    ends = {node for flow in (old, new) for r in flow.data_routes if r.id in differing for node in (r.source, r.target)}
    return Change(nodes, routes, tuple(notes), frozenset(ends))


def refusals(old: Flow, new: Flow) -> Iterator[str]:
    """Yield one sentence for each reason why ``old`` cannot become ``new`` while it runs, with what to do instead.
    Linear in nodes and routes."""
    before, after = ({route.id: route for route in flow.data_routes} for flow in (old, new))
    for name, route in after.items():
        was = before.get(name, route)
        if (was.source, was.target) != (route.source, route.target):
            yield f"route {name!r} would join other nodes: give it another id"
    stays = {manifest.node for manifest in old.manifests} & {manifest.node for manifest in new.manifests}
    fed = [{route.target for route in routes.values()} for routes in (before, after)]
    for node in sorted(stays & (fed[0] - fed[1]) & {route.source for route in after.values()}):
        yield f"node {node!r} would lose its last input and be a source: give the source another node id"
    following: dict[str, list[str]] = {}
    for route in (*before.values(), *after.values()):
        following.setdefault(route.source, []).append(route.target)
    if cycle := find_cycle(following):
        yield (
            f"some of {drawn(cycle)} would change places, and frames that are between them would be overtaken: "
            "apply a flow without one of them first, and then this one"
        )


def described(change: Change) -> dict[str, Any]:
    """Return the change as it is sent to a client; ``same`` is true when nothing that runs has to change."""
    return {
        "same": not change,
        "nodes": [_described(each) for each in change.nodes],
        "routes": [_described(each) for each in change.routes],
        "notes": [_plain(each) for each in change.notes],
    }


def _described(difference: Difference) -> dict[str, Any]:
    return {
        "name": difference.name,
        "kind": difference.kind,
        "fields": [_plain(each) for each in difference.fields],
    }


def _plain(change: FieldChange) -> dict[str, Any]:
    return {"path": change.path, "old": change.old, "new": change.new}


def _nodes(
    old: Flow, new: Flow, folders: tuple[str, str], replaced: Collection[str], code: tuple[Digests, Digests]
) -> Iterator[Difference]:
    before, after = _told(old, folders[0]), _told(new, folders[1])
    for manifest in new.manifests:
        name = manifest.node
        if name not in before:
            yield Difference(name, "added")
            continue
        edited = tuple(_edited(code[0].get(name), code[1].get(name)))
        if before[name] != after[name] or _surroundings(old.manifest(name)) != _surroundings(manifest):
            told = _manifest_fields(old.manifest(name), manifest, before[name], after[name])
            yield Difference(name, "changed", (*told, *edited))
        elif turned := tuple(_turned(old, new, name)):
            yield Difference(name, "changed", (*turned, *edited))
        elif edited or name in replaced:
            yield Difference(name, "changed", edited)
    yield from (Difference(name, "removed") for name in before if name not in after)


def _surroundings(manifest: Manifest) -> tuple[Mapping[str, str], str, str]:
    """Return what a process has from its birth and is not told."""
    return manifest.env, manifest.cwd, manifest.user


def _edited(old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> Iterator[FieldChange]:
    """Yield the files of a plugin whose content differs; nothing when one of the two versions is not known."""
    if old and new:
        for path in sorted({*old, *new}):
            if old.get(path) != new.get(path):
                yield FieldChange(f"file {path}", old.get(path, ABSENT), new.get(path, ABSENT))


def _turned(old: Flow, new: Flow, node: str) -> Iterator[FieldChange]:
    """Yield the kinds of ends (inputs, outputs) that ``node`` gains entirely or loses entirely. Such a node changes its
    role as a source, map or sink, so that its worker must be replaced."""
    for what, end in (("inputs", "target"), ("outputs", "source")):
        before, after = (sum(getattr(route, end) == node for route in flow.data_routes) for flow in (old, new))
        if bool(before) != bool(after):
            yield FieldChange(what, before, after)


def _told(flow: Flow, folder: str) -> dict[str, Configure]:
    """Return the configure message of each node's worker, without its routes and the flow's name."""
    return {each.node: msgspec.structs.replace(each, inputs=[], outputs=[]) for each in configure(flow, "", folder)}


def _manifest_fields(old: Manifest, new: Manifest, before: Configure, after: Configure) -> tuple[FieldChange, ...]:
    """Return the fields that differ in the manifests. If none differs there, return those that differ in the configure
    messages: defaults and control routes are not in a manifest."""
    found = tuple(fields(old.raw, new.raw))
    return found or tuple(fields(msgspec.to_builtins(before), msgspec.to_builtins(after)))


def _routes(old: Flow, new: Flow) -> Iterator[Difference]:
    before = {route.id: route for route in old.data_routes}
    after = {route.id: route for route in new.data_routes}
    for name, route in after.items():
        if name not in before:
            yield Difference(name, "added")
        elif _ring(before[name]) != _ring(route):
            yield Difference(name, "changed", tuple(fields(_ring(before[name]), _ring(route))))
    yield from (Difference(name, "removed") for name in before if name not in after)


def _ring(route: Route) -> dict[str, Any]:
    """Return all properties of a data route that both of its ends have to know."""
    names = (name for name in route.__dataclass_fields__ if name not in ("raw", "id"))
    return {name: getattr(route, name) for name in names}


def _has(flow: Flow, node: str) -> bool:
    return any(manifest.node == node for manifest in flow.manifests)


def fields(old: Any, new: Any, path: str = "") -> Iterator[FieldChange]:
    """Yield each leaf that differs, with its path (``qos.priority``, ``timers[0].id``)."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in (*old, *(name for name in new if name not in old)):
            below = f"{path}.{name}" if path else str(name)
            yield from fields(old.get(name, ABSENT), new.get(name, ABSENT), below)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for at, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from fields(left, right, f"{path}[{at}]")
    elif old != new or type(old) is not type(new):
        yield FieldChange(path, old, new)
