"""A worker with memory of its own making, which speaks the protocol by itself and lies as its second argument says.

The first argument is what it is: ``source`` sends frames, ``sink`` takes them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

from chronetix.protocol.descriptors import Channel, pieces
from chronetix.protocol.messages import (
    ACCUSE,
    Accuse,
    Configure,
    Finished,
    Hello,
    Link,
    Offer,
    Ready,
    Start,
    Started,
    ToWorker,
)
from chronetixctl.conformance.forge import CLOSED, RETURNED, Forge, ForgedMemory, last_stamp

SOCK = socket.socket(fileno=int(os.environ["CHRONETIX_FD"]))
CHANNEL: Channel[Any] = Channel(ToWorker)
INBOX: list[tuple[Any, list[int]]] = []
FORGE = Forge()
PEER: list[int] = []
"""The peer's memory, and the end of the line to it."""
FRAMES = 3


def send(message: Any, *descriptors: int) -> None:
    for data, fds in pieces(message, descriptors):
        socket.send_fds(SOCK, [data], list(fds))


def wait_for(kind: type) -> tuple[Any, list[int]]:
    """The next message of ``kind``; the daemon's end ends us."""
    while True:
        while INBOX:
            message, descriptors = INBOX.pop(0)
            if isinstance(message, kind):
                return message, descriptors
        data, descriptors, _, _ = socket.recv_fds(SOCK, 1 << 16, 64)
        if not data:
            sys.exit(70)
        INBOX.extend((message, list(fds)) for message, fds in CHANNEL.feed(data, descriptors))


def begin(role: str, **changes: int) -> tuple[Configure, ForgedMemory]:
    """Everything up to ``started``, with a header that has these ``changes``."""
    send(Hello(protocol=[1], role="worker", pid=os.getpid(), features=[ACCUSE]))
    config, _ = wait_for(Configure)
    (port,) = config.outputs if role == "source" else config.inputs
    credits = changes.pop("credits", port.credits)
    if role == "source":
        memory, segment = FORGE.ring(credits, **changes), FORGE.memory(1 << 16)
        send(Offer(rings=[port.route], segments=[0]), memory.fd, segment.fd)
    else:
        memory = FORGE.credit(credits, **changes)
        send(Offer(credits=[port.route]), memory.fd)
    _, received = wait_for(Link)
    send(Ready())
    wait_for(Start)
    send(Started())
    PEER.extend(received[:2])
    return config, memory


def finish() -> None:
    send(Finished())
    sys.exit(0)


def sends(memory: ForgedMemory) -> None:
    for position in range(FRAMES):
        memory.describe(position, length=8)


def main(role: str, lie: str) -> None:
    offers = {
        "wrong epoch": {"epoch": 7},
        "wrong credits": {"credits": 32},
        "wrong base": {"base_seq": 9},
        "wrong policy": {"policy": 2},
    }
    config, memory = begin(role, **offers.get(lie, {}))
    route = (config.outputs if role == "source" else config.inputs)[0].route
    match lie:
        case "finishes with an open output":
            sends(memory)
            finish()
        case "finishes with an open input" | "finishes with frames out":
            if lie.endswith("out"):
                await_frames(FRAMES)
            finish()
        case "describes what is nowhere":
            memory.describe(0, length=1 << 20)
        case "has flags of its own":
            memory.describe(0, length=8, flags=0x100)
        case "stamps a foreign slot":
            memory.describe(0, length=8, stamp=6)
        case "closes where it is not":
            memory.put(CLOSED, 77)
        case "returns what was not sent":
            memory.put(RETURNED, 1000)
        case "accuses the innocent":
            send(Accuse(route=route, rule="it looked at me"))
        case "accuses of a route that is not there":
            send(Accuse(route="nobody's", rule="it looked at me"))
    if role == "source":
        ring()
    signal.pause()


def ring() -> None:
    """Wake the consumer: this end of the line is shut, so only rings can come out of it."""
    line = socket.socket(fileno=PEER[1])
    with suppress(OSError):
        line.send(b"r", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    line.shutdown(socket.SHUT_WR)
    line.detach()


def await_frames(count: int) -> None:
    """Return when so many frames are in the peer's ring. It is looked at again and again, and the line is not read."""
    while last_stamp(PEER[0]) < count:
        os.sched_yield()


main(sys.argv[1], sys.argv[2])
