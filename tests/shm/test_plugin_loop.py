"""The native loops of a plugin's thread: what they call, what they send, when they come back."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import types
import weakref

import pytest

from chronetix import shm


class Sent(list):
    """An ``emit`` that is called: what it was given, each with the number of the item or frame it is made from."""

    def __call__(self, data, timeout_ns, origin):
        assert timeout_ns == -1
        self.append((bytes(data), origin if isinstance(origin, int) else origin.seq))


def frames_of(route, *payloads, close=True):
    for payload in payloads:
        route.outlet.send(payload)
    if close:
        route.producer.close()


def run(route, on_frame, *, limit=0, step=None, mailbox=(), emit=None, ctx="ctx"):
    emit = Sent() if emit is None else emit
    return shm.run_frames(route.inlet, limit, on_frame, ctx, step or shm.Step(), mailbox, emit)


class TestFrames:
    def test_each_frame_goes_through_the_function_and_its_result_is_sent_with_its_origin(self, route):
        frames_of(route, b"a", b"b", b"c")
        seen, sent = [], Sent()
        assert run(route, lambda frame, ctx: seen.append(ctx) or bytes(frame) * 2, emit=sent) is True
        assert seen == ["ctx"] * 3
        assert sent == [(b"aa", 0), (b"bb", 1), (b"cc", 2)]

    def test_nothing_is_sent_of_none(self, route):
        frames_of(route, b"a", b"b")
        sent = Sent()
        assert run(route, lambda frame, _: bytes(frame) if frame.seq else None, emit=sent)
        assert [data for data, _ in sent] == [b"b"]

    def test_a_credit_comes_back_after_the_result_was_sent_and_before_the_next_frame(self, route):
        frames_of(route, *[b"x"] * 3)
        outstanding = []

        def emit(data, timeout_ns, origin):
            outstanding.append(("sent", route.view()["returned"]))

        def on_frame(frame, ctx):
            outstanding.append(("called", route.view()["returned"]))
            return b"y"

        assert run(route, on_frame, emit=emit)
        assert outstanding == [(what, number) for number in range(3) for what in ("called", "sent")]

    def test_a_frame_that_the_plugin_keeps_a_view_of_is_returned_with_the_view(self, route):
        frames_of(route, b"kept", b"gone")
        views = []
        assert run(route, lambda frame, _: views.append(memoryview(frame)) if frame.seq == 0 else None)
        assert route.view()["returned"] == 1
        assert bytes(views.pop()) == b"kept"
        assert route.view()["returned"] == 2

    def test_an_outlet_is_sent_to_without_a_call_and_with_the_frames_tags(self, make_route):
        first, second = make_route(), make_route()
        first.outlet.send(b"one", deadline_ns=7, redelivered=True)
        frames_of(first, b"two")
        assert run(first, lambda frame, _: frame, emit=second.outlet.send)
        made = [second.take(), second.take()]
        assert [(bytes(each), each.input_seq) for each in made] == [(b"one", 0), (b"two", 1)]
        assert [(each.deadline_ns, each.redelivered) for each in made] == [(7, True), (0, False)]

    def test_batches_come_where_a_limit_is_given(self, route):
        frames_of(route, *[b"%d" % number for number in range(7)])
        seen, sent = [], Sent()
        assert run(route, lambda batch, _: seen.append([bytes(each) for each in batch]) or b"r", limit=3, emit=sent)
        assert seen == [[b"0", b"1", b"2"], [b"3", b"4", b"5"], [b"6"]]
        assert [seq for _, seq in sent] == [0, 3, 6]
        assert route.view()["returned"] == 7

    def test_it_comes_back_as_soon_as_there_is_an_event(self, route):
        frames_of(route, b"a", b"b", b"c", close=False)
        mailbox, seen = [], []

        def on_frame(frame, ctx):
            seen.append(bytes(frame))
            if frame.seq == 1:
                mailbox.append("event")

        assert run(route, on_frame, mailbox=mailbox) is False
        assert seen == [b"a", b"b"]
        assert run(route, on_frame, mailbox=mailbox) is False
        assert seen == [b"a", b"b"]

    def test_an_event_wakes_it_when_the_doorbell_rings(self, route):
        mailbox: list[str] = []

        def event():
            mailbox.append("event")
            route.far_bell.ring()

        thread = threading.Thread(target=event)
        thread.start()
        assert run(route, lambda *_: None, mailbox=mailbox) is False
        thread.join()

    def test_what_the_plugin_raises_passes_and_the_step_still_names_its_frame(self, route):
        frames_of(route, b"a", b"b")
        step = shm.Step()

        def on_frame(frame, ctx):
            if frame.seq == 1:
                raise LookupError("b")

        with pytest.raises(LookupError, match="b"):
            run(route, on_frame, step=step)
        assert (step.doing.seq, step.count) == (1, 2)
        step.doing = None

    def test_what_emit_raises_passes(self, route):
        frames_of(route, b"a")

        def emit(data, timeout_ns, origin):
            raise shm.RouteClosed("gone", "r")

        with pytest.raises(shm.RouteClosed):
            run(route, lambda frame, _: frame, emit=emit)

    def test_an_interrupt_is_raised_before_a_send_and_stops_no_sink(self, route):
        frames_of(route, b"a", b"b")
        step, sent = shm.Step(), Sent()
        step.interrupt = KeyboardInterrupt("now")
        with pytest.raises(KeyboardInterrupt, match="now"):
            run(route, lambda frame, _: frame, step=step, emit=sent)
        assert sent == []
        assert run(route, lambda *_: None, step=step) is True

    def test_a_function_without_bytecode_lets_other_threads_run(self, make_route):
        """Two routes feed each other without an end, and only another thread brings the event that ends it."""
        ring = make_route(credits=4)
        frames_of(ring, b"x", close=False)
        mailbox: list[int] = []
        thread = threading.Thread(target=mailbox.append, args=(1,))
        thread.start()
        assert run(ring, max, mailbox=mailbox, ctx=b"", emit=ring.outlet.send) is False
        thread.join()

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ((), "takes 7 arguments"),
            ((None, 0, None, None, None, (), None), r"a shm\.Inlet and a shm\.Step"),
        ],
    )
    def test_what_is_no_inlet_or_step_is_refused(self, arguments, reason):
        with pytest.raises(TypeError, match=reason):
            shm.run_frames(*arguments)

    def test_a_negative_limit_is_refused(self, route):
        with pytest.raises(ValueError, match="limit must not be negative"):
            run(route, lambda *_: None, limit=-1)

    def test_a_mailbox_without_a_length_is_refused(self, route):
        with pytest.raises(TypeError, match="len"):
            run(route, lambda *_: None, mailbox=None)


class TestItems:
    def test_items_are_sent_with_their_numbers(self):
        step, sent = shm.Step(), Sent()
        assert shm.run_items(iter([b"a", None, b"b"]), step, (), sent) is True
        assert sent == [(b"a", 1), (b"b", 2)]
        assert (step.item, step.count, step.doing) == (2, 4, None)

    def test_numbers_go_on_behind_the_last_item(self):
        step, sent = shm.Step(), Sent()
        step.item = 41
        shm.run_items(iter([b"a"]), step, (), sent)
        assert sent == [(b"a", 42)]

    def test_an_outlet_gets_items_with_their_numbers(self, route):
        assert shm.run_items(iter([b"a", b"b"]), shm.Step(), (), route.outlet.send)
        assert [(bytes(frame), frame.input_seq) for frame in (route.take(), route.take())] == [(b"a", 1), (b"b", 2)]

    def test_it_comes_back_between_two_items_when_there_is_an_event_and_goes_on_there(self):
        mailbox, sent, step = [], Sent(), shm.Step()
        items = iter([b"a", b"b", b"c"])

        def emit(data, timeout_ns, origin):
            sent(data, timeout_ns, origin)
            if data == b"b":
                mailbox.append("event")

        assert shm.run_items(items, step, mailbox, emit) is False
        assert [data for data, _ in sent] == [b"a", b"b"]
        mailbox.clear()
        assert shm.run_items(items, step, mailbox, emit) is True
        assert sent[-1] == (b"c", 3)

    def test_what_the_iterator_raises_passes_and_the_step_still_names_it(self):
        step = shm.Step()

        def items():
            yield b"a"
            raise LookupError("b")

        made = items()
        with pytest.raises(LookupError, match="b"):
            shm.run_items(made, step, (), Sent())
        assert step.doing is made
        assert step.item == 1

    def test_an_item_that_cannot_be_sent_has_had_its_number(self, route):
        step = shm.Step()
        with pytest.raises(TypeError):
            shm.run_items(iter([3.5]), step, (), route.outlet.send)
        assert step.item == 1

    def test_an_interrupt_is_raised_before_a_send(self):
        step, sent = shm.Step(), Sent()
        step.interrupt = KeyboardInterrupt("now")
        with pytest.raises(KeyboardInterrupt, match="now"):
            shm.run_items(itertools.repeat(b"x"), step, (), sent)
        assert sent == []

    def test_an_iterator_without_bytecode_lets_other_threads_run(self):
        mailbox: list[int] = []
        thread = threading.Thread(target=mailbox.append, args=(1,))
        thread.start()
        assert shm.run_items(itertools.repeat(None), shm.Step(), mailbox, Sent()) is False
        thread.join()

    @pytest.mark.parametrize("items", [[b"a"], None])
    def test_what_is_no_iterator_is_refused(self, items):
        with pytest.raises(TypeError, match="takes an iterator"):
            shm.run_items(items, shm.Step(), (), Sent())


class TestStep:
    def test_begins_with_nothing(self):
        step = shm.Step()
        assert (step.doing, step.source, step.interrupt) == (None, None, None)
        assert (step.count, step.item, step.finishing, step.cancelled) == (0, 0, False, False)

    def test_a_cycle_through_it_is_collected(self):
        class Source:
            pass

        source = Source()
        source.step = shm.Step()
        source.step.source = source.step.doing = source.step.interrupt = source
        gone = weakref.ref(source)
        del source
        gc.collect()
        assert gone() is None


class Yields:
    """An awaitable that yields what it was made with."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        return (yield self.value)


