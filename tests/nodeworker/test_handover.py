"""Workers that stand by, and workers that leave their place to them: nothing lost, nothing twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from chronetix import shm
from chronetix.protocol.messages import (
    HANDOVER,
    Configure,
    Drain,
    Drained,
    Fault,
    Finished,
    Hello,
    Leave,
    Link,
    Publish,
    Ready,
    Start,
    Started,
)
from tests.nodeworker.conftest import FakeDaemon, FakeWorker
from tests.nodeworker.test_succession import Successor, credits_of, input_of, memories_of, ring_of

SOURCE = """
    def count(ctx):
        for n in range(ctx.resume_after + 1, 1_000_000):
            yield {"n": n}

    async def acount(ctx):
        for n in range(ctx.resume_after + 1, 1_000_000):
            yield {"n": n}
"""

MAPS = """
    class Sum:
        def on_start(self, ctx):
            self.total = ctx.handover or 0

        def on_frame(self, frame, ctx):
            value = frame.value()
            self.total += value["n"]
            return {**value, "by": ctx.incarnation, "again": frame.redelivered}

        def on_stop(self, ctx):
            return self.total

    class ASum(Sum):
        async def on_frame(self, frame, ctx):
            return super().on_frame(frame, ctx)

    class Huge(Sum):
        def on_stop(self, ctx):
            return 1 << 64

    class BSum:
        def on_start(self, ctx):
            self.total = ctx.handover or 0

        def on_batch(self, batch, ctx):
            for frame in batch:
                value = frame.value()
                self.total += value["n"]
                ctx.send({**value, "by": ctx.incarnation, "again": frame.redelivered})

        def on_stop(self, ctx):
            return self.total
"""

SINK = """
    class Book:
        def __init__(self):
            self.seen = []

        def on_frame(self, frame, ctx):
            value = frame.value()
            self.seen.append([value["n"], value.get("by", 0), frame.redelivered or value.get("again", False)])
            if len(self.seen) % 50 == 0:
                ctx.publish("there", self.seen[-1])

        def on_stop(self, ctx):
            return self.seen
