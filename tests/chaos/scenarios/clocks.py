"""The wall clock steps, for the daemon and all that it has started; nothing but what is shown may depend on it."""

from __future__ import annotations

import time

from tests.chaos.plan import Args
from tests.chaos.scenarios.kills import some_nodes, victims
from tests.chaos.scenarios.scenario import Scenario
from tests.chaos.world import Violation, World

DAY_S = 86_400


def _step(world: World, args: Args) -> None:
    before = world.weather.clock_read
    for seconds in args["steps_s"]:
        world.weather.step_clock(seconds * 1_000_000_000)
        world.kill_workers(victims(args))
        time.sleep(args["for_s"])
    if not world.wait(lambda: world.weather.clock_read > before):
        raise Violation("nobody has read the clock: the weather does not reach anybody")
    if args["restart"]:
        world.settle()
        world.kill_daemon()
        world.start_daemon()
    world.weather.step_clock(0)


SCENARIOS = (
    Scenario(
        "clock-steps",
        lambda chance: {
            "steps_s": chance.choices([-10 * 365 * DAY_S, -DAY_S, -3600, -1, 1, 3600, DAY_S, 30 * 365 * DAY_S], k=3),
            "nodes": some_nodes(chance),
            "for_s": chance.choice([0.0, 0.1]),
            "restart": chance.random() < 0.3,
        },
        _step,
    ),
)
