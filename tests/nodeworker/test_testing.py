"""The host for unit tests of plugins, and with it everything that a plugin may be."""

from __future__ import annotations

import datetime as dt
import functools
import operator
import re

import numpy as np
import pytest

from chronetix import RequestFailed
from chronetix.protocol.errors import ChronetixError
from chronetix.testing import run

OCTETS = "application/octet-stream"
ARROW = "application/arrow-ipc"


class TestAPluginMayBe:
    def test_a_function_of_frame_and_context(self):
        assert run(lambda frame, ctx: frame.value() * ctx.params["by"], [1, 2], {"by": 3}).sent == [3, 6]

    def test_a_function_of_the_frame_alone(self):
        assert run(lambda frame: frame.value() + 1, [1, 2]).sent == [2, 3]

    def test_a_generator_function_as_a_source_whose_return_is_the_result(self):
        def numbers(ctx):
            yield from range(3)
            return "done"

        outcome = run(numbers)
        assert (outcome.sent, outcome.result) == ([0, 1, 2], "done")

    def test_a_function_that_returns_an_iterable_as_a_source(self):
        assert run(lambda ctx: [1, 2]).sent == [1, 2]

    def test_a_generator_function_of_frames_with_any_number_of_results(self):
        def repeat(frame, ctx):
            for _ in range(frame.value()):
                yield frame.value()

        assert run(repeat, [0, 1, 2]).sent == [1, 2, 2]

    def test_a_class_whose_constructor_takes_nothing_or_the_context(self):
        class Plain:
            def on_frame(self, frame):
                return 1

        class Knowing:
            def __init__(self, ctx):
                self.node = ctx.node

            def on_frame(self, frame):
                return self.node

        assert run(Plain, [0]).sent == [1]
        assert run(Knowing, [0]).sent == ["plugin"]

    def test_an_instance(self):
        class Adder:
            def __init__(self, n):
                self.n = n

            def on_frame(self, frame):
                return frame.value() + self.n

        assert run(Adder(5), [1]).sent == [6]

    def test_any_callable(self):
        class Call:
            def __call__(self, frame, ctx):
                return "called"

        assert run(Call(), [1]).sent == ["called"]

    def test_any_callable_whatever_its_call_is(self):
        def on_frame(frame, ctx):
            return [frame.value(), ctx.node]

        class Static:
            __call__ = staticmethod(lambda frame, ctx: on_frame(frame, ctx))

        class OfClass:
            @classmethod
            def __call__(cls, frame, ctx):
                return on_frame(frame, ctx)

        class Partial:
            __call__ = functools.partial(lambda call, frame, ctx: call(frame, ctx), on_frame)

        class Object:
            __call__ = Static()

        class Awaited:
            @staticmethod
            async def __call__(frame, ctx):
                return on_frame(frame, ctx)

        class Many:
            @staticmethod
            def __call__(frame, ctx):
                yield on_frame(frame, ctx)

        class Attribute:
            on_frame = Static()

        for plugin in (Static, OfClass, Partial, Object, Awaited, Many, Attribute):
            assert run(plugin(), [1]).sent == [[1, "plugin"]], plugin

    def test_any_callable_that_leaves_out_the_context(self):
        class Static:
            __call__ = staticmethod(lambda frame: frame.value())

        class Object:
            __call__ = Static()

        for plugin in (Static, Object):
            assert run(plugin(), [1]).sent == [1], plugin

    @pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
    @pytest.mark.parametrize(
        "content_type", ["application/json", "application/cbor", OCTETS, "application/x-npy", None]
    )
    def test_a_plain_wrapper_of_an_async_def_is_told_to_be_one(self, content_type):
        async def lookup(frame, ctx):
            return frame.value()

        @functools.wraps(lookup)
        def wrapper(*arguments):
            return lookup(*arguments)

        kind = {"sends": False} if content_type is None else {"content_type": content_type}
        with pytest.raises((TypeError, ChronetixError), match="make the callback itself an `async def`"):
            run(wrapper, [1], input_type="application/json", **kind)

    @pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
    @pytest.mark.parametrize("callback", ["on_start", "on_frame", "on_tick"])
    def test_so_is_a_callback_whose_result_goes_nowhere(self, callback):
        async def work():
            """Never done."""

        plugin = type("Sink", (), {"on_frame": lambda *_: None, callback: lambda *_: work()})
        with pytest.raises(TypeError, match="a coroutine was returned: it has to be awaited"):
            run(plugin, [1], sends=False, ticks=1 if callback == "on_tick" else 0)

    def test_a_plain_wrapper_of_a_generator_function_is_told_to_be_one(self):
        with pytest.raises(ChronetixError, match="write the callback itself with yield"):
            run(lambda frame, ctx: (each for each in [1]), [1])

    def test_a_class_with_every_callback_in_order(self):
        calls = []

        class Every:
            def on_start(self, ctx):
                calls.append("start")

            def on_tick(self, tick, ctx):
                calls.append(f"tick {tick.sequence}")

            def on_frame(self, frame, ctx):
                calls.append("frame")

            def on_stop(self, ctx):
                calls.append("stop")
                return {"calls": len(calls)}

        outcome = run(Every, ["x"], ticks=2)
        assert calls == ["start", "tick 1", "tick 2", "frame", "stop"]
        assert outcome.result == {"calls": 5}

    def test_a_function_that_gets_messages_where_there_are_no_frames(self):
        outcome = run(lambda message, ctx: [message.topic, message.value()], messages=[("t", 1)])
        assert outcome.sent == [["t", 1]]


