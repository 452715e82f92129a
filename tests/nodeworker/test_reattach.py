"""Workers that outlive their daemon: the data goes on, what they say is kept, and the next daemon gets all of it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chronetix import shm
from chronetix.nodeworker.process.link import MAX_KEPT, ControlLink
from chronetix.nodeworker.process.reattach import Reattachment
from chronetix.protocol.errors import error
from chronetix.protocol.messages import (
    Drain,
    Drained,
    Finished,
    Hello,
    Log,
    Pong,
    Publish,
    Reattach,
    Reattached,
    Request,
    Segment,
    SegmentMapped,
    Start,
    Started,
    Subscribe,
    ToWorker,
    Unsubscribe,
    Welcome,
    WorkerMessage,
)

COUNT = """
    def numbers(ctx):
        n = 0
        while True:
            n += 1
            yield {"n": n}
"""
TELL = """
    class Tell:
        total = 0
        def on_frame(self, frame, ctx):
            n = frame.value()["n"]
            assert n == self.total + 1, (n, self.total)
            self.total = n
        def on_message(self, message, ctx): ctx.publish("at", self.total)
        def on_stop(self, ctx): return self.total
"""
ECHO = """
    class Echo:
        def on_message(self, message, ctx):
            print("heard", message.topic, flush=True)
            ctx.publish("out", message.value())
        def on_stop(self, ctx): return "done"
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[socket.socket]:
    """Where the next daemon listens."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.settimeout(60)
        yield listener


@pytest.fixture
def surviving(configure: Any, place: socket.socket) -> Any:
    """A node's configuration as of a flow that survives its daemon."""

    def make(node: str, uri: str, *routes: str, **fields: Any) -> Any:
        path = place.getsockname()
        return configure(node, uri, *routes, on_daemon_loss="survive", socket=path, token=f"secret-{node}", **fields)

    return make


def lose(daemon: Any) -> None:
    """The daemon dies: its ends of all connections are closed by the kernel."""
    for worker in daemon.workers.values():
        worker.link.close()


def meet(place: socket.socket) -> tuple[ControlLink[Any], Reattach, list[int]]:
    """Accept one worker, and hear who it is."""
    place.listen()
    sock, _ = place.accept()
    sock.settimeout(60)
    link: ControlLink[Any] = ControlLink(sock, WorkerMessage)
    hello, _ = link.receive()
    assert isinstance(hello, Hello)
    assert hello.role == "worker"
    link.send(Welcome(protocol=1, daemon="next"))
    reattach, descriptors = link.receive()
    return link, reattach, descriptors


def take_back(daemon: Any, place: socket.socket) -> tuple[Reattach, int]:
    """As :func:`meet`, and take it; what it told, and the reading end of its new stdout."""
    link, reattach, descriptors = meet(place)
    for descriptor in descriptors:
        os.close(descriptor)
    reading, writing = os.pipe()
    link.send(Reattached(), [writing, writing])
    os.close(writing)
    worker = daemon.workers[reattach.node]
    worker.link, worker.open = link, True
    return reattach, reading


