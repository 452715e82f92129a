"""What every verb has: its arguments, its context, and the client that it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from chronetixd.bus.event_bus import Bus
from chronetixd.control.views import Ask
from chronetixd.core.access import Right
from chronetixd.flows.apply import Rollouts
from chronetixd.flows.registry import Flows
from chronetixd.loop.aside import Aside
from chronetixd.records.audit import Audit
from chronetixd.records.events import Events
from chronetixd.records.logs import Logs
from chronetixd.store.journal import Journal
from chronetixd.workers.pool import WorkerPool


class Emit(Protocol):
    """Sends the items of a streaming answer."""

    def __call__(self, value: Any) -> bool:
        """Send one; False when the client's queue is full and the item was dropped."""

    def give(self, value: Any, descriptors: Sequence[int]) -> None:
        """Send one with descriptors, which are closed once they have gone; never dropped."""

    descriptors: list[int]
    """What came with the call; what is left in there is closed at its end."""

    pid: int
    """The client's process, as the kernel says."""

    goes_on: dict[str, Any]
    """What the call, should it be cut off, can be asked with again to go on where it was."""

    async def room(self) -> None:
        """Wait until the client has read most of what was sent."""


@dataclass(frozen=True, slots=True)
class Context:
    """What verbs work on."""

    flows: Flows
    rollouts: Rollouts
    bus: Bus
    events: Events
    logs: Logs
    audit: Audit
    spares: WorkerPool
    identity: dict[str, Any]
    journal: Journal
    examine: Callable[[], list[dict[str, str]]]
    """What ``doctor`` finds in this process."""
    settings: Callable[[], list[dict[str, Any]]]
    """Those in force, each with where it comes from."""
    reads: Aside
    """Of files, for who asks for what they tell."""
    figures: Ask
    """Of processes."""
    upgrade: Callable[[UpgradeArgs, Emit], Awaitable[dict[str, Any]]]
    ending: asyncio.Event
    """Set when the daemon is about to go: calls that would last for ever end."""


Count = Annotated[int, Meta(ge=0, le=1 << 53)]


Duration = Annotated[int, Meta(ge=0)]
"""In ns."""


class Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Arguments of a verb; unknown ones are refused."""


class NoArgs(Args, frozen=True):
    """None."""


class FlowArgs(Args, frozen=True):
    """One flow by name."""

    flow: str


class UpgradeArgs(Args, frozen=True):
    """``image``: the other release's chronetixd, by default what this one was started as. ``id`` is the caller's, and
    comes back in what ``version`` says of the last upgrade. ``timeout_ns``: how long it may take to begin."""

    id: str = ""
    image: str | None = None
    dry_run: bool = False
    timeout_ns: Count = 30_000_000_000


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb's arguments, who may ask for it and what it does."""

    args: type[Args]
    right: Right
    run: Callable[[Context, Any, Emit], Awaitable[Any]]
    descriptors: int = 0
    """How many come with the call."""
    carries_flow: bool = False
    """Its arguments may have as many items as a frame."""
    at_once: bool = False
    """It answers from what is there: one client gets one such answer after the other."""
    streams: bool = False
    """It may last as long as the client wants, and sends what happens."""
