"""Calls of verbs by clients, and the daemon's answers."""

from __future__ import annotations

from typing import Any

from chronetix.protocol.messages.base import Count, WireMessage


class Call(WireMessage, tag="call", frozen=True):
    """Client to daemon: call ``verb``. The call ends with exactly one :class:`Result` or :class:`Failure` of the same
    id.

    ``descriptors``: how many are sent with the call; only for verbs that take some.
    """

    id: Count
    verb: str
    args: dict[str, Any] = {}
    descriptors: Count = 0


class Item(WireMessage, tag="item", frozen=True):
    """Daemon to client: one item of a streaming answer (logs, events), before the call's end. ``descriptors``: how many
    are sent with the item."""

    id: Count
    value: Any
    descriptors: Count = 0


class Result(WireMessage, tag="result", frozen=True):
    """Daemon to client: the call's end, with its value."""

    id: Count
    value: Any = None


class Cancel(WireMessage, tag="cancel", frozen=True):
    """Client to daemon: cancel the call, which still ends with a Result or Failure."""

    id: Count
