"""A standby: the successor of a worker that still runs. It is spawned, and its plugin is constructed.

It has no memory and no routes yet, and nothing depends on it: any failure ends only the standby, and is reported once
by ``on_lost``. The journal has no record of it until its flow takes it over, so it dies with the daemon.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from chronetix.protocol import handshake
from chronetix.protocol import messages as wire
from chronetix.protocol.errors import ChronetixError, LocalError, error
from chronetix.protocol.framing import type_of
from chronetixd.bus.event_bus import BusMessage
from chronetixd.core.deliveries import Deliveries
from chronetixd.core.reason import explain
from chronetixd.core.worker import Exit
from chronetixd.flows.context import Services
from chronetixd.flows.plan import NodePlan
from chronetixd.workers.process import SILENT_EXIT_S, Callbacks, WorkerProcess

NO_HANDOVER = "cannot stand by: its program does not know the feature 'handover' of PROTOCOL.md"


class Standby:
    """A worker that stands by for the node of ``plan`` of ``flow``, as ``incarnation``."""

    def __init__(
        self,
        services: Services,
        flow: str,
        plan: NodePlan,
        base_dir: str,
        incarnation: int,
        deliveries: Deliveries,
        on_ready: Callable[[str], None],
        on_lost: Callable[[str, str], None],
    ) -> None:
        self.node = plan.manifest.node
        self._services = services
        self._plan = plan
        self._base_dir = base_dir
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._said_ready = self._greeted = self._dismissed = self._failed = False
        self._why = ""
        self.worker = WorkerProcess(
            services.loop,
            flow,
            self.node,
            services.logs,
            Callbacks(self._spawned, self._spawn_failed, self._received, self._connection_ended, self._exited),
            services.sandboxes,
            plan.manifest.resource_claims,
            deliveries,
            services.max_frame,
        )
        self.worker.incarnation = incarnation

    @property
    def alive(self) -> bool:
        """Whether it has a process and was not dismissed."""
        return self.worker.alive and not self._dismissed and not self._failed

    def begin(self) -> None:
        """Start its process; a failure is reported by ``on_lost``."""
        try:
            self._services.start(self.worker, self._plan, self._base_dir)
        except OSError as refused:
            self._spawn_failed(self.node, str(refused))

    def dismiss(self) -> None:
        """Kill it, because it is not needed. Idempotent."""
        if not self._dismissed:
            self._dismissed = True
            self._services.bus.drop(self.worker)
            self.worker.signal(kill=True)

    # -- events of its process -----------------------------------------------------------------------------

    def _spawned(self, _node: str, _pid: int) -> None:
        if self._dismissed:
            self.worker.signal(kill=True)

    def _spawn_failed(self, node: str, why: str) -> None:
        self._failed = True
        if not self._dismissed:
            self._services.loop.call_soon(self._on_lost, node, f"could not be spawned: {why}")

    def _received(self, node: str, message: wire.WireMessage, _descriptors: list[int]) -> None:
        match message:
            case wire.Hello() if not self._greeted:
                self._hello(message)
            case _ if not self._greeted:
                raise error("unexpected-message", type=type_of(message), when="before the hello")
            case wire.Ready() if not self._said_ready:
                self._said_ready = True
                self._on_ready(node)
            case wire.Fault(phase=phase, error=name, message=text):
                self._why = f"failed in phase {phase!r}: {name}: {text}"[:4096]
            case wire.Log():
                self.worker.logged(message)
            case _ if isinstance(message, BusMessage):
                self._services.bus.handle(self.worker, message)
            case wire.Pong():
                pass
            case _:
                raise error("unexpected-message", type=type_of(message), when="from a worker that stands by")

    def _hello(self, hello: wire.Hello) -> None:
        self._greeted = True
        services = self._services
        reply = handshake.answer(
            hello,
            daemon=services.daemon,
            roles=("worker",),
            features=wire.WORKER_FEATURES,
            max_frame=services.max_frame,
        )
        self.worker.send(reply)
        if isinstance(reply, wire.Failure):
            self._fault(f"was refused: {reply.message}")
        elif wire.HANDOVER not in hello.features:
            self._fault(NO_HANDOVER)
        else:
            self.worker.features = tuple(hello.features)
            told = self._plan.configure
            self.worker.send(msgspec.structs.replace(told, standby=True, incarnation=self.worker.incarnation))

    def _fault(self, why: str) -> None:
        self._why = self._why or why
        self.worker.signal(kill=True)

    def _connection_ended(self, _node: str, fault: ChronetixError | None) -> None:
        if isinstance(fault, LocalError):
            self._fault(f"could not be served: {fault}")
        elif fault is not None:
            self._fault(f"broke the protocol: {fault}")
        elif self.worker.alive:
            self._services.loop.call_later(SILENT_EXIT_S, self._went_silent)

    def _went_silent(self) -> None:
        if self.worker.alive and not self._dismissed:
            self._fault("closed its control socket and lives on")

    def _exited(self, node: str, ended: Exit) -> None:
        self._failed = True
        self._services.bus.drop(self.worker)
        if self._dismissed:
            return
        death = self.worker.exit_record(ended, ())
        self._services.exit_records.add(death)
        self._on_lost(node, self._why or explain(ended, death))
