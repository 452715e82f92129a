"""The event bus: publications, requests, and the ticks of timers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chronetix.protocol.messages.base import Count, Priority, WireMessage


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Head of every bus message. ``deadline_ns`` is absolute Unix time, 0 for none; ``priority`` 0 … 7, 4 normal.

    Bus messages carry it as the map that arrived, so that unknown keys travel on; this struct is its checked reading.
    """

    topic: str
    src: str = ""
    dst: str = ""
    corr_id: str = ""
    deadline_ns: Count = 0
    priority: Priority = 4
    content_type: str = "application/json"
    schema_ver: str = "v1"
    headers: dict[str, str] = {}
    trace: str = ""
    ext: dict[str, Any] = {}


class Publish(WireMessage, tag="publish", frozen=True):
    """Worker to daemon: deliver this to all subscribers of the envelope's topic."""

    envelope: dict[str, Any]
    payload: bytes


class Deliver(WireMessage, tag="deliver", frozen=True):
    """Daemon to subscriber: a published message. With ``envelope.corr_id`` it is a request that expects a
    :class:`Reply`.
    """

    envelope: dict[str, Any]
    payload: bytes


class Subscribe(WireMessage, tag="subscribe", frozen=True):
    """Worker to daemon: subscribe to ``topic`` (exact match)."""

    topic: str


class Unsubscribe(WireMessage, tag="unsubscribe", frozen=True):
    """Worker to daemon: end the subscription to ``topic``."""

    topic: str


class MessagesDropped(WireMessage, tag="messages-dropped", frozen=True):
    """Worker to daemon: ``count`` messages of ``topic`` that were delivered to it are lost, because too many bytes
    waited for its plugin."""

    topic: str
    count: Count


class Request(WireMessage, tag="request", frozen=True):
    """Worker to daemon: one subscriber of the topic is to reply. ``envelope.corr_id`` is chosen by the requester.

    Ends exactly once: :class:`Reply` or :class:`RequestFailure`.
    """

    envelope: dict[str, Any]
    payload: bytes
    timeout_ns: Count = 5_000_000_000


class Reply(WireMessage, tag="reply", frozen=True):
    """Subscriber to daemon: the reply to a delivered request. Daemon to requester: the same reply, forwarded."""

    corr_id: str
    payload: bytes
    content_type: str = "application/json"


class RequestFailure(WireMessage, tag="request-failed", frozen=True):
    """Daemon to requester: the request ended without a reply, for one of the three reasons."""

    corr_id: str
    reason: Literal["timeout", "no-subscriber", "peer-gone"]
    message: str


class Tick(WireMessage, tag="tick", frozen=True):
    """Daemon to worker: timer ``id`` was due at ``due_ns``; ``missed`` ticks before it were not delivered."""

    id: str
    """Name of the timer."""
    sequence: Count
    """Number of the tick, from 1."""
    due_ns: Count
    """When the tick was due, on the clock of ``time.monotonic_ns()``."""
    missed: Count = 0
    """How many ticks before this one were not delivered, because the node was busy."""
