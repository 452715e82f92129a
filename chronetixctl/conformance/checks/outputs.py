"""Frames that the program sends: which, in which memory, and what becomes of those without a credit."""

from __future__ import annotations

import os
import time

from chronetixctl.conformance.check import PROTOCOL, SPEC, Level, check
from chronetixctl.conformance.contents import known, same
from chronetixctl.conformance.conversation import QUIET_S
from chronetixctl.conformance.forge import DROPPED, word
from chronetixctl.conformance.forms import SENDS, Failed, Form, NotChecked
from chronetixctl.conformance.rig import Rig

STEPS = (SPEC, "5 Steps of the producer")
WAKING = (SPEC, "7 Wake-up")
WORKERS = (PROTOCOL, "Workers")


def drive(rig: Rig, count: int, first: int = 1) -> None:
    """Have a map send so many frames; a source sends by itself."""
    if rig.form is Form.MAP:
        for number in range(first, first + count):
            rig.feed(rig.payload(number))


@check("returns each frame unchanged and in order", (Form.MAP,), Level.USUAL, STEPS)
def echo(rig: Rig) -> None:
    rig.needs_contents()
    rig.up(credits=4)
    sent = [rig.payload(number, number * 37) for number in range(1, 201)]
    for data in sent:
        rig.feed(data)
    for number, (data, frame) in enumerate(zip(sent, rig.await_frames(len(sent)), strict=False), 1):
        same(data, frame.data, f"frame {number}")


@check("sends the kit's sequence, item after item from 1", (Form.SOURCE,), Level.USUAL, (SPEC, "3 RING"))
def sequence(rig: Rig) -> None:
    rig.needs_contents()
    rig.up(credits=4)
    for number, frame in enumerate(rig.await_frames(200)[:200], 1):
        same(known(number, 8), frame.data, f"item {number}")
        if frame.input_seq != number:
            raise Failed(f"input_seq {number}, the item's number", f"input_seq {frame.input_seq}")


@check("says of what it sends from which frame it was made", (Form.MAP,), Level.USUAL, (SPEC, "3 RING"))
def origins(rig: Rig) -> None:
    rig.needs_contents()
    rig.up(credits=4)
    seqs = [rig.feed(rig.payload(number)) for number in range(1, 21)]
    found = [frame.input_seq for frame in rig.await_frames(20)]
    if found != seqs:
        raise Failed(f"input_seq {seqs}", f"{found}")


@check("marks what it makes of a redelivered frame", (Form.MAP,), Level.USUAL, (SPEC, "10.6 What may come twice"))
def marks(rig: Rig) -> None:
    rig.needs_contents()
    rig.up(credits=4)
    for number in range(1, 7):
        rig.feed(rig.payload(number), redelivered=number % 2 == 0)
    found = [frame.redelivered for frame in rig.await_frames(6)]
    if found != [False, True] * 3:
        raise Failed("REDELIVERED on what is made of frames 2, 4 and 6", f"{found}")


@check("carries a deadline on and never puts it off", (Form.MAP,), Level.FULL, STEPS)
def deadlines(rig: Rig) -> None:
    rig.needs_contents()
    rig.up(credits=4)
    rig.feed(rig.payload(1), deadline_ns=12345)
    (frame,) = rig.await_frames(1)
    if not 0 < frame.deadline_ns <= 12345:
        raise Failed("a deadline_ns of 12345 or earlier", f"{frame.deadline_ns}")


@check("sends no frame without a credit, and goes on when one comes back", SENDS, Level.USUAL, STEPS)
def backpressure(rig: Rig) -> None:
    rig.up(credits=4, held=0)
    if rig.form is Form.MAP:
        for number in range(1, 9):
            rig.feed(rig.payload(number), expected="input credits come back up to the output's")
    rig.await_frames(4)
    rig.quiet(lambda: len(rig.down0.frames) > 4, "no frame beyond the four credits of the output")
    for count in range(5, 9):
        rig.down0.release(1)
        if count in (6, 8):  # its producer may sleep until half of the credits are back
            rig.await_frames(count, expected="frames when credits have come back")


@check("sees a credit that comes back while it sleeps", SENDS, Level.USUAL, WAKING)
def wakes_for_credit(rig: Rig) -> None:
    rig.up(credits=2, held=0)
    drive(rig, 4)
    for count in (2, 4):
        rig.await_frames(count, expected="frames when credits have come back")
        rig.quiet(lambda: False, "it goes on", 0.05)
        rig.down0.release()


@check("rings a consumer that sleeps", SENDS, Level.USUAL, WAKING)
def rings_consumer(rig: Rig) -> None:
    rig.up(credits=2)
    down = rig.down0
    for number in range(1, 21):
        down.taking = False
        drive(rig, 1, number)
        down.taking = True
        deadline = time.monotonic() + rig.subject.timeout_s
        while len(down.frames) < number:
            down.take()
            if len(down.frames) < number and down.inlet.arm():
                left = deadline - time.monotonic()
                if left <= 0 or not rig.bell.wait(int(left * 1e9)):
                    raise Failed("a ring at a frame for which its consumer waits asleep", rig.seen("none came"))


