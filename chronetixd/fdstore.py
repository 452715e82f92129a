"""Descriptors that the supervisor keeps while the daemon is gone: systemd's file descriptor store.

What is pushed comes back to the next daemon as :attr:`chronetixd.activation.Received.stored`, by name. Rules: a name is
pushed whole and forgotten whole; systemd keeps nothing, and says nothing, beyond FileDescriptorStoreMax, and it hands
back a descriptor of which it knows nothing but the name: check what it is before you use it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from chronetixd.activation import CONTROL, FOREIGN
from chronetixd.notify import notify

MAX_AT_ONCE = 253
"""Descriptors that Linux takes with one message."""

_NAME = re.compile(r"[!-9;-~]{1,255}")


def push(name: str, descriptors: Iterable[int]) -> bool:
    """Have duplicates of ``descriptors`` kept under ``name`` until :func:`forget`, also when this process dies.

    Whether all were sent; without a supervisor they are not. One that is kept already is not kept twice. They are not
    polled: a pidfd whose process ends stays. Raises ValueError for a name that cannot be one.
    """
    if not _NAME.fullmatch(name) or name == CONTROL or name.endswith(FOREIGN):
        raise ValueError(f"{name!r} is no name for kept descriptors: 1 to 255 printable characters, no colon, no blank")
    waiting = list(descriptors)
    sent = True
    while waiting:
        some, waiting = waiting[:MAX_AT_ONCE], waiting[MAX_AT_ONCE:]
        sent = notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", some) and sent
    return sent


def forget(name: str) -> bool:
    """Have what is kept under ``name`` dropped; whether the supervisor was told."""
    return notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def barrier() -> int:
    """Ask for a sign that everything sent so far was worked on: the returned descriptor, the caller's to close, shows
    POLLHUP then; without a supervisor at once."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        notify("BARRIER=1", [write])
    finally:
        os.close(write)
    return read
