"""The event bus."""

from __future__ import annotations

from typing import Any

from chronetixd.control.verbs.base import Args, Context, Emit, Verb
from chronetixd.core.access import Right


class PublishArgs(Args, frozen=True):
    """A message for a topic."""

    topic: str
    payload: bytes
    content_type: str = "application/json"


async def _publish(context: Context, args: PublishArgs, _emit: Emit) -> Any:
    envelope = {"topic": args.topic, "content_type": args.content_type}
    return {"subscribers": context.bus.publish(envelope, args.payload)}


VERBS: dict[str, Verb] = {
    "publish": Verb(PublishArgs, Right.OPERATE, _publish),
}
