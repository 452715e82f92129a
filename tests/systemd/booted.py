"""The daemon as a service of a real systemd: `make test-systemd`. Not part of the unit tests: it boots a Debian."""

from __future__ import annotations

import json
import select
import signal
from typing import Any

import pytest

LEDGER = "/var/lib/chronetix/ledger"
CTL = "/opt/chronetix/bin/chronetixctl"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> None:
    """Processes below us come and go here: they are the container's, which ends with all of them."""


@pytest.fixture
def flow(booted: Any) -> Any:
    """A flow that runs until the end of the test."""
    booted.ctl("submit", "/flows/ticking.yaml", "--wait", "running")
    yield "ticking"
    booted.ctl("stop", "ticking")


def restarted(booted: Any, before: dict[str, str]) -> dict[str, str]:
    """The service once it runs as another process than ``before``."""
    while True:
        found = booted.unit()
        running = (found["ActiveState"], found["SubState"]) == ("active", "running")
        if running and found["MainPID"] not in ("0", before["MainPID"]):
            return dict(found)
        select.select([], [], [], 0.05)


def test_it_runs_as_its_own_user_and_everything_is_well(booted: Any) -> None:
    found = booted.until(ActiveState="active", SubState="running")
    assert found["StatusText"].startswith("0 flows running")
    owner = booted.run("stat", "-c", "%U", f"/proc/{found['MainPID']}").stdout.strip()
    assert owner == "chronetix"
    told = json.loads(booted.ctl("doctor", "-o", "json").stdout)
    assert told["daemon"]
    assert [finding for finding in told["findings"] if finding["status"] == "FAIL"] == []
    assert booted.ctl("service", "status").returncode == 0


def test_installing_again_changes_nothing(booted: Any) -> None:
    again = json.loads(booted.ctl("service", "install", "--system", "-o", "json").stdout)
    assert {step["result"] for step in again["steps"] if step["action"] == "write"} == {"unchanged"}


def test_a_flow_runs_in_its_sandbox_and_may_compile_code(booted: Any, flow: str) -> None:
    assert booted.states() == {flow: "running"}
    described = json.loads(booted.ctl("describe", flow, "-o", "json").stdout)
    cgroup = booted.run("cat", f"/proc/{described['nodes'][0]['pid']}/cgroup").stdout
    assert "/system.slice/chronetixd.service/" in cgroup


def test_members_of_the_group_operate_and_others_are_told_how_to(booted: Any, flow: str) -> None:
    booted.run("useradd", "--groups", "chronetix", "member")
    booted.run("useradd", "stranger")
    as_user = ("runuser", "-u")
    assert booted.run(*as_user, "member", "--", CTL, "ls", "-q").stdout == "ticking\n"
    audit = booted.run(*as_user, "member", "--", CTL, "audit", check=False)
    assert (audit.returncode, "allow_admin" in audit.stderr) == (4, True)
    refused = booted.run(*as_user, "stranger", "--", CTL, "ls", check=False)
    assert (refused.returncode, "group of its control socket" in refused.stderr) == (4, True)
    assert "member" in booted.ctl("audit", "--user", "member").stdout


def test_a_reload_takes_the_configuration_over_and_restarts_nothing(booted: Any) -> None:
    before = booted.until(ActiveState="active")
    booted.run("sh", "-c", "mkdir -p /etc/chronetix && echo 'max_clients = 77' > /etc/chronetix/chronetixd.toml")
    booted.run("systemctl", "reload", "chronetixd")
    assert booted.until(ActiveState="active", SubState="running")["MainPID"] == before["MainPID"]
    while "changed: max_clients" not in booted.ctl("events").stdout:
        select.select([], [], [], 0.05)


def test_a_daemon_that_is_killed_comes_back_with_its_flows_and_clients_wait_for_it(booted: Any, flow: str) -> None:
    before = booted.until(ActiveState="active")
    booted.run("kill", "-KILL", before["MainPID"])
    assert flow in booted.states()
    after = restarted(booted, before)
    assert booted.states() == {flow: "running"}
    assert int(after["NRestarts"]) > int(before["NRestarts"])


def test_a_daemon_that_hangs_is_ended_by_the_watchdog_and_comes_back(booted: Any, flow: str) -> None:
    folder = "/run/systemd/system/chronetixd.service.d"
    booted.run("sh", "-c", f"mkdir -p {folder} && printf '[Service]\\nWatchdogSec=2\\n' > {folder}/short.conf")
    booted.run("systemctl", "daemon-reload")
    booted.run("systemctl", "restart", "chronetixd")
    before = booted.until(ActiveState="active", SubState="running")
    booted.run("sh", "-c", f"kill -{signal.SIGSTOP} {before['MainPID']}")
    assert flow in booted.states()
    restarted(booted, before)
    assert booted.states() == {flow: "running"}
    assert "Watchdog timeout" in booted.run("journalctl", "-u", "chronetixd", "--no-pager").stdout
    booted.run("rm", "-r", folder)
    booted.run("systemctl", "daemon-reload")


def test_a_restart_keeps_the_flows_and_loses_no_client(booted: Any, flow: str) -> None:
    before = booted.until(ActiveState="active")
    booted.run("systemctl", "restart", "--no-block", "chronetixd")
    restarted(booted, before)
    assert booted.states() == {flow: "running"}


