"""Every kill between any two steps of every sort of roll-out, there and back, over the real tables: no frame is lost,
what is not marked is new and in order, nobody waits for the dead, the roll-out ends, every handle is closed once."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, replace

import pytest

from chronetixd.core.flow_messages import FlowState
from chronetixd.core.machine import IllegalEvent
from tests.chronetixd.core.search.workers import Ring
from tests.chronetixd.core.search.world import Shape, World

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
    "its neighbours are taken out, a plugin is replaced": (
        Shape((("s", "a"), ("a", "b"), ("b", "c"), ("c", "k")), credits=1, deep=("a",)),
        Shape((("s", "b"), ("b", "k")), credits=1, versions=("b",)),
    ),
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


@dataclass(frozen=True)
class Course:
    """What is played: a roll-out, one back, a drain. ``order`` and ``slow`` say who makes the next step, ``kills`` who
    dies before which, ``stop_at`` at which of the roll-out it is told to drain."""

    name: str
    order: int = 1
    slow: str = ""
    kills: tuple[tuple[int, str], ...] = ()
    stop_at: int | None = None

    def play(self) -> int:
        """How many steps it takes. Raises AssertionError when it goes wrong."""
        play = Play(replace(self, kills=()))
        for at, node in self.kills:
            if play.pauses(at):
                play.kill(node)
        return play.end()


class Play:
    """A course that is being played, between two steps."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.before, self.after = ROLLOUTS[course.name]
        self.world = world = World(self.before, course.order, course.slow)
        world.run()
        assert world.flow.state is FlowState.RUNNING
        world.check_lines()
        world.items = ITEMS[0] - 1
        world.run(FIRST_STEPS)
        self._first = world.count
        self._stages = ["there", "back", "drain"] if course.stop_at is None else ["towards", "drain"]
        self._begin_stage()

    def saved(self) -> bytes:
        """For :meth:`again`."""
        return pickle.dumps(self, pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def again(saved: bytes) -> Play:
        """One that goes on from there on its own."""
        play = pickle.loads(saved)
        assert isinstance(play, Play)
        return play

    def pauses(self, at: int) -> bool:
        """Play until step ``at`` comes next; False when it has ended before."""
        try:
            return self._go_on(self._first + at)
        except (AssertionError, LookupError, IllegalEvent) as wrong:
            raise AssertionError(f"{self.course}: {wrong}") from wrong

    def kill(self, node: str) -> None:
        """Before the next step."""
        at = self.world.count
        self.world.kills[at] = node
        self.course = replace(self.course, kills=(*self.course.kills, (at - self._first, node)))

    def end(self) -> int:
        """Play to the end; how many steps it took. Raises AssertionError when it goes wrong."""
        paused = self.pauses(-1 - self._first)
        assert not paused
        return self.world.count - self._first

    def _go_on(self, pause: int) -> bool:
        while self._stages:
            if self.world.go_on(pause):
                return True
            self._end_stage(self._stages.pop(0))
            if self._stages:
                self._begin_stage()
        return False

    def _begin_stage(self) -> None:
        world, back = self.world, replace(self.before, versions=self.after.versions)
        match self._stages[0]:
            case "there" | "back" as way:
                world.items = ITEMS[0] if way == "there" else ITEMS[1]
                world.become(self.after if way == "there" else back)
                world.begin()
            case "towards":
                assert self.course.stop_at is not None
                world.become(self.after)
                world.begin(self.course.stop_at)
            case "drain":
                world.items = max(world.items, ITEMS[2] if self.course.stop_at is None else 0)
                world.stop()
                world.begin()

    def _end_stage(self, stage: str) -> None:
        world = self.world
        match stage:
            case "there" | "back":
                assert world.rollout is not None
                step, waits_for = world.rollout.step, world.rollout.waits_for
                assert step == "done", f"it stands still: {step}, {waits_for}"
                check(world)
                world.check_lines()
                for node in self.before.nodes if stage == "there" else ():
                    if node not in self.after.nodes:
                        forget(world, node)
            case "towards":
                world.items = ITEMS[0]
            case "drain":
                assert world.flow.state is FlowState.STOPPED, f"{world.flow.state}, {world.flow.failure}"
                check(world)
                world.close()
                assert world.kept == set(), "handles are left"
                assert world.ends_left == set(), "ends of lines are left"


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


LONG = bool(os.environ.get("CHRONETIX_SEARCH"))
"""Every step, for minutes (``make search``); else some of them, others for each sort of roll-out."""

NAMES = pytest.mark.parametrize("name", ROLLOUTS)


def nodes_of(name: str) -> list[str]:
    """Who may die in this roll-out."""
    return sorted({node for shape in ROLLOUTS[name] for node in shape.nodes})


def some(name: str, steps: int, stride: int, long: int = 1) -> list[int]:
    """The first and every ``stride``-th step, others in each sort of roll-out; in long searches every ``long``-th."""
    thin = {0, *range([*ROLLOUTS].index(name) % stride, steps, stride)}
    return sorted(thin) if not LONG else list(range(0, steps, long))


def orders(name: str) -> list[Course]:
    """All that differ in who makes the next step."""
    return [Course(name, order) for order in range(6)] + [Course(name, slow=node) for node in nodes_of(name)]


def kill_one(course: Course, steps: list[int]) -> None:
    """Each node dies before each of ``steps``."""
    play = Play(course)
    for at in steps:
        assert play.pauses(at), f"{course} has no step {at}"
        here = play.saved()
        for node in nodes_of(course.name):
            killed = Play.again(here)
            killed.kill(node)
            killed.end()


def kill_two(course: Course, steps: list[int]) -> None:
    """Each node dies before each of ``steps``, and each before each that comes after it."""
    play = Play(course)
    for number, first in enumerate(steps[:-1]):
        assert play.pauses(first), f"{course} has no step {first}"
        here = play.saved()
        for one in nodes_of(course.name):
            killed = Play.again(here)
            killed.kill(one)
            kill_another(killed, steps[number + 1 :])


def kill_another(play: Play, steps: list[int]) -> None:
    """Each node dies before each of ``steps`` that there are."""
    for second in steps:
        if not play.pauses(second):
            return
        here = play.saved()
        for other in nodes_of(play.course.name):
            killed = Play.again(here)
            killed.kill(other)
            killed.end()
    play.end()


@pytest.mark.timeout(3600 if LONG else 300)
@NAMES
def test_whoever_dies_between_two_steps_of_a_roll_out(name: str) -> None:
    for course in orders(name):
        kill_one(course, some(name, course.play(), 5 if course == Course(name) else 29))


@pytest.mark.timeout(3600 if LONG else 300)
@NAMES
def test_whichever_two_die_in_it(name: str) -> None:
    for course in orders(name) if LONG else (Course(name),):
        kill_two(course, some(name, course.play(), 29, 7))


@pytest.mark.timeout(3600 if LONG else 300)
@NAMES
def test_a_flow_that_drains_in_the_middle_of_it_ends_whoever_dies(name: str) -> None:
    for course in orders(name) if LONG else (Course(name), Course(name, 2)):
        for stop_at in some(name, 60, 17, 3):
            stopped = replace(course, stop_at=stop_at)
            kill_one(stopped, some(name, stopped.play(), 23, 3))


@pytest.mark.parametrize(
    "course",
    [
        Course("another node in its place", kills=((0, "a"), (13, "b"))),
        Course("another node in its place", slow="k", kills=((0, "s"),)),
        Course("a node is put in between", slow="k", kills=((0, "a"),)),
        Course("a node is taken out, its consumer replaced", stop_at=0),
    ],
    ids=str,
)
def test_what_is_easily_wrong(course: Course) -> None:
    course.play()