class TestWithoutADaemon:
    def test_frames_go_on_and_the_next_daemon_can_end_the_flow(self, daemon, surviving, plugin, place) -> None:
        from chronetix.protocol.messages import Deliver

        source = daemon.start(surviving("a", plugin(COUNT) + ":numbers", "ab>b"))
        sink = daemon.start(surviving("b", plugin(TELL) + ":Tell", "ab<a"))
        daemon.wire()
        daemon.begin()
        lose(daemon)
        told, readings = {}, []
        for _ in range(2):
            reattach, reading = take_back(daemon, place)
            told[reattach.node] = reattach
            readings.append(reading)
        assert [stage.route for stage in told["a"].outputs] == ["ab"]
        assert [(stage.route, stage.segments) for stage in told["b"].inputs] == [("ab", told["a"].segments)]
        assert {reattach.state for reattach in told.values()} == {"started"}

        def total() -> int:
            before = len(sink.said(Publish))
            sink.link.send(Deliver(envelope={"topic": "tell"}, payload=b"0"))
            daemon.until(lambda: len(sink.said(Publish)) > before)
            return int(sink.said(Publish)[-1].payload)

        first = total()
        while total() <= first:
            pass
        source.link.send(Drain())
        results = daemon.finish()
        assert results["b"] > first
        for reading in readings:
            os.close(reading)

    def test_the_memory_that_it_shows_is_whole(self, daemon, surviving, plugin, place) -> None:
        daemon.start(surviving("a", plugin(COUNT) + ":numbers", "ab>b"))
        daemon.start(surviving("b", plugin(TELL) + ":Tell", "ab<a"))
        daemon.wire()
        daemon.begin()
        lose(daemon)
        met = {}
        for _ in range(2):
            link, reattach, descriptors = meet(place)
            met[reattach.node] = link, reattach, descriptors
        _, source, from_source = met["a"]
        _, sink, from_sink = met["b"]
        assert len(from_source) == len(source.outputs) + len(source.segments)
        view = shm.RouteView(from_source[0], from_sink[0])
        assert view.snapshot()["committed"] > 0
        view.close()
        assert (source.token, sink.token) == ("secret-a", "secret-b")
        for link, _, descriptors in met.values():
            link.send(error("flow-not-found", flow="test", nearest=None).failure())
            link.close()
            for descriptor in descriptors:
                os.close(descriptor)

    def test_one_that_is_refused_ends_with_70(self, daemon, surviving, plugin, place) -> None:
        worker = daemon.start(surviving("a", plugin(ECHO) + ":Echo"))
        daemon.wire()
        daemon.begin()
        lose(daemon)
        link, _, _ = meet(place)
        link.send(error("flow-not-found", flow="test", nearest=None).failure())
        assert worker.wait() == 70
        link.close()

    def test_a_daemon_that_dies_before_it_answers_is_one_of_many(self, daemon, surviving, plugin, place) -> None:
        worker = daemon.start(surviving("a", plugin(ECHO) + ":Echo"))
        daemon.wire()
        daemon.begin()
        lose(daemon)
        for _ in range(3):
            link, _, _ = meet(place)
            link.close()
        _, reading = take_back(daemon, place)
        worker.link.send(Drain())
        assert daemon.finish() == {"a": "done"}
        os.close(reading)

    def test_sigterm_ends_one_that_waits_for_a_daemon(self, daemon, surviving, plugin, place) -> None:
        worker = daemon.start(surviving("a", plugin(ECHO) + ":Echo"))
        daemon.wire()
        daemon.begin()
        lose(daemon)
        link, _, _ = meet(place)
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait() == 143
        link.close()

    def test_before_it_is_ready_it_ends_with_the_daemon(self, daemon, surviving, plugin) -> None:
        worker = daemon.start(surviving("a", plugin(ECHO) + ":Echo"))
        worker.link.close()
        assert worker.wait() == 70


class TestWhatItSays:
    def test_is_kept_for_the_next_daemon_in_order(self, daemon, surviving, plugin, place) -> None:
        fifo = daemon.folder / "gate"
        os.mkfifo(fifo)
        source = plugin(f"""
            def talk(ctx):
                ctx.publish("go", 0)
                open({str(fifo)!r}).read()
                for n in range(5):
                    ctx.publish("n", n)
                    print("while nobody reads", flush=True)
                yield None
        """)
        worker = daemon.start(surviving("a", source + ":talk"))
        daemon.wire()
        worker.link.send(Start())
        daemon.until(lambda: worker.said(Publish))
        lose(daemon)
        link, _, _ = meet(place)
        link.close()
        fifo.open("w").close()
        _, reading = take_back(daemon, place)
        assert daemon.finish() == {"a": None}
        assert [int(each.payload) for each in worker.said(Publish)] == [0, 0, 1, 2, 3, 4]
        os.close(reading)

    def test_a_request_under_way_ends_as_peer_gone(self, daemon, surviving, plugin, place) -> None:
        asking = plugin("""
            from chronetix import RequestFailed
            def ask(ctx):
                try:
                    ctx.request("who", None)
                except RequestFailed as failure:
                    ctx.publish("end", failure.reason)
                yield None
        """)
        worker = daemon.start(surviving("a", asking + ":ask"))
        daemon.wire()
        worker.link.send(Start())
        daemon.until(lambda: worker.said(Request))
        lose(daemon)
        _, reading = take_back(daemon, place)
        daemon.finish()
        assert [each.payload for each in worker.said(Publish)] == [b'"peer-gone"']
        os.close(reading)

    def test_what_it_prints_goes_to_its_new_stdout(self, daemon, surviving, plugin, place) -> None:
        from chronetix.protocol.messages import Deliver

        worker = daemon.start(surviving("a", plugin(ECHO) + ":Echo"))
        daemon.wire()
        daemon.begin()
        lose(daemon)
        _, reading = take_back(daemon, place)
        worker.link.send(Deliver(envelope={"topic": "in"}, payload=b"1"))
        daemon.until(lambda: worker.said(Publish))
        assert os.read(reading, 100) == b"heard in\n"
        worker.link.send(Drain())
        daemon.finish()
        os.close(reading)


