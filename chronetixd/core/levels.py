"""The order in which the nodes of a flow start: by its data routes, sinks first and sources last.

There are two waves. Nodes without data inputs (sources, timers) set a flow in motion: they are the second wave and
start only when every other node has started, so that a flow whose sink cannot start has had no effect. Within the first
wave a node is told to start after all nodes that it sends frames to, but no start waits for another node to have
started: no frame is under way yet. A long chain therefore does not start one node at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def successors(nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return the consumers of every node, by data routes (from, to)."""
    found: dict[str, set[str]] = {node: set() for node in nodes}
    for source, target in edges:
        found[source].add(target)
    return found


def sources(nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Return the nodes without a data input."""
    return frozenset(nodes) - {target for _, target in edges}


def start_waves(nodes: tuple[str, ...], edges: tuple[tuple[str, str], ...]) -> tuple[tuple[str, ...], ...]:
    """Return the nodes by start wave: every node in exactly one wave, no wave empty, sinks first within a wave.

    Raises ValueError when the data routes have a cycle.
    """
    heights = _heights(successors(nodes, edges))
    last = sources(nodes, edges)
    ordered = sorted(nodes, key=heights.__getitem__)
    waves = (tuple(n for n in ordered if n not in last), tuple(n for n in ordered if n in last))
    return tuple(wave for wave in waves if wave)


def _heights(consumers: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the longest way from each node down to a sink, found by removing sinks one after the other."""
    producers: dict[str, list[str]] = {}
    for node, targets in consumers.items():
        for target in targets:
            producers.setdefault(target, []).append(node)
    left = {node: len(targets) for node, targets in consumers.items()}
    heights = {node: 0 for node, count in left.items() if not count}
    ready = list(heights)
    for node in ready:
        for producer in producers.get(node, ()):
            left[producer] -= 1
            heights[producer] = max(heights.get(producer, 0), heights[node] + 1)
            if not left[producer]:
                ready.append(producer)
    if len(ready) < len(consumers):
        stuck = sorted(consumers.keys() - set(ready))
        raise ValueError(f"data routes form a cycle through {', '.join(stuck)}")
    return heights
