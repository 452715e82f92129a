"""Want of descriptors or memory, for a moment: what has to be done is done a little later, and nothing is given up.

The death of a worker is such a thing: whoever looked for what is left of it and could not look has to look again.
"""

from __future__ import annotations

import errno

AGAIN_S = 0.2
"""How long to wait before the next attempt."""

_WANTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def wanting(reason: OSError) -> bool:
    """It failed because something had run out, and may work later."""
    return reason.errno in _WANTS
