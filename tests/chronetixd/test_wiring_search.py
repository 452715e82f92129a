"""Every kill between any two steps of every sort of roll-out, there and back, over the real tables: no frame is lost,
what is not marked is new and in order, nobody waits for the dead, the roll-out ends, every handle is closed once."""

from __future__ import annotations

from itertools import combinations

import pytest

from chronetixd.core.flow_words import FlowState
from tests.chronetixd.search.workers import Ring
from tests.chronetixd.search.world import Shape, World

LINE = (("s", "a"), ("a", "k"))
FORK = (("s", "a"), ("s", "b"), ("a", "k"), ("b", "l"))
JOIN = (("s", "k"), ("t", "k"))

ROLLOUTS = {
    "a plugin is replaced": (Shape(LINE), Shape(LINE, versions=("a",))),
    "a source is replaced": (Shape(LINE), Shape(LINE, versions=("s",))),
    "a sink is replaced": (Shape(LINE), Shape(LINE, versions=("k",))),
    "all are replaced": (Shape(LINE), Shape(LINE, versions=("s", "a", "k"))),
    "buffers are others": (Shape(LINE), Shape(LINE, credits=3)),
    "a buffer and a plugin are others": (Shape(LINE), Shape(LINE, credits=3, versions=("a",))),
    "a node is put in between": (Shape(LINE), Shape((("s", "a"), ("a", "b"), ("b", "k")))),
    "a node is put in between, buffers are others": (Shape(LINE), Shape((("s", "a"), ("a", "b"), ("b", "k")), 3)),
    "a node is taken out": (Shape(LINE), Shape((("s", "k"),))),
    "a node is taken out, its consumer replaced": (Shape(LINE), Shape((("s", "k"),), versions=("k",))),
    "a node is taken out, its producer replaced": (Shape(LINE), Shape((("s", "k"),), versions=("s",))),
    "another node in its place": (Shape(LINE), Shape((("s", "b"), ("b", "k")))),
    "another node in its place, all replaced": (Shape(LINE), Shape((("s", "b"), ("b", "k")), versions=("s", "k"))),
    "an output is added": (Shape(LINE), Shape((*LINE, ("s", "l")))),
    "an output is removed": (Shape(FORK), Shape((("s", "a"), ("a", "k")))),
    "a consumer is added": (Shape(LINE), Shape((*LINE, ("a", "l")))),
    "a source is added": (Shape((("s", "k"),)), Shape(JOIN)),
    "a fork's buffers are others": (Shape(FORK), Shape(FORK, credits=3)),
}
ITEMS = (5, 10, 13)
"""How far sources have come at the end of the roll-out, of that back, and at the end."""

FIRST_STEPS = 14
"""Before the roll-out begins: so many that frames are everywhere under way."""


def play(name: str, order: int, kills: dict[int, str]) -> World:
    """A roll-out, one back, a drain; checked."""
    before, after = ROLLOUTS[name]
    world = World(before, order)
    world.run()
    assert world.flow.state is FlowState.RUNNING
    world.items = ITEMS[0] - 1
    world.run(FIRST_STEPS)
    begun = world.count
    world.kills = {begun + at: node for at, node in kills.items()}
    for shape, items in zip((after, before), ITEMS[:2], strict=True):
        world.items = items
        world.become(shape if shape is after else Shape(before.edges, before.credits, after.versions))
        world.run()
        assert world.rollout is not None
        assert world.rollout.step == "done", f"it stands still: {world.rollout.step}, {world.rollout.waits_for}"
        check(world)
        for node in before.nodes if shape is after else ():
            if node not in after.nodes:
                forget(world, node)
    world.items = ITEMS[2]
    world.stop()
    world.run()
    assert world.flow.state is FlowState.STOPPED, f"{world.flow.state}, {world.flow.failure}"
    check(world)
    world.machine.close()
    world._wire(())
    assert world.kept == set(), "handles are left"
    world.steps = world.count - begun  # type: ignore[attr-defined]
    return world


def forget(world: World, node: str) -> None:
    """It was removed: should it come again, it is another one."""
    world.ledgers.pop(node, None)
    for ring in world.memory.values():
        if isinstance(ring, Ring) and ring.to == node:
            ring.to = ""


def check(world: World) -> None:
    """Each sink has got all that was sent to it, the items of each source in order, from the first that it got on, and
    no mark is missing."""
    for ring in world.memory.values():
        got = {frame[:2] for frame in world.ledgers.get(ring.to, ())} if isinstance(ring, Ring) else set()
        if isinstance(ring, Ring) and ring.to in world.ledgers:
            lost = {frame[:2] for frame in ring.frames} - got
            assert not lost, f"{ring.to} never got {lost}"
    for node, frames in world.ledgers.items():
        highest: dict[str, int] = {}
        for source, number, marked in frames:
            last = highest.get(source)
            assert last is None or number <= last + 1, f"{node}: {number} follows {last}: lost, or out of order"
            assert marked or last is None or number == last + 1, f"{node}: {number} came again unmarked, after {last}"
            highest[source] = max(last or 0, number)
        stays = [source for source, _ in world.shape.edges if not any(b == source for _, b in world.shape.edges)]
        if node in world.shape.nodes and world.flow.state is FlowState.RUNNING and world.items == ITEMS[1]:
            assert all(highest.get(source) == world.items for source in stays if source in highest), f"{node}: lost"


def explain(name: str, order: int, kills: dict[int, str]) -> str:
    return f"{name!r}, order {order}, kills {kills}"


@pytest.mark.timeout(900)  # much work, on a machine that may be busy
@pytest.mark.parametrize("name", ROLLOUTS)
def test_whoever_dies_between_any_two_steps_of_a_roll_out(name: str) -> None:
    for order in range(6):
        steps = play(name, order, {}).steps  # type: ignore[attr-defined]
        nodes = sorted({*ROLLOUTS[name][0].nodes, *ROLLOUTS[name][1].nodes})
        for at in range(0, steps, 2 if order == 1 else 11):
            for node in nodes:
                try:
                    play(name, order, {at: node})
                except AssertionError as wrong:
                    raise AssertionError(explain(name, order, {at: node})) from wrong


@pytest.mark.timeout(900)  # much work, on a machine that may be busy
@pytest.mark.parametrize("name", ROLLOUTS)
def test_whichever_two_die_in_it(name: str) -> None:
    steps = play(name, 1, {}).steps  # type: ignore[attr-defined]
    nodes = sorted({*ROLLOUTS[name][0].nodes, *ROLLOUTS[name][1].nodes})
    for first, second in combinations(range(0, steps, 13), 2):
        for one in nodes:
            for other in nodes:
                kills = {first: one, second: other}
                try:
                    play(name, 1, kills)
                except AssertionError as wrong:
                    raise AssertionError(explain(name, 1, kills)) from wrong
