"""Sends pings to the nodes of one flow that have a liveness probe. No other worker is ever woken by a ping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from chronetix.protocol.messages import Ping, Pong
from chronetixd.core.liveness import DeclareDead, LivenessCheck, Probe, SendPing


class Probes:
    """Probes the nodes of one flow. ``send`` sends a ping to a node. ``hear`` reads messages of a node that are waiting
    to be read, because the daemon itself may have stood still. ``on_dead`` is called once with a node that failed, and
    why."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        probes: Mapping[str, Probe],
        send: Callable[[str, Ping], None],
        hear: Callable[[str], None],
        on_dead: Callable[[str, str], None],
    ) -> None:
        self._loop = loop
        self._probes = probes
        self._send = send
        self._hear = hear
        self._on_dead = on_dead
        self._living: dict[str, LivenessCheck] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def revise(self, probes: Mapping[str, Probe]) -> None:
        """Replace the probes of the flow's nodes."""
        changed = [node for node in self._living if probes.get(node) != self._probes[node]]
        begun = [node for node in probes if node not in self._probes]
        self._probes = probes
        for node in changed:
            self.stop(node)
            self.start(node)
        for node in begun:
            self.start(node)

    def start(self, node: str) -> None:
        """Start to probe ``node``, whose worker has started. Does nothing for a node without a probe."""
        probe = self._probes.get(node)
        if probe is None:
            return
        self.stop(node)
        self._living[node] = LivenessCheck(probe)
        self._timers[node] = self._loop.call_later((probe.delay_ns + probe.period_ns) / 1e9, self._due, node)

    def stop(self, node: str) -> None:
        """Stop to probe ``node``, whose worker has ended or is about to end."""
        self._living.pop(node, None)
        timer = self._timers.pop(node, None)
        if timer is not None:
            timer.cancel()

    def answered(self, node: str, pong: Pong) -> None:
        """Note that the worker of ``node`` has answered a ping."""
        liveness = self._living.get(node)
        if liveness is not None:
            liveness.answered(pong.id, pong.busy_ns, pong.doing)

    def _due(self, node: str) -> None:
        liveness = self._living[node]
        if liveness.waits:
            self._hear(node)
            if self._living.get(node) is not liveness:
                return  # reading its messages has ended the probe
        match liveness.due(time.monotonic_ns()):
            case DeclareDead(why):
                self.stop(node)
                self._on_dead(node, why)
                return
            case SendPing(id):
                self._send(node, Ping(id=id))
        self._timers[node] = self._loop.call_later(self._probes[node].period_ns / 1e9, self._due, node)
