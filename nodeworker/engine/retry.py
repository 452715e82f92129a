"""``qos.retry``: a frame that made the plugin raise is tried again, then set aside; the node goes on.

Rules: only ``on_frame`` is retried, at once, and only for what it raised itself, be it SystemExit, KeyboardInterrupt or
a CancelledError: a closed route, a peer's garbage and an interrupt pass through, as ever. What a failed attempt has
sent already stays sent. A frame that failed for good goes to the flow's dead-letter topic as a bus message that says
why, or is dropped; either way the daemon is told and counts. Without ``retry`` nothing of this is in the frame's way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from chronetix.nodeworker.api.context import Host, Outcome
from chronetix.nodeworker.api.errors import Interrupted, said
from chronetix.nodeworker.engine import children
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.messages import Configure
from chronetix.shm import Frame, PeerFault, RouteClosed, Step

OnFrame = Callable[[Frame, Any], Any]

NOT_THE_FRAMES_FAULT = (RouteClosed, PeerFault, MemoryError, Interrupted)
"""What another attempt would not change, or is not about the frame. Ctrl-C and SIGTERM are an Interrupted; a
KeyboardInterrupt is one that the plugin has raised itself."""

MAX_LETTER = 1 << 20
"""Bytes of a dead letter's payload; of a larger frame only the head is sent: the bus is not made for bulk."""

HEADERS: Final = {
    "node": "Name of the node whose plugin raised.",
    "route": "Route that the frame came by.",
    "seq": "Sequence number of the frame on its route.",
    "attempts": "How often the frame was given to the plugin.",
    "error": "Class of the exception of the last attempt.",
    "message": "Text of that exception, at most 1024 characters.",
    "bytes": "Size of the frame in bytes.",
    "payload": "`left out` for a frame of more than 1 MiB, whose letter has an empty payload. Absent otherwise.",
}
"""The headers of a dead letter; their values are text."""

MESSAGE_LIMIT = 1024
"""Characters of an exception's text that travel."""


def retrying(on_frame: OnFrame, config: Configure, host: Host, step: Step) -> OnFrame:
    """``on_frame`` as ``config.qos`` wants it: itself when nothing is to be retried."""
    retries = config.qos.get("retry") or 0
    if not retries:
        return on_frame
    letters, owner = DeadLetters(config, host), children.Owner()

    def attempt(frame: Frame, ctx: Any) -> Any:
        try:
            return on_frame(frame, ctx)
        except NOT_THE_FRAMES_FAULT:
            raise
        except BaseException as reason:
            if not owner.is_here:
                raise
            failed: BaseException = reason
        for tried in range(1, retries + 1):
            if step.interrupt is not None:
                raise step.interrupt
            try:
                result = on_frame(frame, ctx)
            except NOT_THE_FRAMES_FAULT:
                raise
            except BaseException as reason:
                if not owner.is_here:
                    raise
                failed = reason
            else:
                host.frame_failed(frame.route, frame.seq, tried + 1, type(failed).__name__, _told(failed), "passed")
                return result
        letters.take(frame, retries + 1, failed)
        return None

    return attempt


def retrying_awaited(on_frame: OnFrame, config: Configure, host: Host, step: Step) -> OnFrame:
    """As :func:`retrying` for a plugin whose ``on_frame`` may return something to be awaited."""
    retries = config.qos.get("retry") or 0
    if not retries:
        return on_frame
    letters, owner = DeadLetters(config, host), children.Owner()
    import asyncio  # what few plugins need, no worker should carry

    async def attempt(frame: Frame, ctx: Any) -> Any:
        failed: BaseException | None = None
        for tried in range(retries + 1):
            if failed is not None and step.interrupt is not None:
                raise step.interrupt
            task = asyncio.current_task()
            assert task is not None
            try:
                result = on_frame(frame, ctx)
                if hasattr(result, "__await__"):
                    result = await result
                if task.cancelling():
                    await asyncio.sleep(0)  # cancelled by itself: that is of this frame
            except NOT_THE_FRAMES_FAULT:
                raise
            except BaseException as reason:
                if not owner.is_here or (isinstance(reason, asyncio.CancelledError) and step.cancelled):
                    raise
                while task.cancelling():
                    task.uncancel()
                failed = reason
                continue
            if failed is not None:
                host.frame_failed(frame.route, frame.seq, tried + 1, type(failed).__name__, _told(failed), "passed")
            return result
        assert failed is not None
        letters.take(frame, retries + 1, failed)
        return None

    return attempt


class DeadLetters:
    """Where a node's frames go that failed for good."""

    def __init__(self, config: Configure, host: Host) -> None:
        self._node = config.node
        self._topic = str(config.qos.get("dead_letter") or "")
        self._types: Mapping[str, str] = {port.route: port.content_type for port in config.inputs}
        self._host = host

    def take(self, frame: Frame, attempts: int, reason: BaseException) -> None:
        """Publish it with its story, or drop it, and tell the daemon which."""
        error, message = type(reason).__name__, _told(reason)
        outcome: Outcome = "dropped"
        if self._topic:
            whole = len(frame) <= MAX_LETTER
            headers = {
                "node": self._node,
                "route": frame.route,
                "seq": str(frame.seq),
                "attempts": str(attempts),
                "error": error,
                "message": message,
                "bytes": str(len(frame)),
                **({} if whole else {"payload": "left out"}),
            }
            head = {
                "topic": self._topic,
                "src": self._node,
                "content_type": self._types.get(frame.route, "application/octet-stream"),
                "headers": headers,
            }
            self._host.publish(head, bytes(memoryview(frame)) if whole else b"")
            outcome = "dead-letter"
        self._host.frame_failed(frame.route, frame.seq, attempts, error, message, outcome)


def _told(reason: BaseException) -> str:
    text = reason.message if isinstance(reason, ChronetixError) else said(reason)
    return text[:MESSAGE_LIMIT]
