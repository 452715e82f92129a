"""What goes wrong is explained, stops only its own flow, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client
from tests.e2e.conftest import start_daemon


def two_nodes(submit: Any, entry: str, **more: Any) -> tuple[list[Any], list[Any]]:
    nodes = [submit.node("endless", "pipeline:endless"), submit.node("second", entry, **more)]
    return nodes, [submit.edge("endless", "second")]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("pipeline:raises", ["second", "ValueError", "no such thing as frame zero"]),
        ("pipeline:exits", ["second", "7", "about to leave"]),
        ("pipeline:killed", ["second", "SIGKILL"]),
        ("broken_import:anything", ["second", "RuntimeError", "this module is broken"]),
        ("pipeline:on_frame", ["second", "pipeline.py has no on_frame"]),
    ],
)
def test_a_worker_that_fails_fails_its_flow_with_the_reason(
    entry: str, words: list[str], submit: Any, client: Any
) -> None:
    answer = submit(*two_nodes(submit, entry))
    described = client.call("describe", flow=answer["flow"])
    assert described["state"] == "failed"
    text = described["reason"] + str(next(node["exit"] for node in described["nodes"] if node["node"] == "second"))
    assert [word for word in words if word not in text] == []
    assert not [node for node in described["nodes"] if os.path.exists(f"/proc/{node['pid']}")]


def test_a_failing_flow_leaves_its_neighbour_running(submit: Any, client: Any) -> None:
    good = submit(
        [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")],
        [submit.edge("endless", "check")],
        wait="running",
    )
    submit(*two_nodes(submit, "pipeline:raises"))
    states = {flow["name"]: flow["state"] for flow in client.call("list")["flows"]}
    assert states[good["flow"]] == "running"
    assert client.call("stop", flow=good["flow"])["state"] == "stopped"


def test_a_worker_killed_from_outside_is_reported_by_its_signal(submit: Any, client: Any) -> None:
    answer = submit(*two_nodes(submit, "pipeline:Check"), wait="running")
    pids = {node["node"]: node["pid"] for node in client.call("describe", flow=answer["flow"])["nodes"]}
    os.kill(pids["second"], signal.SIGKILL)
    for event in client.stream("events", flow=answer["flow"], follow=True):
        if event["kind"] == "flow-failed":
            break
    described = client.call("describe", flow=answer["flow"])
    assert "SIGKILL" in described["reason"]
    assert not [pid for pid in pids.values() if os.path.exists(f"/proc/{pid}")]


def deaths_of(client: Any, flow: str, node: str) -> list[dict[str, Any]]:
    described = client.call("describe", flow=flow)
    deaths: list[dict[str, Any]] = next(each for each in described["nodes"] if each["node"] == node)["deaths"]
    return deaths


def test_an_exit_is_remembered_with_what_it_held_and_said(
    submit: Any, client: Any, daemon: Any, tmp_path: Path
) -> None:
    flow = submit(*two_nodes(submit, "pipeline:killed"), name="again")["flow"]
    submit(*two_nodes(submit, "pipeline:exits"), name="again")
    first, second = deaths_of(client, flow, "second")
    assert (first["signal"], first["code"], first["killed_with"]) == ("SIGKILL", None, "")
    assert first["out_of_memory"] in ("no", "suspected")  # another test may let the kernel run out of memory
    assert (second["code"], second["stderr"], second["out_of_memory"]) == (7, ["about to leave"], "no")
    for death in (first, second):
        assert [(held["count"], held["sequences"]) for held in death["held"]] == [(1, [0])]
        assert death["held"][0]["route"].startswith("endless")
        assert death["max_rss_bytes"] > 1 << 20
        assert death["uptime_ns"] > 0
    assert "it held frame 0 of route" in client.call("describe", flow=flow)["reason"]
    events = [event for event in client.stream("events", flow=flow) if event["node"] == "second"]
    assert [event["data"]["held"] for event in events if event["kind"] == "worker-failed"] == [1, 1]
    shown = daemon.ctl("describe", flow).stdout
    assert "LAST EXITS" in shown
    assert "SIGKILL" in shown
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait()
    with restarted(tmp_path) as other:
        assert deaths_of(other, flow, "second") == [first, second]


@contextmanager
def restarted(folder: Path) -> Iterator[Client]:
    """A second daemon on the first one's folder."""
    daemon = start_daemon(folder, {})
    try:
        with Client.connect(daemon.socket) as client:
            yield client
    finally:
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait() == 0


