"""kill -9 of the daemon below a supervisor that keeps descriptors: also who dies meanwhile costs no frame."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import psutil
import pytest

from chronetixctl.client import Client
from tests.e2e.supervisor import Supervisor
from tests.e2e.surviving import NODES, Flow, Pair, end, events, kill, lives, pids
from tests.warm import Warm


@pytest.fixture
def supervisor(tmp_path: Path, settings: dict[str, str], warm_programs: Warm) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path, settings, warm_programs)
    yield made
    for daemon in made.started:
        if daemon.process.poll() is None:
            daemon.process.send_signal(signal.SIGTERM)
        daemon.process.wait()
    made.close()


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path)


def goes_on(supervisor: Supervisor, flow: Flow, victims: tuple[str, ...]) -> None:
    """The next daemon brings back who died, and the flow goes on until it is stopped."""
    with Client.connect(supervisor.started[-1].socket) as client:
        left = set(victims)
        for event in client.stream("events", flow="f", follow=True) if left else ():
            assert event["kind"] != "flow-failed", event
            if event["kind"] == "node-restarted":
                left.discard(event["node"])
            if not left:
                break
        flow.grows(client)
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


@pytest.mark.parametrize("victims", [some for count in (1, 2, 3) for some in combinations(NODES, count)], ids="+".join)
def test_workers_that_die_while_no_daemon_is_there_are_succeeded_and_cost_no_frame(
    victims: tuple[str, ...], supervisor: Supervisor, flow: Flow
) -> None:
    with Client.connect(supervisor.start().socket) as client:
        before = flow.submit(client)
    kill(supervisor.started[-1])
    for victim in victims:
        end(before[victim])
    supervisor.start()
    goes_on(supervisor, flow, victims)


def test_nothing_is_kept_of_a_flow_that_has_ended(supervisor: Supervisor, flow: Flow) -> None:
    daemon = supervisor.start()
    with Client.connect(daemon.socket) as client:
        flow.submit(client)
        supervisor.until(lambda: len(supervisor.store) >= 3 + 2 * 2 + 2)
        assert client.call("stop", flow="f")["state"] == "stopped"
        supervisor.until(lambda: not supervisor.store)


def test_also_where_a_source_had_no_memory_yet(supervisor: Supervisor, tmp_path: Path) -> None:
    flow = Pair(tmp_path)
    with Client.connect(supervisor.start().socket) as client:
        sink = flow.submit(client)["sink"]
        source = flow.orphan(client)
    kill(supervisor.started[-1])
    for pid in (source, sink):
        end(pid)
    flow.hold.unlink()
    with Client.connect(supervisor.start().socket) as client:
        for event in client.stream("events", flow="f", follow=True):
            assert event["kind"] != "flow-failed", event
            if event["kind"] == "node-restarted" and event["node"] == "sink":
                break
        flow.grows(client)
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


def test_it_is_so_again_and_again(supervisor: Supervisor, flow: Flow) -> None:
    with Client.connect(supervisor.start().socket) as client:
        flow.submit(client)
    for victim in ("map", "sink", "source"):
        with Client.connect(supervisor.started[-1].socket) as client:
            (worker,) = [node["pid"] for node in client.call("describe", flow="f")["nodes"] if node["node"] == victim]
        kill(supervisor.started[-1])
        end(worker)
        with Client.connect(supervisor.start().socket) as client:
            flow.grows(client)
    goes_on(supervisor, flow, ())


@pytest.mark.parametrize("victims", [("sink",), ("source", "map"), NODES], ids="+".join)
def test_daemons_that_are_killed_one_after_the_other_on_their_way_back_cost_no_frame(
    victims: tuple[str, ...], supervisor: Supervisor, flow: Flow
) -> None:
    """Each at its next step: after the first thing that it tells the supervisor, after the second, …"""
    with Client.connect(supervisor.start().socket) as client:
        before = flow.submit(client)
    kill(supervisor.started[-1])
    for victim in victims:
        end(before[victim])
    for step in range(1, 9):
        supervisor.cut_short(step)
    with Client.connect(supervisor.start().socket) as client:
        (listed,) = client.call("list")["flows"]
        assert listed["state"] == "running", listed
        flow.grows(client)
        assert client.call("stop", flow="f")["state"] == "stopped"
    flow.check()


def test_a_daemon_that_is_killed_on_its_way_back_leaves_all_names_as_they_were(
    supervisor: Supervisor, flow: Flow
) -> None:
    with Client.connect(supervisor.start().socket) as client:
        before = flow.submit(client)
        supervisor.until(lambda: len(supervisor.store) >= 3 + 2 * 2 + 2)
        kept = {name for name in supervisor.store if "/p/" not in name}
    kill(supervisor.started[-1])
    end(before["sink"])
    supervisor.cut_short(1)
    assert kept <= supervisor.store.keys()
    supervisor.start()
    goes_on(supervisor, flow, ())


def test_it_is_told_how_a_worker_ended_that_nobody_watched(supervisor: Supervisor, flow: Flow) -> None:
    with Client.connect(supervisor.start().socket) as client:
        before = flow.submit(client)
        supervisor.until(lambda: any("/p/" in name for name in supervisor.store))
    kill(supervisor.started[-1])
    end(before["map"])
    with Client.connect(supervisor.start().socket) as client:
        (told,) = [event for event in events(client) if event["kind"] == "worker-failed"]
        assert "SIGKILL" in told["message"]
        assert client.call("stop", flow="f")["state"] == "stopped"


@pytest.mark.settings(spares=0)
def test_the_daemons_that_follow_have_no_more_descriptors_than_the_first(supervisor: Supervisor, flow: Flow) -> None:
    def descriptors() -> int:
        """Without the line to an inspector and the pidfd of it: returning workers have sent descriptors, and it ends
        when nobody has asked it for ten seconds."""
        daemon = psutil.Process(supervisor.started[-1].process.pid)
        lines = [" ".join(child.cmdline()) for child in daemon.children()]
        return daemon.num_fds() - 2 * sum("inspector" in line for line in lines)

    with Client.connect(supervisor.start().socket) as client:
        before = flow.submit(client)
        first, kept = descriptors(), 0
        while kept != (kept := len(supervisor.store)) or kept < 9:
            client.call("list")
    for _ in range(3):
        kill(supervisor.started[-1])
        with Client.connect(supervisor.start().socket) as client:
            assert pids(client) == before
            while descriptors() > first:  # what it closes later it has closed in a moment
                client.call("list")
            assert len(supervisor.store) == kept
    goes_on(supervisor, flow, ())


class TestAStoreThatHoldsSomethingElse:
    """Whatever comes out of it, living workers go on, and nobody maps what is not a route's memory."""

    def swapped(
        self, supervisor: Supervisor, flow: Flow, swap: Callable[[dict[str, list[int]]], None]
    ) -> dict[str, int]:
        with Client.connect(supervisor.start().socket) as client:
            before = flow.submit(client)
            supervisor.until(lambda: len(supervisor.store) >= 9)
        kill(supervisor.started[-1])
        swap(supervisor.store)
        return before

    def test_foreign_descriptors_under_our_names(self, supervisor: Supervisor, flow: Flow) -> None:
        def swap(store: dict[str, list[int]]) -> None:
            for name in store:
                os.close(store[name].pop())
                store[name].append(os.open("/dev/null", os.O_RDONLY))

        before = self.swapped(supervisor, flow, swap)
        with Client.connect(supervisor.start().socket) as client:
            assert pids(client) == before
            supervisor.until(
                lambda: (
                    len(supervisor.store) >= 9
                    and not any(
                        os.readlink(f"/proc/self/fd/{fd}") == "/dev/null"
                        for fds in supervisor.store.values()
                        for fd in fds
                    )
                )
            )
        kill(supervisor.started[-1])
        end(before["map"])
        supervisor.start()
        goes_on(supervisor, flow, ("map",))

    def test_the_memory_of_one_end_under_the_name_of_another(self, supervisor: Supervisor, flow: Flow) -> None:
        def swap(store: dict[str, list[int]]) -> None:
            rings = [name for name in store if "/r/" in name]
            store[rings[0]], store[rings[1]] = store[rings[1]], store[rings[0]]

        before = self.swapped(supervisor, flow, swap)
        with Client.connect(supervisor.start().socket) as client:
            assert pids(client) == before
        goes_on(supervisor, flow, ())

    def test_names_of_nobody_and_too_many_descriptors(self, supervisor: Supervisor, flow: Flow) -> None:
        strange = {"f/map//s/0/x/0", "stored", "f///////"}

        def swap(store: dict[str, list[int]]) -> None:
            for name in ("f/map//r/0/0/0", "f/nobody//s/0/0/0", "g/a//p/0/0/0", *strange):
                store[name] = [os.open("/dev/null", os.O_RDONLY)]
            for name in [name for name in store.keys() - strange if "/s/" in name]:
                store[name] += [os.dup(store[name][0]) for _ in range(30)]

        before = self.swapped(supervisor, flow, swap)
        with Client.connect(supervisor.start().socket) as client:
            assert pids(client) == before
            supervisor.until(
                lambda: (
                    len(supervisor.store) == 9 + len(strange)
                    and all(len(kept) == 1 for kept in supervisor.store.values())
                )
            )
        assert supervisor.store.keys() > strange, "what is no name of ours is not ours to drop"
        goes_on(supervisor, flow, ())

    def test_a_dead_workers_memory_that_is_not_there_is_missed_and_not_invented(
        self, supervisor: Supervisor, flow: Flow
    ) -> None:
        def swap(store: dict[str, list[int]]) -> None:
            for name in [name for name in store if "/c/" in name]:
                os.close(store[name].pop())
                store[name].append(os.memfd_create("foreign"))

        before = self.swapped(supervisor, flow, swap)
        end(before["map"])
        with Client.connect(supervisor.start().socket) as client:
            while (listed := client.call("list")["flows"][0])["state"] != "failed":
                assert listed["state"] in ("running", "draining")
            assert "what it had returned on" in listed["reason"]
        assert not [pid for pid in before.values() if lives(pid)]

    def test_one_that_has_no_room_for_all_of_a_flow_has_nothing_of_it(self, supervisor: Supervisor, flow: Flow) -> None:
        supervisor.limit = 8
        with Client.connect(supervisor.start().socket) as client:
            before = flow.submit(client)
            assert "flow-not-kept" in [event["kind"] for event in events(client)]
        kill(supervisor.started[-1])
        assert not supervisor.store
        with Client.connect(supervisor.start().socket) as client:
            assert pids(client) == before
        goes_on(supervisor, flow, ())