"""


class Replaced(Successor):
    """What a daemon does when a node of three in a row is replaced."""

    def standby(self, config: Configure) -> FakeWorker:
        worker = self.daemon.start(msgspec.structs.replace(config, standby=True, incarnation=1))
        self.daemon.until(lambda: bool(worker.said(Ready)) or not worker.open)
        return worker

    def left(self, worker: FakeWorker) -> Any:
        """Tell it to leave; what it finished with."""
        worker.link.send(Leave())
        self.daemon.until(lambda: not worker.open)
        assert worker.wait() == 0, self.daemon.stderr
        return worker.said(Finished)[-1].result

    def told(self, worker: FakeWorker, **changes: Any) -> None:
        """Its second configure, up to its offer."""
        assert worker.config is not None
        worker.config = msgspec.structs.replace(worker.config, standby=False, incarnation=1, **changes)
        worker.link.send(worker.config)
        self.daemon.until(lambda: worker.offer is not None)

    def begun(self, worker: FakeWorker, handover: Any) -> None:
        self.daemon.until(lambda: len(worker.said(Ready)) == 2)
        worker.link.send(Start(handover=handover))
        self.daemon.until(lambda: bool(worker.said(Started)))


@pytest.fixture
def replaced(daemon: FakeDaemon) -> Replaced:
    return Replaced(daemon)


def three(configure: Any, plugin: Callable[[str], str], entry: str, source: str = "count") -> list[Configure]:
    return [
        configure("source", f"{plugin(SOURCE)}:{source}", "a>map", credits=8),
        configure("map", f"{plugin(MAPS)}:{entry}", "a<source", "b>sink", credits=8),
        configure("sink", f"{plugin(SINK)}:Book", "b<map", credits=8),
    ]


def going(daemon: FakeDaemon, configs: list[Configure]) -> None:
    """Under load: the sink has seen some."""
    for config in configs:
        daemon.start(config)
    daemon.wire()
    daemon.begin()
    further(daemon)


def further(daemon: FakeDaemon, rounds: int = 1) -> None:
    """The sink sees some more."""
    sink = daemon.workers["sink"]
    before = len(sink.said(Publish))
    daemon.until(lambda: len(sink.said(Publish)) >= before + rounds)


def test_what_is_left_to_a_successor_and_cannot_be_sent_is_no_text_in_its_place_but_a_failure(
    daemon: FakeDaemon, configure: Any, plugin: Callable[[str], str]
) -> None:
    going(daemon, three(configure, plugin, "Huge"))
    daemon.workers["map"].link.send(Leave())
    fault = daemon.fault(daemon.workers["map"])
    assert (fault.phase, fault.error) == ("stop", "TypeError")
    assert "what is left to the successor cannot be sent: 18446744073709551616 is outside" in fault.message


@pytest.mark.parametrize("entry", ["Sum", "ASum", "BSum"])
def test_a_map_that_leaves_gives_everything_back_and_its_successor_goes_on_at_the_next_frame(
    entry: str, daemon: FakeDaemon, replaced: Replaced, configure: Any, plugin: Callable[[str], str]
) -> None:
    configs = three(configure, plugin, entry)
    going(daemon, configs)
    source, old, sink = (daemon.workers[name] for name in ("source", "map", "sink"))
    new = replaced.standby(configs[1])
    assert new.offer is None
    handover = replaced.left(old)

    base = shm.remains(ring_of(old, "b"))[0]
    port = msgspec.structs.replace(configs[1].outputs[0], epoch=1, base_seq=base)
    replaced.told(new, outputs=[port])
    credit = replaced.extend(sink, msgspec.structs.replace(configs[2].inputs[0], epoch=1, base_seq=base))
    new.link.send(
        Link(outputs=["b"], inputs=[input_of(source, "a", predecessor=True)]),
        [credit, sink.lines.take("b", "producer"), *memories_of(source, "a"), credits_of(old)[0]],
    )
    sink.link.send(Link(inputs=[input_of(new, "b", epoch=1)]), memories_of(new, "b"))
    daemon.until(lambda: len(new.said(Ready)) == 2)
    replaced.relink(source, "a", new, credits_of(new)[0])
    replaced.begun(new, handover)
    further(daemon, 2)
    source.link.send(Drain())
    results = daemon.finish()

    seen = results["sink"]
    assert [n for n, _, _ in seen] == list(range(1, len(seen) + 1)), "lost, repeated or out of order"
    assert not any(again for _, _, again in seen)
    by = [life for _, life, _ in seen]
    assert by == sorted(by)
    assert set(by) == {0, 1}
    assert results["map"] == sum(n for n, _, _ in seen)
    assert sink.said(Drained)[0] == Drained(route="b", epoch=0)


@pytest.mark.parametrize("entry", ["count", "acount"])
def test_a_source_that_leaves_ends_between_two_items_and_its_successor_repeats_none(
    entry: str, daemon: FakeDaemon, replaced: Replaced, configure: Any, plugin: Callable[[str], str]
) -> None:
    configs = three(configure, plugin, "Sum", entry)
    going(daemon, configs)
    old, between = daemon.workers["source"], daemon.workers["map"]
    new = replaced.standby(configs[0])
    assert replaced.left(old) is None
    base, item = shm.remains(ring_of(old, "a"))
    assert item == base
    replaced.told(new, outputs=[msgspec.structs.replace(configs[0].outputs[0], epoch=1, base_seq=base, resume=item)])
    credit = replaced.extend(between, msgspec.structs.replace(configs[1].inputs[0], epoch=1, base_seq=base))
    new.link.send(Link(outputs=["a"]), [credit, between.lines.take("a", "producer")])
    between.link.send(Link(inputs=[input_of(new, "a", epoch=1)]), memories_of(new, "a"))
    replaced.begun(new, None)
    daemon.until(lambda: bool(between.said(Drained)))
    further(daemon, 2)
    new.link.send(Drain())
    seen = daemon.finish()["sink"]
    assert [n for n, _, _ in seen] == list(range(1, len(seen) + 1))
    assert len(seen) > item
    assert not any(again for _, _, again in seen)


def test_a_worker_says_in_its_hello_that_it_can_hand_over(
    daemon: FakeDaemon, configure: Any, plugin: Callable[[str], str]
) -> None:
    worker = daemon.start(configure("sink", f"{plugin(SINK)}:Book", "b<map", standby=True))
    daemon.until(lambda: bool(worker.said(Ready)))
    assert HANDOVER in worker.said(Hello)[0].features
    worker.link.send(Drain())
    daemon.until(lambda: not worker.open)
    assert worker.wait() == 143


def test_one_that_stands_by_and_cannot_be_loaded_says_why_and_ends(
    daemon: FakeDaemon, configure: Any, plugin: Callable[[str], str]
) -> None:
    worker = daemon.start(configure("map", f"{plugin('1/0')}:anything", "a<x", "b>y", standby=True))
    fault = daemon.fault(worker)
    assert (fault.phase, fault.error) == ("load", "plugin-not-loadable")
    assert worker.wait() == 1


def test_one_that_stands_by_cannot_send_from_its_constructor(
    daemon: FakeDaemon, configure: Any, plugin: Callable[[str], str]
) -> None:
    early = """
        class Early:
            def __init__(self, ctx):
                ctx.send(b"too early")

            def on_frame(self, frame, ctx):
                pass
    """
    worker = daemon.start(configure("map", f"{plugin(early)}:Early", "a<x", "b>y", standby=True))
    fault = daemon.fault(worker)
    assert (fault.phase, fault.message) == ("init", "nothing can be sent before on_start")
    assert worker.wait() == 1


def test_one_that_stands_by_ends_by_SIGTERM(daemon: FakeDaemon, configure: Any, plugin: Callable[[str], str]) -> None:
    worker = daemon.start(configure("sink", f"{plugin(SINK)}:Book", "b<map", standby=True))
    daemon.until(lambda: bool(worker.said(Ready)))
    os.kill(worker.pid, signal.SIGTERM)
    daemon.until(lambda: not worker.open)
    assert worker.wait() == 143
    assert not worker.said(Fault)
