"""Between the daemon and the process that forks its workers."""

from __future__ import annotations

from chronetix.protocol.messages.base import Count, Message


class Spawn(Message, tag="spawn", frozen=True):
    """Daemon to launcher: start one worker. Descriptors: its control socket, its stdout, its stderr and, with
    ``cgroup``, the folder of the control group that it is born in.

    With empty ``argv`` a warm fork that runs a Python worker; else that program is executed. A ``spare`` one says hello
    and then waits for :class:`Assign`. ``data_limit``: bytes of private memory that it may add to what it is born with
    (RLIMIT_DATA), 0 for no limit.
    """

    id: Count
    name: str
    argv: list[str] = []
    env: dict[str, str] = {}
    cwd: str = ""
    spare: bool = False
    cgroup: bool = False
    data_limit: Count = 0

    @property
    def descriptors(self) -> int:
        """How many descriptors travel with this message."""
        return 3 + self.cgroup


class Spawned(Message, tag="spawned", frozen=True):
    """Launcher to daemon: worker ``id`` lives, as the daemon's own child. Descriptors: its pidfd."""

    id: Count
    pid: Count
    descriptors = 1


class SpawnFailed(Message, tag="spawn-failed", frozen=True):
    """Launcher to daemon: worker ``id`` was not started."""

    id: Count
    errno: Count
    message: str


class LauncherReady(Message, tag="launcher-ready", frozen=True):
    """Launcher to daemon, first: everything is imported, forks are cheap now."""

    pid: Count
