"""A forked child inherits the objects but owns none of them: it writes nothing, rings nobody and says so."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading

import pytest

from chronetix import shm
from tests.shm.lines import join


def in_child(run) -> None:
    """Run in a forked child; its exit says whether it passed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0


def test_a_child_can_use_nothing_of_its_parent(route):
    def child():
        for call in (
            lambda: route.outlet.send(b""),
            lambda: route.outlet.loan(1),
            route.outlet.wait,
            route.inlet.take,
            route.inlet.arm,
            route.bell.wait,
            lambda: route.arena.confirm(0),
            lambda: shm.Producer(route.arena, "new"),
        ):
            with pytest.raises(RuntimeError, match=r"belongs to the process that made it: make a new one after fork"):
                call()

    in_child(child)


def test_what_a_child_drops_is_not_returned_closed_or_rung(make_route):
    route = make_route()
    route.outlet.send(b"held")
    route.outlet.send(b"waiting")
    held = {"frame": route.take(), "loan": route.outlet.loan(10)}
    assert bytes(held["frame"]) == b"held"
    objects = {"route": route}

    def child():
        assert bytes(held["frame"]) == b"held", "what it inherited it may read"
        held["frame"].release()
        held.clear()
        objects["route"].producer.close()
        objects["route"].consumer.close()
        objects.clear()

    in_child(child)
    seen = route.view()
    assert (seen["returned"], seen["closed"], seen["detached"]) == (0, False, False)
    assert not route.bell.clear()
    assert not route.far_bell.clear()
    assert bytes(route.take()) == b"waiting"
    assert route.producer.credits == 6
    held.clear()


def test_a_child_makes_objects_of_its_own(make_route):
    outer = make_route()

    def child():
        route = make_route()
        route.outlet.send(b"mine")
        assert bytes(route.take()) == b"mine"
        with pytest.raises(RuntimeError, match="belongs to the process"):
            outer.outlet.send(b"")

        def grandchild():
            with pytest.raises(RuntimeError, match="belongs to the process"):
                route.outlet.send(b"")

        in_child(grandchild)

    in_child(child)
    outer.outlet.send(b"still mine")
    assert outer.drain() == [b"still mine"]


def ends_by_a_signal(run) -> int:
    """Run in a forked child; the signal that ended it, 0 if none did."""
    pid = os.fork()
    if pid == 0:
        for number in (signal.SIGSEGV, signal.SIGBUS):  # nobody is to explain it
            signal.signal(number, signal.SIG_DFL)
        try:
            run()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_a_child_that_drops_a_producer_of_policy_latest_overwrites_nothing(make_route):
    """Its ordinary clean-up, by which the parent takes back what was not read."""
    objects = {"route": make_route(policies=("latest",))}
    for number in range(5):
        objects["route"].outlet.send(b"%d" % number)

    def child():
        objects.clear()
        gc.collect()

    in_child(child)
    route = objects.pop("route")
    assert route.drain() == [b"0", b"1", b"2", b"3", b"4"]
    assert route.consumer.lost == 0


@pytest.mark.parametrize("latest", [True, False])
def test_a_child_of_multiprocessing_ends_without_a_trace(make_route, latest):
    """Its exit runs finalisers: frames, batches, loans and ends of its parent's are among what it drops."""
    route = make_route(policies=("latest" if latest else "block",))
    route.outlet.send_many(bytes(5 * 64), 64)
    kept = [route.take(), route.inlet.take_many(2, 0), route.outlet.loan(10)]
    before = route.view()
    child = multiprocessing.get_context("fork").Process(target=sys.exit)
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()
    assert route.view() == before
    assert not route.bell.clear()
    assert not route.far_bell.clear()
    kept.clear()
    assert len(route.drain()) == 2


def test_what_a_child_writes_through_an_old_view_ends_it_and_changes_nothing(route):
    """A view of a loan is memory; nothing stands between it and who writes, but the mapping is read-only in a child."""
    loan = route.outlet.loan(8)
    view = memoryview(loan)
    view[:] = b"parent's"

    def child():
        assert bytes(view) == b"parent's", "what it inherited it may read"
        view[:] = b"child's!"

    assert ends_by_a_signal(child) == signal.SIGSEGV
    view.release()
    loan.commit()
    assert route.drain() == [b"parent's"]


def test_a_child_gets_no_view_of_a_loan(route):
    with route.outlet.loan(8) as loan:

        def child():
            with pytest.raises(RuntimeError, match="belongs to the process that made it"):
                memoryview(loan)

        in_child(child)


def test_a_child_neither_rings_nor_silences_its_parents_bell(route):
    route.bell.ring()

    def child():
        for call in (route.far_bell.ring, route.bell.clear):
            with pytest.raises(RuntimeError, match="belongs to the process that made it"):
                call()
        route.bell.close()

    in_child(child)
    assert not route.far_bell.clear()
    assert route.bell.clear()


class Forker:
    """Forks in whatever calls it, once; the child goes on in there as the parent does."""

    def __init__(self) -> None:
        self.pid = -1

    def __call__(self, *_: object) -> None:
        if self.pid < 0:
            self.pid = os.fork()

    def check(self, caught: BaseException | None) -> None:
        """In the child, whose call has to be refused, it ends; the parent waits for that."""
        if self.pid == 0:
            os._exit(0 if "belongs to the process that made it" in str(caught) else 1)
        assert caught is None, caught
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, "the child went on with what belongs to its parent"


