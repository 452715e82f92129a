"""The timer of each node of one flow, and what is shown of its restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from chronetixd.loop.alarm import due_ns
from chronetixd.packing import Packed


class PackedRestartTimer(Packed, frozen=True):
    """Why a node was last restarted, when it is restarted next, and when its timer is due (CLOCK_MONOTONIC, ns)."""

    last_reason: str = ""
    next_restart_unix_ns: int = 0
    due_ns: int | None = None


@dataclass(slots=True)
class RestartTimer:
    """One node: why its worker was last restarted, and when its next worker is due (0 when it is not being
    restarted)."""

    last_reason: str = ""
    next_restart_unix_ns: int = 0


class RestartTimers:
    """The timers of a flow's nodes. ``on_deadline`` is called with the node whose timer has passed."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, nodes: Iterable[str], on_deadline: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._on_deadline = on_deadline
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._nodes = {node: RestartTimer() for node in nodes}

    def __getitem__(self, node: str) -> RestartTimer:
        return self._nodes[node]

    def add(self, node: str) -> None:
        """Add a node."""
        self._nodes[node] = RestartTimer()

    def forget(self, node: str) -> None:
        """Remove a node and cancel its timer."""
        self.disarm(node)
        self._nodes.pop(node, None)

    def restart_planned(self, node: str, restart_group: Iterable[str], after_ns: int, reason: str) -> None:
        """Note that ``node`` failed and is restarted together with its ``restart_group``."""
        due = time.time_ns() + after_ns
        self._nodes[node] = RestartTimer(reason, due)
        for each in restart_group:
            self._nodes[each] = RestartTimer(f"restarted with node {node!r}", due)

    def packed(self) -> dict[str, PackedRestartTimer]:
        """Return the whole state for the next image of the daemon."""
        return {
            node: PackedRestartTimer(
                last_reason=each.last_reason,
                next_restart_unix_ns=each.next_restart_unix_ns,
                due_ns=due_ns(self._loop, self._timers[node]) if node in self._timers else None,
            )
            for node, each in self._nodes.items()
        }

    def unpack(self, packed: Mapping[str, PackedRestartTimer]) -> None:
        """Restore the state from ``packed``, and arm each timer for its remaining time."""
        for node, each in packed.items():
            self._nodes[node] = RestartTimer(each.last_reason, each.next_restart_unix_ns)
            if each.due_ns is not None:
                self.arm(node, max(0, each.due_ns - time.monotonic_ns()))

    def restarted(self, node: str) -> None:
        """Note that ``node`` has started again, and cancel its timer."""
        self.disarm(node)
        self._nodes[node].next_restart_unix_ns = 0

    def arm(self, node: str, after_ns: int) -> None:
        """Call ``on_deadline`` with ``node`` after this time, instead of the time that was armed."""
        self.disarm(node)
        self._timers[node] = self._loop.call_later(after_ns / 1e9, self._passed, node)

    def disarm(self, node: str) -> None:
        """Cancel the timer of ``node``, if it has one."""
        timer = self._timers.pop(node, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Cancel all timers, because no node is restarted any more."""
        for node in tuple(self._timers):
            self.disarm(node)
        for timer in self._nodes.values():
            timer.next_restart_unix_ns = 0

    def _passed(self, node: str) -> None:
        del self._timers[node]
        self._on_deadline(node)
