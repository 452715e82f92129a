"""A flow that ran under an earlier daemon, until its workers are back: who is awaited, has shown what, or has died.

The data goes on meanwhile; what happens to workers is settled once all of them are back, dead, or too late (and then
killed), because only then it is known which memory there is. Whoever wants the flow to end waits as long, unless he
wants it killed.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from chronetix.protocol import messages as wire
from chronetix.protocol.errors import error
from chronetix.protocol.framing import type_of
from chronetixd.core import flow_messages as core
from chronetixd.core.wiring.incarnations import LostMemory
from chronetixd.core.worker import Exit, Reattached, WorkerState
from chronetixd.dataplane import rebuild
from chronetixd.dataplane.recovered import RecoveredMemory
from chronetixd.dataplane.wiring import ToNode, Wiring
from chronetixd.flows.worker_records import lives_on
from chronetixd.linux.pipes import is_pipe
from chronetixd.store.journal import StoredLife
from chronetixd.workers.process import WorkerProcess

RETURN_S = 10.0
"""How long a worker that lives may take to come back. It tries at least once a second."""

STATES = {
    "starting": WorkerState.STARTING,
    "started": WorkerState.STARTED,
    "draining": WorkerState.DRAINING,
}

RETURNING = "returning"
"""What is shown of a worker that lives and is not back yet."""

MAX_HELD = 1000
"""Messages of one worker that may wait until all are back: it has little to say of what it has just shown."""

MAX_HELD_DESCRIPTORS = 256
"""What may have come with them."""

WAITS = (
    wire.Drained,
    wire.Finished,
    wire.GaveUp,
    wire.Linked,
    wire.Offer,
    wire.Segment,
    wire.SegmentDropped,
    wire.SegmentMapped,
    wire.Started,
)
"""What is about routes and lives means nothing before it is known how they stand."""


@dataclass(frozen=True, slots=True)
class ReattachRequest:
    """Whoever has connected and says that it is a worker. ``descriptors`` are the caller's but for those taken out."""

    message: wire.Reattach
    descriptors: list[int]
    sock: socket.socket
    pid: int
    features: tuple[str, ...] = ()


class Run(Protocol):
    """The flow whose workers are awaited."""

    def worker(self, node: str) -> WorkerProcess:
        """The process of ``node``."""

    def new_worker(self, node: str) -> WorkerProcess:
        """What is to be the process of ``node`` from now on."""

    def back_on_bus(self, node: str) -> None:
        """It gets again what its manifest says."""

    def dispatch(self, event: core.FlowEvent) -> None:
        """Something has happened."""

    def came_home(
        self,
        told: list[ToNode],
        lost: LostMemory | None,
        held: Sequence[tuple[str, wire.Message, list[int]]],
        died: Mapping[str, Exit],
        stop: core.StopRequested | None,
    ) -> None:
        """All are back, or dead: what has happened meanwhile happens now."""


