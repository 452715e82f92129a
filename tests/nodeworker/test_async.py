"""Asynchronous plugins: callbacks that wait without blocking, in one process, in unit tests and in workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from chronetix.nodeworker.api.errors import RequestFailed
from chronetix.nodeworker.inprocess import deployment, testing
from chronetix.protocol.messages import Deliver, Finished, Log, Publish, Reply, Request, Tick, TimerSpec


class TestCallbacks:
    def test_a_coroutine_function_is_a_map(self):
        async def double(frame, ctx):
            await asyncio.sleep(0)
            return frame.value() * 2

        assert testing.run(double, [1, 2, 3]).sent == [2, 4, 6]

    def test_an_asynchronous_generator_of_the_context_is_a_source(self):
        async def count(ctx):
            for n in range(ctx.params["count"]):
                await asyncio.sleep(0)
                yield n

        assert testing.run(count, params={"count": 300}, buffer=4).sent == list(range(300))

    def test_an_asynchronous_generator_of_a_frame_sends_what_it_yields(self):
        async def twice(frame):
            yield frame.value()
            await asyncio.sleep(0)
            yield -frame.value()

        assert testing.run(twice, [1, 2, 3], buffer=1).sent == [1, -1, 2, -2, 3, -3]

    def test_of_a_class_may_be_of_both_kinds(self):
        class Mixed:
            async def on_start(self, ctx):
                self.seen = []
                await ctx.send("started")

            def on_frame(self, frame):
                self.seen.append(frame.value())
                return frame.value()

            def on_message(self, message):
                yield "message"
                yield message.value()

            async def on_tick(self, tick, ctx):
                await asyncio.sleep(0)
                return f"tick {tick.sequence}"

            async def on_stop(self, ctx):
                await ctx.send("stopped")
                return self.seen

        run = testing.run(Mixed, [1, 2], ticks=2, messages=[("t", "hello")])
        assert run.sent[0] == "started"
        assert run.sent[-1] == "stopped"
        assert sorted(map(str, run.sent[1:-1])) == ["1", "2", "hello", "message", "tick 1", "tick 2"]
        assert run.result == [1, 2]

    def test_a_source_that_is_a_plain_generator_may_stand_beside_them(self):
        class Source:
            async def on_start(self):
                self.base = 10

            def produce(self):
                yield from range(self.base, 13)
                return "all"

        run = testing.run(Source)
        assert (run.sent, run.result) == ([10, 11, 12], "all")

    def test_may_publish_ask_and_answer(self):
        class Asks:
            async def on_frame(self, frame, ctx):
                ctx.publish("seen", frame.value())
                return (await ctx.request("square", frame.value())).value()

            async def on_message(self, message):
                message.reply(message.value() + 1)

        run = testing.run(Asks, [3], replies={"square": 9}, requests=[("next", 41)])
        assert (run.sent, run.replies) == ([9], [42])
        assert [(p.topic, p.value) for p in run.published if p.topic == "seen"] == [("seen", 3)]

    def test_a_request_that_nobody_answers_fails(self):
        async def asks(frame, ctx):
            with pytest.raises(RequestFailed, match="no-subscriber"):
                await ctx.request("nobody", 1)

        testing.run(asks, [1])

    def test_what_one_raises_comes_out_as_it_is(self):
        async def breaks(frame):
            await asyncio.sleep(0)
            raise LookupError("as it is")

        with pytest.raises(LookupError, match="as it is"):
            testing.run(breaks, [1, 2])

    @pytest.mark.parametrize("callback", ["on_start", "on_stop", "on_tick", "on_message", "produce"])
    def test_what_any_of_them_raises_ends_the_node(self, callback):
        async def breaks(self, *_):
            await asyncio.sleep(0)
            raise LookupError(callback)

        async def generates(self, ctx):
            await asyncio.sleep(0)
            raise LookupError(callback)
            yield

        plugin = type("Plugin", (), {callback: generates if callback == "produce" else breaks})
        with pytest.raises(LookupError, match=callback):
            testing.run(plugin, ticks=callback == "on_tick", messages=[("t", 1)] * (callback == "on_message"))

    def test_a_frame_that_fails_is_tried_again_and_then_set_aside(self):
        class Fails:
            tried = 0

            async def on_frame(self, frame):
                await asyncio.sleep(0)
                if frame.value() == 1:
                    self.tried += 1
                    raise LookupError("never")
                if frame.value() == 2 and self.tried == 3:
                    self.tried += 1
                    raise LookupError("once")
                return frame.value()

            async def on_stop(self):
                return self.tried

        run = testing.run(Fails, [0, 1, 2, 3], qos={"retry": 2, "dead_letter": "dead"})
        assert (run.sent, run.result) == ([0, 2, 3], 4)
        assert [letter.value for letter in run.published] == [1]

    def test_an_exit_fails_the_node_whatever_its_code(self):
        async def leaves(frame, ctx):
            if frame.seq == 2:
                raise SystemExit(ctx.params["code"])
            return frame.value()

        for code in (0, 1):
            with pytest.raises(SystemExit):
                testing.run(leaves, range(10), {"code": code})

    def test_a_send_that_is_not_awaited_is_told_and_not_lost_silently(self):
        async def forgets(frame, ctx):
            ctx.send(frame.value())

        with pytest.raises(TypeError, match=r"ctx\.send was called and not awaited.*await ctx\.send"):
            testing.run(forgets, [1])

    @pytest.mark.parametrize("way", ["create_task", "ensure_future", "gather", "wait_for", "TaskGroup", "shield"])
    def test_a_send_may_be_given_to_whatever_takes_a_coroutine(self, way):
        async def both(frame, ctx):
            one, two = ctx.send(frame.value()), ctx.send(-frame.value())
            match way:
                case "create_task":
                    for task in [asyncio.create_task(one), asyncio.create_task(two)]:
                        await task
                case "ensure_future":
                    await asyncio.wait([asyncio.ensure_future(one), asyncio.ensure_future(two)])
                case "gather":
                    await asyncio.gather(one, two)
                case "wait_for":
                    await asyncio.wait_for(one, 30)
                    await asyncio.wait_for(two, 30)
                case "TaskGroup":
                    async with asyncio.TaskGroup() as group:
                        group.create_task(one)
                        group.create_task(two)
                case "shield":
                    await asyncio.shield(one)
                    await asyncio.shield(two)

        assert testing.run(both, [1, 2, 3], buffer=1).sent == [1, -1, 2, -2, 3, -3]

    def test_a_request_and_a_loan_may_be_given_to_a_task_too(self):
        async def asks(frame, ctx):
            answer = asyncio.create_task(ctx.request("nobody/there", timeout=30))
            lent = asyncio.create_task(ctx.loan(3))
            with await lent as room, memoryview(room) as view:
                view[:] = bytes(frame)
            with pytest.raises(RequestFailed, match="no-subscriber"):
                await answer

        assert testing.run(asks, [b"abc"], content_type="application/octet-stream").sent == [b"abc"]

    def test_a_task_of_a_send_that_is_cancelled_before_it_began_sends_nothing_and_is_no_fault(self):
        async def changes_its_mind(frame, ctx):
            late = asyncio.create_task(ctx.send("never"))
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
            ctx.send("given up").close()
            return frame.value()

        assert testing.run(changes_its_mind, [1, 2]).sent == [1, 2]

    @pytest.mark.parametrize("again", ["await", "create_task"])
    def test_a_send_is_awaited_once(self, again):
        async def twice(frame, ctx):
            sending = ctx.send(frame.value())
            await sending
            await (sending if again == "await" else asyncio.create_task(sending))

        with pytest.raises(RuntimeError, match="awaited already: call the method again"):
            testing.run(twice, [1])

    def test_a_constructor_cannot_send(self):
        class Early:
            def __init__(self, ctx):
                ctx.send(1)

            async def on_frame(self, frame): ...

        with pytest.raises(RuntimeError, match="from on_start on"):
            testing.run(Early, [1])


class TestWhatStillRunsAtTheEnd:
    def test_is_cancelled(self):
        class Beats:
            async def on_start(self):
                self.beats = 0
                self.task = asyncio.create_task(self.beat())

            async def beat(self):
                while True:
                    await asyncio.sleep(0)
                    self.beats += 1

            async def on_frame(self, frame):
                await asyncio.sleep(0)
                return frame.value()

        plugin = Beats()
        assert testing.run(plugin, [1, 2, 3]).sent == [1, 2, 3]
        assert plugin.beats
        assert plugin.task.cancelled()

    def test_may_take_its_time_when_it_is_cancelled(self):
        class Tidies:
            tidied = False

            async def on_start(self, ctx):
                self.tasks = [asyncio.create_task(self.tidy()) for _ in range(3)]
                await asyncio.sleep(0)

            async def tidy(self):
                try:
                    await asyncio.sleep(1000)
                finally:
                    await asyncio.sleep(0.01)
                    self.tidied = True

            async def on_frame(self, frame): ...

        plugin = Tidies()
        testing.run(plugin, [1])
        assert plugin.tidied

    def test_and_does_not_end_is_named(self, monkeypatch):
        monkeypatch.setattr(deployment.Deployment.close, "__defaults__", (0.01,))

        class Never:
            async def on_start(self):
                self.task = asyncio.create_task(self.never())

            async def never(self):
                while True:
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(1000)

            async def on_frame(self, frame): ...

        with pytest.raises(RuntimeError, match=r"task 'Task-\d+' of .*Never\.never \(.*test_async\.py, line \d+\)"):
            testing.run(Never, [1])

    def test_may_be_an_asynchronous_generator(self):
        closed = []

        class Iterates:
            async def on_start(self):
                self.items = self.count()
                await anext(self.items)

            async def count(self):
                try:
                    while True:
                        yield 1
                finally:
                    await asyncio.sleep(0)
                    closed.append(True)

            async def on_frame(self, frame): ...

        plugin = Iterates()
        testing.run(plugin, [1])
        assert closed


class TestFramesInFlight:
    @staticmethod
    def meeting(size):
        """A map whose callbacks wait until ``size`` of them are there; the last to come is the first to go on."""

        class Meeting:
            most = here = 0
            waiting = []

            async def on_frame(self, frame):
                self.here += 1
                self.most = max(self.most, self.here)
                gate = asyncio.get_running_loop().create_future()
                self.waiting.append(gate)
                if len(self.waiting) == size:
                    self.waiting.reverse()
                    for earlier in self.waiting:
                        earlier.set_result(None)
                    self.waiting = []
                await gate
                self.here -= 1
                return frame.value()

            async def on_stop(self):
                return self.most

        return Meeting

    def test_are_one_unless_the_manifest_says_more(self):
        class Counts:
            here = most = 0

            async def on_frame(self, frame):
                self.here += 1
                self.most = max(self.most, self.here)
                await asyncio.sleep(0)
                self.here -= 1

            async def on_stop(self):
                return self.most

        assert testing.run(Counts, range(20)).result == 1
        assert testing.run(Counts, range(20), max_inflight=6).result == 6

    def test_may_wait_in_every_way_or_not_at_all(self):
        async def on_frame(frame):
            match frame.value() % 6:
                case 0:
                    return 0
                case 1:
                    return await asyncio.sleep(0, 1)
                case 2:
                    try:
                        async with asyncio.timeout(0):
                            await asyncio.Event().wait()
                    except TimeoutError:
                        await asyncio.sleep(0)
                        return 2
                case 3:
                    return sum(await asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2)))
                case 4:
                    future = asyncio.get_running_loop().create_future()
                    asyncio.get_running_loop().call_soon(future.set_result, 4)
                    return await future
            return await asyncio.create_task(asyncio.sleep(0, 5))

        assert testing.run(on_frame, range(60)).sent == [number % 6 for number in range(60)]

    def test_may_return_what_is_to_be_awaited(self):
        def on_frame(frame):
            return asyncio.ensure_future(asyncio.sleep(0, frame.value()))

        class Plain:
            def on_frame(self, frame):
                return on_frame(frame)

            async def on_stop(self):
                return "asynchronous"

        assert testing.run(Plain, range(5)).sent == list(range(5))

    def test_may_leave_a_task_that_sends_later(self):
        class Later:
            def __init__(self):
                self.tasks = []

            async def on_frame(self, frame, ctx):
                value = frame.value()
                if value < 3:
                    self.tasks.append(asyncio.create_task(self.send(ctx, value)))
                return f"at once {value}"

            async def send(self, ctx, value):
                await ctx.send(f"later {value}")

            async def on_stop(self):
                await asyncio.gather(*self.tasks)

        sent = testing.run(Later, range(4)).sent
        assert sorted(sent) == sorted([*(f"at once {n}" for n in range(4)), *(f"later {n}" for n in range(3))])

    def test_fail_in_their_own_words_after_a_wait_too(self):
        async def on_frame(frame):
            await asyncio.sleep(0)
            raise LookupError("after")

        with pytest.raises(LookupError, match="after"):
            testing.run(on_frame, range(3))

    def test_send_what_comes_of_them_in_their_order(self):
        run = testing.run(self.meeting(5), range(40), max_inflight=5, buffer=8)
        assert (run.sent, run.result) == (list(range(40)), 5)

    def test_send_it_as_it_comes_if_the_plugin_wants_that(self):
        plugin = self.meeting(4)
        plugin.ordered = False
        run = testing.run(plugin, range(8), max_inflight=4, buffer=8)
        assert run.sent == [3, 2, 1, 0, 7, 6, 5, 4]

    def test_that_send_for_themselves_wait_for_their_turn_too(self):
        async def backwards(frame, ctx):
            for _ in range(10 - frame.value() % 10):
                await asyncio.sleep(0)
            await ctx.send(frame.value())
            with await ctx.loan(3) as room:
                memoryview(room)[:] = b"%3d" % frame.value()

        run = testing.run(backwards, range(30), max_inflight=10, buffer=16)
        assert run.sent == [value for n in range(30) for value in (n, n)]

    def test_never_block_the_others_when_credits_run_out(self):
        """Each sends ten frames through two credits; meanwhile another callback goes on."""
        steps = []

        class Sends:
            async def on_frame(self, frame, ctx):
                for n in range(10):
                    await ctx.send([frame.value(), n])

            async def on_tick(self, tick):
                for _ in range(50):
                    steps.append(tick.sequence)
                    await asyncio.sleep(0)

        run = testing.run(Sends, range(20), max_inflight=4, buffer=2, ticks=1)
        assert run.sent == [[n, k] for n in range(20) for k in range(10)]
        assert len(steps) == 50

    def test_that_all_wait_for_credits_which_nobody_returns_fail_the_flow(self):
        with pytest.raises(RuntimeError, match="all its credits are with node"):
            testing.run(_Keeper(), [1, 2, 3, 4], buffer=1)


class _Keeper:
    """Keeps each frame, and waits for the next one."""

    def __init__(self):
        self.kept = []

    async def on_frame(self, frame):
        self.kept.append(memoryview(frame))


SOURCE = """
    import asyncio

    async def numbers(ctx):
        for n in range(ctx.params["count"]):
            if n % 7 == 0: await asyncio.sleep(0)
            yield {"n": n}
