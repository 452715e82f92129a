"""Control groups (v2): a leaf for each worker, so that its whole tree can be limited, killed and waited for.

Below a group that was delegated to us, one folder for each state folder holds the leaves. Rules:

* A group counts as delegated when it is the root that we see (a container's, or the hierarchy's), when systemd has
  marked it or the one above it (``Delegate=``, ``DelegateSubgroup=``), or when the setting ``cgroup`` names it.
* Controllers are enabled as far as the kernel lets us; ``missing`` names those that are not. Killing a tree and waiting
  for its end need none.
* A leaf goes when nothing lives in it. Leaves that a dead daemon left behind are killed and removed at the next start.

Finding the place, making a leaf and giving it up are one file: all of it is what the kernel allows in one folder.
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
from chronetixd.packing import Packed

LEFTOVER_S = 5.0
"""How long the start may wait for the death of what a predecessor left."""

_DAEMON = "daemon"
"""The leaf that we live in ourselves, where a group with controllers must not have processes of its own."""

_MARKS = ("user.delegate", "trusted.delegate")
"""Extended attributes by which systemd says that a group is for whoever lives in it."""


class PackedGroups(Packed, frozen=True):
    """Where control groups are made; or why none are."""

    group: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class CgroupPlace:
    """The group below which we may make others, or ``reason`` why there is none."""

    group: Path | None
    reason: str = ""


def find_place(setting: str, proc: Path = Path("/proc/self")) -> CgroupPlace:
    """Where our groups belong: ``setting`` is ``auto``, ``off`` or a folder. Changes nothing."""
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
    """The folder of the v2 group that we are in, and the kernel's name for it; None without such a hierarchy."""
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
    """mountinfo writes blanks and backslashes as three octal digits."""
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
        """A descriptor of the folder, for clone3; the caller closes it. Raises OSError."""
        return os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def limit(self, claims: ResourceClaims) -> None:
        """Write what the node claims, as far as there are controllers. Raises OSError when the kernel refuses."""
        files = group_files(claims)
        for controller in self._groups.enabled:
            for name, content in files[controller].items():
                (self.path / name).write_text(content)

    def kill(self) -> None:
        """SIGKILL for everything in it and below, also for who becomes another user or is being forked."""
        try:
            with fd_reserve.everything():
                (self.path / "cgroup.kill").write_text("1")
        except FileNotFoundError:
            return
        except OSError as reason:
            self._groups.again(reason, self.kill)

    def oom_kills(self) -> int | None:
        """How many of its processes were killed for want of memory; None when nothing counts them here."""
        return count_in(self.path / "memory.events", "oom_kill")

    def when_empty(self, then: Callable[[], None]) -> None:
        """Call ``then`` once nothing lives in it: at once, or when the kernel says so."""
        self._groups.watch(self.path, then)

    def remove(self) -> None:
        """Give the folder back, with groups that its processes made below it. It must be empty."""
        try:
            with fd_reserve.everything():
                _remove(self.path)
        except OSError as reason:
            self._groups.again(reason, self.remove)


def count_in(file: Path, name: str) -> int | None:
    """The number behind ``name`` in a flat-keyed file; None when there is no such file or line."""
    try:
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return None


