"""Faults of a worker, each of which at least one check must find. Run as a program, with the name of a fault: it is the
worker of ``worker.py`` with that fault.

A fault changes the Python worker (``nodeworker``) before it runs: what it says, what it does not read, what it makes of
its memory, or what its plugin does.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import worker as tested  # beside this file

import chronetix
from chronetix import shm
from chronetix.nodeworker.api import errors
from chronetix.nodeworker.engine import loop
from chronetix.nodeworker.memory import stages, wiring
from chronetix.nodeworker.process import link, reader, reattach, worker
from chronetix.protocol.messages import (
    Accuse,
    Conclude,
    Deliver,
    Detach,
    Drain,
    Drained,
    Extend,
    Fault,
    GaveUp,
    Hello,
    Leave,
    Linked,
    Log,
    Offer,
    Ping,
    Pong,
    Ready,
    Reattach,
    Retract,
    SegmentDropped,
    SegmentMapped,
    Started,
    Welcome,
)

Tested: Any = tested.Tested
FAULTS: dict[str, Callable[[], None]] = {}


def fault(make: Callable[[], None]) -> Callable[[], None]:
    FAULTS[make.__name__] = make
    return make


def for_ever(*_: Any, **__: Any) -> Any:
    while True:
        signal.pause()


# -- what it says ----------------------------------------------------------------------------------------------


def sends(change: Callable[[Any], list[Any]]) -> None:
    """Each message becomes others; those that come first keep its descriptors."""
    send = link.ControlLink.send

    def changed(self: Any, message: Any, descriptors: Any = ()) -> None:
        for number, each in enumerate(change(message)):
            send(self, each, descriptors if not number else ())

    link.ControlLink.send = changed


def swallow(kind: type[Any]) -> Callable[[Any], list[Any]]:
    return lambda message: [] if isinstance(message, kind) else [message]


def behind(kind: type[Any], more: Any) -> Callable[[Any], list[Any]]:
    return lambda message: [message, more] if isinstance(message, kind) else [message]


@fault
def no_started() -> None:
    sends(swallow(Started))


@fault
def logs_before_the_welcome() -> None:
    sends(behind(Hello, Log(level="info", message="here")))


@fault
def ready_with_the_offer() -> None:
    sends(behind(Offer, Ready()))


@fault
def started_when_ready() -> None:
    sends(behind(Ready, Started()))


@fault
def no_pong() -> None:
    sends(swallow(Pong))


@fault
def another_pong() -> None:
    sends(lambda m: [msgspec.structs.replace(m, id=m.id & 0xFFFF)] if isinstance(m, Pong) else [m])


@fault
def no_fault() -> None:
    sends(swallow(Fault))


@fault
def no_segment_mapped() -> None:
    sends(swallow(SegmentMapped))


@fault
def no_segment_dropped() -> None:
    sends(swallow(SegmentDropped))


@fault
def offers_before_it_is_configured() -> None:
    receive = worker.Worker._receive

    def early(self: Any) -> Any:
        found = receive(self)
        if isinstance(found[0], Welcome):
            self._link.send(Offer())
        return found

    worker.Worker._receive = early


# -- what it reads ---------------------------------------------------------------------------------------------


@fault
def ignores_a_refusal() -> None:
    worker.Worker._receive = for_ever


def takes(change: Callable[[Any], bool]) -> None:
    """Messages for which it is False are not taken."""
    take = reader.Reader._take

    def taken(self: Any, message: Any, descriptors: Any) -> None:
        if change(message):
            take(self, message, descriptors)

    reader.Reader._take = taken


@fault
def ignores_drain() -> None:
    takes(lambda message: not isinstance(message, Drain))


@fault
def fails_at_a_message() -> None:
    def look(message: Any) -> bool:
        if isinstance(message, Deliver):
            raise ValueError("what is this?")
        return True

    takes(look)


def reads(look: Callable[[bytes], None]) -> None:
    read = link.ControlLink._read

    def seen(self: Any) -> Any:
        data, carried = read(self)
        look(data)
        return data, carried

    link.ControlLink._read = seen


@fault
def wants_whole_frames() -> None:
    def look(data: bytes) -> None:
        if data and (len(data) < 5 or len(data) < 4 + struct.unpack(">I", data[:4])[0]):
            raise ValueError("half a frame")

    reads(look)


@fault
def forgets_the_second_message() -> None:
    receive = link.ControlLink.receive

    def first(self: Any) -> Any:
        found = receive(self)
        if isinstance(found[0], Ping):
            self._ready.clear()
        return found

    link.ControlLink.receive = first


@fault
def refuses_long_forms() -> None:
    def look(data: bytes) -> None:
        if b"\x1b\0\0\0\0\0\0\0" in data:
            raise ValueError("an integer that could be shorter")

    reads(look)


@fault
def refuses_unknown_keys() -> None:
    def look(data: bytes) -> None:
        if b"x-future" in data:
            raise ValueError("a key that nobody knows")

    reads(look)


@fault
def lives_on_without_the_daemon() -> None:
    reader.Reader._lost = lambda *_: None


@fault
def hangs_when_it_fails() -> None:
    worker.Worker._ended = for_ever


# -- how it ends -----------------------------------------------------------------------------------------------


@fault
def exits_with_1_without_the_daemon() -> None:
    worker.DAEMON_GONE = 1


@fault
def closes_at_sigterm() -> None:
    give_back = worker.Worker._give_back
    worker.Worker._give_back = lambda self, orderly: give_back(self, True)


@fault
def ignores_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker.catch_signals = dict


@fault
def polls() -> None:
    def spin() -> None:
        while True:
            pass

    threading.Thread(target=spin, daemon=True).start()


# -- what its plugin does --------------------------------------------------------------------------------------


def on_frame(handle: Callable[[Any, Any], Any]) -> None:
    Tested.on_frame = lambda self, frame, ctx: handle(frame, ctx)


@fault
def keeps_a_frame() -> None:
    kept: list[Any] = []

    def handle(frame: Any, ctx: Any) -> Any:
        if not kept:
            kept.append(memoryview(frame))
        return frame if ctx.outputs else None

    on_frame(handle)


@fault
def hangs_without_a_frame() -> None:
    Tested.on_stop = for_ever


@fault
def dies_of_sigpipe() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    serve = Tested.on_frame

    def handle(frame: Any, ctx: Any) -> Any:
        print("a frame", flush=True)
        return serve(None, frame, ctx)

    on_frame(handle)


@fault
def cuts_at_4096() -> None:
    on_frame(lambda frame, ctx: bytes(frame)[:4096] if ctx.outputs else None)


@fault
def fails_at_an_empty_frame() -> None:
    on_frame(lambda frame, ctx: bytes(frame)[0] if not len(frame) else None)


@fault
def appends_a_byte() -> None:
    on_frame(lambda frame, ctx: bytes(frame) + b"\0")


@fault
def turns_a_bit() -> None:
    def handle(frame: Any, ctx: Any) -> Any:
        data = bytearray(frame)
        if len(data) > 3000:
            data[2999] ^= 1
        return data

    on_frame(handle)


@fault
def hangs_at_a_gap() -> None:
    seen = [-1]

    def handle(frame: Any, ctx: Any) -> Any:
        if frame.seq != seen[-1] + 1:
            for_ever()
        seen.append(frame.seq)
        return frame if ctx.outputs else None

    on_frame(handle)


@fault
def begins_with_0() -> None:
    sequence = Tested._sequence

    def shifted(self: Any, ctx: Any) -> Any:
        yield bytes(8)
        yield from sequence(self, ctx)

    Tested._sequence = shifted


# -- what it makes of its memory -------------------------------------------------------------------------------


def consumes(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    stages.Consumer = lambda route, **fields: shm.Consumer(route, **change(fields))


@fault
def one_credit_more() -> None:
    consumes(lambda fields: {**fields, "credits": fields["credits"] + 1})


@fault
def always_epoch_0() -> None:
    consumes(lambda fields: {**fields, "epoch": 0})


@fault
def another_default_of_credits() -> None:
    consumes(lambda fields: {**fields, "credits": 16 if fields["credits"] == 64 else fields["credits"]})


def a_line_to_nobody(line: int) -> int:
    """Another line, whose other end nobody holds up; the true one is left open."""
    os.dup(line)
    near, far = socket.socketpair()
    far.detach()
    return near.detach()


@fault
def deaf_consumer() -> None:
    attach = stages.Stages.link

    def linked(self: Any, message: Any, descriptors: Any) -> None:
        ring, line, *rest = descriptors
        attach(self, message, [ring, a_line_to_nobody(line), *rest])

    stages.Stages.link = linked


@fault
def mute_producer() -> None:
    """Its own end of the line is another one's."""
    attach = wiring.Wiring.link

    def linked(self: Any, message: Any, descriptors: Any) -> Any:
        changed = list(descriptors)
        for at in range(1, 2 * len(message.outputs), 2):
            changed[at] = a_line_to_nobody(changed[at])
        return attach(self, message, changed)

    wiring.Wiring.link = linked


