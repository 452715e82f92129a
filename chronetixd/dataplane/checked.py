"""Checks that a received descriptor refers to the kind of memory that it should."""

from __future__ import annotations

from chronetix import shm
from chronetix.protocol.errors import error


def checked(fd: int, kind: str, what: str) -> int:
    """Return ``fd`` if it refers to a memory of ``kind``. Raises ProtocolError ``descriptor-refused``."""
    try:
        shm.check(fd, kind)  # type: ignore[arg-type]
    except (OSError, ValueError, shm.PeerFault) as reason:
        raise error("descriptor-refused", what=what, reason=str(reason.args[0] if reason.args else reason)) from None
    return fd
