"""Access rules: three classes of verbs, and which of them a peer may call.

Rules: a class contains the classes below it. Root and the user that the daemon runs as always have the class ADMIN. Any
other user has what the rules grant to that user or to one of the user's groups, and nothing without a grant. A peer
with OPERATE can have any program run as the daemon's user. Pure: names have been looked up before, and credentials come
from the kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Right(IntEnum):
    """A class of verbs; a higher value contains the lower ones."""

    NONE = 0
    READ = 1
    """List flows, and read logs, events and figures."""
    OPERATE = 2
    """Submit and stop flows, publish messages, and check what a submission would find."""
    ADMIN = 3
    """Act on the daemon itself: read its audit log, upgrade it."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a socket, with the credentials that the kernel recorded when it connected."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    """All groups of the process, the primary one included."""
    program: str = ""
    """The name of the program, for display only: the kernel does not vouch for it."""


class Asker(NamedTuple):
    """Who asks for a flow: the user of the client's process, and the right that it has."""

    uid: int
    right: Right


@dataclass(frozen=True, slots=True)
class Rules:
    """The classes that are granted to users and to groups; ``owner`` is the user that the daemon runs as."""

    owner: int
    users: Mapping[int, Right] = field(default_factory=dict)
    groups: Mapping[int, Right] = field(default_factory=dict)
    everyone: Right = Right.NONE

    def right_of(self, peer: Peer) -> Right:
        """Return the highest class that ``peer`` has."""
        if peer.uid in (0, self.owner):
            return Right.ADMIN
        by_group = (self.groups.get(group, Right.NONE) for group in peer.groups)
        return max(self.everyone, self.users.get(peer.uid, Right.NONE), *by_group, Right.NONE)

    def reach_beyond(self, group: int) -> bool:
        """Return whether any user outside ``group`` may connect. The socket must then be open to all users, and these
        rules alone decide."""
        return self.everyone > Right.NONE or bool(self.users) or bool(set(self.groups) - {group})


def strongest(grants: Collection[tuple[int, Right]]) -> dict[int, Right]:
    """Return each id with the highest class that was granted to it."""
    found: dict[int, Right] = {}
    for id, right in grants:
        found[id] = max(right, found.get(id, Right.NONE))
    return found
