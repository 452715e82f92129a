"""A message of the event bus, as a plugin's ``on_message`` gets it. Its payload is bytes; ``value()`` decodes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chronetix.nodeworker.api import codec

Answer = Callable[[str, bytes, str], None]
"""Sends a reply: correlation id, payload, content type."""


class Message:
    """A message of the event bus, which ``on_message`` gets."""

    __slots__ = ("_answer", "_answered", "content_type", "corr_id", "envelope", "payload", "src", "topic")

    def __init__(self, envelope: Mapping[str, Any], payload: bytes, answer: Answer | None = None) -> None:
        self.envelope = envelope
        """The envelope as it arrived, unknown keys included."""
        self.payload = payload
        """The payload as bytes."""
        self.topic = str(envelope.get("topic", ""))
        """The topic on which the message was published."""
        self.src = str(envelope.get("src", ""))
        """The node that sent the message."""
        self.corr_id = str(envelope.get("corr_id", ""))
        """The correlation id of a request and of its reply, empty for other messages."""
        self.content_type = str(envelope.get("content_type", codec.JSON))
        """The content type of the payload."""
        self._answer = answer
        self._answered = False

    def __len__(self) -> int:
        return len(self.payload)

    def __bytes__(self) -> bytes:
        return self.payload

    def __repr__(self) -> str:
        return f"<Message {self.topic!r} from {self.src!r}, {len(self.payload)} bytes of {self.content_type}>"

    def value(self) -> Any:
        """Return the payload, decoded by its content type. Raises ChronetixError ``payload-undecodable``."""
        return codec.of(self.content_type).decode(self.payload, self.topic)

    @property
    def wants_reply(self) -> bool:
        """Whether this is a request to which :meth:`reply` was not called yet."""
        return self._answer is not None and bool(self.corr_id) and not self._answered

    def reply(self, data: Any, content_type: str = "") -> None:
        """Answer the request, once. ``data`` is encoded by ``content_type``, by default the request's own.

        Raises ValueError if the message is no request, or was answered already; ChronetixError
        ``payload-unencodable`` for a value that the content type cannot carry.
        """
        if self._answered:
            raise ValueError(f"the request on {self.topic!r} was answered already: a request has one reply")
        if self._answer is None or not self.corr_id:
            raise ValueError(f"the message on {self.topic!r} is no request: it was published, nobody waits for a reply")
        kind = content_type or self.content_type
        payload = codec.of(kind).encode(data, self.topic)
        self._answered = True
        self._answer(self.corr_id, payload, codec.canonical(kind))
