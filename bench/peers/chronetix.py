"""chronetix: an Outlet and an Inlet over one route in each direction, between two processes and within one.

The routes are set up as by a worker, but the descriptors are sent over the benchmark's wire instead of through the
daemon.
The receiver sleeps on its doorbell (after the short adaptive spin that the data plane itself does); the sender sleeps
when its credits are used up. ``InProcess`` has the same classes at both ends of one thread, as in the single-process
deployment: it shows the cost of a frame without a second process, and is the strictest figure to compare with, because
no plugin is called.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from bench.cells import BATCH, KIB, MAX_WINDOW, MIB, Cell, window
from bench.machine import own_version
from bench.peers import Link, Peer
from chronetix import shm

CREDITS = 64
"""How many credits a route has by default."""
LOAN_CREDITS = 16
"""For loans of any size, so that sizes differ in nothing else."""
PAGE = 4 * KIB
PUT_NUMBER, GET_NUMBER = struct.Struct("<q").pack_into, struct.Struct("<q").unpack_from


class Ipc(Peer):
    """Two processes."""

    name = "chronetix"
    about = f"Outlet.send / Inlet.take, {CREDITS} credits, policy block, both ends sleep on doorbells"
    modes: ClassVar[tuple[str, ...]] = ("throughput", "roundtrip", "loan")

    def version(self) -> str:
        return own_version()

    def prepare(self, cell: Cell, folder: Path) -> None:
        return None

    def connect(self, shared: Any, wire: socket.socket, cell: Cell, first: bool) -> Link:
        trips = cell.mode == "roundtrip"
        end = End(cell, self.credits(cell), sends=first or trips, receives=not first or trips, first=first)
        socket.send_fds(wire, [b"o"], end.descriptors())
        _, theirs, _, _ = socket.recv_fds(wire, 1, 16)
        end.link(list(theirs))
        for descriptor in theirs:
            os.close(descriptor)
        wire.send(b"l")
        wire.recv(1)
        return self.link(end)

    def credits(self, cell: Cell) -> int:
        """Of each route."""
        return credits_of(cell)

    def link(self, end: End) -> Link:
        """What is measured of an end."""
        return end.as_link()


class Batches(Ipc):
    """Two processes, many small frames a call."""

    name = "chronetix-batch"
    about = (
        f"Outlet.send_many / Inlet.take_many: {BATCH} frames of one buffer a call where the others move one, numbers "
        f"checked {BATCH} at once with numpy, {MAX_WINDOW} credits; up to 4 KiB"
    )
    modes = ("throughput",)
    largest = 4 * KIB

    def credits(self, cell: Cell) -> int:
        return window(cell.size)

    def link(self, end: End) -> Link:
        return end.as_batch_link()


class InProcess(Peer):
    """One process, one thread."""

    name = "chronetix-inproc"
    about = "the same Outlet and Inlet at both ends of one thread, no plugin called: a frame without a second process"
    one_process = True

    def version(self) -> str:
        return own_version()

    def prepare(self, cell: Cell, folder: Path) -> None:
        return None

    def connect_both(self, shared: Any, cell: Cell) -> tuple[Link, Link]:
        here = End(cell, credits_of(cell), sends=True, receives=True, first=True)
        there = End(cell, credits_of(cell), sends=True, receives=True, first=False)
        here.link(there.descriptors())
        there.link(here.descriptors())
        return here.as_link(), there.as_link()


class End:
    """One end of the pair: a doorbell, and an arena with a producer, a consumer, or both."""

    def __init__(self, cell: Cell, credits: int, *, sends: bool, receives: bool, first: bool) -> None:
        there, back = ("there", "back") if first else ("back", "there")
        self.credits = credits
        self.bell = shm.Doorbell()
        self.lines = [shm.line(), shm.line()[::-1]] if first else []
        self.arena = shm.Arena(room(cell.size, self.credits), first=room(cell.size, self.credits), on_grow=refuse)
        self.producers = [self.producer(there)] if sends else []
        self.consumers = [shm.Consumer(back, credits=self.credits)] if receives else []

    def producer(self, route: str) -> shm.Producer:
        """Watermarks as a flow's route has them by default: three quarters and half."""
        high, low = max(1, self.credits * 3 // 4), max(1, self.credits // 2)
        return shm.Producer(self.arena, route, credits=self.credits, watermark=high, credit_low=low)

    def descriptors(self) -> list[int]:
        """The other one's ends of the lines, from the first; CREDIT if it receives; RING and segments if it sends."""
        ours = [far for _, far in self.lines]
        ours += [consumer.fd for consumer in self.consumers]
        for producer in self.producers:
            ours += [producer.fd, *(segment[1] for segment in self.arena.segments)]
        return ours

    def link(self, theirs: list[int]) -> None:
        """Map what the other end's :meth:`descriptors` are; they may be closed afterwards."""
        (there, back), rest = ([near for near, _ in self.lines], theirs) if self.lines else (theirs[1::-1], theirs[2:])
        for producer in self.producers:
            producer.link(rest.pop(0), there, self.bell)
        for consumer in self.consumers:
            consumer.link(rest.pop(0), back, self.bell)
            for index, segment in enumerate(rest):
                consumer.add_segment(index, segment)

    def as_link(self) -> Link:
        """Return the measured operations, without any code around them."""
        outlet = shm.Outlet(self.producers, self.bell) if self.producers else None
        receive = shm.Inlet(self.consumers, self.bell).take if self.consumers else not_here
        send = outlet.send if outlet else not_here
        loan_room = outlet.loan if outlet else not_here

        def loan(frame: bytearray) -> None:
            with loan_room(len(frame)) as extent:
                PUT_NUMBER(extent, 0, *GET_NUMBER(frame))

        def close() -> None:
            for producer in self.producers:
                producer.close()
            for consumer in self.consumers:
                consumer.close()

        return Link(send=send, receive=receive, reply=send, close=close, loan=loan)

    def as_batch_link(self) -> Link:
        """The same with batches."""
        link = self.as_link()
        if self.producers:
            return replace(link, send_many=shm.Outlet(self.producers, self.bell).send_many)
        return replace(link, receive_many=partial(shm.Inlet(self.consumers, self.bell).take_many, BATCH))


def credits_of(cell: Cell) -> int:
    """Of a route that moves one frame a call."""
    return LOAN_CREDITS if cell.mode == "loan" else min(CREDITS, window(cell.size))


def not_here(*_arguments: Any) -> Any:
    """In place of the direction that a throughput cell does not use."""
    raise RuntimeError("this end has no such route")


def room(size: int, credits: int) -> int:
    """Arena bytes for ``credits`` frames of ``size`` bytes, so that it never has to grow."""
    return credits * (-(-size // PAGE) * PAGE + PAGE) + MIB


def refuse(index: int, _fd: int, size: int) -> None:
    """The arena was made large enough; growth would be measured as if it were sending."""
    raise RuntimeError(f"the arena grew by segment {index} of {size} bytes")
