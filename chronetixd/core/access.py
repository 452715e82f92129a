"""Who may do what: three classes of verbs, and which of them a peer has.

Rules: a class contains those below it. Root and the user that the daemon runs as are always admins; everybody else has
what the rules give to their user or to one of their groups, and without that nothing. Whoever may operate can have any
program run as the daemon's user. Pure: names have been looked up, credentials come from the kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class Right(IntEnum):
    """A class of verbs; a higher one contains the lower."""

    NONE = 0
    READ = 1
    """See flows, logs, events, numbers."""
    OPERATE = 2
    """Submit and stop flows, publish messages, and look at what a submission would find."""
    ADMIN = 3
    """The daemon itself: its audit log, its upgrade."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a socket, as the kernel vouches for it at the time of its connect."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    """All of its groups, the primary one included."""
    program: str = ""
    """The name of its program, for people; nobody vouches for it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Users and groups by what they may do; ``owner`` is the user that the daemon runs as."""

    owner: int
    users: Mapping[int, Right] = field(default_factory=dict)
    groups: Mapping[int, Right] = field(default_factory=dict)
    everyone: Right = Right.NONE

    def right_of(self, peer: Peer) -> Right:
        """The highest class that ``peer`` has."""
        if peer.uid in (0, self.owner):
            return Right.ADMIN
        by_group = (self.groups.get(group, Right.NONE) for group in peer.groups)
        return max(self.everyone, self.users.get(peer.uid, Right.NONE), *by_group, Right.NONE)

    def reach_beyond(self, group: int) -> bool:
        """Whether anybody outside of ``group`` may connect: then the socket must be open to all, and this decides."""
        return self.everyone > Right.NONE or bool(self.users) or bool(set(self.groups) - {group})


def strongest(grants: Collection[tuple[int, Right]]) -> dict[int, Right]:
    """Each id with the highest class that it was given."""
    found: dict[int, Right] = {}
    for id, right in grants:
        found[id] = max(right, found.get(id, Right.NONE))
    return found
