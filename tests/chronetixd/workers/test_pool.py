"""Spare workers: forked ahead, handed out, replaced, and never left behind."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

PLUGIN = """
import os, random, sys
import numpy

class Here:
    def on_start(self, ctx):
        known = os.environ["CHRONETIX_FLOW"], os.environ["CHRONETIX_NODE"], os.getcwd(), sys.argv[1]
        print(*known, random.random(), numpy.random.random(), flush=True)

    def on_stop(self, ctx):
        return os.getpid()
"""


@pytest.fixture
def prepared(start: Callable[..., Any]) -> Iterator[Any]:
    """A daemon that keeps two spares."""
    daemon = start(CHRONETIX_SPARES="2")
    yield daemon
    if daemon.process.poll() is None:
        assert daemon.stop() == 0, daemon.log.read_text()


@pytest.fixture
def peer(prepared: Any) -> Iterator[Any]:
    with prepared.connect() as connected:
        yield connected


@pytest.fixture
def watch(prepared: Any, peer: Any) -> Iterator[Callable[[], list[int]]]:
    """Wait until the pool is full (again); the spares' pids. Each full pool counts once."""
    with prepared.connect() as watcher:
        watcher.begin("events", follow=True)

        def wait() -> list[int]:
            while watcher.receive().value["kind"] != "spares-ready":
                pass
            pids: list[int] = peer.call("version")["spares"]["pids"]
            return pids

        yield wait


@pytest.fixture
def flow(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A flow of ``nodes`` of a plugin that prints where it is."""
    (tmp_path / "here.py").write_text(PLUGIN)

    def make(*nodes: str) -> dict[str, Any]:
        artifact = {"kind": "Python", "uri": "python://./here.py:Here"}
        manifests = [{"plugin_id": name, "node_id": name, "version": "1", "artifact": artifact} for name in nodes]
        return {"flow": {"manifests": manifests, "routes": [], "schemas": []}, "base_dir": str(tmp_path)}

    return make


def pids(peer: Any, name: str) -> set[int]:
    return {node["pid"] for node in peer.call("describe", flow=name)["nodes"]}


def printed(peer: Any, name: str) -> list[list[str]]:
    call = peer.begin("logs", flow=name)
    lines = []
    while hasattr(message := peer.receive(), "value") and type(message).__name__ == "Item":
        lines.append(message.value["line"].split())
    assert message.id == call
    return lines


def await_end(pid: int) -> None:
    """Until process ``pid`` has ended, reaped or not."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(pidfd):
        select.select([pidfd], [], [])


def test_spares_become_the_workers_and_are_replaced(peer: Any, watch: Any, flow: Any) -> None:
    spares = set(watch())
    peer.call("submit", name="f", wait="running", **flow("a", "b", "c"))
    assert spares < pids(peer, "f")
    assert set(watch()).isdisjoint(pids(peer, "f"))


def test_a_single_one_that_was_taken_is_replaced(peer: Any, watch: Any, flow: Any) -> None:
    spares = watch()
    peer.call("submit", name="f", wait="running", **flow("a"))
    (left,) = set(spares) - pids(peer, "f")
    assert left in watch()


def test_a_spare_is_in_its_place_like_any_worker(peer: Any, watch: Any, flow: Any, tmp_path: Path) -> None:
    watch()
    peer.call("submit", name="f", wait="running", **flow("a", "b", "c"))
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids(peer, "f")}
    assert names == {"a", "b", "c"}
    peer.call("stop", flow="f")
    lines = printed(peer, "f")
    assert sorted(line[:4] for line in lines) == [["f", name, str(tmp_path), name] for name in "abc"]
    assert len({line[4] for line in lines}) == len({line[5] for line in lines}) == 3


def test_a_spare_that_is_killed_is_reaped_and_replaced(prepared: Any, watch: Any) -> None:
    victim, other = watch()
    os.kill(victim, signal.SIGKILL)
    now = watch()
    assert other in now
    assert victim not in now
    assert victim not in {child.pid for child in psutil.Process(prepared.process.pid).children()}


def test_a_flow_starts_when_its_spares_are_dead_and_nobody_knows_yet(
    prepared: Any, peer: Any, watch: Any, flow: Any
) -> None:
    spares = watch()
    prepared.process.send_signal(signal.SIGSTOP)
    for pid in spares:
        os.kill(pid, signal.SIGKILL)
        await_end(pid)
    call = peer.begin("submit", name="f", wait="running", **flow("a", "b"))
    prepared.process.send_signal(signal.SIGCONT)
    assert peer.end(call).value["state"] == "running"
    assert pids(peer, "f").isdisjoint(spares)


def test_a_folder_that_is_gone_fails_the_flow_with_its_name(peer: Any, watch: Any, flow: Any) -> None:
    watch()
    failed = peer.refused("submit", name="f", wait="running", **(flow("a") | {"base_dir": "/nowhere"}))
    assert "/nowhere" in failed.message or "here.py" in failed.message


def test_spares_outlive_the_launcher(prepared: Any, peer: Any, watch: Any, flow: Any) -> None:
    spares = set(watch())
    (launcher,) = {child.pid for child in psutil.Process(prepared.process.pid).children()} - spares
    os.kill(launcher, signal.SIGKILL)
    peer.call("submit", name="f", wait="running", **flow("a", "b"))
    assert pids(peer, "f") == spares


def test_the_daemon_takes_its_spares_with_it(prepared: Any, watch: Any) -> None:
    spares = watch()
    assert prepared.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in spares)


def test_spares_die_with_a_daemon_that_is_killed(prepared: Any, watch: Any) -> None:
    spares = watch()
    prepared.process.kill()
    prepared.process.wait()
    for pid in spares:
        await_end(pid)


def test_a_full_pool_costs_no_wake_up(prepared: Any, watch: Any) -> None:
    def switches() -> int:
        status = Path(f"/proc/{spare}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)

    spare, _ = watch()
    before = switches()
    with prepared.connect() as other:
        for _ in range(100):
            other.call("version")
    assert switches() == before
