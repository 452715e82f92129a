"""kill -9: workers, spares, the launcher, the daemon, and several of them at once."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from chronetixd.linux.proc import children
from tests.chaos.flows import FLOWS, everyone
from tests.chaos.plan import Args
from tests.chaos.scenarios.scenario import Scenario
from tests.chaos.world import Violation, Watch, World

GONE = "died while no daemon was there"
LATE = "had not reattached to this daemon"


def some_nodes(chance: random.Random, most: int = 4) -> list[list[str]]:
    """Nodes of any flows, as flow and node."""
    return [list(key) for key in chance.sample(sorted(everyone()), chance.randint(1, most))]


def victims(args: Args, key: str = "nodes") -> list[tuple[str, str]]:
    """Those that were drawn."""
    return [(flow, node) for flow, node in args[key]]


def _workers(world: World, args: Args) -> None:
    for _ in range(args["times"]):
        world.kill_workers(victims(args))
        time.sleep(args["pause_s"])


def _flow(world: World, args: Args) -> None:
    world.kill_workers([(args["flow"], node) for node in FLOWS[args["flow"]].nodes])


def _spares(world: World, args: Args) -> None:
    for pid in world.spares()[: args["count"]]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    world.kill_workers(victims(args))


def _launcher(world: World, args: Args) -> None:
    """Just when it has something to fork."""
    launcher = world.launcher()
    if args["workers_first"]:
        world.kill_workers(victims(args))
    if launcher:
        with suppress(ProcessLookupError):
            os.kill(launcher, signal.SIGKILL)
    if not args["workers_first"]:
        world.kill_workers(victims(args))


def _daemon(world: World, args: Args) -> None:
    """Flows that survive go on without it."""
    for _ in range(args["times"]):
        world.kill_daemon()
        time.sleep(args["away_s"])
        alone = time.monotonic_ns()
        for watch in world.watches.values():
            if watch.kind.survives and watch.kind.name != "asking" and not world.wait(partial(_goes_on, watch, alone)):
                raise Violation(f"{watch.kind.name} stands still without a daemon")
        world.start_daemon()


def _goes_on(watch: Watch, since_ns: int) -> bool:
    """Frames have arrived since then, by every route."""
    watch.read()
    return all(watch.last[route].monotonic_ns > since_ns for route in watch.arrivals)


def _daemon_and_workers(world: World, args: Args) -> None:
    """Workers die before or after the daemon. Where the supervisor has kept nothing the memory of a worker that died is
    gone, and its flow fails and says so."""
    pids = world.pids()
    chosen = [pids[each] for each in victims(args) if each in pids]
    if args["workers_first"]:
        world.kill_workers(victims(args))
    world.kill_daemon()
    if not args["workers_first"]:
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if args["nothing_kept"]:
        world.forget_kept()
    world.start_daemon()


def _unready_launcher(world: World, args: Args) -> None:
    """Launchers of the next daemon, one after the other, each before it is ready or just then."""
    world.kill_daemon()
    world.begin_daemon()
    for _ in range(args["times"]):
        world.wait(lambda: bool(children(world.pid)))
        for pid in children(world.pid):
            if _is_launcher(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(args["pause_s"])
    world.await_daemon()


def _is_launcher(pid: int) -> bool:
    with suppress(OSError):
        return (
            b"chronetix.nodeworker.process.launcher" in Path(f"/proc/{pid}/cmdline").read_bytes()
            and os.getsid(pid) == pid
        )
    return False


def _daemons_on_their_way(world: World, args: Args) -> None:
    """Workers die with the daemon, and the next ones die on their way back, each at another step."""
    pids = world.pids()
    world.kill_daemon()
    for each in victims(args):
        if each in pids:
            with suppress(ProcessLookupError):
                os.kill(pids[each], signal.SIGKILL)
    for step in args["steps"]:
        world.cut_short(step)
    world.start_daemon()


SCENARIOS = (
    Scenario(
        "kill-workers",
        lambda chance: {
            "nodes": some_nodes(chance),
            "times": chance.choice([1, 1, 2, 5]),
            "pause_s": chance.choice([0.0, 0.01, 0.1]),
        },
        _workers,
        measured=True,
    ),
    Scenario("kill-flow", lambda chance: {"flow": chance.choice(sorted(FLOWS))}, _flow, measured=True),
    Scenario("kill-spares", lambda chance: {"count": chance.randint(1, 4), "nodes": some_nodes(chance)}, _spares),
    Scenario(
        "kill-launcher",
        lambda chance: {"nodes": some_nodes(chance, 6), "workers_first": chance.random() < 0.5},
        _launcher,
    ),
    Scenario(
        "kill-unready-launcher",
        lambda chance: {"times": chance.randint(1, 3), "pause_s": chance.choice([0.0, 0.05, 0.6])},
        _unready_launcher,
    ),
    Scenario(
        "kill-daemons-on-their-way",
        lambda chance: {
            "nodes": some_nodes(chance, 4),
            "steps": [chance.randint(1, 30) for _ in range(chance.randint(1, 3))],
        },
        _daemons_on_their_way,
    ),
    Scenario(
        "kill-daemon",
        lambda chance: {"times": chance.choice([1, 1, 2]), "away_s": chance.choice([0.0, 0.05, 0.5])},
        _daemon,
    ),
    Scenario(
        "kill-daemon-and-workers",
        lambda chance: {
            "nodes": some_nodes(chance, 3),
            "workers_first": chance.random() < 0.5,
            "nothing_kept": chance.random() < 0.3,
        },
        _daemon_and_workers,
        may_fail=(GONE, LATE),
    ),
)
