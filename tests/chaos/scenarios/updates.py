"""Hot updates: workers of a running flow leave their place to new ones, alone or while others die."""

from __future__ import annotations

import random
import threading
import time

from chronetix.protocol.errors import ChronetixError
from tests.chaos.flows import FLOWS, PLUGINS, Map
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
    if not disturbed and not FLOWS[name].replays and any(again.values()):
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


LINES = {"line": "map", "replay": "map", "diamond": "left", "letters": "map"}
"""Flows whose routes may become others, and which node the source sends to."""


def _reshaped(world: World, args: Args) -> Map:
    """The flow with a node that is put in between or beside, or with other buffers; all sinks keep their routes."""
    target = LINES[args["flow"]]
    flow = FLOWS[args["flow"]].contract(world.folder)
    source = next(each for each in flow["manifests"] if each["node_id"] == "source")
    first = next(each for each in flow["routes"] if (each["from"], each["to"]) == ("source", target))
    if args["shape"] == "buffers":
        flow["routes"] = [each | {"buffer": args["buffer"], "watermark": 1} for each in flow["routes"]]
        return flow
    entry = "forward" if args["shape"] == "between" else "Ledger"
    artifact = {"kind": "Python", "uri": f"python://weathered.py:{entry}"}
    extra = source | {"node_id": "extra", "plugin_id": "extra", "artifact": artifact}
    flow["manifests"].append(extra | {"params": {"ledger": str(world.folder / "extra")}})
    if args["shape"] == "between":
        flow["routes"].remove(first)
        flow["routes"].append(first | {"from": "extra", "topic": f"extra/{target}"})
    flow["routes"].append(first | {"to": "extra", "topic": "source/extra"})
    return flow


def _reshape(world: World, args: Args) -> None:
    """There and back, while workers are killed: it always succeeds, for whoever dies is born again."""
    name = args["flow"]
    for flow, killed in ((_reshaped(world, args), args["killed"]), (FLOWS[name].contract(world.folder), args["back"])):
        told: list[str] = []
        asking = threading.Thread(target=_become, args=(world, name, flow, told))
        asking.start()
        time.sleep(args["after_s"])
        try:
            with world.client() as client:
                known = world.workers(client)
            world.kill_workers([(name, node) for node in killed if (name, node) in known], known)
        finally:
            asking.join()
        again = 0
        while told[-1:] == ["rolled-back"] and again < 10:  # somebody was just being restarted
            again += 1
            _become(world, name, flow, told)
        if told[-1:] not in (["done"], ["same"]):
            raise Violation(f"reshaping {name} ended with {told}")


def _become(world: World, name: str, flow: Map, told: list[str]) -> None:
    try:
        with world.client() as client:
            given = {"name": name, "base_dir": str(PLUGINS)}
            told.append(client.call("apply", flow=flow, timeout=LONGEST_S, **given)["step"])
    except ChronetixError as reason:
        told.append(reason.name)


def _choose_shape(chance: random.Random) -> Args:
    flow = chance.choice(sorted(LINES))
    nodes = [*sorted(FLOWS[flow].nodes), "extra"]
    return {
        "flow": flow,
        "shape": chance.choice(["between", "beside", "buffers"]),
        "buffer": chance.choice([2, 5, 64]),
        "killed": chance.sample(nodes, chance.choice([0, 1, 1, 2])),
        "back": chance.sample(nodes, chance.choice([0, 1, 1, 2])),
        "after_s": chance.choice([0.0, 0.005, 0.02, 0.1, 0.3]),
    }


def _drain(world: World, args: Args) -> None:
    """Whoever is killed while its flow drains is born again, and nothing is lost."""
    name = args["flow"]
    known = world.known()

    def kill() -> None:
        time.sleep(args["after_s"])
        world.kill_workers([(name, node) for node in args["killed"]], known)

    killing = threading.Thread(target=kill)
    killing.start()
    with world.client() as client:
        try:
            world.drain(client, name)
        finally:
            killing.join()
        world.submit(client, FLOWS[name])


def _stop_updating(world: World, args: Args) -> None:
    """A flow that is drained while its workers are replaced ends in good order, and loses nothing."""
    name = args["flow"]
    told: list[str] = []
    asking = threading.Thread(target=_ask, args=(world, args, told))
    asking.start()
    time.sleep(args["after_s"])
    with world.client() as client:
        try:
            world.drain(client, name)
        finally:
            asking.join()
        if told[0] not in ("done", "rolled-back", "flow-failed", "flow-not-running"):
            raise Violation(f"updating {args['nodes']} of {name}, which was stopped, ended with {told}")
        world.submit(client, FLOWS[name])


def _choose_stop(chance: random.Random) -> Args:
    flow = chance.choice(sorted(FLOWS))
    nodes = sorted(FLOWS[flow].nodes)
    return {
        "flow": flow,
        "nodes": chance.sample(nodes, chance.randint(1, len(nodes))),
        "after_s": chance.choice([0.005, 0.02, 0.03, 0.04, 0.05, 0.07]),
    }


def _choose_drain(chance: random.Random) -> Args:
    flow = chance.choice(sorted(LINES))
    nodes = sorted(FLOWS[flow].nodes)
    killed = chance.sample(nodes, chance.randint(1, 2))
    return {"flow": flow, "killed": killed, "after_s": chance.choice([0.0, 0.002, 0.005, 0.02])}


SCENARIOS = (
    Scenario("update", _choose, _apply),
    Scenario("reshape", _choose_shape, _reshape),
    Scenario("stop-while-updating", _choose_stop, _stop_updating),
    Scenario("kill-while-draining", _choose_drain, _drain),
)
