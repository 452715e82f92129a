"""A flow whose workers come back one by one, or do not: every half-state between the first and the last of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from chronetix.protocol import messages as wire
from chronetix.protocol.errors import ChronetixError
from chronetixd.core import flow_messages as core
from chronetixd.core.wiring.incarnations import LostMemory
from chronetixd.core.worker import Exit, HasReattached, WorkerState
from chronetixd.flows import recovery as module
from chronetixd.flows.recovery import MAX_DEFERRED, MAX_DEFERRED_DESCRIPTORS, RETURN_S, ReattachRequest, Recovery
from chronetixd.store.journal_file import StoredWorker

NODES = ("a", "b", "c")
KILLED = Exit(signal="SIGKILL")


def life(node: str, **about: Any) -> StoredWorker:
    plain = {"incarnation": 3, "phase": "born", "token": f"token of {node}", "boot": "b", "pid": ord(node)}
    return StoredWorker(flow="f", node=node, **(plain | about))


class World:
    """A flow's run, wiring and kept memory, which note what is done with them; ``living`` are pids."""

    def __init__(self) -> None:
        self.living: set[int] = set()
        self.exits: dict[str, Exit] = {}
        self.closed: set[str] = set()
        self.kept_closed = 0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.workers: dict[str, Any] = {}
        self.signals: list[str] = []
        self.dispatched: list[core.FlowEvent] = []
        self.on_bus: list[str] = []
        self.connected: dict[str, list[int]] = {}
        self.taken_over: list[tuple[Any, ...]] = []
        self.home: list[tuple[Any, ...]] = []
        self.lost: LostMemory | None = None

    # -- the loop's, the kept memory's, the wiring's, and the run's sides

    def call_later(self, after_s: float, call: Callable[[], None]) -> Any:
        entry = after_s, call
        self.timers.append(entry)
        return SimpleNamespace(cancel=lambda: entry in self.timers and self.timers.remove(entry))

    def exit(self, node: str, incarnation: int, pid: int) -> Exit:
        assert (incarnation, pid) == (3, ord(node))
        return self.exits.get(node, KILLED)

    def closed_of(self, node: str) -> bool:
        return node in self.closed

    def close(self) -> None:
        self.kept_closed += 1

    def reattached(self, node: str, message: wire.Reattach, descriptors: list[int]) -> str:
        return f"memory of {node}"

    def take_over(self, shown: Any, dead: Any, over: Any, kept: Any, late: Any) -> list[str]:
        self.taken_over.append((dict(shown), dict(dead), set(over), dict(late)))
        if self.lost is not None:
            raise self.lost
        return ["told"]

    def new_worker(self, node: str) -> Any:
        made = SimpleNamespace(
            incarnation=-1,
            features=(),
            expected=None,
            signal=lambda kill: self.signals.append(f"{node} {kill}"),
            connect=lambda sock, pipes: self.connected.update({node: list(pipes)}),
        )
        made.expect = lambda pid, fd: setattr(made, "expected", pid)
        self.workers[node] = made
        return made

    def worker(self, node: str) -> Any:
        return self.workers[node]

    def resubscribe(self, node: str) -> None:
        self.on_bus.append(node)

    def dispatch(self, event: core.FlowEvent) -> None:
        self.dispatched.append(event)

    def recovered(self, *what: Any) -> None:
        self.home.append(what)

    def recovery(self, *lives: StoredWorker) -> Recovery:
        kept = SimpleNamespace(exit=self.exit, closed=self.closed_of, close=self.close)
        made = Recovery(self, self, self, NODES, lives, kept)  # type: ignore[arg-type]
        made.begin()
        return made


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    def pidfd(pid: int) -> int:
        if pid not in made.living:
            raise ProcessLookupError
        return -1

    monkeypatch.setattr(module, "is_alive", lambda life: life.phase == "born" and life.pid in made.living)
    monkeypatch.setattr(module.os, "pidfd_open", pidfd)
    return made


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        yield ours


def back(recovery: Recovery, sock: socket.socket, node: str, pid: int | None = None, **about: Any) -> None:
    fields = {"flow": "f", "node": node, "token": f"token of {node}", "state": "started", "incarnation": 3} | about
    pid = ord(node) if pid is None else pid
    recovery.reattached(ReattachRequest(wire.Reattach(**fields), [], sock, pid, ("feature",)))


