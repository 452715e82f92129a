"""Descriptors that the supervisor keeps while the daemon is gone: systemd's file descriptor store.

What is pushed comes back to the next daemon as :attr:`chronetixd.systemd.activation.Received.stored`, by name. Rules: a
name is pushed whole and forgotten whole; systemd keeps nothing, and says nothing, beyond FileDescriptorStoreMax, and it
hands back a descriptor of which it knows nothing but the name: check what it is before you use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from chronetixd.systemd.activation import CONTROL, FOREIGN
from chronetixd.systemd.notify import ServiceManager

UNLIMITED = 1 << 30
"""Of a supervisor that does not say how many it keeps."""

_NAME = re.compile(r"[!-9;-~]{1,255}")


class DescriptorStore:
    """One descriptor for each name. ``limit`` is how many ``supervisor`` keeps, as systemd tells in $FDSTORE."""

    def __init__(self, supervisor: ServiceManager, limit: int = UNLIMITED) -> None:
        self._supervisor = supervisor
        self.room = limit
        """How many more it takes."""

    def push(self, name: str, descriptor: int) -> bool:
        """Have a duplicate of ``descriptor`` kept under ``name`` until :meth:`forget`, also when this process dies;
        False when there is nobody to keep it. One that is kept already is not kept twice, and none is polled: a pidfd
        whose process ends stays. Raises ValueError for a name that cannot be one, OSError when descriptors have run
        out."""
        if not _NAME.fullmatch(name) or name == CONTROL or name.endswith(FOREIGN):
            text = "no name for kept descriptors: 1 to 255 printable characters, no colon, no blank"
            raise ValueError(f"{name!r} is {text}")
        sent = self._supervisor.tell(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)
        self.room -= sent
        return sent

    def forget(self, name: str) -> bool:
        """Have it dropped; False when there is nobody."""
        sent = self._supervisor.tell(f"FDSTOREREMOVE=1\nFDNAME={name}")
        self.room += sent
        return sent

    def take_over(self, count: int) -> None:
        """There are as many in it already."""
        self.room -= count


def limit_of(env: Mapping[str, str]) -> int:
    """How many descriptors the supervisor says that it keeps."""
    told = env.get("FDSTORE", "")
    return int(told) if told.isascii() and told.isdecimal() and len(told) < 10 else UNLIMITED
