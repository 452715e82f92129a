"""What this package raises beside the catalogue of ``protocol.errors``. A leaf: imports nothing of ours."""

from __future__ import annotations


class RequestFailed(Exception):
    """A request on the event bus ended without a reply.

    ``reason`` is ``timeout``, ``no-subscriber`` or ``peer-gone``; ``topic`` what was asked.
    """

    def __init__(self, topic: str, reason: str, message: str) -> None:
        super().__init__(topic, reason, message)
        self.topic = topic
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"request on {self.topic!r} got no reply ({self.reason}): {self.message}"


def late(topic: str, seconds: float) -> RequestFailed:
    """Nobody has answered in time."""
    return RequestFailed(topic, "timeout", f"nobody answered within {seconds:g} s")


class Interrupted(BaseException):
    """The worker was told to stop at once while it waited. No plugin should catch it, hence no Exception."""


class DaemonGone(Interrupted):
    """The control connection ended: nobody would notice this worker any more."""