@fault
def sees_no_skips() -> None:
    """It reads a copy of the RING as it was when it was linked, without the marks."""
    attach = stages.Stages.link

    def linked(self: Any, message: Any, descriptors: Any) -> None:
        ring, *rest = descriptors
        size = os.fstat(ring).st_size
        data = bytearray(os.pread(ring, size, 0))
        (log2,) = struct.unpack_from("<I", data, 32)
        data[512 + (64 << log2) :] = bytes(size - 512 - (64 << log2))
        copy = os.memfd_create("copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.posix_fallocate(copy, 0, size)
        os.pwrite(copy, data, 0)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, 0x17)
        attach(self, message, [copy, *rest])

    stages.Stages.link = linked


@fault
def takes_from_its_first_input_only() -> None:
    stages.Inlet = lambda consumers, bell: shm.Inlet(consumers[:1], bell)


@fault
def takes_from_each_input_in_turn() -> None:
    def frames(self: Any) -> None:
        inlets = [shm.Inlet([each], self._bell) for each in self._node.inlet.consumers]
        while not all(each.ended for each in inlets):
            for inlet in inlets:
                while not inlet.ended and (frame := inlet.take()) is None:
                    pass
                if not inlet.ended:
                    self._node.frame(frame)

    loop.Loop._frames = frames


