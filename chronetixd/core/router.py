"""The event bus: publish and subscribe by exact topic, request and reply. Time is passed in (ns, CLOCK_MONOTONIC).

Every request ends exactly once: with a reply, by a timeout, for lack of a subscriber, or because the responder has
gone. The daemon gives each delivered request a correlation id of its own, so that the ids of two askers cannot collide
and a peer cannot answer a request that it was not given. Payloads are never read.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from chronetixd.core.packed import Key, PackedRequest, PackedRouter

Peer = Hashable
"""A subscriber, asker or responder, as the calling code names it."""

SHARED = "/"
"""The prefix of the name of a topic that all flows share."""


class Topic(NamedTuple):
    """The full name of a topic: two flows may use one name for two topics. ``flow`` is empty for a shared topic."""

    flow: str
    name: str


def topic_of(flow: str, name: str) -> Topic:
    """Return the topic that ``flow`` means by ``name``."""
    return Topic("" if name.startswith(SHARED) else flow, name)


FEW = 64
"""Number of stale deadlines, those of ended requests, up to which the heap is not rebuilt."""

End = Literal["timeout", "no-subscriber", "peer-gone"]


class Delivery(Struct, frozen=True):
    """Send ``payload`` to ``to`` under ``envelope``. It is a request if the envelope has a ``corr_id``."""

    to: Peer
    envelope: dict[str, Any]
    payload: bytes


class Answer(Struct, frozen=True):
    """Send the reply to request ``corr_id`` of ``to``. The id is the asker's own."""

    to: Peer
    corr_id: str
    payload: bytes
    content_type: str


class Ended(Struct, frozen=True):
    """Tell ``to`` that its request ``corr_id`` ended without a reply."""

    to: Peer
    corr_id: str
    reason: End
    message: str


class DuplicateRequest(ValueError):
    """The asker has an open request with this id; that request is not changed."""


@dataclass(slots=True)
class _Pending:
    asker: Peer
    corr_id: str
    responder: Peer
    topic: Topic
    timeout_ns: int


