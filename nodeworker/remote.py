"""The host of a worker process: everything that is not bulk data goes to the daemon over the control link.

Any thread may call it. A request waits for its reply in the calling thread; the IO thread brings it. Every request ends
once: reply, refusal, its time, or the daemon's end.
"""

from __future__ import annotations

import queue
import time
from typing import Any

from nodeworker.context import Level, Outcome
from nodeworker.errors import RequestFailed
from nodeworker.link import Link
from nodeworker.message import Message
from protocol.messages import FrameFailed, Log, Publish, Reply, Request, Subscribe, ToWorker, Unsubscribe
from protocol.messages import RequestFailed as Refusal

GRACE_S = 2.0
"""How much longer than asked to wait for the daemon's own word that the time is up."""


class DaemonHost:
    """Speaks to the daemon for one node's context."""

    def __init__(self, link: Link[ToWorker]) -> None:
        self._link = link
        self._waiting: dict[str, queue.SimpleQueue[Reply | Refusal]] = {}

    def publish(self, envelope: dict[str, Any], payload: bytes) -> None:
        """See :class:`nodeworker.context.Host`."""
        self._link.send(Publish(envelope=envelope, payload=payload))

    def subscribe(self, topic: str) -> None:
        """See :class:`nodeworker.context.Host`."""
        self._link.send(Subscribe(topic=topic))

    def unsubscribe(self, topic: str) -> None:
        """See :class:`nodeworker.context.Host`."""
        self._link.send(Unsubscribe(topic=topic))

    def log(self, level: Level, message: str, fields: dict[str, Any]) -> None:
        """See :class:`nodeworker.context.Host`."""
        self._link.send(Log(level=level, message=message, unix_ns=time.time_ns(), fields=fields))

    def frame_failed(self, route: str, seq: int, attempts: int, error: str, message: str, outcome: Outcome) -> None:
        """See :class:`nodeworker.context.Host`."""
        told = FrameFailed(route=route, seq=seq, attempts=attempts, error=error, message=message, outcome=outcome)
        self._link.send(told)

    def reply(self, corr_id: str, payload: bytes, content_type: str) -> None:
        """Answer a request that was delivered here."""
        self._link.send(Reply(corr_id=corr_id, payload=payload, content_type=content_type))

    def request(self, envelope: dict[str, Any], payload: bytes, timeout_ns: int) -> Message:
        """See :class:`nodeworker.context.Host`."""
        corr_id, topic = str(envelope["corr_id"]), str(envelope["topic"])
        timeout_ns = timeout_ns if timeout_ns >= 0 else 2**62
        answer = self._waiting[corr_id] = queue.SimpleQueue()
        try:
            self._link.send(Request(envelope=envelope, payload=payload, timeout_ns=timeout_ns))
            end = answer.get(timeout=min(timeout_ns / 1e9 + GRACE_S, 1e9))
        except queue.Empty:
            raise RequestFailed(topic, "timeout", f"nobody answered within {timeout_ns / 1e9:g} s") from None
        finally:
            del self._waiting[corr_id]
        if isinstance(end, Refusal):
            raise RequestFailed(topic, end.reason, end.message)
        head = {"topic": topic, "corr_id": corr_id, "content_type": end.content_type}
        return Message(head, end.payload)

    def resolve(self, end: Reply | Refusal) -> None:
        """What the daemon said about a request. One that is not waited for any more is late: it is nobody's."""
        waiting = self._waiting.get(end.corr_id)
        if waiting is not None:
            waiting.put(end)

    def abandon(self) -> None:
        """The daemon is gone: end every request that waits."""
        for corr_id, waiting in list(self._waiting.items()):
            waiting.put(Refusal(corr_id=corr_id, reason="peer-gone", message="the daemon is gone"))
