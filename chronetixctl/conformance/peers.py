"""The two peers of the program: a producer for each of its inputs, a consumer for each of its outputs.

Both are honest, over the extension; lying ones are forged by the checks (``forge``).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from chronetix import shm
from chronetix.protocol.messages import Port
from chronetixctl.conformance.forge import CLOSED, RETURNED, last_stamp, word

FIRST_SEGMENT: Final = 1 << 18
"""Bytes of a played producer's first segment."""

MOST_TAKEN: Final = 512
"""Frames that are taken before the program's messages are looked at again."""

ARENA_LIMIT: Final = 1 << 30

Announce = Callable[[Port, int, int], None]
"""Told of a producer's new segment: its index, its descriptor."""

Withdraw = Callable[[Port, int], None]
"""Told of a segment that a producer has given up: its index."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A frame that the program has sent."""

    data: bytes
    seq: int
    input_seq: int
    redelivered: bool
    deadline_ns: int


class Upstream:
    """Plays the producer of one input."""

    def __init__(
        self,
        port: Port,
        bell: shm.Doorbell,
        *,
        announce: Announce | None = None,
        withdraw: Withdraw | None = None,
        first: int = FIRST_SEGMENT,
        limit: int = ARENA_LIMIT,
    ) -> None:
        self.port = port
        self.bell = bell
        self.mapped: set[int] = set()
        """Segments that the program has said it has mapped."""
        self.dropped: list[int] = []
        """Segments that it has said it has unmapped."""
        grow = (lambda index, fd, _size: announce(port, index, fd)) if announce is not None else None
        drop = (lambda index: withdraw(port, index)) if withdraw is not None else None
        self.arena = shm.Arena(limit, first=first, on_grow=grow, on_drop=drop)
        self.producer = shm.Producer(
            self.arena,
            port.route,
            credits=port.credits,
            watermark=port.watermark,
            credit_low=port.credit_low,
            policy=port.policy,
            epoch=port.epoch,
            base_seq=port.base_seq,
        )
        self.outlet = shm.Outlet([self.producer], bell)

    @property
    def ring_fd(self) -> int:
        """Its RING."""
        return self.producer.fd

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Index and descriptor of each segment."""
        return [(index, fd) for index, fd, _ in self.arena.segments]

    def link(self, credit_fd: int, line_fd: int) -> None:
        """Map the program's CREDIT. Raises PeerFault."""
        (self.producer.relink if self.producer.linked else self.producer.link)(credit_fd, line_fd, self.bell)

    @property
    def returned(self) -> bool:
        """Whether every frame has come back."""
        return self.producer.credits == self.port.credits

    @property
    def outstanding(self) -> int:
        """How many frames have not come back."""
        return self.port.credits - self.producer.credits

    def close(self) -> None:
        """End the stream."""
        self.producer.close()


@dataclass(slots=True)
class ForgedUpstream:
    """A producer whose RING is written by the check itself."""

    port: Port
    ring_fd: int
    segments: list[tuple[int, int]]
    lines: list[int] = field(default_factory=list)
    credit_fd: int = -1

    def link(self, credit_fd: int, line_fd: int) -> None:
        """Keep the other end of the line, and look at the CREDIT by its words."""
        self.credit_fd = os.dup(credit_fd)
        self.lines.append(os.dup(line_fd))

    @property
    def returned(self) -> int:
        """The count in the program's CREDIT."""
        return word(self.credit_fd, RETURNED)

    @property
    def detached(self) -> bool:
        """Whether the program has closed its CREDIT."""
        return word(self.credit_fd, CLOSED) != 0

    def ring(self) -> None:
        """Wake the program, as a producer does whose end of the line is shut."""
        with socket.socket(fileno=os.dup(self.lines[-1])) as line:
            line.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """Leave the line, as the death of its holder does."""
        while self.lines:
            os.close(self.lines.pop())

    def close(self) -> None:
        """Close what it keeps. Idempotent."""
        self.hang_up()
        if self.credit_fd >= 0:
            os.close(self.credit_fd)
            self.credit_fd = -1


