"""Only what has finished is finished: an early end is a failure unless the plugin has said ``ctx.finish()``. In
processes, and in one process."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from chronetix import testing
from chronetix.nodeworker.engine.load import load
from chronetix.nodeworker.inprocess.deployment import Deployment
from chronetix.nodeworker.inprocess.member import FlowFailed
from chronetix.protocol.messages import Finished, Tick, TimerSpec
from chronetix.shm import RouteView

KINDS = ["SystemExit(0)", "SystemExit()", "KeyboardInterrupt()", "asyncio.CancelledError()", "GeneratorExit()",
         "StopAsyncIteration()", "Own()"]  # fmt: skip

EARLY = """
    import asyncio
    class Own(BaseException): ...
    class Sink:
        {a}def {callback}(self, *_):
            raise {reason}
        {more}
"""
FRAMES = "def on_frame(self, *_): ..."
NUMBERS = """
    def numbers(ctx):
        for i in range(ctx.params["count"]):
            yield i
"""


@pytest.mark.parametrize("a", ["", "async "])
@pytest.mark.parametrize("reason", KINDS)
def test_any_early_end_in_a_worker_is_a_fault_of_the_frame(a: str, reason: str, daemon, configure, plugin) -> None:
    early = plugin(EARLY.format(a=a, callback="on_frame", reason=reason, more=""))
    daemon.start(configure("a", plugin(NUMBERS) + ":numbers", "ab>b", params={"count": 3}))
    worker = daemon.start(configure("b", early + ":Sink", "ab<a"))
    daemon.wire()
    daemon.begin()
    fault = daemon.fault(worker)
    assert fault.phase == "frame"
    assert fault.error == reason.partition("(")[0].rpartition(".")[2]
    assert worker.wait() == 1
    assert not worker.said(Finished)


@pytest.mark.parametrize("a", ["", "async "])
@pytest.mark.parametrize("callback", ["on_start", "on_stop", "on_tick"])
def test_so_it_is_in_every_callback(a: str, callback: str, daemon, configure, plugin) -> None:
    early = plugin(EARLY.format(a=a, callback=callback, reason="SystemExit(0)", more=FRAMES))
    timers = [TimerSpec(id="t", interval_ns=1)] if callback == "on_tick" else []
    daemon.start(configure("a", plugin(NUMBERS) + ":numbers", "ab>b", params={"count": 3}))
    worker = daemon.start(configure("b", early + ":Sink", "ab<a", timers=timers))
    daemon.wire()
    if timers:
        worker.link.send(Tick(id="t", sequence=1, due_ns=0))
    daemon.begin()
    assert daemon.fault(worker).phase == callback.removeprefix("on_")
    assert worker.wait() == 1


@pytest.mark.parametrize("a", ["", "async "])
def test_a_source_that_exits_has_failed(a: str, daemon, configure, plugin) -> None:
    source = plugin(f"import sys\n{a}def source(ctx):\n    yield 1\n    sys.exit(0)\n")
    worker = daemon.start(configure("a", source + ":source", "ab>b"))
    daemon.start(configure("b", plugin("def sink(frame, ctx): ...") + ":sink", "ab<a"))
    daemon.wire()
    daemon.begin()
    assert daemon.fault(worker).phase == "source"
    assert worker.wait() == 1
    daemon.drain("b")


def raising(reason: type[BaseException], callback: str, asynchronous: bool) -> type:
    def sync(_self: Any, *_: Any) -> None:
        raise reason(0)

    async def awaited(_self: Any, *_: Any) -> None:
        raise reason(0)

    return type("Plugin", (), {"on_frame": lambda *_: None, callback: awaited if asynchronous else sync})


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("callback", ["on_start", "on_frame", "on_tick", "on_stop"])
@pytest.mark.parametrize(
    "reason", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, StopAsyncIteration],
)  # fmt: skip
def test_any_early_end_in_one_process_is_a_failure(
    reason: type[BaseException], callback: str, asynchronous: bool
) -> None:
    with pytest.raises(reason):
        testing.run(raising(reason, callback, asynchronous), inputs=[1, 2], ticks=int(callback == "on_tick"))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("reason", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_a_frame_that_makes_the_plugin_exit_is_set_aside_like_any_other(
    reason: type[BaseException], asynchronous: bool
) -> None:
    run = testing.run(raising(reason, "on_frame", asynchronous), inputs=[1], qos={"retry": 1, "dead_letter": "dead"})
    assert [(each.topic, each.envelope["headers"]["error"]) for each in run.published] == [("dead", reason.__name__)]


class CtrlCOf:
    """Whoever runs the test presses Ctrl-C while a frame is worked on."""

    def __init__(self) -> None:
        self.attempts: list[int] = []

    def on_frame(self, frame: Any) -> None:
        self.attempts.append(frame.value())
        signal.raise_signal(signal.SIGINT)


class CtrlCOfAwaited(CtrlCOf):
    async def on_frame(self, frame: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().on_frame(frame)


@pytest.mark.parametrize("plugin", [CtrlCOf, CtrlCOfAwaited])
@pytest.mark.parametrize("more", [{}, {"qos": {"retry": 3}}, {"restarts": 3}])
def test_ctrl_c_of_whoever_runs_the_test_ends_it_and_is_no_failure_of_the_plugin(
    plugin: type[CtrlCOf], more: dict[str, Any]
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    made = plugin()
    try:
        with pytest.raises(KeyboardInterrupt):
            testing.run(made, inputs=[1, 2], **more)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert made.attempts == [1]


CANCELS = """
    import asyncio
    def cancel(how):
        if how == "its own task": asyncio.current_task().cancel()
        if how == "all tasks": [task.cancel() for task in asyncio.all_tasks()]
        if how == "the loop": asyncio.get_running_loop().stop()
    class Cancels:
        def __init__(self, ctx):
            self.how, self.then, self.where = (ctx.params[key] for key in ("how", "then", "where"))
            self.attempts, self.seen = 0, []
        async def at(self, where):
            if where == self.where:
                self.attempts += 1
                cancel(self.how)
                if self.then == "waits": await asyncio.sleep(0)
        async def on_start(self): await self.at("start")
        async def on_frame(self, frame):
            if frame.value() == 1: await self.at("frame")
            self.seen.append(frame.value())
        async def on_stop(self):
            await self.at("stop")
            return [self.attempts, self.seen]