@check("sends every frame to each of four outputs", SENDS, Level.USUAL, STEPS)
def fan_out(rig: Rig) -> None:
    rig.up(outputs=rig.output_ports(4, credits=4))
    drive(rig, 20)
    for down in rig.downstreams:
        rig.await_frames(20, down)
    first = [frame.data for frame in rig.down0.frames[:20]]
    if any([frame.data for frame in down.frames[:20]] != first for down in rig.downstreams):
        raise Failed("the same frames on each output", "frames that differ")


@check("waits for the slowest of its outputs, and loses nothing on any", SENDS, Level.USUAL, STEPS)
def slowest_output(rig: Rig) -> None:
    rig.up(outputs=[*rig.output_ports(1), rig.output_ports(2, credits=4)[1]], held=1)
    slow = rig.downstreams[1]
    if rig.form is Form.MAP:
        for number in range(1, 6):
            rig.feed(rig.payload(number))
    rig.await_frames(4, slow)
    rig.quiet(lambda: len(rig.down0.frames) > 4, "no frame on the quick output for which the slow one has no credit")
    slow.hold = False
    slow.release()
    drive(rig, 5, 6)
    for down in rig.downstreams:
        rig.await_frames(10, down)


@check("drops, and counts, frames without a credit where the policy is drop_newest", SENDS, Level.USUAL, STEPS)
def drop_newest(rig: Rig) -> None:
    rig.up(outputs=rig.output_ports(1, credits=4, policy="drop_newest"), held=0)
    down = rig.down0
    drive(rig, 50)
    rig.until(lambda: word(down.ring_fd, DROPPED) >= 10, "frames that are dropped, and counted in RING.dropped")
    if len(down.frames) > 4:
        raise Failed("four frames at four credits", f"{len(down.frames)}")
    down.hold = False
    down.release()
    drive(rig, 5, 51)
    rig.await_frames(5, expected="further frames once credits have come back")


@check("overwrites the oldest frames where the policy is latest, and waits for nobody", SENDS, Level.USUAL, STEPS)
def latest_output(rig: Rig) -> None:
    rig.up(outputs=rig.output_ports(1, credits=4, policy="latest"), untaken=0)
    down = rig.down0
    drive(rig, 50)
    rig.until(lambda: down.stamped() >= 20, "frames go on while its consumer takes none")
    down.taking = True
    rig.take_frames()
    rig.until(lambda: bool(down.frames), "the newest frames")
    if down.frames[0].seq < 10:
        raise Failed("the newest frames", f"frame {down.frames[0].seq}")


@check("grows, and uses a segment only when it is confirmed", SENDS, Level.USUAL, (SPEC, "9 Growing and shrinking"))
def growth(rig: Rig) -> None:
    rig.needs_own_frames()
    rig.confirms = False
    rig.begin()
    rig.plan(credits=4, first=32 << 20, params={"size": 4 << 20})
    rig.greet()
    rig.offered()
    rig.link()
    rig.ready()
    rig.start()
    if rig.form is Form.MAP:
        rig.feed(rig.payload(1, 4 << 20))
    rig.until(lambda: bool(rig.unconfirmed or rig.down0.frames), "a frame of 4 MiB, or a segment for it")
    if rig.down0.frames and len(rig.down0.frames[0].data) != 4 << 20:
        raise NotChecked("its frames have another size than params.size, so that it need not grow")
    if not rig.unconfirmed:
        raise NotChecked("its first segments were large enough for a frame of 4 MiB")
    rig.quiet(lambda: rig.down0.stamped() > 0, "no frame in a segment that is not confirmed", 2 * QUIET_S)
    rig.confirms = True
    rig.confirm_growth()
    (frame, *_) = rig.await_frames(1, expected="the frame, when its segment is confirmed")
    if rig.subject.contents:
        same(known(1, 4 << 20), frame.data, "a frame of 4 MiB")


def _arena_bytes(rig: Rig) -> int:
    """Return how large all segments of the program are together."""
    return sum(os.fstat(descriptor).st_size for descriptor in rig.segments.values())


@check("keeps its memory within arena_limit", SENDS, Level.USUAL, WORKERS)
def arena_limit(rig: Rig) -> None:
    rig.needs_own_frames()
    rig.up(credits=32, first=32 << 20, params={"size": 1 << 20}, arena_limit=4 << 20, held=0)
    if rig.form is Form.MAP:
        for number in range(1, 9):
            rig.feed(rig.payload(number, 1 << 20))
    rig.until(lambda: bool(rig.down0.frames), "a frame")
    rig.quiet(lambda: _arena_bytes(rig) > 4 << 20, "segments of 4 MiB together at most", 2 * QUIET_S)
    if len(rig.down0.frames[0].data) == 1 << 20:
        rig.down0.hold = False
        rig.down0.release()
        rig.await_frames(8, expected="further frames when memory has come back")
