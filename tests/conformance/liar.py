"""A program that is no worker at all: says what its argument says, and waits."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from collections.abc import Callable

from chronetix import shm
from chronetix.protocol.descriptors import pieces
from chronetix.protocol.messages import (
    Fault,
    Hello,
    Log,
    Offer,
    Pong,
    Segment,
    SegmentDropped,
    SegmentMapped,
    WireMessage,
)

sock = socket.socket(fileno=int(os.environ["CHRONETIX_FD"]))


def say(message: WireMessage, *descriptors: int) -> None:
    for data, carried in pieces(message, descriptors):
        socket.send_fds(sock, [data], list(carried)) if carried else sock.sendall(data)


def hello() -> None:
    say(Hello(protocol=[1], role="worker", pid=os.getpid()))
    sock.recv(1 << 20)


def consumer(credits: int = 64) -> shm.Consumer:
    kept.append(shm.Consumer("in", credits=credits))
    return kept[-1]


def then(*messages: tuple[WireMessage, list[int]]) -> None:
    hello()
    say(Offer(credits=["in"]), consumer().fd)
    for message, descriptors in messages:
        say(message, *descriptors)


def pipe() -> int:
    return os.pipe()[0]


def prints() -> None:
    hello()
    while True:
        os.write(1, b"x" * 65536)


kept: list[shm.Consumer] = []
SAYS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "garbage": lambda: sock.sendall(os.urandom(4096)),
    "an endless frame": lambda: sock.sendall(struct.pack(">I", 0xFFFFFFFF)),
    "half a frame": lambda: sock.sendall(struct.pack(">I", 100) + b"\xa1"),
    "a client's hello": lambda: say(Hello(protocol=[1], role="client")),
    "another version": lambda: say(Hello(protocol=[7], role="worker")),
    "two hellos": lambda: (hello(), say(Hello(protocol=[1], role="worker")))[1],
    "offers a pipe": lambda: (hello(), say(Offer(credits=["in"]), pipe()))[1],
    "offers too much": lambda: (hello(), say(Offer(credits=["in", "in"]), consumer().fd, consumer().fd))[1],
    "offers nothing": lambda: (hello(), say(Offer()))[1],
    "maps what nobody announced": lambda: then((SegmentMapped(index=77, route="in"), [])),
    "drops what nobody announced": lambda: then((SegmentDropped(index=77), [])),
    "drops for a producer": lambda: then((SegmentDropped(index=0, route="in"), [])),
    "announces a pipe": lambda: then((Segment(index=0), [pipe()])),
    "announces twice": lambda: then((Segment(index=0), [pipe()]), (Segment(index=0), [pipe()])),
    "answers what was not asked": lambda: then((Pong(id=1, progress=1), [])),
    "escapes": lambda: then((Fault(phase="init", error="\x1b[2J", message="\x1b]0;x\x07"), [])),
    "logs without end": lambda: (then(), [say(Log(level="info", message="x" * 1000)) for _ in range(20000)])[0],
    "prints without end": prints,
    "hangs up": lambda: sock.close(),
}

if __name__ == "__main__":
    SAYS[sys.argv[1]]()
    while True:
        signal.pause()