"""
HOWS = ["its own task", "all tasks", "the loop"]


@pytest.mark.parametrize("where", ["start", "frame", "stop"])
@pytest.mark.parametrize("how", HOWS)
def test_a_plugin_that_cancels_what_runs_it_has_failed_in_the_callback_that_did(how, where, daemon, configure, plugin):
    uri = plugin(CANCELS)
    params = {"how": how, "then": "waits", "where": where}
    daemon.start(configure("a", plugin("def source(ctx): yield 1") + ":source", "ab>b"))
    worker = daemon.start(configure("b", uri + ":Cancels", "ab<a", params=params))
    daemon.wire()
    daemon.begin()
    fault = daemon.fault(worker)
    assert fault.phase == where
    assert fault.error == ("RuntimeError" if how == "the loop" else "CancelledError")
    assert worker.wait() == 1


@pytest.mark.parametrize("where", ["start", "frame", "stop"])
@pytest.mark.parametrize("how", HOWS)
def test_in_one_process_it_has_failed_in_that_callback_too(how, where, configure, plugin):
    params = {"how": how, "then": "waits", "where": where}
    deployment = Deployment(
        [
            configure("a", plugin("def source(ctx): yield 1") + ":source", "ab>b"),
            configure("b", plugin(CANCELS) + ":Cancels", "ab<a", params=params),
        ]
    )
    try:
        with pytest.raises(FlowFailed) as caught:
            deployment.run()
    finally:
        deployment.close()
    assert (caught.value.node, caught.value.phase) == ("b", where)


@pytest.mark.parametrize("max_inflight", [1, 3])
@pytest.mark.parametrize("then", ["waits", "returns"])
@pytest.mark.parametrize("how", ["its own task", "the loop"])
def test_a_frame_whose_callback_cancels_its_own_task_is_set_aside_like_any_other(how, then, max_inflight, plugin):
    run = testing.run(
        load(plugin(CANCELS) + ":Cancels"),
        [0, 1, 2],
        {"how": how, "then": then, "where": "frame"},
        qos={"retry": 2, "dead_letter": "dead"},
        max_inflight=max_inflight,
    )
    assert [each.topic for each in run.published] == ["dead"]
    assert run.result[0] == 3
    assert [n for n in run.result[1] if n != 1] == [0, 2]


FINISHES = """
    class Finishes:
        seen, stopped = [], False
        {a}def on_frame(self, frame, ctx):
            self.seen.append(frame.value())
            if frame.value() == 4: ctx.finish()
            return frame.value()
        {a}def on_stop(self, ctx): return self.seen
"""
BATCHES = """
    class Finishes:
        seen = []
        def on_batch(self, batch, ctx):
            self.seen += [frame.value() for frame in batch]
            ctx.finish()
        def on_stop(self, ctx): return len(self.seen) < 64
"""
COLLECTS = """
    class Collects:
        def __init__(self): self.seen = []
        def on_frame(self, frame, ctx): self.seen.append(frame.value())
        def on_stop(self, ctx): return self.seen
"""


@pytest.mark.parametrize("a", ["", "async "])
@pytest.mark.parametrize("count", [50, 100_000])
def test_who_finishes_takes_no_more_and_all_around_it_end_in_order(
    a: str, count: int, daemon, configure, plugin
) -> None:
    daemon.start(configure("a", plugin(NUMBERS) + ":numbers", "ab>b", credits=64, params={"count": count}))
    daemon.start(configure("b", plugin(FINISHES.format(a=a)) + ":Finishes", "ab<a", "bc>c"))
    daemon.start(configure("c", plugin(COLLECTS) + ":Collects", "bc<b"))
    daemon.wire()
    source, middle = daemon.workers["a"], daemon.workers["b"]
    view = RouteView(source.offered[0], middle.offered[middle.offer.rings.__len__()])
    daemon.begin()
    results = daemon.finish()
    assert (results["b"], results["c"]) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    snapshot = view.snapshot()
    view.close()
    assert snapshot["taken"] == 5
    assert snapshot["drops"]["unread"] == snapshot["committed"] - 5 == snapshot["dropped"]


BRANCHES = """
    {a}def numbers(ctx):
        for i in range(200):
            yield b"%d" % i
    {a}def forward(frame):
        return bytes(frame)
    class All:
        def __init__(self): self.taken = []
        {a}def on_frame(self, frame): self.taken.append(int(bytes(frame)))
        {a}def on_stop(self, ctx): return self.taken
    class Three(All):
        {a}def on_frame(self, frame, ctx):
            self.taken.append(int(bytes(frame)))
            if len(self.taken) == 3: ctx.finish()
