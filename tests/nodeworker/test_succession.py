"""Workers that are killed and followed by others: what the daemon's messages make of it in peers and successors."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from chronetix import shm
from chronetix.protocol.messages import (
    Configure,
    Drained,
    Extend,
    Finished,
    InputLink,
    Link,
    Linked,
    Port,
    Publish,
    Ready,
    Start,
    Started,
)
from tests.nodeworker.conftest import FakeDaemon, FakeWorker

SOURCES = """
    import time

    def honest(ctx):
        for n in range(ctx.resume_after + 1, 41):
            if n == 21 and ctx.incarnation == 0:
                ctx.publish("there", n)
                time.sleep(1000)
            yield {"n": n}

    def forgetful(ctx):
        for n in range(1, 41):
            if n == 21 and ctx.incarnation == 0:
                ctx.publish("there", n)
                time.sleep(1000)
            ctx.send({"n": n})
            if False: yield

    def steady(ctx):
        for n in range(1, 41):
            yield {"n": n}
"""

SINKS = """
    import time

    class Book:
        def __init__(self):
            self.seen = []

        def on_frame(self, frame, ctx):
            self.seen.append([frame.value()["n"], frame.seq, frame.redelivered, frame.input_seq])

        def on_stop(self, ctx):
            return self.seen

    class Hoarder(Book):
        '''In its first life it gives only the second frame back, and then stops for ever at the sixth.'''

        def __init__(self):
            super().__init__()
            self.held = []

        def on_frame(self, frame, ctx):
            super().on_frame(frame, ctx)
            if ctx.incarnation == 0:
                if len(self.seen) != 2:
                    self.held.append(memoryview(frame))
                if len(self.seen) == 6:
                    ctx.publish("there", 6)
                    time.sleep(1000)

    class Echo(Hoarder):
        def on_frame(self, frame, ctx):
            super().on_frame(frame, ctx)
            return frame.value()
