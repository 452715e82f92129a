"""The compile step: text → tree → drafts and edges → checked, completed CompileOutput.

Rules: the steps run in this order and each reports all problems that it finds; later steps run on what the earlier ones
could read, and a problem is reported by one step only. The finished output is checked against the contract too, and its
problems are reported at their places in the text.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from chronetix.protocol.contract import parse_flow
from chronetix.protocol.nearest import did_you_mean
from chronetixd.compile import form, graph
from chronetixd.compile.fields import kind_of, list_of, mapping_of, warn_near_misses
from chronetixd.compile.inherit import settle_qos
from chronetixd.compile.json_text import read_json
from chronetixd.compile.nodes import Draft, read_node
from chronetixd.compile.problems import CompileError, Findings, Position, SourceProblem
from chronetixd.compile.routes import Edge, read_route
from chronetixd.compile.schemas import union_of_schemas
from chronetixd.compile.tree import SyntaxNode, Unreadable
from chronetixd.compile.yaml_text import read_yaml

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
DEFAULT_TYPES = {"routes": "application/json", "edges": "application/cbor"}
"""The content type of what names none, by the form of the routes. In a file with both forms, each route has that of its
own form, and each node that of its own."""

_RENAMED: dict[str, tuple[str, ...]] = {
    "timers": ("bindings", "timer"),
    "bus_subscriptions": ("bindings", "bus", "subscriptions"),
    "bus_publications": ("bindings", "bus", "publications"),
    "artifact": ("plugin",),
    "uri": ("artifact",),
    "node_id": ("id",),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled flow. ``output`` is a CompileOutput; ``warnings`` are about fields that are valid, but perhaps not as
    meant."""

    output: dict[str, Any]
    warnings: tuple[SourceProblem, ...] = ()
    file: str = ""
    passed_through: bool = False
    _roots: dict[str, SyntaxNode] = field(default_factory=dict)

    def locate(self, path: str) -> Position:
        """Return the place in the text from which a path of the output (``routes[2].from``) comes, as near as it is
        known."""
        here = self._roots[""]
        steps = [name or int(index) for name, index in _STEP.findall(path)]
        prefix = re.match(r"\w+\[\d+\]", path)
        if prefix and prefix.group() in self._roots:
            here, steps = self._roots[prefix.group()], steps[2:]
        for step in steps:
            found = _step_into(here, step)
            if found is None:
                break
            here = found
        return here.place


def compile_text(text: str, filename: str) -> Compiled:
    """Compile the text of a flow. ``filename`` is for messages; with the ending ``.json`` the text must be JSON.

    Raises only CompileError. Does not raise for artifacts that do not exist.
    """
    findings = Findings(filename)
    with _uncollected():
        root = _read(text, filename, findings)
        if root.get("manifests") is not None:
            return Compiled(root.plain(), tuple(findings.warnings), filename, True, {"": root})
        return _compile(root, findings)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let no cyclic garbage be looked for: a large flow is millions of objects, none of them in a cycle, and looking at
    them again and again takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(text: str, filename: str, findings: Findings) -> SyntaxNode:
    def duplicate(place: Position, key: str) -> None:
        findings.problem(place, "InvalidField", f'key "{key}" stands twice in one mapping', "remove or rename one")

    def not_text(place: Position, shown: str) -> None:
        findings.problem(place, "InvalidField", f"key {shown} is not text", f'put it in quotes: "{shown}"')

    text = text.removeprefix("\ufeff")
    try:
        if _is_json(text, filename):
            root = read_json(text, duplicate)
        else:
            root = read_yaml(text, duplicate, not_text)
    except Unreadable as error:
        findings.problem(error.place, "InvalidSyntax", error.message, error.suggestion)
        raise CompileError(findings.problems) from None
    findings.raise_if_any()
    if not isinstance(root.value, dict):
        hint = "a flow has nodes and routes, or manifests and routes"
        what = "the file is empty" if root.value is None else f"a flow is a mapping, this is {kind_of(root)}"
        findings.problem(root.place, "InvalidGraph", what, hint)
        findings.raise_if_any()
    return root


def _is_json(text: str, filename: str) -> bool:
    """Whether the text is JSON by the file's name or by its beginning: YAML's flow mappings begin with a bare word."""
    return filename.endswith(".json") or re.match(r'\s*\{\s*("([^"\\]|\\.)*"\s*:|\})', text) is not None


