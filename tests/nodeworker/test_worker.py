"""Real worker processes, wired over socketpairs by a daemon of a few lines."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from chronetix.protocol.messages import (
    Deliver,
    Drain,
    Finished,
    Log,
    MessagesDropped,
    Ping,
    Pong,
    Publish,
    Ready,
    Reply,
    Request,
    RequestFailure,
    Segment,
    Start,
    Started,
    Subscribe,
    Tick,
    TimerSpec,
)

BURSTS = Path(__file__).parents[1] / "e2e" / "plugins" / "bursts.py"
OCTETS = "application/octet-stream"

NUMBERS = """
    def numbers(ctx):
        for i in range(ctx.params["count"]):
            yield {"n": i}
"""
COLLECT = """
    class Collect:
        def __init__(self): self.seen = []
        def on_frame(self, frame, ctx): self.seen.append([frame.value(), frame.seq, frame.input_seq, frame.peer])
        def on_stop(self, ctx): return self.seen
"""
DOUBLE = """
    def double(frame, ctx):
        return {"n": frame.value()["n"] * 2}
"""


class TestAFlowOfProcesses:
    def test_runs_from_source_over_map_to_sink_and_ends_by_itself(self, daemon, configure, plugin):
        results = daemon.run(
            configure("a", plugin(NUMBERS) + ":numbers", "ab>b", params={"count": 500}),
            configure("b", plugin(DOUBLE) + ":double", "ab<a", "bc>c"),
            configure("c", plugin(COLLECT) + ":Collect", "bc<b"),
        )
        assert [value["n"] for value, *_ in results["c"]] == [2 * i for i in range(500)]
        assert [(seq, input_seq) for _, seq, input_seq, _ in results["c"]] == [(i, i) for i in range(500)]
        assert {peer for *_, peer in results["c"]} == {"b"}

    def test_gives_the_memory_of_a_burst_back(self, daemon, configure, plugin):
        uri = f"python://{BURSTS}"
        results = daemon.run(
            configure("a", f"{uri}:Bursts", "ab>b", "ac>c", type=OCTETS, credits=8),
            configure("b", f"{uri}:Sink", "ab<a", type=OCTETS, credits=8),
            configure("c", f"{uri}:Sink", "ac<a", type=OCTETS, credits=8),
        )
        assert (results["b"], results["c"]) == ([18, True], [18, True])
        assert results["a"][1] == [True] * 3

    def test_loses_nothing_when_frames_are_larger_than_the_first_segment(self, daemon, configure, plugin):
        source = plugin("""
            def big(ctx):
                for i in range(20):
                    yield bytes([i]) * (1 << 20)
        """)
        sink = plugin("""
            class Sums:
                sums = []
                def on_frame(self, frame, ctx): self.sums.append([frame.numpy()[0], len(frame)])
                def on_stop(self, ctx): return self.sums
        """)
        octets = {"type": "application/octet-stream"}
        results = daemon.run(
            configure("a", source + ":big", "ab>b", "ac>c", **octets, arena_limit=64 << 20),
            configure("b", sink + ":Sums", "ab<a", **octets),
            configure("c", sink + ":Sums", "ac<a", **octets),
        )
        assert results["b"] == results["c"] == [[i, 1 << 20] for i in range(20)]
        assert daemon.workers["a"].said(Segment)

    @pytest.mark.parametrize(
        ("returned", "why", "text"),
        [
            ("[1, 2**64]", "outside -2^64", "[1, 18446744073709551616]"),
            ("-2**64 - 1", "outside -2^64", "-18446744073709551617"),
            ("{'of': self.__class__}", "has no form in it", "{'of': <class"),
            ("'\\udcff'", "UTF-8 cannot hold", r"'\udcff'"),
            ("b'x' * (16 << 20)", "bytes, and a message has room for", "b'xxx"),
            ("10**5000", "outside -2^64", "cannot be shown: repr() raised ValueError"),
            ("(lambda a: a.append(a) or a)([])", "does one contain itself", "[[...]]"),
        ],
    )
    def test_ends_well_with_a_result_that_cannot_be_sent_and_says_what_it_was(
        self, daemon, configure, plugin, returned, why, text
    ):
        sink = plugin(f"""
            class Sink:
                def on_frame(self, frame, ctx): pass
                def on_stop(self, ctx): return {returned}
        """)
        results = daemon.run(
            configure("a", plugin(NUMBERS) + ":numbers", "ab>b", params={"count": 3}),
            configure("b", sink + ":Sink", "ab<a"),
        )
        assert why in results["b"]["unsendable"]
        assert text in results["b"]["text"]
        (log,) = daemon.workers["b"].said(Log)
        assert log.level == "warning"
        assert log.fields == {"reason": results["b"]["unsendable"]}

    def test_sends_the_largest_integers_and_what_is_no_number_as_they_are(self, daemon, configure, plugin):
        source = plugin("def ends(ctx):\n    yield {}\n    return [2**64 - 1, -2**64, float('nan'), float('inf')]\n")
        results = daemon.run(
            configure("a", source + ":ends", "ab>b"), configure("b", plugin(COLLECT) + ":Collect", "ab<a")
        )
        assert repr(results["a"]) == "[18446744073709551615, -18446744073709551616, nan, inf]"

    def test_waits_for_a_slow_sink_instead_of_losing_frames(self, daemon, configure, plugin):
        sink = plugin("""
            class Keep:
                def __init__(self): self.count, self.held = 0, []
                def on_frame(self, frame, ctx):
                    self.count += 1
                    self.held.append(memoryview(frame))      # keeps its credit
                    if len(self.held) == 2: self.held.clear()
                def on_stop(self, ctx): return self.count
        """)
        results = daemon.run(
            configure("a", plugin(NUMBERS) + ":numbers", "ab>b", credits=2, params={"count": 200}),
            configure("b", sink + ":Keep", "ab<a", credits=2),
        )
        assert results["b"] == 200

    def test_sends_what_on_stop_sends_before_the_stream_ends(self, daemon, configure, plugin):
        total = plugin("""
            class Total:
                total = 0
                def on_frame(self, frame, ctx): self.total += frame.value()["n"]
                def on_stop(self, ctx): ctx.send({"n": self.total})
        """)
        results = daemon.run(
            configure("a", plugin(NUMBERS) + ":numbers", "ab>b", params={"count": 10}),
            configure("b", total + ":Total", "ab<a", "bc>c"),
            configure("c", plugin(COLLECT) + ":Collect", "bc<b"),
        )
        assert [value["n"] for value, *_ in results["c"]] == [45]


class TestADrain:
    def test_ends_a_source_and_the_rest_finishes_what_is_there(self, daemon, configure, plugin):
        endless = plugin("""
            def endless(ctx):
                n = 0
                try:
                    while True:
                        yield n
                        n += 1
                finally:
                    ctx.log.info("closed", n=n)
        """)
        count = plugin("""
            class Count:
                n = 0
                def on_frame(self, frame, ctx):
                    self.n += 1
                    if self.n == 1000: ctx.publish("enough", self.n)
                def on_stop(self, ctx): return self.n
        """)
        daemon.start(configure("a", endless + ":endless", "ab>b"))
        daemon.start(configure("b", count + ":Count", "ab<a"))
        daemon.wire()
        daemon.begin()
        daemon.until(lambda: daemon.workers["b"].said(Publish))
        daemon.drain("a")
        results = daemon.finish()
        (log,) = [log for log in daemon.workers["a"].said(Log) if log.message == "closed"]
        assert results["b"] == log.fields["n"] + 1

    def test_ends_a_node_that_waits_for_messages(self, daemon, configure, plugin):
        idle = plugin("class Idle:\n    def on_stop(self, ctx): return ctx.stopping\n")
        daemon.start(configure("a", idle + ":Idle"))
        daemon.wire()
        daemon.begin()
        daemon.drain("a")
        assert daemon.finish() == {"a": True}

    def test_of_a_node_with_inputs_stops_its_producer_too(self, daemon, configure, plugin):
        endless = plugin("def endless(ctx):\n    while True: yield 1\n")
        daemon.start(configure("a", endless + ":endless", "ab>b"))
        daemon.start(configure("b", plugin(COLLECT) + ":Collect", "ab<a"))
        daemon.wire()
        daemon.begin()
        daemon.drain("b")
        daemon.finish()
        assert any("closed its route" in log.message for log in daemon.workers["a"].said(Log))


class TestAFault:
    @pytest.mark.parametrize(
        ("phase", "source"),
        [
            ("load", "raise ValueError('broken')"),
            (
                "init",
                "class P:\n    def __init__(self): raise ValueError('broken')\n    def on_tick(self, tick): ...\n",
            ),
            ("start", "class P:\n    def on_start(self, ctx): raise ValueError('broken')\n"),
            ("source", "def P(ctx):\n    yield 1\n    raise ValueError('broken')\n"),
        ],
    )
    def test_tells_phase_error_and_traceback_and_ends_with_1(self, daemon, configure, plugin, phase, source):
        worker = daemon.start(configure("a", plugin(source) + ":P"))
        if phase not in ("load", "init"):
            daemon.wire()
            worker.link.send(Start())
        elif phase == "init":
            daemon.until(lambda: worker.offer)
            worker.link.send(*daemon._link_for(worker))
        fault = daemon.fault(worker)
        assert fault.phase == phase
        assert "broken" in fault.message
        assert "plugin_1.py" in fault.traceback
        assert worker.wait() == 1
        assert "broken" in daemon.stderr

    @pytest.mark.parametrize(("phase", "callback"), [("frame", "on_frame"), ("stop", "on_stop")])
    def test_in_a_callback_names_the_callback(self, daemon, configure, plugin, phase, callback):
        sink = plugin(f"""
            class Sink:
                def on_frame(self, frame, ctx): pass
                def {callback}(self, *_): raise KeyError("lost")
        """)
        daemon.start(configure("a", plugin(NUMBERS) + ":numbers", "ab>b", params={"count": 3}))
        worker = daemon.start(configure("b", sink + ":Sink", "ab<a"))
        daemon.wire()
        daemon.begin()
        fault = daemon.fault(worker)
        assert (fault.phase, fault.error) == (phase, "KeyError")
        daemon.until(lambda: not daemon.workers["a"].open)

    def test_for_want_of_a_thread_is_told_and_the_worker_ends(self, daemon, configure, plugin):
        source = """
            import _thread
            def refuse(*_): raise RuntimeError("can't start new thread")
            _thread.start_new_thread = refuse
            class P:
                def on_start(self, ctx): pass
        """
        worker = daemon.start(configure("a", plugin(source) + ":P"))
        daemon.until(lambda: worker.offer)
        worker.link.send(*daemon._link_for(worker))
        assert "can't start new thread" in daemon.fault(worker).message
        assert worker.wait() == 1

    def test_with_text_that_utf_8_cannot_hold_is_told_all_the_same(self, daemon, configure, plugin):
        raising = plugin("def P(ctx):\n    raise ValueError('no \\udcff')\n    yield")
        worker = daemon.start(configure("a", raising + ":P"))
        daemon.wire()
        worker.link.send(Start())
        fault = daemon.fault(worker)
        assert (fault.error, fault.message) == ("ValueError", "no \\udcff")
        assert worker.wait() == 1

    def test_of_a_missing_object_suggests_the_nearest(self, daemon, configure, plugin):
        fault = daemon.fault(daemon.start(configure("a", plugin(NUMBERS) + ":number")))
        assert (fault.phase, fault.error) == ("load", "plugin-not-loadable")
        assert "did you mean numbers?" in fault.message

    def test_of_a_value_that_the_route_cannot_carry_names_the_route(self, daemon, configure, plugin):
        source = plugin("def odd(ctx):\n    yield {'o': object()}\n")
        daemon.start(configure("a", source + ":odd", "ab>b"))
        daemon.start(configure("b", plugin(COLLECT) + ":Collect", "ab<a"))
        daemon.wire()
        daemon.begin()
        fault = daemon.fault(daemon.workers["a"])
        assert (fault.phase, fault.error) == ("source", "payload-unencodable")
        assert "route ab" in fault.message

    @pytest.mark.parametrize(("status", "code"), [(3, 3), ("'text'", 1), (0, 1), (None, 1)])
    def test_is_what_sys_exit_makes_whatever_it_exits_with(self, daemon, configure, plugin, status, code):
        source = plugin(f"import sys\ndef leave(ctx):\n    yield 1\n    sys.exit({status})\n")
        worker = daemon.start(configure("a", source + ":leave", "ab>b"))
        daemon.start(configure("b", plugin(COLLECT) + ":Collect", "ab<a"))
        daemon.wire()
        daemon.begin()
        daemon.until(lambda: not worker.open)
        assert worker.wait() == code
        assert not worker.said(Finished)
        daemon.drain("b")  # it has not closed its route: a successor might follow
        daemon.until(lambda: not daemon.workers["b"].open)


FORKS = """
    import multiprocessing, os, signal, sys
    def ends(ctx):
        what = ctx.params["what"]
        pid = os.fork()
        if pid == 0:
            if what == "raises":
                raise ValueError("in the child")
            elif what == "leaves":
                sys.exit(7)
            elif what == "speaks":
                ctx.publish("topic", {"from": "the child"})
            elif what == "goes on":
                yield {"ended": "by nobody"}
            elif what == "sleeps":
                signal.pause()
            return
        if what == "sleeps":
            os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
        yield {"ended": os.waitstatus_to_exitcode(status)}

    def works(ctx):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            yield {"ended": pool.map(abs, [-1, -2, -3])}
