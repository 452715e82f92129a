"""Probes in a loop: whom they ask, and that the daemon's own standstill is nobody's death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from chronetix.protocol.messages import Ping, Pong
from chronetixd.core.liveness import Probe
from chronetixd.flows.liveness import Probes

MS = 1_000_000


class Nodes:
    """Workers whose answers lie in their sockets until somebody reads them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_ms: int) -> None:
        self.unread: list[Pong] = []
        self.asked = 0
        self.dead: list[str] = []
        self.on_hear: Callable[[], None] = self.read
        probe = Probe(limit_ns=limit_ms * MS, period_ns=limit_ms * MS)
        hear, end = (lambda _: self.on_hear()), (lambda node, _: self.dead.append(node))
        self.probes = Probes(loop, {"n": probe}, self.ask, hear, end)

    def ask(self, node: str, ping: Ping) -> None:
        self.asked += 1
        self.unread.append(Pong(id=ping.id, progress=0))

    def read(self) -> None:
        for pong in self.unread:
            self.probes.answered("n", pong)
        self.unread.clear()


@pytest.fixture
def nodes(loop: asyncio.AbstractEventLoop) -> Nodes:
    return Nodes(loop, limit_ms=1)


def test_an_answer_that_nobody_has_read_in_time_is_an_answer(nodes: Nodes, until: Any) -> None:
    """A daemon that was stopped, or busy, finds its timers due before it finds what has come meanwhile."""
    nodes.probes.start("n")
    until(lambda: nodes.asked >= 3)
    nodes.probes.stop("n")
    assert nodes.dead == []


def test_a_worker_that_has_said_nothing_is_dead(nodes: Nodes, until: Any) -> None:
    nodes.on_hear = lambda: None
    nodes.probes.start("n")
    until(lambda: nodes.dead)
    assert nodes.asked == 1


def test_last_words_are_no_reason_to_go_on_asking(nodes: Nodes, until: Any) -> None:
    nodes.on_hear = lambda: nodes.probes.stop("n")
    nodes.probes.start("n")
    until(lambda: nodes.asked == 1 and not nodes.probes._timers)
    assert nodes.dead == []


def test_only_nodes_with_a_probe_are_asked(nodes: Nodes) -> None:
    nodes.probes.start("another")
    assert nodes.probes._timers == {}
