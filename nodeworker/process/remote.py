"""The host of a worker process: everything that is not bulk data goes to the daemon over the control link.

Any thread may call it. A request waits for its reply in the calling thread; the IO thread brings it. Every request ends
once: reply, refusal, its time, or the daemon's end.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

from chronetix.nodeworker.api.context import Done, Level, Outcome
from chronetix.nodeworker.api.errors import RequestFailed, late, sendable
from chronetix.nodeworker.api.message import Message
from chronetix.nodeworker.process.link import ControlLink
from chronetix.protocol.errors import LocalError
from chronetix.protocol.messages import (
    FrameFailed,
    Log,
    Publish,
    Reply,
    Request,
    RequestFailure,
    Subscribe,
    ToWorker,
    Unsubscribe,
)

LONGEST_NS = 10**18
"""The longest wait for a reply, for those who name none."""

MAX_LOG = 16 * 1024
"""Characters of a log record, and of its fields, that could not be sent as they were; the daemon keeps no more."""

GRACE_S = 2.0
"""How much longer than asked to wait for the daemon's own word that the time is up."""


class DaemonHost:
    """Speaks to the daemon for one node's context."""

    grace_s = GRACE_S

    def __init__(self, link: ControlLink[ToWorker]) -> None:
        self._link = link
        self._waiting: dict[str, Callable[[Reply | RequestFailure], Any]] = {}
        self._topics: dict[str, bool] = {}
        """What was last asked for at run time: to get this topic, or not any more."""

    def publish(self, envelope: dict[str, Any], payload: bytes) -> None:
        """See :class:`chronetix.nodeworker.api.context.Host`."""
        self._link.send(Publish(envelope=envelope, payload=payload))

    def subscribe(self, topic: str) -> None:
        """See :class:`chronetix.nodeworker.api.context.Host`."""
        self._topics[topic] = True
        self._link.send(Subscribe(topic=topic))

    def unsubscribe(self, topic: str) -> None:
        """See :class:`chronetix.nodeworker.api.context.Host`."""
        self._topics[topic] = False
        self._link.send(Unsubscribe(topic=topic))

    def subscriptions(self) -> list[Subscribe | Unsubscribe]:
        """What a daemon has to be told that knows only what the node's manifest says."""
        asked = self._topics.copy()
        return [Subscribe(topic=topic) if wanted else Unsubscribe(topic=topic) for topic, wanted in asked.items()]

    def log(self, level: Level, message: str, fields: dict[str, Any]) -> None:
        """See :class:`chronetix.nodeworker.api.context.Host`."""
        at = time.time_ns()
        try:
            self._link.send(Log(level=level, message=message, unix_ns=at, fields=fields))
        except LocalError:  # what no message can carry is shown as far as it can be: a log call must not raise
            shown = {"fields": sendable(repr(fields))[:MAX_LOG]} if fields else {}
            self._link.send(Log(level=level, message=sendable(message)[:MAX_LOG], unix_ns=at, fields=shown))

    def frame_failed(self, route: str, seq: int, attempts: int, error: str, message: str, outcome: Outcome) -> None:
        """See :class:`chronetix.nodeworker.api.context.Host`."""
        told = FrameFailed(route=route, seq=seq, attempts=attempts, error=error, message=message, outcome=outcome)
        self._link.send(told)

    def reply(self, corr_id: str, payload: bytes, content_type: str) -> None:
        """Answer a request that was delivered here."""
        self._link.send(Reply(corr_id=corr_id, payload=payload, content_type=content_type))

    def request(self, envelope: dict[str, Any], payload: bytes, timeout_ns: int) -> Message:
        """See :class:`chronetix.nodeworker.api.context.Host`."""
        answer: queue.SimpleQueue[Message | RequestFailed] = queue.SimpleQueue()
        forget = self.ask(envelope, payload, timeout_ns, answer.put)
        seconds = timeout_ns / 1e9 if 0 <= timeout_ns < LONGEST_NS else LONGEST_NS / 1e9
        try:
            end = answer.get(timeout=seconds + GRACE_S)
        except queue.Empty:
            raise late(str(envelope["topic"]), seconds) from None
        finally:
            forget()
        if isinstance(end, RequestFailed):
            raise end
        return end

    def ask(self, envelope: dict[str, Any], payload: bytes, timeout_ns: int, done: Done) -> Callable[[], None]:
        """See :class:`chronetix.nodeworker.api.context.Host`. ``done`` is called by the IO thread."""
        corr_id, topic = str(envelope["corr_id"]), str(envelope["topic"])

        def resolve(end: Reply | RequestFailure) -> None:
            if isinstance(end, RequestFailure):
                done(RequestFailed(topic, end.reason, end.message))
            else:
                head = {"topic": topic, "corr_id": corr_id, "content_type": end.content_type}
                done(Message(head, end.payload))

        def forget() -> None:
            self._waiting.pop(corr_id, None)

        self._waiting[corr_id] = resolve
        try:
            limit_ns = timeout_ns if timeout_ns >= 0 else 2**62
            self._link.send(Request(envelope=envelope, payload=payload, timeout_ns=limit_ns))
        except BaseException:
            forget()
            raise
        return forget

    def resolve(self, end: Reply | RequestFailure) -> None:
        """What the daemon said about a request. One that is not waited for any more is late: it is nobody's."""
        waiting = self._waiting.get(end.corr_id)
        if waiting is not None:
            waiting(end)

    def abandon(self) -> None:
        """The daemon is gone: end every request that waits."""
        for corr_id, waiting in list(self._waiting.items()):
            waiting(RequestFailure(corr_id=corr_id, reason="peer-gone", message="the daemon is gone"))
