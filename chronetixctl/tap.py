"""The client's end of a tap: it is the consumer of a ring that the route's producer has added for it.

Rules: everything that comes is checked by shm before it is mapped; one thread, sleeping in one place, on the daemon's
socket and on the doorbell; a frame is a copy and costs its producer nothing. Whoever reads too slowly loses the oldest
frames, which are counted.
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
"""Frames that the ring keeps for a reader that is slow for a moment."""

WORD_S = 1.0
"""How long to wait, when the frames have ended, for the word why."""


class Tap:
    """Listens to ``route`` of ``flow``. A context manager."""

    def __init__(self, client: Client, flow: str, route: str, buffer: int = DEFAULT_BUFFER) -> None:
        """Raises what ``client.stream`` does, ChronetixError ``descriptor-refused`` for a ring that cannot be. One that
        is over before it began has its reason, and nothing ``about`` it."""
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
        """Why it is over, once it is."""
        self.again = False
        """There is, or will be, somebody who can be listened to in the same way: the successor of the producer, or the
        daemon that replaces this one."""
        self.upgrading = False
        """The latter."""
        self.about: Mapping[str, Any] = {}
        """Its ``route``, ``topic``, ``content_type``, and the nodes it comes ``from`` and goes ``to``."""
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        self._inlet = shm.Inlet([self._consumer], self._bell)

    @property
    def lost(self) -> int:
        """Frames that were overwritten before they were read here."""
        return self._consumer.lost

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._updates.close()
        self._consumer.close()
        self._bell.close()

    def __iter__(self) -> Iterator[shm.Frame]:
        """Every frame from now on, until the stream, the producer or the flow has ended. Raises PeerFault."""
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
        """The stream has ended. Usually the daemon says why in the same moment: that is worth a moment."""
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
