"""One running program between a played daemon and played peers, and the steps that checks are made of.

Every wait goes through :meth:`Rig.until`: it serves the control socket and the peers until what is waited for is there,
and raises Failed when the program ends or the time is up. What the program says of itself is kept in ``heard``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from chronetix import shm
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.framing import type_of
from chronetix.protocol.messages import (
    Configure,
    Drain,
    Fault,
    Finished,
    Hello,
    InputLink,
    Link,
    Offer,
    Ping,
    Pong,
    Port,
    Ready,
    Segment,
    SegmentDropped,
    SegmentMapped,
    Start,
    Started,
    Welcome,
    WireMessage,
)
from chronetixctl.conformance.contents import known
from chronetixctl.conformance.control import PlayedDaemon
from chronetixctl.conformance.forge import Forge, ForgedMemory
from chronetixctl.conformance.forms import Failed, Form, NotChecked
from chronetixctl.conformance.offers import check_offer
from chronetixctl.conformance.peers import Arrived, Downstream, ForgedUpstream, Upstream
from chronetixctl.conformance.program import RunningProgram, Subject

M = TypeVar("M", bound=WireMessage)

SLICE_S: Final = 0.002
"""How long a wait sleeps at most before it looks at the peers again: it must not depend on the program's rings."""

QUIET_S: Final = 0.15
"""How long a check listens for what must not come."""


