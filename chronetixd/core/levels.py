"""In which order the nodes of a flow start: sinks first, sources last, by its data routes.

A node starts only after everything it sends frames to has started, so no frame ever meets a consumer that does not
run yet. Nodes without data inputs set a flow in motion (sources, timers), so all of them are in the last level.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def successors(nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """The consumers of every node, by data routes (from, to)."""
    found: dict[str, set[str]] = {node: set() for node in nodes}
    for source, target in edges:
        found[source].add(target)
    return found


def sources(nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Nodes without a data input."""
    return frozenset(nodes) - {target for _, target in edges}


def start_levels(nodes: tuple[str, ...], edges: tuple[tuple[str, str], ...]) -> tuple[tuple[str, ...], ...]:
    """Nodes by start level, every node in exactly one. Raises ValueError when the data routes have a cycle."""
    heights = _heights(successors(nodes, edges))
    last = sources(nodes, edges)
    rest = sorted({heights[node] for node in nodes if node not in last})
    levels = [tuple(n for n in nodes if n not in last and heights[n] == height) for height in rest]
    if last:
        levels.append(tuple(node for node in nodes if node in last))
    return tuple(levels)


def _heights(consumers: Mapping[str, set[str]]) -> dict[str, int]:
    """Longest way from each node down to a sink, found by taking sinks away one layer after the other."""
    heights: dict[str, int] = {}
    left = dict(consumers)
    height = 0
    while left:
        layer = [node for node, targets in left.items() if all(target in heights for target in targets)]
        if not layer:
            raise ValueError(f"data routes form a cycle through {', '.join(sorted(left))}")
        for node in layer:
            del left[node]
        heights.update(dict.fromkeys(layer, height))
        height += 1
    return heights
