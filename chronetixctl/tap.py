"""The client's end of a tap: the consumer of a ring that the route's producer has added for this client.

Rules: shm checks every descriptor that arrives before it is mapped; the one thread waits in one place, on the daemon's
socket and on the doorbell together; a frame is a copy and never holds up its producer. A client that reads too slowly
loses the oldest frames, and their number is counted.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chronetix import shm
from chronetix.protocol.errors import ChronetixError, error
from chronetixctl.again import UPGRADING

if TYPE_CHECKING:
    from chronetixctl.client import Carried, Client

DEFAULT_BUFFER = 16
"""How many unread frames the ring keeps by default."""

WORD_S = 1.0
"""How long to wait for the daemon's reason after the frames have ended."""


class Tap:
    """A tap on ``route`` of ``flow``: iterating yields its frames. A context manager."""

    def __init__(self, client: Client, flow: str, route: str, buffer: int = DEFAULT_BUFFER) -> None:
        """Ask the daemon for the tap and link its ring.

        If the daemon ends the tap before it is linked, ``reason`` is set and ``about`` stays empty. Raises what
        ``client.stream`` raises, ChronetixError ``descriptor-refused`` for a ring that shm refuses; nothing stays open
        then.
        """
        self._client = client
        self._bell = shm.Doorbell()
        self._consumer = shm.Consumer("tap", credits=buffer)
        self._updates = client.stream(
            "tap",
            descriptors=[self._consumer.fd],
            flow=flow,
            route=route,
            credits=buffer,
        )
        self.reason = ""
        """Why the tap has ended; empty until then."""
        self.again = False
        """Whether the caller can open the same tap anew, with the producer's successor or with the daemon that replaces
        this one. Set when the tap has ended."""
        self.upgrading = False
        """Whether the tap has ended because the daemon is being replaced by another release."""
        self.about: Mapping[str, Any] = {}
        """The tapped route: ``route``, ``topic``, ``content_type``, and its producer and consumer, ``from`` and
        ``to``."""
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        self._inlet = shm.Inlet([self._consumer], self._bell)

    @property
    def lost(self) -> int:
        """How many frames were overwritten before this client read them."""
        return self._consumer.lost

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the tap and close its descriptors. Idempotent."""
        self._updates.close()
        self._consumer.close()
        self._bell.close()

    def __iter__(self) -> Iterator[shm.Frame]:
        """Yield every frame from now on, until the stream, the producer or the flow has ended. Raises PeerFault when
        the producer has broken the ring."""
        while self.about:
            frame = self._inlet.take(0)
            if frame is not None:
                yield frame
            elif self._inlet.ended or (self.reason and self._inlet.arm()):
                self._learn_why()
                return
            elif not self.reason and self._inlet.arm():
                self._wait()

    def _wait(self) -> None:
        poll = select.poll()
        for descriptor in (self._bell.fileno(), self._client.fileno()):
            poll.register(descriptor, select.POLLIN)
        ready = [] if self._client.waiting else [fd for fd, _ in poll.poll()]
        if self._bell.fileno() in ready:
            self._bell.clear()
        if self._client.waiting or self._client.fileno() in ready:
            self._update()

    def _learn_why(self) -> None:
        """Wait up to WORD_S for the daemon to report why the tap has ended: the report usually comes right after the
        last frame."""
        poll = select.poll()
        poll.register(self._client.fileno(), select.POLLIN)
        while not self.reason and (self._client.waiting or poll.poll(1000 * WORD_S)):
            self._update()

    def _update(self) -> None:
        carried = self._next()
        if carried is not None:
            self._map([carried.value["segment"]], carried.descriptors)

    def _next(self) -> Carried | None:
        try:
            carried: Carried = next(self._updates)
        except StopIteration as end:
            result = end.value or {}
            self.reason, self.again = str(result.get("reason") or "closed"), bool(result.get("again"))
            return None
        except ChronetixError as reason:
            if reason.name != UPGRADING:
                raise
            self.reason, self.again, self.upgrading = reason.message, True, True
            return None
        return carried

    def _begin(self) -> None:
        first = self._next()
        if first is None:
            return
        ring, line, *segments = first.descriptors
        try:
            self._consumer.link(ring, line, self._bell)
        except (shm.PeerFault, ValueError) as reason:
            raise error("descriptor-refused", what="the ring of the tap", reason=str(reason.args[0])) from None
        finally:
            os.close(ring)
            os.close(line)
        self._map(first.value["segments"], segments)
        self.about = dict(first.value)

    def _map(self, indices: list[int], descriptors: list[int]) -> None:
        try:
            for index, descriptor in zip(indices, descriptors, strict=True):
                self._consumer.add_segment(index, descriptor)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