"""
DOUBLE = """
    import asyncio

    async def double(frame, ctx):
        for _ in range(frame.seq % 3): await asyncio.sleep(0)
        return {"n": frame.value()["n"] * 2}
"""
COLLECT = """
    class Collect:
        def __init__(self): self.seen = []
        async def on_frame(self, frame): self.seen.append([frame.value()["n"], frame.seq, frame.input_seq])
        async def on_stop(self): return self.seen
"""


class TestAWorker:
    @pytest.mark.parametrize("max_inflight", [1, 8])
    def test_runs_a_flow_of_asynchronous_nodes_in_order_and_ends_by_itself(
        self, daemon, configure, plugin, max_inflight
    ):
        results = daemon.run(
            configure("a", plugin(SOURCE) + ":numbers", "ab>b", credits=8, params={"count": 500}),
            configure("b", plugin(DOUBLE) + ":double", "ab<a", "bc>c", credits=8, max_inflight=max_inflight),
            configure("c", plugin(COLLECT) + ":Collect", "bc<b", credits=8),
        )
        assert results["c"] == [[2 * n, n, n] for n in range(500)]

    def test_waits_for_credits_without_blocking_its_loop(self, daemon, configure, plugin):
        """The sink takes a frame only after a message from the source's timer, which ticks while the source waits."""
        source = plugin("""
            class Source:
                async def produce(self, ctx):
                    for n in range(40): yield {"n": n}
                async def on_tick(self, tick, ctx):
                    ctx.publish("go", tick.sequence)
        """)
        sink = plugin("""
            class Sink:
                def __init__(self): self.kept, self.n = [], 0
                async def on_frame(self, frame):
                    self.n += 1
                    self.kept.append(memoryview(frame))
                async def on_message(self, message): self.kept.clear()
                async def on_stop(self): return self.n
        """)
        daemon.start(configure("a", source + ":Source", "ab>b", credits=2, timers=[TimerSpec(id="t", interval_ns=1)]))
        daemon.start(configure("b", sink + ":Sink", "ab<a", credits=2, subscriptions=["go"]))
        daemon.wire()
        daemon.begin()
        a, b = daemon.workers["a"], daemon.workers["b"]
        went = 0
        while a.open:
            went += 1
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                a.link.send(Tick(id="t", sequence=went, due_ns=0))
            daemon.until(lambda: len(a.said(Publish)) == went or not a.open)  # noqa: B023
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                b.link.send(Deliver(envelope={"topic": "go"}, payload=b"1"))
        assert daemon.finish()["b"] == 40

    def test_drains_a_source_where_it_waits(self, daemon, configure, plugin):
        source = plugin("""
            import asyncio
            class Source:
                async def produce(self, ctx):
                    yield {"n": 1}
                    ctx.log.info("waiting")
                    try:
                        await asyncio.get_running_loop().create_future()
                    finally:
                        ctx.log.info("closed", stopping=ctx.stopping)
                async def on_stop(self, ctx):
                    await ctx.send({"n": 2})
        """)
        daemon.start(configure("a", source + ":Source", "ab>b"))
        daemon.start(configure("b", plugin(COLLECT) + ":Collect", "ab<a"))
        daemon.wire()
        daemon.begin()
        daemon.until(lambda: bool(daemon.workers["a"].said(Log)))
        daemon.drain("a")
        assert [n for n, *_ in daemon.finish()["b"]] == [1, 2]
        assert [log.fields for log in daemon.workers["a"].said(Log)] == [{}, {"stopping": True}]

    def test_consumes_what_was_committed_to_it_when_it_is_drained(self, daemon, configure, plugin):
        source = plugin("""
            class Source:
                async def produce(self, ctx):
                    for n in range(5): yield {"n": n}
                    ctx.publish("sent", 5)
                    import asyncio
                    await asyncio.get_running_loop().create_future()
        """)
        daemon.start(configure("a", source + ":Source", "ab>b"))
        daemon.start(configure("b", plugin(COLLECT) + ":Collect", "ab<a"))
        daemon.wire()
        daemon.begin()
        daemon.until(lambda: daemon.workers["a"].said(Publish))
        daemon.drain("b")
        daemon.until(lambda: not daemon.workers["b"].open)
        assert len(daemon.workers["b"].said(Finished)[0].result) == 5
        daemon.drain("a")
        daemon.finish()

    @pytest.mark.parametrize("phase", ["start", "frame", "tick", "message", "source", "stop"])
    def test_tells_phase_error_and_traceback_of_what_a_callback_raises(self, daemon, configure, plugin, phase):
        name, arguments = {"source": ("produce", "ctx"), "start": ("on_start", "ctx"), "stop": ("on_stop", "ctx")}.get(
            phase, (f"on_{phase}", "thing, ctx")
        )
        source = plugin(f"""
            import asyncio
            class P:
                async def on_frame(self, frame): ...
                async def {name}(self, {arguments}):
                    await asyncio.sleep(0)
                    raise ValueError("broken")
        """)
        inputs = ("xa<x",) if phase in ("frame", "stop") else ()
        events = {"subscriptions": ["t"], "timers": [TimerSpec(id="t", interval_ns=1)]} if not inputs else {}
        if phase not in ("tick", "message"):
            events = {}
        if inputs:
            daemon.start(configure("x", plugin(SOURCE) + ":numbers", "xa>a", params={"count": 1}))
        if phase == "tick":
            events.pop("subscriptions")
        if phase == "message":
            events.pop("timers")
        worker = daemon.start(configure("a", source + ":P", *inputs, **events))
        daemon.wire()
        daemon.begin()
        if phase == "tick":
            worker.link.send(Tick(id="t", sequence=1, due_ns=0))
        if phase == "message":
            worker.link.send(Deliver(envelope={"topic": "t"}, payload=b"1"))
        fault = daemon.fault(worker)
        assert (fault.phase, fault.error) == (phase, "ValueError")
        assert "plugin_1.py" in fault.traceback
        assert worker.wait() == 1

    def test_is_stopped_by_sigterm_wherever_its_callbacks_wait(self, daemon, configure, plugin):
        waits = plugin("""
            import asyncio
            class Waits:
                async def on_message(self, message, ctx):
                    ctx.log.info("waiting")
                    try:
                        await asyncio.get_running_loop().create_future()
                    except asyncio.CancelledError:
                        ctx.log.info("cancelled")
                        raise
                async def on_stop(self, ctx): ctx.log.info("stopped")
        """)
        worker = daemon.start(configure("a", waits + ":Waits", subscriptions=["t"]))
        daemon.wire()
        daemon.begin()
        worker.link.send(Deliver(envelope={"topic": "t"}, payload=b"1"))
        daemon.until(lambda: bool(worker.said(Log)))
        os.kill(worker.pid, signal.SIGTERM)
        daemon.until(lambda: not worker.open)
        assert worker.wait() == 143
        assert [log.message for log in worker.said(Log)] == ["waiting", "cancelled", "stopped"]

    def test_is_stopped_by_sigterm_while_a_send_waits_for_credit(self, daemon, configure, plugin):
        source = plugin("""
            class Source:
                async def produce(self, ctx):
                    yield {"n": 1}
                    ctx.log.info("full")
                    yield {"n": 2}
        """)
        keeper = plugin("""
            class Keeper:
                async def on_frame(self, frame, ctx): self.kept = memoryview(frame)
        """)
        worker = daemon.start(configure("a", source + ":Source", "ab>b", credits=1))
        daemon.start(configure("b", keeper + ":Keeper", "ab<a", credits=1))
        daemon.wire()
        daemon.begin()
        daemon.until(lambda: bool(worker.said(Log)))
        os.kill(worker.pid, signal.SIGTERM)
        daemon.until(lambda: not worker.open)
        assert worker.wait() == 143
        daemon.drain("b")  # its producer has not ended the stream: a successor might go on with it
        daemon.until(lambda: not daemon.workers["b"].open)

    def test_that_hangs_is_broken_by_a_second_signal(self, daemon, configure, plugin):
        hangs = plugin("""
            class Hangs:
                async def on_message(self, message, ctx):
                    ctx.log.info("hanging")
                    while not ctx.stopping: pass
                    ctx.log.info("hanging still")
                    while True: pass
        """)
        worker = daemon.start(configure("a", hangs + ":Hangs", subscriptions=["t"]))
        daemon.wire()
        daemon.begin()
        worker.link.send(Deliver(envelope={"topic": "t"}, payload=b"1"))
        daemon.until(lambda: bool(worker.said(Log)))
        os.kill(worker.pid, signal.SIGTERM)
        daemon.until(lambda: len(worker.said(Log)) == 2)
        os.kill(worker.pid, signal.SIGTERM)
        daemon.until(lambda: not worker.open)
        assert worker.wait() == 143

    def test_asks_and_is_answered_while_others_go_on(self, daemon, configure, plugin):
        asks = plugin("""
            class Asks:
                async def on_message(self, message, ctx):
                    reply = await ctx.request("what", 1, timeout=50)
                    ctx.publish("got", reply.value())
                async def on_tick(self, tick, ctx):
                    ctx.publish("tick", tick.sequence)
        """)
        worker = daemon.start(
            configure("a", asks + ":Asks", subscriptions=["t"], timers=[TimerSpec(id="t", interval_ns=1)])
        )
        daemon.wire()
        daemon.begin()
        worker.link.send(Deliver(envelope={"topic": "t"}, payload=b"1"))
        daemon.until(lambda: bool(worker.said(Request)))
        assert daemon.ask("a", 1).busy_ns == 0
        corr_id = worker.said(Request)[0].envelope["corr_id"]
        worker.link.send(Reply(corr_id=corr_id, payload=b"7", content_type="application/json"))
        daemon.until(lambda: bool(worker.said(Publish)))
        assert worker.said(Publish)[0].payload == b"7"
        daemon.drain("a")
        daemon.finish()
