"""First on every connection, both ways: who comes, whether it is accepted, or why not."""

from __future__ import annotations

from typing import Any, Literal

from chronetix.protocol.messages.base import MAX_FRAME, Count, Message

PROTOCOL_VERSIONS = (1,)
"""Versions of this protocol that this code speaks, best first."""

HANDOVER = "handover"
"""The feature in the hello of a worker that may stand by, and leave its place to another one."""

REATTACH = "reattach"
"""The feature in the hello of a worker that comes back: a :class:`Reattach` is next."""


class Hello(Message, tag="hello", frozen=True):
    """First message of whoever connects: which versions it speaks and as what it comes."""

    protocol: list[Count]
    role: Literal["client", "worker"]
    software: str = ""
    features: list[str] = []
    pid: Count = 0


class Welcome(Message, tag="welcome", frozen=True):
    """The daemon's answer to a hello it accepts; a refusal is a :class:`Failure` and the end."""

    protocol: Count
    daemon: str
    features: list[str] = []
    max_frame: Count = MAX_FRAME


class Failure(Message, tag="error", frozen=True):
    """Something was refused or went wrong; ``code`` and ``name`` are of the error catalogue.

    With ``id`` it ends that call; without, it concerns the connection.
    """

    code: Count
    name: str
    message: str
    hint: str = ""
    id: Count | None = None
    details: dict[str, Any] = {}
