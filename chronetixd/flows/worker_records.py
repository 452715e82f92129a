"""The lives of one flow's workers, as the journal has them: noted when a worker is about to be asked for, when it is
born, when it is gone. What a later daemon knows of workers that it has not started itself.
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
from chronetixd.store.journal import Journal, StoredLife

LINGER_MS = 5000
"""A process that lives on so long after SIGKILL hangs in the kernel."""


@cache
def boot_id() -> str:
    """Of this boot of the machine: what pids and start times are worth."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def lives_on(life: StoredLife) -> bool:
    """Its very process is there, and no later one of the same pid. False for one that was never known to be born."""
    if life.phase != "born" or life.boot != boot_id():
        return False
    found = proc.stat(life.pid)
    return found is not None and found.started == life.started_ticks and found.state not in "ZX"


def end_leftovers(lives: Iterable[StoredLife]) -> None:
    """Kill what is left of workers whose flow is started anew, or is over, and wait until it is dead: they had their
    end from the daemon's, and those that have not taken it are not asked a second time."""
    poll = select.poll()
    opened = []
    for life in lives:
        if lives_on(life):
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
            structlog.get_logger("chronetixd").warning("workers of an earlier daemon do not die", count=left)
            break
        for pidfd, _ in dead:
            poll.unregister(pidfd)
        left -= len(dead)
    for pidfd in opened:
        os.close(pidfd)


class WorkerRecords:
    """Of the workers of ``flow``. ``earlier`` are those that an earlier daemon has left."""

    def __init__(self, journal: Journal, flow: str, earlier: Iterable[StoredLife] = ()) -> None:
        self._journal = journal
        self._flow = flow
        self._now = {life.node: life for life in earlier}

    def intend(self, incarnations: Mapping[str, int]) -> None:
        """These nodes are about to get a worker."""
        made = [
            StoredLife(
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
        self._journal.lives(made)

    def born(self, node: str, pid: int) -> None:
        """The launcher has made it."""
        found = proc.stat(pid)
        self._change(node, phase="born", pid=pid, started_ticks=found.started if found else 0)

    def gone(self, node: str, incarnation: int, *, well: bool) -> None:
        """That life of it has ended; ``well`` when it had nothing left to do. A successor may have been born before."""
        if node in self._now and self._now[node].incarnation == incarnation:
            self._change(node, phase="gone", well=well)

    def packed(self) -> list[StoredLife]:
        """The last life of each node: what is ``earlier`` for the next image."""
        return list(self._now.values())

    def token(self, node: str) -> str:
        """What the worker proves itself with when it comes back."""
        return self._now[node].token

    def __getitem__(self, node: str) -> StoredLife:
        return self._now[node]

    def _change(self, node: str, **fields: object) -> None:
        life = self._now.get(node)
        if life is not None:
            self._now[node] = changed = msgspec.structs.replace(life, **fields)
            self._journal.soon(changed)
