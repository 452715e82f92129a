"""What every verb gets: its arguments, its context, and a way to send items to its client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from chronetixd.bus.event_bus import Bus
from chronetixd.control.views import Ask
from chronetixd.core.access import Asker, Right
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
        """Send an item; return False if the client's queue is full and the item was dropped."""

    def give(self, value: Any, descriptors: Sequence[int]) -> None:
        """Send an item with ``descriptors``, which are closed once they have been sent. The item is never dropped."""

    descriptors: list[int]
    """The descriptors that came with the call; those that the verb has not removed are closed at the end of the
    call."""

    pid: int
    """The client's process id, as the kernel reports it."""

    asker: Asker
    """The client's user and right."""

    goes_on: dict[str, Any]
    """Arguments with which the client can repeat the call to go on where it was, if an upgrade cuts the call off."""

    async def room(self) -> None:
        """Wait until the client has read most of what was sent."""


@dataclass(frozen=True, slots=True)
class VerbContext:
    """The parts of the daemon that verbs work on."""

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
    """Returns the findings of ``doctor`` in this process."""
    settings: Callable[[], list[dict[str, Any]]]
    """Returns the settings in force, each with its origin."""
    reads: Aside
    """The threads that read log files for clients."""
    figures: Ask
    """Returns the figures of processes from /proc."""
    upgrade: Callable[[UpgradeArgs, Emit], Awaitable[dict[str, Any]]]
    ending: asyncio.Event
    """Set when the daemon is about to end: streams that would last for ever end then."""


Count = Annotated[int, Meta(ge=0, le=1 << 53)]


Duration = Annotated[int, Meta(ge=0)]
"""A span of time in ns."""


class Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the arguments of a verb; unknown arguments are refused."""


class NoArgs(Args, frozen=True):
    """Arguments of a verb that takes none."""


class FlowArgs(Args, frozen=True):
    """Arguments of a verb about one flow, by its name."""

    flow: str


class UpgradeArgs(Args, frozen=True):
    """Arguments of ``upgrade``. ``image``: the other release's chronetixd, by default the command that this daemon was
    started with. ``id`` is chosen by the caller, and ``version`` returns it with the last upgrade. ``timeout_ns``: how
    long the upgrade may take to begin."""

    id: str = ""
    image: str | None = None
    dry_run: bool = False
    timeout_ns: Count = 30_000_000_000


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: its arguments, the right that it takes and the function that runs it."""

    args: type[Args]
    right: Right
    run: Callable[[VerbContext, Any, Emit], Awaitable[Any]]
    descriptors: int = 0
    """How many descriptors must come with the call."""
    carries_flow: bool = False
    """Whether its arguments may have as many items as a frame."""
    at_once: bool = False
    """Whether it answers without waiting for anything to happen; a client gets such answers one after another."""
    streams: bool = False
    """Whether it may last as long as the client wants, and sends items as things happen."""
