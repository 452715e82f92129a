"""A whole flow in one process and one thread, with the semantics that it has under the daemon: the same plugins, the
same rings, credits, fan-out, end of stream, timers and event bus.

It is cooperative. Consumers go first, then each source makes a few items. A send that finds no credit drives the
consumers of its routes until there is one; if all credits are held by consumers that wait for more, nothing could
ever go on, and the flow fails saying so. A drain ends the sources; the rest ends as its inputs end. Whose turn it
is, is one decision, made of the state of all nodes and routes: that is what this file is.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from chronetix.nodeworker.api.outputs import Origin, Outputs
from chronetix.nodeworker.api.plugin import is_asynchronous
from chronetix.nodeworker.engine.load import load
from chronetix.nodeworker.engine.node import Node
from chronetix.nodeworker.inprocess.local_bus import LocalBus, NodeHost, OnLog, OnPublish
from chronetix.nodeworker.inprocess.member import TURN_NS, Aborted, EndTimeout, FlowFailed, Member
from chronetix.nodeworker.memory.arena_trim import ArenaTrim
from chronetix.nodeworker.memory.wiring import NO_HUGEPAGES, Drop, Grow, OnGaveUp, build
from chronetix.protocol.messages import Configure, Deliver, Tick
from chronetix.shm import Consumer, Doorbell, Loan, Outlet, Producer, RouteView, WouldBlock, line

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from chronetix.nodeworker.inprocess.async_inprocess import AsyncMember, SharedEventLoop
    from chronetix.shm._native import RouteSnapshot

T = TypeVar("T")

END_S = 5.0
"""How long tasks of asynchronous plugins may take to end when they are cancelled; the daemon's ``end_timeout``."""

TURNS = 64
"""Turns of the loop without a pause after which it looks whether memory can be given back."""


@dataclass(slots=True)
class RunningTimer:
    """A running timer."""

    member: Member
    id: str
    interval_ns: int
    due_ns: int
    sequence: int = 0
    """Of the last tick: n is due n intervals after the start, as under the daemon."""