"""


class TestAForkedChild:
    @pytest.mark.parametrize(
        ("what", "status"),
        [("raises", 1), ("leaves", 7), ("speaks", 1), ("goes on", 1), ("returns", 1), ("sleeps", -signal.SIGTERM)],
    )
    def test_says_nothing_for_its_parent_whatever_it_does(self, daemon, configure, plugin, what, status):
        results = daemon.run(
            configure("a", plugin(FORKS) + ":ends", "ab>b", params={"what": what}),
            configure("b", plugin(COLLECT) + ":Collect", "ab<a"),
        )
        assert [value for value, *_ in results["b"]] == [{"ended": status}]
        assert daemon.workers["a"].said(Publish) == []

    def test_works_for_its_parent_and_ends(self, daemon, configure, plugin):
        results = daemon.run(
            configure("a", plugin(FORKS) + ":works", "ab>b"),
            configure("b", plugin(COLLECT) + ":Collect", "ab<a"),
        )
        assert [value for value, *_ in results["b"]] == [{"ended": [1, 2, 3]}]


class TestBeingStopped:
    def test_by_sigterm_while_it_waits_runs_on_stop_and_exits_with_143(self, daemon, configure, plugin):
        idle = plugin("class Idle:\n    def on_stop(self, ctx): ctx.log.info('stopped')\n")
        worker = daemon.start(configure("a", idle + ":Idle"))
        daemon.wire()
        daemon.begin()
        os.kill(worker.pid, signal.SIGTERM)
        daemon.until(lambda: not worker.open)
        assert worker.wait() == 143
        assert [log.message for log in worker.said(Log)] == ["stopped"]
        assert not worker.said(Finished)

    def test_by_sigterm_in_a_callback_lets_it_finish(self, daemon, configure, plugin):
        slow = plugin("""
            import os, signal
            class Slow:
                def on_message(self, message, ctx):
                    os.kill(os.getpid(), signal.SIGTERM)
                    ctx.log.info("finished", stopping=ctx.stopping)
        """)
        worker = daemon.start(configure("a", slow + ":Slow", subscriptions=["t"]))
        daemon.wire()
        daemon.begin()
        worker.link.send(Deliver(envelope={"topic": "t"}, payload=b"1"))
        daemon.until(lambda: not worker.open)
        assert worker.wait() == 143
        assert worker.said(Log)[0].fields == {"stopping": True}

    def test_by_sigterm_while_it_waits_for_credit(self, daemon, configure, plugin):
        stuck = plugin("""
            class Stuck:
                kept = []
                def on_frame(self, frame, ctx):
                    self.kept.append(memoryview(frame))
                    if len(self.kept) == 2: ctx.publish("full", 1)
        """)
        worker = daemon.start(configure("a", plugin(NUMBERS) + ":numbers", "ab>b", credits=2, params={"count": 9}))
        daemon.start(configure("b", stuck + ":Stuck", "ab<a", credits=2))
        daemon.wire()
        daemon.begin()
        daemon.until(lambda: daemon.workers["b"].said(Publish))
        os.kill(worker.pid, signal.SIGTERM)
        daemon.until(lambda: not worker.open)
        assert worker.wait() == 143
        assert daemon.workers["b"].open  # whether somebody succeeds the producer is not for the producer to say
        daemon.drain("b")
        daemon.until(lambda: not daemon.workers["b"].open)

    def test_by_the_end_of_the_daemon_exits_with_70(self, daemon, configure, plugin):
        idle = plugin("class Idle:\n    def on_message(self, message): ...\n")
        worker = daemon.start(configure("a", idle + ":Idle"))
        daemon.wire()
        daemon.begin()
        with socket.socket(fileno=os.dup(worker.link.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
        assert worker.wait() == 70
        assert "daemon" in daemon.stderr

    def test_before_it_started_is_no_fault(self, daemon, configure, plugin):
        worker = daemon.start(configure("a", plugin(NUMBERS) + ":numbers", params={"count": 1}))
        daemon.wire()
        worker.link.send(Drain())
        daemon.until(lambda: not worker.open)
        assert worker.wait() == 143
        assert not worker.said(Started)


class TestTheEventBus:
    def test_brings_messages_and_ticks_and_takes_what_is_published(self, daemon, configure, plugin):
        echo = plugin("""
            class Echo:
                def on_message(self, message, ctx): ctx.publish("out", [message.topic, message.value()], priority=6)
                def on_tick(self, tick, ctx): ctx.publish(None, [tick.id, tick.sequence, tick.missed])
        """)
        timer = TimerSpec(id="beat", interval_ns=10**9)
        config = configure("a", echo + ":Echo", subscriptions=["in"], publications=["ticks"], timers=[timer])
        worker = daemon.start(config)
        daemon.wire()
        daemon.begin()
        worker.link.send(Deliver(envelope={"topic": "in", "x-unknown": 1}, payload=b'{"a":1}'))
        worker.link.send(Tick(id="beat", sequence=7, due_ns=1, missed=2))
        daemon.until(lambda: len(worker.said(Publish)) == 2)
        first, second = worker.said(Publish)
        assert first.payload == b'["in",{"a":1}]'
        assert {k: first.envelope[k] for k in ("topic", "src", "priority")} == {
            "topic": "out",
            "src": "a",
            "priority": 6,
        }
        assert (second.envelope["topic"], second.payload) == ("ticks", b'["beat",7,2]')

    @pytest.mark.parametrize("ends", [False, True])
    def test_messages_that_found_no_room_are_reported_when_there_is_again_and_when_the_node_ends(
        self, daemon, configure, plugin, tmp_path, ends
    ):
        """No other message comes after them."""
        os.mkfifo(tmp_path / "gate")
        slow = plugin(f"""
            class Slow:
                taken = 0
                def on_message(self, message, ctx):
                    self.taken += 1
                    if self.taken == 1:
                        ctx.log.info("waiting")
                        open({str(tmp_path / "gate")!r}).close()
                    if {ends}: ctx.finish()
                def on_stop(self, ctx): return self.taken
        """)
        worker = daemon.start(configure("a", slow + ":Slow", subscriptions=["t"]))
        daemon.wire()
        daemon.begin()
        worker.link.send(Deliver(envelope={"topic": "t"}, payload=b"1"))
        daemon.until(lambda: any(log.message == "waiting" for log in worker.said(Log)))
        for _ in range(20):
            worker.link.send(Deliver(envelope={"topic": "t"}, payload=bytes(1 << 20)))
        worker.link.send(Ping(id=1))
        daemon.until(lambda: worker.said(Pong))
        assert not worker.said(MessagesDropped)
        open(tmp_path / "gate", "w").close()
        daemon.until(lambda: worker.said(MessagesDropped) and len(worker.said(Log)) > 1)
        (dropped,) = worker.said(MessagesDropped)
        assert dropped.topic == "t"
        assert worker.said(Log)[-1].fields == {"dropped": dropped.count}
        if not ends:
            worker.link.send(Drain())
        taken = daemon.finish()["a"]
        assert taken + dropped.count == 21

    def test_a_log_record_that_no_message_can_carry_is_shown_as_far_as_it_can_be(self, daemon, configure, plugin):
        logging = plugin("""
            def log(ctx):
                ctx.log.info("name \\udcff", size=1)
                ctx.log.info("number", big=2 ** 70)
                ctx.log.info("x" * (1 << 25))
                yield None
        """)
        worker = daemon.start(configure("a", logging + ":log"))
        daemon.wire()
        worker.link.send(Start())
        daemon.finish()
        name, number, long = worker.said(Log)
        assert (name.message, name.fields) == ("name \\udcff", {"fields": "{'size': 1}"})
        assert (number.message, number.fields) == ("number", {"fields": f"{{'big': {2**70}}}"})
        assert set(long.message) == {"x"}

    def test_requests_end_with_a_reply_or_a_refusal(self, daemon, configure, plugin):
        asking = plugin("""
            from chronetix import RequestFailed
            def ask(ctx):
                ctx.log.info("reply", value=ctx.request("who", {"q": 1}).value())
                try:
                    ctx.request("nobody", None, timeout=0.5)
                except RequestFailed as failure:
                    ctx.log.info(failure.reason)
                yield None
        """)
        worker = daemon.start(configure("a", asking + ":ask"))
        daemon.wire()
        worker.link.send(Start())
        daemon.until(lambda: worker.said(Request))
        (request,) = worker.said(Request)
        assert request.payload == b'{"q":1}'
        worker.link.send(Reply(corr_id="a late one", payload=b"0"))
        worker.link.send(Reply(corr_id=request.envelope["corr_id"], payload=b'"me"'))
        daemon.until(lambda: len(worker.said(Request)) == 2)
        refused = worker.said(Request)[1]
        assert refused.timeout_ns == 500_000_000
        corr_id = refused.envelope["corr_id"]
        worker.link.send(RequestFailure(corr_id=corr_id, reason="no-subscriber", message="nobody listens"))
        daemon.finish()
        assert [(log.message, log.fields) for log in worker.said(Log)] == [
            ("reply", {"value": "me"}),
            ("no-subscriber", {}),
        ]

    def test_subscriptions_and_replies_go_to_the_daemon(self, daemon, configure, plugin):
        answering = plugin("""
            class Answer:
                def on_start(self, ctx): ctx.subscribe("more")
                def on_message(self, message, ctx): message.reply(message.value() + 1)
        """)
        worker = daemon.start(configure("a", answering + ":Answer"))
        daemon.wire()
        daemon.begin()
        assert [message.topic for message in worker.said(Subscribe)] == ["more"]
        worker.link.send(Deliver(envelope={"topic": "more", "corr_id": "c-1"}, payload=b"41"))
        daemon.until(lambda: worker.said(Reply))
        (reply,) = worker.said(Reply)
        assert (reply.corr_id, reply.payload) == ("c-1", b"42")


class TestAPing:
    def test_tells_a_hung_plugin_from_one_that_waits(self, daemon, configure, plugin):
        sticky = plugin("""
            import threading
            class Sticky:
                def on_message(self, message, ctx):
                    ctx.publish("in", 1)
                    threading.Event().wait()
        """)
        worker = daemon.start(configure("a", sticky + ":Sticky", subscriptions=["t"]))
        daemon.wire()
        daemon.begin()
        assert daemon.ask("a", 1).busy_ns == 0
        worker.link.send(Deliver(envelope={"topic": "t"}, payload=b"1"))
        daemon.until(lambda: worker.said(Publish))
        first, second = daemon.ask("a", 2), daemon.ask("a", 3)
        assert first.progress == second.progress
        assert 0 < first.busy_ns < second.busy_ns
        os.kill(worker.pid, signal.SIGKILL)
        daemon.until(lambda: not worker.open)
        assert worker.wait() == -9

    def test_counts_steps(self, daemon, configure, plugin):
        worker = daemon.start(configure("a", plugin("def P(message): ...\n") + ":P", subscriptions=["t"]))
        daemon.wire()
        daemon.begin()
        before = daemon.ask("a", 1).progress
        for _ in range(5):
            worker.link.send(Deliver(envelope={"topic": "t"}, payload=b"1"))
        daemon.drain("a")
        daemon.finish()
        assert before < 5
        assert worker.said(Ready)


class TestAProgramOfItsOwn:
    def test_becomes_a_worker_with_serve(self, daemon, configure):
        program = daemon.folder / "program.py"
        program.write_text(
            "import chronetix\n"
            "class Shout:\n"
            "    def on_frame(self, frame, ctx): return frame.value().upper()\n"
            "    def on_stop(self, ctx): return 'served'\n"
            "chronetix.serve(Shout)\n"
            "print('goes on', flush=True)\n"
        )
        words = daemon.folder / "words.py"
        words.write_text("def words(ctx): yield from ['a', 'b']\n")
        daemon.start(configure("a", f"python://{words}:words", "ab>b"))
        config = configure("b", "file://program.py", "ab<a", "bc>c")
        daemon.start(config, argv=[str(program)])
        collect = daemon.folder / "collect.py"
        collect.write_text(
            "class C:\n  seen = []\n  on_frame = lambda s, f: s.seen.append(f.value())\n  on_stop = lambda s: s.seen"
        )
        daemon.start(configure("c", f"python://{collect}:C", "bc<b"))
        daemon.wire()
        daemon.begin()
        assert daemon.finish() == {"a": None, "b": "served", "c": ["A", "B"]}

    def test_says_how_it_is_started_when_it_was_not(self, monkeypatch):
        import chronetix

        monkeypatch.delenv("CHRONETIX_FD", raising=False)
        with pytest.raises(RuntimeError, match="started by chronetixd"):
            chronetix.serve(object())


class TestManyInputs:
    def test_a_frame_of_any_of_64_a_message_and_a_tick_wake_it_from_the_same_sleep(self, daemon, configure, plugin):
        """Each is sent when what the one before caused is there: the worker sleeps by then, or is about to."""
        source = plugin("""
            class Source:
                def on_message(self, message, ctx): ctx.send(b"1", to=message.value())
        """)
        sink = plugin("""
            class Sink:
                def on_frame(self, frame, ctx): ctx.publish("woken", frame.route)
                def on_message(self, message, ctx): ctx.publish("woken", message.topic)
                def on_tick(self, tick, ctx): ctx.publish("woken", tick.id)
        """)
        routes = [f"r{n}" for n in range(64)]
        outputs, inputs = [f"{route}>b" for route in routes], [f"{route}<a" for route in routes]
        timers = [TimerSpec(id="clock", interval_ns=1)]
        a = daemon.start(configure("a", source + ":Source", *outputs, credits=1, subscriptions=["to"]))
        b = daemon.start(configure("b", sink + ":Sink", *inputs, credits=1, subscriptions=["news"], timers=timers))
        daemon.wire()
        daemon.begin()
        expected = []
        for n, route in enumerate(routes):
            a.link.send(Deliver(envelope={"topic": "to"}, payload=b'"%s"' % route.encode()))
            expected.append(route)
            daemon.until(lambda: len(b.said(Publish)) == len(expected))
            b.link.send(Deliver(envelope={"topic": "news"}, payload=b"1"))
            expected.append("news")
            daemon.until(lambda: len(b.said(Publish)) == len(expected))
            b.link.send(Tick(id="clock", sequence=n + 1, due_ns=0))
            expected.append("clock")
            daemon.until(lambda: len(b.said(Publish)) == len(expected))
        assert [json.loads(message.payload) for message in b.said(Publish)] == expected
        daemon.drain("a")
        daemon.finish()
