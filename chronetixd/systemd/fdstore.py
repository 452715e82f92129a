"""Stores descriptors with the service manager while no daemon runs: systemd's file descriptor store.

The next daemon receives the stored descriptors as :attr:`chronetixd.systemd.activation.Received.stored`, by name.
Rules:
each name has one descriptor; systemd silently drops descriptors beyond FileDescriptorStoreMax; it knows only a
descriptor's name, so the next daemon has to check what a descriptor is before it uses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from chronetixd.systemd.activation import CONTROL, FOREIGN
from chronetixd.systemd.notify import ServiceManager

UNLIMITED = 1 << 30
"""The limit assumed for a service manager that does not tell how many descriptors it stores."""

_NAME = re.compile(r"[!-9;-~]{1,255}")


class DescriptorStore:
    """The descriptor store, with one descriptor for each name. ``limit`` is how many descriptors ``supervisor`` stores,
    as systemd tells in $FDSTORE."""

    def __init__(self, supervisor: ServiceManager, limit: int = UNLIMITED) -> None:
        self._supervisor = supervisor
        self.room = limit
        """How many more descriptors fit into the store."""

    def push(self, name: str, descriptor: int) -> bool:
        """Store a duplicate of ``descriptor`` under ``name`` until :meth:`forget`, also when this process dies. Return
        False when no service manager stores it.

        systemd does not store the same file twice, and is told not to poll (FDPOLL=0): a pidfd stays when its process
        ends. Raises ValueError for an invalid name, OSError when descriptors have run out.
        """
        if not _NAME.fullmatch(name) or name == CONTROL or name.endswith(FOREIGN):
            text = "no name for kept descriptors: 1 to 255 printable characters, no colon, no blank"
            raise ValueError(f"{name!r} is {text}")
        sent = self._supervisor.tell(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)
        self.room -= sent
        return sent

    def forget(self, name: str) -> bool:
        """Remove ``name`` from the store; return False when there is no service manager."""
        sent = self._supervisor.tell(f"FDSTOREREMOVE=1\nFDNAME={name}")
        self.room += sent
        return sent

    def take_over(self, count: int) -> None:
        """Reduce ``room`` by the ``count`` descriptors that an earlier daemon has stored."""
        self.room -= count


def limit_of(env: Mapping[str, str]) -> int:
    """Return how many descriptors the service manager stores, as $FDSTORE tells; UNLIMITED if it does not tell."""
    told = env.get("FDSTORE", "")
    return int(told) if told.isascii() and told.isdecimal() and len(told) < 10 else UNLIMITED
