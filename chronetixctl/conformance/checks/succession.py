"""Routes whose ends come and go while the program runs: successors, next stages, outputs that nobody takes from."""

from __future__ import annotations

import os

import msgspec

from chronetix import shm
from chronetix.protocol.messages import Detach, Drained, Extend, Fault, Finished, GaveUp, Link, Retract, Start, Started
from chronetixctl.conformance.check import PROTOCOL, SPEC, Level, check
from chronetixctl.conformance.forge import CLOSED, RETURNED, word
from chronetixctl.conformance.forms import SENDS, TAKES, Failed, Form
from chronetixctl.conformance.offers import check_offer
from chronetixctl.conformance.peers import Downstream, Upstream
from chronetixctl.conformance.rig import Rig

WORKERS = (PROTOCOL, "Workers")
SUCCESSOR = (SPEC, "10.2 A consumer's successor")
HEIR = (SPEC, "10.3 A producer whose consumer has a successor")
STAGE = (SPEC, "10.5 The next stage")
STEPS = (SPEC, "5 Steps of the producer")


def _relink_input(rig: Rig) -> None:
    """Link the producer to the program, the successor of its consumer."""
    assert rig.later is not None
    with rig.faults("a CREDIT of a successor, which has returned nothing yet"):
        rig.up0.link(*rig.later)
    for descriptor in rig.later:
        os.close(descriptor)
    rig.later = None


def _leave_input(rig: Rig) -> None:
    """Leave the first input as its producer's death does: not closed, the line hung up."""
    gone = rig.upstreams.pop(0)
    assert isinstance(gone, Upstream)
    gone.arena.close()


def _succeed_output(rig: Rig) -> None:
    """Put a successor in the place of the first output's consumer, which dies."""
    old = rig.downstreams.pop(0)
    rig.retired.append(old)
    old.consumer.abandon()
    heir = Downstream(old.port, rig.bell)
    heir.taking = False  # nothing is given back before the producer has linked it
    near, far = shm.line()
    with rig.faults("memory that a successor can go on with"):
        for index, segment in rig.segments.items():
            heir.add_segment(index, segment)
        heir.link(old.ring_fd, far, predecessor=old.credit_fd)
    rig.downstreams.insert(0, heir)
    rig.say(Link(outputs=[old.port.route]), descriptors=[heir.credit_fd, near])
    for descriptor in (near, far):
        os.close(descriptor)


@check("goes on with the next stage when its producer has a successor, and says drained", TAKES, Level.USUAL, STAGE)
def next_stage(rig: Rig) -> None:
    rig.up(credits=4)
    sent = [rig.payload(number) for number in range(1, 11)]
    seqs = [rig.feed(data) for data in sent[:5]]
    rig.returned()
    base = rig.up0.port.base_seq + rig.up0.producer.position
    port = msgspec.structs.replace(rig.up0.port, epoch=1, base_seq=base)
    _leave_input(rig)
    rig.upstreams = [rig.upstream(port)]
    offer = rig.extend(Extend(inputs=[port]))
    check_offer(*offer, [], [port])
    rig.link()
    rig.linked()
    drained = rig.await_said(Drained, "drained, for the stage that has ended")
    if (drained.route, drained.epoch) != (port.route, 0):
        raise Failed(f"drained for epoch 0 of {port.route}", f"epoch {drained.epoch} of {drained.route}")
    seqs += [rig.feed(data) for data in sent[5:]]
    rig.returned("frames of the next stage are returned")
    if rig.form is Form.MAP and rig.subject.contents:
        found = [frame.input_seq for frame in rig.await_frames(10)]
        if found != seqs:
            raise Failed(f"input_seq {seqs}", f"{found}")
    rig.close_inputs()
    rig.finished()


