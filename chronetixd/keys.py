"""What a descriptor is of which life: how those are called that outlive a worker, or the daemon."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["ring", "credit", "segment", "pidfd"]


class Key(NamedTuple):
    """What one descriptor is. ``number`` is the epoch of a ring or credit, or the index of a segment; ``resume`` that
    of a ring's or credit's stage."""

    node: str
    kind: Kind
    incarnation: int
    route: str = ""
    number: int = 0
    resume: int = 0
