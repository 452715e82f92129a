"""What every worker is born into: a control group with its limits where we may make some, else limits of its own.

Without the memory controller a claim on memory becomes RLIMIT_DATA, which counts the private memory of each process by
itself. Without the pids controller the number of processes is not limited at all: RLIMIT_NPROC counts the whole user.
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
"""How old a count may be that a worker is born with: those that are born together share one."""


class KillCount:
    """Processes of this machine that the kernel has ended for want of memory, ours or not. (Its log would tell more,
    but is not ours to read.)"""

    def __init__(self, vmstat: Path = Path("/proc/vmstat")) -> None:
        self._vmstat = vmstat
        self._seen: int | None = None
        self._at = -math.inf

    def now(self) -> int | None:
        """None if the kernel does not tell."""
        self._at = time.monotonic()
        self._seen = count_in(self._vmstat, "oom_kill")
        return self._seen

    def recent(self) -> int | None:
        """As it is, or was up to RECENT_S ago."""
        return self.now() if time.monotonic() - self._at > RECENT_S else self._seen


@dataclass(frozen=True, slots=True)
class Sandboxes:
    """Control groups, who sees to it that nobody is left behind, and who reads what workers print."""

    groups: Groups
    orphans: Orphans
    pump: Pump
    turns: Turns
    """For what many workers need at once."""
    oom_kills: KillCount = field(default_factory=KillCount)

    def new_cgroup(self, claims: ResourceClaims | None) -> tuple[Leaf | None, int]:
        """A leaf that is limited to ``claims`` (None: not yet), and a descriptor of it for the launcher; None and -1
        where there are no control groups. Raises OSError, and then nothing is left."""
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
        """RLIMIT_DATA beyond what the worker is born with; 0 for none."""
        return 0 if "memory" in self.groups.enabled else claims.memory_bytes or 0

    def limit(self, pid: int, leaf: Leaf | None, claims: ResourceClaims) -> None:
        """Limit ``pid``, a child of ours that was born without a node. Raises OSError."""
        if leaf is not None:
            leaf.limit(claims)
        more = self.data_limit(claims)
        if more:
            _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
            wanted = private_data(pid) + more
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
