"""The daemon is replaced in place while everything runs: no frame lost or repeated, no worker restarted."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from tests.e2e.conftest import ROOT
from tests.e2e.growing import await_written
from tests.e2e.surviving import PLUGINS, Flow, events, kill, lives, pids
from tests.e2e.test_rollouts import Line

Map = dict[str, Any]
CTL = (sys.executable, "-m", "chronetixctl")
Start = Callable[[], Any]


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path)


Image = Callable[..., Path]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """Makes a program that stands for another release: Python code before ``chronetixd`` begins, or a shell's."""

    def made(code: str, shell: bool = False) -> Path:
        program = tmp_path / "other"
        begin = f"#!{sys.executable}\nimport os, sys\n"
        end = "\nfrom chronetixd.main import main\nmain(prog_name='chronetixd')\n"
        program.write_text(f"#!/bin/sh\n{code}\n" if shell else begin + code + end)
        program.chmod(0o755)
        return program

    return made


def upgrade(daemon: Any, *options: str) -> Map:
    """By the command; what it says when it succeeds."""
    ended = daemon.ctl("upgrade", "-o", "json", *options)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert isinstance(told, dict)
    return told


def descriptors(daemon: Any) -> int:
    """How many are open, without the files of /proc that a thread reads for the figures of workers."""
    folder = Path(f"/proc/{daemon.process.pid}/fd")
    refers = []
    for each in folder.iterdir():
        with suppress(FileNotFoundError):
            refers.append(os.readlink(each))
    return sum(not target.startswith("/proc/") for target in refers)


def follow(client: Client, kind: str, **of: Any) -> Map:
    """The next event of this kind, or the one that was."""
    for event in client.stream("events", follow=True):
        if event["kind"] == kind and all((event | event["data"]).get(key) == value for key, value in of.items()):
            assert isinstance(event, dict)
            return event
    raise AssertionError


def exists(path: Path) -> None:
    """Wait until it is there."""
    await_written(path, path.exists)


class TestUnderLoad:
    @pytest.mark.parametrize("loss", ["stop", "survive"])
    def test_no_frame_is_lost_or_repeated_and_no_worker_restarted(self, loss: str, daemon: Any, flow: Flow) -> None:
        with Client.connect(daemon.socket) as client:
            before = flow.submit(client, loss=loss)
        told = upgrade(daemon)
        assert (told["flows"], told["workers"], told["failed"]) == (1, 3, "")
        assert told["pause_ns"] > 0
        with Client.connect(daemon.socket) as client:
            assert daemon.process.poll() is None
            assert client.call("version")["pid"] == daemon.process.pid
            assert client.call("version")["upgraded"] == told
            assert pids(client) == before
            flow.grows(client)
            described = client.call("describe", flow="f")
            assert [node["incarnation"] for node in described["nodes"]] == [0, 0, 0]
            assert client.call("stop", flow="f") == {"flow": "f", "state": "stopped"}
        flow.check()
        assert not [number for number, marked in flow.numbers() if marked]
        assert not [pid for pid in before.values() if lives(pid)]

    def test_what_was_counted_and_what_has_happened_is_known_still(self, daemon: Any, flow: Flow) -> None:
        with Client.connect(daemon.socket) as client:
            flow.submit(client)
            (before,) = client.call("list")["flows"]
            happened = events(client)
        upgrade(daemon)
        with Client.connect(daemon.socket) as client:
            assert client.call("list")["flows"] == [before]
            now = events(client)
            assert now[: len(happened)] == happened
            assert [event["sequence"] for event in now] == [event["sequence"] for event in happened]
            everything = list(client.stream("events"))
            assert [event["sequence"] for event in everything] == list(range(1, len(everything) + 1))
            assert client.call("stop", flow="f")["state"] == "stopped"
        flow.check()

    @pytest.mark.settings(spares=0)
    def test_again_and_again_without_a_descriptor_more(self, daemon: Any, flow: Flow) -> None:
        counts = []
        with Client.connect(daemon.socket) as client:
            before = flow.submit(client)
        for _ in range(4):
            upgrade(daemon)
            with Client.connect(daemon.socket) as client:
                last = follow(client, "upgraded")["sequence"]
                while not any(e["kind"] == "launcher-ready" for e in client.stream("events", after=last)):
                    pass
                assert pids(client) == before
                flow.grows(client)
                counts.append(descriptors(daemon))
                while counts[-1] != min(counts):  # what is just being closed is there for a moment
                    flow.grows(client)
                    counts[-1] = descriptors(daemon)
        assert len(set(counts[1:])) == 1, counts
        assert counts[1] <= counts[0], counts
        with Client.connect(daemon.socket) as client:
            assert client.call("stop", flow="f")["state"] == "stopped"
        flow.check()
        assert not [number for number, marked in flow.numbers() if marked]

    def test_while_an_arena_grows_and_shrinks(self, daemon: Any, submit: Any) -> None:
        nodes = [submit.node("source", "upgrades:grows"), submit.node("sink", "upgrades:Numbers")]
        submit(nodes, [submit.edge("source", "sink", buffer=4)], name="g", wait="running")
        for _ in range(2):
            upgrade(daemon)
        with Client.connect(daemon.socket) as client:
            ended(client, "g", "stopped")
            (result,) = [n["result"] for n in client.call("describe", flow="g")["nodes"] if n["node"] == "sink"]
        assert result == 19_999