class Deployment:
    """The nodes of ``configs``, wired to each other. ``find`` loads a node's artifact."""

    def __init__(
        self,
        configs: Sequence[Configure],
        *,
        find: Callable[[Configure], Any] = lambda config: load(config.uri, config.base_dir, config.kind),
        on_log: OnLog = lambda *_: None,
        on_publish: OnPublish = lambda *_: None,
        handovers: Mapping[str, Any] | None = None,
    ) -> None:
        """``handovers``: what predecessors have left to nodes."""
        self.bell = Doorbell()
        """What the one thread sleeps on."""
        self._members: dict[str, Member] = {}
        self._bus = LocalBus(on_publish, self._await_reply, self._mail_has_come)
        self._event_loop: SharedEventLoop | None = None
        self._alarms: list[RunningTimer] = []
        self._failure: FlowFailed | None = None
        self._draining = False
        self._turn_ns = time.monotonic_ns()
        """When consumers had their last turn because a producer had been at work for long."""
        self._find = find
        self._handovers = handovers or {}
        self._on_log = on_log
        self._consumers: dict[str, tuple[Member, Consumer]] = {}
        self._views: dict[str, RouteView] = {}
        self._giving: list[ArenaTrim] = []
        for config in configs:
            self._add(config)
        self._link()
        self._sinks_first = _sinks_first(list(self._members.values()))

    @property
    def results(self) -> dict[str, Any]:
        """Each finished node's result."""
        return {name: member.result for name, member in self._members.items() if member.finished}

    def snapshots(self) -> dict[str, RouteSnapshot]:
        """Each data route's counters."""
        return {route: view.snapshot() for route, view in self._views.items()}

    def drain(self) -> None:
        """End the sources; from any thread or signal handler. ``run`` returns when the rest has ended."""
        self._draining = True
        self.bell.ring()

    def item_of(self, node: str) -> int:
        """The number of the last item that a source has sent."""
        return self._members[node].node.step.item

    def settle(self, node: str) -> None:
        """After a failure let ``node`` take what was sent to it."""
        self._members[node].consume()

    def post(self, node: str, event: Tick | Deliver) -> None:
        """Put an event into a node's mailbox."""
        self._members[node].mailbox.append(event)

    def run(self, *, until_idle: bool = False) -> None:
        """Until every node has finished; with ``until_idle`` nodes that wait for timers or messages are drained as
        soon as nothing else is left to do. Raises FlowFailed."""
        try:
            self._construct()
            for member in self._sinks_first:
                self._begin(member)
            self._start_timers()
            self._loop(until_idle)
            self._refuse_to_go_on()
        except Aborted:
            assert self._failure is not None
            self._end_at_once(self._failure.node)
            raise self._failure from self._failure.__cause__
        except BaseException:
            self._end_at_once()
            raise

    def _refuse_to_go_on(self) -> None:
        """After a node has failed, whatever plugin has caught that. Raises Aborted."""
        if self._failure is not None:
            raise Aborted

    def _end_at_once(self, failed: str = "") -> None:
        for member in reversed(self._sinks_first):
            member.end_at_once(failed=member.name == failed)

    def close(self, limit_s: float = END_S) -> None:
        """Give back all memory and descriptors. Raises EndTimeout when plugins have left tasks that do not end within
        ``limit_s``."""
        hangs = ""
        try:
            if self._event_loop is not None:
                hangs = self._event_loop.close(limit_s)
        finally:
            for view in self._views.values():
                view.close()
            for member in self._members.values():
                member.wiring.close()
            self.bell.close()
        if hangs:
            raise EndTimeout(f"the flow did not end within {limit_s:.3g} s and was ended: {hangs}")

    # -- setting up ---------------------------------------------------------------------------------------------

    def _add(self, config: Configure) -> None:
        grow, drop = self._growing(config.node), self._dropping(config.node)
        wiring = build(config, grow, drop, self.bell, on_gave_up=_telling(config.node, self._on_log))
        if wiring.arena is not None:
            self._giving.append(ArenaTrim(wiring.arena))
        outputs = Outputs(config.outputs, list(wiring.producers.values()), partial(self._outlet, config.budget_ns))
        host = NodeHost(self._bus, config.node, self._on_log)
        member = Member(Node(config, wiring.inlet(), outputs, host), wiring, self._fail, self._bus.reply)
        self._members[config.node] = member
        if wiring.lacks_hugepages(config):
            member.node.ctx.log.warning(NO_HUGEPAGES)
        self._bus.add(member)
        for route, consumer in wiring.consumers.items():
            self._consumers[route] = (member, consumer)

    def _link(self) -> None:
        for member in self._members.values():
            segments = member.wiring.arena.segments if member.wiring.arena else ()
            for route, producer in member.wiring.producers.items():
                consumer = self._consumers[route][1]
                for index, descriptor, _ in segments:
                    consumer.add_segment(index, descriptor)
                _join(producer, consumer, self.bell)
                self._views[route] = RouteView(producer.fd, consumer.fd)

    def _construct(self) -> None:
        """All artifacts are loaded before the first plugin is made, as under the daemon."""
        found: dict[str, Any] = {}

        def find(member: Member) -> None:
            member.node.phase = "load"
            found[member.name] = self._find(member.node.config)

        for member in self._members.values():
            member.guarded(partial(find, member))
        for name, member in self._members.items():
            asynchronous = is_asynchronous(found[name])
            if asynchronous:
                outputs = member.node.outputs
                member.node.rewire(Outputs(outputs.ports, outputs.producers, member.wiring.outlet))
            member.guarded(partial(member.node.construct, found[name]))
            member.node.ctx.handover = self._handovers.get(name)
            if asynchronous:
                member.asynchronous = self._on_event_loop(member)

    def _on_event_loop(self, member: Member) -> AsyncMember:
        from chronetix.nodeworker.inprocess.async_inprocess import SharedEventLoop  # what few flows need

        self._event_loop = self._event_loop or SharedEventLoop(self.bell)
        return self._event_loop.add(member.node, member.mailbox, self._bus.reply)

    def _begin(self, member: Member) -> None:
        """Call its ``on_start``; meanwhile those it sends to go on, and they have begun before it."""
        member.begin()
        while member.asynchronous is not None and not member.asynchronous.begun:
            if not member.serve() and not self.drive(member.node.outputs.producers):
                self._sleep()

    def _start_timers(self) -> None:
        now = time.monotonic_ns()
        for member in self._members.values():
            for timer in member.node.config.timers:
                self._alarms.append(RunningTimer(member, timer.id, timer.interval_ns, now + timer.interval_ns))

    def _growing(self, node: str) -> Grow:
        """What the node's arena calls. It must not own this object: the collector cannot look into an arena."""
        this = weakref.ref(self)

        def grow(index: int, descriptor: int, _size: int) -> None:
            deployment = this()
            if deployment is not None:
                deployment._grow(node, index, descriptor)

        return grow

    def _grow(self, node: str, index: int, descriptor: int) -> None:
        wiring = self._members[node].wiring
        for route in wiring.producers:
            self._consumers[route][1].add_segment(index, descriptor)
        assert wiring.arena is not None
        wiring.arena.confirm(index)

    def _dropping(self, node: str) -> Drop:
        """As :meth:`_growing`, for segments that were given back."""
        this = weakref.ref(self)

        def drop(index: int) -> None:
            deployment = this()
            if deployment is not None:
                deployment._drop(node, index)

        return drop

    def _drop(self, node: str, index: int) -> None:
        wiring = self._members[node].wiring
        for route in wiring.producers:
            self._consumers[route][1].drop_segment(index)
        assert wiring.arena is not None
        wiring.arena.forget(index)

    def _outlet(self, budget_ns: int, producers: Sequence[Producer]) -> _Outlet:
        return _Outlet(self, producers, Outlet(producers, self.bell, budget_ns=budget_ns))

    # -- running ------------------------------------------------------------------------------------------------

    def _loop(self, until_idle: bool) -> None:
        members = self._sinks_first
        sources = [member for member in members if member.node.plugin.produce is not None]
        for turn in count(1):
            self._refuse_to_go_on()
            if turn % TURNS == 0:
                self._give_back()
            if self._draining:
                self._drain_sources()
            steps = self._event_loop.steps if self._event_loop is not None else 0
            worked = self._events()
            for member in members:
                worked |= member.consume(member.burst) > 0
                if member.ending:
                    worked |= member.end_if_done()
            for member in sources:
                self._turn_ns = time.monotonic_ns()
                worked |= member.produce()
            if worked or (self._event_loop is not None and self._event_loop.steps != steps):
                continue
            for member in members:
                worked |= member.end_if_done()
            if all(member.finished for member in members):
                return
            if worked:
                continue
            self._refuse_deadlock()
            if until_idle and (self._event_loop is None or self._event_loop.quiet):
                self._draining = True
            else:
                self._sleep()

    def _consume(self) -> int:
        """Every frame that somebody can take now. An asynchronous consumer that waits for credits does not do that."""
        return sum(member.consume() for member in self._sinks_first)

    def _events(self) -> bool:
        """Due ticks and waiting messages of every member that may go on."""
        if self._alarms:
            self._ring_alarms()
        worked = False
        for member in self._members.values():
            worked |= member.serve()
        if self._event_loop is not None:
            self._bus.tell_of_ended()
        return worked

    def _mail_has_come(self) -> None:
        if self._event_loop is not None:
            self._event_loop.notify()

    def _refuse_deadlock(self) -> None:
        """Nothing can be done now: if asynchronous nodes wait for credits, nobody will ever return one."""
        if self._event_loop is None or not self._event_loop.stuck or self._alarms:
            return
        for member in self._members.values():
            if member.asynchronous is not None and member.asynchronous.stuck:
                producers = member.node.outputs.producers
                member.guarded(partial(_raise, self._deadlock(producers)))

    def _ring_alarms(self) -> None:
        now = time.monotonic_ns()
        for alarm in self._alarms:
            if now < alarm.due_ns or alarm.member.node.ctx.stopping:
                continue
            late = (now - alarm.due_ns) // alarm.interval_ns
            due = alarm.due_ns + late * alarm.interval_ns
            alarm.sequence += late + 1
            alarm.member.mailbox.append(Tick(id=alarm.id, sequence=alarm.sequence, due_ns=due, missed=late))
            alarm.due_ns = due + alarm.interval_ns

    def _sleep(self, until_ns: int | None = None) -> None:
        """Until a timer is due, ``until_ns``, or something rings."""
        dues = [alarm.due_ns for alarm in self._alarms if not alarm.member.finished]
        if until_ns is not None:
            dues.append(until_ns)
        left = self._give_back()
        if left is not None:
            dues.append(time.monotonic_ns() + int(left * 1e9))
        wait_ns = max(0, min(dues) - time.monotonic_ns()) if dues else -1
        if self._event_loop is not None:
            self._event_loop.sleep(wait_ns / 1e9 if dues else None)
        else:
            self.bell.wait(wait_ns)

    def _give_back(self) -> float | None:
        """Memory that bursts have left, where that is due; seconds until the next look, None if none is needed."""
        now = time.monotonic()
        for giving in self._giving:
            if giving.left(now) == 0:
                giving.look(now)
        lefts = [left for giving in self._giving if (left := giving.left(now)) is not None]
        return min(lefts, default=None)

    def _drain_sources(self) -> None:
        for member in self._members.values():
            if not member.finished:
                member.drain()

    def _await_reply(self, until_ns: int) -> None:
        """Let the other nodes work while one waits for a reply."""
        if not self._events():
            self._sleep(until_ns)

    def drive(self, producers: Iterable[Producer]) -> bool:
        """Let the consumers of ``producers`` take what is there; whether any took something."""
        self._refuse_to_go_on()
        worked = False
        for producer in producers:
            member = self._consumers[producer.route][0]
            worked |= member.consume(producer.outstanding) > 0
            if member.ending:
                worked |= member.end_if_done()
        return worked

    def sent(self, producers: Iterable[Producer]) -> None:
        """A plugin that takes its time between two sends keeps nobody waiting for what it has sent."""
        now_ns = time.monotonic_ns()
        if now_ns - self._turn_ns > TURN_NS:
            self.drive(producers)
            self._events()
            self._turn_ns = time.monotonic_ns()

    def wait_for_credit(self, producers: Sequence[Producer], until_ns: int | None) -> None:
        """Something has to happen elsewhere before a send can succeed. Raises RuntimeError when nothing can."""
        if self.drive(producers) or self._events() or (self._event_loop is not None and self._consume() > 0):
            return
        limits = [producer.limit_ns for producer in producers if producer.limit_ns]
        if limits:
            given_up_ns = time.monotonic_ns() + min(limits)
            self._sleep(given_up_ns if until_ns is None else min(until_ns, given_up_ns))
            return
        if (
            until_ns is None
            and not self._alarms
            and (self._event_loop is None or self._event_loop.quiet or self._event_loop.stuck)
        ):
            raise self._deadlock(producers)
        self._sleep(until_ns)

    def _deadlock(self, producers: Sequence[Producer]) -> RuntimeError:
        full = next((p for p in producers if p.outstanding), producers[0])
        holder = self._consumers[full.route][0].name
        return RuntimeError(
            f"route {full.route}: all its credits are with node {holder}, which waits for more frames and returns "
            "none; let it release frames earlier (copy what it keeps), or give the route a larger buffer"
        )

    def _fail(self, failure: FlowFailed) -> None:
        if self._failure is None:
            self._failure = failure


