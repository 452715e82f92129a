"""Workers of each SDK in flows with workers in Python: contents, policies, growth, the event bus, ticks, own loops."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from typing import Any

import pytest

from chronetixctl.client import Client
from tests.sdk.nodes import PLUGINS, Nodes, Run

SIZES = [0, 1, 7, 64, 100, 3585, 4095, 4096, 70_000, 1 << 20]
COUNT = 300
MIXES = ["".join(languages) for languages in itertools.product("op", repeat=3) if "o" in languages]


def made(nodes: Nodes, language: str, *arguments: Any, **more: Any) -> dict[str, Any]:
    return (nodes.own if language == "o" else nodes.python)(*arguments, **more)


def await_line(client: Client, flow: str, line: str) -> None:
    """Wait until a node of ``flow`` has logged ``line``."""
    for entry in client.stream("logs", flow=flow, follow=True):
        if entry["line"] == line:
            return


@pytest.mark.parametrize("mix", MIXES)
def test_frames_of_all_sizes_come_through_every_mix_of_languages(mix: str, nodes: Nodes, run: Run) -> None:
    source, map_, sink = mix
    sizes = {"sizes": SIZES}
    results = run(
        nodes.line(
            made(nodes, source, "source", "sized", {**sizes, "count": COUNT}),
            made(nodes, map_, "map", "forward"),
            made(nodes, sink, "sink", "check", sizes),
        )
    )
    expected = sum(SIZES) * COUNT // len(SIZES)
    counted = {name: results["sink"][name] for name in ("frames", "bytes", "wrong", "redelivered")}
    assert counted == {"frames": COUNT, "bytes": expected, "wrong": 0, "redelivered": 0}


@pytest.mark.parametrize("role", ["forward", "in_place", "late", "own_loop"])
def test_whatever_way_a_map_takes_the_frames_are_the_same(role: str, any_nodes: Nodes, run: Run) -> None:
    nodes, sizes = any_nodes, {"sizes": SIZES}
    results = run(
        nodes.line(
            nodes.own("source", "sized", {**sizes, "count": COUNT}),
            nodes.own("map", role),
            nodes.own("sink", "check", sizes),
            buffer=16,
        )
    )
    assert (results["sink"]["frames"], results["sink"]["wrong"]) == (COUNT, 0)


def test_frames_of_64_mb_make_the_arena_grow(any_nodes: Nodes, run: Run) -> None:
    nodes, sizes = any_nodes, {"sizes": [64 << 20, 10]}
    results = run(
        nodes.line(
            nodes.own("source", "sized", {**sizes, "count": 4}, resource_claims={"arena_bytes": 256 << 20}),
            nodes.python("map", "forward", resource_claims={"arena_bytes": 256 << 20}),
            nodes.own("sink", "check", sizes),
            buffer=2,
        )
    )
    assert (results["sink"]["frames"], results["sink"]["wrong"], results["sink"]["largest"]) == (4, 0, 64 << 20)


def test_a_node_sends_to_several_and_takes_from_several(any_nodes: Nodes, run: Run) -> None:
    nodes = any_nodes
    names = ["left", "right"]
    manifests = [
        nodes.own("source", "items", {"count": 2000}),
        nodes.own("left", "forward"),
        nodes.own("right", "late"),
        nodes.own("sink", "counts"),
    ]
    routes = [nodes.edge("source", name) for name in names] + [nodes.edge(name, "sink") for name in names]
    results = run({"manifests": manifests, "routes": routes, "schemas": []})
    assert results["sink"]["frames"] == 4000


@pytest.mark.parametrize("policy", ["drop_newest", "latest"])
def test_a_slow_sink_loses_frames_by_its_policy_and_each_is_counted(
    policy: str, any_nodes: Nodes, client: Client
) -> None:
    nodes = any_nodes
    flow = nodes.line(
        nodes.own("source", "items", {"count": 3000}),
        nodes.own("sink", "counts", {"pause_us": 300}),
        policy=policy,
        buffer=8,
    )
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped")
    described = client.call("describe", flow=answer["flow"])
    (route,), taken = described["routes"], described["nodes"][1]["result"]["frames"]
    assert answer["state"] == "stopped"
    stats = route["stats"]
    assert 0 < taken < 3000
    assert taken + stats["dropped"] == 3000


def test_a_slow_consumer_past_the_limit_loses_its_route_and_the_others_go_on(nodes: Nodes, client: Client) -> None:
    flow = {
        "manifests": [
            nodes.own("source", "items", {"count": 200}),
            nodes.own("quick", "counts"),
            nodes.own("slow", "counts", {"pause_us": 900_000}),
        ],
        "routes": [
            nodes.edge("source", "quick"),
            nodes.edge("source", "slow", buffer=4, policy="block", limit_ms=50),
        ],
        "schemas": [],
    }
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped")
    assert answer["state"] == "stopped"
    kinds = [event["kind"] for event in client.stream("events", flow=answer["flow"])]
    assert "route-given-up" in kinds
    results = {node["node"]: node["result"] for node in client.call("describe", flow=answer["flow"])["nodes"]}
    assert results["quick"]["frames"] == 200
    assert results["slow"]["frames"] < 200


@pytest.mark.parametrize("sink", ["o", "p"])
def test_metadata_and_a_time_travel_with_a_frame(sink: str, nodes: Nodes, run: Run) -> None:
    results = run(
        nodes.line(
            nodes.own("source", "items", {"count": 50}),
            nodes.own("map", "noted"),
            made(nodes, sink, "sink", "reads_notes"),
        )
    )
    assert (results["sink"]["frames"], results["sink"]["wrong"]) == (50, 0)


@pytest.mark.parametrize("answers", ["o", "p"])
def test_requests_are_answered(answers: str, any_nodes: Nodes, client: Client) -> None:
    nodes = any_nodes
    bus = {"bus_subscriptions": [{"pattern": "double", "codec": "cbor"}]}
    answerer = nodes.own("answerer", "answers", **bus) if answers == "o" else nodes.python("answerer", "doubles", **bus)
    flow = nodes.line(nodes.own("source", "items", {"count": 100}), nodes.own("asker", "asks"))
    flow["manifests"].append(answerer)
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="running")
    for event in client.stream("events", flow=answer["flow"], follow=True):
        if event["kind"] == "worker-exited" and event["node"] == "asker":
            break
    assert client.call("stop", flow=answer["flow"])["state"] == "stopped"
    nodes_ = {node["node"]: node for node in client.call("describe", flow=answer["flow"])["nodes"]}
    assert (nodes_["asker"]["result"]["frames"], nodes_["asker"]["result"]["wrong"]) == (100, 0)


def test_a_request_that_nobody_hears_ends_with_its_reason(nodes: Nodes, client: Client) -> None:
    flow = {"manifests": [nodes.own("asker", "asks_nobody")], "routes": [], "schemas": []}
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="running")
    await_line(client, answer["flow"], "no answer")
    client.call("stop", flow=answer["flow"])
    (node,) = client.call("describe", flow=answer["flow"])["nodes"]
    assert node["result"]["answers"] == "no-subscriber"


def test_ticks_are_published_and_heard(any_nodes: Nodes, client: Client) -> None:
    nodes = any_nodes
    timers = [{"id": "beat", "schedule": {"interval_ms": 5}}]
    manifests = [
        nodes.own("clock", "ticks", timers=timers),
        nodes.own("listener", "hears", {"subscribes": "beat"}),
    ]
    flow = {"manifests": manifests, "routes": [], "schemas": []}
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="running")
    await_line(client, answer["flow"], "heard 3")
    client.call("stop", flow=answer["flow"])
    results = {node["node"]: node["result"] for node in client.call("describe", flow=answer["flow"])["nodes"]}
    assert results["clock"]["ticks"] >= results["listener"]["messages"] >= 3


def test_what_a_worker_prints_and_logs_is_seen(nodes: Nodes, client: Client) -> None:
    flow = nodes.line(nodes.own("source", "items", {"count": 1}), nodes.own("sink", "counts"))
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped")
    lines = {(entry["stream"], entry["line"]) for entry in client.stream("logs", flow=answer["flow"], node="sink")}
    assert ("stdout", "role counts") in lines
    assert "started as counts" in {line for _, line in lines}


@pytest.mark.parametrize(
    ("role", "reason"),
    [("fails", "frame 10 is one too many"), ("refuses", "not today"), ("crashes", None)],
)
def test_a_worker_that_fails_says_why(role: str, reason: str | None, nodes: Nodes, client: Client) -> None:
    flow = nodes.line(
        nodes.python("source", "items", {"count": 100}),
        nodes.own("map", role),
        nodes.python("sink", "check", {"sizes": [8]}),
    )
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped")
    assert answer["state"] == "failed"
    assert (reason or nodes.abort) in answer["reason"]


@pytest.mark.parametrize("mode", ["drain", "now"])
def test_a_flow_is_stopped(mode: str, any_nodes: Nodes, client: Client) -> None:
    nodes = any_nodes
    flow = nodes.line(nodes.own("source", "paced"), nodes.own("map", "forward"), nodes.own("sink", "counts"))
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="running")
    assert client.call("stop", flow=answer["flow"], mode=mode)["state"] == "stopped"
    described = client.call("describe", flow=answer["flow"])
    if mode == "drain":
        source, _, sink = (node["result"] for node in described["nodes"])
        assert source["number"] == sink["frames"]


def test_a_worker_that_no_daemon_has_started_says_so(nodes: Nodes) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CHRONETIX_FD"}
    ended = subprocess.run([nodes.worker], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "CHRONETIX_FD" in ended.stderr


def test_a_worker_whose_daemon_goes_ends_with_70(nodes: Nodes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [nodes.worker],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"CHRONETIX_FD": str(theirs.fileno())},
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        assert ours.recv(4096)
        ours.close()
        _, said = process.communicate()
    assert process.returncode == 70
    assert "closed the connection" in said
