"""Flows run end to end: daemon, launcher, workers and rings as a user meets them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from tests.e2e.conftest import PLUGINS, Submit, start_daemon


def result_of(client: Any, flow: str, node: str) -> Any:
    return next(entry["result"] for entry in client.call("describe", flow=flow)["nodes"] if entry["node"] == node)


def test_every_frame_arrives_once_and_in_order_through_a_map(submit: Any, client: Any) -> None:
    nodes = [
        submit.node("numbers", "pipeline:numbers", params={"count": 20_000}),
        submit.node("forward", "pipeline:forward"),
        submit.node("check", "pipeline:Check"),
    ]
    answer = submit(nodes, [submit.edge("numbers", "forward"), submit.edge("forward", "check")], name="line")
    assert answer["state"] == "stopped"
    assert result_of(client, "line", "check") == {"seen": 20_000, "faults": []}


def test_a_fan_out_gives_every_branch_every_frame_and_a_fan_in_takes_from_all(submit: Any, client: Any) -> None:
    nodes = [
        submit.node("numbers", "pipeline:numbers", params={"count": 2_000, "size": 5_000}),
        *(submit.node(f"forward-{n}", "pipeline:forward") for n in range(3)),
        submit.node("check", "pipeline:Check"),
    ]
    routes = [submit.edge("numbers", f"forward-{n}") for n in range(3)]
    routes += [submit.edge(f"forward-{n}", "check") for n in range(3)]
    submit(nodes, routes, name="wide")
    assert result_of(client, "wide", "check") == {"seen": 6_000, "faults": []}


def test_frames_larger_than_the_first_segment_make_the_arena_grow(submit: Any, client: Any) -> None:
    nodes = [
        submit.node("numbers", "pipeline:numbers", params={"count": 40, "size": 3_000_000}),
        submit.node("check", "pipeline:Check"),
    ]
    submit(nodes, [submit.edge("numbers", "check", buffer=16, watermark=12)], name="big")
    assert result_of(client, "big", "check") == {"seen": 40, "faults": []}


def test_the_memory_of_a_burst_goes_back_to_the_machine_at_both_ends(submit: Any, client: Any) -> None:
    nodes = [
        submit.node("source", "bursts:Bursts"),
        submit.node("left", "bursts:Sink"),
        submit.node("right", "bursts:Sink"),
    ]
    edges = [submit.edge("source", name, buffer=8, watermark=6) for name in ("left", "right")]
    assert submit(nodes, edges, name="burst")["state"] == "stopped"
    assert [result_of(client, "burst", name) for name in ("left", "right")] == [[18, True], [18, True]]
    large, small_again = result_of(client, "burst", "source")
    assert min(large) > 4 << 20
    assert small_again == [True] * 3


def test_a_frame_that_can_never_fit_fails_the_flow_and_says_how_to_raise_the_limit(submit: Any, client: Any) -> None:
    claims = {"arena_bytes": 1_000_000}
    nodes = [
        submit.node("numbers", "pipeline:numbers", params={"count": 1, "size": 2_000_000}, resource_claims=claims),
        submit.node("check", "pipeline:Check"),
    ]
    answer = submit(nodes, [submit.edge("numbers", "check")])
    assert answer["state"] == "failed"
    assert "arena_bytes" in client.call("describe", flow=answer["flow"])["reason"]


def test_a_slow_sink_holds_the_source_back_and_top_names_the_route(submit: Any, client: Any, daemon: Any) -> None:
    nodes = [
        submit.node("endless", "pipeline:endless", params={"size": 200_000}),
        submit.node("forward", "pipeline:forward"),
        submit.node("check", "pipeline:Check", params={"pause": 0.01}),
    ]
    routes = [
        submit.edge("endless", "forward", buffer=8, watermark=6),
        submit.edge("forward", "check", buffer=8, watermark=6),
    ]
    submit(nodes, routes, wait="running", name="slow")
    while True:
        (seen,) = client.call("stats", flow="slow")["flows"]
        if all(route["max_outstanding"] == 8 and route["would_block"] for route in seen["routes"]):
            break
    top = json.loads(daemon.ctl("top", "--once", "-o", "json").stdout)
    assert [route["to"] for route in bottlenecks(top)] == ["check"]
    assert client.call("stop", flow="slow")["state"] == "stopped"
    stats = [route["stats"] for route in client.call("describe", flow="slow")["routes"]]
    assert result_of(client, "slow", "check") == {"seen": stats[0]["committed"], "faults": []}
    assert [(route["max_outstanding"], route["dropped"]) for route in stats] == [(8, 0), (8, 0)]
    assert all(0 < route["producer_sleeps"] <= route["committed"] for route in stats)


def bottlenecks(top: Any) -> list[dict[str, Any]]:
    return [route for flow in top["flows"] for route in flow["routes"] if route["bottleneck"]]


def test_a_source_may_choose_not_to_wait(submit: Any, client: Any) -> None:
    nodes = [
        submit.node("numbers", "pipeline:chooses_not_to_wait", params={"count": 40}),
        submit.node("check", "pipeline:Check", params={"pause": 0.002}),
    ]
    submit(nodes, [submit.edge("numbers", "check", buffer=4, watermark=3)], name="choosy")
    described = client.call("describe", flow="choosy")
    assert result_of(client, "choosy", "check") == {"seen": 40, "faults": []}
    assert described["routes"][0]["stats"]["would_block"] > 0


def test_requests_are_answered_and_publications_reach_exact_topics(submit: Any, client: Any) -> None:
    nodes = [
        submit.node("asks", "pipeline:Asks"),
        submit.node("answers", "pipeline:Answers"),
        submit.node("collects", "pipeline:Collects"),
    ]
    routes = [
        {"from": "asks", "to": "collects", "plane": "control", "topic": "answers"},
        {"from": "asks", "to": "answers", "plane": "control", "topic": "sums"},
    ]
    answer = submit(nodes, routes, wait="running")
    log = next(item for item in client.stream("logs", flow=answer["flow"], follow=True) if item["node"] == "collects")
    assert log["fields"] == {"topic": "answers", "value": {"sum": 5}}
    assert client.call("stop", flow=answer["flow"])["state"] == "stopped"


def test_one_flow_that_runs_twice_does_not_hear_itself(submit: Any, client: Any) -> None:
    routes = [{"from": "asks", "to": "collects", "plane": "control", "topic": name} for name in ("own", "/shared")]
    for flow in ("prod", "staging"):
        nodes = [submit.node(node, "pipeline:Collects") for node in ("asks", "collects")]
        submit(nodes, routes, name=flow, wait="running")
    for topic, heard in (("own", {"staging"}), ("/shared", {"prod", "staging"})):
        payload = topic.encode()
        told = client.call("publish", flow="staging", topic=topic, payload=payload, content_type="text/plain")
        assert told == {"subscribers": len(heard)}
    for flow, topics in (("prod", ["/shared"]), ("staging", ["own", "/shared"])):
        logs = client.stream("logs", flow=flow, follow=True)
        assert [next(logs)["fields"]["topic"] for _ in topics] == topics
        told = {each["topic"]: each["delivered"] for each in client.call("describe", flow=flow)["subscriptions"]}
        assert told == {topic: int(topic in topics) for topic in ("own", "/shared")}
        assert client.call("stop", flow=flow)["state"] == "stopped"


def test_timers_tick_and_ticks_travel_as_messages(submit: Any, client: Any) -> None:
    timers = [{"id": "fast", "schedule": {"interval_ms": 5}, "miss_policy": "coalesce"}]
    nodes = [submit.node("ticks", "pipeline:Ticks", timers=timers), submit.node("collects", "pipeline:Collects")]
    answer = submit(nodes, [{"from": "ticks", "to": "collects", "plane": "control", "topic": "ticked"}], wait="running")
    got = []
    for item in client.stream("logs", flow=answer["flow"], follow=True):
        if item["node"] == "collects":
            got.append(item["fields"]["value"]["sequence"])
        if len(got) == 5:
            break
    assert got == sorted(set(got))
    assert client.call("stop", flow=answer["flow"])["state"] == "stopped"


def test_an_endless_flow_drains_when_it_is_told_to_stop(submit: Any, client: Any) -> None:
    nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
    answer = submit(nodes, [submit.edge("endless", "check")], wait="running")
    assert client.call("stop", flow=answer["flow"])["state"] == "stopped"
    stats = client.call("describe", flow=answer["flow"])["routes"][0]["stats"]
    result = result_of(client, answer["flow"], "check")
    assert result == {"seen": stats["committed"], "faults": []}


@pytest.mark.parametrize("wait", ["running", "stopped"])
def test_a_name_in_use_is_refused_and_the_running_flow_goes_on(wait: str, submit: Any, client: Any) -> None:
    nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
    routes = [submit.edge("endless", "check")]
    submit(nodes, routes, wait="running", name="twice")
    with pytest.raises(Exception, match="twice"):
        submit(nodes, routes, wait=wait, name="twice")
    assert client.call("stop", flow="twice")["state"] == "stopped"


@pytest.mark.parametrize("pool", [0, 2], ids=["new", "spare"])
def test_a_node_gets_its_environment_and_its_folder(pool: int, tmp_path: Path, warm: Any) -> None:
    running = start_daemon(tmp_path, {"CHRONETIX_SPARES": str(pool)}, warm)
    with Client.connect(running.socket) as client:
        submit = Submit(client)
        below, here = {"env": {"COLOUR": "red", "TZ": "Asia/Tokyo"}, "cwd": str(tmp_path)}, {"cwd": "."}
        nodes = [submit.node(name, "pipeline:surroundings", **more) for name, more in (("a", below), ("b", here))]
        submit(nodes, [], name="f")
        assert result_of(client, "f", "a") == ["red", "JST", str(tmp_path), "a"]
        assert result_of(client, "f", "b")[0] is None
        assert result_of(client, "f", "b")[2:] == [str(PLUGINS), "b"]
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait() == 0


@pytest.mark.parametrize(("cwd", "says"), [("nowhere", "No such file"), ("pipeline.py", "is no folder")])
def test_a_folder_that_cannot_be_used_is_refused_at_submit(cwd: str, says: str, submit: Any, client: Any) -> None:
    node = submit.node("a", "pipeline:surroundings", cwd=cwd)
    with pytest.raises(ChronetixError, match=says) as refused:
        submit([node], [])
    (problem,) = refused.value.details["problems"]
    assert "manifests[0].cwd" in str(problem)


@pytest.mark.skipif(os.geteuid() != 0, reason="only a daemon of root has nodes of other users")
def test_a_node_runs_as_its_user_and_its_frames_arrive(submit: Any, client: Any) -> None:
    nodes = [
        submit.node("numbers", "pipeline:numbers", params={"count": 2000}, user="nobody"),
        submit.node("check", "pipeline:Check"),
    ]
    flow = submit(nodes, [submit.edge("numbers", "check")], name="users")
    assert flow["state"] == "stopped"
    assert result_of(client, "users", "check") == {"seen": 2000, "faults": []}
