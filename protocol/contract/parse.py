"""Reads a submitted map as a flow, or finds all problems in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from chronetix.protocol.contract.endpoints import resolve
from chronetix.protocol.contract.graph import name_routes, refuse_cycles, refuse_twins
from chronetix.protocol.contract.manifests import read_manifest
from chronetix.protocol.contract.reading import Fields, ProblemCollector, kind_of
from chronetix.protocol.contract.routes import read_route, read_schema, settle_policy
from chronetix.protocol.contract.supervision import check_strategy
from chronetix.protocol.contract.types import ON_DAEMON_LOSS, STRATEGIES, Flow, Manifest, Validation

_NO_BINDINGS: Mapping[str, str] = {}


def parse_flow(raw: Any, *, bindings: Mapping[str, str] = _NO_BINDINGS) -> Validation:
    """Read and check a CompileOutput, and return the flow or the problems.

    ``bindings`` gives the node (its node_id, or a plugin_id that only one node has) that an endpoint of a route means
    if its name does not tell. ``raw`` should be a map, but no value makes this function raise: what is wrong is in
    ``problems``.
    """
    notes = ProblemCollector()
    if not isinstance(raw, Mapping):
        notes.problem("", f"a flow is a map with manifests, routes and schemas, not {kind_of(raw)}")
        return Validation(None, notes.problems, notes.warnings)
    flow = _read(Fields(notes, "", raw), bindings)
    notes.finish()
    return Validation(None if notes.problems else flow, notes.problems, notes.warnings)


def _read(fields: Fields, bindings: Mapping[str, str]) -> Flow | None:
    notes = fields.notes
    name = fields.name("name")
    if fields.raw.get("name") == "":
        notes.problem("name", '"" is no usable name: it is empty', "leave it out, and one is found")
    manifests = _manifests(fields)
    drafts = [(read_route(item), item.path) for item in fields.items("routes")]
    schemas = tuple(map(read_schema, fields.items("schemas")))
    defaults = fields.free_map("defaults")
    strategy: Literal["one_for_one", "rest_for_one", "one_for_all"] = fields.choice(
        "strategy", STRATEGIES, "one_for_one"
    )
    dead_letter = fields.text("dead_letter")
    on_daemon_loss: Literal["stop", "survive"] = fields.choice("on_daemon_loss", ON_DAEMON_LOSS, "stop")
    fields.done()
    routes, paths = [route for route, _ in drafts], [path for _, path in drafts]
    settled, nodes = resolve(manifests, routes, paths, bindings, notes)
    known = [at for at, route in enumerate(routes) if route.source in nodes and route.target in nodes]
    named = name_routes([routes[at] for at in known], nodes)
    refuse_twins(named, [paths[at] for at in known], notes)
    refuse_cycles(named, notes)
    classes = {manifest.node: manifest.qos.qos for manifest in settled}
    named = tuple(settle_policy(route, classes[route.source]) for route in named)
    check_strategy(strategy, settled, named, notes)
    return Flow(name, settled, named, schemas, defaults, strategy, dead_letter, on_daemon_loss, fields.raw)


def _manifests(fields: Fields) -> list[Manifest]:
    given = fields.get("manifests")
    if given is None and "nodes" in fields.raw:
        hint = "compile it first: `chronetixctl compile FILE`"
        fields.notes.problem("manifests", "is missing; this looks like a graph that has not been compiled", hint)
    elif given is None or given == [] or given == ():
        fields.notes.problem("manifests", "a flow needs at least one node", "give a list of manifests")
    return [read_manifest(item) for item in fields.items("manifests")]
