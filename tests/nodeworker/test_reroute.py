"""Outputs that change while their producer runs: next stages, further ones, some that are left, between two frames."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from chronetix import shm
from chronetix.protocol.messages import (
    Conclude,
    Configure,
    Drain,
    Drained,
    Extend,
    Finished,
    InputLink,
    Link,
    Linked,
    Offer,
    Port,
    Publish,
)
from tests.nodeworker.conftest import FakeDaemon, FakeWorker

PLUGINS = """
    import asyncio

    def plain(ctx):
        for n in range(1, 1_000_000):
            yield {"n": n}

    async def later(ctx):
        for n in range(1, 1_000_000):
            yield {"n": n}

    def sends(ctx):
        for n in range(1, 1_000_000):
            ctx.send({"n": n})
            yield None

    def lends(ctx):
        for n in range(1, 1_000_000):
            room = ctx.loan(12)
            yield None
            view = memoryview(room)
            view[:] = b'{"n":%6d}' % n
            view.release()
            room.commit()
            yield None

    def many(ctx):
        for n in range(1, 1_000_000, 10):
            ctx.send_many(b"".join(b'{"n":%6d}' % (n + i) for i in range(10)), 12)
            yield None

    def reads_late(ctx):
        for n in range(1, 1_000_000):
            yield {"n": n}
            if n % 50 == 0:
                ctx.publish("resume", ctx.resume_after)

    class Book:
        def __init__(self):
            self.seen, self.fresh = [], 0

        def on_frame(self, frame, ctx):
            self.seen.append(frame.value()["n"])
            self.fresh += not frame.redelivered
            if len(self.seen) % 50 == 0:
                ctx.publish("there", len(self.seen))

        def on_stop(self, ctx):
            return {"seen": self.seen, "fresh": self.fresh, "inputs": [port.route for port in ctx.inputs]}
"""


class Rerouted:
    """A source, its sinks, and what a daemon does between them."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    def offer(self, worker: FakeWorker, message: Extend) -> tuple[Offer, list[int]]:
        count = len(worker.extended)
        worker.link.send(message)
        self.daemon.until(lambda: len(worker.extended) > count)
        return worker.extended[-1]

    def connect(self, source: FakeWorker, ring: int, sink: FakeWorker, credit: int, route: str, epoch: int) -> None:
        before = len(source.said(Linked)), len(sink.said(Linked))
        first = len(source.offer.rings) + len(source.offer.credits)
        segments = source.offered[first:]
        link = InputLink(route=route, segments=list(source.offer.segments), epoch=epoch)
        sink.link.send(Link(inputs=[link]), [ring, self.daemon.lines.take(route, "consumer"), *segments])
        source.link.send(Link(outputs=[route], epochs=[epoch]), [credit, self.daemon.lines.take(route, "producer")])
        self.daemon.until(lambda: (len(source.said(Linked)), len(sink.said(Linked))) > before)

    def further(self, sink: FakeWorker, rounds: int = 2) -> None:
        before = len(sink.said(Publish))
        self.daemon.until(lambda: len(sink.said(Publish)) >= before + rounds)


@pytest.fixture
def rerouted(daemon: FakeDaemon) -> Rerouted:
    return Rerouted(daemon)


def base_of(ring: int) -> int:
    (value,) = struct.unpack_from("<Q", os.pread(ring, 64, 0), 24)
    return int(value)


def going(daemon: FakeDaemon, rerouted: Rerouted, *configs: Configure) -> None:
    for config in configs:
        daemon.start(config)
    daemon.wire()
    daemon.begin()
    rerouted.further(daemon.workers["sink"])


