"""What must hold after every scenario. Each check reads the present state and returns what is wrong.

State that may still change (a process that is just dying, a spare worker that is being forked) is checked again until
it is right or LONGEST_S have passed; lost or repeated frames are reported at once.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chronetix.shm.names import abandoned
from chronetixd.linux.cgroups import base_name, find_place
from tests.chaos import processes
from tests.chaos.caller import Caller
from tests.chaos.world import LONGEST_S, ROOT, Violation, World

SLACK_BYTES = 32 << 20
"""By how much the daemon's memory may differ from the baseline: allocators keep some memory, and the rings of records
fill up."""

CROWD_BYTES = 96 << 20
"""By how much it may differ for good once documents of a million items were sent: Python's allocator returns an arena
only when it is empty, and keeps about as much as one user's documents took at a time."""

ROOM = {"chronetix-arena": 8, "chronetix-credit": 11}
"""How many more descriptors than at the baseline may be open: a node's memory grows and shrinks, and is returned after
some seconds."""


@dataclass(frozen=True)
class Baseline:
    """The state before the storm."""

    daemon: Counter[str]
    workers: dict[tuple[str, str], Counter[str]]
    rss_bytes: int
    names: frozenset[str]


def baseline(world: World) -> Baseline:
    """Return the present state, once it does not change any more."""
    before: list[Counter[str]] = []

    def still() -> bool:
        now = [processes.steady(pid) for pid in (world.pid, *world.pids().values())]
        same = now == before
        before[:] = now
        return same and not processes_of(world)

    if not world.wait(still):
        raise Violation(f"it does not come to rest: {processes_of(world)}")
    workers = {key: processes.steady(pid) for key, pid in world.pids().items()}
    rss = processes.memory(world.pid)
    return Baseline(processes.steady(world.pid), workers, rss, frozenset(abandoned()))


def check(world: World, caller: Caller, base: Baseline) -> None:
    """Make all checks. Raises Violation with everything that does not hold."""
    wrong: list[str] = []
    for look in (arrived, ended(caller), credits, listed):
        wrong += look(world)
    later: list[Callable[[World], list[str]]] = [processes_of, descriptors(base), memory(base), leftovers(base)]
    for again in later:
        last: list[str] = []

        def right(look: Callable[[World], list[str]] = again, last: list[str] = last) -> bool:
            processes.reap(world.pid)
            last[:] = look(world)
            return not last

        world.wait(right, LONGEST_S / 2)
        wrong += last
    if wrong:
        raise Violation("; ".join(wrong))


def arrived(world: World) -> list[str]:
    """No committed frame is lost, none is repeated without a mark, and all are in order; each request ended once."""
    for watch in world.watches.values():
        watch.read()
    return [text for watch in world.watches.values() for text in watch.complaints]


def ended(caller: Caller) -> Callable[[World], list[str]]:
    """Every call ended once."""
    return lambda _world: list(caller.complaints)


def credits(world: World) -> list[str]:
    """No route has more frames under way than credits, nor fewer than none; nothing is counted as lost on ``block``."""
    wrong = []
    with world.client() as client:
        for flow in world.watches:
            for route in client.call("describe", flow=flow)["routes"]:
                stats = route["stats"]
                if stats is None:
                    wrong.append(f"{flow}: route {route['id']} has no counters")
                    continue
                lost = {why: count for why, count in stats["drops"].items() if count}
                if not 0 <= stats["outstanding"] <= route["buffer"] and route["policy"] != "latest":
                    wrong.append(f"{flow}: route {route['id']}: {stats['outstanding']} of {route['buffer']} under way")
                if route["policy"] == "block" and lost:
                    wrong.append(f"{flow}: route {route['id']} lost {lost}")
    return wrong


