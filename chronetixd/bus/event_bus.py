"""Input and output of the event bus: messages of workers and clients go through the router, ticks come from the timers.

Each subscriber has a bounded queue. While the queue of a subscriber that does not read is full, messages and ticks for
it are dropped and counted, and no other subscriber is affected. The first drop of each subscriber is an event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import msgspec

from chronetix.protocol.errors import error
from chronetix.protocol.messages import (
    Deliver,
    Envelope,
    MessagesDropped,
    Publish,
    Reply,
    Request,
    RequestFailure,
    Subscribe,
    Tick,
    TimerSpec,
    Unsubscribe,
    WireMessage,
)
from chronetixd.core.deliveries import OTHERS, Deliveries
from chronetixd.core.packed import Key, PackedRouter, PackedTimers
from chronetixd.core.router import SHARED, Answer, Delivery, DuplicateRequest, Ended, Router, topic_of
from chronetixd.core.timers import Timers
from chronetixd.loop.alarm import Alarm
from chronetixd.packing import Packed
from chronetixd.records.events import Events

MAX_BACKLOG = 8 * 1024 * 1024
"""How many bytes may wait for one subscriber before messages for it are dropped."""

MAX_OPEN = 4096
"""How many topics one worker may subscribe to by itself, and how many of its requests may be open: the daemon keeps
each of them."""

MAX_NAME = 1024
"""How many characters a topic, or the requester's id of a request, may have: the daemon keeps both."""

BusMessage = Publish | Subscribe | Unsubscribe | MessagesDropped | Request | Reply
"""The messages of a worker that the bus handles."""


class PackedBus(Packed, frozen=True):
    """The event bus. ``slow`` are workers that do not read their messages."""

    router: PackedRouter
    timers: PackedTimers
    dropped: int
    slow: list[tuple[str, str]]


class Subscriber(Hashable, Protocol):
    """A subscriber of the event bus; hashable by identity."""

    flow: str
    node: str
    deliveries: Deliveries

    @property
    def backlog(self) -> int:
        """How many bytes wait to be sent to the subscriber."""

    def send(self, message: WireMessage) -> None:
        """Queue ``message`` for the subscriber."""