@check("takes over from a consumer that died: what was not returned first, and marked", TAKES, Level.USUAL, SUCCESSOR)
def takes_over(rig: Rig) -> None:
    rig.begin()
    rig.plan(credits=8, incarnation=1)
    dead = _dead_consumer(rig)
    rig.greet()
    rig.offered()
    rig.link(predecessor=dead)
    rig.ready()
    _relink_input(rig)
    rig.start()
    rig.returned("what the dead consumer had not returned is returned")
    if rig.form is Form.MAP and rig.subject.contents:
        found = [(frame.input_seq, frame.redelivered) for frame in rig.await_frames(4)]
        wanted = [(1, True), (3, True), (4, False), (5, False)]
        if found != wanted:
            raise Failed(f"input_seq and redelivered {wanted}", f"{found}")
    rig.close_inputs()
    rig.finished()
    offer, descriptors = rig.offers[0]
    if (count := word(descriptors[len(offer.rings)], RETURNED)) != 4:
        raise Failed("four frames given back, those that were not before", f"{count}")


def _dead_consumer(rig: Rig) -> int:
    """Send six frames to a consumer that takes four, returns the first and the third, and dies; its CREDIT."""
    up = rig.up0
    dead = shm.Consumer(up.port.route, credits=up.port.credits)
    near, far = shm.line()
    up.link(dead.fd, near)
    for index, segment in up.segments:
        dead.add_segment(index, segment)
    dead.link(up.ring_fd, far, rig.bell)
    inlet = shm.Inlet([dead], rig.bell)
    for number in range(1, 7):
        up.outlet.send(rig.payload(number), 0)
    taken = [inlet.take(0) for _ in range(4)]
    for at in (0, 2):
        frame = taken[at]
        assert frame is not None
        frame.release()
    dead.abandon()
    for descriptor in (near, far):
        os.close(descriptor)
    return rig.keep(os.dup(dead.fd))


@check("goes on with a consumer's successor, and loses nothing", SENDS, Level.USUAL, HEIR)
def consumer_successor(rig: Rig) -> None:
    rig.up(credits=4, held=0)
    old = rig.down0
    for number in range(1, 9 if rig.form.inputs else 1):
        rig.feed(rig.payload(number))
    rig.await_frames(4)
    old.release(2)
    seen = [frame.seq for frame in old.frames[:2]]
    old.taking = False
    _succeed_output(rig)
    rig.linked()
    heir = rig.down0
    heir.taking = True
    rig.await_frames(6, heir, "what the dead consumer had not returned, and what follows")
    seqs = seen + [frame.seq for frame in heir.frames[:6]]
    if seqs != sorted(set(seqs)):
        raise Failed("frames in order, none twice and none left out", f"{seqs}")
    if rig.subject.contents:
        items = [frame.input_seq for frame in heir.frames[:6]]
        first = 2 if rig.form is Form.MAP else 3
        if items != list(range(first, first + 6)):
            raise Failed(f"input_seq {list(range(first, first + 6))}", f"{items}")


@check("goes on with its other outputs when the consumer of one is gone for good", SENDS, Level.USUAL, WORKERS)
def detached(rig: Rig) -> None:
    rig.up(outputs=rig.output_ports(2, credits=4), held=1)
    gone = rig.downstreams[1]
    for number in range(1, 6 if rig.form.inputs else 1):
        rig.feed(rig.payload(number))
    rig.await_frames(4, gone)
    rig.say(Detach(route=gone.port.route))
    for number in range(6, 31 if rig.form.inputs else 6):
        rig.feed(rig.payload(number))
    rig.await_frames(20, expected="further frames on the output that is left")
    rig.close_inputs()
    rig.finished()


@check("ends when the consumer of its only output is gone for good", SENDS, Level.USUAL, WORKERS)
def last_output_gone(rig: Rig) -> None:
    rig.up(credits=4)
    for number in range(1, 5 if rig.form.inputs else 1):
        rig.feed(rig.payload(number))
    rig.await_frames(4)
    rig.down0.taking = False
    rig.say(Detach(route=rig.down0.port.route))
    expected = "finished and status 0, or a fault RouteClosed and a status above 0: nobody takes what it sends"

    def ended() -> bool:
        if rig.form.inputs:
            rig.try_feed(rig.payload(5))
        return rig.program.status is not None

    rig.until(ended, expected, may_end=True)
    status = rig.exited(expected)
    faults = [fault.error for fault in rig.said(Fault)]
    if not (status == 0 and rig.said(Finished)) and not (status > 0 and faults == ["RouteClosed"]):
        raise Failed(expected, rig.seen())