def listed(world: World) -> list[str]:
    """``chronetixctl ls`` answers, and knows all flows."""
    arguments = ["--socket", str(world.socket), "ls", "-o", "json"]
    told = world.programs.run("chronetixctl", *arguments, env=os.environ, cwd=ROOT)
    if told.returncode != 0:
        return [f"chronetixctl ls ended with {told.returncode}: {told.stderr}"]
    names = {flow["name"]: flow["state"] for flow in json.loads(told.stdout)["flows"]}
    return [f"chronetixctl ls does not show that {name} runs" for name in world.watches if names.get(name) != "running"]


def processes_of(world: World) -> list[str]:
    """Daemon, launcher, workers and spare workers live, and no other process; there are no zombies; each worker has a
    control group, and there is no other one."""
    wrong = []
    with world.client() as client:
        workers = {node["pid"]: key for key, node in world.workers(client).items()}
        told = client.call("version")["spares"]
    spares = set(told["pids"])
    launcher = world.launcher_beside(spares | set(workers))
    if len(spares) != told["wanted"]:
        wrong.append(f"{len(spares)} of {told['wanted']} spares")
    if not launcher:
        wrong.append("no launcher")
    expected = {world.pid, launcher, *workers, *spares}
    there = processes.of_token(world.token)
    wrong += [f"stray process {_named(pid)}" for pid in sorted(there - expected - {os.getpid()})]
    wrong += [f"process {pid} {workers.get(pid, '')} is gone" for pid in sorted(expected - there - {0})]
    parents = {world.pid, os.getpid(), launcher} - {0}
    wrong += [f"zombie {pid}" for pid in sorted(processes.zombies(parents) & _still(world))]
    return wrong + _groups(world, set(workers) | spares)


def _still(world: World) -> set[int]:
    """Return zombies that this process is not about to reap."""
    processes.reap(world.pid)
    return processes.zombies({world.pid, os.getpid()})


def _named(pid: int) -> str:
    try:
        return f"{pid} ({Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()[:80]})"
    except OSError:
        return f"{pid} (gone)"


def _groups(world: World, pids: set[int]) -> list[str]:
    """Return control groups without a known process."""
    place = find_place("auto").group
    base = None if place is None else place / base_name(str(world.state))
    if base is None or not base.is_dir():
        return []
    wrong = []
    for leaf in base.iterdir():
        if leaf.is_dir() and leaf.name != "daemon":
            inside = {int(pid) for pid in (leaf / "cgroup.procs").read_text().split()}
            if not inside & pids:
                wrong.append(f"control group {leaf.name} is left, with {sorted(inside) or 'nothing'} in it")
    return wrong


def descriptors(base: Baseline) -> Callable[[World], list[str]]:
    """As many descriptors of each kind as before, in the daemon and in every worker."""

    def look(world: World) -> list[str]:
        wrong = processes.lasting(world.pid, partial(compared, "the daemon", base.daemon))
        for key, pid in world.pids().items():
            wrong += processes.lasting(pid, partial(compared, "/".join(key), base.workers[key]))
        return wrong

    return look


def compared(who: str, before: Counter[str], now: Counter[str]) -> list[str]:
    wrong = []
    for kind in sorted(set(before) | set(now)):
        if now[kind] > before[kind] + ROOM.get(kind, 0):
            wrong.append(f"{who} has {now[kind]} descriptors of {kind}, it had {before[kind]}")
    return wrong


def memory(base: Baseline) -> Callable[[World], list[str]]:
    """The daemon is about as large as before."""

    def look(world: World) -> list[str]:
        rss = processes.memory(world.pid)
        grown = rss - base.rss_bytes > SLACK_BYTES + (CROWD_BYTES if world.crowded else 0)
        return [f"the daemon has {rss >> 20} MiB, it had {base.rss_bytes >> 20}"] if grown else []

    return look


def leftovers(base: Baseline) -> Callable[[World], list[str]]:
    """No named segment of a dead maker, no damaged file."""

    def look(world: World) -> list[str]:
        wrong = [f"segment {name} is left in /dev/shm" for name in set(abandoned()) - base.names]
        return wrong + [f"{path.name} in the state folder" for path in world.state.glob("*damaged*")]

    return look