class TestHowItStands:
    def test_before_it_was_told_to_start_it_ends_with_the_daemon(self, daemon, surviving, plugin) -> None:
        worker = daemon.start(surviving("a", plugin(ECHO) + ":Echo"))
        daemon.wire()
        lose(daemon)
        assert worker.wait() == 70

    def test_what_it_subscribed_to_as_it_ran_is_told_again(self, daemon, surviving, plugin, place) -> None:
        topics = plugin("""
            class Topics:
                def on_start(self, ctx):
                    for topic in ("one", "two", "three"):
                        ctx.subscribe(topic)
                    ctx.unsubscribe("two")
                    ctx.unsubscribe("of the manifest")
                def on_message(self, message, ctx): ctx.publish("heard", message.topic)
        """)
        worker = daemon.start(surviving("a", topics + ":Topics", subscriptions=["of the manifest"]))
        daemon.wire()
        daemon.begin()
        for _ in range(2):
            worker.heard.clear()
            lose(daemon)
            _, reading = take_back(daemon, place)
            daemon.until(lambda: len(worker.said(Unsubscribe)) == 2)
            assert [each.topic for each in worker.said(Subscribe)] == ["one", "three"]
            assert [each.topic for each in worker.said(Unsubscribe)] == ["two", "of the manifest"]
            os.close(reading)
        worker.link.send(Drain())
        daemon.finish()

    def test_that_it_has_finished_is_told_again_with_its_result(self, daemon, surviving, plugin, place) -> None:
        worker = daemon.start(surviving("a", plugin(ECHO) + ":Echo"))
        daemon.wire()
        daemon.begin()
        lose(daemon)
        link, reattach, _ = meet(place)
        assert reattach.state == "started"
        link.send(Drain())  # no answer that it waits for: this daemon is no good either
        link.close()
        _, reading = take_back(daemon, place)
        worker.link.send(Drain())
        assert daemon.finish() == {"a": "done"}
        os.close(reading)

    def test_finished_while_no_daemon_was_there(self, daemon, surviving, plugin, place) -> None:
        fifo = daemon.folder / "gate"
        os.mkfifo(fifo)
        source = plugin(f"""
            def ends(ctx):
                ctx.publish("go", 0)
                open({str(fifo)!r}).read()
                yield None
        """)
        worker = daemon.start(surviving("a", source + ":ends"))
        daemon.wire()
        worker.link.send(Start())
        daemon.until(lambda: worker.said(Publish))
        lose(daemon)
        link, _, _ = meet(place)
        fifo.open("w").close()
        link.close()
        reattach, reading = take_back(daemon, place)
        assert reattach.state in ("started", "draining")
        assert daemon.finish() == {"a": None}
        assert len(worker.said(Finished)) == 1
        os.close(reading)


