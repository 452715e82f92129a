"""The keys of descriptors that outlive a worker or the daemon: what each one is, and which worker made it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["ring", "credit", "segment", "pidfd"]


HIGHEST = (1 << 63) - 1
"""The largest number in a key: the largest that the protocol's messages carry."""


class Key(NamedTuple):
    """Identifies one descriptor. ``incarnation`` is that of the worker of ``node`` that made it. ``number`` is the
    epoch of a ring or credit, or the index of a segment. ``resume`` is that of the stage of a ring or credit. Numbers
    are 0 to HIGHEST."""

    node: str
    kind: Kind
    incarnation: int
    route: str = ""
    number: int = 0
    resume: int = 0