"""


class Successor:
    """What a daemon does when a node of two or three in a row is killed. The dead stay until the end of the test, for
    their memories."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    def killed(self, node: str) -> FakeWorker:
        worker = self.daemon.workers[node]
        os.kill(worker.pid, signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
        self.daemon.until(lambda: not worker.open)
        return worker

    def again(self, dead: FakeWorker, **changes: Any) -> FakeWorker:
        """The node's next life, up to its offer."""
        assert dead.config is not None
        worker = self.daemon.start(msgspec.structs.replace(dead.config, incarnation=1, **changes))
        self.daemon.until(lambda: worker.offer is not None)
        return worker

    def ready(self, worker: FakeWorker) -> None:
        self.daemon.until(lambda: bool(worker.said(Ready)))
        worker.link.send(Start())
        self.daemon.until(lambda: bool(worker.said(Started)))

    def relink(self, producer: FakeWorker, route: str, consumer: FakeWorker, credit: int) -> None:
        before = len(producer.said(Linked))
        producer.link.send(Link(outputs=[route]), [credit, consumer.lines.take(route, "producer")])
        self.daemon.until(lambda: len(producer.said(Linked)) > before)
        assert producer.said(Linked)[-1].routes == [route]

    def extend(self, consumer: FakeWorker, port: Port) -> int:
        """Tell of the next stage; the CREDIT that was made for it."""
        count = len(consumer.extended)
        consumer.link.send(Extend(inputs=[port]))
        self.daemon.until(lambda: len(consumer.extended) > count)
        offer, descriptors = consumer.extended[-1]
        assert offer.credits == [port.route]
        return descriptors[0]


def ring_of(worker: FakeWorker, route: str) -> int:
    return worker.offered[worker.offer.rings.index(route)]


def credits_of(worker: FakeWorker) -> list[int]:
    first = len(worker.offer.rings)
    return worker.offered[first : first + len(worker.offer.credits)]


def segments_of(worker: FakeWorker) -> list[int]:
    return worker.offered[len(worker.offer.rings) + len(worker.offer.credits) :]


def input_of(worker: FakeWorker, route: str, *, epoch: int = 0, predecessor: bool = False) -> InputLink:
    return InputLink(route=route, segments=list(worker.offer.segments), epoch=epoch, predecessor=predecessor)


def memories_of(worker: FakeWorker, route: str) -> list[int]:
    return [ring_of(worker, route), worker.lines.take(route, "consumer"), *segments_of(worker)]


@pytest.fixture
def succession(daemon: FakeDaemon) -> Successor:
    return Successor(daemon)


@pytest.fixture
def two(daemon: FakeDaemon, configure: Callable[..., Configure], plugin: Callable[[str], str]) -> Callable[..., None]:
    """A source and a sink, begun, until one of them has published that it is where it is to be killed."""

    def begin(source: str, sink: str, *, died: str, credits: int = 8) -> None:
        daemon.start(configure("a", plugin(SOURCES) + ":" + source, "ab>b", credits=credits))
        daemon.start(configure("b", plugin(SINKS) + ":" + sink, "ab<a", credits=credits))
        daemon.wire()
        daemon.begin()
        daemon.until(lambda: bool(daemon.workers[died].said(Publish)))

    return begin


def result(daemon: FakeDaemon, node: str) -> list[list[Any]]:
    worker = daemon.workers[node]
    daemon.until(lambda: bool(worker.said(Finished)))
    seen: list[list[Any]] = worker.said(Finished)[-1].result
    return seen


def test_a_killed_consumers_successor_gets_what_was_held_and_all_that_follows(daemon, two, succession):
    two("steady", "Hoarder", died="b")
    dead = succession.killed("b")
    source, heir = daemon.workers["a"], succession.again(dead)
    heir.link.send(
        Link(inputs=[input_of(source, "ab", predecessor=True)]), [*memories_of(source, "ab"), *credits_of(dead)]
    )
    daemon.until(lambda: bool(heir.said(Ready)))
    succession.relink(source, "ab", heir, credits_of(heir)[0])
    succession.ready(heir)
    seen = result(daemon, "b")
    assert [n for n, *_ in seen] == [1, *range(3, 41)]
    assert [redelivered for _, _, redelivered, _ in seen] == [True] * 5 + [False] * 34
    assert [seq for _, seq, _, _ in seen][:6] == [0, 2, 3, 4, 5, 6]
    assert [input_seq for *_, input_seq in seen] == [1, *range(3, 41)]


@pytest.mark.parametrize(("source", "repeats"), [("honest", 0), ("forgetful", 20)])
def test_a_killed_sources_successor_goes_on_or_repeats_what_is_marked(daemon, two, succession, source, repeats):
    two(source, "Book", died="a", credits=64)
    dead, consumer = succession.killed("a"), daemon.workers["b"]
    end, last = shm.remains(ring_of(dead, "ab"))
    assert (end, last) == (20, 20)
    (port,) = dead.config.outputs
    port = msgspec.structs.replace(port, epoch=1, base_seq=end, resume=last)
    (taken,) = consumer.config.inputs
    credit = succession.extend(consumer, msgspec.structs.replace(taken, epoch=1, base_seq=end))
    heir = succession.again(dead, outputs=[port])
    heir.link.send(Link(outputs=["ab"]), [credit, consumer.lines.take("ab", "producer")])
    consumer.link.send(Link(inputs=[input_of(heir, "ab", epoch=1)]), memories_of(heir, "ab"))
    daemon.until(lambda: bool(consumer.said(Linked)))
    assert consumer.said(Linked)[0].routes == ["ab"]
    succession.ready(heir)
    seen = result(daemon, "b")
    first, again = seen[:20], seen[20 : 20 + repeats]
    assert [n for n, *_ in first] == list(range(1, 21))
    assert [(n, redelivered, number) for n, _, redelivered, number in again] == [
        (n, True, n) for n in range(1, repeats + 1)
    ]
    assert [(n, redelivered, number) for n, _, redelivered, number in seen[20 + repeats :]] == [
        (n, False, n) for n in range(21, 41)
    ]
    assert [seq for _, seq, _, _ in seen] == list(range(40 + repeats))
    assert consumer.said(Drained) == [Drained(route="ab", epoch=0)]


def test_what_a_killed_map_makes_again_is_marked_and_numbered(daemon, configure, plugin, succession):
    daemon.start(configure("a", plugin(SOURCES) + ":steady", "ab>b", credits=8))
    daemon.start(configure("b", plugin(SINKS) + ":Echo", "ab<a", "bc>c", credits=8))
    daemon.start(configure("c", plugin(SINKS) + ":Book", "bc<b", credits=8))
    daemon.wire()
    daemon.begin()
    daemon.until(lambda: bool(daemon.workers["b"].said(Publish)))
    dead, source, sink = succession.killed("b"), daemon.workers["a"], daemon.workers["c"]
    end, _ = shm.remains(ring_of(dead, "bc"))
    assert end == 5
    (port,) = dead.config.outputs
    (taken,) = sink.config.inputs
    credit = succession.extend(sink, msgspec.structs.replace(taken, epoch=1, base_seq=end))
    heir = succession.again(dead, outputs=[msgspec.structs.replace(port, epoch=1, base_seq=end)])
    heir.link.send(
        Link(outputs=["bc"], inputs=[input_of(source, "ab", predecessor=True)]),
        [credit, sink.lines.take("bc", "producer"), *memories_of(source, "ab"), *credits_of(dead)],
    )
    daemon.until(lambda: bool(heir.said(Ready)))
    sink.link.send(Link(inputs=[input_of(heir, "bc", epoch=1)]), memories_of(heir, "bc"))
    daemon.until(lambda: bool(sink.said(Linked)))
    succession.relink(source, "ab", heir, credits_of(heir)[0])
    succession.ready(heir)
    seen = result(daemon, "c")
    assert [n for n, *_ in seen] == [1, 2, 3, 4, 5, 1, *range(3, 41)]
    assert [redelivered for _, _, redelivered, _ in seen] == [False] * 5 + [True] * 5 + [False] * 34
    assert {n: number for n, _, _, number in seen} == {n: n - 1 for n in range(1, 41)}, "an input_seq tells duplicates"
    assert [seq for _, seq, _, _ in seen] == list(range(44))


def test_when_both_ends_were_killed_the_old_stage_comes_first(daemon, two, succession):
    two("steady", "Hoarder", died="b")
    dead_sink, dead_source = succession.killed("b"), succession.killed("a")
    end, last = shm.remains(ring_of(dead_source, "ab"))
    assert last == end
    assert end in (8, 9), "eight credits, one of which came back"
    (sent,) = dead_source.config.outputs
    (taken,) = dead_sink.config.inputs
    source = succession.again(dead_source, outputs=[msgspec.structs.replace(sent, epoch=1, base_seq=end, resume=last)])
    sink = succession.again(dead_sink, inputs=[taken, msgspec.structs.replace(taken, epoch=1, base_seq=end)])
    old, new = credits_of(sink)
    assert sink.offer.credits == ["ab", "ab"]
    sink.link.send(
        Link(inputs=[input_of(dead_source, "ab", predecessor=True), input_of(source, "ab", epoch=1)]),
        [*memories_of(dead_source, "ab"), *credits_of(dead_sink), *memories_of(source, "ab")],
    )
    source.link.send(Link(outputs=["ab"]), [new, sink.lines.take("ab", "producer")])
    succession.ready(sink)
    succession.ready(source)
    seen = result(daemon, "b")
    assert [n for n, *_ in seen] == [1, *range(3, end + 1), *range(1, 41)]
    marks = [True] * 5 + [False] * (end - 6) + [True] * end + [False] * (40 - end)
    assert [redelivered for _, _, redelivered, _ in seen] == marks
    assert sink.said(Drained) == [Drained(route="ab", epoch=0)]
    view = shm.RouteView(ring_of(dead_source, "ab"), old)
    assert view.snapshot()["again"] == 5
    view.close()


def test_an_extend_with_a_stage_that_cannot_follow_is_a_fault(daemon, two, succession):
    two("honest", "Book", died="a", credits=64)
    succession.killed("a")
    consumer = daemon.workers["b"]
    (taken,) = consumer.config.inputs
    consumer.link.send(Extend(inputs=[taken]))
    fault = daemon.fault(consumer)
    assert "cannot follow" in fault.message
