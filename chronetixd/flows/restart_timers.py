"""Restarts of one flow's nodes on the shell's side: a timer for each node, and what people want to know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from chronetixd.loop.alarm import due_ns
from chronetixd.packing import Packed


class PackedRestartTimer(Packed, frozen=True):
    """Why a node was last restarted, when it is next, and when its timer is due."""

    last_reason: str = ""
    next_restart_unix_ns: int = 0
    due_ns: int | None = None


@dataclass(slots=True)
class RestartTimer:
    """One node: why its worker was last restarted, and when its next one is due (0 when it is not being restarted)."""

    last_reason: str = ""
    next_restart_unix_ns: int = 0


class RestartTimers:
    """``on_deadline`` is called with the node whose timer has passed."""

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
        """The flow has a further node."""
        self._nodes[node] = RestartTimer()

    def forget(self, node: str) -> None:
        """The flow has it no more."""
        self.disarm(node)
        self._nodes.pop(node, None)

    def planned(self, node: str, restart_group: Iterable[str], after_ns: int, reason: str) -> None:
        """``node`` failed and is restarted with its ``restart_group``."""
        due = time.time_ns() + after_ns
        self._nodes[node] = RestartTimer(reason, due)
        for each in restart_group:
            self._nodes[each] = RestartTimer(f"restarted with node {node!r}", due)

    def packed(self) -> dict[str, PackedRestartTimer]:
        """All of it."""
        return {
            node: PackedRestartTimer(
                last_reason=each.last_reason,
                next_restart_unix_ns=each.next_restart_unix_ns,
                due_ns=due_ns(self._loop, self._timers[node]) if node in self._timers else None,
            )
            for node, each in self._nodes.items()
        }

    def unpack(self, packed: Mapping[str, PackedRestartTimer]) -> None:
        """The inverse: timers are armed for what is left."""
        for node, each in packed.items():
            self._nodes[node] = RestartTimer(each.last_reason, each.next_restart_unix_ns)
            if each.due_ns is not None:
                self.arm(node, max(0, each.due_ns - time.monotonic_ns()))

    def back(self, node: str) -> None:
        """It has started again."""
        self.disarm(node)
        self._nodes[node].next_restart_unix_ns = 0

    def arm(self, node: str, after_ns: int) -> None:
        """Call ``on_deadline`` after this time, instead of what was armed."""
        self.disarm(node)
        self._timers[node] = self._loop.call_later(after_ns / 1e9, self._passed, node)

    def disarm(self, node: str) -> None:
        """Its timer is not wanted any more, if there is one."""
        timer = self._timers.pop(node, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """No node is restarted any more."""
        for node in tuple(self._timers):
            self.disarm(node)
        for restart_state in self._nodes.values():
            restart_state.next_restart_unix_ns = 0

    def _passed(self, node: str) -> None:
        del self._timers[node]
        self._on_deadline(node)
