"""The flow as a graph: ids of routes; cycles of data routes, which are refused: full rings in a cycle never move;
routes that stand there twice.

Control routes may form cycles. Two routes between the same nodes are ordinary if they differ in anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import count
from typing import Any, Final

from chronetix.protocol.contract.reading import ProblemCollector
from chronetix.protocol.contract.types import Route
from chronetix.protocol.contract.wording import in_topic

MAX_CYCLES: Final = 10
"""How many cycles are reported at once."""

MAX_DRAWN: Final = 12
"""How many nodes of a cycle are named."""


def name_routes(routes: Sequence[Route], nodes: Mapping[str, str]) -> tuple[Route, ...]:
    """Return the routes with resolved ends and an id each: the route's port, else ``from-to``, made unique by ``#2``,
    ``#3`` …

    ``nodes`` has the node that each endpoint means.
    """
    taken: set[str] = set()
    turn: dict[str, int] = {}
    named = []
    for route in routes:
        source, target = nodes[route.source], nodes[route.target]
        base = route.port or f"{in_topic(source)}-{in_topic(target)}"
        id = base if base not in taken else _free_id(base, taken, turn)
        taken.add(id)
        named.append(replace(route, id=id, source=source, target=target))
    return tuple(named)


def _free_id(base: str, taken: set[str], turn: dict[str, int]) -> str:
    for number in count(turn.get(base, 2)):
        id = f"{base}#{number}"
        if id not in taken:
            turn[base] = number + 1
            return id
    raise AssertionError("count does not end")


def refuse_twins(routes: Sequence[Route], paths: Sequence[str], notes: ProblemCollector) -> None:
    """Note a problem for each data route that is like an earlier one in everything, and a warning for such a control
    route. ``paths`` says where in the flow each route stands."""
    earlier: dict[tuple[Any, ...], str] = {}
    for route, path in zip(routes, paths, strict=True):
        first = earlier.setdefault(_all_it_says(route), path)
        if first == path:
            continue
        if route.plane == "data":
            text = f"is the same as {first}: each frame would come to {route.target} twice"
            notes.problem(path, text, "take one of them out, or give each a port of its own")
        else:
            notes.warn(path, f"is the same as {first}, and has no effect", "take one of them out")


def _all_it_says(route: Route) -> tuple[Any, ...]:
    """A route without its id: its ends, however they were written, all that it is, and fields that are not known."""
    read = tuple(getattr(route, name) for name in _READ)
    return (*read, repr(sorted((key, value) for key, value in route.raw.items() if key not in _WRITTEN)))


_READ: Final = tuple(each.name for each in fields(Route) if each.name not in ("id", "raw"))
_WRITTEN: Final = frozenset((*_READ, "from", "to"))


def refuse_cycles(routes: Iterable[Route], notes: ProblemCollector) -> None:
    """Note a problem for each cycle of data routes, with the nodes it runs through."""
    following: dict[str, list[str]] = {}
    for route in routes:
        if route.plane == "data":
            following.setdefault(route.source, []).append(route.target)
    for _ in range(MAX_CYCLES):
        cycle = find_cycle(following)
        if not cycle:
            break
        hint = "take one of these edges out, or make it a control route"
        notes.problem("routes", f"data routes form a cycle: {drawn(cycle)}", hint)
        for node in cycle:
            del following[node]


def drawn(cycle: Sequence[str]) -> str:
    """Return a cycle as text, ``a → b → a``, with at most MAX_DRAWN nodes."""
    shown = [*cycle, cycle[0]]
    if len(shown) > MAX_DRAWN:
        shown = [*cycle[: MAX_DRAWN - 2], "…", cycle[0]]
    return " → ".join(shown)


def find_cycle(following: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the nodes of some cycle, or an empty list. Searches depth first without recursion, each edge once."""
    done: set[str] = set()
    for start in following:
        trail: dict[str, int] = {}
        stack = [(start, iter(following[start]))] if start not in done else []
        trail.update({start: 0} if stack else {})
        while stack:
            node, rest = stack[-1]
            target = next(rest, None)
            if target is None:
                stack.pop()
                del trail[node]
                done.add(node)
            elif target in trail:
                return list(trail)[trail[target] :]
            elif target in following and target not in done:
                trail[target] = len(stack)
                stack.append((target, iter(following[target])))
    return []
