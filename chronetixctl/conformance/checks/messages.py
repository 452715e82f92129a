"""How messages are read: in any encoding and any pieces that PROTOCOL.md allows, and in none that it refuses."""

from __future__ import annotations

import os
import struct
from typing import Any, Final

from chronetix.protocol import cbor
from chronetix.protocol.messages import Deliver, Ping, Pong, Reply, RequestFailure, Start, Started, Tick
from chronetixctl.conformance.check import PROTOCOL, Level, check
from chronetixctl.conformance.control import wide
from chronetixctl.conformance.forms import EVERY, Failed, Form
from chronetixctl.conformance.rig import Rig

FRAMES, CBOR, CHANGING = (PROTOCOL, "Frames"), (PROTOCOL, "CBOR"), (PROTOCOL, "Changing the protocol")

_TYPE, _PING, _ID = b"\x64type", b"\x64ping", b"\x62id"
_GOOD = _TYPE + _PING + _ID + b"\x01"

REFUSED: Final = {
    "an indefinite map": b"\xbf" + _GOOD + b"\xff",
    "the same key twice": b"\xa3" + _GOOD + _ID + b"\x02",
    "an integer as a key": b"\xa3" + _GOOD + b"\x01\x02",
    "a tag": b"\xa2" + _TYPE + _PING + _ID + b"\xc1\x01",
    "undefined": b"\xa3" + _GOOD + b"\x61x\xf7",
    "a simple value": b"\xa3" + _GOOD + b"\x61x\xf0",
    "an indefinite text": b"\xa3" + _GOOD + b"\x61x\x7f\x61a\xff",
    "text that is not UTF-8": b"\xa3" + _GOOD + b"\x61x\x61\xff",
    "bytes after the item": b"\xa2" + _GOOD + b"\x00",
    "an item longer than its frame": b"\xa3" + _GOOD,
    "no map": b"\x01",
    "a map without type": b"\xa1" + _ID + b"\x01",
    "a type that is no text": b"\xa2" + _TYPE + b"\x01" + _ID + b"\x01",
    "a field of another type": b"\xa2" + _TYPE + _PING + _ID + b"\x61a",
    "a negative count": b"\xa2" + _TYPE + _PING + _ID + b"\x20",
}
"""Frames that a reader refuses; each is a ping but for what its name says."""


def _works(rig: Rig) -> None:
    """Have some frames go through it."""
    if rig.form is Form.SOURCE:
        rig.await_frames(3)
        return
    for number in range(1, 4):
        rig.feed(rig.payload(number))
    rig.returned()


@check("reads messages that come byte by byte", EVERY, Level.MINIMAL, FRAMES)
def pieces(rig: Rig) -> None:
    rig.daemon.piece = 1
    rig.up()
    _works(rig)


@check("reads several messages that come at once", EVERY, Level.USUAL, FRAMES)
def joined(rig: Rig) -> None:
    rig.begin()
    rig.plan()
    rig.greet()
    rig.offered()
    rig.link()
    rig.ready()
    rig.say(Ping(id=1), Start(), Ping(id=2))
    rig.await_said(Started, "started")
    rig.until(lambda: len(rig.said(Pong)) >= 2, "a pong for each of two pings that came at once")


@check("reads integers and lengths that are written longer than needed", EVERY, Level.MINIMAL, CBOR)
def long_forms(rig: Rig) -> None:
    rig.daemon.encode = wide
    rig.up()
    _works(rig)


@check("ignores keys that it does not know, also in ports and links", EVERY, Level.MINIMAL, CHANGING)
def unknown_keys(rig: Rig) -> None:
    rig.daemon.reshape = _with_more
    rig.up()
    _works(rig)


def _with_more(message: dict[str, Any]) -> dict[str, Any]:
    more = {"x-future": {"a": [1, None, 2.5, b"\0"]}}
    for key in ("inputs", "outputs", "timers"):
        found = message.get(key)
        if isinstance(found, list) and all(isinstance(each, dict) for each in found):
            message[key] = [{**more, **each} for each in found]
    return {**more, **message}


@check("goes on after messages of the bus that it has no use for", EVERY, Level.USUAL, (PROTOCOL, "The event bus"))
def bus_messages(rig: Rig) -> None:
    rig.up()
    rig.say(Deliver(envelope={"topic": "kit", "x-unknown": 1}, payload=b"{}"))
    rig.say(Tick(id="kit", sequence=1, due_ns=1))
    rig.say(Reply(corr_id="nobody", payload=b"{}"))
    rig.say(RequestFailure(corr_id="nobody", reason="timeout", message="nobody asked"))
    rig.ping(1)


@check("ends by itself when the bytes of a frame are no CBOR", EVERY, Level.MINIMAL, CBOR)
def garbage(rig: Rig) -> None:
    rig.up()
    body = os.urandom(64)
    rig.daemon.write(struct.pack(">I", 65) + b"\xff" + body)
    rig.failed_orderly("an exit status above 0 after bytes that are no CBOR")


@check("ends at once when a frame is announced that is larger than allowed", EVERY, Level.MINIMAL, FRAMES)
def oversized(rig: Rig) -> None:
    rig.up()
    rig.daemon.write(struct.pack(">I", (16 << 20) + 1))
    rig.failed_orderly("an exit status above 0 after the length 16777217")


@check("ends when the connection is cut within a frame", EVERY, Level.MINIMAL, FRAMES)
def cut_frame(rig: Rig) -> None:
    rig.up()
    rig.daemon.write(struct.pack(">I", 100) + b"\xa1")
    rig.daemon.hang_up()
    rig.failed_orderly("an exit status above 0 after half a frame")


@check(
    "ends when a message comes without the descriptors that belong to it", EVERY, Level.USUAL, (PROTOCOL, "Descriptors")
)
def missing_descriptors(rig: Rig) -> None:
    rig.begin()
    rig.plan()
    rig.greet()
    rig.offered()
    config = rig.configured
    link: dict[str, Any] = {
        "type": "link",
        "outputs": [port.route for port in config.outputs],
        "inputs": [{"route": port.route, "segments": [0]} for port in config.inputs],
    }
    body = cbor.dumps(link)
    rig.daemon.write(struct.pack(">I", len(body)) + body)
    rig.failed_orderly("an exit status above 0 after a link without descriptors")


@check("refuses each frame that strict CBOR or the schema refuses", EVERY, Level.FULL, CBOR)
def strict(rig: Rig) -> None:
    for name, body in REFUSED.items():
        with rig.another() as other:
            other.up()
            other.daemon.write(struct.pack(">I", len(body)) + body)
            other.failed_orderly(f"an exit status above 0 after {name}")
            if other.said(Pong):
                raise Failed(f"no answer to {name}", "a pong")
