"""The event bus inside one process: exact topics, every subscriber gets each message, a request is answered by the
first.

Messages wait in the members' mailboxes, so a publisher is never interrupted by a subscriber. A request lets the
others work (``work`` does one piece of it, or sleeps) until it ends: reply, time, or the answering node's end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from chronetix.nodeworker.api.context import Done, Level, Outcome
from chronetix.nodeworker.api.errors import RequestFailed
from chronetix.nodeworker.api.message import Message
from chronetix.nodeworker.engine.children import Owner
from chronetix.nodeworker.inprocess.member import Member
from chronetix.protocol.messages import Deliver, Reply

OnLog = Callable[[str, Level, str, dict[str, Any]], None]
"""Node, level, message, fields."""

OnPublish = Callable[[dict[str, Any], bytes], None]
"""Sees every published message: envelope, payload."""

NEVER_NS = 1 << 62


class LocalBus:
    """Who wants which topic. ``work(until_ns)`` is called while a request waits, ``on_mail`` when somebody has got
    something."""

    def __init__(self, on_publish: OnPublish, work: Callable[[int], None], on_mail: Callable[[], None]) -> None:
        self._members: dict[str, Member] = {}
        self._subscribers: dict[str, list[Member]] = {}
        self._replies: dict[str, Reply | None] = {}
        self._asked: dict[str, tuple[Member, str, Done]] = {}
        self._on_publish = on_publish
        self._on_mail = on_mail
        self._work = work

    def add(self, member: Member) -> None:
        """A member, with the subscriptions of its configuration."""
        self._members[member.name] = member
        for topic in member.node.config.subscriptions:
            self.subscribe(member.name, topic)

    def subscribe(self, node: str, topic: str) -> None:
        """``topic`` comes to ``node`` from now on. Idempotent."""
        members = self._subscribers.setdefault(topic, [])
        if self._members[node] not in members:
            members.append(self._members[node])

    def unsubscribe(self, node: str, topic: str) -> None:
        """``topic`` comes to ``node`` no more."""
        self._subscribers[topic] = [member for member in self._subscribers.get(topic, ()) if member.name != node]

    def publish(self, envelope: dict[str, Any], payload: bytes) -> int:
        """To every subscriber's mailbox; how many."""
        self._on_publish(envelope, payload)
        members = self._wanting(envelope["topic"])
        for member in members:
            member.mailbox.append(Deliver(envelope=envelope, payload=payload))
        self._on_mail()
        return len(members)

    def request(self, envelope: dict[str, Any], payload: bytes, timeout_ns: int) -> Message:
        """The reply of one subscriber. Raises RequestFailed."""
        topic, corr_id = envelope["topic"], envelope["corr_id"]
        members = self._wanting(topic)
        if not members:
            raise RequestFailed(topic, "no-subscriber", "no node of the flow has subscribed to it")
        self._replies[corr_id] = None
        try:
            members[0].mailbox.append(Deliver(envelope=envelope, payload=payload))
            reply = self._wait(members[0], topic, corr_id, timeout_ns)
        finally:
            del self._replies[corr_id]
        head = {"topic": topic, "corr_id": corr_id, "content_type": reply.content_type}
        return Message(head, reply.payload)

    def ask(self, envelope: dict[str, Any], payload: bytes, done: Done) -> Callable[[], None]:
        """As :meth:`request` without waiting; see :class:`chronetix.nodeworker.api.context.Host`."""
        topic, corr_id = envelope["topic"], envelope["corr_id"]
        members = self._wanting(topic)
        if members:
            self._asked[corr_id] = members[0], topic, done
            members[0].mailbox.append(Deliver(envelope=envelope, payload=payload))
        else:
            done(RequestFailed(topic, "no-subscriber", "no node of the flow has subscribed to it"))
        return lambda: self._forget(corr_id)

    def tell_of_ended(self) -> None:
        """Requests to nodes that have ended meanwhile end."""
        for member, topic, done in list(self._asked.values()):
            if member.finished:
                done(RequestFailed(topic, "peer-gone", f"node {member.name} has ended"))

    def _forget(self, corr_id: str) -> None:
        self._asked.pop(corr_id, None)

    def reply(self, corr_id: str, payload: bytes, content_type: str) -> None:
        """A subscriber answers. A reply that is not waited for any more is nobody's."""
        if corr_id in self._asked:
            _, topic, done = self._asked[corr_id]
            done(Message({"topic": topic, "corr_id": corr_id, "content_type": content_type}, payload))
        if corr_id in self._replies:
            self._replies[corr_id] = Reply(corr_id=corr_id, payload=payload, content_type=content_type)
        self._on_mail()

    def _wait(self, member: Member, topic: str, corr_id: str, timeout_ns: int) -> Reply:
        until = time.monotonic_ns() + (timeout_ns if timeout_ns >= 0 else NEVER_NS)
        while (reply := self._replies[corr_id]) is None:
            if member.finished:
                raise RequestFailed(topic, "peer-gone", f"node {member.name} has ended")
            if time.monotonic_ns() >= until:
                raise RequestFailed(topic, "timeout", f"node {member.name} did not answer in time")
            self._work(until)
        return reply

    def _wanting(self, topic: str) -> list[Member]:
        return [member for member in self._subscribers.get(topic, ()) if not member.finished]


class NodeHost:
    """The bus and the log as one node's context sees them; see :class:`chronetix.nodeworker.api.context.Host`."""

    grace_s = 0.0

    def __init__(self, bus: LocalBus, node: str, on_log: OnLog) -> None:
        self._bus = bus
        self._node = node
        self._on_log = on_log
        self._owner = Owner()

    def publish(self, envelope: dict[str, Any], payload: bytes) -> None:
        """To the bus."""
        self._owner.check()
        self._bus.publish(envelope, payload)

    def subscribe(self, topic: str) -> None:
        """For this node."""
        self._owner.check()
        self._bus.subscribe(self._node, topic)

    def unsubscribe(self, topic: str) -> None:
        """For this node."""
        self._owner.check()
        self._bus.unsubscribe(self._node, topic)

    def request(self, envelope: dict[str, Any], payload: bytes, timeout_ns: int) -> Message:
        """Through the bus."""
        self._owner.check()
        return self._bus.request(envelope, payload, timeout_ns)

    def ask(self, envelope: dict[str, Any], payload: bytes, _timeout_ns: int, done: Done) -> Callable[[], None]:
        """Through the bus; the asking context looks at its time itself."""
        self._owner.check()
        return self._bus.ask(envelope, payload, done)

    def log(self, level: Level, message: str, fields: dict[str, Any]) -> None:
        """To whoever runs the deployment."""
        self._owner.check()
        self._on_log(self._node, level, message, fields)

    def frame_failed(self, route: str, seq: int, attempts: int, error: str, message: str, outcome: Outcome) -> None:
        """A log record: nobody else is there to count."""
        fields = {"route": route, "seq": seq, "attempts": attempts, "error": f"{error}: {message}", "outcome": outcome}
        self._on_log(self._node, "warning", "a frame made the plugin raise", fields)
