"""Nodes that are replaced and routes that are changed while the flow runs, with the feature ``handover``."""

from __future__ import annotations

import msgspec

from chronetix.protocol.messages import HANDOVER, Conclude, Drained, Extend, Leave, Offer, Port, Ready, Retract
from chronetixctl.conformance.check import PROTOCOL, Level, check
from chronetixctl.conformance.forge import CLOSED, header_of, last_stamp, word
from chronetixctl.conformance.forms import EVERY, SENDS, TAKES, Failed
from chronetixctl.conformance.offers import check_offer
from chronetixctl.conformance.peers import Downstream
from chronetixctl.conformance.rig import Rig

WORKERS = (PROTOCOL, "Workers")


def named(rig: Rig) -> None:
    """Raises Failed unless its hello names the feature."""
    if HANDOVER not in rig.begin().features:
        raise Failed(f"the feature {HANDOVER} in its hello", "it does not name it")


@check("leaves: ends between two frames, returns what it took, closes no route", EVERY, Level.FULL, WORKERS)
def leaves(rig: Rig) -> None:
    named(rig)
    rig.up(credits=4)
    if rig.form.inputs:
        for number in range(1, 4):
            rig.feed(rig.payload(number))
        rig.returned()
    else:
        rig.await_frames(3)
    rig.say(Leave())
    rig.finished("finished after leave, and the end of its process with status 0")
    offer, descriptors = rig.offers[0]
    for name, descriptor in zip((*offer.rings, *offer.credits), descriptors, strict=False):
        if word(descriptor, CLOSED):
            raise Failed("every route left open for the successor", f"{name} is closed")


@check("stands by: ready without memory, and in its place when it is configured again", EVERY, Level.FULL, WORKERS)
def stands_by(rig: Rig) -> None:
    named(rig)
    config = rig.plan(credits=4)
    rig.config = msgspec.structs.replace(config, standby=True)
    rig.greet([HANDOVER])
    rig.ready()
    rig.quiet(lambda: bool(rig.said(Offer)), "no memory before it is its turn")
    rig.config = config
    rig.configure()
    rig.offered()
    rig.link()
    rig.await_said(Ready, "ready, once more, when its routes are mapped", 2)
    rig.start(handover={"from": "its predecessor"})
    if rig.form.inputs:
        for number in range(1, 6):
            rig.feed(rig.payload(number))
        rig.returned()
    rig.close_inputs()
    rig.finished()


@check("forgets an input that is concluded, says drained, and goes on with the others", TAKES, Level.FULL, WORKERS)
def concluded(rig: Rig) -> None:
    named(rig)
    rig.up(rig.input_ports(2, credits=4))
    one, two = rig.honest
    for number in range(1, 4):
        rig.feed(rig.payload(number), two)
    rig.returned()
    rig.say(Conclude(route=two.port.route, seq=two.producer.position))
    drained = rig.await_said(Drained, "drained, for the input that was concluded")
    if drained.route != two.port.route:
        raise Failed(f"drained for {two.port.route}", drained.route)
    for number in range(4, 9):
        rig.feed(rig.payload(number), one)
    rig.returned("frames of the other input are returned")
    one.close()
    rig.finished("finished, when the last input has ended")


@check("takes a further input while it runs", TAKES, Level.USUAL, WORKERS)
def further_input(rig: Rig) -> None:
    rig.up(credits=4)
    port = rig.input_ports(2, credits=4)[1]
    rig.upstreams.append(rig.upstream(port))
    check_offer(*rig.extend(Extend(inputs=[port])), [], [port])
    rig.link()
    rig.linked()
    for number in range(1, 9):
        rig.feed(rig.payload(number), rig.honest[1])
    rig.returned("frames of the further input are returned")
    rig.close_inputs()
    rig.finished()


