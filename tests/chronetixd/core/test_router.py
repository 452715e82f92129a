"""The event bus: who gets what, and that every request ends exactly once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chronetixd.core.router import FEW, Answer, Delivery, DuplicateRequest, Ended, Router, Topic, topic_of

ENVELOPE: dict[str, Any] = {"topic": "t", "x_unknown": 1}
PEERS = ("a", "b", "c")
T = topic_of("f", "t")
TOPICS = (T, topic_of("g", "t"), topic_of("f", "/t"))


@pytest.fixture
def router() -> Router:
    router = Router()
    router.subscribe("a", T)
    router.subscribe("b", T)
    return router


def ask(router: Router, asker: str, corr_id: str, timeout_ns: int = 100, now_ns: int = 0, topic: Topic = T) -> Any:
    return router.request(asker, topic, {"topic": topic.name, "corr_id": corr_id}, b"?", timeout_ns, now_ns)


def test_a_publication_goes_to_every_subscriber_of_exactly_its_topic(router: Router) -> None:
    router.subscribe("c", topic_of("f", "t/more"))
    assert router.publish(T, ENVELOPE, b"x") == [Delivery("a", ENVELOPE, b"x"), Delivery("b", ENVELOPE, b"x")]


def test_subscribing_twice_delivers_once(router: Router) -> None:
    router.subscribe("a", T)
    assert len(router.publish(T, ENVELOPE, b"x")) == 2


def test_whoever_unsubscribed_gets_nothing(router: Router) -> None:
    router.unsubscribe("a", T)
    router.unsubscribe("a", T)
    assert [delivery.to for delivery in router.publish(T, ENVELOPE, b"x")] == ["b"]


def test_requests_go_to_the_subscribers_in_turn_and_never_to_the_asker(router: Router) -> None:
    assert [ask(router, "c", str(n)).to for n in range(4)] == ["a", "b", "a", "b"]
    assert {ask(router, "a", str(n)).to for n in range(3)} == {"b"}


def test_a_reply_finds_its_asker_under_the_askers_own_id(router: Router) -> None:
    first, second = ask(router, "c", "mine"), ask(router, "d", "mine")
    assert first.envelope["corr_id"] != second.envelope["corr_id"]
    got = router.reply(second.to, second.envelope["corr_id"], b"!", "text/plain")
    assert got == Answer("d", "mine", b"!", "text/plain")


def test_requests_that_were_answered_are_not_kept_until_their_time_is_up(router: Router) -> None:
    first = ask(router, "c", "waits", timeout_ns=1 << 40)
    for number in range(1_000):
        asked = ask(router, "c", str(number), timeout_ns=1 << 60)
        router.reply(asked.to, asked.envelope["corr_id"], b"!", "text/plain")
    assert len(router._deadlines) <= FEW + 2
    assert [ended.corr_id for ended in router.expire(1 << 40)] == ["waits"]
    assert router.reply(first.to, first.envelope["corr_id"], b"!", "text/plain") is None


def test_only_the_one_who_was_asked_may_answer_and_only_once(router: Router) -> None:
    asked = ask(router, "c", "1")
    key = asked.envelope["corr_id"]
    assert router.reply("c", key, b"forged", "") is None
    assert router.reply(asked.to, key, b"!", "") is not None
    assert router.reply(asked.to, key, b"!", "") is None
    assert router.late_replies == 2


def test_a_request_that_nobody_can_answer_ends_at_once(router: Router) -> None:
    ended = ask(router, "c", "1", topic=topic_of("f", "nobody"))
    assert isinstance(ended, Ended)
    assert (ended.reason, ended.corr_id) == ("no-subscriber", "1")


def test_a_request_ends_at_its_deadline_and_not_before(router: Router) -> None:
    ask(router, "c", "late", timeout_ns=100, now_ns=5)
    assert router.next_ns() == 105
    assert router.expire(104) == []
    assert [(ended.to, ended.reason) for ended in router.expire(105)] == [("c", "timeout")]
    assert router.next_ns() is None


def test_a_responder_that_goes_away_ends_what_it_was_to_answer(router: Router) -> None:
    asked = ask(router, "c", "1")
    assert [(ended.to, ended.reason) for ended in router.drop(asked.to)] == [("c", "peer-gone")]


def test_an_asker_that_goes_away_is_told_nothing(router: Router) -> None:
    asked = ask(router, "c", "1")
    assert router.drop("c") == []
    assert router.reply(asked.to, asked.envelope["corr_id"], b"!", "") is None
    assert router.next_ns() is None


def test_an_id_that_is_under_way_may_not_be_used_again(router: Router) -> None:
    asked = ask(router, "c", "1")
    with pytest.raises(DuplicateRequest):
        ask(router, "c", "1")
    assert router.reply(asked.to, asked.envelope["corr_id"], b"!", "") is not None


class Requests(RuleBasedStateMachine):
    """Random traffic against the promise that every request of a living asker ends exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router()
        self.now = 0
        self.serial = 0
        self.open: dict[tuple[str, str], tuple[str, str]] = {}
        """(asker, its id) to (responder, the daemon's id)."""

    def end(self, ended: list[Ended]) -> None:
        for each in ended:
            assert (each.to, each.corr_id) in self.open
            del self.open[str(each.to), each.corr_id]

    @rule(peer=st.sampled_from(PEERS), topic=st.sampled_from(TOPICS), wants=st.booleans())
    def subscription(self, peer: str, topic: Topic, wants: bool) -> None:
        (self.router.subscribe if wants else self.router.unsubscribe)(peer, topic)

    @rule(peer=st.sampled_from(PEERS), topic=st.sampled_from(TOPICS), timeout=st.integers(0, 50))
    def request(self, peer: str, topic: Topic, timeout: int) -> None:
        self.serial += 1
        sent = ask(self.router, peer, str(self.serial), timeout, self.now, topic)
        if isinstance(sent, Ended):
            assert (sent.to, sent.corr_id, sent.reason) == (peer, str(self.serial), "no-subscriber")
        else:
            assert sent.to != peer
            self.open[peer, str(self.serial)] = (str(sent.to), sent.envelope["corr_id"])

    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        if not self.open:
            return
        asker, corr_id = data.draw(st.sampled_from(sorted(self.open)))
        responder, key = self.open.pop((asker, corr_id))
        assert self.router.reply(responder, key, b"", "") == Answer(asker, corr_id, b"", "")

    @rule(step=st.integers(0, 60))
    def time_passes(self, step: int) -> None:
        self.now += step
        self.end(self.router.expire(self.now))

    @rule(peer=st.sampled_from(PEERS))
    def goes_away(self, peer: str) -> None:
        self.open = {key: value for key, value in self.open.items() if key[0] != peer}
        self.end(self.router.drop(peer))
        assert all(responder != peer for responder, _ in self.open.values())

    @invariant()
    def agrees(self) -> None:
        assert self.router.open_requests == len(self.open)
        assert (self.router.next_ns() is None) == (not self.open)


Requests.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestRequests = Requests.TestCase
