"""The bridges between the planes: bus messages become frames, frames become bus messages.

``builtin://chronetix/system/eventbus-source`` sends the payload of every message of its subscriptions to its data
routes; ``builtin://chronetix/system/eventbus-sink`` publishes every frame on its publications. Payloads pass
unchanged where both sides have the same content type, else they are decoded and encoded anew. ``params.topics`` adds
topics to the flow's.

Payloads that are not of their content type: a frame has a producer in the flow, so such a frame is a failure of the
sink, which ``qos.retry`` sets aside; messages may come from anybody, so the source tells of such a message in the log
and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from chronetix.nodeworker.api import codec
from chronetix.nodeworker.api.context import Context
from chronetix.nodeworker.api.message import Message
from chronetix.protocol.errors import ChronetixError, error
from chronetix.shm import Frame

PARAMS: Final[Mapping[str, str]] = {
    "topics": "List of further topics: those to which the source subscribes, those on which the sink publishes.",
}

UNFIT: Final = ("payload-undecodable", "payload-unencodable")
"""Errors of a payload that its content type, or that of a data route, has no place for."""


class EventBusSource:
    """Sends the payload of every message of its subscriptions to its data routes. If a consumer is slow, messages wait
    in this node's mailbox; when that is full they are dropped, and the log says how many."""

    def __init__(self, ctx: Context) -> None:
        if not ctx.outputs:
            raise ValueError(f"node {ctx.node!r} turns messages into frames: give it a data route")
        self._types = {codec.canonical(port.content_type) for port in ctx.outputs}
        self._topics = _added_topics(ctx)

    def on_start(self, ctx: Context) -> None:
        """Subscribe to what params add."""
        for topic in self._topics:
            ctx.subscribe(topic)

    def on_message(self, message: Message, ctx: Context) -> None:
        """The payload, for every output. A message whose payload is not of its content type is not sent, and told:
        anybody may publish."""
        same = self._types == {codec.canonical(message.content_type)}
        try:
            ctx.send(codec.Encoded(message.payload) if same or codec.OCTETS in self._types else message.value())
        except ChronetixError as reason:
            if reason.name not in UNFIT:
                raise
            fields = {"topic": message.topic, "src": message.src, "reason": reason.message}
            ctx.log.warning("a message was not sent, its payload is not of its content type", **fields)


class EventBusSink:
    """Publishes every frame on its control routes and publications, with the content type of the route that the frame
    came by."""

    def __init__(self, ctx: Context) -> None:
        self._topics = (*ctx.publications, *_added_topics(ctx))
        if not self._topics:
            raise ValueError(f"node {ctx.node!r} publishes frames: give it a control route, or topics in its params")
        self._types = {port.route: codec.canonical(port.content_type) for port in ctx.inputs}

    def on_frame(self, frame: Frame, ctx: Context) -> None:
        """Publish its bytes. Raises ChronetixError ``payload-undecodable`` for a frame that is not of its route's type,
        ``frame-not-sendable`` for one that is larger than a message."""
        payload, kind = codec.Encoded(bytes(frame)), self._types[frame.route]
        for topic in self._topics:
            try:
                ctx.publish(topic, payload, content_type=kind)
            except ChronetixError as failed:
                if failed.name not in UNFIT:
                    raise
                told = f"frame {frame.seq} of {frame.peer}, {failed.details['reason']}"
                raise error("payload-undecodable", route=frame.route, content_type=kind, reason=told) from None


def _added_topics(ctx: Context) -> tuple[str, ...]:
    """Raises ValueError for what is no list of topics."""
    topics = ctx.params.get("topics", ())
    if not isinstance(topics, list | tuple) or not all(isinstance(each, str) and each for each in topics):
        raise ValueError(f"params.topics of node {ctx.node!r} is a list of topics, not {topics!r}")
    return tuple(topics)
