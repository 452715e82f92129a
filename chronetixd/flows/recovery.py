"""Recovery of a flow that ran under an earlier daemon: which workers are awaited, have reattached, or have died.

Data flows meanwhile. Deaths of workers are handled once every worker has reattached, has died, or is too late and
therefore killed, because only then it is known which memory exists. A request to end the flow waits as long, unless it
asks to kill the workers.
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
from chronetixd.core.worker import Exit, HasReattached, WorkerState
from chronetixd.dataplane import rebuild
from chronetixd.dataplane.recovered import RecoveredMemory
from chronetixd.dataplane.wiring import FlowWiring, ToNode
from chronetixd.flows.worker_records import is_alive
from chronetixd.linux.pipes import is_pipe
from chronetixd.store.journal_file import StoredWorker
from chronetixd.workers.process import WorkerProcess

RETURN_S = 10.0
"""How long a living worker may take to reattach. It tries at least once a second."""

STATES = {
    "starting": WorkerState.STARTING,
    "started": WorkerState.STARTED,
    "draining": WorkerState.DRAINING,
}

RETURNING = "returning"
"""The state that is shown for a worker that lives and has not reattached yet."""

MAX_DEFERRED = 1000
"""Messages of one worker that may be deferred: a worker has little to report right after it has reattached."""

MAX_DEFERRED_DESCRIPTORS = 256
"""Descriptors that may come with the deferred messages of one worker."""

DEFERRED = (
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
"""Messages about routes and states. They cannot be handled before the state of all routes is known."""


@dataclass(frozen=True, slots=True)
class ReattachRequest:
    """A connected process that claims to be a worker. ``descriptors`` belong to the caller, except those that are
    removed from the list."""

    message: wire.Reattach
    descriptors: list[int]
    sock: socket.socket
    pid: int
    features: tuple[str, ...] = ()


class RecoveryRun(Protocol):
    """What a recovery needs of a flow."""

    def worker(self, node: str) -> WorkerProcess:
        """Return the process of ``node``."""

    def new_worker(self, node: str) -> WorkerProcess:
        """Make the object for the next process of ``node``."""

    def resubscribe(self, node: str) -> None:
        """Subscribe ``node`` to the topics that its manifest names."""

    def dispatch(self, event: core.FlowEvent) -> None:
        """Give ``event`` to the state machine."""

    def recovered(
        self,
        told: list[ToNode],
        lost: LostMemory | None,
        held: Sequence[tuple[str, wire.WireMessage, list[int]]],
        died: Mapping[str, Exit],
        stop: core.StopRequested | None,
    ) -> None:
        """Handle everything that was deferred, because all workers have reattached or died."""


class Recovery:
    """Recovers the workers of ``run``, one for each of ``nodes``; ``lives`` are the last records of them in an earlier
    daemon's journal. ``kept`` is the memory that outlived the daemon; it is closed at the end."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        run: RecoveryRun,
        wiring: FlowWiring,
        nodes: Sequence[str],
        lives: Sequence[StoredWorker],
        kept: RecoveredMemory,
    ) -> None:
        self._run = run
        self._wiring = wiring
        self._nodes = nodes
        self._kept = kept
        self._reattached: dict[str, rebuild.ReattachedMemory] = {}
        self._died: dict[str, Exit] = {}
        self._late: dict[str, str] = {}
        """By node: how a worker died that died under this daemon, as the beginning of a predicate."""
        self._stop: core.StopRequested | None = None
        self._abandoned = False
        self._lives = {life.node: life for life in lives}
        self._deferred: list[tuple[str, wire.WireMessage, list[int]]] = []
        self.awaited = {life.node for life in lives if is_alive(life)}
        """Nodes whose worker lives and has not reattached yet."""
        self._exits = {
            life.node: kept.exit(life.node, life.incarnation, life.pid)
            for life in lives
            if life.phase == "born" and life.node not in self.awaited
        }
        self.finished = {life.node for life in lives if life.phase == "gone" and life.well}
        """Nodes that had finished. For a node whose exit was not reported, its memory shows that."""
        self.finished |= {node for node, ended in self._exits.items() if ended == Exit(code=0) and kept.closed(node)}
        self._deadline = loop.call_later(RETURN_S, self._too_late)

    def state(self, node: str) -> str | None:
        """Return the state to show for a node whose worker is awaited or has died meanwhile; None for any other
        node."""
        if node in self.awaited:
            return RETURNING
        return str(WorkerState.EXITED) if node in self._died else None

    def begin(self) -> None:
        """Watch the workers that live, and note the others as dead."""
        for node in self._nodes:
            if node in self.finished:
                continue
            worker = self._run.new_worker(node)
            life = self._lives.get(node)
            worker.incarnation = life.incarnation if life is not None else 0
            if node in self.awaited:
                assert life is not None
                try:
                    worker.expect(life.pid, os.pidfd_open(life.pid))
                    continue
                except ProcessLookupError:
                    self.awaited.discard(node)
            self._died[node] = self._exits.get(node, Exit())
        self._complete_if_all()

    def reattached(self, request: ReattachRequest) -> None:
        """Take back the worker that sent ``request``, with its memory. Raises ChronetixError when the process is not an
        awaited worker or offers what it may not, and OSError when no descriptors are left. The socket then stays the
        caller's."""
        message = request.message
        node = message.node
        life = self._lives.get(node)
        if node not in self.awaited or life is None or not self._proves(life, message, request.pid):
            raise error("reattach-refused", flow=message.flow, node=node, reason="it is not the worker that is awaited")
        at = len(request.descriptors) - 2 * message.pipes
        if not all(map(is_pipe, request.descriptors[at:])):
            raise error("descriptor-refused", what=f"stdout and stderr of node {node!r}", reason="they are no pipes")
        pipes, request.descriptors[at:] = request.descriptors[at:], []
        self._run.worker(node).features = request.features
        try:
            self._reattached[node] = self._wiring.reattached(node, message, request.descriptors)
            self._run.worker(node).connect(request.sock, pipes)
        finally:
            for fd in pipes:
                os.close(fd)
        self._run.resubscribe(node)
        self.awaited.discard(node)
        self._run.dispatch(core.WorkerChanged(node, HasReattached(STATES[message.state])))
        self._complete_if_all()

    def defers(self, node: str, message: wire.WireMessage, descriptors: list[int]) -> bool:
        """Defer ``message`` if it can only be handled after the recovery, and take over its descriptors. Returns
        whether it was deferred. Raises ProtocolError for a worker that sends too many such messages."""
        if not isinstance(message, DEFERRED):
            return False
        held = [len(brought) for each, _, brought in self._deferred if each == node]
        if len(held) >= MAX_DEFERRED or sum(held) + len(descriptors) > MAX_DEFERRED_DESCRIPTORS:
            raise error("unexpected-message", type=type_of(message), when="so often, before all workers are back")
        self._deferred.append((node, message, list(descriptors)))
        descriptors.clear()
        return True

    @staticmethod
    def _proves(life: StoredWorker, message: wire.Reattach, pid: int) -> bool:
        same = pid == life.pid and message.incarnation == life.incarnation
        return same and hmac.compare_digest(message.token.encode(), life.token.encode())

    def ended(self, node: str, ended: Exit) -> None:
        """Note that the process of ``node`` has ended during the recovery."""
        who = "it" if node in self.awaited else "another worker"
        self._late.setdefault(node, f"died when {who} had not reattached to this daemon yet")
        self._died[node] = ended
        self.awaited.discard(node)
        self._complete_if_all()

    def stop(self, event: core.StopRequested) -> bool:
        """Note a request to end the flow. Returns True when it can be carried out at once."""
        if event.mode is core.StopMode.KILL:
            return True
        self._stop = event
        return False

    def abandon(self) -> None:
        """Stop the recovery and close the memory that outlived the daemon."""
        self._abandoned = True
        self._deadline.cancel()
        self._kept.close()

    def _too_late(self) -> None:
        for node in tuple(self.awaited):
            self._late[node] = f"was killed, because it had not reattached to this daemon within {RETURN_S:g} s"
            self._run.worker(node).signal(kill=True)

    def _complete_if_all(self) -> None:
        if self.awaited or self._abandoned:
            return
        self._deadline.cancel()
        dead = {node: self._lives[node].incarnation if node in self._lives else 0 for node in self._died}
        lost = None
        try:
            told = self._wiring.take_over(self._reattached, dead, self.finished, self._kept, self._late)
        except LostMemory as reason:
            lost, told = reason, []
        self._kept.close()
        self._run.recovered(told, lost, self._deferred, self._died, self._stop)