@pytest.mark.parametrize("entry", ["plain", "later", "sends", "lends", "many"])
@pytest.mark.parametrize("credits", [3, 64])
def test_a_route_goes_on_with_another_ring_and_no_frame_is_lost(
    entry: str, credits: int, daemon: FakeDaemon, rerouted: Rerouted, configure: Any, plugin: Callable[[str], str]
) -> None:
    file = plugin(PLUGINS)
    configs = [
        configure("source", f"{file}:{entry}", "a>sink", credits=8),
        configure("sink", f"{file}:Book", "a<source", credits=8),
    ]
    going(daemon, rerouted, *configs)
    source, sink = daemon.workers["source"], daemon.workers["sink"]
    port = Port(route="a", peer="sink", credits=credits, watermark=credits, credit_low=credits // 2, epoch=1)
    offer, carried = rerouted.offer(source, Extend(outputs=[port]))
    assert offer == Offer(rings=["a"])
    base = base_of(carried[0])
    assert base > 100
    _, credit = rerouted.offer(sink, Extend(inputs=[msgspec.structs.replace(port, peer="source", base_seq=base)]))
    rerouted.connect(source, carried[0], sink, credit[0], "a", 1)
    daemon.until(lambda: bool(sink.said(Drained)))
    assert sink.said(Drained) == [Drained(route="a", epoch=0)]
    source.link.send(Drained(route="a", epoch=0))
    rerouted.further(sink)
    daemon.drain("source")
    seen = daemon.finish()["sink"]["seen"]
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > base


@pytest.mark.parametrize("entry", ["plain", "later"])
def test_an_output_is_left_for_another_one_between_two_frames(
    entry: str, daemon: FakeDaemon, rerouted: Rerouted, configure: Any, plugin: Callable[[str], str]
) -> None:
    file = plugin(PLUGINS)
    going(
        daemon,
        rerouted,
        configure("source", f"{file}:{entry}", "a>sink", "b>other", credits=8),
        configure("sink", f"{file}:Book", "a<source", credits=8),
        configure("other", f"{file}:Book", "b<source", credits=8),
    )
    source, sink, other = (daemon.workers[name] for name in ("source", "sink", "other"))
    port = Port(route="c", peer="other", credits=4, watermark=4, credit_low=2)
    _, credit = rerouted.offer(other, Extend(inputs=[msgspec.structs.replace(port, peer="source")]))
    offer, carried = rerouted.offer(source, Extend(outputs=[port], leave=["b"]))
    assert offer == Offer(rings=["c"])
    ring = source.offered[source.offer.rings.index("b")]
    end, _ = shm.remains(ring)
    other.link.send(Conclude(route="b", seq=end))
    daemon.until(lambda: bool(other.said(Drained)))
    assert other.said(Drained) == [Drained(route="b", epoch=0)]
    rerouted.connect(source, carried[0], other, credit[0], "c", 0)
    rerouted.further(sink)
    rerouted.further(other)
    daemon.drain("source")
    results = daemon.finish()
    assert results["other"]["inputs"] == ["c"]
    for name in ("sink", "other"):
        seen = results[name]["seen"]
        assert seen == list(range(1, len(seen) + 1))
    assert results["sink"]["seen"] == results["other"]["seen"]


@pytest.mark.parametrize(("entry", "resume"), [("plain", 1_000_000), ("later", 1_000_000), ("reads_late", 0)])
def test_what_a_source_repeats_stays_marked_and_no_output_begins_before_what_was_sent(
    entry: str, resume: int, daemon: FakeDaemon, rerouted: Rerouted, configure: Any, plugin: Callable[[str], str]
) -> None:
    file = plugin(PLUGINS)
    begun = configure("source", f"{file}:{entry}", "a>sink", credits=8)
    begun = msgspec.structs.replace(begun, outputs=[msgspec.structs.replace(begun.outputs[0], resume=resume)])
    going(daemon, rerouted, begun, configure("sink", f"{file}:Book", "a<source", credits=8))
    source, sink = daemon.workers["source"], daemon.workers["sink"]
    ports = [Port(route=route, peer="sink", credits=4, watermark=4, credit_low=2) for route in ("a", "b")]
    ports[0] = msgspec.structs.replace(ports[0], epoch=1)
    _, carried = rerouted.offer(source, Extend(outputs=ports))
    base = base_of(carried[0])
    ends = [msgspec.structs.replace(port, peer="source") for port in ports]
    ends[0] = msgspec.structs.replace(ends[0], base_seq=base)
    _, credits = rerouted.offer(sink, Extend(inputs=ends))
    rerouted.connect(source, carried[0], sink, credits[0], "a", 1)
    rerouted.connect(source, carried[1], sink, credits[1], "b", 0)
    rerouted.further(sink)
    daemon.drain("source")
    results = daemon.finish()
    assert len(results["sink"]["seen"]) > base
    assert (results["sink"]["fresh"] == 0) is bool(resume)
    told = {each.payload for each in source.said(Publish)}
    assert told <= {b"0"}, "where its life began does not change with its outputs"


def test_what_does_not_fit_is_the_nodes_fault(
    daemon: FakeDaemon, rerouted: Rerouted, configure: Any, plugin: Callable[[str], str]
) -> None:
    file = plugin(PLUGINS)
    going(
        daemon,
        rerouted,
        configure("source", f"{file}:plain", "a>sink", credits=8),
        configure("sink", f"{file}:Book", "a<source", credits=8),
    )
    source, sink = daemon.workers["source"], daemon.workers["sink"]
    source.link.send(Extend(leave=["nothing"]))
    fault = daemon.fault(source)
    assert fault.message == "node 'source' has no output 'nothing' that it could leave"
    assert source.wait() == 1
    sink.link.send(Drain())
    daemon.until(lambda: not sink.open)
    assert sink.said(Finished)