class Groups:
    """The daemon's control groups. Without a place for them there are none: ``leaf`` returns None."""

    def __init__(self, loop: asyncio.AbstractEventLoop, place: CgroupPlace, state_dir: str) -> None:
        """Makes nothing yet."""
        self._loop = loop
        self._log = structlog.get_logger("chronetixd.linux.cgroups")
        self._place = place
        self._name = base_name(state_dir)
        self._serial = 0
        self._base: Path | None = None
        self._epoll: select.epoll | None = None
        self._watched: dict[int, tuple[Path, Callable[[], None]]] = {}
        self.reason = place.reason
        """Why there are none; empty when there are."""
        self.enabled: tuple[str, ...] = ()
        """Controllers that every leaf has."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Controllers that no leaf has."""
        return tuple(name for name in CONTROLLERS if name not in self.enabled)

    @property
    def base(self) -> Path | None:
        """The folder of the leaves; None when there are none."""
        return self._base

    def open(self, keep: Iterable[int] = ()) -> None:
        """Make the folder, end what a predecessor left in it but for the leaves of the processes ``keep``, enable what
        can be enabled."""
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
        """A new one, empty and without limits. Raises OSError when the kernel has no room for more."""
        if self._base is None:
            return None
        while True:
            self._serial += 1
            path = self._base / f"{os.getpid()}-{self._serial}"
            with suppress(FileExistsError):
                path.mkdir()
                return Leaf(self, path)

    def leaf_of(self, pid: int) -> Leaf | None:
        """That of a worker which an earlier daemon has started; None when it is in none of ours."""
        found = own_group(Path(f"/proc/{pid}"))
        return Leaf(self, found[0]) if found is not None and found[0].parent == self._base else None

    def leaf_at(self, path: str | None) -> Leaf | None:
        """That of a worker which an earlier image of this daemon has made at ``path``."""
        return None if path is None else Leaf(self, Path(path))

    @property
    def settled(self) -> bool:
        """Nobody waits for a group to become empty."""
        return not self._watched

    def packed(self) -> PackedGroups:
        """Where they are, or why there are none. (Once we live in one of them ourselves, that cannot be found out.)"""
        return PackedGroups(group=None if self._place.group is None else str(self._place.group), reason=self.reason)

    def unpack(self, packed: PackedGroups) -> None:
        """The inverse, before :meth:`open`."""
        self._place = CgroupPlace(None if packed.group is None else Path(packed.group), packed.reason)
        self.reason = packed.reason

    def close(self) -> None:
        """Remove what is ours, if nothing lives in it. Idempotent."""
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
        """Call ``then`` when the group ``path`` has no living process, or is gone."""
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
        # What changed since that read is told at once: the kernel compares with what we have read.
        self._watched[fd] = path, then
        self._epoll.register(fd, select.EPOLLPRI)

    def again(self, reason: OSError, what: Callable[[], None]) -> None:
        """Do ``what`` a little later if it failed for want of something; else raise ``reason``."""
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

    # -- ours and our predecessor's --------------------------------------------------------------------------

    def _end_leftovers(self, base: Path, keep: frozenset[Path]) -> None:
        left = [path for path in base.iterdir() if path.is_dir() and path.name != _DAEMON and path not in keep]
        deadline = time.monotonic() + LEFTOVER_S
        for path in left:
            with suppress(FileNotFoundError):
                (path / "cgroup.kill").write_text("1")
        for path in left:
            self._log.warning("what an earlier daemon left was ended", group=str(path))
            if not _wait_empty(path, deadline):
                self._log.error("it does not die; its group stays", group=str(path))
                continue
            _remove(path)

    def _enable(self, base: Path) -> tuple[str, ...]:
        """Hand the controllers down to the leaves; those for which that worked."""
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
        """Take the controllers back and leave our own leaf, so that the folder can go."""
        assert self._place.group is not None
        if not (base / _DAEMON).is_dir():
            return
        with suppress(OSError):
            for group in (base, self._place.group):
                for controller in self.enabled:
                    (group / "cgroup.subtree_control").write_text(f"-{controller}")
            (self._place.group / "cgroup.procs").write_text(str(os.getpid()))


def base_name(state_dir: str) -> str:
    """The folder's name for a state folder: the same for every daemon that has it."""
    return f"chronetix-{hashlib.sha256(os.path.realpath(state_dir).encode()).hexdigest()[:12]}"


def _lives_in(group: Path) -> bool:
    return str(os.getpid()) in (group / "cgroup.procs").read_text().split()


def _populated(fd: int) -> bool:
    try:
        return b"populated 1" in os.pread(fd, 4096, 0)
    except OSError:
        return False  # the group is gone


def _wait_empty(path: Path, deadline: float) -> bool:
    """Block until nothing lives in it; False when the time is up."""
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
    """The group and all below it, deepest first. Raises OSError when something lives there."""
    with suppress(FileNotFoundError):
        with suppress(OSError):
            path.rmdir()  # takes no descriptor, as looking for more does
            return
        for below in path.iterdir():
            if below.is_dir():
                _remove(below)
        path.rmdir()
