"""What runs out: the disk, descriptors, memory. Whatever needs it fails and says so, nothing else does, and it comes
back."""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from tests.chaos import processes
from tests.chaos.flows import FLOWS, PLUGINS
from tests.chaos.plan import Args
from tests.chaos.scenarios.kills import some_nodes, victims
from tests.chaos.scenarios.scenario import Scenario
from tests.chaos.world import LONGEST_S, Violation, World

UNMAPPED = ("cannot map a peer's shared memory",)
"""A flow fails by it when the daemon cannot look where a dead producer's ring ends."""


def _no_disk(world: World) -> str:
    return world.no_disk


@contextmanager
def _full(path: Path) -> Iterator[None]:
    """Until nothing fits any more, not even a byte."""
    path.touch()
    try:
        with path.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        path.unlink()


def _disk(world: World, args: Args) -> None:
    with _full(world.state / "filler"), world.client() as client:
        world.kill_workers(victims(args))
        for size in args["sizes"]:
            _submit(client, size)
        client.call("list", timeout=LONGEST_S)
        time.sleep(args["for_s"])


def _submit(client: Client, size: int) -> None:
    """A flow is refused, or it is on the disk: the journal's file may have room of earlier ones."""
    source = FLOWS["line"].contract(Path())["manifests"][0] | {"params": {"filler": "x" * size}}
    flow = {"manifests": [source], "routes": [], "schemas": []}
    try:
        client.call("submit", flow=flow, name="beside", base_dir=str(PLUGINS), wait="running", timeout=LONGEST_S)
        client.call("stop", flow="beside", mode="now", timeout=LONGEST_S)
    except ChronetixError as refused:
        if refused.name != "journal-unusable":
            raise Violation(f"with a full disk a flow was refused with {refused}") from None


@contextmanager
def _limited(pid: int, what: int, soft: int) -> Iterator[None]:
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)


def _emfile(world: World, args: Args) -> None:
    """Workers die while the daemon can open next to nothing; whoever is connected is still heard."""
    known = world.known()
    with world.client() as client:
        # The limit is a number that descriptors must be below, not how many there are.
        numbers = {int(name) for name in os.listdir(f"/proc/{world.pid}/fd")}
        free = [number for number in range(max(numbers) + 20) if number not in numbers]
        with _limited(world.pid, resource.RLIMIT_NOFILE, free[args["room"]]):
            world.kill_workers(victims(args), known)
            if args["launcher"]:
                with suppress(ProcessLookupError):
                    os.kill(_launcher_of(world, {node["pid"] for node in known.values()}), 9)
            time.sleep(args["for_s"])
            client.call("list", timeout=LONGEST_S)


def _launcher_of(world: World, workers: set[int]) -> int:
    """Found without asking the daemon, which could not answer a new client."""
    sessions = {pid: os.getsid(pid) for pid in processes.children(world.pid) if pid not in workers}
    return min((pid for pid, session in sessions.items() if session == pid), default=world.pid + 2**22)


def _refused_memory(world: World, args: Args) -> None:
    """Rings, credits and segments, and the daemon's views of them, cannot be had every so often."""
    before = world.weather.refused
    world.weather.refuse_memory(args["every"])
    try:
        world.kill_workers(victims(args))
        if not world.wait(lambda: world.weather.refused > before, LONGEST_S):
            raise Violation("nobody has asked for memory: the weather does not reach anybody")
        time.sleep(args["for_s"])
    finally:
        world.weather.refuse_memory(0)


def _small_daemon(world: World, args: Args) -> None:
    """The daemon may hardly grow: what is too much for it costs whoever asked for it."""
    known = world.known()
    size = processes.memory(world.pid, "VmSize")
    with _limited(world.pid, resource.RLIMIT_AS, size + args["room_kib"] * 1024):
        world.kill_workers(victims(args), known)
        for _ in range(args["publishes"]):
            with suppress(ChronetixError, Violation), world.client() as greedy:
                greedy.call("publish", topic="/nobody", payload=bytes(args["bytes"]), timeout=LONGEST_S)
        time.sleep(args["for_s"])


def _choose(chance: random.Random, **more: object) -> Args:
    return {"nodes": some_nodes(chance), "for_s": chance.choice([0.1, 0.5]), **more}


SCENARIOS = (
    Scenario(
        "full-disk",
        lambda chance: _choose(chance, sizes=chance.choices([10, 30_000, 500_000], k=3)),
        _disk,
        impossible=_no_disk,
    ),
    Scenario(
        "no-descriptors",
        lambda chance: _choose(chance, room=chance.choice([0, 1, 2, 3, 5, 8, 13]), launcher=chance.random() < 0.5),
        _emfile,
    ),
    Scenario(
        "no-shared-memory",
        lambda chance: _choose(chance, every=chance.choice([1, 2, 3, 7])),
        _refused_memory,
        may_fail=UNMAPPED,
    ),
    Scenario(
        "small-daemon",
        lambda chance: _choose(
            chance,
            room_kib=chance.choice([0, 256, 4096]),
            publishes=chance.randint(1, 5),
            bytes=chance.choice([1000, 1_000_000, 8_000_000]),
        ),
        _small_daemon,
        may_fail=UNMAPPED,
        may_break=True,
    ),
)
