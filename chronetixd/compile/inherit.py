"""Deadline and priority of nodes that do not declare them: from the flow's defaults, else a builtin's own, else from
upstream.

Rules: the nearest upstream node wins, over data routes first and then over any route; of several equally near ones, the
tightest deadline and the highest priority win. Without a value upstream a node has no deadline and priority 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chronetixd.compile import catalogue
from chronetixd.compile.nodes import Draft
from chronetixd.compile.routes import Edge

DEFAULT_PRIORITY = 4

_STRICTEST: dict[str, Callable[[int, int], int]] = {"deadline_ns": min, "priority": max}


def settle_qos(drafts: Mapping[str, Draft], edges: Sequence[Edge], defaults: Mapping[str, Any]) -> None:
    """Write ``qos`` into every draft's manifest."""
    data_edges = [edge for edge in edges if edge.is_data]
    for key, stricter in _STRICTEST.items():
        values = {draft.id: value for draft in drafts.values() if (value := _own(draft, key, defaults)) is not None}
        _spread(values, data_edges, stricter)
        _spread(values, edges, stricter)
        for draft in drafts.values():
            if draft.id in values:
                draft.qos[key] = values[draft.id]
    for draft in drafts.values():
        draft.qos.setdefault("priority", DEFAULT_PRIORITY)
        draft.manifest["qos"] = draft.qos


def _own(draft: Draft, key: str, defaults: Mapping[str, Any]) -> int | None:
    builtin = catalogue.BUILTINS.get(draft.plugin.uri, catalogue.NOT_DECLARED)
    for place in (draft.qos, defaults, builtin.qos):
        value = place.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _spread(values: dict[str, int], edges: Sequence[Edge], stricter: Callable[[int, int], int]) -> None:
    """Pass values hop by hop downstream, from the nodes that have one to those that have none."""
    leaving: dict[str, list[str]] = {}
    for edge in edges:
        leaving.setdefault(edge.start.id, []).append(edge.end.id)
    front = list(values)
    while front:
        reached: dict[str, int] = {}
        for node in front:
            for downstream in leaving.get(node, ()):
                if downstream not in values:
                    before = reached.get(downstream, values[node])
                    reached[downstream] = stricter(before, values[node])
        values.update(reached)
        front = list(reached)