def test_an_upgrade_in_place_is_no_restart(booted: Any) -> None:
    booted.ctl("submit", "/flows/surviving.yaml", "--wait", "running")
    grows(booted)
    before = booted.until(ActiveState="active", SubState="running")
    workers = {each["node"]: each["pid"] for each in described(booted)["nodes"]}
    booted.run("python3", "-m", "venv", "/opt/chronetix-2")
    pip = ("/opt/chronetix-2/bin/pip", "install", "--quiet", "--no-index")
    booted.run(*pip, "--find-links=/wheels", "--find-links=/wheels/later", "chronetix")
    told = json.loads(booted.ctl("upgrade", "--image", "/opt/chronetix-2/bin/chronetixd", "-o", "json").stdout)
    assert (told["after"], told["workers"], told["failed"]) == ("9.9.9", 3, "")
    assert booted.version()["daemon"] == "9.9.9"
    grows(booted)
    after = booted.until(ActiveState="active", SubState="running")
    for same in ("MainPID", "NRestarts", "NFileDescriptorStore"):
        assert after[same] == before[same], same
    assert {each["node"]: each["pid"] for each in described(booted)["nodes"]} == workers
    booted.run("kill", "-KILL", after["MainPID"])
    restarted(booted, after)
    assert booted.version()["daemon"] != "9.9.9", "the unit names the one before still"
    grows(booted)
    assert {each["node"]: each["pid"] for each in described(booted)["nodes"]} == workers
    booted.ctl("stop", "surviving")
    booted.run("rm", LEDGER)


def test_a_worker_that_dies_with_the_daemon_costs_no_frame(booted: Any) -> None:
    """Also one of the two that are at the ends, and each more than once."""
    booted.ctl("submit", "/flows/surviving.yaml", "--wait", "running")
    nodes = ("numbers", "forward", "ledger")
    for victim in (*nodes, *nodes):
        before = booted.until(ActiveState="active", SubState="running")
        workers = {each["node"]: each["pid"] for each in described(booted)["nodes"]}
        while int(booted.unit()["NFileDescriptorStore"]) < 3 + 2 * 2 + 2:
            select.select([], [], [], 0.05)
        grows(booted)
        booted.run("sh", "-c", f"kill -KILL {before['MainPID']} {workers[victim]}")
        restarted(booted, before)
        grows(booted)
        while any(each["state"] != "started" for each in described(booted)["nodes"]):
            select.select([], [], [], 0.05)
        after = {each["node"]: each["pid"] for each in described(booted)["nodes"]}
        assert {node for node in nodes if after[node] != workers[node]} == {victim}
    booted.ctl("stop", "surviving")
    while int(booted.unit()["NFileDescriptorStore"]):
        select.select([], [], [], 0.05)
    seen = 0
    for line in booted.run("cat", LEDGER).stdout.splitlines():
        number, marked = map(int, line.split())
        assert number <= seen + 1, f"{number} follows {seen}: lost"
        assert marked or number == seen + 1, f"{number} came again unmarked"
        seen = max(seen, number)
    assert seen


def described(booted: Any) -> Any:
    return json.loads(booted.ctl("describe", "surviving", "-o", "json").stdout)


def grows(booted: Any) -> None:
    """Wait until the ledger does."""

    def size() -> int:
        return int(booted.run("stat", "-c", "%s", LEDGER, check=False).stdout or 0)

    before = size()
    while size() <= before:
        select.select([], [], [], 0.05)


def test_an_upgrade_of_the_package_is_taken_over_by_a_restart(booted: Any, flow: str) -> None:
    assert booted.version()["daemon"] != "9.9.9"
    booted.install("/wheels", "/wheels/later")
    warned = json.loads(booted.ctl("doctor", "-o", "json").stdout)["findings"]
    assert [found["status"] for found in warned if found["check"] == "versions"] == ["WARN"]
    assert booted.ctl("service", "install", "--system").returncode == 0
    before, states = booted.unit(), booted.states()
    assert states[flow] == "running"
    booted.run("systemctl", "restart", "chronetixd")
    restarted(booted, before)
    assert booted.version()["daemon"] == "9.9.9"
    assert booted.states() == states


def test_uninstalling_leaves_the_state_and_nothing_that_runs(booted: Any) -> None:
    before = booted.unit()
    booted.ctl("service", "uninstall", "--system")
    assert booted.run("cat", f"/proc/{before['MainPID']}/stat", check=False).returncode != 0
    assert booted.run("pgrep", "-u", "chronetix", check=False).stdout == ""
    assert booted.run("test", "-d", "/var/lib/chronetix").returncode == 0
    assert booted.ctl("service", "status", check=False).returncode == 3


def test_a_user_has_a_service_of_his_own_without_being_logged_in(booted: Any) -> None:
    booted.run("useradd", "--create-home", "--uid", "1500", "ann")
    booted.run("loginctl", "enable-linger", "ann")
    own = ("runuser", "-u", "ann", "--", "env", "XDG_RUNTIME_DIR=/run/user/1500", "HOME=/home/ann")
    while booted.run("test", "-S", "/run/user/1500/systemd/private", check=False).returncode:
        assert booted.unit("user@1500.service")["ActiveState"] != "failed"
        select.select([], [], [], 0.05)
    booted.run(*own, CTL, "service", "install", "--user", "--now")
    assert booted.run(*own, CTL, "service", "status", "--user").returncode == 0
    booted.run(*own, CTL, "submit", "/flows/ticking.yaml", "--wait", "running")
    described = json.loads(booted.run(*own, CTL, "describe", "ticking", "-o", "json").stdout)
    pid = described["nodes"][0]["pid"]
    assert booted.run("stat", "-c", "%U", f"/proc/{pid}").stdout == "ann\n"
    findings = json.loads(booted.run(*own, CTL, "doctor", "-o", "json").stdout)["findings"]
    assert [finding for finding in findings if finding["status"] == "FAIL"] == []
    booted.run(*own, CTL, "service", "uninstall", "--user")
    assert booted.run("test", "-e", f"/proc/{pid}", check=False).returncode != 0