class TestAPluginMayNotBe:
    @pytest.mark.parametrize(
        ("plugin", "inputs", "says"),
        [
            (lambda a, b, c: 0, [1], "takes 3 arguments but is called with (thing, ctx)"),
            (lambda frame, ctx: 0, None, "the node has no data inputs"),
            (42, [1], "no function and has none of on_start"),
            (type("P", (), {"on_start": lambda self: 0}), [1], "has no on_frame"),
            (
                type("P", (), {"on_start": lambda self: 0, "on_frames": lambda self, f: 0}),
                [1],
                "should be called on_frame",
            ),
        ],
    )
    def test_what_its_node_could_never_call(self, plugin, inputs, says):
        with pytest.raises(ChronetixError) as caught:
            run(plugin, inputs)
        assert says in caught.value.message

    def test_a_class_without_on_message_where_messages_come_in(self):
        with pytest.raises(ChronetixError, match=r": messages of \S+ come in, but \S+ has no on_message"):
            run(type("P", (), {"on_stop": lambda self: 0}), messages=[("t", 1)])

    def test_one_without_on_tick_where_a_timer_ticks(self):
        with pytest.raises(ChronetixError, match=r": timer \S+ ticks, but \S+ has no on_tick"):
            run(type("P", (), {"on_stop": lambda self: 0}), ticks=1)


