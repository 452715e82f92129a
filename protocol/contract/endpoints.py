"""Finds the node that each endpoint of a route means.

Routes name node ids. A manifest of Chronetix's compile step has its ``node_id``; a manifest of the orchestrator's own
output has only its normalised plugin id, which may differ from the name in a route. An endpoint means, first match
wins:

1. the node that ``bindings`` (given by the client that submits) gives for it, by a name or by its place (``#2``);
2. the manifest with that node_id, else the one manifest without node_id that has it as plugin_id;
3. as the source of a ``control/timer/…`` or ``control/resource/…`` route: the single manifest without node_id that
   nothing else refers to and that has the role Timer or EnvProvider, with a warning; then, as the source of control
   routes of any topic, the single one of either role that is left.

An endpoint that means no node, or more than one, is a problem. A manifest without node_id takes the endpoint that means
it as its node id, else its plugin id; node ids must be unique.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from chronetix.protocol.contract.reading import ProblemCollector, quote, quote_key
from chronetix.protocol.contract.types import Manifest, Route

ROLE_OF_TOPIC: Final = (("control/timer/", "Timer"), ("control/resource/", "EnvProvider"))
"""Beginnings of topics, each with the role that the source of a route with such a topic has."""

_MAX_LISTED: Final = 8


@dataclass(slots=True)
class Resolution:
    """The endpoints that are resolved so far; numbers are positions in the list of manifests."""

    notes: ProblemCollector
    manifests: Sequence[Manifest]
    by_node: dict[str, int] = field(default_factory=dict)
    by_plugin: dict[str, list[int]] = field(default_factory=dict)
    meant: dict[str, int] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
    """Endpoints that mean no node yet, each with the path at which it was first seen."""
    known: Collection[str] = ()
    """Every name that an endpoint may have."""

    @property
    def unreferenced(self) -> list[int]:
        """Manifests that no endpoint means."""
        referenced = set(self.meant.values())
        return [index for index in range(len(self.manifests)) if index not in referenced]


def resolve(
    manifests: Sequence[Manifest],
    routes: Sequence[Route],
    paths: Sequence[str],
    bindings: Mapping[str, str],
    notes: ProblemCollector,
) -> tuple[tuple[Manifest, ...], dict[str, str]]:
    """Return the manifests with their node ids, and for each endpoint the node that it means.

    ``paths`` has the path of each route. A problem is noted for each endpoint that stays open; the result must not be
    used then.
    """
    resolution = Resolution(notes, manifests)
    _index(resolution)
    _match_names(resolution, routes, paths)
    _bind(resolution, bindings, {end for route in routes for end in (route.source, route.target)})
    _match_roles(resolution, routes)
    _refuse_open(resolution)
    return _name_nodes(resolution)


def _index(resolution: Resolution) -> None:
    for index, manifest in enumerate(resolution.manifests):
        if manifest.node:
            resolution.by_node.setdefault(manifest.node, index)
        elif manifest.plugin_id:
            resolution.by_plugin.setdefault(manifest.plugin_id, []).append(index)
    resolution.known = (*resolution.by_node, *resolution.by_plugin)


def _match_names(resolution: Resolution, routes: Sequence[Route], paths: Sequence[str]) -> None:
    for route, path in zip(routes, paths, strict=True):
        for end, name in ((route.source, "from"), (route.target, "to")):
            if not end or end in resolution.meant or end in resolution.open:
                continue
            index = _named(resolution, end)
            if index is None:
                resolution.open[end] = f"{path}.{name}"
            else:
                resolution.meant[end] = index


def _named(resolution: Resolution, end: str) -> int | None:
    if end in resolution.by_node:
        return resolution.by_node[end]
    same = resolution.by_plugin.get(end, [])
    return same[0] if len(same) == 1 else None


def _bind(resolution: Resolution, bindings: Mapping[str, str], ends: set[str]) -> None:
    for end, node in bindings.items():
        path = f"bindings.{quote_key(str(end))}"
        index = _bound(resolution, node) if isinstance(node, str) else None
        if end not in ends:
            hint = resolution.notes.did_you_mean(str(end), ends, "it names what a route's from or to says")
            resolution.notes.problem(path, "no route has this endpoint", hint)
        elif index is None:
            _refuse_binding(resolution, path, str(node))
            resolution.open.pop(end, None)
        else:
            resolution.meant[end] = index
            resolution.open.pop(end, None)


def _refuse_binding(resolution: Resolution, path: str, node: str) -> None:
    same = resolution.by_plugin.get(node, ())
    if same:
        hint = "name its place: " + " or ".join(f"#{index + 1}" for index in same[:_MAX_LISTED])
        resolution.notes.problem(path, f"{len(same)} nodes have the plugin_id {quote(node)}", hint)
        return
    otherwise = "name a node_id, a plugin_id that only one node has, or a node's place: #1"
    hint = resolution.notes.did_you_mean(node, resolution.known, otherwise)
    resolution.notes.problem(path, f"there is no node {quote(node)}", hint)


def _bound(resolution: Resolution, node: str) -> int | None:
    """Return the manifest that a binding names, by a name or by its place, from ``#1`` on."""
    place = place_of(node, len(resolution.manifests))
    return _named(resolution, node) if place is None else place