def ended(client: Client, flow: str, state: str) -> None:
    """Wait for its end."""
    for event in client.stream("events", flow=flow, follow=True):
        if event["kind"] in ("flow-stopped", "flow-failed"):
            break
    (listed,) = [each for each in client.call("list")["flows"] if each["name"] == flow]
    assert listed["state"] == state, listed


class TestRefused:
    @pytest.mark.parametrize(
        ("code", "shell", "reason"),
        [
            ("echo 'this machine is too old' >&2; exit 1", True, "this machine is too old"),
            ("echo 'chronetixd 7'", True, "gave no answer of a chronetixd"),
            ("kill -9 $$", True, "was killed by SIGKILL"),
            ("import chronetixd.upgrade.snapshot as s; s.FORMATS = (99,)", False, "format 2, this release reads 99"),
            ("import chronetixd.flows.registry as f; f.make_plan = None", False, "TypeError"),
        ],
        ids=["exits", "garbage", "killed", "format", "defect"],
    )
    def test_a_release_that_fails_its_rehearsal_changes_nothing(
        self, code: str, shell: bool, reason: str, daemon: Any, flow: Flow, image: Image
    ) -> None:
        with Client.connect(daemon.socket) as client:
            before = flow.submit(client)
            happened = events(client)
            with pytest.raises(ChronetixError, match="upgrade-refused") as refusal:
                client.call("upgrade", image=str(image(code, shell)))
            assert reason in refusal.value.message
            flow.grows(client)
            assert pids(client) == before
            assert client.call("version")["upgraded"] is None
            assert events(client) == happened
            assert client.call("stop", flow="f")["state"] == "stopped"
        flow.check()

    def test_one_that_hangs_is_given_up(self, daemon: Any, image: Image) -> None:
        with Client.connect(daemon.socket) as client, pytest.raises(ChronetixError, match="did not finish"):
            client.call("upgrade", image=str(image("exec sleep 1000", shell=True)), timeout_ns=300_000_000)

    def test_a_dry_run_only_tells(self, daemon: Any, flow: Flow) -> None:
        with Client.connect(daemon.socket) as client:
            before = flow.submit(client)
            told = upgrade(daemon, "--dry-run")
            assert (told["workers"], told["upgrade_blockers"], told["formats"]) == (3, [], [2])
            assert pids(client) == before, "and the connection is still the same"
            assert client.call("stop", flow="f")["state"] == "stopped"

    def test_a_release_without_a_module_of_a_plugin_is_refused_by_name(
        self, daemon: Any, submit: Any, image: Image, tmp_path: Path
    ) -> None:
        (tmp_path / "needy.py").write_text(
            "import bench.cells\nimport helper\nimport time\n"
            "def run(ctx):\n    while True:\n        yield 1\n        time.sleep(0.01)\n"
        )
        (tmp_path / "helper.py").write_text("try:\n    import frobnicate\nexcept ImportError: pass\n")
        node = submit.node("needy", "x:run")
        node["artifact"]["uri"] = "python://needy.py:run"
        code = f"sys.path[:] = [each for each in sys.path if each != {str(ROOT)!r}]"
        with Client.connect(daemon.socket) as client:
            flow = {"name": "f", "manifests": [node], "routes": [], "schemas": []}
            client.call("submit", flow=flow, base_dir=str(tmp_path), wait="running")
            refused = daemon.ctl("upgrade", "--dry-run", "--image", str(image(code)))
            assert refused.returncode == 1, refused.stdout
            assert f"needs the module bench (imported by {tmp_path}/needy.py)" in refused.stderr
            assert "frobnicate" not in refused.stderr
            with pytest.raises(ChronetixError, match="module bench"):
                client.call("upgrade", image=str(image(code)))
            assert upgrade(daemon, "--dry-run", "--image", str(image("")))["workers"] == 1
            client.call("stop", flow="f", mode="now")
            assert upgrade(daemon, "--dry-run", "--image", str(image(code)))["workers"] == 0

    @pytest.mark.parametrize("path", ["/nowhere/chronetixd", "/tmp"])
    def test_what_is_no_program_is_refused(self, path: str, daemon: Any) -> None:
        with Client.connect(daemon.socket) as client, pytest.raises(ChronetixError, match="no program"):
            client.call("upgrade", image=path)

    def test_a_program_that_somebody_else_could_change_is_refused(self, daemon: Any, image: Image) -> None:
        program = image("")
        program.chmod(0o777)
        with Client.connect(daemon.socket) as client, pytest.raises(ChronetixError, match="could change what is exec"):
            client.call("upgrade", image=str(program))

    @pytest.mark.settings(spares=0)
    def test_without_descriptors_for_two_of_each_it_is_refused(self, daemon: Any, flow: Flow) -> None:
        with Client.connect(daemon.socket) as client:
            before = flow.submit(client)
            most = descriptors(daemon) + 4
            limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (most, limits[1]))
            with pytest.raises(ChronetixError, match="upgrade-refused") as refusal:
                client.call("upgrade")
            assert "Too many open files" in refusal.value.message
            flow.grows(client)
            assert pids(client) == before
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limits)
        assert upgrade(daemon)["workers"] == 3
        with Client.connect(daemon.socket) as client:
            assert client.call("stop", flow="f")["state"] == "stopped"
        flow.check()

    def test_two_at_once_are_one_too_many(self, daemon: Any, image: Image, tmp_path: Path) -> None:
        rehearses = image(f"touch {tmp_path}/begun; exec sleep 1000", shell=True)
        command = [*CTL, "upgrade", "--image", str(rehearses)]
        with subprocess.Popen(command, env=daemon.environment, stderr=subprocess.DEVNULL) as first:
            exists(tmp_path / "begun")
            with (
                Client.connect(daemon.socket) as client,
                pytest.raises(ChronetixError, match="another upgrade is under way"),
            ):
                client.call("upgrade")
            first.send_signal(signal.SIGINT)
        assert upgrade(daemon)["failed"] == "", "whoever gives up leaves nothing behind"


