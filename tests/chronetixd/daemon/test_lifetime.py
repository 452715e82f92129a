"""The daemon's own life: one at a time, --check, signals, a launcher that dies, and nothing left behind."""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chronetixd.daemon.daemon import EXIT_BROKEN
from tests.chronetixd.conftest import end_what_is_left, without_nodeworker

pytestmark = pytest.mark.cold

ROOT = Path(__file__).parents[3]


def chronetixd(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run chronetixd to its end."""
    command = [sys.executable, "-m", "chronetixd", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(daemon: Any, tmp_path: Path) -> None:
    second = chronetixd("--state-dir", str(daemon.state), "--socket", str(tmp_path / "other"))
    assert second.returncode == 1
    assert f"pid {daemon.process.pid}" in second.stderr


def test_after_a_daemon_was_killed_the_next_one_runs_its_flows_again(start: Any, scripted: Any) -> None:
    first = start()
    with first.connect() as peer:
        peer.call("submit", flow=scripted("good"), name="f", wait="running")
        (node,) = peer.call("describe", flow="f")["nodes"]
        first.process.kill()
        first.process.wait()
    pidfd_gone(node["pid"])
    second = start()
    with second.connect() as peer:
        (flow,) = peer.call("list")["flows"]
        (again,) = peer.call("describe", flow="f")["nodes"]
        assert (flow["name"], flow["state"]) == ("f", "running"), "ready means that stored flows run"
        assert again["pid"] != node["pid"]
    assert second.stop() == 0


def test_a_flow_that_a_daemons_end_has_drained_runs_again_and_one_that_was_stopped_is_listed(
    start: Any, scripted: Any
) -> None:
    first = start()
    with first.connect() as peer:
        peer.call("submit", flow=scripted("good"), name="wanted", wait="running")
        peer.call("submit", flow=scripted("good"), name="stopped", wait="running")
        peer.call("submit", flow=scripted("crash"), name="broken", wait="stopped")
        peer.call("stop", flow="stopped")
    assert first.stop() == 0
    second = start()
    with second.connect() as peer:
        states = {flow["name"]: (flow["state"], flow["reason"]) for flow in peer.call("list")["flows"]}
    assert states["wanted"] == ("running", "")
    assert states["stopped"] == ("stopped", "")
    assert states["broken"][0] == "failed"
    assert "n0" in states["broken"][1], "a failure's reason outlives the daemon"
    assert second.stop() == 0


def test_a_flow_that_cannot_run_again_is_listed_with_the_reason(start: Any, scripted: Any, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    flow = scripted("good")
    flow["manifests"][0]["artifact"]["uri"] = f"file://{program}"
    first = start()
    with first.connect() as peer:
        peer.call("submit", flow=flow, name="f", wait="running")
    assert first.stop() == 0
    program.unlink()
    second = start()
    with second.connect() as peer:
        (listed,) = peer.call("list")["flows"]
    assert listed["state"] == "failed"
    assert "cannot run again" in listed["reason"]
    assert str(program) in listed["reason"]
    assert second.stop() == 0


def test_without_room_for_the_journal_a_flow_is_refused_and_nothing_is_started(
    start: Any, scripted: Any, small_disk: Path
) -> None:
    daemon = start("--state-dir", str(small_disk))
    with daemon.connect() as peer:
        peer.call("submit", flow=scripted("good"), name="before", wait="running")
        (small_disk / "ballast").write_bytes(b"x")
        with (small_disk / "ballast").open("ab", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError:
                pass
        big = scripted("good") | {"x-size": "x" * 100_000}
        failure = peer.refused("submit", flow=big, name="after")
        assert failure.name == "journal-unusable"
        assert [flow["name"] for flow in peer.call("list")["flows"]] == ["before"]
        (small_disk / "ballast").unlink()
        peer.call("submit", flow=big, name="after", wait="running")
    assert daemon.stop() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "chronetix-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def pidfd_gone(pid: int) -> None:
    """Wait until a process that is not ours has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([fd], [], [])
    os.close(fd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_all_flows_and_ends_with_0(number: signal.Signals, start: Any, scripted: Any) -> None:
    daemon = start()
    with daemon.connect() as peer:
        peer.call("submit", flow=scripted("good", "good"), name="f", wait="running")
        pids = [node["pid"] for node in peer.call("describe", flow="f")["nodes"]]
        daemon.process.send_signal(number)
        assert daemon.process.wait() == 0
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert not daemon.socket.exists()
    assert "flow-stopped" in [record["event"] for record in daemon.records()]


def test_a_second_signal_kills_what_does_not_drain(start: Any, scripted: Any) -> None:
    daemon = start(CHRONETIX_DRAIN_TIMEOUT="600", CHRONETIX_TERMINATE_TIMEOUT="600")
    with daemon.connect() as peer:
        peer.call("submit", flow=scripted("stubborn"), name="f", wait="running")
        (node,) = peer.call("describe", flow="f")["nodes"]
        following = peer.begin("events", flow="f", follow=True)
        daemon.process.terminate()
        while peer.receive().value["kind"] != "flow-draining":
            pass
        daemon.process.terminate()
        assert daemon.process.wait() == 0
        assert peer.end(following).name == "daemon-stopping"
    assert not os.path.exists(f"/proc/{node['pid']}")


def test_while_it_stops_it_answers_but_takes_no_new_flows(start: Any, scripted: Any) -> None:
    daemon = start(CHRONETIX_DRAIN_TIMEOUT="600")
    with daemon.connect() as peer, daemon.connect() as watcher:
        peer.call("submit", flow=scripted("stubborn"), name="f", wait="running")
        watcher.begin("events", flow="f", follow=True)
        daemon.process.terminate()
        while watcher.receive().value["kind"] != "flow-draining":
            pass
        assert peer.refused("submit", flow=scripted("good")).name == "daemon-stopping"
        stopping = peer.begin("stop", flow="f", mode="now")
        assert peer.end(stopping).value["state"] == "stopped"
        assert daemon.process.wait() == 0


def test_a_launcher_that_dies_is_replaced_and_running_flows_go_on(daemon: Any, peer: Any, scripted: Any) -> None:
    peer.call("submit", flow=scripted("good"), name="f", wait="running")
    (node,) = peer.call("describe", flow="f")["nodes"]
    (launcher,) = [pid for pid in children(daemon.process.pid) if pid != node["pid"]]
    os.kill(launcher, signal.SIGKILL)
    peer.begin("events", follow=True)
    while peer.receive().value["kind"] != "launcher-lost":
        pass
    with daemon.connect() as other:
        assert other.call("submit", flow=scripted("at_once"), wait="stopped")["state"] == "stopped"
        assert {flow["name"]: flow["state"] for flow in other.call("list")["flows"]}["f"] == "running"
        assert other.call("stop", flow="f")["state"] == "stopped"


def test_check_says_that_all_is_well_and_starts_nothing(tmp_path: Path) -> None:
    done = chronetixd("--check", "--state-dir", str(tmp_path / "state"), "--socket", str(tmp_path / "sock"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_check_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = chronetixd("--check", "--state-dir", str(tmp_path / "file"), "--socket", str(tmp_path / "file"))
    assert done.returncode == 1
    assert [line[:4] for line in done.stdout.splitlines()[:2]] == ["FAIL", "FAIL"]


@pytest.mark.parametrize(
    ("text", "words"),
    [('allow_operate = ["nobody-there"]', "no user nobody-there"), ('allow_admin = ["*"]', "everyone")],
)
def test_check_finds_rights_that_no_daemon_can_give(text: str, words: str, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    done = chronetixd("--check", "--config", str(config), "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 1
    assert words in done.stderr


def test_a_bad_configuration_is_refused_with_its_place(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("drain_timout = 5\n")
    done = chronetixd("--check", "--config", str(config))
    assert done.returncode == 1
    assert "did you mean drain_timeout" in done.stderr
    assert str(config) in done.stderr


def test_an_unknown_flag_is_a_usage_error() -> None:
    assert chronetixd("--no-such-flag").returncode == 2


def test_help_shows_examples_and_version_a_version() -> None:
    assert "Examples:" in chronetixd("--help").stdout
    assert chronetixd("--version").stdout.startswith("chronetixd, version ")


def test_where_no_launcher_can_start_the_daemon_serves_and_says_why_it_starts_nothing(
    start: Any, scripted: Any, tmp_path: Path
) -> None:
    package = without_nodeworker(tmp_path / "broken") / "nodeworker"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('this installation is broken')")
    daemon = start(PYTHONPATH=f"{tmp_path / 'broken'}:{ROOT}")
    with daemon.connect() as peer:
        failed = peer.call("submit", flow=scripted("good"), name="f", wait="stopped")
        assert failed["state"] == "failed"
        assert "launchers in a row ended before they were ready" in failed["reason"]
        assert "this installation is broken" in failed["reason"]
        shutil.rmtree(package)
        package.symlink_to(ROOT / "nodeworker")
        peer.begin("events", follow=True)
        while peer.receive().value["kind"] != "launcher-ready":
            pass
    with daemon.connect() as peer:
        assert peer.call("submit", flow=scripted("good"), name="f", wait="running")["state"] == "running"
    assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_launcher_that_is_ended_before_it_is_ready_costs_no_stored_flow(
    number: signal.Signals, start: Any, scripted: Any
) -> None:
    """Stored flows wait for the next one."""
    first = start()
    with first.connect() as peer:
        for name in ("f", "g"):
            peer.call("submit", flow=scripted("good"), name=name, wait="running")
    first.process.kill()
    first.process.wait()

    def end_the_first(pid: int) -> None:
        while not (found := children(pid)):
            pass
        os.kill(found[0], number)

    second = start(meanwhile=end_the_first)
    with second.connect() as peer:
        assert [flow["state"] for flow in peer.call("list")["flows"]] == ["running", "running"]
    assert second.stop() == 0


def test_a_flow_that_waits_for_a_launcher_which_is_stopped_can_be_killed(start: Any, scripted: Any) -> None:
    daemon = start(CHRONETIX_START_TIMEOUT="600")
    (launcher,) = children(daemon.process.pid)
    with daemon.connect() as peer, daemon.connect() as other:
        os.kill(launcher, signal.SIGSTOP)
        submitting = peer.begin("submit", flow=scripted("good"), name="f", wait="running")
        while [flow["state"] for flow in other.call("list")["flows"]] != ["starting"]:
            pass
        assert other.call("stop", flow="f", mode="now")["state"] == "stopped"
        peer.end(submitting)
    assert not os.path.exists(f"/proc/{launcher}"), "it was replaced"
    assert daemon.stop() == 0


def test_a_daemon_whose_launcher_is_stopped_ends(start: Any) -> None:
    daemon = start()
    (launcher,) = children(daemon.process.pid)
    os.kill(launcher, signal.SIGSTOP)
    assert daemon.stop() == 0


def test_a_worker_that_is_stopped_is_ended_by_a_stop_at_once(start: Any, scripted: Any) -> None:
    daemon = start()
    with daemon.connect() as peer:
        peer.call("submit", flow=scripted("good"), name="f", wait="running")
        (node,) = peer.call("describe", flow="f")["nodes"]
        os.kill(node["pid"], signal.SIGSTOP)
        assert peer.call("stop", flow="f", mode="now")["state"] == "stopped"
    assert daemon.stop() == 0


def test_an_idle_daemon_sleeps_without_a_timer(daemon: Any, peer: Any, scripted: Any) -> None:
    """It comes to be in epoll_wait, whose fourth argument, the time-out, is -1: also with a running flow."""
    peer.call("submit", flow=scripted("good"), name="f", wait="running")
    while (timeout := epoll_timeout(daemon.process.pid)) is None or int(timeout, 16) & 0xFFFFFFFF != 0xFFFFFFFF:
        peer.call("version")


def epoll_timeout(pid: int) -> str | None:
    """The time-out of the epoll call that a process sleeps in; None while it runs or does something else."""
    fields = Path(f"/proc/{pid}/syscall").read_text().split()
    return fields[4] if fields[0] in ("232", "281", "22") else None


BREAKS = """
import asyncio, sys
from chronetixd.daemon import daemon
from chronetixd.systemd.activation import receive
from chronetixd.settings import configure

def fail():
    raise MemoryError("by the test")

running = daemon.Daemon.run

async def run(self, arrival=None):
    asyncio.get_running_loop().call_later(0.1, fail)
    await running(self)

daemon.Daemon.run = run
read = lambda: configure({"state_dir": sys.argv[1], "socket": sys.argv[2]}, {}, 0)
daemon.run(read(), receive({}, 0), read)
"""


def test_a_daemon_that_does_not_know_any_more_what_it_was_doing_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BREAKS, str(tmp_path / "state"), str(tmp_path / "socket")]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    end_what_is_left(tmp_path / "state")
    assert ended.returncode == EXIT_BROKEN
    assert "an internal failure" in ended.stdout + ended.stderr
    assert "MemoryError" in ended.stdout + ended.stderr


FAILS = """
import sys
if any("chronetixd" in word for word in sys.orig_argv):
    from chronetixd.records.exits import ExitRecords
    from chronetixd.flows.execute import Executor
    start, add = Executor._start, ExitRecords.add

    def fail_to_start(self, nodes):
        if self._run.name == "starting":
            raise MemoryError("by the test")
        start(self, nodes)

    def fail_to_add(self, death):
        if death.flow == "ending":
            raise KeyError("by the test")
        add(self, death)

    Executor._start, ExitRecords.add = fail_to_start, fail_to_add
"""


def test_an_internal_failure_is_the_end_of_its_flow_and_of_no_other(start: Any, scripted: Any, tmp_path: Path) -> None:
    patched = tmp_path / "patched"
    patched.mkdir()
    (patched / "sitecustomize.py").write_text(FAILS)
    running = start(PYTHONPATH=f"{patched}:{ROOT}")
    with running.connect() as peer:
        peer.call("submit", flow=scripted("good"), name="well", wait="running")
        pid = peer.call("describe", flow="well")["nodes"][0]["pid"]
        peer.call("submit", flow=scripted("good", "good"), name="ending", wait="running")
        victim = peer.call("describe", flow="ending")["nodes"][0]["pid"]
        os.kill(victim, signal.SIGKILL)
        peer.end(peer.begin("submit", flow=scripted("good", "good"), name="starting", wait="stopped"))
        listed = {flow["name"]: flow for flow in peer.call("list")["flows"]}
        while listed["ending"]["state"] != "failed":
            listed = {flow["name"]: flow for flow in peer.call("list")["flows"]}
        for name, defect in (("starting", "MemoryError"), ("ending", "KeyError")):
            assert "the daemon failed inside" in listed[name]["reason"]
            assert defect in listed[name]["reason"]
        assert (listed["well"]["state"], peer.call("describe", flow="well")["nodes"][0]["pid"]) == ("running", pid)
        assert peer.call("stop", flow="well")["state"] == "stopped"
    assert running.stop() == 0


def test_a_launcher_that_dies_while_there_are_no_descriptors_is_replaced_later(daemon: Any, peer: Any) -> None:
    (launcher,) = [pid for pid in children(daemon.process.pid) if os.getsid(pid) == pid]
    following = peer.begin("events", follow=True)
    limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir(f"/proc/{daemon.process.pid}/fd")))
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (highest - 8, limits[1]))
    os.kill(launcher, signal.SIGKILL)

    heard = peer.receive().value
    while "Too many open files" not in heard.get("message", ""):
        heard = peer.receive().value
    while heard["kind"] != "launcher-ready":
        # Again after each attempt: a daemon that draws on its reserve just now puts back the limit that it found.
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limits)
        heard = peer.receive().value
    peer.send(peer.cancel(following))
    assert peer.call("list") == {"flows": []}
