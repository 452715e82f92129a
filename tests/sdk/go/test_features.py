"""What a node in Go can do: policies, taps, batches, growth and shrinking, the bus, timers, values, faults, its end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from chronetixctl.client import Client
from chronetixctl.tap import Tap
from tests.sdk.go.conftest import edge, result_of

Map = dict[str, Any]
Make = Callable[..., Map]


def stats_of(client: Any, flow: str, target: str) -> Any:
    return next(route["stats"] for route in client.call("describe", flow=flow)["routes"] if route["to"] == target)


def test_a_slow_reader_of_the_latest_frames_loses_the_others_and_they_are_counted(
    submit: Any, client: Any, go: Make
) -> None:
    nodes = [go("numbers", "numbered", params={"count": 20_000}), go("all", "counts"), go("newest", "last")]
    routes = [edge("numbers", "all"), edge("numbers", "newest", policy="latest", buffer=4)]
    submit(nodes, routes, name="latest")
    assert result_of(client, "latest", "all") == {"seen": 20_000, "faults": [], "again": 0}
    newest = result_of(client, "latest", "newest")
    assert (newest["last"], newest["faults"]) == (19_999, [])
    assert newest["seen"] + newest["lost"] == 20_000
    assert stats_of(client, "latest", "newest")["drops"]["overwritten"] == newest["lost"]


def test_frames_that_find_no_credit_are_dropped_where_the_route_says_so(submit: Any, client: Any, go: Make) -> None:
    nodes = [
        go("numbers", "numbered", params={"count": 3_000}),
        go("all", "counts"),
        go("some", "last", params={"pause_us": 500}),
    ]
    routes = [edge("numbers", "all"), edge("numbers", "some", policy="drop_newest", buffer=4)]
    submit(nodes, routes, name="drops")
    assert result_of(client, "drops", "all") == {"seen": 3_000, "faults": [], "again": 0}
    some = result_of(client, "drops", "some")
    assert some["faults"] == []
    assert some["seen"] + stats_of(client, "drops", "some")["drops"]["no_credit"] == 3_000


def test_a_consumer_past_its_limit_is_given_up_and_the_flow_goes_on(submit: Any, client: Any, go: Make) -> None:
    keeps = {"plugin_id": "keeps", "node_id": "keeps", "version": "1.0.0"}
    keeps["artifact"] = {"kind": "Python", "uri": "python://pipeline.py:Keeps"}
    nodes = [go("numbers", "numbered", params={"count": 2_000}), go("all", "counts"), keeps]
    routes = [edge("numbers", "all"), edge("numbers", "keeps", limit_ms=50, buffer=8)]
    submit(nodes, routes, name="limit")
    assert result_of(client, "limit", "all") == {"seen": 2_000, "faults": [], "again": 0}
    assert stats_of(client, "limit", "keeps")["drops"]["given_up"] == 1_992
    assert "route-given-up" in [event["kind"] for event in client.stream("events", flow="limit")]


def test_a_slow_sink_holds_the_source_back(submit: Any, client: Any, go: Make) -> None:
    nodes = [go("endless", "source"), go("sink", "sink", params={"pause_us": 300})]
    submit(nodes, [edge("endless", "sink", buffer=8, watermark=6)], name="slow", wait="running")
    while not stats_of(client, "slow", "sink")["would_block"]:
        pass
    assert client.call("stop", flow="slow")["state"] == "stopped"
    stats = stats_of(client, "slow", "sink")
    assert result_of(client, "slow", "sink") == {"seen": stats["committed"], "faults": [], "again": 0}
    assert (stats["max_outstanding"], stats["dropped"]) == (8, 0)


def test_a_tap_sees_what_flows_by_and_the_flow_does_not_notice(submit: Any, client: Any, daemon: Any, go: Make) -> None:
    nodes = [go("endless", "numbered"), go("all", "counts")]
    submit(nodes, [edge("endless", "all")], name="tapped", wait="running")
    for _ in range(2):
        with Client.connect(daemon.socket) as mine, Tap(mine, "tapped", "endless:all") as tap:
            seen = []
            for frame in tap:
                seen.append(int.from_bytes(bytes(frame)[:8], "little"))
                if len(seen) == 200:
                    break
            assert seen == sorted(set(seen))
    assert client.call("stop", flow="tapped")["state"] == "stopped"
    assert result_of(client, "tapped", "all")["faults"] == []


def test_frames_are_taken_and_returned_many_at_a_time_by_a_loop_of_ones_own(submit: Any, client: Any, go: Make) -> None:
    nodes = [go("numbers", "numbered", params={"count": 50_000}), go("batches", "batches")]
    assert submit(nodes, [edge("numbers", "batches")], name="many")["state"] == "stopped"
    result = result_of(client, "many", "batches")
    assert result["seen"] == 50_000
    assert 1 < result["most"] <= 64


def test_frames_may_be_kept_and_released_by_other_goroutines(submit: Any, client: Any, go: Make) -> None:
    nodes = [go("numbers", "numbered", params={"count": 5_000}), go("keeps", "keeps")]
    assert submit(nodes, [edge("numbers", "keeps", buffer=8)], name="kept")["state"] == "stopped"
    assert result_of(client, "kept", "keeps") == 5_000
    stats = stats_of(client, "kept", "keeps")
    assert stats["committed"] == stats["returned"] == 5_000


@pytest.mark.parametrize("sinks", [("go", "go"), ("go", "py")], ids=["go", "mixed"])
def test_the_memory_of_a_burst_goes_back_to_the_machine_at_both_ends(
    sinks: tuple[str, str], submit: Any, client: Any, go: Make
) -> None:
    sink = {"go": lambda name: go(name, "small"), "py": lambda name: submit.node(name, "bursts:Sink")}
    nodes = [go("source", "bursts"), sink[sinks[0]]("left"), sink[sinks[1]]("right")]
    routes = [edge("source", name, buffer=8, watermark=6) for name in ("left", "right")]
    assert submit(nodes, routes, name="burst")["state"] == "stopped"
    assert [result_of(client, "burst", name) for name in ("left", "right")] == [[6, True], [6, True]]
    assert result_of(client, "burst", "source") == [True, True]


def test_a_frame_that_can_never_fit_fails_the_flow_and_says_how_to_raise_the_limit(
    submit: Any, client: Any, go: Make
) -> None:
    claims = {"arena_bytes": 1_000_000}
    nodes = [
        go("source", "source", params={"count": 1, "size": 2_000_000}, resource_claims=claims),
        go("sink", "sink"),
    ]
    answer = submit(nodes, [edge("source", "sink")])
    assert answer["state"] == "failed"
    assert "arena_bytes" in client.call("describe", flow=answer["flow"])["reason"]


def test_requests_are_answered_and_publications_heard(submit: Any, client: Any, go: Make) -> None:
    nodes = [
        go("answers", "bus", bus_subscriptions=[{"pattern": "questions"}]),
        go("asks", "bus", params={"ask": "questions"}),
    ]
    answer = submit(nodes, [], wait="running", name="bus")
    heard = next(item for item in client.stream("logs", flow=answer["flow"], follow=True) if item["node"] == "answers")
    assert heard["line"] == "heard"
    assert heard["fields"] == {"topic": "late", "payload": "news", "header": "b", "from": "asks"}
    assert client.call("stop", flow="bus")["state"] == "stopped"
    assert result_of(client, "bus", "asks") == {
        "reply": "pong to ping",
        "type": "text/plain",
        "nobody": "no-subscriber",
    }


def test_timers_tick(submit: Any, client: Any, go: Make) -> None:
    nodes = [go("ticks", "bus", timers=[{"id": "fast", "schedule": {"interval_ms": 5}, "miss_policy": "coalesce"}])]
    answer = submit(nodes, [], wait="running", name="timer")
    ticked = next(item for item in client.stream("logs", flow=answer["flow"], follow=True) if item["line"] == "ticked")
    assert ticked["fields"] == {"timer": "fast"}
    assert client.call("stop", flow="timer")["state"] == "stopped"


@pytest.mark.parametrize("content_type", ["application/json", "application/cbor"])
def test_values_are_encoded_by_the_content_type_and_notes_go_along(
    content_type: str, submit: Any, client: Any, go: Make
) -> None:
    nodes = [go("source", "values"), go("sink", "values")]
    assert submit(nodes, [edge("source", "sink", content_type=content_type)], name="values")["state"] == "stopped"
    note = "a16663616d65726103"
    assert result_of(client, "values", "sink") == ["0 né 0 ", "1 né 0 ", f"2 né 77 {note}"]


@pytest.mark.parametrize(("role", "says"), [("fails", "no such thing as frame zero"), ("panics", "panic: frame zero")])
def test_a_node_that_fails_is_told_of_with_the_phase_and_the_reason(
    role: str, says: str, submit: Any, client: Any, go: Make
) -> None:
    nodes = [go("source", "source", params={"count": 3}), go("sink", role)]
    answer = submit(nodes, [edge("source", "sink")])
    assert answer["state"] == "failed"
    reason = client.call("describe", flow=answer["flow"])["reason"]
    assert "failed in phase 'frame'" in reason
    assert says in reason


def test_a_frame_that_fails_is_retried_and_then_dropped_as_qos_says(submit: Any, client: Any, go: Make) -> None:
    nodes = [go("source", "source", params={"count": 10}), go("sink", "odd", qos={"retry": 2})]
    assert submit(nodes, [edge("source", "sink")], name="odd")["state"] == "stopped"
    (counted,) = [
        node["failed_frames"] for node in client.call("describe", flow="odd")["nodes"] if node["node"] == "sink"
    ]
    assert counted == {"retries": 10, "passed": 0, "dead_letters": 0, "dropped": 5}


def test_a_node_may_finish_before_its_inputs_do_and_its_producer_ends_too(submit: Any, client: Any, go: Make) -> None:
    nodes = [go("endless", "source"), go("sink", "finishes")]
    assert submit(nodes, [edge("endless", "sink", buffer=4)], name="early")["state"] == "stopped"


def test_sigterm_ends_a_node_at_once(submit: Any, client: Any, go: Make) -> None:
    nodes = [go("endless", "source"), go("sink", "sink")]
    submit(nodes, [edge("endless", "sink")], name="now", wait="running")
    assert client.call("stop", flow="now", mode="now")["state"] == "stopped"
    exits = [node["exits"][-1] for node in client.call("describe", flow="now")["nodes"] if node.get("exits")]
    assert all(each.get("killed_with", "") == "" for each in exits)


def test_a_program_that_no_daemon_started_says_so(programs: Any, go: Make) -> None:
    program = go("sink", "sink")["artifact"]["uri"].removeprefix("file://")
    environment = {key: value for key, value in os.environ.items() if key != "CHRONETIX_FD"}
    ended = subprocess.run([program], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "CHRONETIX_FD names no descriptor: this program is started by chronetixd" in ended.stderr


def test_a_program_that_nobody_started_attaches_to_a_node_that_waits_for_it(
    submit: Any, client: Any, daemon: Any, go: Make
) -> None:
    program = go("sink", "sink")["artifact"]["uri"].removeprefix("file://")
    waits = go("sink", "sink") | {"artifact": {"kind": "Process", "uri": "attach://counter"}}
    nodes = [go("source", "source", params={"count": 500}), waits]
    submit(nodes, [edge("source", "sink")], name="attached", wait="accepted")
    token = client.call("attach_token", flow="attached")["token"]
    ended = subprocess.run([program, "attach", str(daemon.socket), "counter", token], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr + client.call("describe", flow="attached")["reason"]
    for event in client.stream("events", flow="attached", follow=True):
        if event["kind"] in ("flow-stopped", "flow-failed"):
            break
    assert result_of(client, "attached", "sink") == {"seen": 500, "faults": [], "again": 0}