@fault
def keeps_dropped_segments() -> None:
    stages.Stages.drop_segment = lambda *_: True


@fault
def leaks_descriptors() -> None:
    follow = stages.Stages.map_segment

    def leaking(self: Any, route: str, epoch: int, index: int, descriptor: int) -> None:
        os.dup(descriptor)
        follow(self, route, epoch, index, descriptor)

    stages.Stages.map_segment = leaking


class Sender:
    """In the place of an outlet: sends as ``how`` says."""

    def __init__(self, producers: Any, bell: Any, how: Callable[..., int]) -> None:
        self.outlets = [shm.Outlet([each], bell) for each in producers]
        self.outlet = shm.Outlet(producers, bell)
        self.how = how
        self.producers = tuple(producers)
        self.encode_with = self.outlet.encode_with

    def send(self, data: Any, timeout_ns: int = -1, origin: Any = None, **tags: Any) -> int:
        return self.how(self, bytes(data), timeout_ns, origin)


def sends_frames(how: Callable[..., int]) -> None:
    def outlet(self: Any, producers: Any) -> Any:
        return Sender(producers, self.bell, how)

    wiring.Wiring.outlet = outlet


@fault
def no_origin() -> None:
    sends_frames(lambda self, data, timeout_ns, origin: self.outlet.send(data, timeout_ns))


@fault
def only_the_number_of_the_origin() -> None:
    sends_frames(
        lambda self, data, timeout_ns, origin: self.outlet.send(data, timeout_ns, getattr(origin, "seq", origin))
    )


@fault
def drops_without_credit() -> None:
    def how(self: Any, data: bytes, timeout_ns: int, origin: Any) -> int:
        try:
            return int(self.outlet.send(data, 0, origin))
        except shm.WouldBlock:
            return -1

    sends_frames(how)


@fault
def hangs_without_credit() -> None:
    def how(self: Any, data: bytes, timeout_ns: int, origin: Any) -> int:
        try:
            return int(self.outlet.send(data, 0, origin))
        except shm.WouldBlock:
            return int(for_ever())

    sends_frames(how)


@fault
def sends_to_its_first_output_only() -> None:
    sends_frames(lambda self, data, timeout_ns, origin: self.outlets[0].send(data, timeout_ns, origin))


@fault
def waits_for_no_output() -> None:
    def how(self: Any, data: bytes, timeout_ns: int, origin: Any) -> int:
        for outlet in self.outlets:
            try:
                outlet.send(data, 0, origin)
            except shm.WouldBlock:
                continue
        return 0

    sends_frames(how)