class TestTheOldOneTakesOverAgain:
    DEFECT = """
if "CHRONETIX_UPGRADE" in os.environ:
    from chronetixd.daemon import daemon
    def unpack(*_, **__):
        raise RuntimeError("a defect of the new release")
    daemon.Daemon.unpack = unpack
"""

    @pytest.mark.parametrize(("code", "reason"), [(DEFECT, "a defect of the new release")])
    def test_when_the_new_one_fails_after_all(
        self, code: str, reason: str, daemon: Any, flow: Flow, image: Image
    ) -> None:
        with Client.connect(daemon.socket) as client:
            before = flow.submit(client)
        failed = daemon.ctl("upgrade", "--image", str(image(code)))
        assert failed.returncode == 1
        assert reason in failed.stderr
        with Client.connect(daemon.socket) as client:
            assert client.call("version")["pid"] == daemon.process.pid
            assert reason in follow(client, "upgrade-failed")["message"]
            assert pids(client) == before
            flow.grows(client)
        assert upgrade(daemon)["failed"] == ""
        with Client.connect(daemon.socket) as client:
            assert pids(client) == before
            assert client.call("stop", flow="f")["state"] == "stopped"
        flow.check()
        assert not [number for number, marked in flow.numbers() if marked]

    def test_a_signal_that_comes_meanwhile_is_not_lost(self, daemon: Any, flow: Flow, image: Image) -> None:
        with Client.connect(daemon.socket) as client:
            before = flow.submit(client)
        stops = "import signal\nif 'CHRONETIX_UPGRADE' in os.environ: os.kill(os.getpid(), signal.SIGTERM)"
        daemon.ctl("upgrade", "--image", str(image(stops)))
        assert daemon.process.wait(60) == 0
        flow.check()
        assert not [pid for pid in before.values() if lives(pid)]


