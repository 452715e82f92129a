"""Which descriptors of which flow are in the supervisor's store, and under which names.

A name says all that is to be known of a descriptor (:class:`chronetixd.store.descriptor_keys.Key`), part by part, so
that the store alone is enough. Rules: of a flow all is kept or nothing, so that what is not there was never there; a
name stands for one descriptor, and a descriptor keeps its name (systemd takes none that it has under another); every
key has a name, and that name is read as this key and no other; the store follows what the flow has, the new before the
old goes. A name of a flow that does not need it any more, or that has come with several descriptors, is forgotten; one
that is no name of ours stays in the store. Either is told.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import get_args
from urllib.parse import quote

import structlog

from chronetixd.loop.closing import close_memory
from chronetixd.store.descriptor_keys import HIGHEST, Key, Kind
from chronetixd.systemd.fdstore import DescriptorStore

LONGEST = 60
"""Characters of a flow's, node's or route's name; of a longer one there is a digest. A name may have 255 in all."""

_KINDS: dict[str, Kind] = {"c": "credit", "p": "pidfd", "r": "ring", "s": "segment"}
_LETTERS = {kind: letter for letter, kind in _KINDS.items()}
assert set(_LETTERS) == set(get_args(Kind))


SHOWN = 10
"""Names that a record of the log tells."""


def name_of(flow: str, key: Key) -> str:
    """What the descriptor of ``key`` is called. Raises ValueError for numbers that no key has: under another name the
    next daemon would not find it again."""
    numbers = (key.incarnation, key.number, key.resume)
    if not all(0 <= number <= HIGHEST for number in numbers):
        raise ValueError(f"{key} has a number that is not in 0 to {HIGHEST}")
    return "/".join((*map(_part, (flow, key.node, key.route)), _LETTERS[key.kind], *map(str, numbers)))


def _part(text: str) -> str:
    quoted = quote(text, safe="")
    return quoted if len(quoted) <= LONGEST else f"={hashlib.sha256(text.encode()).hexdigest()[: LONGEST - 1]}"


class Stored:
    """What the supervisor has handed over: descriptors by name. Owns them until :meth:`close`."""

    def __init__(self, received: Mapping[str, list[int]], store: DescriptorStore) -> None:
        self._left = dict(received)
        self._store = store
        store.take_over(sum(map(len, received.values())))

    def has(self, flow: str) -> bool:
        """There is something of it."""
        first = f"{_part(flow)}/"
        return any(name.startswith(first) for name in self._left)

    def take(self, flow: str, nodes: Iterable[str], routes: Iterable[str]) -> dict[Key, int]:
        """All that is of ``flow``; the caller's now."""
        known_nodes = {_part(node): node for node in nodes}
        known_routes = {_part(route): route for route in ("", *routes)}
        found: dict[Key, int] = {}
        for name in [name for name in self._left if name.startswith(f"{_part(flow)}/")]:
            key = _parsed(name, known_nodes, known_routes)
            if key is not None and len(self._left[name]) == 1:
                (found[key],) = self._left.pop(name)
        return found

    def close(self) -> None:
        """Close what nobody took, and have it forgotten: it is of flows that have ended. What is no name of ours stays
        where it is: it is another program's, or of a release that knows it. Idempotent."""
        strange = {name for name in self._left if not _MADE.fullmatch(name)}
        for name, descriptors in self._left.items():
            close_memory(*descriptors)
            if name not in strange:
                self._store.forget(name)
                self._store.take_over(1 - len(descriptors))
        _tell(
            "the supervisor keeps descriptors whose names this release cannot read; they stay with it, and take room "
            "until the service is stopped",
            strange,
        )
        _tell("the supervisor kept descriptors that no flow goes on with; they are given up", {*self._left} - strange)
        self._left.clear()


def _tell(what: str, names: set[str]) -> None:
    if names:
        structlog.get_logger("chronetixd").warning(what, count=len(names), names=sorted(names)[:SHOWN])


_MADE = re.compile(rf"[^/]+/[^/]+/[^/]*/[{''.join(_KINDS)}](/(0|[1-9][0-9]{{0,18}})){{3}}", re.ASCII)
"""What :func:`name_of` makes."""


def _parsed(name: str, nodes: Mapping[str, str], routes: Mapping[str, str]) -> Key | None:
    """What ``name`` says, if it is one of ours, of these nodes and routes: the inverse of :func:`name_of`."""
    if not _MADE.fullmatch(name):
        return None
    _, node, route, kind, *told = name.split("/")
    if node not in nodes or route not in routes:
        return None
    incarnation, number, resume = map(int, told)
    key = Key(nodes[node], _KINDS[kind], incarnation, routes[route], number, resume)
    return key if max(incarnation, number, resume) <= HIGHEST else None


class KeptDescriptors:
    """Has the store follow ``flow``. ``found`` is what is in it already."""

    def __init__(self, store: DescriptorStore, flow: str, found: Mapping[Key, int] | None = None) -> None:
        self._store = store
        self._flow = flow
        self._unsure = {key: _identity(fd) for key, fd in (found or {}).items()}
        """What came back from the store, until it is compared with what the flow has."""
        self._kept: set[Key] = set()

    def packed(self) -> list[Key]:
        """What is in the store."""
        return sorted(self._kept)

    def unpack(self, packed: Iterable[Key]) -> None:
        """The inverse."""
        self._kept = set(packed)
        self._store.take_over(len(self._kept))

    def follow(self, wanted: Mapping[Key, int]) -> bool:
        """``wanted`` is what is to be kept from now on; the descriptors stay the caller's. False when the store has no
        room for all of it, and now has nothing."""
        unsure, self._unsure = self._unsure, {}
        for key, identity in unsure.items():
            if key in wanted and _identity(wanted[key]) == identity:
                self._kept.add(key)
            else:
                self._store.forget(name_of(self._flow, key))
        fits = len(wanted.keys() - self._kept) <= self._store.room
        if not fits:
            wanted = {}
        gone = self._kept - wanted.keys()
        for key in wanted.keys() - self._kept:
            if self._store.push(name_of(self._flow, key), wanted[key]):
                self._kept.add(key)
        for key in gone:
            self._store.forget(name_of(self._flow, key))
        self._kept -= gone
        return fits

    def close(self) -> None:
        """Nothing of it is kept any more. Idempotent."""
        self.follow({})


def _identity(fd: int) -> tuple[int, int]:
    """The same for two descriptors of one memory or process."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