def place_of(node: str, count: int) -> int | None:
    """Return the index of the manifest that ``#1``, ``#2`` … names among ``count``; None for any other text."""
    digits = node[1:] if node[:1] == "#" else ""
    place = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else 0
    return place - 1 if 0 < place <= count else None


def _match_roles(resolution: Resolution, routes: Sequence[Route]) -> None:
    asked = _roles_wanted(routes)
    for _, role in ROLE_OF_TOPIC:
        _match_only(resolution, [end for end, wanted in asked.items() if wanted == role], (role,))
    _match_only(resolution, [end for end, wanted in asked.items() if not wanted], [role for _, role in ROLE_OF_TOPIC])


def _match_only(resolution: Resolution, ends: Sequence[str], roles: Collection[str]) -> None:
    """Match the only open endpoint of ``ends`` with the only manifest left that has one of the ``roles``."""
    left = [end for end in ends if end in resolution.open]
    free = [(index, resolution.manifests[index]) for index in resolution.unreferenced]
    fitting = [(index, manifest) for index, manifest in free if manifest.role in roles and not manifest.node]
    if len(left) != 1 or len(fitting) != 1:
        return
    end, (index, manifest) = left[0], fitting[0]
    message = f"{quote(end)} was taken for the node of {quote(manifest.plugin_id)}, the only {manifest.role} left"
    hint = f"give that manifest node_id {quote(end)}, or bind it: --bind {end}={_reference(resolution, index)}"
    resolution.notes.warn(resolution.open.pop(end), message, hint)
    resolution.meant[end] = index


def _reference(resolution: Resolution, index: int) -> str:
    """Return how a binding names a manifest: by its name, or by its place if others have the name too."""
    manifest = resolution.manifests[index]
    shared = not manifest.node and len(resolution.by_plugin.get(manifest.plugin_id, ())) > 1
    return f"#{index + 1}" if shared else manifest.node or manifest.plugin_id


def _roles_wanted(routes: Sequence[Route]) -> dict[str, str]:
    """Return the role that all routes of an endpoint ask for, by endpoint: empty if their topics do not tell one.
    Targets, ends of data routes, and endpoints whose routes ask for different roles, are left out."""
    roles: dict[str, str | None] = {}
    for route in routes:
        role = next((role for topic, role in ROLE_OF_TOPIC if route.topic.startswith(topic)), "")
        known = roles.get(route.source, role)
        roles[route.source] = role if known == role and route.plane == "control" else None
        roles[route.target] = None
    return {end: role for end, role in roles.items() if role is not None}


def _refuse_open(resolution: Resolution) -> None:
    if any(not manifest.node and not manifest.plugin_id for manifest in resolution.manifests):
        return  # the endpoint may mean a manifest whose id could not be read, which is a problem already
    names = [_reference(resolution, index) for index in resolution.unreferenced]
    for end, path in resolution.open.items():
        same = len(resolution.by_plugin.get(end, ()))
        if same > 1:
            message = f"{quote(end)} is the plugin_id of {same} nodes"
            places = [f"#{index + 1}" for index in resolution.by_plugin[end]]
            listed = " or ".join(places[:_MAX_LISTED])
            hint = f"give each of them a node_id and name that, or bind it: --bind {end}={listed}"
            resolution.notes.problem(path, message, hint)
        else:
            resolution.notes.problem(path, f"there is no node {quote(end)}", _ways_out(resolution, end, names))


def _ways_out(resolution: Resolution, end: str, free: Sequence[str]) -> str:
    guess = resolution.notes.did_you_mean(end, resolution.known)
    if not free:
        return guess
    listed = ", ".join(free[:_MAX_LISTED]) + (", …" if len(free) > _MAX_LISTED else "")
    offer = f"no route refers to {listed}; if one of them is meant, bind it: --bind {end}={free[0]}"
    return f"{guess} {offer}" if guess else offer


def _name_nodes(resolution: Resolution) -> tuple[tuple[Manifest, ...], dict[str, str]]:
    names = [manifest.node or manifest.plugin_id for manifest in resolution.manifests]
    for end, index in reversed(resolution.meant.items()):
        manifest = resolution.manifests[index]
        if not manifest.node and _named(resolution, end) != index:
            names[index] = end
    _refuse_twins(resolution, names)
    manifests = tuple(
        manifest if manifest.node == name else replace(manifest, node=name)
        for manifest, name in zip(resolution.manifests, names, strict=True)
    )
    return manifests, {end: names[index] for end, index in resolution.meant.items()}


def _refuse_twins(resolution: Resolution, names: Sequence[str]) -> None:
    counts = Counter(names)
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen and name:
            message = f"{quote(name)} is the id of an earlier node ({counts[name]} nodes have it)"
            path = f"manifests[{index}].{'node_id' if resolution.manifests[index].node else 'plugin_id'}"
            resolution.notes.problem(path, message, "give each node a node_id of its own")
        seen.add(name)