def _compile(root: SyntaxNode, findings: Findings) -> Compiled:
    warn_near_misses(root, form.FLOW, findings, "flow")
    if root.get("nodes") is None:
        hint = did_you_mean("nodes", tuple(root.fields), "a flow has nodes and routes, or manifests and routes")
        findings.problem(root.place, "InvalidGraph", "no nodes: nothing would run", hint)
        findings.raise_if_any()
    forms = {form for form in DEFAULT_TYPES if list_of(root, form, findings, "flow")}
    drafts = []
    for node in list_of(root, "nodes", findings, "flow"):
        short = node.get("plugin") is None
        written = "edges" if "edges" in forms and (short or "routes" not in forms) else "routes"
        draft = read_node(node, short, DEFAULT_TYPES[written], findings)
        if draft is not None:
            drafts.append(draft)
    if root.fields["nodes"].value in ([], {}):
        findings.problem(root.fields["nodes"].place, "InvalidGraph", "no nodes: nothing would run", "add a node")
    known = graph.index_drafts(drafts, findings)
    edges = _edges(root, known, findings)
    _check_graph(known, edges, findings)
    findings.raise_if_any()
    return _finish(root, known, edges, findings)


def _edges(root: SyntaxNode, known: dict[str, Draft], findings: Findings) -> list[Edge]:
    edges = []
    for key, default_type in DEFAULT_TYPES.items():
        for node in list_of(root, key, findings, "flow"):
            edge = read_route(node, key == "edges", default_type, known, findings)
            if edge is not None:
                edges.append(edge)
    return edges


def _check_graph(known: dict[str, Draft], edges: list[Edge], findings: Findings) -> None:
    unread = len(findings.problems)
    faulty = graph.check_types(edges, findings)
    if unread == 0:  # an edge that could not be read may be the one that reaches the open input
        graph.check_open_inputs(known, edges, faulty, findings)
    graph.check_cycles(known, edges, findings)


def _finish(root: SyntaxNode, known: dict[str, Draft], edges: list[Edge], findings: Findings) -> Compiled:
    defaults = mapping_of(root, "defaults", findings, "flow")
    plain_defaults = defaults.plain() if defaults else {}
    qos_defaults = plain_defaults.get("qos")
    settle_qos(known, edges, {**plain_defaults, **(qos_defaults if isinstance(qos_defaults, dict) else {})})
    _settle_roles(known, edges)
    output = {key: node.plain() for key, node in root.fields.items() if key not in ("nodes", "routes", "edges")}
    output["manifests"] = [draft.manifest for draft in known.values()]
    output["routes"] = [edge.route for edge in edges]
    given = [schema.plain() for schema in list_of(root, "schemas", findings, "flow")]
    output["schemas"] = union_of_schemas(given, output["manifests"], output["routes"])
    findings.raise_if_any()
    roots = {f"manifests[{index}]": draft.source for index, draft in enumerate(known.values())}
    roots |= {f"routes[{index}]": edge.source for index, edge in enumerate(edges)}
    compiled = Compiled(output, (), findings.file, False, {"": root, **roots})
    _hold_against_contract(compiled, findings)
    return Compiled(output, tuple(findings.warnings), findings.file, False, compiled._roots)


def _settle_roles(known: dict[str, Draft], edges: list[Edge]) -> None:
    """Derive the role from the data routes for each node whose io does not tell it."""
    sending = {edge.start.id for edge in edges if edge.is_data}
    taking = {edge.end.id for edge in edges if edge.is_data}
    for draft in known.values():
        if draft.manifest["role"]:
            continue
        match draft.id in taking, draft.id in sending:
            case True, True:
                draft.manifest["role"] = "SourceTransform"
            case True, False:
                draft.manifest["role"] = "Sink"
            case False, True:
                draft.manifest["role"] = "Source"
            case _:
                draft.manifest["role"] = "Transform"


def _hold_against_contract(compiled: Compiled, findings: Findings) -> None:
    validation = parse_flow(compiled.output)
    for problem in validation.problems:
        message = f"{problem.path}: {problem.message}"
        findings.problem(compiled.locate(problem.path), "InvalidField", message, problem.suggestion)
    findings.raise_if_any()
    warned = {(warning.line, warning.suggestion) for warning in findings.warnings}
    for problem in validation.warnings:
        place = compiled.locate(problem.path)
        if (place.line, problem.suggestion) not in warned:
            findings.warning(place, "InvalidField", f"{problem.path}: {problem.message}", problem.suggestion)


def _step_into(node: SyntaxNode, step: str | int) -> SyntaxNode | None:
    if isinstance(step, int):
        return node.items[step] if step < len(node.items) else None
    if step in node.fields:
        return node.fields[step]
    for name in _RENAMED.get(step, ("",)):
        found = node.fields.get(name)
        if found is None:
            return None
        node = found
    return node
