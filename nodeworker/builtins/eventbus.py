"""The bridges between the planes: bus messages become frames, frames become bus messages.

``builtin://chronetix/system/eventbus-source`` sends the payload of every message of its subscriptions to its data
routes; ``builtin://chronetix/system/eventbus-sink`` publishes every frame on its publications. Payloads pass
unchanged where both sides have the same content type, else they are decoded and encoded anew. ``params.topics`` adds
topics to the flow's.
"""

from __future__ import annotations

from typing import Any

from chronetix.nodeworker.api import codec
from chronetix.nodeworker.api.context import Context
from chronetix.nodeworker.api.message import Message
from chronetix.shm import Frame


class EventBusSource:
    """Messages to frames. A slow consumer makes messages wait in this node's mailbox; when that is
    full they are dropped, and the log says how many."""

    def __init__(self, ctx: Context) -> None:
        if not ctx.outputs:
            raise ValueError(f"node {ctx.node!r} turns messages into frames: give it a data route")
        self._types = {codec.canonical(port.content_type) for port in ctx.outputs}

    def on_start(self, ctx: Context) -> None:
        """Subscribe to what params add."""
        for topic in ctx.params.get("topics", ()):
            ctx.subscribe(topic)

    def on_message(self, message: Message) -> Any:
        """The payload, for every output."""
        same = self._types == {codec.canonical(message.content_type)}
        return codec.Encoded(message.payload) if same or codec.OCTETS in self._types else message.value()


class EventBusSink:
    """Frames to messages, with the content type of the route that the frame came by."""

    def __init__(self, ctx: Context) -> None:
        self._topics = (*ctx.publications, *ctx.params.get("topics", ()))
        if not self._topics:
            raise ValueError(f"node {ctx.node!r} publishes frames: give it a control route, or topics in its params")
        self._types = {port.route: codec.canonical(port.content_type) for port in ctx.inputs}

    def on_frame(self, frame: Frame, ctx: Context) -> None:
        """Publish its bytes."""
        payload = codec.Encoded(bytes(frame))
        for topic in self._topics:
            ctx.publish(topic, payload, content_type=self._types[frame.route])
