"""Run by test_cbor_memory.py below starved.c: whichever allocation fails, what comes out is MemoryError or the right
value, and nothing is left behind."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from chronetix.protocol import cbor, messages
from chronetix.protocol.descriptors import Channel
from chronetix.protocol.framing import Encoding, Work, encode

allocator = ctypes.CDLL(None)
allocator.starve.argtypes = [ctypes.c_long, ctypes.c_long]
allocator.starve.restype = None
allocator.living.restype = ctypes.c_long
stop_starving = os.getppid
"""See starved.c; how many allocations have failed."""

DOCUMENT: dict[str, Any] = {
    "type": "publish",
    "envelope": {"topic": "t" * 300, "ext": {f"key-{n}": [n, -n, n / 7, None, True, {}] for n in range(40)}},
    "payload": b"x" * 5000,
    "big": [1 << 63, -(1 << 64), "é" * 700, "\U0001f600"],
}
WRITTEN = cbor.dumps(DOCUMENT)
PUBLISH = messages.Publish(envelope=DOCUMENT["envelope"], payload=DOCUMENT["payload"])
FRAME = encode(PUBLISH)
BROKEN = [b"\xa2\x61a\x01\x61a\x02", b"\x81\x61\xff", b"\xc1\x00", b"\x82\x01\xf7", b"\x81" * 65, b"\x9b" + b"\xff" * 8]


def read_in_pieces() -> Any:
    document = cbor.Decoder(WRITTEN)
    while not document.step(7):
        pass
    return document.take()


def take_apart() -> None:
    pile = [read_in_pieces()]
    while not cbor.dismantle(pile, 5):
        pass
    assert pile == []


def give_up() -> None:
    document = cbor.Decoder(WRITTEN)
    document.step(50)
    document.leavings()


def write_in_pieces() -> bytes:
    encoding, work = Encoding(messages.Result(id=1, value=DOCUMENT)), Work(7)
    while not encoding.step(work):
        work.left = 7
    return bytes(encoding.take())


def refuse() -> None:
    for data in BROKEN:
        try:
            cbor.loads(data)
        except cbor.CborError:
            continue
        raise AssertionError(data)
    for value in ({1: 2}, {"k": object()}, "\ud800"):
        try:
            cbor.dumps(value)
        except cbor.CborError:
            continue
        raise AssertionError(value)


def receive() -> list[Any]:
    channel: Channel[Any] = Channel(messages.WorkerMessage)
    return list(channel.feed(FRAME[:900])) + list(channel.feed(FRAME[900:]))


def convert() -> tuple[Any, Any]:
    return msgspec.convert(DOCUMENT, messages.Publish), msgspec.to_builtins(PUBLISH)


ACTS: list[Callable[[], Any]] = [
    lambda: cbor.loads(WRITTEN),
    lambda: cbor.dumps(DOCUMENT),
    lambda: cbor.frame(DOCUMENT, 1 << 20),
    lambda: cbor.check(DOCUMENT),
    read_in_pieces,
    take_apart,
    give_up,
    write_in_pieces,
    refuse,
    receive,
    convert,
    lambda: encode(PUBLISH),
]


BURSTS = (0, 5)
"""Allocations that fail behind the one that is chosen. One alone where generators are: without memory the interpreter
cannot close them, says so, and keeps what is in them."""


def exhaust(act: Callable[[], Any], after: int) -> tuple[int, int]:
    """Every allocation of ``act`` fails once, with so many ``after`` it; how many there were, and were raised."""
    tried = raised = 0
    expected = act()
    while True:
        tried += 1
        result: Any = None
        allocator.starve(tried, after)
        try:
            result = act()
        except (MemoryError, SystemError):  # CPython 3.11 says SystemError where it has no memory for its traceback
            raised += 1
            result = expected
        finally:
            failed = stop_starving()
        if result != expected:
            raise AssertionError(f"{act} has another result when allocation {tried} fails")
        if not failed:
            return tried - 1, raised


def left_by(act: Callable[[], Any], after: int) -> float:
    """Blocks that a round of failures leaves, in the median of the last of many: the interpreter's own free lists fill
    in the first ones."""
    left = []
    for _ in range(21):
        before = allocator.living()
        exhaust(act, after)
        gc.collect()
        left.append(allocator.living() - before)
    return statistics.median(left[-7:])


def main() -> int:
    for number, act in enumerate(ACTS):
        for after in BURSTS[: 1 if act is receive else None]:
            tried, raised = exhaust(act, after)
            left = left_by(act, after)
            print(f"{number} {after}: {tried} failures, {raised} raised, {left:.0f} left", flush=True)
            # What is refused is refused: CPython 3.11.2 makes up for memory that it lacks for the text of an error.
            if left > max(3, tried // 4) or (raised < tried and act is not refuse):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