class TestTheContext:
    def test_sends_to_one_route_by_its_peer(self):
        def both(frame, ctx):
            ctx.send(1, to="collector")
            ctx.send(2)

        assert run(both, [0]).sent == [1, 2]

    def test_suggests_the_nearest_output(self):
        with pytest.raises(ValueError, match="did you mean 'collector'"):
            run(lambda frame, ctx: ctx.send(1, to="colector"), [0])

    def test_lends_memory_that_is_sent_when_it_is_left(self):
        def fill(frame, ctx):
            with ctx.loan(8) as room:
                np.frombuffer(room, "<i8")[:] = 7

        assert run(fill, [b"x"], content_type=OCTETS).sent == [(7).to_bytes(8, "little")]

    def test_publishes_to_a_topic_and_to_its_control_routes(self):
        def publish(ctx):
            ctx.publish("a", 1, priority=7)
            ctx.publish(None, 2)
            yield None

        outcome = run(publish, publications=["r1", "r2"])
        assert [(p.topic, p.value) for p in outcome.published] == [("a", 1), ("r1", 2), ("r2", 2)]
        assert outcome.published[0].envelope["priority"] == 7

    def test_says_when_there_is_nowhere_to_publish(self):
        with pytest.raises(ValueError, match="name a topic"):
            run(lambda frame, ctx: ctx.publish(None, 1), [0])

    def test_refuses_an_envelope_that_no_receiver_would_take(self):
        with pytest.raises(ValueError, match="envelope for 't' is not valid"):
            run(lambda frame, ctx: ctx.publish("t", 1, priority="high"), [0])

    def test_asks_and_gets_the_reply(self):
        outcome = run(lambda frame, ctx: ctx.request("who", frame.value()).value(), [1], replies={"who": "me"})
        assert outcome.sent == ["me"]

    def test_says_that_nobody_answers(self):
        def ask(frame, ctx):
            with pytest.raises(RequestFailed) as caught:
                ctx.request("who")
            return caught.value.reason

        assert run(ask, [1]).sent == ["no-subscriber"]

    def test_says_that_the_answer_took_too_long(self):
        class Mute:
            def on_message(self, message):
                pass

        with pytest.raises(RequestFailed, match="timeout"):
            run(Mute, requests=[("q", 1)], replies={"other": 1}, sends=False)

    @pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
    def test_logs_fields_of_any_name(self, level):
        fields = {"message": 1, "level": 2, "self": 3, "fields": 4, "host": 5, "name": 6, "_host": 7, "": 8}
        outcome = run(lambda frame, ctx: getattr(ctx.log, level)("text", **fields), [1])
        assert [(log.level, log.message, log.fields) for log in outcome.logs] == [(level, "text", fields)]

    def test_logs_fields_whatever_they_are(self):
        outcome = run(lambda frame, ctx: ctx.log.warning("odd", n=np.int64(3), what=object), [1])
        (record,) = outcome.logs
        assert (record.level, record.message, record.fields["n"]) == ("warning", "odd", 3)
        assert "object" in record.fields["what"]

    def test_knows_where_it_is(self):
        def look(frame, ctx):
            return [ctx.flow, ctx.node, [p.peer for p in ctx.inputs], [p.peer for p in ctx.outputs], ctx.qos["qos"]]

        outcome = run(look, [0], qos={"qos": "high"})
        assert outcome.sent == [["test", "plugin", ["feed"], ["collector"], "high"]]

    def test_has_read_only_params(self):
        with pytest.raises(TypeError):
            run(lambda frame, ctx: operator.setitem(ctx.params, "a", 1), [0])


class TestALogRecord:
    def test_has_fields_in_plain_form_and_shows_what_has_none(self):
        class Odd:
            def __repr__(self):
                raise RuntimeError("no")

        def logs(ctx):
            zone = dt.timezone(dt.timedelta(seconds=30))
            ctx.log.info("m", at=dt.datetime(2026, 3, 4, tzinfo=zone), day=np.datetime64("2026-03-04"), odd=Odd(), c=1j)
            return ()

        (record,) = run(logs).logs
        assert record.fields == {
            "at": "2026-03-04T00:00:00+00:00:30",
            "day": "2026-03-04",
            "odd": "(a Odd that cannot be shown: repr() raised RuntimeError)",
            "c": "1j",
        }


class TestAMessage:
    def test_is_answered_once(self):
        class Twice:
            def on_message(self, message, ctx):
                message.reply("one")
                with pytest.raises(ValueError, match="answered already"):
                    message.reply("two")

        assert run(Twice, requests=[("q", 1)]).replies == ["one"]

    def test_that_was_published_cannot_be_answered(self):
        def answer(message):
            assert not message.wants_reply
            with pytest.raises(ValueError, match="is no request"):
                message.reply(1)

        run(answer, messages=[("q", 1)], sends=False)


