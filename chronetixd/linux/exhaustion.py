"""Tells whether an error means that descriptors or memory have run out for the moment, and says so to those who are
concerned: it is no fault of a peer.

An action that must not be lost is repeated a little later then. An example is the search for processes that a dead
worker has left: a search that could not open files has to be repeated.
"""

from __future__ import annotations

import errno
import os
import resource

from chronetix.protocol.errors import ChronetixError, error

AGAIN_S = 0.2
"""How long to wait before the next attempt."""

_WANTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def wanting(reason: OSError) -> bool:
    """Whether ``reason`` means that descriptors or memory had run out, so that the action may succeed later."""
    return reason.errno in _WANTS


def exhausted(reason: OSError, purpose: str) -> ChronetixError:
    """Return the error ``daemon-exhausted`` for ``reason``, with which ``purpose`` failed."""
    few = reason.errno in (errno.EMFILE, errno.ENFILE)
    return error("daemon-exhausted", resource="descriptors" if few else "memory", purpose=purpose, reason=str(reason))


def no_room(purpose: str) -> ChronetixError:
    """Return the error ``daemon-exhausted`` for descriptors that the kernel has dropped on their way to this process:
    it does so (MSG_CTRUNC) when the limit on open descriptors is reached."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return exhausted(OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}, the limit is {limit}"), purpose)