class TestInTheMiddle:
    def test_of_a_back_off(self, daemon: Any, submit: Any, tmp_path: Path) -> None:
        """One that is long, so that it cannot end meanwhile, and one that does end."""
        for flow, backoff_ms in (("long", 3_600_000), ("short", 10_000)):
            rule = {"policy": "permanent", "max": 5, "backoff_ms": backoff_ms, "backoff_max_ms": backoff_ms}
            nodes = [
                submit.node("source", "restarts:paced", restart=rule),
                submit.node("map", "restarts:FailsAtFirst", params={"lives": 2}, restart=rule),
                submit.node("sink", "restarts:Ledger", params={"ledger": str(tmp_path / flow)}, restart=rule),
            ]
            submit(nodes, [submit.edge("source", "map"), submit.edge("map", "sink")], name=flow, wait="running")

        def waiting(client: Client) -> tuple[str, int, int]:
            (node,) = [each for each in client.call("describe", flow="long")["nodes"] if each["node"] == "map"]
            return node["state"], node["incarnation"], node["restart"]["next_restart_unix_ns"]

        with Client.connect(daemon.socket) as client:
            follow(client, "node-restarting", flow="long", attempt=2)
            before = waiting(client)
        assert before[:2] == ("restarting", 1)
        upgrade(daemon)
        with Client.connect(daemon.socket) as client:
            after = waiting(client)
            assert after[:2] == before[:2]
            assert abs(after[2] - before[2]) < 1_000_000_000
            follow(client, "node-restarted", flow="short", incarnation=2)
            for flow in ("long", "short"):
                assert client.call("stop", flow=flow)["state"] == "stopped"

    def test_of_a_line(self, daemon: Any, submit: Any, tmp_path: Path) -> None:
        files = {"begun": str(tmp_path / "begun"), "end": str(tmp_path / "end")}
        nodes = [submit.node("source", "upgrades:halves", params=files), submit.node("sink", "upgrades:Takes")]
        submit(nodes, [submit.edge("source", "sink")], name="f", wait="running")
        exists(tmp_path / "begun")
        upgrade(daemon)
        (tmp_path / "end").touch()
        with Client.connect(daemon.socket) as client:
            ended(client, "f", "stopped")
            lines = [item["line"] for item in client.stream("logs", flow="f", node="source")]
        assert lines == ["the first half, the second half"]

    def test_of_a_request(self, daemon: Any, submit: Any) -> None:
        submit([submit.node("answers", "upgrades:AnswersLate")], [], name="answers", wait="running")
        submit([submit.node("asks", "upgrades:Asks")], [], name="asks", wait="accepted")
        with Client.connect(daemon.socket) as client:
            said(client, "asked")
        upgrade(daemon)
        with Client.connect(daemon.socket) as client:
            assert client.call("publish", topic="/now", payload=b"{}")["subscribers"] == 1
            said(client, "the answer: {'late': True}")
            told = client.call("describe", flow="answers")["subscriptions"]
            counted = {each["topic"]: each["delivered"] for each in told}
            assert counted == {"/slow": 1, "/now": 1}, "also what was delivered before"
            for name in ("asks", "answers"):
                assert client.call("stop", flow=name)["state"] == "stopped"

    def test_of_a_start(self, daemon: Any, submit: Any, tmp_path: Path) -> None:
        files = {"begun": str(tmp_path / "begun"), "go": str(tmp_path / "go")}
        submit([submit.node("slow", "upgrades:Slow", params=files)], [], name="f", wait="accepted")
        exists(tmp_path / "begun")
        upgrade(daemon)
        with Client.connect(daemon.socket) as client:
            assert client.call("list")["flows"][0]["state"] == "starting"
            (tmp_path / "go").touch()
            follow(client, "flow-running")
            assert client.call("stop", flow="f")["state"] == "stopped"

    @pytest.mark.settings(drain_timeout=60)
    def test_of_a_drain(self, daemon: Any, submit: Any, tmp_path: Path) -> None:
        files = {"begun": str(tmp_path / "begun"), "go": str(tmp_path / "go")}
        nodes = [submit.node("source", "restarts:paced"), submit.node("sink", "upgrades:Lingers", params=files)]
        submit(nodes, [submit.edge("source", "sink")], name="f", wait="running")
        stop = subprocess.Popen([*CTL, "stop", "f"], env=daemon.environment, stderr=subprocess.PIPE)
        exists(tmp_path / "begun")
        upgrade(daemon)
        _, told = stop.communicate()
        assert b"daemon-upgrading" in told
        with Client.connect(daemon.socket) as client:
            assert client.call("list")["flows"][0]["state"] == "draining"
            (tmp_path / "go").touch()
            ended(client, "f", "stopped")
            (result,) = [n["result"] for n in client.call("describe", flow="f")["nodes"] if n["node"] == "sink"]
            assert result == "lingered"

    def test_of_timers_without_a_tick_lost(self, daemon: Any, submit: Any) -> None:
        timer = {"id": "t", "schedule": {"interval_ms": 20}}
        submit([submit.node("ticks", "upgrades:ticks", timers=[timer])], [], name="f", wait="running")
        with Client.connect(daemon.socket) as client:
            said(client, "tick 5")
        upgrade(daemon)
        with Client.connect(daemon.socket) as client:
            last = follow(client, "upgraded")["unix_ns"]
            for item in client.stream("logs", flow="f", follow=True):
                if item["unix_ns"] > last + 200_000_000:
                    break
            lines = [item["line"].split() for item in client.stream("logs", flow="f", node="ticks")]
            assert client.call("stop", flow="f")["state"] == "stopped"
        ticked = [(int(number), int(missed)) for word, number, missed in lines if word == "tick"]
        assert all(now - missed == before + 1 for (before, _), (now, missed) in pairwise(ticked))


