"""Records of one flow's workers in the journal: one before a worker's process is requested, one when it is spawned, one
when it has exited. From them a later daemon knows of workers that it has not started itself.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec
import structlog

from chronetixd.linux import proc
from chronetixd.store.journal import Journal
from chronetixd.store.journal_file import StoredWorker

LINGER_MS = 5000
"""A process that lives this long after SIGKILL hangs in the kernel."""


@cache
def boot_id() -> str:
    """Return the id of this boot of the machine. Pids and start times are only valid within one boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_alive(life: StoredWorker) -> bool:
    """Return whether the recorded process lives; a later process with the same pid does not count. False for a worker
    that was not recorded as spawned."""
    if life.phase != "born" or life.boot != boot_id():
        return False
    found = proc.stat(life.pid)
    return found is not None and found.started == life.started_ticks and found.state not in "ZX"


def end_leftovers(lives: Iterable[StoredWorker]) -> None:
    """Kill the recorded processes that still live, because their flow is started anew or is over, and wait until they
    are dead. A worker was already told to end when its daemon died, so that it is not asked again. An attached worker
    has ended with its connection, and its process is not the daemon's to kill."""
    poll = select.poll()
    opened = []
    for life in lives:
        if is_alive(life) and not life.attached:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(life.pid)
                opened.append(pidfd)
                poll.register(pidfd, select.POLLIN)
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(life.pid, signal.SIGKILL)
                with suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    left = len(opened)
    while left:
        dead = poll.poll(LINGER_MS)
        if not dead:
            structlog.get_logger("chronetixd").warning(
                "workers of an earlier daemon do not die after SIGKILL", count=left
            )
            break
        for pidfd, _ in dead:
            poll.unregister(pidfd)
        left -= len(dead)
    for pidfd in opened:
        os.close(pidfd)


class WorkerRecords:
    """The records of the workers of ``flow``. ``earlier`` are those that an earlier daemon has left."""

    def __init__(self, journal: Journal, flow: str, earlier: Iterable[StoredWorker] = ()) -> None:
        self._journal = journal
        self._flow = flow
        self._now = {life.node: life for life in earlier}

    def note_intended(self, incarnations: Mapping[str, int]) -> None:
        """Record that processes are about to be requested for these nodes."""
        made = [
            StoredWorker(
                flow=self._flow,
                node=node,
                incarnation=incarnation,
                phase="intended",
                token=secrets.token_hex(16),
                boot=boot_id(),
            )
            for node, incarnation in incarnations.items()
        ]
        self._now |= {life.node: life for life in made}
        self._journal.workers(made)

    def note_spawned(self, node: str, pid: int, *, attached: bool = False) -> None:
        """Record that the worker of ``node`` is process ``pid``: the launcher has started it, or it has
        ``attached``."""
        found = proc.stat(pid)
        ticks = found.started if found else 0
        self._change(node, phase="born", pid=pid, started_ticks=ticks, attached=attached)

    def note_exited(self, node: str, incarnation: int, *, well: bool) -> None:
        """Record that this incarnation of ``node`` has exited; ``well`` when it had nothing left to do. Ignored when a
        successor is recorded already."""
        if node in self._now and self._now[node].incarnation == incarnation:
            self._change(node, phase="gone", well=well)

    def packed(self) -> list[StoredWorker]:
        """Return the last record of each node, to be passed as ``earlier`` by the next image of the daemon."""
        return list(self._now.values())

    def token(self, node: str) -> str:
        """Return the secret by which the worker of ``node`` proves its identity when it reattaches."""
        return self._now[node].token

    def __getitem__(self, node: str) -> StoredWorker:
        return self._now[node]

    def _change(self, node: str, **fields: object) -> None:
        life = self._now.get(node)
        if life is not None:
            self._now[node] = changed = msgspec.structs.replace(life, **fields)
            self._journal.soon(changed)
