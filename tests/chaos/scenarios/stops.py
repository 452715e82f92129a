"""SIGSTOP and SIGCONT: whoever stands still for a while has lost nothing when he goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.chaos.plan import Args
from tests.chaos.scenarios.kills import some_nodes, victims
from tests.chaos.scenarios.scenario import Scenario
from tests.chaos.world import World


@contextmanager
def _standing(pids: list[int]) -> Iterator[None]:
    stopped = []
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _workers(world: World, args: Args) -> None:
    """Those beside them may die meanwhile, and they themselves, too."""
    pids = world.pids()
    with _standing([pids[each] for each in victims(args) if each in pids]):
        world.kill_workers(victims(args, "killed"))
        time.sleep(args["for_s"])


def _launcher(world: World, args: Args) -> None:
    launcher = world.launcher()
    with _standing([launcher] if launcher else []):
        world.kill_workers(victims(args, "killed"))
        time.sleep(args["for_s"])


def _launcher_for_good(world: World, args: Args) -> None:
    """Nobody lets it go on: it is replaced as soon as somebody waits for it."""
    launcher = world.launcher()
    if launcher:
        with suppress(ProcessLookupError):
            os.kill(launcher, signal.SIGSTOP)
    world.kill_workers(victims(args, "killed"))
    for pid in world.spares()[: args["spares"]]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    world.kill_workers(victims(args, "nodes"))


def _daemon(world: World, args: Args) -> None:
    known = world.known()
    with _standing([world.pid]):
        world.kill_workers(victims(args, "killed"), known)
        time.sleep(args["for_s"])


def _choose(chance: random.Random) -> Args:
    killed = some_nodes(chance, 3) if chance.random() < 0.6 else []
    return {"nodes": some_nodes(chance), "killed": killed, "for_s": chance.choice([0.05, 0.2, 0.7])}


SCENARIOS = (
    Scenario("stop-workers", _choose, _workers),
    Scenario("stop-launcher", _choose, _launcher),
    Scenario(
        "stop-launcher-for-good",
        lambda chance: {
            "killed": some_nodes(chance, 8),
            "nodes": some_nodes(chance, 3),
            "spares": chance.randint(0, 4),
        },
        _launcher_for_good,
    ),
    Scenario("stop-daemon", _choose, _daemon),
)