class TestWhenItBegins:
    def test_with_nobody_alive_everything_is_known_at_once(self, world: World) -> None:
        recovery = world.recovery(life("a"), life("b", phase="intended"))
        assert world.home == [(["told"], None, [], {"a": KILLED, "b": Exit(), "c": Exit()}, None)]
        assert world.taken_over == [({}, {"a": 3, "b": 3, "c": 0}, set(), {})]
        assert {node: worker.incarnation for node, worker in world.workers.items()} == {"a": 3, "b": 3, "c": 0}
        assert (world.timers, world.kept_closed) == ([], 1)
        assert [recovery.state(node) for node in NODES] == ["exited"] * 3

    @pytest.mark.parametrize(
        ("about", "exit", "closed", "over"),
        [
            ({"phase": "gone", "well": True}, KILLED, False, True),
            ({"phase": "gone", "well": False}, KILLED, False, False),
            ({"phase": "born", "well": True}, KILLED, True, False),
            ({"phase": "born"}, Exit(code=0), True, True),
            ({"phase": "born"}, Exit(code=0), False, False),
            ({"phase": "born"}, Exit(code=1), True, False),
        ],
    )
    def test_a_node_is_over_where_it_said_so_or_its_memory_does(
        self, world: World, about: dict[str, Any], exit: Exit, closed: bool, over: bool
    ) -> None:
        world.exits["a"] = exit
        world.closed = {"a"} if closed else set()
        world.living = {ord("b")}
        recovery = world.recovery(life("a", **about), life("b"))
        assert recovery.finished == ({"a"} if over else set())
        assert ("a" in world.workers) is not over
        assert recovery.state("a") == (None if over else "exited")
        assert recovery.state("b") == "returning"

    def test_who_dies_just_before_it_is_watched_is_dead(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "is_alive", lambda life: life.phase == "born")
        world.living = {ord("a")}
        recovery = world.recovery(life("a"), life("b"))
        assert (recovery.awaited, world.home) == ({"a"}, [])
        assert world.workers["a"].expected == ord("a")
        assert recovery.state("b") == "exited"


