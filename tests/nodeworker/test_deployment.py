"""Whole flows in one process: the same semantics as under the daemon, cooperatively."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from chronetix.nodeworker.inprocess.deployment import Deployment
from chronetix.nodeworker.inprocess.local_bus import NEVER_NS
from chronetix.nodeworker.inprocess.member import TURN_NS, FlowFailed
from chronetix.nodeworker.memory import arena_trim
from chronetix.nodeworker.memory.wiring import FIRST_SEGMENT
from chronetix.protocol.messages import Configure, Port, TimerSpec

OCTETS = "application/octet-stream"


def node(name, *, sees=(), feeds=(), credits=4, type="application/json", **fields):
    """``sees`` and ``feeds``: names of the nodes before and after; a route is called after its two ends."""

    def port(route, peer):
        low = credits // 2
        return Port(route=route, peer=peer, content_type=type, credits=credits, watermark=credits, credit_low=low)

    return Configure(
        flow="f",
        node=name,
        plugin_id=name,
        version="0",
        kind="Python",
        uri=f"test:{name}",
        inputs=[port(f"{peer}-{name}", peer) for peer in sees],
        outputs=[port(f"{name}-{peer}", peer) for peer in feeds],
        **fields,
    )


@pytest.fixture
def run():
    """Runs nodes with their plugins; the deployment, closed at the end."""
    opened = []

    def running(plugins, *configs, **options):
        deployment = Deployment(configs, find=lambda config: plugins[config.node], **options)
        opened.append(deployment)
        deployment.run()
        return deployment

    yield running
    for deployment in opened:
        deployment.close()
    opened.clear()


class Collect:
    def __init__(self):
        self.seen = []

    def on_frame(self, frame):
        self.seen.append(frame.value())

    def on_stop(self):
        return self.seen


def numbers(count):
    return lambda ctx: iter(range(count))


def double(frame):
    return frame.value() * 2


class TestAFlow:
    def test_in_a_line_ends_by_itself_with_every_frame_in_order(self, run):
        deployment = run(
            {"a": numbers(1000), "b": double, "c": Collect},
            node("a", feeds="b"),
            node("b", sees="a", feeds="c"),
            node("c", sees="b"),
        )
        assert deployment.results["c"] == [2 * i for i in range(1000)]
        assert deployment.snapshots()["a-b"]["committed"] == 1000
        assert deployment.snapshots()["b-c"]["returned"] == 1000

    @pytest.mark.parametrize("kind", ["plain", "asynchronous"])
    def test_ends_well_with_a_result_that_no_message_could_carry(self, run, kind):
        class Plain:
            def on_frame(self, frame):
                pass

            def on_stop(self):
                return 1 << 64

        class Asynchronous(Plain):
            async def on_frame(self, frame):
                pass

        sink = Plain if kind == "plain" else Asynchronous
        deployment = run({"a": numbers(3), "b": sink}, node("a", feeds="b"), node("b", sees="a"))
        assert deployment.results["b"]["text"] == str(1 << 64)

    def test_with_fan_out_gives_every_consumer_every_frame(self, run):
        deployment = run(
            {"a": numbers(50), "b": Collect, "c": Collect},
            node("a", feeds="bc"),
            node("b", sees="a"),
            node("c", sees="a"),
        )
        assert deployment.results["b"] == deployment.results["c"] == list(range(50))

    def test_with_fan_in_keeps_the_order_of_each_route(self, run):
        deployment = run(
            {"a": numbers(100), "b": lambda ctx: iter(range(1000, 1100)), "c": Collect},
            node("a", feeds="c"),
            node("b", feeds="c"),
            node("c", sees="ab"),
        )
        seen = deployment.results["c"]
        assert [n for n in seen if n < 1000] == list(range(100))
        assert [n for n in seen if n >= 1000] == list(range(1000, 1100))

    def test_in_a_diamond_joins_both_ways(self, run):
        deployment = run(
            {"a": numbers(100), "b": double, "c": lambda frame: -frame.value(), "d": Collect},
            node("a", feeds="bc"),
            node("b", sees="a", feeds="d"),
            node("c", sees="a", feeds="d"),
            node("d", sees="bc"),
        )
        assert sorted(deployment.results["d"]) == sorted([2 * i for i in range(100)] + [-i for i in range(100)])

    def test_with_more_results_than_credits_drives_the_consumer_in_between(self, run):
        def many(frame, ctx):
            for i in range(100):
                yield frame.value() * 100 + i

        deployment = run(
            {"a": numbers(5), "b": many, "c": Collect},
            node("a", feeds="b", credits=1),
            node("b", sees="a", feeds="c", credits=1),
            node("c", sees="b", credits=1),
        )
        assert deployment.results["c"] == list(range(500))
        assert deployment.snapshots()["b-c"]["max_outstanding"] == 1

    def test_grows_its_arena_for_large_frames(self, run):
        class Sizes:
            sizes = []

            def on_frame(self, frame):
                self.sizes.append((int(frame.numpy()[0]), len(frame)))

            def on_stop(self):
                return self.sizes

        deployment = run(
            {"a": lambda ctx: (bytes([i]) * (3 << 20) for i in range(10)), "b": Sizes},
            node("a", feeds="b", type=OCTETS, arena_limit=64 << 20),
            node("b", sees="a", type=OCTETS),
        )
        assert deployment.results["b"] == [[i, 3 << 20] for i in range(10)]

    def test_lets_a_node_have_inputs_and_items_of_its_own(self, run):
        class Both:
            def produce(self, ctx):
                yield from ("x", "y")

            def on_frame(self, frame):
                return frame.value()

        deployment = run(
            {"a": numbers(3), "b": Both, "c": Collect},
            node("a", feeds="b"),
            node("b", sees="a", feeds="c"),
            node("c", sees="b"),
        )
        assert sorted(map(str, deployment.results["c"])) == ["0", "1", "2", "x", "y"]

    def test_ends_upstream_when_a_consumer_leaves(self, run):
        class First:
            def on_frame(self, frame, ctx):
                ctx.finish()

        log = []
        run(
            {"a": lambda ctx: iter(int, 1), "b": First},
            node("a", feeds="b"),
            node("b", sees="a"),
            on_log=lambda name, level, text, fields: log.append((name, fields)),
        )
        assert log == [("a", {"route": "a-b"})]


class TestBackPressure:
    def test_shows_as_would_block_to_a_source_that_does_not_wait(self, run):
        from chronetix.shm import WouldBlock

        blocked = 0

        def impatient(ctx):
            nonlocal blocked
            for i in range(20):
                while True:
                    try:
                        ctx.send(i, timeout=0)
                        break
                    except WouldBlock:
                        blocked += 1
            yield None

        deployment = run(
            {"a": impatient, "b": Collect}, node("a", feeds="b", credits=2), node("b", sees="a", credits=2)
        )
        assert deployment.results["b"] == list(range(20))
        assert blocked

    def test_that_can_never_end_is_an_error_that_names_the_holder(self, run):
        kept = []
        with pytest.raises(FlowFailed, match=r"route a-b: all its credits are with node b") as caught:
            run(
                {
                    "a": lambda ctx: ctx.send(1) or ctx.send(2) or ctx.send(3),
                    "b": lambda frame: kept.append(memoryview(frame)),
                },
                node("a", feeds="b", credits=2),
                node("b", sees="a", credits=2),
            )
        kept.clear()
        assert caught.value.node == "a"

    def test_reaches_the_watermark(self, run, monkeypatch):
        monkeypatch.setattr("chronetix.nodeworker.inprocess.deployment.TURN_NS", NEVER_NS)
        high = []

        def burst(ctx):
            for i in range(4):
                high.append(ctx.high)
                ctx.send(i)
            high.append(ctx.high)
            yield None

        run({"a": burst, "b": Collect}, node("a", feeds="b"), node("b", sees="a"))
        assert high == [False, False, False, False, True]


class TestAFailure:
    def test_names_node_phase_and_cause_and_stops_the_flow(self, run):
        def bad(frame):
            raise KeyError("lost")

        with pytest.raises(FlowFailed) as caught:
            run({"a": numbers(10), "b": bad}, node("a", feeds="b"), node("b", sees="a"))
        assert (caught.value.node, caught.value.phase) == ("b", "frame")
        assert isinstance(caught.value.__cause__, KeyError)

    def test_cannot_be_caught_by_the_node_that_drove_the_failing_one(self, run):
        def bad(frame):
            raise KeyError("lost")

        def careless(ctx):
            for i in range(100):
                try:
                    ctx.send(i)
                except Exception:
                    continue
            yield None

        with pytest.raises(FlowFailed) as caught:
            run({"a": careless, "b": bad}, node("a", feeds="b", credits=1), node("b", sees="a", credits=1))
        assert caught.value.node == "b"


class TestTimeAndMessages:
    def test_ticks_come_until_the_flow_is_drained(self, run):
        deployments = []

        class Ticks:
            seen = []

            def on_tick(self, tick, ctx):
                self.seen.append((tick.sequence, tick.missed))
                if len(self.seen) == 3:
                    deployments[0].drain()

            def on_stop(self, ctx):
                return [self.seen, ctx.stopping]

        config = node("a", timers=[TimerSpec(id="t", interval_ns=1_000_000)])
        deployment = Deployment([config], find=lambda config: Ticks)
        deployments.append(deployment)
        deployment.run()
        deployment.close()
        ticks, stopping = deployment.results["a"]
        assert stopping
        told = 0
        for sequence, missed in ticks:
            told += missed + 1
            assert sequence == told, "ticks are numbered from 1, missed ones included"

    def test_a_drain_from_another_thread_wakes_it(self, run):
        deployment = Deployment([node("a")], find=lambda config: type("Idle", (), {"on_stop": lambda self: "ended"}))
        thread = threading.Thread(target=deployment.drain)
        thread.start()
        deployment.run()
        thread.join()
        deployment.close()
        assert deployment.results == {"a": "ended"}

    def test_published_messages_reach_every_subscriber(self, run):
        def publisher(ctx):
            ctx.publish(None, {"hello": 1})
            yield None

        class Listener:
            def on_message(self, message, ctx):
                ctx.send([message.src, message.topic, message.value()])
                ctx.finish()

        deployment = run(
            {"p": publisher, "l": Listener, "m": Listener, "c": Collect},
            node("p", publications=["t"]),
            node("l", feeds="c", subscriptions=["t"]),
            node("m", feeds="c", subscriptions=["t"]),
            node("c", sees="lm"),
        )
        assert deployment.results["c"] == [["p", "t", {"hello": 1}]] * 2


def test_the_memory_of_a_burst_goes_back_while_the_flow_waits_for_a_timer(run, monkeypatch):
    monkeypatch.setattr(arena_trim, "SPAN_S", 0.001)

    class Burst:
        ticks = 0

        def on_tick(self, tick, ctx):
            self.ticks += 1
            if self.ticks == 1:
                for _ in range(3):
                    ctx.send(bytes(1 << 20))
            elif arena().size == FIRST_SEGMENT:
                deployment.drain()

    class Forget:
        frames = 0

        def on_frame(self, frame):
            self.frames += 1

        def on_stop(self):
            return self.frames

    plugins = {"a": Burst, "b": Forget}
    configs = [
        node("a", feeds=["b"], type=OCTETS, timers=[TimerSpec(id="t", interval_ns=2_000_000)]),
        node("b", sees=["a"], type=OCTETS),
    ]
    deployment = Deployment(configs, find=lambda config: plugins[config.node])

    def arena():
        return deployment._members["a"].wiring.arena

    try:
        deployment.run()
        assert deployment.results["b"] == 3
        assert arena().size == FIRST_SEGMENT
    finally:
        deployment.close()
        deployment = None


@pytest.mark.parametrize("wanted", [True, False])
def test_huge_pages_that_are_not_there_are_told_once_and_the_flow_runs(wanted):
    logs = []
    configs = [node("a", feeds=["b"], type=OCTETS, hugepages=wanted), node("b", sees=["a"], type=OCTETS)]
    plugins = {"a": lambda ctx: iter([b"x"]), "b": Collect}
    deployment = Deployment(
        configs, find=lambda config: plugins[config.node], on_log=lambda *record: logs.append(record)
    )
    try:
        small = deployment._members["a"].wiring.arena.pages == "small"
        deployment.run()
    finally:
        deployment.close()
    told = [record for record in logs if "huge pages" in record[2]]
    assert len(told) == (wanted and small)
    assert all(record[:2] == ("a", "warning") and "vm.nr_hugepages" in record[2] for record in told)


class TestASlowSource:
    """Its items are handled one by one as they come, not in bursts."""

    @pytest.mark.parametrize("way", ["yields", "sends"])
    def test_has_each_item_handled_before_it_makes_the_next(self, run, way):
        handled = []

        def wait_for_longer_than_a_turn():
            until = time.monotonic_ns() + 2 * TURN_NS
            while time.monotonic_ns() <= until:
                pass

        def source(ctx):
            behind = []
            for n in range(3):
                wait_for_longer_than_a_turn()
                behind.append(n - len(handled))
                if way == "yields":
                    yield n
                else:
                    ctx.send(n)
            return behind

        deployment = run(
            {"a": source, "b": double, "c": lambda frame: handled.append(frame.value())},
            node("a", feeds="b", credits=64),
            node("b", sees="a", feeds="c", credits=64),
            node("c", sees="b", credits=64),
        )
        assert handled == [0, 2, 4]
        assert deployment.results["a"] == [0, 0, 0]


class TestAFailureThatAPluginCatches:
    @pytest.mark.parametrize("way", ["sends", "requests", "yields"])
    def test_cannot_be_hidden_by_another_plugin_that_catches_everything(self, run, way):
        def source(ctx):
            for n in range(20):
                try:
                    if way == "requests":
                        ctx.request("topic", n)
                    elif way == "sends":
                        ctx.send(n)
                    else:
                        yield n
                except BaseException:
                    if way == "yields":
                        raise

        class Sink:
            def on_frame(self, frame):
                raise ValueError("of the sink")

            def on_message(self, message):
                raise ValueError("of the sink")

        with pytest.raises(FlowFailed, match=r"node b failed in .* of the sink"):
            run(
                {"a": source, "b": Sink},
                node("a", feeds="b", credits=2),
                node("b", sees="a", credits=2, subscriptions=["topic"]),
            )

    def test_calls_its_plugin_no_more_whatever_the_others_do(self, run):
        calls = []

        def source(ctx):
            for n in range(20):
                with contextlib.suppress(BaseException):
                    ctx.send(n)
            yield None

        def sink(frame):
            calls.append(frame.value())
            raise ValueError("of the sink")

        with pytest.raises(FlowFailed):
            run({"a": source, "b": sink}, node("a", feeds="b", credits=2), node("b", sees="a", credits=2))
        assert calls == [0]
