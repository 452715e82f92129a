"""An orderly end is orderly: workers end as an interpreter does, in time, and what hangs is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HUNG = {
    "Polls": "thread 'poller' does not return from poll",
    "Saves": "an atexit handler does not return from save",
    "Clings": "a finalizer of the plugin does not return from __del__",
    "ClingsForItsModule": "a finalizer of an object or a module",
    "Never": "of Never.never",
    "Blocks": "a task of the event loop does not return from never",
    "Iterates": "an asynchronous generator does not end although it was closed",
}

NODES_KILLED = (("source", "numbers"), ("sink", "KilledAtItsEnd"))


def flow(submit: Any, source: str, sinks: list[str], into: Path, wait: str = "stopped") -> Any:
    names = [(f"{n}-{sink}", sink) for n, sink in enumerate(sinks)]
    params = {"params": {"into": str(into)}}
    nodes = [submit.node("source", f"ends:{source}", **params)]
    nodes += [submit.node(name, f"ends:{sink}", **params) for name, sink in names]
    edges = [submit.edge("source", name, content_type="application/json") for name, _ in names]
    return submit(nodes, edges, wait=wait)


def exit_of(client: Any, flow: str, node: str) -> Any:
    described = client.call("describe", flow=flow)
    return next(each for each in described["nodes"] if each["node"] == node)["deaths"][-1]


def test_a_worker_ends_as_an_interpreter_does(submit: Any, client: Any, tmp_path: Path) -> None:
    sinks = ["Writes", "WritesInACircle", "WritesForItsModule", "Leaves", "Shares"]
    answer = flow(submit, "numbers", sinks, tmp_path)
    assert answer["state"] == "stopped", answer
    for name in ("Writes", "WritesInACircle", "WritesForItsModule"):
        assert (tmp_path / f"lines-{name}").read_text().splitlines() == [str(i) for i in range(100)], name
    for name in ("numbers-closed", "thread", "atexit", "finalizer", "del"):
        assert (tmp_path / name).exists(), name
    assert not Path((tmp_path / "folder").read_text()).exists()
    assert not Path("/dev/shm", (tmp_path / "memory").read_text().lstrip("/")).exists()


@pytest.mark.parametrize("how", ["its consumer fails", "stop --now"])
def test_the_generator_of_a_source_is_closed_however_its_flow_ends(
    how: str, submit: Any, client: Any, tmp_path: Path
) -> None:
    fails = how == "its consumer fails"
    answer = flow(submit, "endless", ["Fails" if fails else "Sink"], tmp_path, wait="stopped" if fails else "running")
    if not fails:
        client.call("stop", flow=answer["flow"], mode="now")
    assert (tmp_path / "endless-closed").exists()


@pytest.mark.settings(end_timeout=1)
@pytest.mark.parametrize("sink", HUNG)
def test_an_end_that_hangs_is_ended_in_time_and_the_exit_says_what_hung(
    sink: str, submit: Any, client: Any, tmp_path: Path
) -> None:
    answer = flow(submit, "numbers", [sink], tmp_path)
    assert answer["state"] == "failed"
    exit = exit_of(client, answer["flow"], f"0-{sink}")
    assert exit["code"] == 1
    assert exit["fault"].startswith("end: EndTimeout: the process did not end within 1 s")
    assert HUNG[sink] in exit["fault"]
    assert HUNG[sink] in answer["reason"]
    assert sink == "Iterates" or any("ends.py" in line for line in exit["stderr"])  # with the place


@pytest.mark.settings(end_timeout=1)
@pytest.mark.parametrize("sink", ["Polls", "Never", "Blocks"])
def test_a_node_that_was_done_and_hung_at_its_end_is_not_started_again(
    sink: str, submit: Any, client: Any, tmp_path: Path
) -> None:
    params = {"params": {"into": str(tmp_path)}}
    restart = {"restart": {"policy": "transient"}}
    nodes = [submit.node("source", "ends:numbers", **params), submit.node("sink", f"ends:{sink}", **params, **restart)]
    answer = submit(nodes, [submit.edge("source", "sink", content_type="application/json")])
    assert answer["state"] == "failed"
    described = client.call("describe", flow=answer["flow"])
    assert {node["node"]: node["incarnation"] for node in described["nodes"]} == {"source": 0, "sink": 0}


@pytest.mark.parametrize("policy", ["transient", "temporary"])
def test_a_node_that_was_done_and_is_killed_then_fails_its_flow_only_where_failures_are_not_restarted(
    policy: str, submit: Any, client: Any, tmp_path: Path
) -> None:
    fields = {"params": {"into": str(tmp_path)}, "restart": {"policy": policy}}
    nodes = [submit.node(name, f"ends:{entry}", **fields) for name, entry in NODES_KILLED]
    answer = submit(nodes, [submit.edge("source", "sink", content_type="application/json")])
    assert answer["state"] == ("stopped" if policy == "transient" else "failed"), answer
    described = next(each for each in client.call("describe", flow=answer["flow"])["nodes"] if each["node"] == "sink")
    assert (described["incarnation"], described["result"]) == (0, "done")
    assert [each["signal"] for each in described["deaths"]] == ["SIGKILL"]
    events = client.stream("events", flow=answer["flow"])
    told = [each["message"] for each in events if each["kind"] == "worker-failed"]
    assert told == ["was killed by SIGKILL after it had finished"]


@pytest.mark.settings(end_timeout=1, terminate_timeout=30)
@pytest.mark.parametrize("sink", ["Polls", "Never", "Blocks"])
def test_what_is_told_to_stop_at_once_ends_as_well_and_says_what_hung(
    sink: str, submit: Any, client: Any, tmp_path: Path
) -> None:
    answer = flow(submit, "endless", [sink], tmp_path, wait="running")
    client.call("stop", flow=answer["flow"], mode="now")
    exit = exit_of(client, answer["flow"], f"0-{sink}")
    assert HUNG[sink] in exit["fault"]
    assert exit["killed_with"] == "SIGTERM"
