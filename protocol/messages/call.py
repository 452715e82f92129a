"""What clients ask, and what they are answered: calls of verbs."""

from __future__ import annotations

from typing import Any

from chronetix.protocol.messages.base import Count, Message


class Call(Message, tag="call", frozen=True):
    """A client asks for ``verb``; ends with exactly one :class:`Result` or :class:`Failure` of the same id.

    ``descriptors``: how many travel with it; only for verbs that ask for some.
    """

    id: Count
    verb: str
    args: dict[str, Any] = {}
    descriptors: Count = 0


class Item(Message, tag="item", frozen=True):
    """One element of a streaming answer (logs, events), before the call's end. ``descriptors``: how many travel with
    it."""

    id: Count
    value: Any
    descriptors: Count = 0


class Result(Message, tag="result", frozen=True):
    """The call's end, with its value."""

    id: Count
    value: Any = None


class Cancel(Message, tag="cancel", frozen=True):
    """The client no longer wants the call; it still ends with a Result or Failure."""

    id: Count
