"""Checks of the graph as a whole: ids, types along edges, open inputs, cycles of data routes.

Rules: each function notes every problem of its kind and changes nothing. A node's io describes its data ports; on a
side where a node has no data route, its io describes the control messages instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chronetixd.compile.nodes import Draft, Shape
from chronetixd.compile.problems import Findings
from chronetixd.compile.routes import Edge


def index_drafts(drafts: Sequence[Draft], findings: Findings) -> dict[str, Draft]:
    """Return the drafts by id; the second of two with the same id is a problem."""
    known: dict[str, Draft] = {}
    for draft in drafts:
        first = known.setdefault(draft.id, draft)
        if first is not draft:
            place = draft.source.fields["id"].place
            message = f'two nodes have the id "{draft.id}"'
            hint = f"the first is on line {first.source.fields['id'].place.line}: rename one of them"
            findings.problem(place, "InvalidGraph", message, hint)
    return known


def check_types(edges: Sequence[Edge], findings: Findings) -> set[str]:
    """Check that every edge carries a type that its ends declare, and return the ids of nodes with a problem on their
    input side."""
    data_out = {edge.start.id for edge in edges if edge.is_data}
    data_in = {edge.end.id for edge in edges if edge.is_data}
    faulty: set[str] = set()
    for edge in edges:
        if edge.is_data or edge.start.id not in data_out:
            _check_side(edge, edge.start, edge.start.outputs, "produces", findings)
        if (edge.is_data or edge.end.id not in data_in) and not _check_side(
            edge, edge.end, edge.end.inputs, "takes", findings
        ):
            faulty.add(edge.end.id)
    return faulty


def _check_side(edge: Edge, node: Draft, shapes: Sequence[Shape], does: str, findings: Findings) -> bool:
    if not shapes or any(shape.type == edge.type for shape in shapes):
        return True
    content_type, version = edge.type
    declared = ", ".join(dict.fromkeys(str(shape) for shape in shapes))
    message = f"route {edge} carries {content_type} {version}, but {node.id} {does} {declared}"
    key = "content_type" if all(shape.content_type != content_type for shape in shapes) else "schema_ver"
    place = edge.source.fields[key].place if edge.source.get(key) else edge.source.place
    side = "inputs" if does == "takes" else "outputs"
    hint = f"make {key} of the route and of {node.id}'s io.{side} agree, or put a node between that converts"
    findings.problem(place, "IncompatibleSchema", message, hint)
    return False


def check_open_inputs(drafts: Mapping[str, Draft], edges: Sequence[Edge], faulty: set[str], findings: Findings) -> None:
    """Check that every required input has a route; ``faulty`` nodes have a problem there already and are skipped."""
    arriving: dict[str, set[tuple[str, str]]] = {}
    for edge in edges:
        arriving.setdefault(edge.end.id, set()).add(edge.type)
    for draft in drafts.values():
        if draft.id in faulty or (draft.hears and draft.id not in arriving):
            continue
        for shape in draft.inputs:
            if shape.required and shape.type not in arriving.get(draft.id, ()):
                message = f"node {draft.id}: input {shape} is left open"
                hint = f"add a route to {draft.id} that carries it, or mark the input required: false"
                findings.problem(shape.source.place, "InvalidGraph", message, hint)


def check_cycles(drafts: Mapping[str, Draft], edges: Sequence[Edge], findings: Findings) -> None:
    """Check that data routes form no cycle; each cycle that is found is one problem, at the route that closes it."""
    leaving: dict[str, list[Edge]] = {}
    for edge in edges:
        if edge.is_data:
            leaving.setdefault(edge.start.id, []).append(edge)
    done: set[str] = set()
    for root in drafts:
        if root not in done:
            _walk(root, leaving, done, findings)


def _walk(root: str, leaving: Mapping[str, Sequence[Edge]], done: set[str], findings: Findings) -> None:
    """Depth-first from ``root`` without recursion; an edge back into the current path closes a cycle."""
    path = [root]
    on_path = {root}
    pending = [iter(leaving.get(root, ()))]
    while pending:
        edge = next(pending[-1], None)
        if edge is None:
            pending.pop()
            left = path.pop()
            on_path.discard(left)
            done.add(left)
        elif edge.end.id in on_path:
            _report_cycle(edge, path[path.index(edge.end.id) :], findings)
        elif edge.end.id not in done:
            path.append(edge.end.id)
            on_path.add(edge.end.id)
            pending.append(iter(leaving.get(edge.end.id, ())))


def _report_cycle(closing: Edge, path: Sequence[str], findings: Findings) -> None:
    shown = " -> ".join([*path, path[0]])
    hint = "take one of these routes out, or make it plane: control (control routes may form cycles)"
    findings.problem(closing.source.place, "CyclicDependency", f"data goes in a circle: {shown}", hint)