class Router:
    """All subscriptions and open requests. ``late_replies`` counts replies to requests that had ended or that the
    replying peer was not given."""

    __slots__ = (
        "_asked",
        "_deadlines",
        "_owing",
        "_pending",
        "_serial",
        "_subscribed",
        "_topics",
        "_turn",
        "late_replies",
    )

    def __init__(self) -> None:
        self._topics: dict[Topic, dict[Peer, None]] = {}
        self._subscribed: dict[Peer, set[Topic]] = {}
        self._pending: dict[str, _Pending] = {}
        self._asked: dict[Peer, dict[str, str]] = {}
        """By asker: its own ids of its open requests, with the router's ids."""
        self._owing: dict[Peer, dict[str, None]] = {}
        """By responder: the router's ids of the requests that it is to answer, oldest first."""
        self._deadlines: list[tuple[int, str]] = []
        self._serial = 0
        self._turn: dict[Topic, int] = {}
        self.late_replies = 0

    @property
    def open_requests(self) -> int:
        """The number of requests that have not ended."""
        return len(self._pending)

    def subscribe(self, peer: Peer, topic: Topic) -> None:
        """Subscribe ``peer`` to ``topic``. Idempotent."""
        self._topics.setdefault(topic, {})[peer] = None
        self._subscribed.setdefault(peer, set()).add(topic)

    def unsubscribe(self, peer: Peer, topic: Topic) -> None:
        """End the subscription of ``peer`` to ``topic``. Idempotent."""
        mine, peers = self._subscribed.get(peer), self._topics.get(topic)
        if mine is None or peers is None or topic not in mine:
            return
        mine.remove(topic)
        if not mine:
            del self._subscribed[peer]
        del peers[peer]
        if not peers:
            del self._topics[topic]
            self._turn.pop(topic, None)

    def topics(self, peer: Peer) -> list[Topic]:
        """Return the topics that ``peer`` subscribes to."""
        return list(self._subscribed.get(peer, ()))

    def subscribers(self, topic: Topic) -> int:
        """Return the number of subscribers of exactly this topic."""
        return len(self._topics.get(topic, ()))

    def subscriptions_of(self, peer: Peer) -> int:
        """Return the number of topics that ``peer`` subscribes to."""
        return len(self._subscribed.get(peer, ()))

    def requests_of(self, peer: Peer) -> int:
        """Return the number of open requests of ``peer``."""
        return len(self._asked.get(peer, ()))

    def publish(self, topic: Topic, envelope: dict[str, Any], payload: bytes) -> list[Delivery]:
        """Return one delivery for each subscriber of ``topic``, in the order in which they subscribed."""
        return [Delivery(peer, envelope, payload) for peer in self._topics.get(topic, ())]

    def request(
        self, asker: Peer, topic: Topic, envelope: dict[str, Any], payload: bytes, timeout_ns: int, now_ns: int
    ) -> Delivery | Ended:
        """Return the delivery of a request to one subscriber of ``topic``. Subscribers take turns, and the asker itself
        is left out. Returns Ended when no subscriber is left.

        Raises DuplicateRequest when the asker has an open request with the id ``envelope["corr_id"]``.
        """
        corr_id = str(envelope.get("corr_id", ""))
        if corr_id in self._asked.get(asker, ()):
            raise DuplicateRequest(f"request {corr_id!r} is already under way")
        responder = self._next_responder(asker, topic)
        if responder is None:
            return Ended(asker, corr_id, "no-subscriber", f"nobody subscribes to topic {topic.name!r}")
        self._serial += 1
        key = f"r{self._serial}"
        self._add(key, _Pending(asker, corr_id, responder, topic, timeout_ns))
        heapq.heappush(self._deadlines, (now_ns + timeout_ns, key))
        return Delivery(responder, {**envelope, "corr_id": key}, payload)

    def reply(self, responder: Peer, corr_id: str, payload: bytes, content_type: str) -> Answer | None:
        """Return the answer to forward to the asker. None when no request with this id is open for this responder."""
        pending = self._pending.get(corr_id)
        if pending is None or pending.responder != responder:
            self.late_replies += 1
            return None
        self._end(corr_id)
        return Answer(pending.asker, pending.corr_id, payload, content_type)

    def expire(self, now_ns: int) -> list[Ended]:
        """End all requests whose timeout has passed."""
        ended: list[Ended] = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            key = heapq.heappop(self._deadlines)[1]
            pending = self._pending.get(key)
            if pending is not None:
                self._end(key)
                seconds = pending.timeout_ns / 1e9
                text = f"no reply on topic {pending.topic.name!r} within {seconds:g} s"
                ended.append(Ended(pending.asker, pending.corr_id, "timeout", text))
        self._forget_ended()
        return ended

    def next_ns(self) -> int | None:
        """Return when the next request times out; None when none is open."""
        return self._deadlines[0][0] if self._deadlines else None

    def drop(self, peer: Peer) -> list[Ended]:
        """Forget ``peer``, which is gone, with its subscriptions and its own requests. Returns the ends of the requests
        that it was to answer."""
        for topic in tuple(self._subscribed.get(peer, ())):
            self.unsubscribe(peer, topic)
        ended: list[Ended] = []
        for key in tuple(self._asked.get(peer, {}).values()):
            self._end(key)
        for key in tuple(self._owing.get(peer, ())):
            pending = self._pending[key]
            self._end(key)
            text = f"the subscriber that was to answer on topic {pending.topic.name!r} has gone"
            ended.append(Ended(pending.asker, pending.corr_id, "peer-gone", text))
        return ended

    def packed(self, key: Callable[[Peer], Key]) -> PackedRouter:
        """Return the whole state; ``key`` names a peer."""
        return PackedRouter(
            topics=[(topic.name, [key(peer) for peer in peers]) for topic, peers in self._topics.items()],
            requests=[
                PackedRequest(
                    key=name,
                    asker=key(each.asker),
                    corr_id=each.corr_id,
                    responder=key(each.responder),
                    topic=each.topic.name,
                    timeout_ns=each.timeout_ns,
                )
                for name, each in self._pending.items()
            ],
            deadlines=list(self._deadlines),
            serial=self._serial,
            turns_of=[(topic.flow, topic.name, turn) for topic, turn in self._turn.items()],
            late_replies=self.late_replies,
        )

    def unpack(self, packed: PackedRouter, peer: Callable[[Key], Peer]) -> None:
        """Restore the state from ``packed``; ``peer`` finds the peer that a key names."""
        for name, keys in packed.topics:
            for key in keys:
                self.subscribe(peer(key), topic_of(key[0], name))
        for each in packed.requests:
            asker, responder = peer(each.asker), peer(each.responder)
            topic = topic_of(each.asker[0], each.topic)
            self._add(each.key, _Pending(asker, each.corr_id, responder, topic, each.timeout_ns))
        self._deadlines = list(packed.deadlines)
        heapq.heapify(self._deadlines)
        self._serial, self.late_replies = packed.serial, packed.late_replies
        self._turn = {Topic(flow, name): turn for flow, name, turn in packed.turns_of}

    def _next_responder(self, asker: Peer, topic: Topic) -> Peer | None:
        peers = [peer for peer in self._topics.get(topic, ()) if peer != asker]
        if not peers:
            return None
        turn = self._turn.get(topic, 0)
        self._turn[topic] = turn + 1
        return peers[turn % len(peers)]

    def _add(self, key: str, pending: _Pending) -> None:
        self._pending[key] = pending
        self._asked.setdefault(pending.asker, {})[pending.corr_id] = key
        self._owing.setdefault(pending.responder, {})[key] = None

    def _end(self, key: str) -> None:
        pending = self._pending.pop(key)
        mine = self._asked[pending.asker]
        del mine[pending.corr_id]
        if not mine:
            del self._asked[pending.asker]
        owing = self._owing[pending.responder]
        del owing[key]
        if not owing:
            del self._owing[pending.responder]
        self._forget_ended()

    def _forget_ended(self) -> None:
        """Remove deadlines of ended requests: those at the top of the heap, and all of them once they are most of the
        heap."""
        while self._deadlines and self._deadlines[0][1] not in self._pending:
            heapq.heappop(self._deadlines)
        if len(self._deadlines) > 2 * len(self._pending) + FEW:
            self._deadlines = [each for each in self._deadlines if each[1] in self._pending]
            heapq.heapify(self._deadlines)