class TestWhileSomeAreAway:
    @pytest.fixture
    def recovery(self, world: World) -> Recovery:
        world.living = set(map(ord, NODES))
        made = world.recovery(*map(life, NODES))
        assert (made.awaited, [seconds for seconds, _ in world.timers]) == (set(NODES), [RETURN_S])
        return made

    def test_it_is_home_with_the_last_of_them(self, world: World, recovery: Recovery, sock: socket.socket) -> None:
        for node, state in zip(NODES, ("starting", "started", "draining"), strict=True):
            assert world.home == []
            assert recovery.state(node) == "returning"
            back(recovery, sock, node, state=state)
            assert recovery.state(node) is None
        assert world.dispatched == [
            core.WorkerChanged(node, HasReattached(state))
            for node, state in zip(
                NODES, (WorkerState.STARTING, WorkerState.STARTED, WorkerState.DRAINING), strict=True
            )
        ]
        assert world.home == [(["told"], None, [], {}, None)]
        assert world.taken_over == [({node: f"memory of {node}" for node in NODES}, {}, set(), {})]
        assert (world.on_bus, world.timers, world.kept_closed) == ([*NODES], [], 1)
        assert {worker.features for worker in world.workers.values()} == {("feature",)}

    @pytest.mark.parametrize(
        "about", [{"pid": 7}, {"incarnation": 2}, {"incarnation": 4}, {"token": "token of b"}, {"token": ""}]
    )
    def test_who_is_not_who_is_awaited_is_refused_and_changes_nothing(
        self, world: World, recovery: Recovery, sock: socket.socket, about: dict[str, Any]
    ) -> None:
        with pytest.raises(ChronetixError, match="not the worker that is awaited"):
            back(recovery, sock, "a", **about)
        assert (recovery.awaited, world.connected, world.dispatched) == (set(NODES), {}, [])
        back(recovery, sock, "a")

    def test_nobody_comes_back_twice_nor_as_a_node_that_there_is_not(
        self, recovery: Recovery, sock: socket.socket
    ) -> None:
        back(recovery, sock, "a")
        for node in ("a", "x"):
            with pytest.raises(ChronetixError, match="not the worker that is awaited"):
                back(recovery, sock, node)

    def test_its_pipes_are_taken_and_what_is_none_is_refused(
        self, world: World, recovery: Recovery, sock: socket.socket
    ) -> None:
        message = wire.Reattach(
            flow="f", node="a", token="token of a", state="started", incarnation=3, segments=[0], pipes=True
        )
        memory, file = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_RDONLY)
        pipes = [*os.pipe()]
        visitor = ReattachRequest(message, [memory, pipes[0], file], sock, ord("a"))
        with pytest.raises(ChronetixError, match="they are no pipes"):
            recovery.reattached(visitor)
        assert visitor.descriptors == [memory, pipes[0], file]
        os.close(file)
        visitor.descriptors[2] = pipes[1]
        recovery.reattached(visitor)
        assert (visitor.descriptors, world.connected) == ([memory], {"a": pipes})
        for fd in pipes:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
        os.close(memory)

    def test_who_dies_meanwhile_is_told_of_as_one_that_was_away_or_not(
        self, world: World, recovery: Recovery, sock: socket.socket
    ) -> None:
        back(recovery, sock, "a")
        recovery.ended("a", KILLED)
        recovery.ended("b", Exit(code=1))
        assert (recovery.awaited, world.home) == ({"c"}, [])
        assert [recovery.state(node) for node in NODES] == ["exited", "exited", "returning"]
        back(recovery, sock, "c")
        ((_, dead, _, late),) = world.taken_over
        assert dead == {"a": 3, "b": 3}
        assert late == {
            "a": "died when another worker had not reattached to this daemon yet",
            "b": "died when it had not reattached to this daemon yet",
        }
        assert world.home[0][3] == {"a": KILLED, "b": Exit(code=1)}

    def test_who_is_too_late_is_killed_and_alone(self, world: World, recovery: Recovery, sock: socket.socket) -> None:
        back(recovery, sock, "b")
        ((_, too_late),) = world.timers
        too_late()
        assert sorted(world.signals) == ["a True", "c True"]
        assert world.home == []
        for node in ("a", "c"):
            recovery.ended(node, KILLED)
        ((_, _, _, late),) = world.taken_over
        assert late == dict.fromkeys("ac", "was killed, because it had not reattached to this daemon within 10 s")
        assert len(world.home) == 1

    @pytest.mark.parametrize(
        ("mode", "at_once"), [(core.StopMode.KILL, True), (core.StopMode.NOW, False), (core.StopMode.DRAIN, False)]
    )
    def test_a_stop_waits_until_all_are_home_unless_it_is_to_kill(
        self, world: World, recovery: Recovery, mode: core.StopMode, at_once: bool
    ) -> None:
        asked = core.StopRequested(mode)
        assert recovery.stop(asked) is at_once
        for node in NODES:
            recovery.ended(node, KILLED)
        assert world.home[0][4] == (None if at_once else asked)

    def test_nobody_is_awaited_any_more_once_it_is_abandoned(self, world: World, recovery: Recovery) -> None:
        recovery.abandon()
        for node in NODES:
            recovery.ended(node, KILLED)
        assert (world.home, world.timers, world.kept_closed) == ([], [], 1)

    def test_memory_that_is_lost_is_told_and_nobody_is_told_anything_else(
        self, world: World, recovery: Recovery
    ) -> None:
        world.lost = LostMemory.__new__(LostMemory)
        for node in NODES:
            recovery.ended(node, KILLED)
        ((told, lost, *_),) = world.home
        assert (told, lost, world.kept_closed) == ([], world.lost, 1)

    def test_what_a_worker_says_of_routes_waits_in_its_order(
        self, world: World, recovery: Recovery, sock: socket.socket
    ) -> None:
        descriptors = [5, 6]
        assert recovery.defers("a", wire.Started(), descriptors)
        assert descriptors == []
        assert recovery.defers("b", wire.Drained(route="r", epoch=1), [])
        assert not recovery.defers("a", wire.Pong(id=1, progress=0), descriptors)
        for node in NODES:
            back(recovery, sock, node)
        assert world.home[0][2] == [("a", wire.Started(), [5, 6]), ("b", wire.Drained(route="r", epoch=1), [])]

    def test_one_worker_s_messages_that_wait_are_bounded(self, recovery: Recovery) -> None:
        for _ in range(MAX_DEFERRED):
            assert recovery.defers("a", wire.Started(), [])
        with pytest.raises(ChronetixError, match="before all workers are back"):
            recovery.defers("a", wire.Started(), [])
        assert recovery.defers("b", wire.Started(), [])

    def test_so_is_what_comes_with_them(self, recovery: Recovery) -> None:
        assert recovery.defers("a", wire.Started(), [0] * (MAX_DEFERRED_DESCRIPTORS - 1))
        with pytest.raises(ChronetixError, match="before all workers are back"):
            recovery.defers("a", wire.Started(), [0, 0])
        assert recovery.defers("a", wire.Started(), [0])
        with pytest.raises(ChronetixError, match="before all workers are back"):
            recovery.defers("a", wire.Started(), [0])
        assert recovery.defers("a", wire.Started(), [])
        assert recovery.defers("b", wire.Started(), [0] * MAX_DEFERRED_DESCRIPTORS)