V1_MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(
    not os.access(V1_MEMORY / "memory.oom_control", os.W_OK), reason="no memory controller (v1) to run out of memory in"
)
def test_a_worker_that_the_kernel_ended_for_want_of_memory_is_suspected_of_it(submit: Any, client: Any) -> None:
    """The group's counter is not ours: that the machine's has moved is all that is known."""
    group = V1_MEMORY / f"chronetix-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(64 << 20))
        node = submit.node("glutton", "pipeline:glutton", params={"group": str(group)})
        answer = submit([node], [])
        (death,) = deaths_of(client, answer["flow"], "glutton")
        assert (death["signal"], death["out_of_memory"]) == ("SIGKILL", "suspected")
        assert "perhaps because memory ran out" in answer["reason"]
    finally:
        group.rmdir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"artifact": {"kind": "Python", "uri": "python://nowhere.py:thing"}}, ["nowhere.py"]),
        ({"artifact": {"kind": "Process", "uri": "file://no/such/program"}}, ["no/such/program"]),
        ({"artifact": {"kind": "Pyton", "uri": "python://pipeline.py:Check"}}, ["Python"]),
        ({"node_id": "endless"}, ["endless"]),
    ],
)
def test_an_invalid_flow_starts_nothing_and_names_the_field(
    change: dict[str, Any], words: list[str], submit: Any, client: Any
) -> None:
    nodes, routes = two_nodes(submit, "pipeline:Check")
    nodes[1] |= change
    with pytest.raises(Exception, match=r"invalid|not valid") as refused:
        submit(nodes, routes)
    told = str(refused.value) + str(getattr(refused.value, "details", ""))
    assert [word for word in words if word not in told] == []
    assert client.call("list")["flows"] == []


def test_unknown_fields_pass_through(submit: Any, client: Any) -> None:
    nodes, routes = two_nodes(submit, "pipeline:Check", x_team="blue")
    routes[0]["x_colour"] = [1, {"deep": True}]
    answer = submit(nodes, routes, wait="running")
    kept = client.call("describe", flow=answer["flow"])["flow"]
    assert kept["manifests"][1]["x_team"] == "blue"
    assert kept["routes"][0]["x_colour"] == [1, {"deep": True}]
    assert client.call("stop", flow=answer["flow"])["state"] == "stopped"


@pytest.mark.settings(start_timeout=1)
def test_a_plugin_that_never_becomes_ready_fails_the_flow_at_its_deadline(submit: Any, client: Any) -> None:
    answer = submit(*two_nodes(submit, "pipeline:NeverReady"), wait="stopped")
    assert "second" in client.call("describe", flow=answer["flow"])["reason"]


def test_sigterm_drains_running_flows_and_a_second_daemon_is_refused(daemon: Any, submit: Any, client: Any) -> None:
    answer = submit(*two_nodes(submit, "pipeline:Check"), wait="running")
    pids = [node["pid"] for node in client.call("describe", flow=answer["flow"])["nodes"]]
    second = daemon.second()
    assert second.returncode != 0
    assert str(daemon.process.pid) in second.stderr
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait() == 0
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert not daemon.socket.exists()


def test_a_node_that_the_daemon_cannot_serve_for_want_of_descriptors_has_not_broken_the_protocol(
    submit: Any, client: Any, daemon: Any
) -> None:
    grows = submit.node("grows", "pipeline:Grows", bus_subscriptions=[{"pattern": "go"}])
    edge = submit.edge("grows", "sink") | {"content_type": "application/octet-stream"}
    flow = submit([grows, submit.node("sink", "pipeline:swallows")], [edge], wait="running")["flow"]
    pid = daemon.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(taken) + 1)) - taken), limits[1]))
    client.call("publish", flow=flow, topic="go", payload=b"{}")
    for event in client.stream("events", flow=flow, follow=True):
        if event["kind"] == "worker-faulted":
            break
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert (event["node"], event["data"]["phase"]) == ("grows", "daemon")
    assert "could not be served: chronetixd had no descriptors left" in event["message"]
    assert "LimitNOFILE" in event["message"]
    assert "protocol" not in event["message"]
