"""Routes of tests are linked here as a daemon does it: each end gets its own end of a line, and nobody else has one.
Whoever plays an end itself rings as that end does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chronetix import shm

if TYPE_CHECKING:
    from collections.abc import Iterator

End = shm.Producer | shm.Consumer


@contextmanager
def a_line() -> Iterator[tuple[int, int]]:
    """The producer's end and the consumer's, which are closed afterwards: whoever was linked has a duplicate."""
    ends = shm.line()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def join(one: End, bell: shm.Doorbell, other: End, far_bell: shm.Doorbell, **more: Any) -> None:
    """Link both ends of a route, each of which sleeps on its own doorbell; ``more`` is for the other one."""
    with a_line() as ends:
        near, far = ends if isinstance(one, shm.Producer) else ends[::-1]
        one.link(other.fd, near, bell)
        other.link(one.fd, far, far_bell, **more)


def succeed(producer: shm.Producer, bell: shm.Doorbell, heir: shm.Consumer, far_bell: shm.Doorbell, dead: int) -> None:
    """Link the successor of a consumer whose CREDIT is ``dead``, then its producer."""
    with a_line() as (near, far):
        heir.link(producer.fd, far, far_bell, predecessor=dead)
        producer.relink(heir.fd, near, bell)


def attach(link: Callable[..., None], memory: int, bell: shm.Doorbell, **more: Any) -> None:
    """Link one end with a ``memory`` whose owner does not ring and is not rung."""
    with a_line() as ends:
        link(memory, ends[isinstance(getattr(link, "__self__", None), shm.Consumer)], bell, **more)


def is_shut(end: socket.socket) -> bool:
    """For writing: sending nothing tells."""
    try:
        end.send(b"", socket.MSG_DONTWAIT)
    except BrokenPipeError:
        return True
    return False


def ring(end: socket.socket) -> None:
    """As a producer does. Raises BlockingIOError where the line is full."""
    if is_shut(end):
        end.shutdown(socket.SHUT_WR)
    else:
        end.send(b"x", socket.MSG_DONTWAIT)
