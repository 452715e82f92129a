"""Frames that come: taken, returned, in every shape that a producer may give them."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from threading import Timer
from typing import Final

from chronetix import shm
from chronetixctl.conformance.check import SPEC, Level, check
from chronetixctl.conformance.contents import same
from chronetixctl.conformance.forms import TAKES, Failed, Form, NotChecked
from chronetixctl.conformance.rig import Rig

STEPS = (SPEC, "6 Steps of the consumer")
GROWING = (SPEC, "9 Growing and shrinking")
WAKING = (SPEC, "7 Wake-up")

SIZES: Final = (0, 1, 7, 63, 64, 65, 4095, 4096, 4097, 1 << 16, (1 << 20) - 1, 1 << 20, 8 << 20)
"""Bytes of frames: none, around a cache line and a page, and large."""

ROOM: Final = 32 << 20
"""Bytes of the first segment, where large frames are sent."""


def echoed(rig: Rig, sent: list[bytes]) -> None:
    """Raises Failed if a map has sent something else than what it got; nothing for a sink."""
    if rig.form is not Form.MAP or not rig.subject.contents:
        return
    frames = rig.await_frames(len(sent))
    for number, (data, frame) in enumerate(zip(sent, frames, strict=False), 1):
        same(data, frame.data, f"frame {number}")
    if len(frames) > len(sent):
        raise Failed(f"{len(sent)} frames", f"{len(frames)} frames")


@check("returns every frame, several times round the ring", TAKES, Level.MINIMAL, STEPS)
def frames_return(rig: Rig) -> None:
    rig.up(credits=4)
    sent = [rig.payload(number) for number in range(1, 101)]
    for data in sent:
        rig.feed(data)
    rig.returned()
    echoed(rig, sent)


@check("takes frames of 0 bytes to 8 MiB", TAKES, Level.MINIMAL, STEPS)
def frame_sizes(rig: Rig) -> None:
    rig.needs_own_frames()
    rig.up(credits=4, first=ROOM)
    sent = [rig.payload(number, size) for number, size in enumerate(SIZES, 1)]
    for data in sent:
        rig.feed(data)
    rig.returned("frames of 0 bytes to 8 MiB are returned")
    echoed(rig, sent)


@check("takes a frame that comes while it sleeps, rung as a daemon's line rings", TAKES, Level.MINIMAL, WAKING)
def wakes(rig: Rig) -> None:
    rig.up(credits=4)
    sent = [rig.payload(number) for number in range(1, 6)]
    for data in sent:
        rig.feed(data)
        rig.returned("a frame that comes while it sleeps is returned")
        rig.quiet(lambda: False, "it goes on", 0.03)
    echoed(rig, sent)


STOPPED_AT = 25
ASLEEP_S = 0.02
"""From this frame on the program stands still until the producer sleeps, and goes on so much later."""


@check("rings a producer that sleeps for a credit", TAKES, Level.MINIMAL, WAKING)
def rings_producer(rig: Rig) -> None:
    rig.up(credits=1)
    deadline = time.monotonic() + rig.subject.timeout_s
    going_on = Timer(ASLEEP_S, rig.program.signal, (signal.SIGCONT,))
    for number in range(1, 51):
        if number == STOPPED_AT:
            rig.program.signal(signal.SIGSTOP)
        while True:
            try:
                rig.up0.outlet.send(rig.payload(number), 0)
                break
            except shm.WouldBlock:
                if number >= STOPPED_AT and not going_on.is_alive() and not going_on.finished.is_set():
                    going_on.start()
                left = deadline - time.monotonic()
                if left <= 0 or not rig.up0.outlet.wait(int(left * 1e9)):
                    raise Failed("a ring when the awaited credit comes back", rig.seen("none came")) from None
        rig.take_frames()
    going_on.join()
    rig.returned()


@check("passes over positions that the producer has skipped", TAKES, Level.MINIMAL, STEPS)
def skips(rig: Rig) -> None:
    rig.begin()
    rig.plan(credits=4)
    ring, _ = rig.forge_input(credits=4)
    rig.greet()
    rig.offered()
    rig.link()
    rig.ready()
    for position in (0, 1, 3):
        ring.skip(position)
    for position in (2, 4):
        ring.describe(position, length=64)
    rig.start()
    rig.until(lambda: rig.forged.returned == 2, "frames behind skipped positions are returned")


@check("takes from eight inputs, which end one after another", TAKES, Level.USUAL, STEPS)
def fan_in(rig: Rig) -> None:
    rig.up(rig.input_ports(8, credits=4))
    number = 0
    for last in range(8, 0, -1):
        for up in rig.honest[:last]:
            number += 1
            rig.feed(rig.payload(number), up)
        rig.returned()
        rig.honest[last - 1].close()
    rig.finished()
    if rig.form is Form.MAP and rig.subject.contents and len(rig.down0.frames) != number:
        raise Failed(f"{number} frames of eight inputs", f"{len(rig.down0.frames)} frames")


@check("is not held up by an input on which nothing comes", TAKES, Level.USUAL, STEPS)
def idle_input(rig: Rig) -> None:
    rig.up(rig.input_ports(2, credits=4))
    for number in range(1, 21):
        rig.feed(rig.payload(number), rig.honest[1])
    rig.returned()
    rig.close_inputs()
    rig.finished()


@check(
    "follows a producer that grows: maps each new segment, says so, takes frames from it", TAKES, Level.MINIMAL, GROWING
)
def segments(rig: Rig) -> None:
    rig.needs_own_frames()
    rig.up(credits=4, first=1 << 16)
    sent = [rig.payload(number, size) for number, size in enumerate((1 << 10, 1 << 18, 1 << 20, 3 << 20), 1)]
    for data in sent:
        rig.feed(data, expected="segment-mapped for each new segment, and credits that come back")
    rig.returned("frames in new segments are returned")
    if not rig.up0.mapped:
        raise Failed("segment-mapped", "none")
    echoed(rig, sent)


@check(
    "follows a producer that shrinks: unmaps the segment, says so, takes its number anew", TAKES, Level.USUAL, GROWING
)
def shrinking(rig: Rig) -> None:
    rig.needs_own_frames()
    rig.up(credits=4, first=1 << 16)
    sent = []
    for number in (1, 2):
        sent.append(rig.payload(number, 1 << 20))
        rig.feed(sent[-1], expected="segment-mapped, also for a number that was free again")
        rig.returned("the frame in the new segment is returned")
        echoed(rig, sent)
        before, inodes = len(rig.up0.dropped), set(rig.inodes)
        if not inodes & _mapped(rig):
            raise NotChecked("its mappings cannot be told apart")
        rig.up0.arena.shrink(1 << 16)
        rig.until(partial(_more_dropped, rig, before), "segment-dropped, as the answer to the producer's")
        if inodes & _mapped(rig):
            raise Failed("the dropped segment is unmapped", "the program still maps it")


def _more_dropped(rig: Rig, before: int) -> bool:
    return len(rig.up0.dropped) > before


def _mapped(rig: Rig) -> set[int]:
    """Return the inodes of all files that the program maps."""
    with open(f"/proc/{rig.program.pid}/maps", encoding="ascii", errors="replace") as maps:
        return {int(line.split()[4]) for line in maps}


@check("counts from the stage's base_seq, and keeps its epoch", TAKES, Level.USUAL, (SPEC, "10 Death and succession"))
def later_stage(rig: Rig) -> None:
    rig.up(rig.input_ports(1, credits=4, epoch=3, base_seq=1_000_000))
    seqs = [rig.feed(rig.payload(number)) for number in range(1, 11)]
    rig.returned()
    if rig.form is Form.MAP and rig.subject.contents:
        found = [frame.input_seq for frame in rig.await_frames(10)]
        if found != seqs:
            raise Failed(f"input_seq {seqs} in what it makes of them", f"{found}")


STOPPED = range(50, 70)
"""While these frames are sent, the program stands still, so that it cannot have taken all of them before they are
overwritten."""


@check("takes from a route of policy latest, and shows how far it is", TAKES, Level.USUAL, STEPS)
def latest_input(rig: Rig) -> None:
    rig.up(rig.input_ports(1, credits=4, policy="latest"))
    for number in range(1, 201):
        if number == STOPPED.start:
            rig.program.signal(signal.SIGSTOP)
        rig.feed(rig.payload(number))
        if number == STOPPED.stop:
            rig.program.signal(signal.SIGCONT)
        if number % 10 == 0:
            rig.take_frames()
    view = shm.RouteView(rig.up0.ring_fd, rig.offers[0][1][len(rig.offers[0][0].rings)])
    try:
        rig.until(lambda: view.snapshot()["returned"] == 200, "returned at the position behind the newest frame")
        found = view.snapshot()
    finally:
        view.close()
    if found["taken"] + found["dropped"] != 200:
        raise Failed("taken and lost frames that sum up to the 200 sent", f"{found['taken']} and {found['dropped']}")
    if rig.form is Form.MAP and rig.subject.contents:
        seqs = [frame.input_seq for frame in rig.await_frames(found["taken"])]
        if seqs != sorted(set(seqs)) or seqs[-1] != 199:
            raise Failed("frames in order, the newest last", f"input_seq {seqs[-5:]}")


@check("takes the payload without the notes behind it", (Form.MAP,), Level.USUAL, (SPEC, "3.1 Notes"))
def notes(rig: Rig) -> None:
    rig.needs_contents()
    rig.up(credits=4)
    data, meta = rig.payload(1), b"\xa1\x61a\x01"
    rig.feed(data + meta + (77).to_bytes(8, "little") + len(meta).to_bytes(4, "little") + bytes(4), noted=True)
    rig.returned()
    echoed(rig, [data])


@check("keeps no descriptor of segments that come and go", TAKES, Level.USUAL, GROWING)
def descriptors(rig: Rig) -> None:
    rig.needs_own_frames()
    rig.up(credits=4, first=1 << 16)
    counts = []
    for number in range(1, 9):
        rig.feed(rig.payload(number, 1 << 20))
        rig.returned()
        rig.up0.arena.shrink(1 << 16)
        rig.until(partial(_more_dropped, rig, number - 1), "segment-dropped, as the answer")
        rig.ping(number)
        try:
            counts.append(rig.program.open_descriptors())
        except OSError as reason:
            raise NotChecked(f"its descriptors cannot be listed: {os.strerror(reason.errno or 0)}") from None
    if counts[-1] > counts[1] + 2:
        raise Failed("as many open descriptors after eight segments as after two", f"{counts[1]}, then {counts[-1]}")
