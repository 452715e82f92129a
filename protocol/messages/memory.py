"""The memory of data routes: which memory a worker has to make, has made, and maps of others; and how a route ends.

A route is a chain of stages, each with one RING; ``epoch`` counts the stages. shm/SPEC.md describes the memory.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from chronetix.protocol.messages.base import Count, WireMessage


class Port(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One end of one stage of a data route, as a worker needs to know it. ``route`` is unique within the flow.

    A stage is a route's time with one RING; ``epoch`` counts the rings. ``limit_ns`` (policy block): how long the
    producer waits for a credit before it closes the route, 0 for ever. ``resume``: the highest input_seq that
    predecessors of the producer committed to this route; frames that a successor sends up to it may be duplicates.
    ``qos``: the class in which the consumer serves the route. ``tap_of`` (only outputs added to a running node, with
    policy latest): this port is a tap, and gets the frames that are sent to the route ``tap_of``.
    """

    route: str
    """Id of the route."""
    peer: str
    """The node at the other end."""
    topic: str = ""
    """Topic of the route."""
    content_type: str = "application/json"
    """Content type of the frames."""
    schema_ver: str = "v1"
    """Version of the frames' schema."""
    credits: Count = 64
    """Credits of the route."""
    watermark: Count = 48
    """Outstanding frames from which on the route counts as full."""
    credit_low: Count = 32
    """Outstanding frames at which a producer that waited for credit goes on."""
    policy: Literal["block", "drop_newest", "latest"] = "block"
    """What happens to a frame that finds no credit."""
    epoch: Count = 0
    """Number of the stage."""
    base_seq: Count = 0
    """Sequence number of the stage's first frame."""
    limit_ns: Count = 0
    """How long the producer waits for a credit before it closes the route, in ns; 0 for ever."""
    resume: Count = 0
    """Number of the last item that earlier producers have sent on the route."""
    qos: Literal["best-effort", "normal", "high", "realtime"] = "normal"
    """Class in which the consumer serves the route."""
    tap_of: str = ""
    """The route that this one listens to, empty for other routes."""


class Extend(WireMessage, tag="extend", frozen=True):
    """Daemon to worker, any time after its ready: further routes, or next stages of routes that it has.

    A higher epoch of an input that the worker has means that the producer has finished the stage before, and that this
    stage ends at the sequence number ``base_seq`` of the new one. Answered by one :class:`Offer` for exactly these
    ports.

    Outputs that are no taps, and ``leave``, take effect between two frames, all at once: a higher epoch of an output
    that the worker has replaces it, and begins where the replaced one ends; outputs in ``leave`` are closed. Frames for
    outputs that are not linked yet wait. Only for workers with the feature ``handover``.
    """

    inputs: list[Port] = []
    outputs: list[Port] = []
    leave: list[str] = []


class Offer(WireMessage, tag="offer", frozen=True):
    """Worker to daemon, once after configure and once after each extend: the memory that it has made. Descriptors:
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
    """One stage of an input route that is ready to be mapped. With ``predecessor`` an earlier consumer died within the
    stage, and its CREDIT is sent along to be read.
    """

    route: str
    segments: list[Count]
    epoch: Count = 0
    predecessor: bool = False


class Link(WireMessage, tag="link", frozen=True):
    """Daemon to worker: the other ends. Descriptors: for each of ``outputs`` the consumer's CREDIT and the
    producer's end of a line to it; then for each of ``inputs`` the producer's RING, the consumer's end of a line to it,
    its segments and, with ``predecessor``, the CREDIT of the earlier consumer. No other process has that end of the
    line.

    The first link is answered by :class:`Ready`. Further ones come after an extend, and for an output whose consumer
    has a successor; they are answered by :class:`Linked`. ``epochs``, if given, names the stage of each output;
    without, the present stage is meant.
    """

    outputs: list[str] = []
    inputs: list[InputLink] = []
    epochs: list[Count] = []

    @property
    def descriptors(self) -> int:
        """How many descriptors travel with this message."""
        return 2 * len(self.outputs) + sum(2 + len(link.segments) + link.predecessor for link in self.inputs)


class Linked(WireMessage, tag="linked", frozen=True):
    """Worker to daemon: all memory of a further link is mapped; ``routes`` are the link's routes, outputs first."""

    routes: list[str] = []


class Drained(WireMessage, tag="drained", frozen=True):
    """Worker to daemon: this stage of an input, which its producer has finished, is empty, returned and unmapped.

    Daemon to a living producer: the consumer has drained this stage, and the producer may free its memory.
    """

    route: str
    epoch: Count


class Conclude(WireMessage, tag="conclude", frozen=True):
    """Daemon to consumer: input ``route`` ends for good at sequence number ``seq``. When the worker has taken and
    returned all frames before it, it sends :class:`Drained` and forgets the route. Only for workers with the feature
    ``handover``.
    """

    route: str
    seq: Count


class Segment(WireMessage, tag="segment", frozen=True):
    """An arena grew by the segment ``index``. Descriptors: that segment.

    Worker to daemon with ``route`` empty; daemon to each consumer once for each route from that producer, with the
    ``epoch`` of the stage.
    """

    index: Count
    route: str = ""
    epoch: Count = 0
    descriptors = 1


class SegmentMapped(WireMessage, tag="segment-mapped", frozen=True):
    """Consumer to daemon: it has mapped the segment ``index`` for the stage ``epoch`` of ``route``.

    Daemon to producer (``route`` empty) when every consumer has mapped it: from now on the producer may use the
    segment.
    """

    index: Count
    route: str = ""
    epoch: Count = 0


class SegmentDropped(WireMessage, tag="segment-dropped", frozen=True):
    """A producer has given a segment of its arena back, after every consumer had returned the frames in it.

    Worker to daemon with ``route`` empty; daemon to each consumer that maps the segment, once for each route, with the
    ``epoch`` of the stage; consumer to daemon when it has unmapped the segment; daemon to producer (``route`` empty)
    when all consumers have: from now on the index may be used for another segment.
    """

    index: Count
    route: str = ""
    epoch: Count = 0


class Detach(WireMessage, tag="detach", frozen=True):
    """Daemon to producer: the consumer of ``route`` is gone for good. Sends to the route fail, also one that waits."""

    route: str


class GaveUp(WireMessage, tag="gave-up", frozen=True):
    """Worker to daemon: ``route`` (policy block with a limit) had no credit for ``waited_ns`` while a frame waited for
    one, and the worker has closed it. Frames that it sends to its other outputs from now on count as lost on this
    route.
    """

    route: str
    waited_ns: Count


class Accuse(WireMessage, tag="accuse", frozen=True):
    """Worker to daemon: the peer at the other end of the stage ``epoch`` of ``route`` has written what the ABI forbids
    (shm/SPEC.md, 8); ``rule`` says which rule. The worker has given the route up. Only to a daemon whose welcome names
    the feature ``accuse``.
    """

    route: str
    rule: str
    epoch: Count = 0


class Retract(WireMessage, tag="retract", frozen=True):
    """Daemon to producer: send nothing more on output ``route`` and close it; the node runs on with the others."""

    route: str