class Rig:
    """The surroundings of one program, for one check."""

    def __init__(self, subject: Subject, form: Form) -> None:
        self.subject = subject
        self.form = form
        self.heard: list[WireMessage] = []
        self.bell = shm.Doorbell()
        self.forge = Forge()
        self.upstreams: list[Upstream | ForgedUpstream] = []
        self.downstreams: list[Downstream] = []
        self.offers: list[tuple[Offer, list[int]]] = []
        self.segments: dict[int, int] = {}
        """The program's segments by index; the descriptors are ours."""
        self.confirms = True
        """Segments of the program are mapped and confirmed at once."""
        self.unconfirmed: list[int] = []
        self.retired: list[Downstream] = []
        self.config: Configure | None = None
        ours, theirs = socket.socketpair()
        self.daemon = PlayedDaemon(ours, subject.timeout_s)
        self.old_daemons: list[PlayedDaemon] = []
        self._kept: list[int] = []
        try:
            self.program = RunningProgram(subject, theirs)
        except OSError:
            self.daemon.close()
            raise
        finally:
            theirs.close()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the program, and give everything back."""
        self.program.end()
        for daemon in (self.daemon, *self.old_daemons):
            daemon.close()
        for down in (*self.downstreams, *self.retired):
            down.close()
        for up in self.upstreams:
            if isinstance(up, ForgedUpstream):
                up.close()
            else:
                up.arena.close()
        self.upstreams, self.downstreams, self.retired = [], [], []
        for descriptor in (*self._kept, *self.segments.values(), *(fd for _, fds in self.offers for fd in fds)):
            os.close(descriptor)
        self._kept, self.segments, self.offers = [], {}, []
        self.forge.close()
        self.bell.close()

    def keep(self, descriptor: int) -> int:
        """Close this descriptor at the end of the check."""
        self._kept.append(descriptor)
        return descriptor

    # -- waiting --------------------------------------------------------------------------------------------

    def until(
        self, done: Callable[[], bool], expected: str, limit_s: float | None = None, *, may_end: bool = False
    ) -> None:
        """Serve the program until ``done()``. Raises Failed when it ends before, unless it ``may_end``, or in time."""
        deadline = time.monotonic() + (self.subject.timeout_s if limit_s is None else limit_s)
        while True:
            self._serve()
            if done():
                return
            if not may_end and (self.daemon.closed or self.said(Fault)):
                self._lost(expected)
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failed(expected, self.seen("nothing came in time"))
            self._sleep(min(left, SLICE_S))

    def quiet(self, unwanted: Callable[[], bool], expected: str, limit_s: float = QUIET_S) -> None:
        """Serve the program for a moment. Raises Failed if ``unwanted()`` becomes true, or the program ends."""
        deadline = time.monotonic() + limit_s
        while (left := deadline - time.monotonic()) > 0:
            self._serve()
            if unwanted():
                raise Failed(expected, self.seen("it did not wait"))
            if self.daemon.closed or self.said(Fault):
                self._lost(expected)
            self._sleep(min(left, SLICE_S))

    def _sleep(self, limit_s: float) -> None:
        watched: list[int] = [self.bell.fileno(), *self.program.streams]
        if not self.daemon.closed:
            watched.append(self.daemon.fileno())
        ready, _, _ = select.select(watched, [], [], limit_s)
        for fd in ready:
            if fd in self.program.streams:
                self.program.read(fd)
        self.bell.clear()

    def _serve(self) -> None:
        try:
            for message, descriptors in self.daemon.receive():
                self._take(message, descriptors)
        except ChronetixError as reason:
            raise Failed("messages as PROTOCOL.md and protocol.cddl describe them", reason.message) from None
        self.take_frames()

    def take_frames(self) -> None:
        """Take what the program has sent to its consumers. Raises Failed for what the ABI forbids."""
        try:
            for down in self.downstreams:
                down.take()
        except shm.PeerFault as fault:
            raise Failed("memory as shm/SPEC.md section 8 demands", str(fault.args[0])) from None

    def _take(self, message: WireMessage, descriptors: list[int]) -> None:
        self.heard.append(message)
        if isinstance(message, Offer):
            self.offers.append((message, descriptors))
            at = len(message.rings) + len(message.credits)
            self.segments.update(zip(message.segments, map(os.dup, descriptors[at:]), strict=True))
        elif isinstance(message, Segment):
            self.segments[message.index] = descriptors[0]
            self.unconfirmed.append(message.index)
            if self.confirms:
                self.confirm_growth()
        elif isinstance(message, SegmentMapped):
            self._mapped(message)
        elif isinstance(message, SegmentDropped):
            self._dropped(message)
        else:
            for descriptor in descriptors:
                self.keep(descriptor)

    def confirm_growth(self) -> None:
        """Map the segments that the program has announced, and say so."""
        while self.unconfirmed:
            index = self.unconfirmed.pop(0)
            with self._faults("a segment as shm/SPEC.md section 1 demands"):
                for down in self.downstreams:
                    down.add_segment(index, self.segments[index])
            self.say(SegmentMapped(index=index))

    def _mapped(self, message: SegmentMapped) -> None:
        for up in self.honest:
            if (up.port.route, up.port.epoch) == (message.route, message.epoch):
                up.mapped.add(message.index)
                up.arena.confirm(message.index)

    def _dropped(self, message: SegmentDropped) -> None:
        if message.route:
            for up in self.honest:
                if (up.port.route, up.port.epoch) == (message.route, message.epoch):
                    up.arena.forget(message.index)
                    up.dropped.append(message.index)
            return
        descriptor = self.segments.pop(message.index, -1)
        if descriptor < 0:
            raise Failed("segment-dropped for a segment that was announced", f"index {message.index}")
        os.close(descriptor)
        with self._faults("a segment given back after all of its frames"):
            for down in self.downstreams:
                down.consumer.drop_segment(message.index)
        self.say(SegmentDropped(index=message.index))

    @contextlib.contextmanager
    def _faults(self, expected: str) -> Any:
        try:
            yield
        except shm.PeerFault as fault:
            raise Failed(expected, str(fault.args[0])) from None

    def _lost(self, expected: str) -> None:
        """Raises Failed: the program has ended, or has said that it fails."""
        self.program.await_end(self.subject.timeout_s if self.daemon.closed else 0.2)
        raise Failed(expected, self.seen())

    def seen(self, otherwise: str = "") -> str:
        """Return what has become of the program, for a failed check."""
        parts = []
        if (status := self.program.status) is not None:
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            parts.append(f"it {how}")
        elif self.daemon.closed:
            parts.append("it closed the control socket and runs on")
        elif otherwise:
            parts.append(otherwise)
        if faults := self.said(Fault):
            parts.append(f"fault in phase {faults[-1].phase}: {faults[-1].error}: {faults[-1].message}")
        parts.append(f"last message: {type_of(self.heard[-1])}" if self.heard else "it has sent no message")
        if printed := self.program.said():
            parts.append(f"printed: {printed}")
        return "; ".join(parts)

    def said(self, kind: type[M]) -> list[M]:
        """Return the messages of this kind that have come."""
        return [message for message in self.heard if isinstance(message, kind)]

    def await_said(self, kind: type[M], expected: str, count: int = 1, limit_s: float | None = None) -> M:
        """Wait for the message of this kind with that number, and return it."""
        self.until(lambda: len(self.said(kind)) >= count, expected, limit_s)
        return self.said(kind)[count - 1]

    def say(self, *messages: WireMessage, descriptors: Sequence[int] = ()) -> None:
        """Send messages. Raises Failed when the program does not read them any more."""
        try:
            self.daemon.send(*messages, descriptors=descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self._serve()
            self.program.await_end(self.subject.timeout_s)
            raise Failed(f"it reads {type_of(messages[0])}", self.seen("it closed the control socket")) from None
        except TimeoutError:
            raise Failed(f"it reads {type_of(messages[0])}", self.seen("it reads nothing")) from None

    # -- a life, step by step -------------------------------------------------------------------------------

    def needs_contents(self) -> None:
        """Raises NotChecked if the program's frames are not the kit's."""
        if not self.subject.contents:
            raise NotChecked("--contents none: the program does something else than to return frames unchanged")

    def needs_own_frames(self) -> None:
        """Raises NotChecked if the kit may not choose the frames."""
        if self.subject.sample is not None:
            raise NotChecked("--sample: the frames are not the kit's own")

    def begin(self) -> Hello:
        """Wait for its hello."""
        hello = self.await_said(Hello, "a hello", limit_s=self.subject.start_timeout_s)
        if hello.role != "worker" or 1 not in hello.protocol:
            raise Failed("role worker, and 1 among the protocol versions", f"{hello.role}, {hello.protocol}")
        return hello

    def input_ports(self, count: int, **fields: Any) -> list[Port]:
        """Ports of so many inputs."""
        return [self._port(self.subject.input, n, "upstream", fields) for n in range(count)]

    def output_ports(self, count: int, **fields: Any) -> list[Port]:
        """Ports of so many outputs."""
        return [self._port(self.subject.output, n, "downstream", fields) for n in range(count)]

    def _port(self, name: str, number: int, peer: str, fields: dict[str, Any]) -> Port:
        suffix = str(number + 1) if number else ""
        credits = fields.get("credits", 64)
        usual = {
            "content_type": self.subject.content_type,
            "topic": f"kit/{name}{suffix}",
            "credits": credits,
            "watermark": max(1, credits * 3 // 4),
            "credit_low": credits // 2,
        }
        return Port(route=f"{name}{suffix}", peer=f"{peer}{suffix}", **{**usual, **fields})

    def plan(
        self,
        inputs: Sequence[Port] | None = None,
        outputs: Sequence[Port] | None = None,
        *,
        first: int = 1 << 18,
        credits: int = 64,
        **fields: Any,
    ) -> Configure:
        """Make the ports, by default one of each that the form has, and honest peers for them."""
        ins = self.input_ports(self.form.inputs, credits=credits) if inputs is None else list(inputs)
        outs = self.output_ports(self.form.outputs, credits=credits) if outputs is None else list(outputs)
        self.upstreams = [self.upstream(port, first=first) for port in ins]
        self.downstreams = [Downstream(port, self.bell) for port in outs]
        config = Configure(
            flow="conformance",
            node="tested",
            plugin_id="tested",
            version="0.1.0",
            kind="Process",
            uri="file://tested",
            **{"inputs": ins, "outputs": outs, **fields},
        )
        self.config = config
        return config

    def upstream(self, port: Port, **more: Any) -> Upstream:
        """An honest producer for an input."""
        return Upstream(port, self.bell, announce=self._announce, withdraw=self._withdraw, **more)

    def forge_input(self, at: int = 0, **header: int) -> tuple[ForgedMemory, ForgedMemory]:
        """Put a forged producer in the place of an honest one: its RING and its segment, of 64 KiB."""
        ring, segment = self.forge.ring(**header), self.forge.memory(1 << 16)
        self.upstreams[at] = ForgedUpstream(self.upstreams[at].port, ring.fd, [(0, segment.fd)])
        return ring, segment

    @property
    def forged(self) -> ForgedUpstream:
        """The forged producer."""
        return next(up for up in self.upstreams if isinstance(up, ForgedUpstream))

    def arena_bytes(self) -> int:
        """Return how large all segments of the program are together."""
        return sum(os.fstat(descriptor).st_size for descriptor in self.segments.values())

    def _announce(self, up: Upstream, index: int, descriptor: int) -> None:
        up.inodes[index] = os.fstat(descriptor).st_ino
        self.say(Segment(index=index, route=up.port.route, epoch=up.port.epoch), descriptors=[descriptor])

    def _withdraw(self, up: Upstream, index: int) -> None:
        self.say(SegmentDropped(index=index, route=up.port.route, epoch=up.port.epoch))

    def greet(self, features: Sequence[str] = ()) -> None:
        """Answer its hello, with the configuration right behind."""
        self.say(_welcome(features), self.configured)

    def welcome(self, features: Sequence[str] = ()) -> None:
        """Answer its hello alone."""
        self.say(_welcome(features))

    def configure(self) -> None:
        """Configure it alone."""
        self.say(self.configured)

    @property
    def configured(self) -> Configure:
        """The configuration of the last plan."""
        assert self.config is not None
        return self.config

    def another(self) -> Rig:
        """Start the program once more, for the same check."""
        return Rig(self.subject, self.form)

    def offered(self) -> Offer:
        """Wait for its first offer and check it."""
        config = self.configured
        limit_s = self.subject.start_timeout_s
        offer = self.await_said(Offer, "an offer of its memory", len(self.offers) + 1 if self.offers else 1, limit_s)
        check_offer(*self.offers[-1], config.outputs, config.inputs)
        return offer

    def link(self, **changed: int) -> None:
        """Give it the other ends of all routes of its last offer, and map its own. ``changed`` replaces descriptors by
        what they are: ring, credit, line, segment."""
        offer, descriptors = self.offers[-1]
        carried, inputs, closing = [], [], []
        with self._faults("memory that fits the route"):
            for at, name in enumerate(offer.rings):
                down = next(each for each in self.downstreams if each.port.route == name)
                near, far = shm.line()
                closing += [near, far]
                carried += [changed.get("credit", down.credit_fd), changed.get("line", near)]
                for index, segment in self.segments.items():
                    down.add_segment(index, segment)
                down.link(descriptors[at], far)
            for at, name in enumerate(offer.credits, len(offer.rings)):
                up = next(each for each in self.upstreams if each.port.route == name)
                near, far = shm.line()
                closing += [near, far]
                segments = [(index, changed.get("segment", fd)) for index, fd in up.segments]
                carried += [changed.get("ring", up.ring_fd), changed.get("line", far), *(fd for _, fd in segments)]
                inputs.append(InputLink(route=name, epoch=up.port.epoch, segments=[index for index, _ in segments]))
                up.link(descriptors[at], near)
        self.say(Link(outputs=list(offer.rings), inputs=inputs), descriptors=carried)
        for descriptor in closing:
            os.close(descriptor)

    def ready(self) -> None:
        """Wait until it is ready."""
        self.await_said(Ready, "ready, once every route is mapped", limit_s=self.subject.start_timeout_s)

    def start(self, **fields: Any) -> None:
        """Start it, and wait until it has started."""
        self.say(Start(**fields))
        self.await_said(Started, "started")

    def up(self, inputs: Sequence[Port] | None = None, outputs: Sequence[Port] | None = None, **plan: Any) -> None:
        """Everything from its hello to its started."""
        self.begin()
        self.plan(inputs, outputs, **plan)
        self.greet()
        self.offered()
        self.link()
        self.ready()
        self.start()

    # -- frames ---------------------------------------------------------------------------------------------

    @property
    def honest(self) -> list[Upstream]:
        """The producers that are not forged."""
        return [up for up in self.upstreams if isinstance(up, Upstream)]

    @property
    def up0(self) -> Upstream:
        """The producer of the first input."""
        up = self.upstreams[0]
        assert isinstance(up, Upstream)
        return up

    @property
    def down0(self) -> Downstream:
        """The consumer of the first output."""
        return self.downstreams[0]

    def payload(self, number: int, size: int = 64) -> bytes:
        """Return what the kit sends as its frame of that number, from 1."""
        return self.subject.sample if self.subject.sample is not None else known(number, size)

    def feed(
        self, data: bytes, up: Upstream | None = None, expected: str = "credits that come back", **tags: Any
    ) -> int:
        """Send a frame to an input, waiting for a credit as an honest producer does; its sequence number."""
        up = up or self.up0
        found: list[int] = []

        def sent() -> bool:
            try:
                found.append(up.outlet.send(data, 0, **tags))
            except shm.WouldBlock:
                up.outlet.arm()
                return False
            except shm.RouteClosed:
                raise Failed(expected, self.seen("it has detached from its input")) from None
            except shm.PeerFault as fault:
                raise Failed("a CREDIT as shm/SPEC.md section 8 demands", str(fault.args[0])) from None
            return True

        self.until(sent, expected)
        return found[0]

    def returned(self, expected: str = "every frame is returned") -> None:
        """Wait until all inputs' frames have come back."""

        def back() -> bool:
            try:
                return all(up.returned for up in self.honest)
            except shm.PeerFault as fault:
                raise Failed("a CREDIT as shm/SPEC.md section 8 demands", str(fault.args[0])) from None

        self.until(back, expected)

    def await_frames(self, count: int, down: Downstream | None = None, expected: str = "") -> list[Arrived]:
        """Wait for so many frames of an output."""
        down = down or self.down0
        self.until(lambda: len(down.frames) >= count, expected or f"{count} frames on {down.port.route}")
        return down.frames

    def ping(self, number: int) -> Pong:
        """Ask what it is doing."""
        self.say(Ping(id=number))
        self.until(
            lambda: any(pong.id == number for pong in self.said(Pong)), f"a pong with the id {number} of its ping"
        )
        return next(pong for pong in self.said(Pong) if pong.id == number)

    # -- the end --------------------------------------------------------------------------------------------

    def close_inputs(self) -> None:
        """End the stream of every input, or tell a source to stop."""
        if self.form is Form.SOURCE:
            self.say(Drain())
        for up in self.honest:
            up.close()

    def finished(self, expected: str = "finished, and the end of its process with status 0") -> None:
        """Wait for its regular end."""
        self.until(lambda: bool(self.said(Finished)), expected)
        self.exited(expected, (0,))

    def exited(self, expected: str, statuses: Sequence[int] = (), limit_s: float | None = None) -> int:
        """Wait for the end of its process; its status, which is one of ``statuses`` if there are any."""
        self.until(lambda: self.program.status is not None, expected, limit_s, may_end=True)
        self._serve()
        status = self.program.status
        assert status is not None
        if statuses and status not in statuses:
            raise Failed(expected, self.seen())
        return status

    def failed_orderly(self, expected: str) -> None:
        """Wait until it has given up by itself: with a status that is neither 0 nor a signal's."""
        if self.exited(expected) <= 0:
            raise Failed(expected, self.seen())


def _welcome(features: Sequence[str]) -> Welcome:
    return Welcome(protocol=1, daemon="chronetix conformance kit", features=list(features))
