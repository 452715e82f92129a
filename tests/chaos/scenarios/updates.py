"""Hot updates: workers of a running flow leave their place to new ones, alone or while others die."""

from __future__ import annotations

import random
import threading
import time

from protocol.errors import ChronetixError
from tests.chaos.flows import FLOWS, PLUGINS
from tests.chaos.plan import Args
from tests.chaos.scenarios.scenario import Scenario
from tests.chaos.world import LONGEST_S, Violation, World

ENDS = {"rolled-back", "connection-lost", "daemon-unreachable", "flow-not-running"}
"""How an update may fail beside which somebody was killed."""


def _apply(world: World, args: Args) -> None:
    """Undisturbed it succeeds, and nothing comes twice."""
    name, watch = args["flow"], world.watches[args["flow"]]
    watch.read()
    before = {route: each.repeated for route, each in watch.arrivals.items()}
    told: list[str] = []
    asking = threading.Thread(target=_ask, args=(world, args, told))
    asking.start()
    time.sleep(args["after_s"])
    try:
        if args["killed"]:
            world.kill_workers([(name, node) for node in args["killed"]])
        if args["daemon"]:
            for arrivals in watch.arrivals.values():
                arrivals.restartable = True  # in the middle of an update it begins anew
            world.kill_daemon()
            world.start_daemon()
    finally:
        asking.join()
    disturbed = args["killed"] or args["daemon"]
    if told != ["done"] and not (disturbed and told[0] in ENDS):
        raise Violation(f"updating {args['nodes']} of {name} ended with {told}")
    watch.read()
    again = {route: each.repeated - before[route] for route, each in watch.arrivals.items()}
    if not disturbed and any(again.values()):
        raise Violation(f"frames came twice because {args['nodes']} of {name} were updated: {again}")


def _ask(world: World, args: Args, told: list[str]) -> None:
    try:
        with world.client() as client:
            flow = FLOWS[args["flow"]].contract(world.folder)
            given = {"name": args["flow"], "base_dir": str(PLUGINS), "replace": args["nodes"]}
            told.append(client.call("apply", flow=flow, timeout=LONGEST_S, **given)["step"])
    except ChronetixError as reason:
        told.append(reason.name)
    except Violation:
        told.append("daemon-unreachable")


def _choose(chance: random.Random) -> Args:
    flow = chance.choice(sorted(FLOWS))
    nodes = sorted(FLOWS[flow].nodes)
    return {
        "flow": flow,
        "nodes": chance.sample(nodes, chance.randint(1, len(nodes))),
        "killed": chance.sample(nodes, chance.choice([0, 0, 1, 2])),
        "daemon": chance.random() < 0.2,
        "after_s": chance.choice([0.0, 0.005, 0.02, 0.05]),
    }


SCENARIOS = (Scenario("update", _choose, _apply),)
