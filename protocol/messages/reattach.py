"""A worker that has outlived its daemon shows the next one what it has."""

from __future__ import annotations

from typing import Literal

import msgspec

from chronetix.protocol.messages.base import Count, Message


class ReattachedStage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stage of a route that a worker has an end of. ``linked``: it maps the other end. ``segments`` (inputs): those
    of the producer that it maps; ``resume``: as its :class:`Port` said."""

    route: str
    epoch: Count = 0
    linked: bool = True
    segments: list[Count] = []
    resume: Count = 0


class Reattach(Message, tag="reattach", frozen=True):
    """Worker to daemon, second on a new connection: it has outlived the daemon that it had, and this is how far it is
    and all its memory. Descriptors: one RING for each of ``outputs``, one CREDIT for each of ``inputs``, one ARENA
    segment for each index of ``segments``; with ``pipes`` reading ends of its stdout and stderr.

    ``unconfirmed`` are those of ``segments`` that it may not use yet, ``dropped`` others that it has given back and
    whose numbers it may not use again yet. Answered by :class:`Reattached`, or a :class:`Failure`, after which the
    worker ends. Once taken back it says what it has subscribed to at run time, and ``finished`` (again) if it has.
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


class Reattached(Message, tag="reattached", frozen=True):
    """Daemon to worker: it is its node's worker again; the connection goes on as the one before. Descriptors: its
    stdout and stderr from now on: writing ends of the ``pipes`` that it has shown, or of new ones.
    """

    descriptors = 2
