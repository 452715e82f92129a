"""Every check passes here or says what is missing, and says so when what it looks at is taken away."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import chronetixd.doctor as doctor
from chronetix.shm import names
from chronetixd.doctor import CHECKS_IN, Finding, Side, Status, Surroundings, check, examine, passed
from chronetixd.settings import Settings

Looks = Callable[..., Finding]


@pytest.fixture
def place(tmp_path: Path) -> Surroundings:
    return Surroundings(Settings(state_dir=str(tmp_path / "state"), socket=str(tmp_path / "c.sock")), {})


@pytest.fixture
def look(place: Surroundings) -> Looks:
    """The finding of one check."""

    def find(name: str, **changes: Any) -> Finding:
        where = Surroundings(**{field: changes.get(field, getattr(place, field)) for field in Surroundings.__slots__})
        (found,) = [finding for finding in examine(where, Side) if finding.name == name]
        return found

    return find


def test_nothing_fails_here_and_every_cure_belongs_to_a_problem(place: Surroundings) -> None:
    findings = examine(place, Side)
    assert [finding for finding in findings if finding.status is Status.FAIL] == []
    assert all(bool(finding.cure) == (finding.status is not Status.PASS) for finding in findings)
    assert all(finding.detail for finding in findings)


def test_every_module_of_checks_is_named() -> None:
    there = {path.stem for path in Path(doctor.__file__).parent.glob("*.py")} - {"__init__"}
    assert there == set(CHECKS_IN)


def test_looking_changes_nothing(place: Surroundings, tmp_path: Path) -> None:
    examine(place, Side)
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_fails_by_itself_spoils_no_other(place: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CHECKS", [])

    @check("a", "broken")
    def broken(_place: Surroundings) -> Finding:
        raise ValueError("oh")

    @check("a", "well")
    def well(_place: Surroundings) -> Finding:
        return passed("all is well")

    first, second = examine(place, [Side.DAEMON])
    assert (first.status, first.name, "ValueError" in first.detail) == (Status.FAIL, "broken", True)
    assert second.status is Status.PASS


class TestFolders:
    def test_a_state_folder_that_cannot_be_made_fails(self, look: Looks, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        found = look("state folder", settings=Settings(state_dir=str(tmp_path / "file/state"), socket="/tmp/x"))
        assert (found.status, "is no folder" in found.detail) == (Status.FAIL, True)

    def test_something_else_in_the_socket_s_place_fails(self, look: Looks, tmp_path: Path) -> None:
        (tmp_path / "c.sock").touch()
        assert look("control socket").status is Status.FAIL

    def test_a_full_disk_is_a_warning(self, look: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
        full = os.statvfs_result((4096, 4096, 1000, 10, 10, 1000, 900, 900, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _: full)
        assert look("room on the disk").status is Status.WARN

    def test_a_journal_that_lacks_something_fails(self, look: Looks) -> None:
        found = look("journal", facts={"journal_trouble": "/s/journal cannot be written: full"})
        assert (found.status, found.detail) == (Status.FAIL, "/s/journal cannot be written: full")
        assert look("journal", facts={"journal_trouble": ""}).status is Status.PASS

    def test_records_that_were_lost_are_a_warning(self, look: Looks) -> None:
        assert look("audit log", facts={"audit_lost": 3}).status is Status.WARN


class TestKernel:
    @pytest.mark.parametrize(
        ("release", "status"), [("5.10.0-9", Status.WARN), ("5.15.1", Status.PASS), ("7", Status.PASS)]
    )
    def test_an_old_kernel_is_a_warning(
        self, release: str, status: Status, look: Looks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("platform.release", lambda: release)
        assert look("version").status is status

    @pytest.mark.parametrize("feature", ["memfd", "seals", "future_write", "noexec_seal"])
    def test_memory_without_a_seal_is_a_warning_that_says_what_it_means(
        self, feature: str, look: Looks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chronetix.shm.missing_features", lambda: (feature,))
        found = look("sealed shared memory")
        assert (found.status, feature in found.detail) == (Status.WARN, True)

    @pytest.mark.parametrize(("name", "function"), [("process descriptors", "pidfd_open"), ("eventfd", "eventfd")])
    def test_a_call_that_is_filtered_fails(
        self, name: str, function: str, look: Looks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def filtered(*_: Any) -> int:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(os, function, filtered)
        found = look(name)
        assert (found.status, "seccomp" in found.cure) == (Status.FAIL, True)

    def test_clone3_that_is_filtered_fails(self, look: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ctypes.get_errno", lambda: errno.EPERM)
        assert look("clone3").status is Status.FAIL


class TestLimits:
    @pytest.mark.parametrize(("hard", "status"), [(100, Status.FAIL), (1024, Status.WARN), (65_536, Status.PASS)])
    def test_few_descriptors(self, hard: int, status: Status, look: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
        assert look("open files").status is status

    def test_few_processes_and_little_locked_memory_are_warnings(
        self, look: Looks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert [look("processes").status, look("locked memory").status] == [Status.WARN] * 2

    def test_a_small_dev_shm_matters_only_where_memory_has_names(
        self, look: Looks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = os.statvfs_result((4096, 4096, 16_384, 16_384, 16_384, 1000, 900, 900, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _: small)
        assert "/dev/shm" not in look("shared memory").detail
        monkeypatch.setattr("chronetixd.doctor.limits.missing_features", lambda: ("seals",))
        found = look("shared memory")
        assert (found.status, "64 MiB" in found.detail) == (Status.WARN, True)

    def test_what_dead_processes_left_is_a_warning(
        self, look: Looks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(names, "FOLDER", tmp_path)
        assert look("leftover segments").status is Status.PASS
        (tmp_path / "chronetix-0-1-1-1-1").touch()
        assert look("leftover segments").status is Status.WARN


class TestGroups:
    def test_what_is_not_enforced_is_said(self, look: Looks) -> None:
        facts = {"cgroup_reason": "", "cgroup_missing": ["memory", "pids"]}
        found = look("controllers", facts=facts)
        assert found.status is Status.WARN
        assert "any number of processes" in found.detail

    def test_without_a_group_nothing_is(self, look: Looks, place: Surroundings) -> None:
        settings = msgspec.structs.replace(place.settings, cgroup="off")
        assert look("delegation", settings=settings).status is Status.WARN
        assert look("controllers", settings=settings).status is Status.WARN

    def test_with_all_controllers_it_passes(self, look: Looks) -> None:
        facts: dict[str, Any] = {"cgroup_reason": "", "cgroup_missing": []}
        assert [look(name, facts=facts).status for name in ("delegation", "controllers")] == [Status.PASS] * 2


class TestClient:
    DAEMON = {"pid": 7, "daemon": "1", "protocol": [1], "abi": 1}

    @pytest.fixture
    def listening(self, tmp_path: Path) -> Iterator[Path]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "c.sock"))
            yield tmp_path / "c.sock"

    def test_no_daemon_is_a_warning(self, look: Looks) -> None:
        assert look("daemon", unreachable="nobody").status is Status.WARN

    def test_a_daemon_that_lives_and_does_not_answer_is_a_failure(self, look: Looks, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir()
        with (tmp_path / "state" / "daemon.pid").open("w") as held:
            held.write("4711\n")
            held.flush()
            fcntl.flock(held, fcntl.LOCK_EX)
            found = look("daemon", unreachable="no answer within 5 s")
        assert (found.status, "4711" in found.detail) == (Status.FAIL, True)

    def test_a_socket_that_may_not_be_used_is_a_failure(
        self, look: Looks, listening: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert look("rights of the socket").status is Status.PASS
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert look("rights of the socket").status is Status.FAIL

    def test_a_folder_where_anybody_may_put_another_socket_is_a_warning(self, look: Looks, listening: Path) -> None:
        listening.parent.chmod(0o777)
        assert look("rights of the socket").status is Status.WARN

    @pytest.mark.parametrize(
        ("changed", "status"),
        [
            ({}, Status.PASS),
            ({"daemon": "2"}, Status.WARN),
            ({"abi": 99}, Status.WARN),
            ({"protocol": [9]}, Status.FAIL),
        ],
    )
    def test_versions_are_compared(self, changed: dict[str, Any], status: Status, look: Looks) -> None:
        facts = {"client_version": "1"}
        assert look("versions", daemon=self.DAEMON | changed, facts=facts).status is status


class TestService:
    GOOD = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success"} | {
        "KillMode": "process",
        "Delegate": "yes",
        "WatchdogUSec": "30s",
    }

    @pytest.mark.parametrize(
        ("changed", "status"),
        [
            ({}, Status.PASS),
            ({"LoadState": "not-found"}, Status.PASS),
            ({"ActiveState": "failed", "Result": "watchdog"}, Status.FAIL),
            ({"ActiveState": "inactive"}, Status.WARN),
            ({"KillMode": "control-group"}, Status.WARN),
            ({"Delegate": "no"}, Status.WARN),
            ({"WatchdogUSec": "0"}, Status.WARN),
        ],
    )
    def test_the_unit_s_state_is_judged(
        self, changed: dict[str, str], status: Status, look: Looks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("chronetixd.doctor.service.BOOTED", tmp_path)
        said = "\n".join(f"{key}={value}" for key, value in (self.GOOD | changed).items())
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, said, ""))
        assert look("systemd unit").status is status

    def test_a_systemd_that_does_not_answer_is_a_warning(
        self, look: Looks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def silent(*_: Any, **__: Any) -> None:
            raise subprocess.TimeoutExpired("systemctl", 5)

        monkeypatch.setattr("chronetixd.doctor.service.BOOTED", tmp_path)
        monkeypatch.setattr(subprocess, "run", silent)
        assert look("systemd unit").status is Status.WARN


def test_a_daemon_tells_what_it_finds_of_itself(peer: Any) -> None:
    findings = peer.call("doctor")["findings"]
    assert {finding["check"] for finding in findings} >= {"open files", "delegation", "audit log"}
    assert "FAIL" not in {finding["status"] for finding in findings}


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_folders_that_may_not_be_seen_are_named_and_are_no_defect(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    place = Surroundings(Settings(state_dir=str(secret / "a" / "state"), socket=str(secret / "c.sock")), {})
    examine(place, Side)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        found = {finding.name: finding for finding in examine(place, Side)}
    finally:
        os.seteuid(0)
    for name in ("state folder", "control socket"):
        assert found[name].status is Status.FAIL
        assert "is not writable for user 65534" in found[name].detail
    assert [finding for finding in found.values() if "defect" in finding.cure] == []