def run_awaited(route, on_frame, *, step=None, mailbox=(), emit=None, entered=None, doing="doing", most=100):
    step = step or shm.Step()
    enter = [].append if entered is None else lambda frame: entered.append(frame.seq)
    emit = Sent() if emit is None else emit
    return shm.run_awaited(
        *(route.inlet, on_frame, "ctx", step, mailbox, emit, enter, doing, types.CoroutineType, most)
    )


class TestAwaited:
    def test_coroutines_that_do_not_wait_run_through_and_their_results_are_sent(self, make_route):
        first, second = make_route(), make_route()
        frames_of(first, b"a", b"b", b"c", close=False)
        step, entered = shm.Step(), []

        async def on_frame(frame, ctx):
            assert (ctx, step.doing) == ("ctx", "doing")
            return None if frame.seq == 1 else frame

        assert run_awaited(first, on_frame, step=step, entered=entered, emit=second.outlet.send) is False
        assert second.drain() == [b"a", b"c"]
        assert (entered, step.count, step.doing) == ([0, 1, 2], 3, None)
        assert first.view()["returned"] == 3

    def test_a_coroutine_that_waits_comes_back_with_what_it_waits_for_and_its_frame_is_held(self, route):
        frames_of(route, b"a", b"b")

        async def on_frame(frame, ctx):
            return await Yields("something")

        frame, coroutine, value = run_awaited(route, on_frame)
        assert (frame.seq, value) == (0, "something")
        with pytest.raises(StopIteration) as end:
            coroutine.send("result")
        assert end.value.value == "result"
        assert route.view()["returned"] == 0
        del frame

    def test_a_result_without_credit_comes_back_to_be_sent(self, make_route):
        first, second = make_route(), make_route(credits=1)
        second.outlet.send(b"full")
        frames_of(first, b"a")
        frame, coroutine, value = run_awaited(first, lambda frame, _: b"r", emit=second.outlet.send)
        assert (frame.seq, coroutine, value) == (0, None, b"r")
        assert first.view()["returned"] == 0
        del frame

    def test_a_result_for_what_is_no_outlet_and_an_awaitable_come_back(self, make_route):
        first, second = make_route(), make_route()
        frames_of(first, b"a", b"b")
        _, coroutine, value = run_awaited(first, lambda *_: b"r", emit=Sent())
        assert (coroutine, value) == (None, b"r")
        awaitable = Yields(1)
        _, coroutine, value = run_awaited(first, lambda *_: awaitable, emit=second.outlet.send)
        assert coroutine is None
        assert value is awaitable

    def test_others_get_their_turn_after_an_event_and_after_so_many_frames(self, route):
        frames_of(route, b"a", b"b", b"c", close=False)
        seen: list[int] = []
        assert run_awaited(route, lambda frame, _: seen.append(frame.seq), most=2) is True
        assert run_awaited(route, lambda frame, _: seen.append(frame.seq), mailbox=["event"]) is True
        assert seen == [0, 1]
        assert run_awaited(route, lambda frame, _: seen.append(frame.seq), most=2) is False
        assert seen == [0, 1, 2]

    def test_what_a_coroutine_raises_passes(self, route):
        frames_of(route, b"a")

        async def on_frame(frame, ctx):
            raise LookupError("a")

        step = shm.Step()
        step.doing = "before"
        with pytest.raises(LookupError, match="a"):
            run_awaited(route, on_frame, step=step)
        assert step.doing == "before"

    def test_a_closed_route_passes(self, make_route):
        first, second = make_route(), make_route()
        frames_of(first, b"a")
        second.consumer.close()
        with pytest.raises(shm.RouteClosed):
            run_awaited(first, lambda frame, _: frame, emit=second.outlet.send)

    def test_a_child_that_comes_back_from_the_callback_sends_nothing(self, make_route):
        first, second = make_route(), make_route()
        frames_of(first, b"a", close=False)
        parent = os.getpid()

        def on_frame(frame, ctx):
            pid = os.fork()
            return Yields(pid) if pid else b"child"

        found = run_awaited(first, on_frame, emit=second.outlet.send)
        if os.getpid() != parent:
            os._exit(7 if isinstance(found, tuple) and found[2] == b"child" else 8)
        assert os.waitstatus_to_exitcode(os.waitpid(found[2].value, 0)[1]) == 7
        del found
        assert second.drain() == []

    @pytest.mark.parametrize("arguments", [(), (None,) * 10])
    def test_what_is_no_inlet_or_step_is_refused(self, arguments):
        with pytest.raises(TypeError, match="takes"):
            shm.run_awaited(*arguments)
