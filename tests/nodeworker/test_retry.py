"""qos.retry in real worker processes: a frame that made the plugin raise is tried again, then set aside."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest

from chronetix.nodeworker.engine.retry import MAX_LETTER, MESSAGE_LIMIT, DeadLetters, retrying, retrying_awaited
from chronetix.protocol.messages import FrameFailed, Publish

NUMBERS = """
    def numbers(ctx):
        for i in range(1, ctx.params["count"] + 1):
            yield {"n": i}
"""
PICKY = """
    class Picky:
        '''Raises at multiples of ten: always, or the first ``raises`` times.'''
        def __init__(self, ctx): self.seen, self.tried, self.raises = [], {}, ctx.params.get("raises")
        def on_frame(self, frame, ctx):
            n = frame.value()["n"]
            self.tried[n] = self.tried.get(n, 0) + 1
            if n % 10 == 0 and (self.raises is None or self.tried[n] <= self.raises):
                raise ValueError(f"{n} is a round number")
            self.seen.append(n)
        def on_stop(self, ctx): return {"seen": self.seen, "tried": [self.tried[n] for n in (9, 10)]}
"""


def line(configure: Any, plugin: Any, qos: dict[str, Any], **params: Any) -> tuple[Any, Any]:
    return (
        configure("a", plugin(NUMBERS) + ":numbers", "ab>b", params={"count": 25}),
        configure("b", plugin(PICKY) + ":Picky", "ab<a", qos=qos, params=params),
    )


def failures(daemon: Any) -> list[FrameFailed]:
    found: list[FrameFailed] = daemon.workers["b"].said(FrameFailed)
    return found


@pytest.mark.parametrize("retry", [1, 3])
def test_a_frame_that_always_raises_is_dropped_after_its_attempts_and_told(
    retry: int, daemon: Any, configure: Any, plugin: Any
) -> None:
    result = daemon.run(*line(configure, plugin, {"retry": retry}))["b"]
    assert result["seen"] == [n for n in range(1, 26) if n % 10]
    assert result["tried"] == [1, retry + 1]
    assert [(each.route, each.seq, each.attempts, each.outcome) for each in failures(daemon)] == [
        ("ab", 9, retry + 1, "dropped"),
        ("ab", 19, retry + 1, "dropped"),
    ]
    assert failures(daemon)[0].error == "ValueError"
    assert failures(daemon)[0].message == "10 is a round number"


def test_a_frame_that_passes_in_the_end_keeps_its_place(daemon: Any, configure: Any, plugin: Any) -> None:
    result = daemon.run(*line(configure, plugin, {"retry": 3}, raises=2))["b"]
    assert result["seen"] == list(range(1, 26))
    assert [(each.attempts, each.outcome) for each in failures(daemon)] == [(3, "passed")] * 2


def test_a_dead_letter_is_published_with_its_story(daemon: Any, configure: Any, plugin: Any) -> None:
    daemon.run(*line(configure, plugin, {"retry": 1, "dead_letter": "failed"}))
    first, second = daemon.workers["b"].said(Publish)
    assert first.envelope["topic"] == second.envelope["topic"] == "failed"
    assert first.envelope["headers"] == {
        "node": "b",
        "route": "ab",
        "seq": "9",
        "attempts": "2",
        "error": "ValueError",
        "message": "10 is a round number",
        "bytes": "8",
    }
    assert first.payload == b'{"n":10}'
    assert [each.outcome for each in failures(daemon)] == ["dead-letter"] * 2


def test_without_retry_the_first_raise_fails_the_node(daemon: Any, configure: Any, plugin: Any) -> None:
    for config in line(configure, plugin, {"retry": 0}):
        daemon.start(config)
    daemon.wire()
    daemon.begin()
    fault = daemon.fault(daemon.workers["b"])
    assert (fault.phase, fault.error) == ("frame", "ValueError")
    assert failures(daemon) == []


@pytest.mark.parametrize("a", ["", "async "])
@pytest.mark.parametrize("reason", ["KeyboardInterrupt", "SystemExit(0)", "GeneratorExit", "BaseException"])
def test_whatever_the_plugin_itself_raises_is_retried_and_set_aside(
    a: str, reason: str, daemon: Any, configure: Any, plugin: Any
) -> None:
    source = plugin(NUMBERS) + ":numbers"
    leaves = plugin(f"""
        class Leaves:
            def __init__(self): self.seen = []
            {a}def on_frame(self, frame):
                self.seen.append(frame.value()["n"])
                if self.seen[-1] == 2: raise {reason}
            def on_stop(self): return self.seen
    """)
    result = daemon.run(
        configure("a", source, "ab>b", params={"count": 3}),
        configure("b", leaves + ":Leaves", "ab<a", qos={"retry": 2, "dead_letter": "failed"}),
    )["b"]
    assert result == [1, 2, 2, 2, 3]
    error = reason.partition("(")[0]
    assert [(each.error, each.outcome) for each in failures(daemon)] == [(error, "dead-letter")]


def test_what_a_frame_did_not_cause_is_not_retried(daemon: Any, configure: Any, plugin: Any) -> None:
    source = plugin(NUMBERS) + ":numbers"
    leaves = plugin("""
        def leaves(frame, ctx):
            raise MemoryError
    """)
    daemon.start(configure("a", source, "ab>b", params={"count": 5}))
    worker = daemon.start(configure("b", leaves + ":leaves", "ab<a", qos={"retry": 5}))
    daemon.wire()
    daemon.begin()
    assert daemon.fault(worker).error == "MemoryError"
    assert failures(daemon) == []


class Frame(bytearray):
    """A frame as far as a dead letter looks at it."""

    route, seq = "ab", 7


@pytest.mark.parametrize(("size", "sent"), [(MAX_LETTER, MAX_LETTER), (MAX_LETTER + 1, 0)])
def test_a_dead_letter_brings_a_frame_as_large_as_the_limit_and_of_a_larger_one_its_head(
    size: int, sent: int, configure: Any, plugin: Any
) -> None:
    host = Mock()
    config = configure("b", plugin(PICKY) + ":Picky", "ab<a", qos={"retry": 1, "dead_letter": "failed"})
    DeadLetters(config, host).take(Frame(size), 2, ValueError("x" * (MESSAGE_LIMIT + 1)))
    (head, payload), _ = host.publish.call_args
    assert len(payload) == sent
    assert head["headers"]["bytes"] == str(size)
    assert head["headers"].get("payload") == (None if sent else "left out")
    assert head["headers"]["message"] == "x" * MESSAGE_LIMIT
    host.frame_failed.assert_called_once_with("ab", 7, 2, "ValueError", "x" * MESSAGE_LIMIT, "dead-letter")


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("raises", [0, 1, 2, 3])
def test_what_on_frame_returns_comes_back_from_whichever_attempt(
    awaited: bool, raises: int, configure: Any, plugin: Any
) -> None:
    """Of a plugin that waits and of one that does not, which have code of their own."""
    host, calls = Mock(), []

    def on_frame(frame: Any, ctx: Any) -> str:
        calls.append(frame)
        if len(calls) <= raises:
            raise ValueError("not yet")
        return "result"

    config = configure("b", plugin(PICKY) + ":Picky", "ab<a", qos={"retry": 2})
    made = (retrying_awaited if awaited else retrying)(on_frame, config, host, Mock(interrupt=None))
    result = made(Frame(1), None)
    if awaited:
        result = asyncio.run(result)
    assert (result, len(calls)) == ("result" if raises < 3 else None, min(raises + 1, 3))
    told = [call.args for call in host.frame_failed.call_args_list]
    outcome = ("passed",) if raises < 3 else ("dropped",)
    assert told == ([] if not raises else [("ab", 7, min(raises + 1, 3), "ValueError", "not yet", *outcome)])


def test_without_retry_nothing_is_in_the_way(configure: Any, plugin: Any) -> None:
    on_frame, config = Mock(), configure("b", plugin(PICKY) + ":Picky", "ab<a")
    for made in (retrying, retrying_awaited):
        assert made(on_frame, config, Mock(), Mock()) is on_frame
