"""Control groups: where ours belong, what is written into them, and the end of one; real ones and plain folders."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.contract.types import ResourceClaims
from chronetixd.core.limits import MAX_PROCESSES, group_files, weight
from chronetixd.linux import cgroups
from chronetixd.linux.cgroups import CgroupPlace, Groups, Leaf, base_name, count_in, find_place, own_group

PLACE = find_place("auto")
real = pytest.mark.skipif(PLACE.group is None, reason=PLACE.reason)
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
41 31 0:38 / {mount} rw shared:9 - cgroup2 cgroup2 rw
"""


@pytest.fixture
def proc(tmp_path: Path) -> Callable[..., Path]:
    """A /proc/self that says where we are."""

    def make(group: str, mountinfo: str = HYBRID, mount: Path | None = None) -> Path:
        folder = tmp_path / "proc"
        folder.mkdir()
        (folder / "cgroup").write_text(f"4:memory:/elsewhere\n0::{group}\n")
        (folder / "mountinfo").write_text(mountinfo.format(mount=mount or tmp_path / "fs"))
        return folder

    return make


@pytest.fixture
def hierarchy(tmp_path: Path) -> Callable[[str], Path]:
    """Folders that look like groups."""

    def make(group: str) -> Path:
        path = tmp_path / "fs"
        for part in ("", *group.split("/")):
            path = path / part
            path.mkdir(exist_ok=True)
            (path / "cgroup.procs").write_text("")
        return path

    return make


