"""What a descriptor is of which life: how those are called that outlive a worker, or the daemon."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["ring", "credit", "segment", "pidfd"]


HIGHEST = (1 << 63) - 1
"""Of every number of a key: what the wire's messages bring."""


class Key(NamedTuple):
    """What one descriptor is. ``incarnation`` is that of ``node`` when it made it, ``number`` the epoch of a ring or
    credit, or the index of a segment; ``resume`` that of a ring's or credit's stage. Numbers are 0 to HIGHEST."""

    node: str
    kind: Kind
    incarnation: int
    route: str = ""
    number: int = 0
    resume: int = 0
