"""The messages with which a worker that has outlived its daemon reattaches to the next one."""

from __future__ import annotations

from typing import Literal

import msgspec

from chronetix.protocol.messages.base import Count, WireMessage


class ReattachedStage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stage of a route, one end of which a worker has. ``linked``: the worker maps the other end. ``segments``
    (inputs): the segments of the producer that it maps. ``resume``: the value in its :class:`Port`."""

    route: str
    epoch: Count = 0
    linked: bool = True
    segments: list[Count] = []
    resume: Count = 0


class Reattach(WireMessage, tag="reattach", frozen=True):
    """Worker to daemon, as the second message on a new connection: the worker has outlived its daemon, and shows its
    state and all its memory. Descriptors: one RING for each of ``outputs``, one CREDIT for each of ``inputs``, one
    ARENA segment for each index of ``segments``; with ``pipes`` the read ends of its stdout and stderr.

    ``unconfirmed`` are those of ``segments`` that the worker may not use yet; ``dropped`` are other segments that it
    has given back and whose numbers it may not use again yet. Answered by :class:`Reattached`, or by a
    :class:`Failure`, after which the worker ends. After it has reattached, the worker repeats the subscriptions that it
    made at run time, and ``finished`` if it has finished.
    """

    flow: str
    node: str
    token: str
    state: Literal["starting", "started", "draining"]
    incarnation: Count = 0
    outputs: list[ReattachedStage] = []
    inputs: list[ReattachedStage] = []
    segments: list[Count] = []
    unconfirmed: list[Count] = []
    dropped: list[Count] = []
    pipes: bool = False

    @property
    def descriptors(self) -> int:
        """How many descriptors travel with this message."""
        return len(self.outputs) + len(self.inputs) + len(self.segments) + 2 * self.pipes


class Reattached(WireMessage, tag="reattached", frozen=True):
    """Daemon to worker: it is its node's worker again, and the connection goes on like the one before. Descriptors: its
    stdout and stderr from now on, which are the write ends of the ``pipes`` that it has shown, or of new pipes.
    """

    descriptors = 2
