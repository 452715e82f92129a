"""Workers that start by themselves: they attach, end, come again, and no frame is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from tests.e2e.conftest import ROOT, Daemon
from tests.e2e.surviving import PLUGINS, Flow, events, happens, kill, lives, pids

Map = dict[str, Any]
TRANSIENT = {"policy": "transient", "max": 100, "backoff_ms": 1}
START = Callable[[], Daemon]


class AttachedFlow(Flow):
    """source → map → sink, whose map attaches as ``forward``."""

    attached = "map"

    def raw(self, restart: Any = TRANSIENT, loss: str = "stop") -> Map:
        flow = super().raw(restart, loss)
        for manifest in flow["manifests"]:
            if manifest["node_id"] == self.attached:
                manifest["artifact"] = {"kind": "Process", "uri": "attach://forward"}
        return flow

    def begin(self, client: Client, **more: Any) -> str:
        """Submit it; its attach token."""
        client.call("submit", flow=self.raw(**more), name="f", base_dir=str(PLUGINS))
        return str(client.call("attach_token", flow="f")["token"])


class AttachedSource(AttachedFlow):
    attached = "source"


@pytest.fixture
def flow(tmp_path: Path) -> AttachedFlow:
    return AttachedFlow(tmp_path)


@dataclass
class Program:
    """A process that attaches."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def says(self) -> str:
        """Its next line; empty at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def hears(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ends(self) -> int:
        return self.process.wait()


Run = Callable[..., Program]


@pytest.fixture
def run() -> Iterator[Run]:
    """Starts a program of plugins/attached.py, not as a child of the daemon."""
    started: list[subprocess.Popen[str]] = []

    def begin(socket: Path, token: str, way: str = "plain", name: str = "forward") -> Program:
        environment = os.environ | {
            "CHRONETIX_SOCKET": str(socket),
            "CHRONETIX_ATTACH_TOKEN": token,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, str(PLUGINS / "attached.py"), way, name]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
        return Program(started[-1])

    yield begin
    for process in started:
        with process:
            process.kill()


def node(client: Client, name: str = "map") -> Map:
    (found,) = [each for each in client.call("describe", flow="f")["nodes"] if each["node"] == name]
    return dict(found)


def waits(client: Client, times: int) -> None:
    """Until the node has begun to wait that often."""
    seen = 0
    for event in client.stream("events", flow="f", follow=True):
        seen += event["kind"] == "worker-waiting"
        if seen == times:
            return


def stop(client: Client, mode: str = "drain") -> str:
    return str(client.call("stop", flow="f", mode=mode)["state"])


# -- from waiting to running -----------------------------------------------------------------------------------


def test_a_node_waits_and_says_how_and_a_process_that_attaches_is_its_worker(
    daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    token = flow.begin(client)
    waits(client, 1)
    waiting = node(client)
    assert (waiting["state"], waiting["pid"]) == ("waiting", 0)
    assert "chronetixctl attach-token f" in waiting["attach"]["command"]
    assert token not in str(client.call("describe", flow="f"))
    shown = daemon.ctl("describe", "f").stdout
    assert "waiting for attach" in shown
    assert waiting["attach"]["command"] in shown
    assert "1 node waiting for attach" in daemon.ctl("ls").stdout
    program = run(daemon.socket, token)
    happens(client, "flow-running")
    assert (node(client)["state"], node(client)["pid"]) == ("started", program.pid)
    flow.grows(client)
    assert stop(client) == "stopped"
    assert [program.says(), program.says(), program.says()] == ["started 0", "stopping", "result forwarded"]
    assert program.ends() == 0
    assert node(client)["result"] == "forwarded"
    flow.check()
    assert not [number for number, marked in flow.numbers() if marked]


def test_the_command_line_that_is_shown_starts_the_worker(
    daemon: Daemon, client: Client, flow: AttachedFlow, tmp_path: Path
) -> None:
    raw = flow.raw()
    args = [sys.executable, str(PLUGINS / "attached.py"), "plain", "forward"]
    (tmp_path / "a folder").mkdir()
    more = {"args": args, "env": {"PYTHONPATH": str(ROOT), "GREETING": "it's me"}, "cwd": str(tmp_path / "a folder")}
    raw["manifests"][1]["artifact"] |= more
    client.call("submit", flow=raw, name="f", base_dir=str(PLUGINS))
    waits(client, 1)
    command = node(client)["attach"]["command"]
    started = subprocess.Popen(
        ["/bin/sh", "-c", f"{command.replace(' && ', ' && exec env ', 1)}"],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    happens(client, "flow-running")
    assert os.readlink(f"/proc/{started.pid}/cwd") == str(tmp_path / "a folder")
    assert b"GREETING=it's me" in Path(f"/proc/{started.pid}/environ").read_bytes()
    assert node(client)["pid"] == started.pid
    flow.grows(client)
    assert stop(client) == "stopped"
    assert started.communicate()[0].splitlines()[-1] == "result forwarded"


@pytest.mark.settings(attach_timeout=0.2)
def test_a_flow_that_nothing_attaches_to_in_time_fails_and_says_so(client: Client, flow: AttachedFlow) -> None:
    flow.begin(client)
    happens(client, "flow-failed")
    reason = client.call("describe", flow="f")["reason"]
    assert "node 'map' waited for attach, and nothing attached within 0.2 s" in reason


@pytest.mark.parametrize("mode", ["drain", "now"])
def test_a_flow_that_waits_can_be_stopped(mode: str, client: Client, flow: AttachedFlow) -> None:
    flow.begin(client)
    waits(client, 1)
    assert stop(client, mode) == "stopped"


# -- ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_ended_from_outside_is_waited_for_again_and_no_frame_is_lost(
    number: signal.Signals, daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    token = flow.begin(client)
    for times in (1, 2, 3):
        waits(client, times)
        program = run(daemon.socket, token)
        assert program.says() == f"started {times - 1}"
        flow.grows(client)
        if times < 3:
            program.process.send_signal(number)
            code = program.ends()
            assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 0}[number]
    assert stop(client) == "stopped"
    flow.check()
    last = node(client)["deaths"][0]
    assert last["signal"] == ("SIGKILL" if number is signal.SIGKILL else None)
    assert last["attached"] is True


def test_a_failing_plugin_fails_its_node_and_raises_where_it_was_attached(
    daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    token = flow.begin(client, restart="temporary")
    program = run(daemon.socket, token, "failing")
    happens(client, "flow-failed")
    assert "ValueError: no such frame" in client.call("describe", flow="f")["reason"]
    assert [program.says(), program.says()] == ["started 0", "raised no such frame"]


def test_the_process_is_not_the_daemons_and_lives_on_when_its_work_is_done(
    daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    token = flow.begin(client)
    program = run(daemon.socket, token, "leaving")
    happens(client, "flow-running")
    flow.grows(client)
    assert stop(client) == "stopped"
    assert node(client)["exit"] == {"code": None, "signal": None, "attached": True, "stderr_tail": [], "fault": None}
    program.hears("home")
    while (said := program.says()) and not said.startswith("bye"):
        pass
    assert said == "bye home"
    assert program.ends() == 0


def test_a_worker_that_is_told_to_end_at_once_gets_sigterm_by_its_pidfd(
    daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    program = run(daemon.socket, flow.begin(client))
    happens(client, "flow-running")
    assert stop(client, "now") == "stopped"
    assert program.ends() == 143


def test_a_node_that_is_restarted_waits_again_while_its_worker_leaves_in_order(
    daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    token = flow.begin(client)
    first = run(daemon.socket, token)
    happens(client, "flow-running")
    flow.grows(client)
    ctl = subprocess.Popen(
        [sys.executable, "-m", "chronetixctl", "restart", "f", "--node", "map"],
        env=daemon.environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    with ctl:
        waits(client, 2)
        assert first.ends() == 0
        second = run(daemon.socket, token)
        assert second.says() == "started 1"
    assert ctl.returncode == 0
    flow.grows(client)
    assert pids(client)["map"] == second.pid
    assert stop(client) == "stopped"
    flow.check()
    assert not [number for number, marked in flow.numbers() if marked]


# -- notebooks and threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["notebook", "notebook_async"])
def test_a_cell_of_a_notebook_is_interrupted_in_order_and_may_attach_again(
    way: str, daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    program = run(daemon.socket, flow.begin(client), way)
    assert program.says() == "started 0"
    flow.grows(client)
    program.process.send_signal(signal.SIGINT)
    assert [program.says(), program.says()] == ["stopping", "interrupted"]
    waits(client, 2)
    program.hears("again")
    assert [program.says(), program.says()] == ["next again", "started 1"]
    flow.grows(client)
    assert stop(client) == "stopped"
    assert [program.says(), program.says()] == ["stopping", "result forwarded"]
    program.hears("now")
    assert program.says() == "bye now"
    flow.check()


def test_an_interrupt_ends_a_send_that_waits_for_credit(
    daemon: Daemon, client: Client, tmp_path: Path, run: Run
) -> None:
    flow = AttachedSource(tmp_path)
    program = run(daemon.socket, flow.begin(client), "notebook_source")
    assert program.says() == "started 0"
    flow.grows(client)
    os.kill(pids(client)["map"], signal.SIGSTOP)
    program.process.send_signal(signal.SIGINT)
    assert [program.says(), program.says()] == ["stopping", "interrupted"]
    os.kill(pids(client)["map"], signal.SIGCONT)
    waits(client, 2)
    program.hears("again")
    assert [program.says(), program.says()] == ["next again", "started 1"]
    flow.grows(client)
    assert stop(client) == "stopped"
    flow.check()


@pytest.mark.parametrize("way", ["notebook", "thread"])
def test_a_process_that_does_more_than_this_is_never_signalled(
    way: str, daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    program = run(daemon.socket, flow.begin(client), way)
    assert program.says() == "started 0"
    flow.grows(client)
    assert stop(client, "now") == "stopped"
    assert [program.says(), program.says()] == ["stopping", "refused attach-ended"]
    program.hears("on")
    assert program.says() in ("next on", "bye on")
    assert node(client)["exit"]["attached"] is True
    flow.check()


# -- the daemon ends -------------------------------------------------------------------------------------------


def test_an_attached_worker_of_a_flow_that_survives_reattaches_after_the_daemon_was_killed(
    start: START, flow: AttachedFlow, run: Run
) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        token = flow.begin(client, loss="survive")
        program = run(first.socket, token)
        happens(client, "flow-running")
        flow.grows(client)
    for _ in range(2):
        kill(first)
        first = start()
        with Client.connect(first.socket) as client:
            flow.grows(client)
            assert pids(client)["map"] == program.pid
    with Client.connect(first.socket) as client:
        program.process.kill()
        waits(client, 1)
        program = run(first.socket, token)
        happens(client, "node-restarted")
        flow.grows(client)
        assert stop(client) == "stopped"
    flow.check()
    assert program.ends() == 0


def test_a_worker_that_died_with_its_daemon_is_waited_for_by_the_next_one_or_its_flow_says_what_is_lost(
    start: START, flow: AttachedFlow, run: Run
) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        program = run(first.socket, flow.begin(client, loss="survive"))
        happens(client, "flow-running")
        flow.grows(client)
    kill(first)
    program.process.kill()
    program.ends()
    second = start()
    with Client.connect(second.socket) as client:
        for event in client.stream("events", flow="f", follow=True):
            if event["kind"] in ("worker-waiting", "flow-failed"):
                break
        if event["kind"] == "flow-failed":
            assert "'map'" in client.call("describe", flow="f")["reason"]
        else:
            assert stop(client, "now") == "stopped"


def test_the_process_of_a_flow_that_does_not_survive_lives_on_and_attaches_to_the_next_daemon_by_the_same_token(
    start: START, flow: AttachedFlow, run: Run
) -> None:
    first = start()
    with Client.connect(first.socket) as client:
        program = run(first.socket, flow.begin(client), "notebook")
        assert program.says() == "started 0"
        flow.grows(client)
    kill(first)
    assert [program.says(), program.says()] == ["stopping", "refused attach-ended"]
    second = start()
    with Client.connect(second.socket) as client:
        waits(client, 1)
        assert lives(program.pid)
        program.hears("again")
        assert [program.says(), program.says()] == ["next again", "started 0"]
        happens(client, "flow-running")
        assert stop(client) == "stopped"


def test_an_upgrade_hands_over_nodes_that_wait_and_workers_that_have_attached(
    daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    token = flow.begin(client)
    waits(client, 1)
    assert daemon.ctl("upgrade").returncode == 0
    program = run(daemon.socket, token)
    assert program.says() == "started 0"
    with Client.connect(daemon.socket) as after:
        flow.grows(after)
        assert daemon.ctl("upgrade").returncode == 0
    with Client.connect(daemon.socket) as after:
        flow.grows(after)
        assert pids(after)["map"] == program.pid
        program.process.kill()
        waits(after, 2)
        assert node(after)["deaths"][-1]["signal"] == "SIGKILL"
        assert stop(after, "now") == "stopped"
    flow.check()


# -- refusals --------------------------------------------------------------------------------------------------


def test_whoever_names_a_wrong_token_or_name_or_comes_second_is_refused_and_disturbs_nobody(
    daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    token = flow.begin(client)
    waits(client, 1)
    assert run(daemon.socket, "0" * 32).says() == "refused attach-token-unknown"
    assert run(daemon.socket, token, name="forwrad").says() == "refused attach-name-unknown"
    program = run(daemon.socket, token)
    assert program.says() == "started 0"
    flow.grows(client)
    assert run(daemon.socket, token).says() == "refused attach-not-awaited"
    flow.grows(client)
    assert stop(client) == "stopped"
    assert run(daemon.socket, token).says() == "refused attach-not-awaited"
    flow.check()
    records = [record for record in client.stream("audit") if record["verb"] == "attach"]
    outcomes = [record["outcome"] for record in records]
    refused = ["attach-token-unknown", "attach-name-unknown"]
    assert outcomes == [*refused, "begun", "ok", "attach-not-awaited", "attach-not-awaited"]
    assert records[2]["pid"] == program.pid
    assert records[2]["about"] == {"flow": "f", "name": "forward", "nodes": "map"}
    assert token not in str(records)


def test_the_token_stays_for_later_runs_of_the_flow_and_ends_when_it_is_removed(
    daemon: Daemon, client: Client, flow: AttachedFlow, run: Run
) -> None:
    token = flow.begin(client)
    assert stop(client) == "stopped"
    assert flow.begin(client) == token
    assert stop(client) == "stopped"
    client.call("remove", flow="f")
    assert run(daemon.socket, token).says() == "refused attach-token-unknown"
    assert flow.begin(client) != token


def test_a_flow_without_such_nodes_has_no_token(client: Client, flow: AttachedFlow) -> None:
    flow.attached = "none"
    client.call("submit", flow=flow.raw(), name="f", base_dir=str(PLUGINS), wait="running")
    with pytest.raises(ChronetixError, match="attach-nothing"):
        client.call("attach_token", flow="f")
    assert [event for event in events(client) if event["kind"] == "worker-waiting"] == []
    assert stop(client) == "stopped"
