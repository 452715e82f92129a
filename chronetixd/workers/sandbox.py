"""The limits of each worker: a control group where the daemon may make one, otherwise limits of the process.

Without the memory controller a claim on memory becomes RLIMIT_DATA, which counts the private memory of each process
separately. Without the pids controller the number of processes is not limited, because RLIMIT_NPROC counts all
processes of the user.
"""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

from chronetix.protocol.contract.types import ResourceClaims
from chronetixd.linux.cgroups import Groups, Leaf, count_in
from chronetixd.linux.proc import private_data
from chronetixd.loop.turns import Turns
from chronetixd.workers.orphans import Orphans
from chronetixd.workers.pump import Pump

RECENT_S = 1.0
"""How old the count may be that a starting worker takes: workers that start together share one."""


class KillCount:
    """How many processes of this machine the kernel has killed because memory ran out, of all users. The kernel's log
    has more details, but the daemon may not read it."""

    def __init__(self, vmstat: Path = Path("/proc/vmstat")) -> None:
        self._vmstat = vmstat
        self._seen: int | None = None
        self._at = -math.inf

    def now(self) -> int | None:
        """Return the present count; None if the kernel does not count."""
        self._at = time.monotonic()
        self._seen = count_in(self._vmstat, "oom_kill")
        return self._seen

    def recent(self) -> int | None:
        """Return the count as it was at most RECENT_S ago."""
        return self.now() if time.monotonic() - self._at > RECENT_S else self._seen


@dataclass(frozen=True, slots=True)
class Sandboxes:
    """What all workers share: control groups, the search for orphans, and the thread that reads what they print."""

    groups: Groups
    orphans: Orphans
    pump: Pump
    turns: Turns
    """Runs work for many workers in slices."""
    oom_kills: KillCount = field(default_factory=KillCount)

    def new_cgroup(self, claims: ResourceClaims | None) -> tuple[Leaf | None, int]:
        """Make a leaf that is limited to ``claims`` (None: not limited yet). Returns it and a descriptor of it for the
        launcher; None and -1 where there are no control groups. Raises OSError, and then nothing is left."""
        leaf = self.groups.leaf()
        if leaf is None:
            return None, -1
        try:
            if claims is not None:
                leaf.limit(claims)
            return leaf, leaf.open()
        except OSError:
            leaf.remove()
            raise

    def data_limit(self, claims: ResourceClaims) -> int:
        """Return how much RLIMIT_DATA grows beyond the memory that a worker has at its start; 0 for no limit."""
        return 0 if "memory" in self.groups.enabled else claims.memory_bytes or 0

    def limit(self, pid: int, leaf: Leaf | None, claims: ResourceClaims) -> None:
        """Limit ``pid``, a spare worker that was forked without limits. Raises OSError."""
        if leaf is not None:
            leaf.limit(claims)
        more = self.data_limit(claims)
        if more:
            _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
            wanted = private_data(pid) + more
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
