"""What this package raises beside the catalogue of ``chronetix.protocol.errors``. A leaf: imports nothing of ours."""

from __future__ import annotations


class RequestFailed(Exception):
    """A request on the event bus ended without a reply.

    ``reason`` is ``timeout``, ``no-subscriber`` (nobody has subscribed to the topic) or ``peer-gone`` (the node that
    was to answer has ended).
    """

    def __init__(self, topic: str, reason: str, message: str) -> None:
        super().__init__(topic, reason, message)
        self.topic = topic
        """The topic that was asked."""
        self.reason = reason
        """Why there is no reply, as one word."""
        self.message = message
        """Why there is no reply, as a sentence."""

    def __str__(self) -> str:
        return f"request on {self.topic!r} got no reply ({self.reason}): {self.message}"


def late(topic: str, seconds: float) -> RequestFailed:
    """Nobody has answered in time."""
    return RequestFailed(topic, "timeout", f"nobody answered within {seconds:g} s")


def sendable(text: str) -> str:
    """``text`` as UTF-8 can hold it: names of files may have bytes in them that are no text."""
    return text.encode("utf-8", "backslashreplace").decode()


DONE = "a node that is done says so by ctx.finish()"


def said(reason: BaseException) -> str:
    """Its text, to be sent; an exception of a plugin may fail to tell. Those with which Python programs end early say
    what ends a node."""
    if isinstance(reason, SystemExit):
        return f"the plugin called sys.exit({shown(reason.code)}); {DONE}"
    try:
        text = sendable(str(reason))
    except Exception as defect:
        return f"(its text cannot be shown: str() raised {type(defect).__name__})"
    if not text and type(reason).__name__ == "CancelledError":  # without an import of asyncio, which few plugins need
        return f"the plugin let a cancellation out of its callback; {DONE}"
    return text


def named(reason: BaseException) -> str:
    """Its class and its text; the class alone where there is no text."""
    text = said(reason)
    return f"{type(reason).__name__}: {text}" if text else type(reason).__name__


def shown(value: object) -> str:
    """Its ``repr``, to be sent; that of a plugin's object may fail."""
    try:
        return sendable(repr(value))
    except Exception as defect:
        return f"(a {type(value).__name__} that cannot be shown: repr() raised {type(defect).__name__})"


class Interrupted(BaseException):
    """The worker was told to stop at once while it waited. No plugin should catch it, hence no Exception."""


class DaemonGone(Interrupted):
    """The control connection ended: nobody would notice this worker any more."""