@check("goes on with its other outputs when a consumer has closed its route", SENDS, Level.USUAL, STEPS)
def consumer_closed(rig: Rig) -> None:
    rig.up(outputs=rig.output_ports(2, credits=4))
    for number in range(1, 6 if rig.form.inputs else 1):
        rig.feed(rig.payload(number))
    rig.await_frames(4)
    gone = rig.downstreams[1]
    gone.taking = False
    gone.consumer.close()
    for number in range(6, 31 if rig.form.inputs else 6):
        rig.feed(rig.payload(number))
    rig.await_frames(20, expected="further frames on the output that is left")
    rig.close_inputs()
    rig.finished()


@check("closes an output that is retracted, and runs on", SENDS, Level.FULL, WORKERS)
def retracted(rig: Rig) -> None:
    rig.up(outputs=rig.output_ports(2, credits=4))
    for number in range(1, 5 if rig.form.inputs else 1):
        rig.feed(rig.payload(number))
    rig.await_frames(4)
    gone = rig.downstreams[1]
    rig.say(Retract(route=gone.port.route))
    rig.until(lambda: gone.ended, "an output that is closed after retract")
    for number in range(5, 31 if rig.form.inputs else 5):
        rig.feed(rig.payload(number))
    rig.await_frames(20, expected="further frames on the output that is left")
    rig.close_inputs()
    rig.finished()


@check(
    "gives up an output that has no credit for longer than its limit, says so, and runs on", SENDS, Level.FULL, STEPS
)
def gives_up(rig: Rig) -> None:
    limit_ns = 100_000_000
    first, second = rig.output_ports(2, credits=4)
    rig.up(outputs=[first, msgspec.structs.replace(second, limit_ns=limit_ns)], held=1)
    slow = rig.downstreams[1]
    for number in range(1, 6 if rig.form.inputs else 1):
        rig.feed(rig.payload(number))
    message = rig.await_said(GaveUp, "gave-up, when the limit has passed without a credit")
    if message.route != second.route or message.waited_ns < limit_ns:
        raise Failed(
            f"gave-up for {second.route} after at least {limit_ns} ns", f"{message.route}, {message.waited_ns}"
        )
    if not word(slow.ring_fd, CLOSED):
        raise Failed(f"{second.route} is closed with gave-up", "it is open")
    for number in range(6, 31 if rig.form.inputs else 6):
        rig.feed(rig.payload(number))
    rig.await_frames(20, expected="further frames on the other output")


@check("makes no item again that earlier workers have sent, or marks it", (Form.SOURCE,), Level.USUAL, WORKERS)
def resumes(rig: Rig) -> None:
    rig.needs_contents()
    rig.up(outputs=rig.output_ports(1, credits=4, resume=5, base_seq=7), incarnation=1)
    for frame in rig.await_frames(12)[:12]:
        if frame.redelivered != (frame.input_seq <= 5):
            raise Failed("REDELIVERED on items 1 to 5 only", f"{frame.redelivered} on item {frame.input_seq}")
    items = [frame.input_seq for frame in rig.down0.frames[:12]]
    if items != list(range(items[0], items[0] + 12)) or items[0] > 6:
        raise Failed("items from 6 or earlier on, none left out", f"{items}")


@check("takes no frame before its start", TAKES, Level.USUAL, WORKERS)
def waits_for_start(rig: Rig) -> None:
    rig.begin()
    rig.plan(credits=4)
    rig.greet()
    rig.offered()
    rig.link()
    for number in range(1, 5):
        rig.feed(rig.payload(number))
    rig.ready()
    rig.quiet(lambda: rig.up0.outstanding < 4, "no frame is returned before start")
    rig.say(Start())
    rig.await_said(Started, "started")
    rig.returned()