class Recovery:
    """Of the workers of ``run``, one for each of ``nodes``, whose last ``lives`` an earlier daemon has written down.
    ``kept`` is what outlived them; closed at the end."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        run: Run,
        wiring: Wiring,
        nodes: Sequence[str],
        lives: Sequence[StoredLife],
        kept: RecoveredMemory,
    ) -> None:
        self._run = run
        self._wiring = wiring
        self._nodes = nodes
        self._kept = kept
        self._shown: dict[str, rebuild.ReattachedMemory] = {}
        self._died: dict[str, Exit] = {}
        self._late: dict[str, str] = {}
        """How those died that did so under this daemon: the beginning of the rest of a sentence."""
        self._stop: core.StopRequested | None = None
        self._abandoned = False
        self._lives = {life.node: life for life in lives}
        self._held: list[tuple[str, wire.Message, list[int]]] = []
        self.away = {life.node for life in lives if lives_on(life)}
        """Nodes whose worker lives and is not back yet."""
        self._exits = {
            life.node: kept.exit(life.node, life.incarnation, life.pid)
            for life in lives
            if life.phase == "born" and life.node not in self.away
        }
        self.over = {life.node for life in lives if life.phase == "gone" and life.well}
        """Nodes that have come to their end, as their memory shows where nobody was told."""
        self.over |= {node for node, ended in self._exits.items() if ended == Exit(code=0) and kept.closed(node)}
        self._deadline = loop.call_later(RETURN_S, self._too_late)

    def state(self, node: str) -> str | None:
        """What is to be shown of a node whose worker is awaited, or has died meanwhile; None of others."""
        if node in self.away:
            return RETURNING
        return str(WorkerState.EXITED) if node in self._died else None

    def begin(self) -> None:
        """Watch those who live. Those who died while nobody watched are dead already."""
        for node in self._nodes:
            if node in self.over:
                continue
            worker = self._run.new_worker(node)
            life = self._lives.get(node)
            worker.incarnation = life.incarnation if life is not None else 0
            if node in self.away:
                assert life is not None
                try:
                    worker.expect(life.pid, os.pidfd_open(life.pid))
                    continue
                except ProcessLookupError:
                    self.away.discard(node)
            self._died[node] = self._exits.get(node, Exit())
        self._complete_if_all()

    def returned(self, visitor: ReattachRequest) -> None:
        """A process says that it is the worker of a node, and shows its memory. Raises ChronetixError when it is not
        that, or shows what it may not, OSError when descriptors have run out; the socket stays the caller's then."""
        message = visitor.message
        node = message.node
        life = self._lives.get(node)
        if node not in self.away or life is None or not self._proves(life, message, visitor.pid):
            raise error("reattach-refused", flow=message.flow, node=node, reason="it is not the worker that is awaited")
        at = len(visitor.descriptors) - 2 * message.pipes
        if not all(map(is_pipe, visitor.descriptors[at:])):
            raise error("descriptor-refused", what=f"stdout and stderr of node {node!r}", reason="they are no pipes")
        pipes, visitor.descriptors[at:] = visitor.descriptors[at:], []
        try:
            self._shown[node] = self._wiring.shown(node, message, visitor.descriptors)
            self._run.worker(node).connect(visitor.sock, pipes)
        finally:
            for fd in pipes:
                os.close(fd)
        self._run.worker(node).features = visitor.features
        self._run.back_on_bus(node)
        self.away.discard(node)
        self._run.dispatch(core.WorkerChanged(node, Reattached(STATES[message.state])))
        self._complete_if_all()

    def holds(self, node: str, message: wire.Message, descriptors: list[int]) -> bool:
        """``message`` is to be heard later, when all are back; takes ``descriptors`` over then. Raises ProtocolError
        for a worker that says too much."""
        if not isinstance(message, WAITS):
            return False
        held = [len(brought) for each, _, brought in self._held if each == node]
        if len(held) >= MAX_HELD or sum(held) + len(descriptors) > MAX_HELD_DESCRIPTORS:
            raise error("unexpected-message", type=type_of(message), when="so often, before all workers are back")
        self._held.append((node, message, list(descriptors)))
        descriptors.clear()
        return True

    @staticmethod
    def _proves(life: StoredLife, message: wire.Reattach, pid: int) -> bool:
        same = pid == life.pid and message.incarnation == life.incarnation
        return same and hmac.compare_digest(message.token.encode(), life.token.encode())

    def ended(self, node: str, ended: Exit) -> None:
        """The process of ``node`` has ended meanwhile."""
        who = "it" if node in self.away else "another worker"
        self._late.setdefault(node, f"died when {who} had not come back to this daemon yet")
        self._died[node] = ended
        self.away.discard(node)
        self._complete_if_all()

    def stop(self, event: core.StopRequested) -> bool:
        """Someone wants the flow to end; True when that can be done at once."""
        if event.mode is core.StopMode.KILL:
            return True
        self._stop = event
        return False

    def abandon(self) -> None:
        """Nobody is awaited any more."""
        self._abandoned = True
        self._deadline.cancel()
        self._kept.close()

    def _too_late(self) -> None:
        for node in tuple(self.away):
            self._late[node] = f"was killed, as it had not come back to this daemon within {RETURN_S:g} s"
            self._run.worker(node).signal(kill=True)

    def _complete_if_all(self) -> None:
        if self.away or self._abandoned:
            return
        self._deadline.cancel()
        dead = {node: self._lives[node].incarnation if node in self._lives else 0 for node in self._died}
        lost = None
        try:
            told = self._wiring.take_over(self._shown, dead, self.over, self._kept, self._late)
        except LostMemory as reason:
            lost, told = reason, []
        self._kept.close()
        self._run.came_home(told, lost, self._held, self._died, self._stop)
