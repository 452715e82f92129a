"""kill -9 of the daemon in the middle of a roll-out, and of what stands by: it is defined what comes of it."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client
from tests.e2e.conftest import Submit
from tests.e2e.surviving import kill, lives
from tests.e2e.test_rollouts import BY_ONE, PLUGINS, Line

Start = Callable[[], Any]


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def ended(pid: int) -> None:
    """Wait for its end."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([fd], [], [])
    os.close(fd)


def at(client: Client, tmp_path: Path, line: Line | None = None) -> Line:
    """The same flow, with another daemon's client."""
    again = Line(Submit(client), client, tmp_path)
    if line is not None:
        again.name, again.flow = line.name, line.flow
    return again


def test_before_anything_was_touched_the_flow_runs_on_as_it_was(start: Start, tmp_path: Path) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        line = at(client, tmp_path).start(on_daemon_loss="survive")
        before = line.pids()
        hangs = line.become(map={"params": {"hangs": True}})
        client.call("apply", flow=hangs, name=line.name, base_dir=str(PLUGINS), wait=False)
        line.step("preparing", "map")
        stands_by = line.stands_by("map")
    kill(first)
    ended(stands_by)
    second = start()
    with Client.connect(second.socket) as client:
        line = at(client, tmp_path, line)
        assert line.pids() == before
        assert line.history() == [(1, "submitted", True), (2, "interrupted", False)]
        line.apply(line.become(map=BY_ONE))
        assert {node for node, pid in line.pids().items() if pid != before[node]} == {"map"}
        assert {each.map for each in line.check()} == {"m0", "m1"}


def test_after_the_point_of_no_return_the_flow_begins_anew_as_the_new_one(start: Start, tmp_path: Path) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        line = at(client, tmp_path).start(sink="Stubborn", on_daemon_loss="survive")
        before = line.pids()
        flow = line.become(sink=BY_ONE)
        client.call("apply", flow=flow, name=line.name, base_dir=str(PLUGINS), wait=False)
        line.step("leaving", "sink")
    kill(first)
    line.ledger.rename(tmp_path / "before")
    second = start()
    with Client.connect(second.socket) as client:
        line = at(client, tmp_path, line)
        assert not [pid for pid in before.values() if lives(pid)]
        assert line.history() == [(1, "submitted", False), (2, "interrupted", True)]
        assert line.described()["flow"] == flow
        line.further()
        assert {each.sink for each in line.check()} == {"1"}


def test_after_a_roll_out_the_next_daemon_takes_over_what_it_has_made(start: Start, tmp_path: Path) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        line = at(client, tmp_path).start(on_daemon_loss="survive")
        line.apply(line.become(source=BY_ONE, map=BY_ONE, sink=BY_ONE))
        before = line.pids()
    kill(first)
    second = start()
    with Client.connect(second.socket) as client:
        line = at(client, tmp_path, line)
        assert line.pids() == before
        line.further()
        assert client.call("undo", flow=line.name)["step"] == "done"
        line.further()
        got = line.stop()
    assert [each.number for each in got] == list(range(1, len(got) + 1))
    assert not any(each.marked for each in got)


def test_the_death_of_one_that_stands_by_rolls_it_back(start: Start, tmp_path: Path) -> None:
    daemon = start()
    with Client.connect(daemon.socket) as client:
        line = at(client, tmp_path).start()
        before = line.pids()
        hangs = line.become(map={"params": {"hangs": True}})
        client.call("apply", flow=hangs, name=line.name, base_dir=str(PLUGINS), wait=False)
        line.step("preparing", "map")
        os.kill(line.stands_by("map"), signal.SIGKILL)
        line.until("rollout-rolled-back")
        assert "was killed by SIGKILL" in client.call("rollouts", flow=line.name)["revisions"][-1]["why"]
        assert line.pids() == before
        line.check()


def test_a_neighbour_that_dies_while_another_node_leaves_is_restarted_and_no_frame_is_lost(
    start: Start, tmp_path: Path
) -> None:
    daemon = start()
    transient = {"restart": {"policy": "transient", "backoff_ms": 1}}
    with Client.connect(daemon.socket) as client:
        line = at(client, tmp_path).start(sink="Stubborn", fields={"map": transient})
        line.client.call("apply", flow=line.become(sink=BY_ONE), name=line.name, base_dir=str(PLUGINS), wait=False)
        line.step("leaving", "sink")
        os.kill(line.pids()["map"], signal.SIGKILL)
        line.until("node-restarted")
        os.kill(line.pids()["sink"], signal.SIGKILL)
        line.until("rollout-done")
        line.further()
        got = line.stop()
    fresh = [each.number for each in got if not each.marked]
    assert fresh == sorted(set(fresh))
    assert sorted({each.number for each in got}) == list(range(1, max(each.number for each in got) + 1))


@pytest.mark.parametrize("victim", ["source", "map"])
def test_a_daemon_that_is_told_to_stop_in_the_middle_leaves_nobody_behind(
    victim: str, start: Start, tmp_path: Path
) -> None:
    daemon = start()
    with Client.connect(daemon.socket) as client:
        line = at(client, tmp_path).start()
        hangs = line.become(**{"map": {"params": {"hangs": True}}, victim: {"params": {"by": 1, "hangs": True}}})
        client.call("apply", flow=hangs, name=line.name, base_dir=str(PLUGINS), wait=False)
        line.step("preparing", "map")
        standing = {line.stands_by("map"), line.stands_by(victim)}
        those = children(daemon.process.pid)
        assert standing <= those
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait() == 0
    assert not [pid for pid in those if lives(pid)]
