"""Types of the C extension: rings, credits and arenas of one process. See SPEC.md for the shared layout.

All classes may be used from several threads (the interpreter lock protects their private state); sleeping and copies
over 64 KiB release it. Every ``timeout_ns``: -1 waits for ever, 0 never waits. Objects belong to the process that made
them: after ``fork()`` a child may read frames it inherited; anything else raises RuntimeError, and what it drops it
does not return. A child that writes through a view of a loan it inherited ends by SIGSEGV.

This file is longer than 400 lines because type checkers read one stub for each extension.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Literal, TypedDict, final

import numpy.typing as npt
from typing_extensions import Buffer

ABI_VERSION: int
Policy = Literal["block", "drop_newest", "latest"]
Qos = Literal["best-effort", "normal", "high", "realtime"]

class WouldBlock(Exception):
    """There was no credit or no room within the time. Nothing was sent to any route; ``args[1]`` is the first route
    that had none."""

class RouteClosed(Exception):
    """The consumer has closed the route ``args[1]``, or this end of it was closed. It is raised once for each route,
    and the others go on; when no route is left, it is raised every time."""

class PeerFault(Exception):
    """The peer wrote what the ABI forbids; the route is detached. ``args[1]`` is the route (None where there is none
    yet). Told once, like RouteClosed; other routes go on."""

class FrameTooLarge(ValueError):
    """The frame can never fit the node's memory: raise ``resource_claims.arena_bytes``."""

@final
class Doorbell:
    """What one event loop sleeps on, for the lines of all its routes. Several threads may: a ring wakes all of them.
    Never given away."""

    def __init__(self) -> None: ...
    def fileno(self) -> int:
        """An epoll, for poll and asyncio: readable until it is cleared."""
    @property
    def eventfd(self) -> int:
        """What :meth:`ring` writes to, for a signal handler of this process."""
    def ring(self) -> None:
        """From inside this process; peers ring by their lines."""
    def wait(self, timeout_ns: int = -1) -> bool:
        """Sleep until rung and clear it; False on time-out. Signal handlers run."""
    def interrupt(self, reason: BaseException | None, /) -> None:
        """Have whoever sleeps on it now, or else next, raise ``reason``, once; None: nobody. From any thread: where a
        signal would run its handler, for a thread that gets none."""
    def clear(self) -> bool:
        """Was it rung? It is silent afterwards, but for more lines than are heard at once."""
    def close(self) -> None: ...

@final
class Arena:
    """Payload memory of one producing process. Doubles by segments up to ``limit`` bytes (at least 64 KiB), and gives
    whole segments back when told to.

    All outlets of an arena share one doorbell.
    """

    def __init__(
        self,
        limit: int = 1 << 30,
        *,
        first: int = 0,
        on_grow: Callable[[int, int, int], None] | None = None,
        on_drop: Callable[[int], None] | None = None,
        hugepages: bool = False,
    ) -> None:
        """``first``: bytes of the first segment, usable at once (0: 256 KiB, or ``limit`` if that is less).

        ``on_grow(index, fd, size)`` announces a new segment, which is used only after ``confirm(index)``; it may call
        ``confirm`` itself (producer and consumers in one process, after ``add_segment``). With None new segments are
        used at once. What it raises, the send that needed the room raises; the next one announces again.

        ``on_drop(index)`` tells that a segment was given back, by ``shrink`` or because a large frame needs its place
        below ``limit``: consumers call ``drop_segment``, then ``forget(index)`` makes the number free. With None
        segments are never given back.

        ``hugepages``: segments of 2 MiB pages where the machine has some in reserve or heeds advice; see ``pages``.
        """
    @property
    def segments(self) -> tuple[tuple[int, int, int], ...]:
        """(index, descriptor, bytes) of each that was not given back."""
    @property
    def inventory(self) -> tuple[tuple[tuple[int, int, int], ...], list[int], list[int]]:
        """``segments``, which of them are not confirmed, and the numbers of those that were given back and are not
        forgotten, as they are at one moment."""
    @property
    def limit(self) -> int: ...
    @property
    def size(self) -> int:
        """Bytes of all segments."""
    @property
    def used(self) -> int:
        """Bytes in extents not yet returned."""
    @property
    def pages(self) -> Literal["small", "advised", "huge"]:
        """The smallest kind of pages that a segment was made of; ``small`` without ``hugepages``."""
    def confirm(self, index: int) -> None:
        """Every consumer has mapped segment ``index``. Wakes a sender of this process that waits for it."""
    def forget(self, index: int) -> None:
        """Every consumer has unmapped segment ``index``: its number may be used again. ValueError if it is there."""
    def shrink(self, keep: int) -> int:
        """Let segments go, largest first, as long as ``keep`` bytes stay. Of one that has to go nothing more is handed
        out, and it goes when a call finds that every frame of it is back; until then a lack of room brings it back.
        Bytes that were given back by this call."""
    def take_peak(self) -> int:
        """The most bytes that were in use at a time since the last call."""
    def close(self) -> None:
        """No more frames; unmap as soon as no loan is open. Consumers keep what they have mapped. Idempotent."""