@check("goes on with the next stage of an output, between two frames, and loses nothing", SENDS, Level.FULL, WORKERS)
def rerouted(rig: Rig) -> None:
    named(rig)
    rig.up(credits=4)
    old = rig.down0
    for number in range(1, 7 if rig.form.inputs else 1):
        rig.feed(rig.payload(number))
    rig.await_frames(6)
    asked = msgspec.structs.replace(old.port, epoch=1, credits=8, watermark=6, credit_low=4)
    offer, descriptors = rig.extend(Extend(outputs=[asked]))
    base = header_of(descriptors[0]).base_seq
    port = msgspec.structs.replace(asked, base_seq=base)
    check_offer(offer, descriptors, [port], [])
    rig.until(lambda: base == last_stamp(old.ring_fd), f"base_seq {last_stamp(old.ring_fd)}, where the old stage ends")
    rig.take_frames()
    rig.retired.append(rig.downstreams.pop(0))
    new = Downstream(port, rig.bell)
    rig.downstreams.insert(0, new)
    rig.link(epochs=[1])
    rig.linked()
    rig.say(Drained(route=port.route, epoch=0))
    for number in range(7, 21 if rig.form.inputs else 7):
        rig.feed(rig.payload(number))
    rig.await_frames(14, new, "frames on the next stage")
    seqs = [frame.input_seq for frame in (*old.frames, *new.frames[:14])]
    if rig.subject.contents and seqs != list(range(seqs[0], seqs[0] + len(seqs))):
        raise Failed("frames in order across both stages, none twice and none left out", f"input_seq {seqs}")


@check("sends to a further output while it runs, and closes one that it leaves", SENDS, Level.FULL, WORKERS)
def further_output(rig: Rig) -> None:
    named(rig)
    rig.up(credits=4)
    old = rig.down0
    for number in range(1, 5 if rig.form.inputs else 1):
        rig.feed(rig.payload(number))
    rig.await_frames(4)
    asked = rig.output_ports(2, credits=4)[1]
    offer, descriptors = rig.extend(Extend(outputs=[asked], leave=[old.port.route]))
    port = msgspec.structs.replace(asked, base_seq=header_of(descriptors[0]).base_seq)
    check_offer(offer, descriptors, [port], [])
    new = Downstream(port, rig.bell)
    rig.downstreams.append(new)
    rig.link()
    rig.linked()
    for number in range(5, 21 if rig.form.inputs else 5):
        rig.feed(rig.payload(number))
    rig.await_frames(10, new, "frames on the further output")
    rig.until(lambda: old.ended, "an output that is closed when it is left")


@check("lets a client listen to an output, and ends that when it is told to", SENDS, Level.FULL, WORKERS)
def tapped(rig: Rig) -> None:
    rig.up(credits=4)
    main = rig.down0
    for number in range(1, 5 if rig.form.inputs else 1):
        rig.feed(rig.payload(number))
    rig.await_frames(4)
    port = Port(route="tap/1", peer="client", policy="latest", credits=64, watermark=48, tap_of=main.port.route)
    offer, _ = rig.extend(Extend(outputs=[port]))
    if offer.rings != [port.route]:
        raise Failed(f"an offer with rings {[port.route]}", f"rings {offer.rings}")
    tap = Downstream(port, rig.bell)
    rig.downstreams.append(tap)
    rig.link()
    rig.linked()
    for number in range(5, 15 if rig.form.inputs else 5):
        rig.feed(rig.payload(number))
    rig.await_frames(5, tap, "the frames of the tapped route on the tap")
    sent = {frame.data for frame in main.frames}
    rig.take_frames()
    if rig.form.inputs and any(frame.data not in sent | {each.data for each in main.frames} for frame in tap.frames):
        raise Failed("the tapped route's frames on the tap", "others")
    rig.say(Retract(route=port.route))
    rig.until(lambda: tap.ended, "a tap that is closed after retract")
    before = len(main.frames)
    for number in range(15, 25 if rig.form.inputs else 15):
        rig.feed(rig.payload(number))
    rig.await_frames(before + 5, main, "further frames on the route itself")
    rig.close_inputs()
    rig.finished()
