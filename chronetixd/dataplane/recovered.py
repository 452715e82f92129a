"""The memory of one flow that outlived its workers and the daemon, because the service manager has stored it.

A :class:`Key` names a descriptor: its node, the incarnation and the stage. It was written by an earlier daemon, and is
trusted only as far as the memory itself agrees. The RING or CREDIT of a stage is handed out once; the caller owns it
then, and what is not handed out is closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chronetix.protocol.errors import ChronetixError
from chronetix.shm import layout
from chronetixd.core.wiring.stages import Memory
from chronetixd.core.worker import Exit
from chronetixd.dataplane.checked import checked
from chronetixd.linux.pidfd import is_pidfd, told_by
from chronetixd.loop.closing import close_memory
from chronetixd.store.descriptor_keys import Key, Kind


class RecoveredMemory:
    """Owns the descriptors of ``found`` until :meth:`close`. ``whole``: nothing of the flow was missing or left out."""

    def __init__(self, found: Mapping[Key, int], *, whole: bool = True) -> None:
        self._found = dict(found)
        self._memories: dict[tuple[str, int], Memory] = {}
        self._last: dict[str, Memory | None] = {}
        for key, fd in found.items():
            if not _matches(key, fd):
                close_memory(self._found.pop(key))
        self.whole = whole and len(self._found) == len(found) > 0
        """Whether memory that is not found never existed."""

    def __iter__(self) -> Iterator[Key]:
        return iter(self._found)

    def epochs(self, route: str) -> set[int]:
        """Return the stages of ``route`` of which any memory was found."""
        return {key.number for key in self._found if key.route == route}

    def memory(self, node: str) -> Memory | None:
        """Return the arena of the last incarnation of ``node`` that has made a RING; an arena without segments when
        only other memory of the node was found; None when nothing was found. The caller closes it, as it closes the
        arena of a RING."""
        if node not in self._last:
            mine = [key for key in self._found if key.node == node and key.kind != "pidfd"]
            made = [key.incarnation for key in mine if key.kind == "ring"] or [key.incarnation for key in mine]
            self._last[node] = self._memory(node, max(made)) if made else None
        return self._last[node]

    def ring(self, route: str, epoch: int) -> tuple[Key, int, Memory] | None:
        """Return the RING of a stage, with its key and the arena that it points into; None when it was not found."""
        key = max(self._all("ring", route, epoch), key=lambda key: key.incarnation, default=None)
        if key is None:
            return None
        memory = self._memory(key.node, key.incarnation)
        return key, self._found.pop(key), memory

    def credit(self, route: str, epoch: int) -> tuple[Key, int] | None:
        """Return the CREDIT of the last consumer of a stage, with its key. A consumer counts only if it had taken over
        all returns of the one before it: one that died earlier never consumed."""
        found = sorted(self._all("credit", route, epoch), key=lambda key: key.incarnation)
        if not found:
            return None
        last = found[0]
        for key in found[1:]:
            if _inherited(self._found[key], self._found[last]):
                last = key
        return last, self._found.pop(last)

    def closed(self, node: str) -> bool:
        """Return whether the last worker of ``node`` has closed all of its ends, of inputs and of outputs."""
        ends = [key for key in self._found if key.node == node and key.kind in ("ring", "credit")]
        last = {key.route: key for key in sorted(ends, key=lambda key: (key.number, key.incarnation))}
        return bool(last) and all(layout.closed(self._found[key]) for key in last.values())

    def exit(self, node: str, incarnation: int, pid: int) -> Exit:
        """Return how the process of ``node`` has ended; unknown where the kernel does not report it."""
        pidfd = self._found.get(Key(node, "pidfd", incarnation), -1)
        return told_by(pid, pidfd) if pidfd >= 0 else Exit()

    def close(self) -> None:
        """Close what was not handed out. Idempotent."""
        close_memory(*self._found.values())
        self._found.clear()

    def _all(self, kind: Kind, route: str, epoch: int) -> list[Key]:
        return [key for key in self._found if key.kind == kind and key.route == route and key.number == epoch]

    def _memory(self, node: str, incarnation: int) -> Memory:
        """Return the arena of this incarnation, whose worker is dead."""
        made = self._memories.get((node, incarnation))
        if made is None:
            made = self._memories[node, incarnation] = Memory(incarnation=incarnation, dead=True)
            mine = [key for key in self._found if key[:3] == (node, "segment", incarnation)]
            made.segments |= {key.number: self._found.pop(key) for key in mine}
        return made


def _matches(key: Key, fd: int) -> bool:
    """Return whether the descriptor refers to what its key says."""
    if key.kind == "pidfd":
        return is_pidfd(fd)
    try:
        checked(fd, key.kind, str(key))
        return key.kind == "segment" or layout.epoch(fd) == key.number
    except (ChronetixError, OSError, ValueError):
        return False


def _inherited(credit: int, before: int) -> bool:
    """Return whether ``credit`` contains every return that the CREDIT ``before`` contains (SPEC §10.2): its consumer
    had taken over from the predecessor."""
    here, there = layout.given_back(credit), layout.given_back(before)
    return len(here) == len(there) and all(mine >= other for mine, other in zip(here, there, strict=True))
