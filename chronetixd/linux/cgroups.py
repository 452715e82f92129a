"""Control groups (v2): a leaf for each worker, so that its whole process tree can be limited, killed and waited for.

Below a group that is delegated to the daemon, one folder for each state folder holds the leaves. Rules:

* A group counts as delegated when it is the root of the visible hierarchy (a container's, or the machine's), when
  systemd has marked it or its parent (``Delegate=``, ``DelegateSubgroup=``), or when the setting ``cgroup`` names it.
* Controllers are enabled as far as the kernel permits; ``missing`` names the others. Killing a tree and waiting for its
  end need no controller.
* A leaf is removed when no process lives in it. The next daemon kills and removes leaves that a dead daemon left.

Finding the group, making leaves and removing them are one file: all of it is what the kernel allows in one folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import select
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from chronetix.protocol.contract.types import ResourceClaims
from chronetixd.core.limits import CONTROLLERS, group_files
from chronetixd.linux import fd_reserve
from chronetixd.linux.exhaustion import AGAIN_S, wanting
from chronetixd.linux.proc import kill_exactly, stat
from chronetixd.packing import Packed

LEFTOVER_S = 5.0
"""How long the start may wait for processes to die that an earlier daemon left."""

_DAEMON = "daemon"
"""The leaf of the daemon itself, needed because a group with controllers must not have processes of its own."""

_MARKS = ("user.delegate", "trusted.delegate")
"""Extended attributes by which systemd marks a group as delegated to the processes in it."""


class PackedGroups(Packed, frozen=True):
    """The part of a snapshot about control groups: the group below which they are made, or why there are none."""

    group: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class CgroupPlace:
    """The group below which the daemon may make others; None with the ``reason`` if there is none."""

    group: Path | None
    reason: str = ""


def find_place(setting: str, proc: Path = Path("/proc/self")) -> CgroupPlace:
    """Return the group below which the daemon may make others. ``setting`` is ``auto``, ``off`` or a folder. Changes
    nothing."""
    if setting == "off":
        return CgroupPlace(None, "the setting cgroup is off")
    if setting != "auto":
        return _usable(Path(setting))
    own = own_group(proc)
    if own is None:
        return CgroupPlace(None, "no cgroup v2 hierarchy is mounted")
    path, seen_as = own
    if seen_as == "/":
        return _usable(path)
    for group in (path, path.parent):
        if any(_marked(group, name) for name in _MARKS):
            return _usable(group)
    return CgroupPlace(
        None, f"{path} is not delegated: set Delegate=yes in the unit, or name a folder in the setting cgroup"
    )


def own_group(proc: Path = Path("/proc/self")) -> tuple[Path, str] | None:
    """Return the folder of the v2 group that the process at ``proc`` is in, and the kernel's name for that group; None
    if no v2 hierarchy is mounted."""
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    name = next((line[3:] for line in groups if line.startswith("0::")), None)
    if name is None:
        return None
    for line in mounts:
        head, _, tail = line.partition(" - ")
        if tail.split(" ", 1)[0] != "cgroup2":
            continue
        root, mounted = (_unescape(field) for field in head.split(" ")[3:5])
        if root == "/" or name == root or name.startswith(root + "/"):
            return Path(mounted) / name.removeprefix("" if root == "/" else root).lstrip("/"), name
    return None


def _unescape(field: str) -> str:
    """Return a field of mountinfo with its octal escapes (of blanks and backslashes) decoded."""
    return field.encode().decode("unicode_escape") if "\\" in field else field


def _marked(group: Path, attribute: str) -> bool:
    try:
        return os.getxattr(group, attribute) == b"1"
    except OSError:
        return False


def _usable(group: Path) -> CgroupPlace:
    procs = group / "cgroup.procs"
    if not procs.is_file():
        return CgroupPlace(None, f"{group} is no cgroup v2 folder")
    if not os.access(group, os.W_OK | os.X_OK) or not os.access(procs, os.W_OK):
        return CgroupPlace(None, f"{group} is not writable for user {os.geteuid()}")
    return CgroupPlace(group)


class Leaf:
    """The control group of one worker. Owns its folder."""

    __slots__ = ("_groups", "path")

    def __init__(self, groups: Groups, path: Path) -> None:
        self._groups = groups
        self.path = path

    def open(self) -> int:
        """Return a descriptor of the folder, for clone3; the caller closes it. Raises OSError."""
        return os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def limit(self, claims: ResourceClaims) -> None:
        """Write the limits that follow from ``claims``, for the controllers that are enabled. Raises OSError when the
        kernel refuses one."""
        files = group_files(claims)
        for controller in self._groups.enabled:
            for name, content in files[controller].items():
                (self.path / name).write_text(content)

    def kill(self) -> None:
        """Send SIGKILL to all processes in the leaf and below it, also to those that run as another user or are being
        forked."""
        try:
            with fd_reserve.everything():
                (self.path / "cgroup.kill").write_text("1")
        except FileNotFoundError:
            return
        except OSError as reason:
            self._groups.again(reason, self.kill)

    def kill_sparing(self, spares: Callable[[int], bool]) -> bool:
        """Send SIGKILL to all processes in the leaf but those (pids) that ``spares`` returns true for. Return whether
        there are such; if not, everything in the leaf and below it was killed."""
        try:
            with fd_reserve.everything():
                pids = [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]
                spared = {pid for pid in pids if spares(pid)}
                for process in map(stat, set(pids) - spared) if spared else ():
                    if process is not None:
                        kill_exactly(process)
        except FileNotFoundError:
            return False
        except OSError as reason:
            self._groups.again(reason, self.kill)
            return False
        if not spared:
            self.kill()
        return bool(spared)

    def oom_kills(self) -> int | None:
        """Return how many processes of the leaf the kernel killed for want of memory; None without a memory
        controller."""
        return count_in(self.path / "memory.events", "oom_kill")

    def when_empty(self, then: Callable[[], None]) -> None:
        """Call ``then`` once no process lives in the leaf: at once, or when the kernel reports it."""
        self._groups.watch(self.path, then)

    def remove(self) -> None:
        """Remove the leaf, with groups that its processes made below it. No process may live in it."""
        try:
            with fd_reserve.everything():
                _remove(self.path)
        except OSError as reason:
            self._groups.again(reason, self.remove)


def count_in(file: Path, name: str) -> int | None:
    """Return the number behind ``name`` in a flat-keyed file; None if there is no such file or line."""
    try:
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return None


class Groups:
    """The daemon's control groups. If ``place`` has no group there are none, and ``leaf`` returns None."""

    def __init__(self, loop: asyncio.AbstractEventLoop, place: CgroupPlace, state_dir: str) -> None:
        """Make no group yet; :meth:`open` does."""
        self._loop = loop
        self._log = structlog.get_logger("chronetixd.linux.cgroups")
        self._place = place
        self._name = base_name(state_dir)
        self._serial = 0
        self._base: Path | None = None
        self._epoll: select.epoll | None = None
        self._watched: dict[int, tuple[Path, Callable[[], None]]] = {}
        self.reason = place.reason
        """Why there are no control groups; empty if there are."""
        self.enabled: tuple[str, ...] = ()
        """The controllers that every leaf has."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The controllers that no leaf has."""
        return tuple(name for name in CONTROLLERS if name not in self.enabled)

    @property
    def base(self) -> Path | None:
        """The folder of the leaves; None if there are no control groups."""
        return self._base

    def open(self, keep: Iterable[int] = ()) -> None:
        """Make the folder of the leaves, kill and remove leaves of an earlier daemon except those of the processes
        ``keep``, and enable controllers."""
        if self._place.group is None:
            return
        base = self._place.group / self._name
        try:
            base.mkdir(mode=0o755, exist_ok=True)
            if not (base / "cgroup.kill").exists():
                self._give_up(base, "the kernel has no cgroup.kill (Linux 5.14 or later has)")
                return
            kept = {found[0] for pid in keep if (found := own_group(Path(f"/proc/{pid}"))) is not None}
            self._end_leftovers(base, frozenset(kept))
            self.enabled = self._enable(base)
        except OSError as reason:
            self._give_up(base, f"{reason.strerror}: {reason.filename}")
            return
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._changed)
        self._base = base

    def _give_up(self, base: Path, reason: str) -> None:
        self.reason = reason
        with suppress(OSError):
            base.rmdir()

    def leaf(self) -> Leaf | None:
        """Make and return a new leaf, empty and without limits; None if there are no control groups. Raises OSError
        when the kernel has no room for more."""
        if self._base is None:
            return None
        while True:
            self._serial += 1
            path = self._base / f"{os.getpid()}-{self._serial}"
            with suppress(FileExistsError):
                path.mkdir()
                return Leaf(self, path)

    def leaf_of(self, pid: int) -> Leaf | None:
        """Return the leaf of a worker that an earlier daemon started; None if the process is in none of these
        leaves."""
        found = own_group(Path(f"/proc/{pid}"))
        return Leaf(self, found[0]) if found is not None and found[0].parent == self._base else None

    def leaf_at(self, path: str | None) -> Leaf | None:
        """Return the leaf that an earlier image of this daemon made at ``path``; None for None."""
        return None if path is None else Leaf(self, Path(path))

    @property
    def settled(self) -> bool:
        """Whether no caller waits for a group to become empty."""
        return not self._watched

    def packed(self) -> PackedGroups:
        """Return the part of the snapshot about control groups. The next image cannot find the group by itself, because
        the daemon may live in one of the leaves by now."""
        return PackedGroups(group=None if self._place.group is None else str(self._place.group), reason=self.reason)

    def unpack(self, packed: PackedGroups) -> None:
        """Take over the group of an earlier image; call this before :meth:`open`."""
        self._place = CgroupPlace(None if packed.group is None else Path(packed.group), packed.reason)
        self.reason = packed.reason

    def close(self) -> None:
        """Remove the folder of the leaves, if no process lives in it. Idempotent."""
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        for fd in self._watched:
            os.close(fd)
        self._watched.clear()
        base, self._base = self._base, None
        if base is not None:
            self._disable(base)
            try:
                _remove(base)
            except OSError as reason:
                self._log.warning("a control group could not be removed", group=str(base), reason=reason.strerror)

    # -- waiting for the end of a tree -----------------------------------------------------------------------

    def watch(self, path: Path, then: Callable[[], None]) -> None:
        """Call ``then`` when the group ``path`` has no living process, or does not exist."""
        try:
            with fd_reserve.everything():
                fd = os.open(path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            then()
            return
        except OSError as reason:
            self.again(reason, partial(self.watch, path, then))
            return
        if not _populated(fd) or self._epoll is None:
            os.close(fd)
            then()
            return
        # The kernel reports a change since that read at once: it compares with what was read last.
        self._watched[fd] = path, then
        self._epoll.register(fd, select.EPOLLPRI)

    def again(self, reason: OSError, what: Callable[[], None]) -> None:
        """Call ``what`` again after AGAIN_S if it failed because descriptors or memory had run out; else raise
        ``reason``."""
        if not wanting(reason):
            raise reason
        self._loop.call_later(AGAIN_S, what)

    def _changed(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0):
            if _populated(fd):
                continue
            self._epoll.unregister(fd)
            os.close(fd)
            self._watched.pop(fd)[1]()

    # -- leaves of an earlier daemon, and controllers --------------------------------------------------------

    def _end_leftovers(self, base: Path, keep: frozenset[Path]) -> None:
        left = [path for path in base.iterdir() if path.is_dir() and path.name != _DAEMON and path not in keep]
        deadline = time.monotonic() + LEFTOVER_S
        for path in left:
            with suppress(FileNotFoundError):
                (path / "cgroup.kill").write_text("1")
        for path in left:
            self._log.warning("processes that an earlier daemon left were killed", group=str(path))
            if not _wait_empty(path, deadline):
                self._log.error("processes of an earlier daemon do not die; their group stays", group=str(path))
                continue
            _remove(path)

    def _enable(self, base: Path) -> tuple[str, ...]:
        """Enable the controllers for the leaves, and return those for which that worked."""
        assert self._place.group is not None
        group = self._place.group
        offered = (group / "cgroup.controllers").read_text().split()
        wanted = [name for name in CONTROLLERS if name in offered]
        if wanted and (group / "cgroup.type").exists() and _lives_in(group):
            (base / _DAEMON).mkdir(exist_ok=True)
            (base / _DAEMON / "cgroup.procs").write_text(str(os.getpid()))
        return tuple(name for name in wanted if self._hand_down(group, name) and self._hand_down(base, name))

    def _hand_down(self, group: Path, controller: str) -> bool:
        try:
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError as reason:
            self._log.warning(
                "a controller is not available to workers",
                controller=controller,
                group=str(group),
                reason=reason.strerror,
            )
            return False
        return True

    def _disable(self, base: Path) -> None:
        """Disable the controllers and move the daemon out of its own leaf, so that the folder can be removed."""
        assert self._place.group is not None
        if not (base / _DAEMON).is_dir():
            return
        with suppress(OSError):
            for group in (base, self._place.group):
                for controller in self.enabled:
                    (group / "cgroup.subtree_control").write_text(f"-{controller}")
            (self._place.group / "cgroup.procs").write_text(str(os.getpid()))


def base_name(state_dir: str) -> str:
    """Return the name of the folder of the leaves, which is the same for every daemon with this state folder."""
    return f"chronetix-{hashlib.sha256(os.path.realpath(state_dir).encode()).hexdigest()[:12]}"


def _lives_in(group: Path) -> bool:
    return str(os.getpid()) in (group / "cgroup.procs").read_text().split()


def _populated(fd: int) -> bool:
    try:
        return b"populated 1" in os.pread(fd, 4096, 0)
    except OSError:
        return False  # the group is gone


def _wait_empty(path: Path, deadline: float) -> bool:
    """Block until no process lives in the group; False if that takes until ``deadline`` (monotonic seconds)."""
    try:
        fd = os.open(path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while _populated(fd):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(1000 * left)
        return True
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    """Remove the group and all groups below it, deepest first. Raises OSError when a process lives in one of them."""
    with suppress(FileNotFoundError):
        with suppress(OSError):
            path.rmdir()  # needs no descriptor, which listing the groups below would
            return
        for below in path.iterdir():
            if below.is_dir():
                _remove(below)
        path.rmdir()
