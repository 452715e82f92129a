"""The bus's shell: envelopes are checked, slow subscribers lose their own messages only, ticks come."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.messages import (
    Deliver,
    MessagesDropped,
    Publish,
    Reply,
    Request,
    RequestFailure,
    Subscribe,
    Tick,
    TimerSpec,
    Unsubscribe,
)
from chronetixd.bus.event_bus import MAX_NAME, MAX_OPEN, Bus
from chronetixd.core.deliveries import Deliveries
from chronetixd.core.router import topic_of
from chronetixd.records.events import Events


class Subscriber:
    """Keeps what it is sent."""

    def __init__(self, node: str, flow: str = "f") -> None:
        self.flow, self.node, self.backlog = flow, node, 0
        self.deliveries = Deliveries()
        self.got: list[Any] = []

    def send(self, message: Any) -> None:
        self.got.append(message)


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def bus(loop: Any, events: Events) -> Any:
    made = Bus(loop, events, max_backlog=100)
    yield made
    made.close()


@pytest.fixture
def a() -> Subscriber:
    return Subscriber("a")


@pytest.fixture
def b() -> Subscriber:
    return Subscriber("b")


def test_a_publication_keeps_unknown_keys_and_names_its_sender(bus: Bus, a: Subscriber, b: Subscriber) -> None:
    bus.subscribe(a, ["t"])
    bus.handle(b, Publish(envelope={"topic": "t", "x_colour": 1}, payload=b"p"))
    assert a.got == [Deliver(envelope={"topic": "t", "x_colour": 1, "src": "b"}, payload=b"p")]


class TestTwoFlows:
    def test_do_not_hear_each_other_by_the_same_name(self, bus: Bus, a: Subscriber) -> None:
        other = Subscriber("a", "staging")
        for peer in (a, other):
            bus.subscribe(peer, ["t"])
        bus.handle(a, Publish(envelope={"topic": "t"}, payload=b"mine"))
        assert [message.payload for message in a.got] == [b"mine"]
        assert other.got == []

    def test_do_not_answer_each_other(self, bus: Bus, a: Subscriber) -> None:
        bus.handle(Subscriber("a", "staging"), Subscribe(topic="t"))
        bus.handle(a, Request(envelope={"topic": "t", "corr_id": "7"}, payload=b"?"))
        assert [(message.corr_id, message.reason) for message in a.got] == [("7", "no-subscriber")]

    def test_share_what_begins_with_a_slash(self, bus: Bus, a: Subscriber) -> None:
        other = Subscriber("a", "staging")
        bus.subscribe(other, ["/t"])
        bus.handle(a, Publish(envelope={"topic": "/t"}, payload=b"ours"))
        bus.handle(a, Request(envelope={"topic": "/t", "corr_id": "7"}, payload=b"?"))
        bus.handle(other, Reply(corr_id=other.got[1].envelope["corr_id"], payload=b"!", content_type="text/plain"))
        assert (other.got[0].payload, a.got[0].payload) == (b"ours", b"!")

    def test_end_a_subscription_of_their_own_only(self, bus: Bus, a: Subscriber) -> None:
        other = Subscriber("a", "staging")
        for peer in (a, other):
            bus.subscribe(peer, ["t"])
        bus.handle(other, Unsubscribe(topic="t"))
        assert bus.publish("f", {"topic": "t"}, b"") == 1
        assert bus.publish("staging", {"topic": "t"}, b"") == 0

    def test_cannot_be_reached_by_one_who_names_no_flow(self, bus: Bus, a: Subscriber) -> None:
        bus.subscribe(a, ["t", "/t"])
        with pytest.raises(ChronetixError, match="the topic t belongs to a flow"):
            bus.publish("", {"topic": "t"}, b"")
        assert a.got == []
        assert bus.publish("", {"topic": "/t"}, b"") == 1


def test_a_sender_that_names_itself_is_not_renamed(bus: Bus, a: Subscriber, b: Subscriber) -> None:
    bus.subscribe(a, ["t"])
    bus.handle(b, Publish(envelope={"topic": "t", "src": "elsewhere"}, payload=b""))
    assert a.got[0].envelope["src"] == "elsewhere"


@pytest.mark.parametrize("envelope", [{}, {"topic": ""}, {"topic": 3}, {"topic": "t", "priority": "high"}])
def test_a_malformed_envelope_is_the_senders_fault(envelope: dict[str, Any], bus: Bus, a: Subscriber) -> None:
    with pytest.raises(ChronetixError, match="envelope"):
        bus.handle(a, Publish(envelope=envelope, payload=b""))


def test_a_request_is_answered_under_the_askers_id(bus: Bus, a: Subscriber, b: Subscriber) -> None:
    bus.subscribe(b, ["t"])
    bus.handle(a, Request(envelope={"topic": "t", "corr_id": "7"}, payload=b"?"))
    bus.handle(b, Reply(corr_id=b.got[0].envelope["corr_id"], payload=b"!", content_type="text/plain"))
    assert a.got == [Reply(corr_id="7", payload=b"!", content_type="text/plain")]


def test_a_request_without_an_id_is_refused(bus: Bus, a: Subscriber) -> None:
    with pytest.raises(ChronetixError, match="corr_id"):
        bus.handle(a, Request(envelope={"topic": "t"}, payload=b"?"))


def test_a_request_times_out(bus: Bus, a: Subscriber, b: Subscriber, until: Any) -> None:
    bus.subscribe(b, ["t"])
    bus.handle(a, Request(envelope={"topic": "t", "corr_id": "7"}, payload=b"?", timeout_ns=1_000_000))
    until(lambda: a.got)
    assert isinstance(a.got[0], RequestFailure)
    assert a.got[0].reason == "timeout"


def test_a_subscriber_that_goes_away_ends_the_requests_it_had(bus: Bus, a: Subscriber, b: Subscriber) -> None:
    bus.subscribe(b, ["t"])
    bus.handle(a, Request(envelope={"topic": "t", "corr_id": "7"}, payload=b"?"))
    bus.drop(b)
    assert a.got[0].reason == "peer-gone"


def test_a_slow_subscriber_loses_its_own_messages_and_is_told_of_once(
    bus: Bus, a: Subscriber, b: Subscriber, events: Events
) -> None:
    bus.subscribe(a, ["t"])
    bus.subscribe(b, ["t"])
    a.backlog = 101
    for _ in range(3):
        bus.publish("f", {"topic": "t"}, b"")
    assert (len(a.got), len(b.got), bus.dropped) == (0, 3, 3)
    assert a.deliveries.figures([]) == [{"topic": "t", "delivered": 0, "dropped": 3}]
    assert b.deliveries.figures([]) == [{"topic": "t", "delivered": 3, "dropped": 0}]
    assert [event.kind for event in events.feed.recent(lambda event: True)] == ["bus-dropping"]


def test_what_a_worker_has_lost_from_its_own_queue_counts_as_dropped_and_is_told_of_once(
    bus: Bus, a: Subscriber, events: Events
) -> None:
    bus.subscribe(a, ["t"])
    for _ in range(5):
        bus.publish("f", {"topic": "t"}, b"")
    bus.handle(a, MessagesDropped(topic="t", count=2))
    bus.handle(a, MessagesDropped(topic="t", count=1))
    bus.handle(a, MessagesDropped(topic="t", count=0))
    bus.handle(a, MessagesDropped(topic="never delivered", count=7))
    assert a.deliveries.figures([]) == [{"topic": "t", "delivered": 2, "dropped": 3}]
    assert bus.dropped == 3
    assert [event.kind for event in events.feed.recent(lambda event: True)] == ["bus-dropping"]
    bus.handle(a, MessagesDropped(topic="t", count=9))
    assert a.deliveries.figures([]) == [{"topic": "t", "delivered": 0, "dropped": 12}], "never less than nothing"


def test_ticks_come_until_they_are_stopped(bus: Bus, a: Subscriber, until: Any) -> None:
    bus.start_timers(a, [TimerSpec(id="t", interval_ns=1_000_000)])
    until(lambda: len(a.got) >= 3)
    bus.stop_timers(a)
    assert all(isinstance(tick, Tick) for tick in a.got)
    accounted = 0
    for tick in a.got:
        accounted += tick.missed + 1
        assert accounted == tick.sequence


def test_ticks_that_a_full_queue_did_not_take_count_as_missed(bus: Bus, a: Subscriber, until: Any) -> None:
    a.backlog = 101
    bus.start_timers(a, [TimerSpec(id="t", interval_ns=1_000_000)])
    until(lambda: bus.dropped >= 2)
    a.backlog = 0
    until(lambda: a.got)
    assert a.got[0].missed >= 2
    assert a.got[0].sequence == a.got[0].missed + 1


class TestWhatAWorkerMayHaveKept:
    def test_topics_without_end_are_refused(self, bus: Bus, a: Subscriber) -> None:
        for number in range(MAX_OPEN):
            bus.handle(a, Subscribe(topic=f"t{number}"))
        with pytest.raises(ChronetixError, match="another subscription of this node"):
            bus.handle(a, Subscribe(topic="more"))
        bus.handle(a, Unsubscribe(topic="t0"))
        bus.handle(a, Subscribe(topic="more"))
        bus.drop(a)
        assert bus.router.subscriptions_of(a) == bus.router.subscribers(topic_of("f", "more")) == 0

    def test_requests_without_end_are_refused(self, bus: Bus, a: Subscriber, b: Subscriber) -> None:
        bus.subscribe(b, ["t"])
        for number in range(MAX_OPEN):
            bus.handle(a, Request(envelope={"topic": "t", "corr_id": f"{number}"}, payload=b""))
        with pytest.raises(ChronetixError, match="another open request"):
            bus.handle(a, Request(envelope={"topic": "t", "corr_id": "more"}, payload=b""))
        bus.handle(b, Reply(corr_id=b.got[0].envelope["corr_id"], payload=b"", content_type="text/plain"))
        bus.handle(a, Request(envelope={"topic": "t", "corr_id": "more"}, payload=b""))

    def test_names_without_end_are_refused(self, bus: Bus, a: Subscriber, b: Subscriber) -> None:
        long = "x" * (MAX_NAME + 1)
        with pytest.raises(ChronetixError, match="its topic has 1025 characters"):
            bus.handle(a, Subscribe(topic=long))
        bus.subscribe(b, ["t"])
        with pytest.raises(ChronetixError, match="its corr_id has 1025 characters"):
            bus.handle(a, Request(envelope={"topic": "t", "corr_id": long}, payload=b""))
        bus.handle(a, Subscribe(topic=long[1:]))
        bus.handle(a, Request(envelope={"topic": "t", "corr_id": long[1:]}, payload=b""))
        assert len(b.got) == 1

    def test_the_specification_tells_how_much(self) -> None:
        text = resources.files("protocol").joinpath("PROTOCOL.md").read_text("utf-8")
        assert f"| subscriptions of a worker, requests of it that are open | {MAX_OPEN} each |" in text
        assert f"`corr_id` | {MAX_NAME} |" in text


def test_a_reply_to_who_reads_nothing_ends_the_request_all_the_same(bus: Bus, a: Subscriber, b: Subscriber) -> None:
    bus.subscribe(b, ["t"])
    bus.handle(a, Request(envelope={"topic": "t", "corr_id": "7"}, payload=b""))
    a.backlog = 101
    bus.handle(b, Reply(corr_id=b.got[0].envelope["corr_id"], payload=b"!" * 50, content_type="text/plain"))
    (ended,) = a.got
    assert isinstance(ended, RequestFailure)
    assert "50 bytes was dropped" in ended.message
    assert bus.dropped == 1