class TestFrames:
    def test_of_every_content_type_arrive_as_they_were_sent(self):
        pa = pytest.importorskip("pyarrow")
        table = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]})
        for content_type, value in (
            ("application/json", {"a": [1, 2.5, None, "é"]}),
            ("application/cbor", {"a": b"\x00\xff", "b": [True, None]}),
            (OCTETS, b"\x00\x01"),
            (ARROW, table),
            ("application/arrow+ipc", table),
        ):
            assert run(lambda frame: frame.value(), [value], content_type=content_type).sent == [value]

    def test_may_be_forwarded_as_they_are(self):
        assert run(lambda frame: frame, [b"12", b"34"], content_type=OCTETS).sent == [b"12", b"34"]

    def test_that_are_not_what_the_route_says_are_refused_where_they_are_sent(self):
        with pytest.raises(ChronetixError, match=r"sent as application/json on route feed: .*no JSON text") as caught:
            run(lambda frame: frame.value(), [b"{no json"])
        assert caught.value.name == "payload-unencodable"

    def test_that_a_sender_wrote_in_place_and_are_not_what_the_route_says_name_the_route(self):
        class Source:
            def on_tick(self, tick, ctx):
                with ctx.loan(8) as room:
                    memoryview(room)[:] = b"{no json"

        outcome = run(Source, ticks=1, sends=True, content_type=OCTETS)
        assert outcome.sent == [b"{no json"]
        with pytest.raises(ChronetixError, match="a frame of route collector is not application/json") as caught:
            run(Source, ticks=1)
        assert caught.value.name == "payload-undecodable"

    def test_pass_between_content_types(self):
        outcome = run(
            lambda frame: {"n": int(frame.numpy("<i4").sum())}, [np.arange(5, dtype="<i4")], input_type=OCTETS
        )
        assert outcome.sent == [{"n": 10}]


def test_a_message_may_take_all_the_room_that_its_envelope_leaves_and_not_a_byte_more():
    said: list[object] = []

    def publish(ctx):
        def send(size: int) -> None:
            ctx.publish("t", bytes(size), content_type=OCTETS)

        with pytest.raises(ChronetixError, match="bytes on 't', and a message has room for") as caught:
            send(1 << 24)
        room = int(re.search(r"has room for (\d+)", caught.value.message)[1])
        send(room)
        said.append(room)
        with pytest.raises(ChronetixError, match=f"{room + 1} bytes on 't', and a message has room for {room}:"):
            send(room + 1)
        yield None

    outcome = run(publish)
    assert [len(each.value) for each in outcome.published] == said

    @pytest.mark.parametrize("kind", ["application/json", "application/cbor"])
    @pytest.mark.parametrize("meta", [(), [{"n": 1}, {}, {"n": 3}]])
    def test_of_none_are_frames_like_others(self, kind, meta):
        def seen(frame):
            return [frame.value(), frame.meta]

        outcome = run(seen, [None, 0, None], meta=meta, content_type=kind)
        assert outcome.sent == [[None, {"n": 1} if meta else {}], [0, {}], [None, {"n": 3} if meta else {}]]

    @pytest.mark.parametrize("kind", [OCTETS, ARROW, "application/x-npy"])
    def test_of_none_are_refused_where_a_frame_cannot_hold_it(self, kind):
        with pytest.raises(ChronetixError, match=r"payload-unencodable"):
            run(lambda frame: None, [None], content_type=kind)

    def test_are_as_many_as_there_are_metadata_at_least(self):
        with pytest.raises(ValueError, match="more metadata than inputs"):
            run(lambda frame: None, [1], meta=[{}, {}])

    @pytest.mark.parametrize("chained", ["from", "while"])
    def test_that_fail_raise_what_the_plugin_raised_with_its_cause(self, chained):
        def fails(frame):
            try:
                raise KeyError("first")
            except KeyError as reason:
                if chained == "from":
                    raise ValueError("second") from reason
                raise ValueError("second")  # noqa: B904 - that is the test

        with pytest.raises(ValueError, match="second") as caught:
            run(fails, [1])
        raised = caught.value
        assert isinstance(raised.__cause__ if chained == "from" else raised.__context__, KeyError)
        assert raised.__suppress_context__ == (chained == "from")