def said(client: Client, line: str) -> None:
    """Wait until a worker has said ``line``, with or without more behind it."""
    for item in client.stream("logs", follow=True):
        if item["line"] == line or item["line"].startswith(line + " "):
            return


class TestDeaths:
    @pytest.mark.settings(spares=0)
    def test_nodes_that_keep_dying_keep_nobody_from_it_and_are_not_forgotten(self, daemon: Any, submit: Any) -> None:
        rule = {"policy": "permanent", "max": 1000, "backoff_ms": 1, "backoff_max_ms": 20}
        nodes = [
            submit.node("source", "restarts:paced", restart=rule),
            submit.node("map", "restarts:FailsAtFirst", restart=rule),
            submit.node("sink", "upgrades:Takes", restart=rule),
        ]
        routes = [submit.edge("source", "map"), submit.edge("map", "sink")]
        submit(nodes, routes, name="f", wait="running")
        for _ in range(4):
            assert upgrade(daemon)["failed"] == ""
            with Client.connect(daemon.socket) as client:
                last = follow(client, "upgraded")["sequence"]
                wanted = {"launcher-ready", "node-restarted"}
                for event in client.stream("events", after=last, follow=True):
                    wanted.discard(event["kind"])
                    if not wanted:
                        break
        with Client.connect(daemon.socket) as client:
            assert client.call("stop", flow="f", mode="now")["state"] == "stopped"
            assert len(psutil.Process(daemon.process.pid).children(recursive=True)) == 1, "the launcher"

    def test_a_worker_that_dies_while_nobody_looks_is_found_dead(
        self, daemon: Any, flow: Flow, image: Image, tmp_path: Path
    ) -> None:
        with Client.connect(daemon.socket) as client:
            before = flow.submit(client)
        code = f"""
if "CHRONETIX_UPGRADE" in os.environ:
    import select, signal
    pidfd = os.pidfd_open({before["map"]})
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [])
    os.close(pidfd)
"""
        told = upgrade(daemon, "--image", str(image(code)))
        assert told["workers"] == 3
        with Client.connect(daemon.socket) as client:
            follow(client, "node-restarted")
            flow.grows(client)
            (node,) = [each for each in client.call("describe", flow="f")["nodes"] if each["node"] == "map"]
            assert node["deaths"][-1]["signal"] == "SIGKILL", "its exit status was kept"
            assert client.call("stop", flow="f")["state"] == "stopped"
        flow.check()