@final
class Producer:
    """Producing end of one route: owner of its RING.

    Dropping it is no end of stream, just as dying is none: only ``close()`` is.
    """

    def __init__(
        self,
        arena: Arena,
        route: str,
        *,
        credits: int = 64,
        watermark: int = -1,
        credit_low: int = -1,
        policy: Policy = "block",
        epoch: int = 0,
        base_seq: int = 0,
        resume: int = 0,
        limit_ns: int = 0,
        on_give_up: Callable[[str, int], None] | None = None,
        tap: bool = False,
        later: bool = False,
    ) -> None:
        """``credits``: 1 to 65536. ``watermark`` and ``credit_low``: -1 for three quarters and half of them.

        ``policy``: what happens to a frame that finds no credit. ``block``: it waits, with ``limit_ns`` at most so
        long; then the route is given up (its consumer sees the end of the stream), ``on_give_up(route, waited_ns)`` is
        called and the outlet goes on with its other routes. ``drop_newest``: it is dropped. ``latest``: it takes the
        place of the oldest, which the consumer may be copying; nothing ever waits for such a route.

        A ``tap`` (policy ``latest``) is a listener: it neither keeps an outlet going whose other routes have ended, nor
        does its own end end anything. See :meth:`Outlet.add`.

        ``resume``: the highest ``input_seq`` that predecessors committed to this route; frames up to it go out as
        redelivered. ``later``: it is linked while its outlets are used; until then frames wait, whatever its policy.
        """
    @property
    def fd(self) -> int:
        """The sealed RING memfd, to hand to the consumer and the observer."""
    @property
    def route(self) -> str: ...
    @property
    def limit_ns(self) -> int:
        """As given; 0: it is never given up."""
    @property
    def linked(self) -> bool: ...
    @property
    def credits(self) -> int:
        """Credits left, after a look at what has been returned."""
    @property
    def outstanding(self) -> int: ...
    @property
    def loans(self) -> int:
        """Frames that are being filled."""
    @property
    def high(self) -> bool:
        """Used credits (frames on their way and open loans) have reached the watermark."""
    @property
    def position(self) -> int:
        """Sequence number that the next frame gets, or a later one where a frame is held in its slot."""
    @property
    def epoch(self) -> int: ...
    def link(self, credit_fd: int, line_fd: int, bell: Doorbell) -> None:
        """Validate and map the consumer's CREDIT; what comes on this end of the line to it wakes ``bell``. Both
        descriptors stay the caller's, who closes this end of the line: nobody else may have it.
        PeerFault if they are not what they should be or do not fit this ring, ValueError if linked already."""
    def relink(self, credit_fd: int, line_fd: int, bell: Doorbell) -> None:
        """The consumer is dead, these are its successor's, which was linked with ``predecessor``, has returned nothing,
        and returns nothing before this call. What its predecessor had returned is free now; a thread that waits for
        credits is woken. May be called from any thread at any time. Errors as in ``link``, with nothing changed;
        ValueError if it never was linked."""
    def leave(self) -> None:
        """As :meth:`close`, and outlets that have other routes go on without it: no RouteClosed tells of it."""
    def close(self) -> None:
        """End of stream: the consumer drains what is there. Idempotent."""

