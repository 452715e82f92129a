"""The mailbox of a worker is bounded: ticks are withheld and counted, messages dropped and counted."""

from __future__ import annotations

from collections import deque
from typing import Any

from chronetix.nodeworker.engine.mailbox_limits import (
    MAX_WAITING_BYTES,
    MAX_WAITING_TICKS,
    REPORTED_AT_ONCE,
    MailboxLimits,
)
from chronetix.protocol.messages import Deliver, Drain, Tick


def test_ticks_that_find_others_waiting_count_as_missed_by_the_next() -> None:
    mailbox: deque[Any] = deque()
    intake = MailboxLimits(mailbox)
    for n in range(1, 1001):
        intake.put(Tick(id="t", sequence=n, due_ns=n))
    assert len(mailbox) == MAX_WAITING_TICKS
    mailbox.clear()
    assert intake.put(Tick(id="t", sequence=1001, due_ns=1001))
    assert mailbox.pop().missed == 1000 - MAX_WAITING_TICKS


def test_messages_that_find_no_room_are_dropped_and_told_once_there_is_room() -> None:
    mailbox: deque[Any] = deque()
    intake = MailboxLimits(mailbox)
    message = Deliver(envelope={"topic": "t"}, payload=bytes(1 << 20))
    taken = [intake.put(message) for _ in range(20)]
    assert sum(len(event.payload) for event in mailbox) <= MAX_WAITING_BYTES
    assert intake.account() == 0
    mailbox.clear()
    assert (intake.account(), intake.account()) == (taken.count(False), 0)
    assert intake.put(message)


def test_drops_are_reported_by_topic_once_there_is_room_and_before_when_they_are_many() -> None:
    mailbox: deque[Any] = deque()
    intake = MailboxLimits(mailbox)
    while intake.put(Deliver(envelope={"topic": "a"}, payload=bytes(1 << 20))):
        pass
    assert intake.report() == {}, "one, and no room yet"
    intake.put(Deliver(envelope={"topic": "b"}, payload=bytes(1 << 20)))
    mailbox.clear()
    assert [intake.report(), intake.report()] == [{"a": 1, "b": 1}, {}]
    while intake.put(Deliver(envelope={"topic": "a"}, payload=bytes(1 << 20))):
        pass
    for _ in range(REPORTED_AT_ONCE - 1):
        assert intake.report() == {}
        intake.put(Deliver(envelope={"topic": "a"}, payload=bytes(1 << 20)))
    assert intake.report() == {"a": REPORTED_AT_ONCE}


def test_the_last_report_has_all_of_them_room_or_not() -> None:
    mailbox: deque[Any] = deque()
    intake = MailboxLimits(mailbox)
    assert not intake.owes
    while intake.put(Deliver(envelope={"topic": "a"}, payload=bytes(1 << 20))):
        pass
    assert intake.owes
    assert [intake.report(), intake.account()] == [{}, 0]
    assert [intake.report(last=True), intake.account(last=True)] == [{"a": 1}, 1]
    assert not intake.owes


def test_a_message_larger_than_the_bound_goes_into_an_empty_mailbox() -> None:
    mailbox: deque[Any] = deque()
    assert MailboxLimits(mailbox).put(Deliver(envelope={"topic": "t"}, payload=bytes(MAX_WAITING_BYTES + 1)))


def test_an_order_goes_in_however_full_it_is() -> None:
    mailbox: deque[Any] = deque()
    intake = MailboxLimits(mailbox)
    while intake.put(Deliver(envelope={"topic": "t"}, payload=bytes(1 << 20))):
        pass
    assert intake.put(Drain())
    assert mailbox[-1] == Drain()