"""


@pytest.mark.parametrize("a", ["", "async "])
@pytest.mark.parametrize("finishing", [1, 2])
def test_the_other_consumers_of_its_producer_get_every_frame(a: str, finishing: int, daemon, configure, plugin) -> None:
    """source -> map -> sinks, of which some finish early, and source -> sink."""
    code = plugin(BRANCHES.format(a=a))
    early = [f"ms{n}" for n in range(finishing)]
    results = daemon.run(
        configure("s", code + ":numbers", "sm>m", "sa>direct", credits=4),
        configure("m", code + ":forward", "sm<s", *(f"{route}>{route}" for route in early), "ma>all", credits=4),
        *(configure(route, code + ":Three", f"{route}<m", credits=4) for route in early),
        configure("all", code + ":All", "ma<m", credits=4),
        configure("direct", code + ":All", "sa<s", credits=4),
    )
    assert results["all"] == results["direct"] == list(range(200))
    assert all(results[route] == [0, 1, 2] for route in early)


@pytest.mark.parametrize("a", ["", "async "])
def test_in_one_process_they_get_every_frame_too(a: str, configure, plugin) -> None:
    code = plugin(BRANCHES.format(a=a))
    deployment = Deployment(
        [
            configure("s", code + ":numbers", "sm>m", "sa>direct", credits=4),
            configure("m", code + ":forward", "sm<s", "me>early", "ma>all", credits=4),
            configure("early", code + ":Three", "me<m", credits=4),
            configure("all", code + ":All", "ma<m", credits=4),
            configure("direct", code + ":All", "sa<s", credits=4),
        ]
    )
    deployment.run()
    assert deployment.results["all"] == deployment.results["direct"] == list(range(200))


def test_who_takes_batches_may_finish_too(daemon, configure, plugin) -> None:
    results = daemon.run(
        configure("a", plugin(NUMBERS) + ":numbers", "ab>b", credits=8, params={"count": 100_000}),
        configure("b", plugin(BATCHES) + ":Finishes", "ab<a", credits=8),
    )
    assert results["b"] is True


@pytest.mark.parametrize("a", ["", "async "])
def test_a_source_may_finish_and_is_closed(a: str, daemon, configure, plugin) -> None:
    source = plugin(f"""
        class Source:
            closed = False
            {a}def produce(self, ctx):
                try:
                    for i in range(100):
                        if i == 3: ctx.finish()
                        yield i
                finally:
                    self.closed = True
            {a}def on_stop(self, ctx): return self.closed
    """)
    results = daemon.run(
        configure("a", source + ":Source", "ab>b"), configure("b", plugin(COLLECTS) + ":Collects", "ab<a")
    )
    assert results == {"a": True, "b": [0, 1, 2, 3]}


@pytest.mark.parametrize("a", ["", "async "])
def test_a_node_without_routes_may_finish_from_another_thread(a: str, daemon, configure, plugin) -> None:
    idle = plugin(f"""
        import threading
        class Idle:
            {a}def on_start(self, ctx): threading.Timer(0.05, ctx.finish).start()
            {a}def on_message(self, message, ctx): ...
            {a}def on_stop(self, ctx): return "done"
    """)
    assert daemon.run(configure("a", idle + ":Idle")) == {"a": "done"}


class Finishes:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_frame(self, frame: Any, ctx: Any) -> int:
        self.seen.append(frame.value())
        if len(self.seen) == 3:
            ctx.finish()
        return len(self.seen)

    def on_stop(self, _ctx: Any) -> list[int]:
        return self.seen


class FinishesAwaited(Finishes):
    async def on_frame(self, frame: Any, ctx: Any) -> int:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().on_frame(frame, ctx)


@pytest.mark.parametrize("plugin", [Finishes, FinishesAwaited])
@pytest.mark.parametrize("count", [10, 1_000])
def test_in_one_process_it_is_the_same(plugin: type, count: int) -> None:
    run = testing.run(plugin, inputs=range(count))
    assert (run.result, run.sent) == ([0, 1, 2], [1, 2, 3])


def test_who_finishes_in_its_start_takes_nothing() -> None:
    class Never:
        def on_start(self, ctx: Any) -> None:
            ctx.finish()

        def on_frame(self, frame: Any) -> None:
            raise AssertionError("nothing was to come")

        def on_stop(self) -> str:
            return "stopped"

    assert testing.run(Never, inputs=range(5)).result == "stopped"