def _join(producer: Producer, consumer: Consumer, bell: Doorbell) -> None:
    """Link both ends of a route, which sleep on the same doorbell."""
    near, far = line()
    try:
        producer.link(consumer.fd, near, bell)
        consumer.link(producer.fd, far, bell)
    finally:
        os.close(near)
        os.close(far)


def _telling(node: str, on_log: OnLog) -> OnGaveUp:
    def gave_up(route: str, waited_ns: int) -> None:
        text = "a consumer kept this node waiting past the route's limit; nothing more is sent to it"
        on_log(node, "warning", text, {"route": route, "waited_ms": waited_ns // 1_000_000})

    return gave_up


class _Outlet:
    """``shm.Outlet`` whose waiting is letting others work. A send that must not wait drives them too before it raises
    WouldBlock, because nobody else would before its caller tries again."""

    def __init__(self, deployment: Deployment, producers: Sequence[Producer], outlet: Outlet) -> None:
        self._deployment = deployment
        self._producers = producers
        self._send = outlet.send
        self._loan = outlet.loan
        self._send_many = outlet.send_many
        self.add = outlet.add
        self.sweep = outlet.sweep
        self.encode_with = outlet.encode_with

    def send(self, data: Buffer, timeout_ns: int = -1, origin: Origin = None) -> int:
        try:
            sent = self._send(data, 0, origin)
        except WouldBlock as reason:
            return self._retrying(lambda: self._send(data, 0, origin), timeout_ns, reason)
        self._deployment.sent(self._producers)
        return sent

    def send_many(self, data: Buffer, size: int, timeout_ns: int = -1, origin: Origin = None) -> int:
        try:
            return self._send_many(data, size, 0, origin)
        except WouldBlock as reason:
            return self._retrying(lambda: self._send_many(data, size, 0, origin), timeout_ns, reason)

    def loan(self, length: int, timeout_ns: int = -1, origin: Origin = None) -> Loan:
        try:
            return self._loan(length, 0, origin)
        except WouldBlock as reason:
            return self._retrying(lambda: self._loan(length, 0, origin), timeout_ns, reason)

    def _retrying(self, attempt: Callable[[], T], timeout_ns: int, refused: WouldBlock) -> T:
        if timeout_ns == 0:
            self._deployment.drive(self._producers)
            raise refused
        until = None if timeout_ns < 0 else time.monotonic_ns() + timeout_ns
        while until is None or time.monotonic_ns() < until:
            self._deployment.wait_for_credit(self._producers, until)
            try:
                return attempt()
            except WouldBlock:
                continue
        raise refused


def _raise(reason: BaseException) -> None:
    raise reason


def _sinks_first(members: list[Member]) -> list[Member]:
    """Consumers before their producers. Routes have no cycles: the contract refuses them."""
    by_name = {member.name: member for member in members}
    ordered: dict[str, Member] = {}

    def visit(member: Member) -> None:
        for port in member.node.config.outputs:
            if port.peer not in ordered:
                visit(by_name[port.peer])
        ordered.setdefault(member.name, member)

    for member in members:
        visit(member)
    return list(ordered.values())