class TestALauncherThatIsStopped:
    @pytest.mark.settings(spares=0, start_timeout=100)
    def test_holds_no_upgrade_up_and_what_was_asked_of_it_is_born_under_the_next_image(
        self, daemon: Any, submit: Any
    ) -> None:
        with Client.connect(daemon.socket) as client:
            launcher = follow(client, "launcher-ready")["data"]["launcher"]
            os.kill(launcher, signal.SIGSTOP)
            submit(
                [submit.node("a", "upgrades:Takes"), submit.node("b", "restarts:paced")],
                [submit.edge("b", "a")],
                name="f",
                wait="accepted",
            )
        assert upgrade(daemon)["failed"] == ""
        with Client.connect(daemon.socket) as client:
            follow(client, "flow-running")
            assert client.call("stop", flow="f")["state"] == "stopped"


class TestRollouts:
    def test_what_a_roll_out_has_made_of_a_flow_is_handed_over(self, daemon: Any, submit: Any, tmp_path: Path) -> None:
        with Client.connect(daemon.socket) as client:
            line = Line(submit, client, tmp_path).start()
            line.apply(line.become(map={"params": {"by": 1}}))
            before, history = line.pids(), line.history()
        upgrade(daemon)
        with Client.connect(daemon.socket) as client:
            line.client = client
            assert line.pids() == before
            assert line.history() == history
            line.apply(line.become(map={"params": {"by": 2}}))
            assert line.pids()["source"] == before["source"]
            assert len(line.history()) == len(history) + 1
            line.check()

    def test_one_that_is_under_way_is_waited_for(self, daemon: Any, submit: Any, tmp_path: Path) -> None:
        with Client.connect(daemon.socket) as client:
            line = Line(submit, client, tmp_path).start()
            files = {"begun": str(tmp_path / "begun"), "go": str(tmp_path / "go")}
            slow = {"kind": "Python", "uri": "python://upgrades.py:SlowMap"}
            changed = line.become(map={"artifact": slow, "params": files})
            client.call("apply", flow=changed, name=line.name, base_dir=str(PLUGINS), wait=False)
            exists(tmp_path / "begun")
            with pytest.raises(ChronetixError, match="is in the middle of roll-out 2"):
                client.call("upgrade", timeout_ns=100_000_000)
            with subprocess.Popen([*CTL, "upgrade"], env=daemon.environment, stdout=subprocess.DEVNULL) as waiting:
                (tmp_path / "go").touch()
                assert waiting.wait() == 0
        with Client.connect(daemon.socket) as client:
            line.client = client
            assert line.history() == [(1, "submitted", False), (2, "done", True)]
            line.further()
            line.stop()


