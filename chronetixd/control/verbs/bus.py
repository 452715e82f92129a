"""Verbs about the event bus: publish."""

from __future__ import annotations

from typing import Any

from chronetixd.control.verbs.base import Args, Emit, Verb, VerbContext
from chronetixd.core.access import Right


class PublishArgs(Args, frozen=True):
    """A message for a topic: of ``flow``, or with a leading slash one that all flows share."""

    topic: str
    payload: bytes
    flow: str = ""
    content_type: str = "application/json"


async def _publish(context: VerbContext, args: PublishArgs, _emit: Emit) -> Any:
    envelope = {"topic": args.topic, "content_type": args.content_type}
    if args.flow:
        context.flows.find(args.flow)
    return {"subscribers": context.bus.publish(args.flow, envelope, args.payload)}


VERBS: dict[str, Verb] = {
    "publish": Verb(PublishArgs, Right.OPERATE, _publish),
}
