"""The messages between the daemon and its launcher, the process that forks workers."""

from __future__ import annotations

from chronetix.protocol.messages.base import Count, WireMessage


class Spawn(WireMessage, tag="spawn", frozen=True):
    """Daemon to launcher: start one worker. Descriptors: its control socket, its stdout, its stderr and, with
    ``cgroup``, the folder of the control group that it is born in.

    With empty ``argv`` the worker is a warm fork that runs Python; else the program ``argv`` is executed. A ``spare``
    worker sends its hello and then waits for :class:`Assign`. ``data_limit``: how many bytes of private memory the
    worker may add to those that it is born with (RLIMIT_DATA), 0 for no limit. ``user``: name or number of the user
    whose process the worker becomes, with that user's groups; empty for the launcher's own.
    """

    id: Count
    name: str
    argv: list[str] = []
    env: dict[str, str] = {}
    cwd: str = ""
    spare: bool = False
    cgroup: bool = False
    data_limit: Count = 0
    user: str = ""

    @property
    def descriptors(self) -> int:
        """How many descriptors are sent with this message."""
        return 3 + self.cgroup


class Spawned(WireMessage, tag="spawned", frozen=True):
    """Launcher to daemon: worker ``id`` has been started, as a child of the daemon. Descriptors: its pidfd."""

    id: Count
    pid: Count
    descriptors = 1


class SpawnFailed(WireMessage, tag="spawn-failed", frozen=True):
    """Launcher to daemon: worker ``id`` was not started."""

    id: Count
    errno: Count
    message: str


class LauncherReady(WireMessage, tag="launcher-ready", frozen=True):
    """Launcher to daemon, as its first message: everything is imported, so that forks are cheap from now on."""

    pid: Count