class TestClients:
    def test_who_follows_events_goes_on_where_it_was(self, daemon: Any, flow: Flow) -> None:
        command = [*CTL, "events", "-f", "-o", "json"]
        with subprocess.Popen(command, env=daemon.environment, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            with Client.connect(daemon.socket) as client:
                flow.submit(client)
            seen = [json.loads(following.stdout.readline())]
            upgrade(daemon)
            with Client.connect(daemon.socket) as client:
                assert client.call("stop", flow="f")["state"] == "stopped"
            for line in following.stdout:
                seen.append(json.loads(line))
                if seen[-1]["kind"] == "flow-stopped":
                    break
            following.send_signal(signal.SIGINT)
        assert [event["sequence"] for event in seen] == list(range(1, len(seen) + 1))
        assert "upgraded" in [event["kind"] for event in seen]

    def test_who_listens_to_a_route_listens_on(self, daemon: Any, flow: Flow) -> None:
        command = [*CTL, "topic", "echo", "f", "map:sink", "-o", "json"]
        with Client.connect(daemon.socket) as client:
            flow.submit(client)
        with subprocess.Popen(command, env=daemon.environment, stdout=subprocess.PIPE, text=True) as listening:
            assert listening.stdout is not None
            assert json.loads(listening.stdout.readline())["seq"] >= 0
            upgrade(daemon)
            with Client.connect(daemon.socket) as client:
                upgraded = follow(client, "upgraded")["unix_ns"]
            assert next(item for item in map(json.loads, listening.stdout) if item["unix_ns"] > upgraded)
            listening.send_signal(signal.SIGINT)
            listening.stdout.read()
        with Client.connect(daemon.socket) as client:
            assert client.call("stop", flow="f")["state"] == "stopped"
        flow.check()

    def test_only_an_admin_may(self, daemon: Any) -> None:
        from chronetixd.control.verbs import VERBS
        from chronetixd.core.access import Right

        assert VERBS["upgrade"].right is Right.ADMIN
        with Client.connect(daemon.socket) as client:
            client.call("upgrade", dry_run=True)
            records = list(client.stream("audit", verb="upgrade"))
        assert [record["outcome"] for record in records] == ["begun", "ok"]


class TestBesideTheDaemonsDeath:
    def test_flows_come_home_after_an_upgrade(self, start: Start, flow: Flow) -> None:
        first = start()
        with Client.connect(first.socket) as client:
            before = flow.submit(client)
        upgrade(first)
        kill(first)
        second = start()
        with Client.connect(second.socket) as client:
            assert pids(client) == before
            flow.grows(client)
            assert client.call("stop", flow="f")["state"] == "stopped"
        flow.check()

    def test_and_are_handed_over_when_they_are_home(self, start: Start, flow: Flow) -> None:
        first = start()
        with Client.connect(first.socket) as client:
            before = flow.submit(client)
        kill(first)
        second = start()
        assert upgrade(second)["workers"] == 3
        with Client.connect(second.socket) as client:
            assert pids(client) == before
            flow.grows(client)
            assert client.call("stop", flow="f")["state"] == "stopped"
        flow.check()

    @pytest.mark.parametrize("victim", ["source", "map", "sink"])
    def test_a_worker_that_dies_afterwards_is_succeeded(self, victim: str, daemon: Any, flow: Flow) -> None:
        with Client.connect(daemon.socket) as client:
            before = flow.submit(client)
        upgrade(daemon)
        os.kill(before[victim], signal.SIGKILL)
        with Client.connect(daemon.socket) as client:
            follow(client, "node-restarted")
            flow.grows(client)
            (node,) = [each for each in client.call("describe", flow="f")["nodes"] if each["node"] == victim]
            assert node["deaths"][-1]["signal"] == "SIGKILL"
            assert client.call("stop", flow="f")["state"] == "stopped"
        flow.check()
