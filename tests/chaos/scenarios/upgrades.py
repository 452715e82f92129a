"""Another image takes over in place, and everything else goes on happening: workers die before, meanwhile and after it,
the launcher with them, and the daemon right behind it."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

from tests.chaos.plan import Args
from tests.chaos.scenarios.kills import some_nodes, victims
from tests.chaos.scenarios.scenario import Scenario
from tests.chaos.world import World


def _upgrade(world: World, args: Args) -> None:
    for _ in range(args["times"]):
        known = world.known()
        if args["launcher_too"] and (launcher := world.launcher()):
            with suppress(ProcessLookupError):
                os.kill(launcher, signal.SIGKILL)
        world.kill_workers(victims(args, "before"), known)
        meanwhile = threading.Thread(target=_later, args=(world, args, known))
        meanwhile.start()
        try:
            world.upgrade()
        finally:
            meanwhile.join()
    if args["daemon_too"]:
        world.kill_daemon()
        world.start_daemon()


def _later(world: World, args: Args, known: dict[tuple[str, str], dict[str, object]]) -> None:
    time.sleep(args["later_s"])
    world.kill_workers(victims(args, "meanwhile"), known)


SCENARIOS = (
    Scenario(
        "upgrade",
        lambda chance: {
            "times": chance.choice([1, 1, 3]),
            "before": some_nodes(chance) if chance.random() < 0.5 else [],
            "meanwhile": some_nodes(chance) if chance.random() < 0.7 else [],
            "later_s": chance.uniform(0.0, 1.2),
            "launcher_too": chance.random() < 0.3,
            "daemon_too": chance.random() < 0.3,
        },
        _upgrade,
    ),
)
