"""Nobody is left behind: what workers start dies with them, whatever it did to get away; with and without cgroups.

A flow that has stopped has nothing left, so these tests look once, and wait for nothing.
"""

from __future__ import annotations

import os
import resource
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chronetixd.linux import fd_reserve
from chronetixd.linux.cgroups import base_name, find_place
from chronetixd.linux.proc import children, stat

Flow = Callable[..., dict[str, Any]]
PLACE = find_place("auto").group
needs_cgroups = pytest.mark.skipif(PLACE is None, reason=find_place("auto").reason)


@pytest.fixture(params=[pytest.param("auto", marks=needs_cgroups), "off"])
def cgroup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def daemon(cgroup: str, start: Any) -> Iterator[Any]:
    running = start(CHRONETIX_CGROUP=cgroup, CHRONETIX_TERMINATE_TIMEOUT="0.3")
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0, running.log.read_text()
    if PLACE is not None:
        assert not (PLACE / base_name(str(running.state))).exists()


def descendants_of(peer: Any, flow: str) -> list[int]:
    """The pids that its workers told of."""
    following = peer.begin("logs", flow=flow, follow=True)
    while "pids" not in (fields := peer.receive().value.get("fields", {})):
        pass
    peer.send(type(peer).cancel(following))
    peer.end(following)
    return list(fields["pids"])


def gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def wait_for_end(pid: int) -> None:
    """Until the process is dead and reaped."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], 60)[0]
    finally:
        os.close(pidfd)
    while not gone(pid):
        pass


@pytest.mark.parametrize("mode", ["drain", "now"])
def test_all_that_a_worker_started_is_gone_when_its_flow_has_stopped(
    mode: str, scripted: Flow, peer: Any, daemon: Any
) -> None:
    peer.call("submit", flow=scripted("daemonises"), name="f", wait="running")
    pids = descendants_of(peer, "f")
    assert len(pids) == 4
    peer.call("stop", flow="f", mode=mode)
    assert [pid for pid in pids if not gone(pid)] == []
    assert strays_of(daemon) == []


def strays_of(daemon: Any) -> list[int]:
    """Its children but for the launcher."""
    launcher = next(record["launcher"] for record in daemon.records() if record["event"] == "ready")
    return [pid for pid in children(daemon.process.pid) if pid != launcher]


def test_it_is_gone_too_when_the_worker_was_killed(scripted: Flow, peer: Any, daemon: Any) -> None:
    peer.call("submit", flow=scripted("daemonises"), name="f", wait="running")
    pids = descendants_of(peer, "f")
    os.kill(peer.call("describe", flow="f")["nodes"][0]["pid"], signal.SIGKILL)
    following = peer.begin("events", flow="f", follow=True)
    while peer.receive().value["kind"] != "flow-failed":
        pass
    assert following
    assert [pid for pid in pids if not gone(pid)] == []
    assert strays_of(daemon) == []


@pytest.mark.parametrize("how", ["killed", "killed by its daemon"])
def test_a_resource_tracker_removes_what_a_killed_worker_has_shared_and_is_gone(
    how: str, scripted: Flow, peer: Any, daemon: Any
) -> None:
    peer.call("submit", flow=scripted("shares_memory"), name="f", wait="running")
    following = peer.begin("logs", flow="f", follow=True)
    while "memory" not in (fields := peer.receive().value.get("fields", {})):
        pass
    peer.send(type(peer).cancel(following))
    peer.end(following)
    memory = Path("/dev/shm", fields["memory"])
    assert memory.exists()
    peer.call("stop", flow="f", mode="drain" if how == "killed" else "now")
    assert not memory.exists()
    assert [pid for pid in fields["pids"] if not gone(pid)] == []
    assert strays_of(daemon) == []


def test_one_that_shows_nothing_of_its_worker_is_ended_all_the_same(
    cgroup: str, scripted: Flow, peer: Any, daemon: Any
) -> None:
    peer.call("submit", flow=scripted("daemonises_well"), name="f", wait="running")
    (pid,) = descendants_of(peer, "f")
    peer.call("stop", flow="f")
    if cgroup == "auto":
        assert gone(pid)
    else:  # nobody waits for it, as nothing says whose it was
        wait_for_end(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_one_that_became_another_user_is_ended(scripted: Flow, peer: Any, daemon: Any) -> None:
    peer.call("submit", flow=scripted("becomes_nobody"), name="f", wait="running")
    (pid,) = descendants_of(peer, "f")
    peer.call("stop", flow="f")
    assert gone(pid)


def test_generations_that_run_away_are_caught(scripted: Flow, peer: Any, daemon: Any) -> None:
    peer.call("submit", flow=scripted("breeds"), name="f", wait="running")
    descendants_of(peer, "f")
    peer.call("stop", flow="f")
    assert strays_of(daemon) == []


def test_a_stray_that_dies_while_its_worker_lives_is_no_zombie(scripted: Flow, peer: Any, daemon: Any) -> None:
    peer.call("submit", flow=scripted("leaves_a_dying_child"), name="f", wait="running")
    (pid,) = descendants_of(peer, "f")
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    peer.call("stop", flow="f")


@pytest.mark.parametrize("kind", ["daemonises", "daemonises_well"])
def test_the_end_of_a_neighbour_leaves_a_stray_of_a_living_worker_alone(
    kind: str, scripted: Flow, peer: Any, daemon: Any
) -> None:
    peer.call("submit", flow=scripted("good"), name="neighbour", wait="running")
    peer.call("submit", flow=scripted(kind), name="f", wait="running")
    pids = descendants_of(peer, "f")
    peer.call("stop", flow="neighbour")
    peer.call("list")
    found = [stat(pid) for pid in pids]
    assert all(each is not None and each.state != "Z" for each in found), found


def test_the_end_of_the_launcher_leaves_strays_alone(scripted: Flow, peer: Any, daemon: Any) -> None:
    peer.call("submit", flow=scripted("daemonises"), name="f", wait="running")
    pids = descendants_of(peer, "f")
    launcher = next(record["launcher"] for record in daemon.records() if record["event"] == "ready")
    following = peer.begin("events", follow=True)
    os.kill(launcher, signal.SIGKILL)
    while peer.receive().value["kind"] != "launcher-lost":
        pass
    assert following
    assert [pid for pid in pids if gone(pid)] == []


def test_the_end_of_the_daemon_leaves_nobody(scripted: Flow, peer: Any, daemon: Any) -> None:
    peer.call("submit", flow=scripted("daemonises", "daemonises_well"), name="f", wait="running")
    pids = descendants_of(peer, "f")
    assert daemon.stop() == 0
    assert [pid for pid in pids if not gone(pid)] == []


@needs_cgroups
def test_what_a_killed_daemon_left_is_ended_by_the_next_one(start: Any, scripted: Flow) -> None:
    first = start()
    with first.connect() as peer:
        peer.call("submit", flow=scripted("daemonises"), name="f", wait="running")
        pids = descendants_of(peer, "f")
        first.process.kill()
        first.process.wait()
    second = start()
    for pid in pids:
        wait_for_end(pid)
    assert second.stop() == 0


def test_a_claim_on_memory_holds(start: Any, cgroup: str, tmp_path: Path) -> None:
    """Without the memory controller as RLIMIT_DATA: the worker gets MemoryError and says so."""
    (tmp_path / "hungry.py").write_text("def take(ctx):\n    yield len(bytearray(512 << 20))\n")
    artifact = {"kind": "Python", "uri": f"python://{tmp_path}/hungry.py:take"}
    node = {"plugin_id": "n", "node_id": "n", "version": "1", "artifact": artifact}
    for spares, claims, wanted in (("0", 256, "MemoryError"), ("1", 256, "MemoryError"), ("1", 1024, "stopped")):
        daemon = start(CHRONETIX_CGROUP=cgroup, CHRONETIX_SPARES=spares)
        with daemon.connect() as peer:
            if spares != "0":
                following = peer.begin("events", follow=True)
                while peer.receive().value["kind"] != "spares-ready":
                    pass
                assert following
            claimed = {**node, "resource_claims": {"memory_bytes": claims << 20}}
            flow = {"manifests": [claimed], "routes": [], "schemas": []}
            answer = peer.call("submit", flow=flow, wait="stopped")
        assert wanted in answer.get("reason", answer["state"])
        assert daemon.stop() == 0


def test_nobody_is_left_behind_when_descriptors_have_run_out(scripted: Flow, daemon: Any) -> None:
    """All but those that the daemon keeps back are in use while a tree ends, and also while it ends itself."""
    with daemon.connect() as peer:
        peer.call("submit", flow=scripted("daemonises"), name="f", wait="running")
        pids = descendants_of(peer, "f")
        (node,) = peer.call("describe", flow="f")["nodes"]
        following = peer.begin("events", flow="f", follow=True)
        used = max(map(int, os.listdir(f"/proc/{daemon.process.pid}/fd"))) + 1
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (1, used + fd_reserve.KEPT))
        os.kill(node["pid"], signal.SIGKILL)
        while peer.receive().value["kind"] != "flow-failed":
            pass
        assert [pid for pid in pids if not gone(pid)] == []
        peer.send(type(peer).cancel(following))
        peer.end(following)
    assert strays_of(daemon) == []