class Bus:
    """The daemon's one event bus. ``dropped`` counts messages and ticks that were dropped because a queue was full."""

    def __init__(self, loop: asyncio.AbstractEventLoop, events: Events, max_backlog: int = MAX_BACKLOG) -> None:
        self.router = Router()
        self.timers = Timers()
        self.dropped = 0
        self._events = events
        self._max_backlog = max_backlog
        self._slow: set[Subscriber] = set()
        self._timeouts = Alarm(loop, self.router.next_ns, self._expire)
        self._ticks = Alarm(loop, self.timers.next_ns, self._tick)

    def subscribe(self, peer: Subscriber, topics: Sequence[str]) -> None:
        """Deliver to ``peer`` what is published on ``topics`` from now on."""
        for topic in topics:
            self.router.subscribe(peer, topic_of(peer.flow, topic))

    def hand_over(self, peer: Subscriber, successor: Subscriber | None, topics: Sequence[str]) -> None:
        """Deliver nothing more to ``peer``; what is published on ``topics`` from now on goes to its successor. Open
        requests that ``peer`` has made or is to answer are not affected."""
        for topic in self.router.topics(peer):
            self.router.unsubscribe(peer, topic)
        self.stop_timers(peer)
        if successor is not None:
            self.subscribe(successor, topics)

    def start_timers(self, peer: Subscriber, timers: Sequence[TimerSpec]) -> None:
        """Send ``peer`` ticks from now on."""
        now = time.monotonic_ns()
        for timer in timers:
            self.timers.add(peer, timer.id, timer.interval_ns, now)
        self._ticks.rearm()

    def stop_timers(self, peer: Subscriber) -> None:
        """Send ``peer`` no more ticks."""
        self.timers.drop(peer)
        self._ticks.rearm()

    def handle(self, peer: Subscriber, message: BusMessage) -> None:
        """Handle a message of ``peer``. Raises ChronetixError for a malformed envelope, a request id that is used
        twice, or too many subscriptions or requests."""
        match message:
            case Publish():
                self.publish(peer.flow, message.envelope, message.payload, peer.node)
            case Subscribe(topic=topic):
                _bounded("subscribe", "topic", topic)
                if self.router.subscriptions_of(peer) >= MAX_OPEN:
                    raise error("quota-exceeded", what="another subscription of this node", limit=MAX_OPEN)
                self.router.subscribe(peer, topic_of(peer.flow, topic))
            case Unsubscribe(topic=topic):
                self.router.unsubscribe(peer, topic_of(peer.flow, topic))
            case MessagesDropped(topic=topic, count=count):
                self._lost_in_worker(peer, topic, count)
            case Request():
                self._request(peer, message)
            case Reply():
                answer = self.router.reply(peer, message.corr_id, message.payload, message.content_type)
                if answer is not None:
                    self._send(answer)
                self._timeouts.rearm()

    def publish(self, flow: str, envelope: dict[str, Any], payload: bytes, source: str = "") -> int:
        """Deliver to the subscribers of the topic in ``flow``, and return their number. With an empty ``flow`` the
        topic must be shared. Raises ChronetixError for a malformed envelope, or a topic that is not shared."""
        head = _read(envelope, "publish")
        if not flow and not head.topic.startswith(SHARED):
            raise error("topic-of-no-flow", topic=head.topic)
        if source and not head.src:
            envelope = {**envelope, "src": source}
        deliveries = self.router.publish(topic_of(flow, head.topic), envelope, payload)
        for delivery in deliveries:
            self._send(delivery)
        return len(deliveries)

    def drop(self, peer: Subscriber) -> None:
        """Remove ``peer``, which has ended."""
        self._slow.discard(peer)
        self.stop_timers(peer)
        for ended in self.router.drop(peer):
            self._send(ended)
        self._timeouts.rearm()

    def packed(self) -> PackedBus:
        """Return all of the state. All subscribers are workers."""

        def key(peer: Any) -> Key:
            return peer.flow, peer.node

        return PackedBus(
            router=self.router.packed(key),
            timers=self.timers.packed(key),
            dropped=self.dropped,
            slow=[key(peer) for peer in self._slow],
        )

    def unpack(self, packed: PackedBus, peer: Callable[[Key], Subscriber]) -> None:
        """Take over the state of ``packed``. ``peer`` finds a worker by flow and node, or raises KeyError."""
        self.router.unpack(packed.router, peer)
        self.timers.unpack(packed.timers, peer)
        self.dropped = packed.dropped
        self._slow = {peer(key) for key in packed.slow}
        self._timeouts.rearm()
        self._ticks.rearm()

    def close(self) -> None:
        """Disarm all timers."""
        self._timeouts.cancel()
        self._ticks.cancel()

    def _request(self, peer: Subscriber, message: Request) -> None:
        head = _read(message.envelope, "request")
        if not head.corr_id:
            raise error("malformed-message", type="request", reason="its envelope has no corr_id")
        _bounded("request", "topic", head.topic)
        _bounded("request", "corr_id", head.corr_id)
        if self.router.requests_of(peer) >= MAX_OPEN:
            raise error("quota-exceeded", what="another open request of this node", limit=MAX_OPEN)
        envelope = message.envelope if head.src else {**message.envelope, "src": peer.node}
        now = time.monotonic_ns()
        topic = topic_of(peer.flow, head.topic)
        try:
            sent = self.router.request(peer, topic, envelope, message.payload, max(0, message.timeout_ns), now)
        except DuplicateRequest as reason:
            raise error("malformed-message", type="request", reason=str(reason)) from None
        self._send(sent)
        self._timeouts.rearm()

    def _lost_in_worker(self, peer: Subscriber, topic: str, count: int) -> None:
        """Count messages as dropped that were counted as delivered when they were queued for ``peer``."""
        counted = peer.deliveries.by_topic.get(topic) or peer.deliveries.by_topic.get(OTHERS)
        if counted is None or not count:
            return
        counted.delivered = max(0, counted.delivered - count)
        counted.dropped += count
        self.dropped += count
        self._tell_slow(peer, "its plugin does not take its messages: its queue is full, and further ones are dropped")

    def _tell_slow(self, peer: Subscriber, text: str) -> None:
        if peer not in self._slow:
            self._slow.add(peer)
            self._events.emit("bus-dropping", flow=peer.flow, node=peer.node, message=text)

    def _expire(self) -> None:
        for ended in self.router.expire(time.monotonic_ns()):
            self._send(ended)

    def _tick(self) -> None:
        for due in self.timers.due(time.monotonic_ns()):
            peer: Any = due.owner
            tick = Tick(id=due.timer, sequence=due.sequence, due_ns=due.due_ns, missed=due.missed)
            if not self._queue(peer, tick):
                self.timers.withhold(due)

    def _send(self, what: Delivery | Answer | Ended) -> None:
        peer: Any = what.to
        match what:
            case Delivery(_, envelope, payload):
                count = peer.deliveries.of(envelope["topic"])
                if self._queue(peer, Deliver(envelope=envelope, payload=payload)):
                    count.delivered += 1
                else:
                    count.dropped += 1
            case Answer(_, corr_id, payload, _) if peer.backlog > self._max_backlog:
                self.dropped += 1
                text = f"the reply of {len(payload)} bytes was dropped: the requester has {peer.backlog} bytes to read"
                peer.send(RequestFailure(corr_id=corr_id, reason="timeout", message=text))
            case Answer(_, corr_id, payload, content_type):
                peer.send(Reply(corr_id=corr_id, payload=payload, content_type=content_type))
            case Ended(_, corr_id, reason, text):
                peer.send(RequestFailure(corr_id=corr_id, reason=reason, message=text))

    def _queue(self, peer: Subscriber, message: Deliver | Tick) -> bool:
        """Send ``message``, unless too many bytes wait already. Returns whether it was sent."""
        if peer.backlog <= self._max_backlog:
            peer.send(message)
            return True
        self.dropped += 1
        text = f"the node does not read its messages: {peer.backlog} bytes wait, further messages are dropped"
        self._tell_slow(peer, text)
        return False


def _bounded(kind: str, what: str, text: str) -> None:
    if len(text) > MAX_NAME:
        reason = f"its {what} has {len(text)} characters; at most {MAX_NAME} are kept"
        raise error("malformed-message", type=kind, reason=reason)


def _read(envelope: dict[str, Any], kind: str) -> Envelope:
    try:
        head = msgspec.convert(envelope, Envelope)
    except msgspec.ValidationError as reason:
        raise error("malformed-message", type=kind, reason=f"its envelope: {reason}") from None
    if not head.topic:
        raise error("malformed-message", type=kind, reason="its envelope has no topic")
    return head
