"""The memory of data routes: what a worker is to make, has made and maps of others, and how a route ends.

A route is a chain of stages, each with one RING; ``epoch`` counts them. What is in the memory: shm/SPEC.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from chronetix.protocol.messages.base import Count, Message


class Port(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One end of one stage of a data route, as a worker needs to know it. ``route`` is unique within the flow.

    A stage is a route's time with one RING; ``epoch`` counts the rings. ``limit_ns`` (policy block): how long the
    producer waits for a credit before it gives the route up, 0 for ever. ``resume``: the highest input_seq that
    predecessors of the producer committed to this route; what a successor sends up to it may be a duplicate. ``qos``:
    the class in which the consumer serves it. ``tap_of`` (outputs added to a running node, policy latest): it listens,
    and gets what is sent to that route.
    """

    route: str
    peer: str
    topic: str = ""
    content_type: str = "application/json"
    schema_ver: str = "v1"
    credits: Count = 64
    watermark: Count = 48
    credit_low: Count = 32
    policy: Literal["block", "drop_newest", "latest"] = "block"
    epoch: Count = 0
    base_seq: Count = 0
    limit_ns: Count = 0
    resume: Count = 0
    qos: Literal["best-effort", "normal", "high", "realtime"] = "normal"
    tap_of: str = ""


class Extend(Message, tag="extend", frozen=True):
    """Daemon to worker, any time after its ready: further routes, or next stages of routes that it has.

    A higher epoch of an input that is there means that the producer of the stage before has done with it and that the
    stage ends at sequence number ``base_seq`` of this one. Answered by one :class:`Offer` for exactly these ports.

    Outputs that are no taps, and ``leave``, take effect between two frames, all at once: a higher epoch of an output
    that is there takes its place, and begins where that one ends; outputs in ``leave`` are closed. Frames for what is
    not linked yet wait. Only for workers with the feature ``handover``.
    """

    inputs: list[Port] = []
    outputs: list[Port] = []
    leave: list[str] = []


class Offer(Message, tag="offer", frozen=True):
    """Worker to daemon, once after configure and once after each extend: the memory it made. Descriptors:
    one RING for each of ``rings`` (its output routes), one CREDIT for each of ``credits`` (its input routes, in
    the order of the ports), one ARENA segment for each index of ``segments`` (those not offered before).
    """

    rings: list[str] = []
    credits: list[str] = []
    segments: list[Count] = []

    @property
    def descriptors(self) -> int:
        """How many descriptors travel with this message."""
        return len(self.rings) + len(self.credits) + len(self.segments)


class InputLink(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stage of an input route ready to be mapped. With ``predecessor`` an end before this one died within the
    stage: its CREDIT comes along, to be read.
    """

    route: str
    segments: list[Count]
    epoch: Count = 0
    predecessor: bool = False


class Link(Message, tag="link", frozen=True):
    """Daemon to worker: the other ends. Descriptors: for each of ``outputs`` the consumer's CREDIT and the
    producer's end of a line to it; then for each of ``inputs`` the producer's RING, the consumer's end of a line to it,
    its segments and, with ``predecessor``, the CREDIT of the end before. Nobody else has that end of the line.

    The first one is answered by :class:`Ready`. It comes again after an extend, and for an output whose consumer has a
    successor; then :class:`Linked` is the answer. ``epochs``, if given, says which stage of each output is meant;
    without, the present one.
    """

    outputs: list[str] = []
    inputs: list[InputLink] = []
    epochs: list[Count] = []

    @property
    def descriptors(self) -> int:
        """How many descriptors travel with this message."""
        return 2 * len(self.outputs) + sum(2 + len(link.segments) + link.predecessor for link in self.inputs)


class Linked(Message, tag="linked", frozen=True):
    """Worker to daemon: everything of a later link is mapped; ``routes`` are those that it named, outputs first."""

    routes: list[str] = []


class Drained(Message, tag="drained", frozen=True):
    """Worker to daemon: this stage of an input, with which its producer has done, is empty, returned and unmapped.

    Daemon to a producer that lives: so it is; what it has of that stage can be given up.
    """

    route: str
    epoch: Count


class Conclude(Message, tag="conclude", frozen=True):
    """Daemon to consumer: input ``route`` ends for good at sequence number ``seq``. When all before it is taken and
    returned the stage is :class:`Drained`, and the route forgotten. Only for workers with the feature ``handover``.
    """

    route: str
    seq: Count


class Segment(Message, tag="segment", frozen=True):
    """An arena grew by segment ``index``. Descriptors: that segment.

    Worker to daemon with ``route`` empty; daemon to each consumer once for each route it shares with that producer,
    with the ``epoch`` of the stage.
    """

    index: Count
    route: str = ""
    epoch: Count = 0
    descriptors = 1


class SegmentMapped(Message, tag="segment-mapped", frozen=True):
    """Consumer to daemon: it can follow descriptors into ``index`` of the stage ``epoch`` of ``route``.

    Daemon to producer (``route`` empty) when every consumer can: from now on the producer may use the segment.
    """

    index: Count
    route: str = ""
    epoch: Count = 0


class SegmentDropped(Message, tag="segment-dropped", frozen=True):
    """A segment of an arena was given back; what was in it has come back from every consumer.

    Worker to daemon with ``route`` empty; daemon to each consumer that maps it, once for each route, with the ``epoch``
    of the stage; consumer to daemon when it has unmapped it; daemon to producer (``route`` empty) when all have: from
    now on the index may be used for another segment.
    """

    index: Count
    route: str = ""
    epoch: Count = 0


class Detach(Message, tag="detach", frozen=True):
    """Daemon to producer: the consumer of ``route`` is gone for good. Sends to it fail, also one that waits."""

    route: str


class GaveUp(Message, tag="gave-up", frozen=True):
    """Worker to daemon: ``route`` (policy block with a limit) had no credit for ``waited_ns`` while a frame waited for
    it. It is closed; what goes to the worker's other outputs from now on is counted as lost to this one.
    """

    route: str
    waited_ns: Count


class Retract(Message, tag="retract", frozen=True):
    """Daemon to producer: send nothing more on output ``route`` and close it; the node runs on with the others."""

    route: str