class TestALinkThatSurvives:
    @pytest.fixture
    def link(self) -> Iterator[tuple[ControlLink[Any], socket.socket]]:
        ours, theirs = socket.socketpair()
        link: ControlLink[Any] = ControlLink(ours, ToWorker)
        link.survives = True
        yield link, theirs
        link.close()
        theirs.close()

    def test_keeps_a_message_that_finds_nobody(self, link) -> None:
        surviving, peer = link
        peer.close()
        surviving.send(Log(level="info", message="kept"))
        assert surviving.away
        ours, theirs = socket.socketpair()
        surviving.attach(ours)
        surviving.send(Log(level="info", message="later"))
        surviving.send_first(Started())
        surviving.resume()
        daemon: ControlLink[Any] = ControlLink(theirs, WorkerMessage)
        said = [daemon.receive()[0] for _ in range(3)]
        assert [type(said[0]), said[1].message, said[2].message] == [Started, "kept", "later"]
        assert not surviving.away
        daemon.close()

    def test_bounds_what_it_keeps_and_counts_the_rest(self, link) -> None:
        surviving, _ = link
        surviving.detach()
        big = Publish(envelope={"topic": "t"}, payload=bytes(MAX_KEPT // 4))
        for _ in range(6):
            surviving.send(big)
        assert surviving.dropped == 3
        surviving.send(Log(level="info", message="a small one fits"))
        assert surviving.dropped == 3

    def test_does_not_keep_what_the_next_daemon_is_told_anyway_but_what_changes_after_that(self, link) -> None:
        surviving, _ = link
        surviving.detach()
        with open(os.devnull, "rb") as some:
            surviving.send(Segment(index=1), [some.fileno()])
            surviving.send(SegmentMapped(index=1, route="r"))
            surviving.send(Subscribe(topic="t"))
            surviving.send(Log(level="info", message="kept"))
            surviving.renew()
            surviving.send(Segment(index=2), [some.fileno()])
        surviving.send(Drained(route="r", epoch=3))
        ours, theirs = socket.socketpair()
        surviving.attach(ours)
        surviving.resume()
        daemon: ControlLink[Any] = ControlLink(theirs, WorkerMessage)
        (log, _), (segment, (fd,)), (drained, _) = (daemon.receive() for _ in range(3))
        assert (log.message, segment.index, drained.epoch) == ("kept", 2, 3)
        assert os.readlink(f"/proc/self/fd/{fd}") == os.devnull
        os.close(fd)
        daemon.close()

    def test_a_daemon_that_dies_while_it_is_told_changes_nothing_for_the_next(self, link) -> None:
        surviving, _ = link
        surviving.detach()
        surviving.renew()
        with open(os.devnull, "rb") as some:
            surviving.send(Segment(index=2), [some.fileno()])
        surviving.send(Log(level="info", message="kept"))
        surviving.detach()
        ours, theirs = socket.socketpair()
        surviving.attach(ours)
        surviving.resume()
        daemon: ControlLink[Any] = ControlLink(theirs, WorkerMessage)
        assert daemon.receive()[0].message == "kept"
        daemon.close()

    def test_one_that_does_not_survive_raises(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        link: ControlLink[Any] = ControlLink(ours, ToWorker)
        with pytest.raises(BrokenPipeError):
            link.send(Pong(id=1, progress=0))
        link.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_finishes_for_a_daemon_that_dies_before_it_has_read_that_waits_for_the_next(when: str) -> None:
    ours, theirs = socket.socketpair()
    link: ControlLink[Any] = ControlLink(ours, ToWorker)
    reattachment = Reattachment(
        "/nowhere", link, lambda: (Reattach(flow="f", node="n", token="", state="started"), (), ())
    )
    settled = threading.Event()
    waiting = threading.Thread(target=lambda: (reattachment.settle(), settled.set()))
    try:
        reattachment.arm()
        if when == "before":
            theirs.close()
        link.send(Finished())
        assert not link.delivered
        theirs.close()
        assert not link.delivered
        waiting.start()
        assert not settled.wait(0.05)
        reattachment.give_up()
        waiting.join()
    finally:
        reattachment.close()
        link.close()


def test_who_finishes_for_a_daemon_that_has_read_it_waits_for_nobody() -> None:
    ours, theirs = socket.socketpair()
    link: ControlLink[Any] = ControlLink(ours, ToWorker)
    reattachment = Reattachment(
        "/nowhere", link, lambda: (Reattach(flow="f", node="n", token="", state="started"), (), ())
    )
    with theirs:
        reattachment.arm()
        link.send(Finished())
        theirs.recv(1 << 16)
        reattachment.settle()
        reattachment.close()
        link.close()
