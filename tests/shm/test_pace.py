"""Naps: a producer that spends its time with rings proposes one, a consumer that takes one misses no frame."""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from chronetix import shm
from chronetixctl.conformance.forge import Forge, ForgedMemory
from tests.shm.lines import a_line, ring
from tests.shm.sanitize import build, run

NAP_NS, WAIT_FOR = 448, 128
FOREVER = (1 << 64) - 1


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("kind", ["plain", "address"])
def test_a_producer_proposes_a_nap_where_frames_come_more_quickly_than_rings(tmp_path, kind):
    run(build("pace", kind, tmp_path))


class Sleeper:
    """A real consumer of a forged ring, and a thread that takes from it without a limit of time."""

    def __init__(self, forge: Forge, near: int, **settings) -> None:
        qos = settings.pop("qos", "normal")
        self.ring: ForgedMemory = forge.ring(**settings)
        self.consumer = shm.Consumer("r", credits=settings["credits"], qos=qos)
        self.bell = shm.Doorbell()
        self.consumer.link(self.ring.fd, near, self.bell)
        self.inlet = shm.Inlet([self.consumer], self.bell)
        self.credit = mmap.mmap(self.consumer.fd, 0, prot=mmap.PROT_READ)
        self.taken: list[int] = []

    def take(self) -> threading.Thread:
        thread = threading.Thread(target=self._take)
        thread.start()
        return thread

    def _take(self) -> None:
        while (frame := self.inlet.take()) is None:
            assert not self.inlet.ended
        self.taken.append(frame.seq)
        frame.release()

    def wait_for(self) -> int:
        """The stamp for which it wants to be rung, once it says so."""
        while True:
            (wanted,) = struct.unpack_from("<Q", self.credit, WAIT_FOR)
            if wanted:
                return int(wanted)


@contextmanager
def a_sleeper(forge: Forge, *, nap_ns: int, **settings) -> Iterator[tuple[Sleeper, socket.socket]]:
    with a_line() as (far, near), socket.socket(fileno=os.dup(far)) as sock:
        sleeper = Sleeper(forge, near, **settings)
        sleeper.ring.put(NAP_NS, nap_ns)
        try:
            yield sleeper, sock
        finally:
            sleeper.credit.close()
            sleeper.consumer.close()


def send(sleeper: Sleeper, sock: socket.socket, position: int) -> bool:
    """As SPEC.md has it: stamp, then look, then ring. Whether it rang."""
    sleeper.ring.describe(position)
    (wanted,) = struct.unpack_from("<Q", sleeper.credit, WAIT_FOR)
    if wanted == position + 1:
        ring(sock)
    return wanted == position + 1


@pytest.mark.parametrize("nap_ns", [1, 250_000, FOREVER])
def test_each_frame_is_seen_though_the_bell_rings_only_for_what_was_asked(forge, nap_ns):
    with a_sleeper(forge, nap_ns=nap_ns, credits=64) as (sleeper, sock):
        for position in range(300):
            thread = sleeper.take()
            sleeper.wait_for()
            send(sleeper, sock, position)
            thread.join()
        assert sleeper.taken == list(range(300))


def test_a_sleeper_lets_half_of_the_free_credits_gather(forge):
    with a_sleeper(forge, nap_ns=FOREVER, credits=64) as (sleeper, sock):
        asked = set()
        for position in itertools.takewhile(lambda _: 32 not in asked, range(100_000)):
            thread = sleeper.take()
            asked.add(sleeper.wait_for() - position)
            send(sleeper, sock, position)
            thread.join()
        assert asked <= {1, 32}


@pytest.mark.parametrize(
    "settings",
    [
        {"credits": 64, "qos": "high"},
        {"credits": 64, "qos": "realtime"},
        {"credits": 64, "policy": 1},
        {"credits": 3},
        {"credits": 1},
    ],
    ids=["high", "realtime", "drop_newest", "three credits", "one credit"],
)
def test_where_frames_are_wanted_at_once_the_next_one_rings(forge, settings):
    with a_sleeper(forge, nap_ns=FOREVER, **settings) as (sleeper, sock):
        for position in range(100):
            thread = sleeper.take()
            assert sleeper.wait_for() == position + 1
            assert send(sleeper, sock, position)
            thread.join()


def test_who_answers_each_frame_takes_no_nap(forge, make_route):
    other = make_route()
    with a_sleeper(forge, nap_ns=FOREVER, credits=64) as (sleeper, sock):
        for position in range(100):
            other.outlet.send(b"answer")
            other.take().release()
            thread = sleeper.take()
            assert sleeper.wait_for() == position + 1
            assert send(sleeper, sock, position)
            thread.join()


def test_a_consumer_that_keeps_frames_lets_fewer_gather(forge):
    with a_sleeper(forge, nap_ns=FOREVER, credits=64) as (sleeper, sock):
        for position in range(60):
            sleeper.ring.describe(position)
        kept = [sleeper.inlet.take() for _ in range(60)]
        asked = set()
        for position in itertools.takewhile(lambda _: 2 not in asked, range(60, 100_000)):
            thread = sleeper.take()
            asked.add(sleeper.wait_for() - position)
            send(sleeper, sock, position)
            thread.join()
        assert asked <= {1, 2}
        kept.clear()


def nap_of(producer: shm.Producer) -> int:
    with mmap.mmap(producer.fd, 0, prot=mmap.PROT_READ) as memory:
        return int(struct.unpack_from("<Q", memory, NAP_NS)[0])


def test_a_stream_is_proposed_a_nap_and_a_conversation_none(spawn):
    def answer(end):
        while not end.inlet.ended:
            frame = end.inlet.take()
            if frame is None:
                continue
            if len(frame) == 1:
                end.outlet.send(b"")
            frame.release()

    child = spawn(answer, credits=64)
    step, producer = shm.Step(), child.end.producer
    while not nap_of(producer):
        shm.run_items(iter([b"frames"] * 1000), step, (), child.end.outlet.send)
    while nap_of(producer):
        child.end.outlet.send(b"?")
        child.end.next().release()
    producer.close()
    child.join()
