"""Tells whether an error means that descriptors or memory have run out for the moment.

An action that must not be lost is repeated a little later then. An example is the search for processes that a dead
worker has left: a search that could not open files has to be repeated.
"""

from __future__ import annotations

import errno

AGAIN_S = 0.2
"""How long to wait before the next attempt."""

_WANTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def wanting(reason: OSError) -> bool:
    """Whether ``reason`` means that descriptors or memory had run out, so that the action may succeed later."""
    return reason.errno in _WANTS
