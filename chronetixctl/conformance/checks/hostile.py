"""Peers that lie: memory that is not what it should be, or in which stands what cannot be. Whoever finds it leaves that
route, or ends by itself; nobody may end it by a signal."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from chronetix.protocol.messages import ACCUSE, Accuse, Fault
from chronetixctl.conformance.check import PROTOCOL, SPEC, Level, check
from chronetixctl.conformance.conversation import QUIET_S
from chronetixctl.conformance.forge import CLOSED, OLDEST, RETURNED, ForgedMemory
from chronetixctl.conformance.forms import SENDS, TAKES, Failed
from chronetixctl.conformance.rig import Rig

LIES = (SPEC, "8 What a peer may have written")
MEMORIES = (SPEC, "1 Memories")
HEADER = (SPEC, "2 Header: the first cache line of RING and CREDIT")
LINE = (SPEC, "7.1 Doorbell and line")
DEATH = (SPEC, "10 Death and succession")

PLACE: Final = 64 << 10
"""Bytes of a forged segment."""

DESCRIPTORS: Final[Mapping[str, Mapping[str, int]]] = {
    "an offset that is no multiple of 64": {"offset": 1, "length": 8},
    "a length beyond the segment": {"length": PLACE + 1},
    "an offset behind the segment": {"offset": PLACE, "length": 1},
    "an offset far behind the segment": {"offset": 1 << 40, "length": 1},
    "a length that overflows": {"offset": 64, "length": (1 << 64) - 64},
    "an offset that overflows": {"offset": (1 << 64) - 64, "length": 128},
    "an unknown flag": {"length": 8, "flags": 4},
    "notes that are shorter than 16 bytes": {"length": 8, "flags": 2},
}

STAMPS: Final[Mapping[str, Callable[[ForgedMemory], None]]] = {
    "the stamp of another slot": lambda ring: ring.describe(0, stamp=2),
    "a stamp of 2^64-1": lambda ring: ring.describe(0, stamp=(1 << 64) - 1),
    "a stamp of the next lap": lambda ring: ring.describe(0, stamp=ring.slots + 1),
    "a skip of another slot": lambda ring: ring.skip(0, stamp=3),
    "an end before the last frame": lambda ring: ring.put(CLOSED, 5),
}


def lie(rig: Rig, name: str, tell: Callable[[ForgedMemory, ForgedMemory], None], **header: int) -> None:
    """Have a forged producer tell a lie. Raises Failed unless the program leaves the route, or ends by itself."""
    rig.begin()
    rig.plan(rig.input_ports(1, credits=4, policy="latest") if header.get("policy") == 2 else None, credits=4)
    ring, segment = rig.forge_input(credits=4, **header)
    rig.greet()
    rig.offered()
    rig.link()
    rig.ready()
    tell(ring, segment)
    rig.say_start()
    forged = rig.forged
    rig.until(
        lambda: forged.detached or rig.program.status is not None, f"a route that is left after {name}", may_end=True
    )
    _survived(rig, name)


def _survived(rig: Rig, name: str) -> None:
    """Raises Failed if it ends by a signal, or as if nothing had happened."""
    status = rig.aftermath()
    if rig.said(Accuse):
        raise Failed("no accuse to a daemon whose welcome does not name the feature", "accuse")
    if status is not None and status <= 0:
        raise Failed(f"an end by itself, if at all, after {name}", rig.seen())


@check("follows no descriptor that cannot be", TAKES, Level.USUAL, LIES)
def hostile_descriptors(rig: Rig) -> None:
    for name, fields in DESCRIPTORS.items():
        with rig.another() as other:
            lie(other, name, lambda ring, _, fields=fields: ring.describe(0, **fields))  # type: ignore[misc]


@check("reports the peer that lied, to a daemon that knows the message", TAKES, Level.FULL, (PROTOCOL, "Claims"))
def accuses(rig: Rig) -> None:
    if ACCUSE not in rig.begin().features:
        raise Failed(f"the feature {ACCUSE} in its hello", "it does not name it")
    rig.plan(credits=4)
    ring, _ = rig.forge_input(credits=4)
    rig.greet([ACCUSE])
    rig.offered()
    rig.link()
    rig.ready()
    ring.describe(0, length=8, flags=4)
    rig.say_start()
    rig.until(lambda: bool(rig.said(Accuse)), "accuse: the peer's frame has an unknown flag", may_end=True)
    message = rig.said(Accuse)[0]
    if (message.route, message.epoch) != (rig.forged.port.route, 0) or not message.rule:
        raise Failed(f"accuse for epoch 0 of {rig.forged.port.route}, with the rule", f"{message}")


@check("believes no stamp, skip or end that cannot be", TAKES, Level.USUAL, LIES)
def hostile_stamps(rig: Rig) -> None:
    for name, tell in STAMPS.items():
        with rig.another() as other:
            lie(other, name, lambda ring, _, tell=tell: tell(ring))  # type: ignore[misc]


@check("believes no notes that cannot be", TAKES, Level.USUAL, LIES)
def hostile_notes(rig: Rig) -> None:
    def tell(ring: ForgedMemory, segment: ForgedMemory) -> None:
        segment.put(16, 1 << 32 | 99)  # reserved 1, 99 bytes of metadata; the notes are bytes 8 to 23
        ring.describe(0, length=24, flags=2)

    lie(rig, "notes that are longer than the frame", tell)


@check("believes no end of what was overwritten that cannot be (policy latest)", TAKES, Level.USUAL, LIES)
def hostile_oldest(rig: Rig) -> None:
    lie(rig, "oldest above 2^62", lambda ring, _: ring.put(OLDEST, 1 << 63), policy=2)


def _refused(rig: Rig, what: str, make: Callable[[Rig], Mapping[str, int]]) -> None:
    """Link it to something else. Raises Failed unless it says that its wiring fails, and ends by itself."""
    rig.begin()
    rig.plan(credits=4)
    rig.greet()
    rig.offered()
    rig.link(changed=make(rig))
    rig.until(lambda: bool(rig.said(Fault)), f"a fault: it was linked to {what}", may_end=True)
    if rig.said(Fault)[0].phase != "wiring":
        raise Failed(f"a fault of phase wiring: it was linked to {what}", rig.seen())
    rig.failed_orderly(f"an exit status above 0 after {what}")


def _forged(kind: str, what: str, **how: Any) -> tuple[str, Callable[[Rig], Mapping[str, int]]]:
    def make(rig: Rig) -> Mapping[str, int]:
        made = rig.forge.ring if kind == "ring" else rig.forge.credit
        memory = made(**{"credits": 4, **how})
        return {kind: memory.fd}

    return f"a {kind.upper()} {what}", make


def _no_memory(kind: str) -> tuple[str, Callable[[Rig], Mapping[str, int]]]:
    def make(rig: Rig) -> Mapping[str, int]:
        reading, writing = os.pipe()
        rig.keep(writing)
        return {kind: rig.keep(reading)}

    return f"a pipe in the place of its {kind}", make


def _headers(kind: str) -> list[tuple[str, Callable[[Rig], Mapping[str, int]]]]:
    return [
        _forged(kind, "without seals", seals=0),
        _forged(kind, "that is a page too long", extra=4096),
        _forged(kind, "of another magic", magic=b"CHXNONE\0"),
        _forged(kind, "of another abi", abi=2),
        _forged(kind, "with a wrong checksum", crc=1),
        _forged(kind, "of another epoch", epoch=7),
        _forged(kind, "of another base_seq", base_seq=7),
        _forged(kind, "of other credits", credits=3),
        _no_memory(kind),
    ]


@check("refuses a RING that is not what the daemon has described", TAKES, Level.USUAL, HEADER)
def refuses_rings(rig: Rig) -> None:
    for what, make in _headers("ring"):
        with rig.another() as other:
            _refused(other, what, make)


@check("refuses a CREDIT that is not what the daemon has described", SENDS, Level.USUAL, HEADER)
def refuses_credits(rig: Rig) -> None:
    for what, make in _headers("credit"):
        with rig.another() as other:
            _refused(other, what, make)


@check("refuses a segment that its producer could shorten", TAKES, Level.USUAL, MEMORIES)
def refuses_segments(rig: Rig) -> None:
    def unsealed(rig: Rig) -> Mapping[str, int]:
        return {"segment": rig.forge.memory(PLACE, seals=0).fd}

    def unreserved(rig: Rig) -> Mapping[str, int]:
        return {"segment": rig.forge.memory(PLACE, reserve=False).fd}

    for what, make in (
        ("a segment without seals", unsealed),
        ("a segment whose pages are not reserved", unreserved),
        _no_memory("segment"),
    ):
        with rig.another() as other:
            _refused(other, what, make)


@check("refuses an end of a line that is no socket", TAKES, Level.USUAL, LINE)
def refuses_lines(rig: Rig) -> None:
    def datagrams(rig: Rig) -> Mapping[str, int]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            return {"line": rig.keep(other.detach())}

    for what, make in (_no_memory("line"), ("a datagram socket in the place of its line", datagrams)):
        with rig.another() as other:
            _refused(other, what, make)


@check("believes no credit that cannot be", SENDS, Level.USUAL, LIES)
def hostile_credits(rig: Rig) -> None:
    lies: Mapping[str, Callable[[ForgedMemory], None]] = {
        "more frames returned than were sent": lambda credit: credit.put(RETURNED, 1 << 40),
        "frames returned without their stamps": lambda credit: credit.put(RETURNED, 2),
    }
    for name, tell in lies.items():
        with rig.another() as other:
            other.begin()
            other.plan(credits=4)
            credit = other.forge_output(credits=4)
            other.greet()
            other.offered()
            other.link()
            other.ready()
            other.start()
            forged = other.forged_output
            for number in range(1, 5 if other.form.inputs else 1):
                other.feed(other.payload(number))
            other.until(forged.full, "as many frames as there are credits")
            tell(credit)
            forged.ring()
            for number in range(5, 9 if other.form.inputs else 5):
                if not other.try_feed(other.payload(number)):
                    break
            expected = f"a route that is left after {name}"
            other.until(
                lambda forged=forged, other=other: forged.closed or other.program.status is not None,  # type: ignore[misc]
                expected,
                may_end=True,
            )
            _survived(other, name)


@check("finds a frame whose producer died before it rang, and waits for what follows", TAKES, Level.USUAL, DEATH)
def dead_producer(rig: Rig) -> None:
    rig.begin()
    rig.plan(credits=4)
    ring, _ = rig.forge_input(credits=4)
    rig.greet()
    rig.offered()
    rig.link()
    rig.ready()
    rig.start()
    rig.quiet(lambda: False, "it waits for frames", 0.05)
    for position in range(3):
        ring.describe(position, length=64)
    rig.forged.hang_up()
    rig.until(lambda: rig.forged.returned == 3, "the frames of a producer that died are returned")
    rig.quiet(lambda: rig.forged.detached, "a route that is left open for the producer's successor", 2 * QUIET_S)


@check("waits for the successor of a consumer that died, and closes nothing", SENDS, Level.USUAL, DEATH)
def dead_consumer(rig: Rig) -> None:
    rig.begin()
    rig.plan(credits=4)
    rig.forge_output(credits=4)
    rig.greet()
    rig.offered()
    rig.link()
    rig.ready()
    rig.start()
    forged = rig.forged_output
    for number in range(1, 9 if rig.form.inputs else 1):
        rig.feed(rig.payload(number))
    rig.until(forged.full, "as many frames as there are credits")
    forged.hang_up()
    rig.quiet(lambda: forged.closed, "an output that is left open for the consumer's successor", 2 * QUIET_S)
