"""One running program between a played daemon and played peers, and the steps that checks are made of.

The conversation with the program is a part of it (``conversation``). Here are the program's ports, memory and peers,
and the answers to its messages about memory. The file is longer than 400 lines because every step needs them all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chronetix import shm
from chronetix.protocol.messages import (
    Configure,
    Drain,
    Extend,
    Hello,
    InputLink,
    Link,
    Linked,
    Offer,
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
from chronetixctl.conformance.conversation import Conversation
from chronetixctl.conformance.forge import Forge, ForgedMemory
from chronetixctl.conformance.forms import Failed, Form, NotChecked
from chronetixctl.conformance.offers import check_offer
from chronetixctl.conformance.peers import Arrived, Downstream, ForgedDownstream, ForgedUpstream, Upstream
from chronetixctl.conformance.ports import ports
from chronetixctl.conformance.program import Subject


class Rig:
    """The surroundings of one program, for one check."""

    def __init__(self, subject: Subject, form: Form) -> None:
        self.subject = subject
        self.form = form
        self.forge = Forge()
        self.upstreams: list[Upstream | ForgedUpstream] = []
        self.downstreams: list[Downstream] = []
        self.liars: list[ForgedDownstream] = []
        self.offers: list[tuple[Offer, list[int]]] = []
        self.segments: dict[int, int] = {}
        """The program's segments by index; the descriptors are ours."""
        self.confirms = True
        """Segments of the program are mapped and confirmed at once."""
        self.unconfirmed: list[int] = []
        self.retired: list[Downstream] = []
        self.inodes: set[int] = set()
        """Of the segments that were announced to it, which tell them from others in a list of mappings."""
        self.later: tuple[int, int] | None = None
        """The program's CREDIT and the producer's end of the line, of a producer that is linked later."""
        self.config: Configure | None = None
        self.talk = talk = Conversation(subject, self._take, self.take_frames)
        self.bell, self.program, self.heard = talk.bell, talk.program, talk.heard
        self.until, self.quiet, self.aftermath = talk.until, talk.quiet, talk.aftermath
        self.said, self.await_said, self.seen = talk.said, talk.await_said, talk.seen
        self.say, self.ping, self.keep = talk.say, talk.ping, talk.keep
        self.exited, self.finished, self.failed_orderly = talk.exited, talk.finished, talk.failed_orderly
        self.lose_daemon, self.accept = talk.lose_daemon, talk.accept

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the program, and give everything back."""
        for down in (*self.downstreams, *self.retired):
            down.close()
        for liar in self.liars:
            liar.close()
        for up in self.upstreams:
            if isinstance(up, ForgedUpstream):
                up.close()
            else:
                up.arena.close()
        self.upstreams, self.downstreams, self.retired = [], [], []
        for descriptor in (
            *(self.later or ()),
            *self.segments.values(),
            *(fd for _, fds in self.offers for fd in fds),
        ):
            os.close(descriptor)
        self.segments, self.offers = {}, []
        self.forge.close()
        self.talk.close()

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
            for index, descriptor in zip(message.segments, descriptors[at:], strict=True):
                self._made(index, os.dup(descriptor))
        elif isinstance(message, Segment):
            self._made(message.index, descriptors[0])
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

    def _made(self, index: int, descriptor: int) -> None:
        """Keep a segment of the program's."""
        if index in self.segments:
            os.close(descriptor)
            raise Failed("a segment whose index is free", f"index {index} once more")
        self.segments[index] = descriptor

    def confirm_growth(self) -> None:
        """Map the segments that the program has announced, and say so."""
        while self.unconfirmed:
            index = self.unconfirmed.pop(0)
            with self.faults("a segment as shm/SPEC.md section 1 demands"):
                for down in self.downstreams:
                    down.add_segment(index, self.segments[index])
            self.talk.answer(SegmentMapped(index=index))

    def _mapped(self, message: SegmentMapped) -> None:
        for up in self.honest:
            if (up.port.route, up.port.epoch) == (message.route, message.epoch):
                if message.index not in {index for index, _, _ in up.arena.segments}:
                    raise Failed("segment-mapped for a segment that was announced", f"index {message.index}")
                up.mapped.add(message.index)
                up.arena.confirm(message.index)

    def _dropped(self, message: SegmentDropped) -> None:
        if message.route:
            for up in self.honest:
                if (up.port.route, up.port.epoch) == (message.route, message.epoch):
                    if message.index not in up.arena.inventory[2]:
                        raise Failed("segment-dropped for a segment that was given up", f"index {message.index}")
                    up.arena.forget(message.index)
                    up.dropped.append(message.index)
            return
        descriptor = self.segments.pop(message.index, -1)
        if descriptor < 0:
            raise Failed("segment-dropped for a segment that was announced", f"index {message.index}")
        os.close(descriptor)
        with self.faults("a segment given back after all of its frames"):
            for down in self.downstreams:
                down.consumer.drop_segment(message.index)
        self.talk.answer(SegmentDropped(index=message.index))

    @contextlib.contextmanager
    def faults(self, expected: str) -> Iterator[None]:
        """Raises Failed where the program's memory is not what it should be."""
        try:
            yield
        except shm.PeerFault as fault:
            raise Failed(expected, str(fault.args[0])) from None

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
        return ports(self.subject, self.subject.input, "upstream", count, fields)

    def output_ports(self, count: int, **fields: Any) -> list[Port]:
        """Ports of so many outputs."""
        return ports(self.subject, self.subject.output, "downstream", count, fields)

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

    def forge_output(self, at: int = 0, **header: int) -> ForgedMemory:
        """Put a forged consumer in the place of an honest one; its CREDIT."""
        credit = self.forge.credit(**header)
        self.liars.append(ForgedDownstream(self.downstreams.pop(at).port, credit.fd))
        return credit

    @property
    def forged_output(self) -> ForgedDownstream:
        """The forged consumer."""
        return self.liars[0]

    def _announce(self, port: Port, index: int, descriptor: int) -> None:
        self.inodes.add(os.fstat(descriptor).st_ino)
        self.say(Segment(index=index, route=port.route, epoch=port.epoch), descriptors=[descriptor])

    def _withdraw(self, port: Port, index: int) -> None:
        self.say(SegmentDropped(index=index, route=port.route, epoch=port.epoch))

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

    def offered(self) -> None:
        """Wait for its first offer and check it."""
        self.await_said(Offer, "an offer of its memory", limit_s=self.subject.start_timeout_s)
        check_offer(*self.offers[-1], self.configured.outputs, self.configured.inputs)

    def extend(self, message: Extend) -> tuple[Offer, list[int]]:
        """Have it make further ends; its offer of them."""
        before = len(self.offers)
        self.say(message)
        self.until(lambda: len(self.offers) > before, "an offer, as the answer to extend")
        return self.offers[-1]

    def linked(self, count: int = 1) -> None:
        """Wait for its answer to a link that is not its first."""
        self.await_said(Linked, "linked, as the answer to a further link", count)

    def link(self, epochs: Sequence[int] = (), predecessor: int = -1, changed: Mapping[str, int] | None = None) -> None:
        """Give it the other ends of all routes of its last offer, and map its own. ``changed`` replaces descriptors by
        what they are: ring, credit, line, segment. With a ``predecessor``, the CREDIT of a dead consumer of its one
        input, the producer is linked later."""
        offer, descriptors = self.offers[-1]
        changed = changed or {}
        carried: list[int] = []
        inputs: list[InputLink] = []
        closing: list[int] = []
        consumers: list[ForgedDownstream | Downstream] = [*self.liars, *self.downstreams]
        with self.faults("memory that fits the route"):
            for at, name in enumerate(offer.rings):
                down = next(each for each in consumers if each.port.route == name)
                near, far = shm.line()
                closing += [near, far]
                carried += [changed.get("credit", down.credit_fd), changed.get("line", near)]
                if isinstance(down, Downstream):
                    for index, segment in self.segments.items():
                        down.add_segment(index, segment)
                down.link(descriptors[at], far)
            for at, name in enumerate(offer.credits, len(offer.rings)):
                up = next(each for each in self.upstreams if each.port.route == name)
                near, far = shm.line()
                closing += [near, far]
                segments = [(index, changed.get("segment", fd)) for index, fd in up.segments]
                carried += [changed.get("ring", up.ring_fd), changed.get("line", far), *(fd for _, fd in segments)]
                found = [index for index, _ in segments]
                dead = predecessor >= 0
                inputs.append(InputLink(route=name, epoch=up.port.epoch, segments=found, predecessor=dead))
                if dead:
                    carried.append(predecessor)
                    self.later = (os.dup(descriptors[at]), os.dup(near))
                else:
                    up.link(descriptors[at], near)
        self.say(Link(outputs=list(offer.rings), inputs=inputs, epochs=list(epochs)), descriptors=carried)
        for descriptor in closing:
            os.close(descriptor)

    def ready(self) -> None:
        """Wait until it is ready."""
        self.await_said(Ready, "ready, once every route is mapped", limit_s=self.subject.start_timeout_s)

    def say_start(self) -> None:
        """Start it, and wait for nothing."""
        self.say(Start())

    def start(self, **fields: Any) -> None:
        """Start it, and wait until it has started."""
        self.say(Start(**fields))
        self.await_said(Started, "started")

    def up(
        self,
        inputs: Sequence[Port] | None = None,
        outputs: Sequence[Port] | None = None,
        *,
        held: int | None = None,
        untaken: int | None = None,
        **plan: Any,
    ) -> None:
        """Everything from its hello to its started. Frames of the output ``held`` are taken and not returned, those of
        ``untaken`` not even taken, from the first one on."""
        self.begin()
        self.plan(inputs, outputs, **plan)
        if held is not None:
            self.downstreams[held].hold = True
        if untaken is not None:
            self.downstreams[untaken].taking = False
        self.greet()
        self.offered()
        self.link()
        self.ready()
        self.start()

    # -- frames ---------------------------------------------------------------------------------------------

    @property
    def daemon(self) -> PlayedDaemon:
        """The present end of the control connection."""
        return self.talk.daemon

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

    def try_feed(self, data: bytes) -> bool:
        """Send a frame to an input if there is a credit and the program is there; whether it was sent."""
        try:
            self.up0.outlet.send(data, 0)
        except (shm.WouldBlock, shm.RouteClosed):
            return False
        except shm.PeerFault as fault:
            raise Failed("a CREDIT as shm/SPEC.md section 8 demands", str(fault.args[0])) from None
        return True

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

    # -- the end --------------------------------------------------------------------------------------------

    def close_inputs(self) -> None:
        """End the stream of every input, or tell a source to stop."""
        if self.form is Form.SOURCE:
            self.say(Drain())
        for up in self.honest:
            up.close()


def _welcome(features: Sequence[str]) -> Welcome:
    return Welcome(protocol=1, daemon="chronetix conformance kit", features=list(features))