def refused(forker: Forker, call) -> object:
    result, caught = None, None
    try:
        result = call()
    except RuntimeError as error:
        caught = error
    forker.check(caught)
    return result


@pytest.fixture
def on_alarm():
    """A signal handler; a thread raises the signal until it has run."""
    handlers = []

    def install(handler) -> None:
        ran = threading.Event()

        def handle(*_: object) -> None:
            ran.set()
            handler()

        def send() -> None:
            while not ran.wait(0.01):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

        handlers.append(signal.signal(signal.SIGUSR1, handle))
        thread = threading.Thread(target=send)
        handlers.append(thread)
        thread.start()

    yield install
    before, thread = handlers
    thread.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("what", ["take", "take_many", "wait"])
def test_a_signal_handler_that_forks_while_a_consumer_sleeps_leaves_the_sleep_to_the_parent(route, on_alarm, what):
    forker = Forker()

    def fork_and_send() -> None:
        forker()
        if forker.pid:
            route.outlet.send(b"for the parent")
            route.far_bell.ring()

    on_alarm(fork_and_send)
    calls = {"take": route.inlet.take, "take_many": lambda: route.inlet.take_many(4), "wait": route.far_bell.wait}

    def call() -> object:
        while not (result := calls[what]()):
            pass
        return result

    refused(forker, call)
    assert len(route.drain()) == (1 if what == "wait" else 0)


@pytest.mark.parametrize("what", ["send", "wait"])
def test_a_signal_handler_that_forks_while_a_producer_sleeps_leaves_the_sleep_to_the_parent(make_route, on_alarm, what):
    route, forker = make_route(credits=1), Forker()
    route.outlet.send(b"first")

    def fork_and_take() -> None:
        forker()
        if forker.pid:
            route.take()

    on_alarm(fork_and_take)
    refused(forker, lambda: route.outlet.send(b"second") if what == "send" else route.outlet.wait())
    assert route.drain() == ([b"second"] if what == "send" else [])
    seen = route.view()
    assert seen["taken"] == seen["returned"] == seen["committed"]


def routed(forker: Forker, event: str) -> tuple[shm.Arena, shm.Outlet, shm.Inlet, shm.Consumer]:
    bell = shm.Doorbell()

    def grow(index: int, fd: int, size: int) -> None:
        consumer.add_segment(index, fd)
        arena.confirm(index)
        if event == "on_grow":
            forker()

    def drop(index: int) -> None:
        consumer.drop_segment(index)
        if event == "on_drop":
            forker()
        if forker.pid:
            arena.forget(index)

    arena = shm.Arena(1 << 22, first=1 << 16, on_grow=grow, on_drop=drop)
    limit = {"limit_ns": 1, "on_give_up": forker} if event == "on_give_up" else {}
    producer, consumer = shm.Producer(arena, "r", credits=1, **limit), shm.Consumer("r", credits=1)
    join(producer, bell, consumer, bell)
    consumer.add_segment(0, arena.segments[0][1])
    return arena, shm.Outlet([producer], bell), shm.Inlet([consumer], bell), consumer


def test_a_fork_while_an_arena_grows_leaves_the_frame_to_the_parent():
    forker = Forker()
    _, outlet, inlet, _ = routed(forker, "on_grow")
    refused(forker, lambda: outlet.send(b"x" * 300_000))
    frame = inlet.take(0)
    assert frame is not None
    assert bytes(frame) == b"x" * 300_000
    assert inlet.take(0) is None


def test_a_fork_while_an_arena_shrinks_leaves_the_rest_to_the_parent():
    forker = Forker()
    arena, outlet, inlet, _ = routed(forker, "on_drop")
    outlet.send(bytes(300_000))
    inlet.take(0)
    assert refused(forker, lambda: arena.shrink(0))
    assert outlet.send(b"and on") == 1


def test_a_fork_while_a_route_is_given_up_leaves_that_to_the_parent():
    forker = Forker()
    _, outlet, inlet, _ = routed(forker, "on_give_up")
    outlet.send(b"first")

    def call() -> None:
        for attempt in (b"found short", b"given up"):
            with pytest.raises(shm.RouteClosed):
                outlet.send(attempt)

    refused(forker, call)
    frame = inlet.take(0)
    assert frame is not None
    assert bytes(frame) == b"first"
    frame.release()
    assert inlet.take(0) is None
    assert inlet.ended


def test_a_fork_when_a_stage_is_left_leaves_the_next_one_to_the_parent(route):
    forker, after = Forker(), shm.Consumer("r0", credits=8, epoch=1)
    producer = shm.Producer(route.arena, "r0", credits=8, epoch=1)
    join(producer, route.bell, after, route.far_bell)
    for index, fd, _ in route.arena.segments:
        after.add_segment(index, fd)
    shm.Outlet([producer], route.bell).send(b"of the next stage")
    route.consumer.succeed(after, forker)
    frame = refused(forker, lambda: route.inlet.take(0))
    assert bytes(frame) == b"of the next stage"
