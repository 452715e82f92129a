"""Workers of the search, as simply as they can be while true to ``nodeworker``: memories are lists, a step is one
message that is read, one frame that is taken, passed on, or given back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chronetix.protocol import messages as wire

if TYPE_CHECKING:
    from tests.chronetixd.core.search.world import World

Frame = tuple[str, int, bool]
"""Which source, which item, redelivered."""


@dataclass(eq=False)
class Ring:
    """Memory of a producer."""

    epoch: int
    base_seq: int
    credits: int
    resume: int = 0
    to: str = ""
    frames: list[Frame] = field(default_factory=list)
    closed: bool = False


@dataclass(eq=False)
class Credit:
    """Memory of a consumer."""

    returned: set[int] = field(default_factory=set)
    next: int = 0


@dataclass(eq=False)
class Out:
    """An end that sends."""

    ring: Ring
    handle: int
    credit: Credit | None = None
    line: int = -1
    closed: bool = False

    @property
    def room(self) -> bool:
        """There is a credit, or nobody is waited for."""
        if self.closed:
            return True
        return self.credit is not None and len(self.ring.frames) - len(self.credit.returned) < self.ring.credits


@dataclass(eq=False)
class In:
    """An end that takes. ``end``: the sequence number at which its producer has done with it."""

    route: str
    epoch: int
    base_seq: int
    credit: Credit
    handle: int
    ring: Ring | None = None
    position: int = 0
    again: list[int] = field(default_factory=list)
    marked_below: int = 0
    end: int | None = None
    line: int = -1

    def waiting(self) -> int | None:
        """The position of the next frame."""
        if self.again:
            return self.again[0]
        there = self.ring is not None and self.position < len(self.ring.frames)
        return self.position if there else None

    def link(self, ring: Ring, predecessor: Credit | None) -> None:
        """As SPEC 10.2 says."""
        self.ring = ring
        if predecessor is not None:
            self.credit.returned |= predecessor.returned
            last = max(predecessor.returned, default=-1) + 1
            self.again = [at for at in range(last) if at not in self.credit.returned]
            self.position = last
            self.marked_below = self.credit.next = max(predecessor.next, last)

    @property
    def empty(self) -> bool:
        """Its producer has done with it, and everything was given back."""
        if self.end is None:
            return False
        return len(self.credit.returned) == self.end - self.base_seq


class Worker:
    """One process of ``node``. ``source``: it makes items as long as the world has some for it."""

    def __init__(self, world: World, node: str) -> None:
        self.world, self.node = world, node
        self.inbox: deque[tuple[Any, tuple[int, ...]]] = deque()
        self.said: deque[tuple[Any, tuple[int, ...]]] = deque()
        self.mailbox: deque[Any] = deque()
        self.outs: dict[str, Out] = {}
        self.done: dict[tuple[str, int], Out] = {}
        self.ins: dict[str, list[In]] = {}
        self.tell_ended_inputs: set[str] = set()
        self.resumes: dict[str, int] = {}
        self.state = "hello"
        self.alive = True
        self.item = 0
        self.held: tuple[In, int, Frame] | None = None
        self.sent = False
        self.ending = ""
        self.is_source = False
        self.said.append((wire.Hello(protocol=[1], role="worker", features=[wire.HANDOVER], pid=1), ()))

    # -- one step ------------------------------------------------------------------------------------------

    def step_reader(self) -> bool:
        """Read a message. Before it is ready only what it waits for."""
        if not self.alive or not self.inbox:
            return False
        message, handles = self.inbox.popleft()
        self._read(message, handles)
        return True

    def step_plugin(self) -> bool:
        """What the plugin's thread does next; False when it waits."""
        if not self.alive or self.state != "started":
            return False
        if self.held is not None:
            return self._go_on_with_frame()
        if self.mailbox:
            self._event(self.mailbox.popleft())
            return True
        if self._tell_empty():
            return True
        if self._take():
            return True
        if self.ending or self._inputs_over():
            self._finish()
            return True
        return self._make_item()

    def _read(self, message: Any, handles: tuple[int, ...]) -> None:
        match message:
            case wire.Configure():
                self._configure(message)
            case wire.Link():
                self._link(message, iter(handles))
            case wire.Start():
                self.state = "started"
                self.said.append((wire.Started(), ()))
            case wire.Extend() if message.outputs or message.leave:
                self.mailbox.append(message)
            case wire.Extend():
                made = [self._input(port) for port in message.inputs]
                offer = wire.Offer(credits=[each.route for each in made])
                self.said.append((offer, tuple(each.handle for each in made)))
            case wire.Conclude(route=route, seq=seq):
                assert route in self.ins, f"{self.node} has no input {route}"
                self.tell_ended_inputs.add(route)
                if self.ins[route]:
                    self.ins[route][-1].end = seq
            case wire.Drained(route=route, epoch=epoch):
                self.done.pop((route, epoch), None)
            case wire.Detach(route=route) | wire.Retract(route=route):
                if route in self.outs:
                    self.outs[route].closed = True
            case wire.Drain() | wire.Leave():
                self.mailbox.append(message)
            case _:
                raise AssertionError(message)

    def _configure(self, message: wire.Configure) -> None:
        self.is_source = not message.inputs
        self.item = min((port.resume for port in message.outputs), default=0)
        outs = [self._output(port, port.resume) for port in message.outputs]
        ins = [self._input(port) for port in message.inputs]
        offer = wire.Offer(rings=[port.route for port in message.outputs], credits=[each.route for each in ins])
        self.said.append((offer, tuple(each.handle for each in (*outs, *ins))))
        self.state = "offered"

    def _output(self, port: wire.Port, resume: int) -> Out:
        ring = Ring(port.epoch, port.base_seq, port.credits, resume if self.is_source else 0, port.peer)
        self.outs[port.route] = made = Out(ring, self.world.handle(ring))
        self.resumes[port.route] = resume
        return made

    def _input(self, port: wire.Port) -> In:
        credit = Credit()
        made = In(port.route, port.epoch, port.base_seq, credit, self.world.handle(credit))
        chain = self.ins.setdefault(port.route, [])
        if chain:
            assert chain[-1].epoch < port.epoch
            chain[-1].end = port.base_seq
        chain.append(made)
        return made

    def _link(self, message: wire.Link, handles: Iterator[int]) -> None:
        for at, route in enumerate(message.outputs):
            credit = self.world.memory[next(handles)]
            line = next(handles)
            out = self.outs.get(route)
            if message.epochs and (out is None or out.ring.epoch != message.epochs[at]):
                out = self.done.get((route, message.epochs[at]))
            if out is not None:
                before = out.credit
                out.credit, out.closed, out.line = credit, out.closed and before is None, line
        for link in message.inputs:
            ring, line, rest = self.world.memory[next(handles)], next(handles), [next(handles) for _ in link.segments]
            predecessor = self.world.memory[next(handles)] if link.predecessor else None
            assert not rest
            found = [each for each in self.ins.get(link.route, ()) if each.epoch == link.epoch]
            for each in found:
                each.link(ring, predecessor)
                each.line = line
        if self.state == "offered":
            assert all(out.credit is not None for out in self.outs.values()), "an output was left out"
            self.state = "ready"
            self.said.append((wire.Ready(), ()))
        else:
            routes = [*message.outputs, *(link.route for link in message.inputs)]
            self.said.append((wire.Linked(routes=routes), ()))

    # -- frames --------------------------------------------------------------------------------------------

    def _take(self) -> bool:
        for chain in self.ins.values():
            if not chain:
                continue
            end = chain[0]
            at = end.waiting()
            if at is None or end.ring is None:
                continue
            source, number, marked = end.ring.frames[at]
            if end.again:
                end.again.pop(0)
            else:
                end.position = at + 1
                end.credit.next = max(end.credit.next, end.position)
            self.held = end, at, (source, number, marked or at < end.marked_below)
            self.sent = False
            return True
        return False

    def _go_on_with_frame(self) -> bool:
        assert self.held is not None
        end, at, frame = self.held
        if not self.sent:
            if not all(out.room for out in self.outs.values()):
                return False
            self._send(frame)
            self.sent = True
            return True
        end.credit.returned.add(at)
        self.held = None
        return True

    def _send(self, frame: Frame) -> None:
        for out in self.outs.values():
            if not out.closed:
                source, number, marked = frame
                out.ring.frames.append((source, number, marked or (self.is_source and number <= out.ring.resume)))
        if not self.outs:
            self.world.ledger(self.node).append(frame)

    def _make_item(self) -> bool:
        if not self.is_source or not self.outs or self.item >= self.world.items:
            return False
        if not all(out.room for out in self.outs.values()):
            return False
        self.item += 1
        self._send((self.node, self.item, False))
        return True

    # -- between two frames --------------------------------------------------------------------------------

    def _event(self, event: Any) -> None:
        if isinstance(event, wire.Drain | wire.Leave):
            self.ending = "leave" if isinstance(event, wire.Leave) else "drain"
            return
        sent = max(self.item, *self.resumes.values()) if self.is_source and self.resumes else 0
        for route in event.leave:
            self.resumes.pop(route)
            out = self.outs.pop(route)
            out.ring.closed = True
            self.done[route, out.ring.epoch] = out
        made = []
        for port in event.outputs:
            base, resume = 0, sent
            if port.route in self.outs:
                earlier = self.outs.pop(port.route)
                assert port.epoch > earlier.ring.epoch
                self.done[port.route, earlier.ring.epoch] = earlier
                base = earlier.ring.base_seq + len(earlier.ring.frames)
                resume = max(self.item, self.resumes[port.route]) if self.is_source else 0
            made.append(self._output(_based(port, base), resume))
        offer = wire.Offer(rings=[port.route for port in event.outputs])
        self.said.append((offer, tuple(each.handle for each in made)))

    def _tell_empty(self) -> bool:
        for route, chain in list(self.ins.items()):
            if chain and chain[0].empty:
                end = chain.pop(0)
                self.said.append((wire.Drained(route=route, epoch=end.epoch), ()))
                if not chain and route in self.tell_ended_inputs:
                    del self.ins[route]
                return True
        return False

    def _inputs_over(self) -> bool:
        """All of its inputs have ended, of which it has some, or had."""
        if self.is_source:
            return False
        return all(self._over(chain) for chain in self.ins.values())

    @staticmethod
    def _over(chain: list[In]) -> bool:
        if not chain:
            return True
        last = chain[-1]
        ended = last.ring is not None and last.ring.closed and last.end is None
        return (
            len(chain) == 1
            and ended
            and last.ring is not None
            and last.position == len(last.ring.frames)
            and not last.again
        )

    def _finish(self) -> None:
        if self.ending != "leave":
            for out in self.outs.values():
                out.ring.closed = True
        self.said.append((wire.Finished(), ()))
        self.alive = False
        self.state = "exited"


def _based(port: wire.Port, base: int) -> wire.Port:
    fields = {name: getattr(port, name) for name in port.__struct_fields__}
    return wire.Port(**{**fields, "base_seq": base})