@final
class Loan:
    """Shared memory in which a frame is written (``ctx.loan``): a writable buffer and a context manager. Leaving it
    normally sends the frame, an exception cancels it; dropping it cancels it too. It holds a credit of each route, so
    sending never waits; several may be open."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __enter__(self) -> Loan: ...
    def __exit__(self, *exc: object) -> None: ...
    def commit(
        self,
        length: int = -1,
        *,
        origin: Frame | Batch | int | None = None,
        schema: int = 0,
        deadline_ns: int = 0,
        trace: int = 0,
        input_seq: int = 0,
        redelivered: bool = False,
        noted: bool = False,
    ) -> int:
        """Send the first ``length`` bytes (all by default), and return the frame's sequence number on the first route.
        What is not given here is as ``loan`` was told.

        BufferError while a view of it is held (a numpy array is one: ``del`` it first, or write through a temporary
        as in ``np.frombuffer(loan, "f8")[:] = x``), ValueError when already committed or cancelled, RouteClosed
        when all its routes were closed meanwhile.
        """
    def cancel(self) -> None:
        """Give the memory back without sending it. Views that are held stay valid. Idempotent."""

@final
class Outlet:
    """Sends each frame to one or more routes of the same arena, with one copy of the payload."""

    def __init__(self, producers: Sequence[Producer], bell: Doorbell, *, budget_ns: int = 0) -> None:
        """``bell`` is this process's own doorbell, on which it sleeps for credits. With ``budget_ns`` each frame is due
        that long after its commit, if it is not due earlier."""
    @property
    def producers(self) -> tuple[Producer, ...]: ...
    def send(
        self,
        data: Buffer,
        timeout_ns: int = -1,
        origin: Frame | Batch | int | None = None,
        *,
        schema: int = 0,
        deadline_ns: int = 0,
        trace: int = 0,
        input_seq: int = 0,
        redelivered: bool = False,
        noted: bool = False,
    ) -> int:
        """Copy ``data`` (any C-contiguous buffer) into the arena and commit it to every route; its sequence number on
        the first, -1 if that one dropped it. All routes get it or none. Raises WouldBlock when the time is up,
        RouteClosed, PeerFault, FrameTooLarge, MemoryError.

        ``origin`` is the frame that this one is made from: its ``seq`` becomes the ``input_seq``, what comes of a
        redelivered frame is redelivered, and its deadline can only be shortened. A source gives the number of the item
        instead. ``noted``: the last bytes are notes (shm/SPEC.md, 3.1) and no payload."""
    def send_many(
        self,
        data: Buffer,
        size: int,
        timeout_ns: int = -1,
        origin: Frame | Batch | int | None = None,
        *,
        schema: int = 0,
        deadline_ns: int = 0,
        trace: int = 0,
        input_seq: int = 0,
        redelivered: bool = False,
        noted: bool = False,
    ) -> int:
        """Send ``data`` (any C-contiguous buffer) as consecutive frames of ``size`` bytes each, all with these tags (a
        number as ``origin`` is the first one's, the others count on from it), waiting for credits and room as needed;
        how many have gone (sent, or dropped by routes that may drop).

        Fewer than there are only when the time is up or a route has ended meanwhile: send the rest again, and the call
        raises what ``send`` raises if that is still so. It is raised at once when no frame has gone. (Other exceptions,
        such as of signal handlers and ``on_grow``, come half-way too: ``Producer.position`` tells how far it was.)

        Frames go out in runs of what there are credits for, up to 64 KiB: a run appears at once, has one ``time_ns``
        and shares its memory, which comes back when all of its frames have. ValueError if ``size`` is below 1 or
        ``data`` is no whole number of frames."""
    def loan(
        self,
        length: int,
        timeout_ns: int = -1,
        origin: Frame | Batch | int | None = None,
        *,
        schema: int = 0,
        deadline_ns: int = 0,
        trace: int = 0,
        input_seq: int = 0,
        redelivered: bool = False,
        noted: bool = False,
    ) -> Loan:
        """Raises what ``send`` raises."""
    def add(self, tap: Producer) -> None:
        """Send every frame from the next one on to ``tap`` as well. From any thread, also while another one sends."""
    def sweep(self) -> None:
        """Let go of taps that have ended; later, if a loan is open."""
    def encode_with(self, encode: Callable[[Any], Buffer], /) -> None:
        """``encode`` is called with data that has no buffer, none that is C-contiguous, or one of pointers to objects,
        and returns bytes to be sent instead, or raises."""
    def wait(self, timeout_ns: int = -1) -> bool:
        """After WouldBlock: sleep until every blocking route has come down to credit_low, or, if room was short, until
        something was returned; False on time-out."""
    def arm(self) -> bool:
        """For a foreign event loop that polls the doorbell, after WouldBlock: ask for a ring when ``wait`` would
        return, and begin to count the route's blocked time. False: it would return now, send again."""
    def disarm(self) -> None:
        """The wait that :meth:`arm` began is over: what was asked for, also by other outlets of the arena, is not
        wanted any more. Those that still wait arm again."""

@final
class Frame:
    """A received frame: a read-only buffer. Dropping it and the last view of it returns its credit.

    A frame that is still held keeps its credit while the next one is taken: a loop needs a credit more than it holds.
    """

    @property
    def route(self) -> str:
        """Id of the route by which the frame came."""
    @property
    def peer(self) -> str:
        """The node that sent the frame."""
    @property
    def port(self) -> int:
        """Index of the frame's consumer in the inlet."""
    @property
    def seq(self) -> int:
        """Sequence number on the route. It grows; a gap is a place that was still taken, not a loss."""
    @property
    def time_ns(self) -> int:
        """When the frame was sent, in ns on the clock of ``time.monotonic_ns()``."""
    @property
    def deadline_ns(self) -> int:
        """When the frame is due, in ns on the clock of ``time.monotonic_ns()``; 0 if it has no deadline."""
    @property
    def schema(self) -> int:
        """Number of the payload's schema, as the sender gave it; 0 without one."""
    @property
    def trace(self) -> int:
        """Number of the trace to which the frame belongs, as the sender gave it; 0 without one."""
    @property
    def input_seq(self) -> int:
        """Sequence number of the frame from which this one was made, or the number of a source's item."""
    @property
    def redelivered(self) -> bool:
        """Whether the frame may be a duplicate: an earlier worker of the consumer had taken it, or its producer made it
        from such a frame or made it again after a restart."""
    @property
    def released(self) -> bool:
        """Whether the frame's credit was given back."""
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def content_type(self) -> str:
        """The content type of the route by which the frame came."""
    @property
    def meta(self) -> Any:
        """The metadata that were sent with the frame, decoded anew each time; an empty dict without any."""
    @property
    def stamp_ns(self) -> int:
        """The sender's own time (``ctx.send(…, stamp_ns=…)``); 0 without one."""
    def numpy(self, dtype: npt.DTypeLike = ...) -> npt.NDArray[Any]:
        """Return a read-only array over the payload, without a copy. On a route of ``application/x-npy`` it is the
        array that was sent, with its shape, dtype and order. On a route of bytes it has one dimension and the given
        ``dtype`` (uint8 by default); raises ValueError if the payload is no whole number of items. The array, and every
        view of it, holds the frame and its credit. On a route of CBOR it is a copy of the array that was sent; raises
        TypeError if that was no array, and on a route of JSON or Arrow."""
    def value(self) -> Any:
        """Return the payload, decoded by the route's content type; a read-only memoryview for types that carry bytes.
        Raises ChronetixError ``payload-undecodable``."""
    def arrow(self) -> Any:
        """Return the Arrow IPC stream in the payload as a pyarrow.Table, without a copy. Needs the extra ``arrow``."""
    def release(self) -> None:
        """Give the credit back now, or as soon as the last view of the frame is dropped. Idempotent."""

@final
class Batch:
    """Frames of one route, in order, that were taken together; their credits go back together.

    A read-only buffer of all payloads when they are adjacent, else BufferError. Dropping it and every frame, view and
    array made of it returns the credits.
    """

    @property
    def route(self) -> str:
        """Id of the route by which the frames came."""
    @property
    def peer(self) -> str:
        """The node that sent the frames."""
    @property
    def port(self) -> int:
        """Index of the frames' consumer in the inlet."""
    @property
    def seq(self) -> int:
        """Sequence number of the first frame."""
    @property
    def nbytes(self) -> int:
        """Bytes of all payloads."""
    @property
    def redelivered(self) -> bool:
        """Whether one of the frames is redelivered."""
    @property
    def adjacent(self) -> bool:
        """Whether each payload begins where the one before it ends: frames of one ``send_many`` whose size is a
        multiple of 64, unless they were taken across two of its runs."""
    @property
    def released(self) -> bool:
        """Whether the credits were given back."""
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Frame:
        """One of its frames. It holds the whole batch as long as it or a view of it lives."""
    def __iter__(self) -> Iterator[Frame]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def numpy(self, dtype: npt.DTypeLike = ...) -> npt.NDArray[Any]:
        """Return a read-only array of one dimension and of ``dtype`` (uint8 by default) over all payloads one after
        another: in place when they are adjacent, else of a copy. Raises ValueError if the payloads are no whole number
        of items, TypeError on a route of x-npy, CBOR, JSON or Arrow, where each frame is encoded by itself."""
    def release(self) -> None:
        """Give all credits back now, or as soon as the last frame and view of the batch is dropped. Idempotent."""

@final
class Consumer:
    """Consuming end of one route: owner of its CREDIT. Dropping it detaches."""

    def __init__(
        self,
        route: str,
        *,
        credits: int = 64,
        epoch: int = 0,
        base_seq: int = 0,
        peer: str = "",
        decode: Callable[[Frame], Any] | None = None,
        array: Callable[..., npt.NDArray[Any]] | None = None,
        meta: Callable[[bytes], Any] | None = None,
        content_type: str = "",
        qos: Qos = "normal",
    ) -> None:
        """``peer`` names the producing node; ``decode`` is what ``Frame.value()`` of its frames calls, ``array`` what
        ``numpy()`` does (with the dtype, if one is given), ``meta`` makes something of the bytes of ``Frame.meta``;
        ``qos`` is the class in which an inlet serves it."""
    @property
    def fd(self) -> int:
        """The sealed CREDIT memfd."""
    @property
    def route(self) -> str: ...
    @property
    def linked(self) -> bool: ...
    @property
    def held(self) -> int:
        """Frames taken and not yet returned; of policy ``latest`` none."""
    @property
    def lost(self) -> int:
        """Policy ``latest``: frames that were overwritten before they were read."""
    @property
    def ended(self) -> bool:
        """The producer closed and every frame was taken, also of later stages, or this end is detached."""
    @property
    def epoch(self) -> int: ...
    def link(self, ring_fd: int, line_fd: int, bell: Doorbell, *, predecessor: int = -1) -> None:
        """Validate and map the producer's RING; what comes on this end of the line to it wakes ``bell``. Errors as in
        ``Producer.link``.

        ``predecessor``: the CREDIT of a dead consumer of this ring. What it had not returned comes first, in order, and
        what it had taken as ``redelivered``. Give this end's ``fd`` to the producer (``relink``) before anything is
        returned. PeerFault, which names the predecessor, when that CREDIT cannot be."""
    def succeed(self, next: Consumer, on_drained: Callable[[], None] | None = None) -> None:
        """The producer is dead: this stage ends at the ``base_seq`` of ``next``, and an inlet goes on with ``next``,
        which may be linked later. Ring the inlet's doorbell afterwards.

        When the inlet has gone on and all frames are back, this end is unmapped and ``on_drained`` is called, in
        whichever thread gave the last frame back. ValueError if ``next`` is not a later stage, PeerFault if more than
        that was taken already."""
    def add_segment(self, index: int, fd: int) -> None:
        """Map a sealed segment read-only; PeerFault when its seals or size are wrong or it is mapped already. From
        another thread than the one that takes: ring its doorbell afterwards."""
    def drop_segment(self, index: int) -> None:
        """Unmap a segment that the producer has given up. PeerFault, and the end of the route, if a frame of it is held
        or it is not mapped."""
    def close(self) -> None:
        """Detach: the producer gets RouteClosed. Held frames stay readable. Idempotent."""
    def abandon(self) -> None:
        """Leave it as a death would, from now on: dropping it does not detach, dropping a frame returns nothing, the
        producer waits for a successor, and that one gets what was not returned."""

@final
class Inlet:
    """Takes frames from one or more routes, sleeping in one place.

    The highest class that has something goes first, for at most 8 (realtime), 4 (high), 2 (normal) and 1 (best-effort)
    takes of a round, which ends when no class that has something has takes left: none starves another. Within a class
    the routes take turns; once a frame with a deadline was taken, the earliest deadline goes first, but for every
    eighth take. A batch is one take."""

    def __init__(self, consumers: Sequence[Consumer], bell: Doorbell) -> None: ...
    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """The present stage of each route."""
    def add(self, consumer: Consumer) -> None:
        """One more route, from any thread."""
    def remove(self, consumer: Consumer) -> None:
        """Forget a route that has ended, between two takes. ValueError for any other."""
    @property
    def ended(self) -> bool:
        """Every route has ended (True for an inlet without routes)."""
    def take(self, timeout_ns: int = -1) -> Frame | None:
        """The next frame, or None when the time is up, the doorbell was rung for something else, or all have ended.
        Raises PeerFault; the route is then detached and the next call serves the others."""
    def take_many(self, limit: int, timeout_ns: int = -1) -> Batch | None:
        """The frames that are there, at least one and at most ``limit`` of one route, and of no more bytes than its
        producer has memory; the routes take turns. It waits for the first only. None, and exceptions, as ``take``."""
    def arm(self) -> bool:
        """For a foreign event loop that polls the doorbell: ask for a ring at the next frame. False: something is
        there already, take it first."""

class Drops(TypedDict):
    """Frames that a route's consumer does not get, by reason."""

    no_credit: int
    """No credit was left, and the policy does not wait."""
    no_room: int
    """The producer's memory had no room left, and the policy does not wait."""
    overwritten: int
    """Newer frames have overwritten them (policy ``latest``)."""
    given_up: int
    """They were sent after the producer had closed this route for want of credit (``limit_ms``)."""
    unread: int
    """The consumer has closed the route and left them there."""

class RouteSnapshot(TypedDict):
    """Counters of a route as both ends wrote them. Times in ns."""

    committed: int
    """Frames that were sent."""
    bytes: int
    """Bytes of their payloads."""
    taken: int
    """Frames that the consumer has taken."""
    again: int
    """Of those taken: frames that an earlier worker of the consumer had taken and not returned."""
    returned: int
    """Frames whose credits have come back."""
    returned_before: int
    """Of those returned: what came back before the present consumer; 0 until the producer was linked to it. With policy
    ``latest`` all."""
    outstanding: int
    """Frames under way or held by the consumer: sent, and their credits not returned."""
    credits: int
    """Credits of the route (``buffer``)."""
    watermark: int
    """Outstanding frames from which on the route counts as full."""
    would_block: int
    """How often the producer found no credit."""
    blocked_ns: int
    """How long the producer has waited for credit, in ns."""
    producer_sleeps: int
    """How often the producer went to sleep for want of credit."""
    consumer_sleeps: int
    """How often the consumer went to sleep for want of frames."""
    producer_wakes: int
    """How often the producer woke the consumer."""
    consumer_wakes: int
    """How often the consumer woke the producer."""
    dropped: int
    """Frames that the consumer does not get: the sum of ``drops``."""
    drops: Drops
    """The same by reason."""
    next: int
    """Positions below it the consumer has passed."""
    unseen: int
    """Of those overwritten: what the consumer has not come to yet."""
    gave_up_after_ns: int
    """How long the producer had waited for credit when it closed the route (``limit_ms``), in ns; 0 if it has not."""
    skipped: int
    """Places of the ring that the producer left out because a frame in them was still held. No frame is lost by
    that."""
    closed: bool
    """The producer has ended the stream."""
    detached: bool
    """The consumer has closed the route."""
    p50_ns: int
    """Median of the time from the sending of a frame until the consumer took it, in ns."""
    p99_ns: int
    """The time from their sending within which 99 % of the frames were taken, in ns."""
    max_ns: int
    """The longest time from the sending of a frame until the consumer took it, in ns."""
    max_outstanding: int
    """The most frames that were outstanding at a time."""

@final
class RouteView:
    """Read-only observer of one route (the daemon's): sees both ends' counters and never writes."""

    def __init__(self, ring_fd: int, credit_fd: int) -> None: ...
    def snapshot(self) -> RouteSnapshot: ...
    def held(self) -> tuple[int, list[tuple[int, int, int]]]:
        """Frames that the consumer has taken and not returned: how many, and of 64 of them at most sequence number,
        bytes and trace. Exact for a consumer that is dead; one that lives goes on meanwhile."""
    def oldest_held(self) -> tuple[int, int, int] | None:
        """Of those frames: how many, the oldest one's sequence number, and ns since it was sent; None without one."""
    def close(self) -> None: ...

@final
class Step:
    """Where the plugin's thread of a node is. That thread alone writes it, for every frame; other threads read it.

    ``doing``: the frame, batch, function or iterator that the plugin works on, None while it waits. ``count``: steps
    begun. ``item``: the number of the last item that the source has sent, from 1. ``source``: the items of a node
    without inputs. ``finishing``: the plugin wants no more, and between two steps the node begins to end.
    ``cancelled``: callbacks of an asynchronous plugin are cancelled, because the node ends.
    ``interrupt``: the exception that ends every wait of the node; who is about to wait raises it.
    """

    doing: Any
    source: Any
    interrupt: BaseException | None
    count: int
    item: int
    finishing: bool
    cancelled: bool
    def __init__(self) -> None: ...

def run_frames(
    inlet: Inlet,
    limit: int,
    on_frame: Callable[[Any, Any], Any],
    ctx: Any,
    step: Step,
    mailbox: Sized,
    emit: Callable[[Any, int, Any], Any],
    /,
) -> bool:
    """Call ``on_frame(frame, ctx)`` for each frame, or with ``limit`` > 0 for each batch of at most so many; send with
    ``emit(result, -1, frame)`` what is not None; then return the credit.

    Returns True when all inputs have ended, False as soon as ``mailbox`` is not empty: a thread that puts something
    there rings the doorbell. Where ``emit`` is the bound method ``Outlet.send``, the send needs no call, and
    RouteClosed is raised only when no route is left. Raises what ``on_frame`` and ``emit`` raise (``step.doing`` is the
    frame), ``step.interrupt`` before a send, PeerFault."""

def run_awaited(
    inlet: Inlet,
    on_frame: Callable[[Any, Any], Any],
    ctx: Any,
    step: Step,
    mailbox: Sized,
    emit: Callable[..., Any],
    enter: Callable[[Frame], object],
    doing: object,
    coroutines: type,
    most: int,
    /,
) -> tuple[Frame, Any, Any] | bool:
    """Call ``on_frame(frame, ctx)``, which may return a coroutine, for frames that are there, ``most`` at most, each
    after ``enter(frame)``; send what comes of each to the outlet of ``emit``; return the credit.

    Returns True when ``mailbox`` is not empty or ``most`` frames were taken, False when no frame is there. Returns
    (frame, coroutine, value) for a coroutine that waits for ``value``, which it has yielded, and (frame, None, value)
    for a result that the caller has to await or send: there was no credit, or ``emit`` is no ``Outlet.send``. The
    caller then returns the credit. Raises what ``enter`` and ``on_frame`` raise, RouteClosed, PeerFault. Within a
    callback ``step.doing`` is ``doing``."""

def run_items(items: Iterator[Any], step: Step, mailbox: Sized, emit: Callable[[Any, int, int], Any], /) -> bool:
    """Send each item that is not None with ``emit(item, -1, number)``; ``step.item`` is the last number.

    Returns True when the iterator is exhausted, False when ``mailbox`` is not empty after an item. Raises as
    :func:`run_frames`, and what the iterator raises."""

def check(fd: int, kind: Literal["ring", "credit", "segment"]) -> int:
    """Verify seals, size and (for ring and credit) the header; bytes. Raises PeerFault saying what is wrong."""

def line(*, one_way: bool = False) -> tuple[int, int]:
    """The producer's end of a new line and the consumer's, to be given to the two ends of a route, and to nobody else.
    With ``one_way`` the consumer can be rung and cannot ring. Raises OSError."""

def missing_features() -> tuple[str, ...]:
    """What this kernel lacks of ``memfd``, ``seals``, ``future_write`` and ``noexec_seal``. The environment variable
    CHRONETIX_WITHOUT (names separated by commas) takes them away; read once. Without seals, memories are named objects
    in /dev/shm: see ``chronetix.shm.names``."""

def remains(ring_fd: int) -> tuple[int, int]:
    """(end, input_seq) of the RING of a producer that is dead, with all its descendants: the position behind its last
    frame, so that the next stage's ``base_seq`` is this one's + ``end``, and the highest ``input_seq`` of its last
    frames (0 if there is none). Raises PeerFault for what cannot be."""
