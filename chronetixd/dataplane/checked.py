"""Is a descriptor that somebody sent what it should be?"""

from __future__ import annotations

from chronetix import shm
from chronetix.protocol.errors import error


def checked(fd: int, kind: str, what: str) -> int:
    """``fd`` if it holds what it should. Raises ProtocolError ``descriptor-refused``."""
    try:
        shm.check(fd, kind)  # type: ignore[arg-type]
    except (OSError, ValueError, shm.PeerFault) as reason:
        raise error("descriptor-refused", what=what, reason=str(reason.args[0] if reason.args else reason)) from None
    return fd