@dataclass(slots=True)
class ForgedDownstream:
    """A consumer whose CREDIT is written by the check itself."""

    port: Port
    credit_fd: int
    lines: list[int] = field(default_factory=list)
    ring_fd: int = -1

    def link(self, ring_fd: int, line_fd: int) -> None:
        """Keep the other end of the line, and look at the RING by its words."""
        self.ring_fd = os.dup(ring_fd)
        self.lines.append(os.dup(line_fd))

    def full(self) -> bool:
        """Whether the program has sent as many frames as there are credits."""
        return last_stamp(self.ring_fd) >= self.port.credits

    @property
    def closed(self) -> bool:
        """Whether the program has closed its RING."""
        return word(self.ring_fd, CLOSED) != 0

    def ring(self) -> None:
        """Wake the program, as a consumer does."""
        with socket.socket(fileno=os.dup(self.lines[-1])) as line:
            line.send(b"r", socket.MSG_DONTWAIT)

    def hang_up(self) -> None:
        """Leave the line, as the death of its holder does."""
        while self.lines:
            os.close(self.lines.pop())

    def close(self) -> None:
        """Close what it keeps. Idempotent."""
        self.hang_up()
        if self.ring_fd >= 0:
            os.close(self.ring_fd)
            self.ring_fd = -1


class Downstream:
    """Plays the consumer of one output."""

    def __init__(self, port: Port, bell: shm.Doorbell) -> None:
        self.port = port
        self.bell = bell
        self.consumer = shm.Consumer(port.route, credits=port.credits, epoch=port.epoch, base_seq=port.base_seq)
        self.inlet = shm.Inlet([self.consumer], bell)
        self.frames: list[Arrived] = []
        self.held: list[shm.Frame] = []
        self.hold = False
        """Frames are taken and not returned."""
        self.taking = True
        self.ring_fd = -1

    @property
    def credit_fd(self) -> int:
        """Its CREDIT."""
        return self.consumer.fd

    def link(self, ring_fd: int, line_fd: int, **more: Any) -> None:
        """Map the program's RING. Raises PeerFault."""
        self.consumer.link(ring_fd, line_fd, self.bell, **more)
        self.ring_fd = os.dup(ring_fd)

    def add_segment(self, index: int, fd: int) -> None:
        """Map a segment of the program's. Raises PeerFault."""
        self.consumer.add_segment(index, fd)

    def take(self) -> None:
        """Take frames that are there, MOST_TAKEN at most: a source sends without end. Raises PeerFault."""
        for _ in range(MOST_TAKEN if self.taking and self.consumer.linked else 0):
            frame = self.inlet.take(0)
            if frame is None:
                return
            self.keep(frame)

    def keep(self, frame: shm.Frame) -> None:
        """Note a frame, and return it unless frames are held."""
        self.frames.append(Arrived(bytes(frame), frame.seq, frame.input_seq, frame.redelivered, frame.deadline_ns))
        if self.hold:
            self.held.append(frame)
        else:
            frame.release()

    def stamped(self) -> int:
        """Return the position behind the last frame in the program's RING."""
        return last_stamp(self.ring_fd) if self.ring_fd >= 0 else 0

    def release(self, count: int = -1) -> None:
        """Return the oldest frames that are held, all by default."""
        for frame in self.held[: count if count >= 0 else len(self.held)]:
            frame.release()
        del self.held[: count if count >= 0 else len(self.held)]

    def full(self) -> bool:
        """Whether the program has sent as many frames as there are credits, while none was returned."""
        return self.stamped() >= self.port.credits

    def close(self) -> None:
        """Drop what is held. Idempotent."""
        self.held.clear()
        if self.ring_fd >= 0:
            os.close(self.ring_fd)
            self.ring_fd = -1

    @property
    def ended(self) -> bool:
        """Whether the program has closed this output and every frame was taken."""
        return self.inlet.ended