class TestThePlace:
    def test_is_the_root_that_we_see(self, proc: Any, hierarchy: Any) -> None:
        assert find_place("auto", proc("/", mount=hierarchy(""))) == CgroupPlace(hierarchy(""))

    def test_is_a_group_that_systemd_has_marked_or_the_one_above(
        self, proc: Any, hierarchy: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service = hierarchy("system.slice/c.service")
        hierarchy("system.slice/c.service/daemon")

        def mark(path: Path, name: str) -> bytes:
            if path == service and name == "user.delegate":
                return b"1"
            raise OSError

        monkeypatch.setattr(os, "getxattr", mark)
        folder = proc("/system.slice/c.service")
        assert find_place("auto", folder) == CgroupPlace(service)
        (folder / "cgroup").write_text("0::/system.slice/c.service/daemon\n")
        assert find_place("auto", folder) == CgroupPlace(service)

    def test_is_nowhere_in_a_group_that_is_somebody_elses(self, proc: Any, hierarchy: Any) -> None:
        hierarchy("user.slice/session-1.scope")
        found = find_place("auto", proc("/user.slice/session-1.scope"))
        assert found.group is None
        assert "Delegate=yes" in found.reason

    def test_is_what_the_setting_names_if_that_is_a_group(self, hierarchy: Any, tmp_path: Path) -> None:
        assert find_place(str(hierarchy("mine"))) == CgroupPlace(hierarchy("mine"))
        assert "no cgroup v2 folder" in find_place(str(tmp_path)).reason
        assert "off" in find_place("off").reason

    def test_is_nowhere_without_a_hierarchy(self, proc: Any, tmp_path: Path) -> None:
        assert "no cgroup v2" in find_place("auto", proc("/", mountinfo="")).reason
        assert "no cgroup v2" in find_place("auto", tmp_path / "nothing").reason

    def test_is_found_below_a_mount_of_a_part_and_with_odd_names(self, proc: Any, tmp_path: Path) -> None:
        mount = "50 31 0:38 /pods/a /mnt/with\\040blank rw - cgroup2 cgroup2 rw\n"
        folder = proc("/pods/a/inner", mountinfo=mount)
        assert own_group(folder) == (Path("/mnt/with blank/inner"), "/pods/a/inner")
        (folder / "cgroup").write_text("0::/pods/ab\n")
        assert own_group(folder) is None


class TestClaims:
    def test_become_the_files_of_their_controllers(self) -> None:
        files = group_files(ResourceClaims(cpu_millis=2500, memory_bytes=1 << 20, arena_bytes=1 << 16))
        assert files == {
            "memory": {"memory.max": str((1 << 20) + (1 << 16)), "memory.oom.group": "1"},
            "pids": {"pids.max": str(MAX_PROCESSES)},
            "cpu": {"cpu.weight": "250"},
        }
        assert group_files(ResourceClaims())["memory"]["memory.max"] == "max"

    @pytest.mark.parametrize(
        ("millis", "expected"), [(None, 100), (0, 1), (1, 1), (10, 1), (1000, 100), (10**9, 10_000)]
    )
    def test_of_processors_are_weights_that_the_kernel_takes(self, millis: int | None, expected: int) -> None:
        assert weight(millis) == expected

    def test_are_written_for_the_controllers_that_there_are(
        self, loop: asyncio.AbstractEventLoop, hierarchy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On plain folders, as this may be a machine whose v2 hierarchy has no controllers."""
        place = hierarchy("c.service")
        (place / "cgroup.controllers").write_text("cpu io memory\n")
        (place / "cgroup.type").write_text("domain\n")
        (place / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
        base = place / base_name(str(tmp_path))
        base.mkdir()
        (base / "cgroup.kill").write_text("")
        groups = Groups(loop, CgroupPlace(place), str(tmp_path))
        groups.open()
        assert groups.enabled == ("memory", "cpu")
        assert groups.missing == ("pids",)
        assert (place / "cgroup.subtree_control").read_text() == "+cpu"  # the last one of those written
        assert (base / "cgroup.subtree_control").read_text() == "+cpu"
        assert (base / "daemon" / "cgroup.procs").read_text() == str(os.getpid())
        leaf = groups.leaf()
        assert leaf is not None
        leaf.limit(ResourceClaims(cpu_millis=100, memory_bytes=4096, arena_bytes=4096))
        written = {file.name: file.read_text() for file in leaf.path.iterdir()}
        assert written == {"memory.max": "8192", "memory.oom.group": "1", "cpu.weight": "10"}
        (leaf.path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
        assert leaf.oom_kills() == 2
        monkeypatch.setattr(cgroups, "_remove", lambda _: None)
        groups.close()

    def test_a_controller_that_cannot_be_handed_down_is_missing(
        self, loop: asyncio.AbstractEventLoop, hierarchy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = hierarchy("busy")
        (place / "cgroup.controllers").write_text("memory\n")
        (place / "cgroup.subtree_control").mkdir()  # EISDIR here, EBUSY where others live in the group
        base = place / base_name(str(tmp_path))
        base.mkdir()
        (base / "cgroup.kill").write_text("")
        groups = Groups(loop, CgroupPlace(place), str(tmp_path))
        groups.open()
        assert groups.enabled == ()
        assert groups.base == base
        monkeypatch.setattr(cgroups, "_remove", lambda _: None)
        groups.close()


def test_counts_are_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("oom_kill_disable 7\noom_kill 12\nbad x\n")
    assert count_in(tmp_path / "vmstat", "oom_kill") == 12
    assert count_in(tmp_path / "vmstat", "bad") is None
    assert count_in(tmp_path / "vmstat", "nothing") is None
    assert count_in(tmp_path / "none", "oom_kill") is None


@pytest.fixture
def groups(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> Iterator[Groups]:
    made = Groups(loop, PLACE, str(tmp_path))
    made.open()
    assert made.base is not None, made.reason
    yield made
    made.close()
    assert PLACE.group is not None
    assert not (PLACE.group / base_name(str(tmp_path))).exists()


def enter(leaf: Leaf, *command: str) -> subprocess.Popen[bytes]:
    """A process that lives in ``leaf``, ready."""
    script = f"echo $$ > {leaf.path}/cgroup.procs; echo in; exec {' '.join(command)}"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    process.stdout.close()
    return process


@real
class TestARealGroup:
    def test_that_is_empty_is_told_at_once(self, groups: Groups) -> None:
        leaf, told = groups.leaf(), list[bool]()
        assert leaf is not None
        leaf.when_empty(lambda: told.append(True))
        assert told
        leaf.remove()
        leaf.when_empty(lambda: told.append(True))  # also when it is gone
        assert len(told) == 2

    def test_tells_when_the_last_one_in_it_has_died(self, groups: Groups, until: Any) -> None:
        leaf, told = groups.leaf(), list[bool]()
        assert leaf is not None
        with enter(leaf, "sleep", "1000") as one, enter(leaf, "sleep", "1000") as other:
            leaf.when_empty(lambda: told.append(True))
            one.kill()
            one.wait()
            assert not told
            leaf.kill()
            until(lambda: told)
            assert other.wait() == -9
        leaf.remove()

    def test_goes_with_the_groups_that_were_made_in_it(self, groups: Groups) -> None:
        leaf = groups.leaf()
        assert leaf is not None
        (leaf.path / "inner" / "most").mkdir(parents=True)
        leaf.remove()
        assert not leaf.path.exists()

    def test_that_a_dead_daemon_left_is_ended_unless_its_worker_comes_back(
        self, groups: Groups, loop: asyncio.AbstractEventLoop, tmp_path: Path
    ) -> None:
        first, second = groups.leaf(), groups.leaf()
        assert first is not None
        assert second is not None
        with enter(first, "sleep", "1000") as one, enter(second, "sleep", "1000") as kept:
            successor = Groups(loop, PLACE, str(tmp_path))
            successor.open(keep=[kept.pid])
            assert one.wait() == -9
            assert not first.path.exists()
            found = successor.leaf_of(kept.pid)
            assert found is not None
            assert found.path == second.path
            assert successor.leaf_of(os.getpid()) is None
            found.kill()
            assert kept.wait() == -9
            found.remove()
            successor.close()
