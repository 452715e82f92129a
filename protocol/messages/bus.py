"""The event bus: publications, requests, and the ticks of timers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chronetix.protocol.messages.base import Count, Message, Priority


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


class Publish(Message, tag="publish", frozen=True):
    """Worker or client to daemon: to everyone who subscribed to the envelope's topic."""

    envelope: dict[str, Any]
    payload: bytes


class Deliver(Message, tag="deliver", frozen=True):
    """Daemon to subscriber: a published message. With ``envelope.corr_id`` it is a request that wants a
    :class:`Reply`.
    """

    envelope: dict[str, Any]
    payload: bytes


class Subscribe(Message, tag="subscribe", frozen=True):
    """Worker to daemon: wants ``topic`` (exact) from now on."""

    topic: str


class Unsubscribe(Message, tag="unsubscribe", frozen=True):
    """Worker to daemon: no longer wants ``topic``."""

    topic: str


class Request(Message, tag="request", frozen=True):
    """Worker to daemon: one subscriber of the topic is to answer. ``envelope.corr_id`` is the asker's own.

    Ends exactly once: :class:`Reply` or :class:`RequestFailed`.
    """

    envelope: dict[str, Any]
    payload: bytes
    timeout_ns: Count = 5_000_000_000


class Reply(Message, tag="reply", frozen=True):
    """Answer to a delivered request, and its forwarding to the asker."""

    corr_id: str
    payload: bytes
    content_type: str = "application/json"


class RequestFailed(Message, tag="request-failed", frozen=True):
    """Daemon to asker: the request ended without a reply; ``reason`` is one of the three ends."""

    corr_id: str
    reason: Literal["timeout", "no-subscriber", "peer-gone"]
    message: str


class Tick(Message, tag="tick", frozen=True):
    """Daemon to worker: timer ``id`` was due at ``due_ns``; ``missed`` ticks before it were not delivered."""

    id: str
    sequence: Count
    due_ns: Count
    missed: Count = 0