class TestASuccessor:
    class Total:
        def on_start(self, ctx):
            self.total = ctx.handover or 0
            self.incarnation = ctx.incarnation

        def on_frame(self, frame):
            self.total += frame.value()

        def on_stop(self):
            return self.total

    def test_gets_what_its_predecessor_has_left(self):
        first = run(self.Total, [1, 2])
        assert run(self.Total, [3], handover=first).result == 6
        assert run(self.Total, [3], handover=first.result).result == 6

    def test_of_an_asynchronous_plugin_gets_it_too(self):
        class Total(self.Total):
            async def on_stop(self):
                return [self.total, self.incarnation]

        assert run(Total, [3], handover=3).result == [6, 1]

    def test_gets_it_as_it_travels_and_not_the_same_object(self):
        state = {"seen": {1}}
        taken = run(lambda frame, ctx: ctx.handover, [0], handover=state).sent
        assert taken == [{"seen": [1]}]

    @pytest.mark.parametrize("left", [object(), {"callback": print}])
    def test_gets_nothing_that_a_worker_could_not_hand_over(self, left):
        class Leaves:
            def on_frame(self, frame):
                pass

            def on_stop(self):
                return left

        for handover in (left, run(Leaves, [1]), run(Leaves, [1]).result):
            with pytest.raises(TypeError, match="left to the successor cannot be sent"):
                run(Leaves, [1], handover=handover)

    def test_of_a_source_resumes_behind_the_last_item_that_was_sent(self):
        def numbers(ctx):
            yield from range(ctx.resume_after + 1, 6)
            return [ctx.resume_after, ctx.incarnation]

        outcome = run(numbers, resume_after=3)
        assert (outcome.sent, outcome.result) == ([4, 5], [3, 1])
        assert run(numbers).result == [0, 0]


class TestARestart:
    @staticmethod
    def failing(at, asynchronous=False):
        """Fails at the first delivery of the frame ``at``."""

        class Fails:
            def __init__(self, ctx):
                self.incarnation, self.seen = ctx.incarnation, []

            def on_frame(self, frame):
                self.seen.append((frame.value(), frame.redelivered))
                if frame.value() == at and not frame.redelivered:
                    raise ValueError(f"at {at}")
                return frame.value()

            def on_stop(self):
                return [self.incarnation, self.seen]

        class Awaits(Fails):
            async def on_frame(self, frame):
                return Fails.on_frame(self, frame)

        return Awaits if asynchronous else Fails

    @pytest.mark.parametrize("asynchronous", [False, True])
    @pytest.mark.parametrize("at", [0, 3, 9])
    @pytest.mark.parametrize("buffer", [1, 64])
    def test_gives_the_frame_that_failed_to_a_plugin_made_anew(self, at, buffer, asynchronous):
        outcome = run(self.failing(at, asynchronous), range(10), buffer=buffer, restarts=1)
        assert outcome.sent == list(range(10))
        assert outcome.result[0] == 1
        assert [tuple(each) for each in outcome.result[1]] == [(at, True), *((n, False) for n in range(at + 1, 10))]
        assert [str(reason) for reason in outcome.failures] == [f"at {at}"]

    def test_keeps_metadata_with_their_frames(self):
        def fails(frame, ctx):
            if frame.value() == 1 and not ctx.incarnation:
                raise ValueError
            return frame.meta

        assert run(fails, range(3), meta=[{"n": 0}, {"n": 1}], restarts=1).sent == [{"n": 0}, {"n": 1}, {}]

    def test_resumes_a_source(self):
        def numbers(ctx):
            for n in range(ctx.resume_after + 1, 8):
                if n % 3 == 0 and n - ctx.resume_after > 1:
                    raise ValueError(n)
                yield n
            return ctx.incarnation

        outcome = run(numbers, restarts=5)
        assert outcome.sent == [1, 2, 3, 4, 5, 6, 7]
        assert outcome.result == len(outcome.failures) == 2

    def test_comes_as_often_as_it_may_and_then_the_failure_comes_out(self):
        lives = []

        def fails(frame, ctx):
            lives.append(ctx.incarnation)
            raise ValueError("again")

        with pytest.raises(ValueError, match="again"):
            run(fails, [1], restarts=2)
        assert lives == [0, 1, 2]

    def test_repeats_neither_ticks_nor_messages(self):
        class Fails:
            def on_tick(self, tick, ctx):
                return f"tick {ctx.incarnation}"

            def on_message(self, message, ctx):
                return f"message {ctx.incarnation}"

            def on_frame(self, frame, ctx):
                if not ctx.incarnation:
                    raise ValueError
                return "frame"

        outcome = run(Fails, [1], ticks=1, messages=[("t", 1)], restarts=1)
        assert outcome.sent.count("frame") == 1
        assert not {"tick 1", "message 1"} & set(outcome.sent)

    def test_is_for_one_frame_at_a_time(self):
        with pytest.raises(ValueError, match="one frame at a time"):
            run(self.failing(1), [1], restarts=1, max_inflight=2)