def produces(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    wiring.Producer = lambda arena, route, **fields: shm.Producer(arena, route, **change(fields))


@fault
def always_waits() -> None:
    produces(lambda fields: {**fields, "policy": "block"})


@fault
def uses_segments_at_once() -> None:
    grow = worker.Worker._grow

    def at_once(self: Any, index: int, descriptor: int, size: int) -> None:
        grow(self, index, descriptor, size)
        self._wiring.arena.confirm(index)

    worker.Worker._grow = at_once


@fault
def no_limit_of_its_arena() -> None:
    wiring.Arena = lambda _limit, **fields: shm.Arena(1 << 30, **fields)


# -- what it makes of peers that come, go and lie --------------------------------------------------------------


@fault
def no_accuse() -> None:
    sends(swallow(Accuse))


@fault
def accuses_unasked() -> None:
    accuse = worker.Worker._accuse

    def always(self: Any, reason: BaseException) -> None:
        self._accuses = True
        accuse(self, reason)

    worker.Worker._accuse = always


@fault
def no_drained() -> None:
    sends(swallow(Drained))


@fault
def no_linked() -> None:
    sends(swallow(Linked))


@fault
def no_gave_up() -> None:
    sends(swallow(GaveUp))


@fault
def ignores_detach() -> None:
    takes(lambda message: not isinstance(message, Detach))


@fault
def ignores_retract() -> None:
    takes(lambda message: not isinstance(message, Retract))


@fault
def ignores_conclude() -> None:
    takes(lambda message: not isinstance(message, Conclude))


@fault
def ignores_extend() -> None:
    takes(lambda message: not isinstance(message, Extend))


@fault
def has_no_predecessor() -> None:
    attach = stages.Stages.link

    def linked(self: Any, message: Any, descriptors: Any) -> None:
        attach(self, msgspec.structs.replace(message, predecessor=False), descriptors)

    stages.Stages.link = linked


@fault
def hangs_when_a_route_is_closed() -> None:
    def how(self: Any, data: bytes, timeout_ns: int, origin: Any) -> int:
        try:
            return int(self.outlet.send(data, timeout_ns, origin))
        except shm.RouteClosed:
            return int(for_ever())

    sends_frames(how)


@fault
def closes_an_output_without_credit() -> None:
    def how(self: Any, data: bytes, timeout_ns: int, origin: Any) -> int:
        try:
            return int(self.outlet.send(data, 0, origin))
        except shm.WouldBlock:
            self.producers[0].close()
            return int(for_ever())

    sends_frames(how)


@fault
def forgets_what_was_sent_before() -> None:
    produces(lambda fields: {**fields, "resume": 0})


@fault
def begins_before_its_start() -> None:
    worker.Worker._await_start = lambda self: None


@fault
def never_takes_from_a_further_input() -> None:
    stages.Stages.extend = lambda self, port: self._append(port)


@fault
def never_looks() -> None:
    loop.Loop.run = for_ever


@fault
def crashes_at_a_fault() -> None:
    ended = worker.Worker._ended

    def crash(self: Any, reason: BaseException) -> int:
        if isinstance(reason, shm.PeerFault):
            os.kill(os.getpid(), signal.SIGSEGV)
        return ended(self, reason)

    worker.Worker._ended = crash


@fault
def is_linked_to_anything() -> None:
    attach = wiring.Wiring.link

    def linked(self: Any, message: Any, descriptors: Any) -> Any:
        try:
            return attach(self, message, descriptors)
        except (shm.PeerFault, OSError):
            return []

    wiring.Wiring.link = linked
    wiring.Wiring.check_linked = lambda self: None


@fault
def drains_only_later() -> None:
    """A drain that comes before it has said started is lost."""
    started = worker.Worker._run

    def run(self: Any, runs: Any) -> Any:
        self._mailbox.clear()
        return started(self, runs)

    worker.Worker._run = run


@fault
def keeps_its_inputs() -> None:
    stages.Stages.close = stages.Stages.abandon


# -- handing over and reattaching ------------------------------------------------------------------------------


@fault
def drains_when_it_should_leave() -> None:
    event = loop.Loop._event
    loop.Loop._event = lambda self, message: event(self, Drain() if isinstance(message, Leave) else message)


@fault
def has_no_patience() -> None:
    hello = worker.Worker._hello
    worker.Worker._hello = lambda self: msgspec.structs.replace(hello(self), standby=False)


@fault
def knows_no_handover() -> None:
    sends(lambda m: [msgspec.structs.replace(m, features=[])] if isinstance(m, Hello) else [m])


@fault
def counts_the_next_stage_from_elsewhere() -> None:
    produces(lambda fields: {**fields, "base_seq": fields["base_seq"] + 5 * bool(fields["epoch"])})


@fault
def leaves_no_output() -> None:
    reroute = wiring.Wiring.reroute

    def rerouted(self: Any, message: Any, ports: Any, item: int) -> Any:
        return reroute(self, msgspec.structs.replace(message, leave=[]), ports, item)

    wiring.Wiring.reroute = rerouted


@fault
def ends_with_its_daemon() -> None:
    reattach.Reattachment.arm = lambda self: None


@fault
def another_token() -> None:
    sends_first = link.ControlLink.send_first

    def changed(self: Any, message: Any, descriptors: Any = ()) -> None:
        if isinstance(message, Reattach):
            message = msgspec.structs.replace(message, token="guessed")
        sends_first(self, message, descriptors)

    link.ControlLink.send_first = changed


@fault
def comes_again_and_again() -> None:
    attempt = reattach.Reattachment._attempt

    def attempted(self: Any) -> bool:
        try:
            return bool(attempt(self))
        except errors.DaemonGone:
            self._link.detach()
            return False

    reattach.Reattachment._attempt = attempted


@fault
def survives_before_its_start() -> None:
    made = reattach.Reattachment.__init__

    def armed(self: Any, *arguments: Any) -> None:
        made(self, *arguments)
        self.arm()

    reattach.Reattachment.__init__ = armed


if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    chronetix.serve(Tested)
