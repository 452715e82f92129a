"""Names and stores the descriptors of a flow in the service manager's descriptor store.

A name holds everything that the next daemon has to know of a descriptor
(:class:`chronetixd.store.descriptor_keys.Key`),
so that the store alone is enough. Rules:

* The store has all descriptors of a flow or none, so that a missing one never existed.
* A name stands for one descriptor, and a descriptor keeps its name, because systemd does not store the same file under
a
  second name. Every key has a name, and the name is parsed as this key and no other.
* The store follows the flow: new descriptors are stored before old ones are removed.
* A name that its flow no longer needs, or that came with several descriptors, is removed from the store; a name that
  chronetix did not make stays in the store. Both are logged.
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
"""The longest name of a flow, node or route that is part of a descriptor's name; a longer one is replaced by a digest.
A descriptor's name may have 255 characters in all."""

_KINDS: dict[str, Kind] = {"c": "credit", "p": "pidfd", "r": "ring", "s": "segment"}
_LETTERS = {kind: letter for letter, kind in _KINDS.items()}
assert set(_LETTERS) == set(get_args(Kind))


SHOWN = 10
"""How many names one record of the log lists."""


def name_of(flow: str, key: Key) -> str:
    """Return the name of the descriptor of ``key``. Raises ValueError for numbers outside of 0 to HIGHEST, because the
    next daemon could not parse their name."""
    numbers = (key.incarnation, key.number, key.resume)
    if not all(0 <= number <= HIGHEST for number in numbers):
        raise ValueError(f"{key} has a number that is not in 0 to {HIGHEST}")
    return "/".join((*map(_part, (flow, key.node, key.route)), _LETTERS[key.kind], *map(str, numbers)))


def _part(text: str) -> str:
    quoted = quote(text, safe="")
    return quoted if len(quoted) <= LONGEST else f"={hashlib.sha256(text.encode()).hexdigest()[: LONGEST - 1]}"


class Stored:
    """The descriptors that the service manager handed over, by name. Owns them until :meth:`close`."""

    def __init__(self, received: Mapping[str, list[int]], store: DescriptorStore) -> None:
        self._left = dict(received)
        self._store = store
        store.take_over(sum(map(len, received.values())))

    def has(self, flow: str) -> bool:
        """Whether there is a descriptor of the flow."""
        first = f"{_part(flow)}/"
        return any(name.startswith(first) for name in self._left)

    def take(self, flow: str, nodes: Iterable[str], routes: Iterable[str]) -> dict[Key, int]:
        """Return all descriptors of ``flow`` by key; the caller owns them from now on."""
        known_nodes = {_part(node): node for node in nodes}
        known_routes = {_part(route): route for route in ("", *routes)}
        found: dict[Key, int] = {}
        for name in [name for name in self._left if name.startswith(f"{_part(flow)}/")]:
            key = _parsed(name, known_nodes, known_routes)
            if key is not None and len(self._left[name]) == 1:
                (found[key],) = self._left.pop(name)
        return found

    def close(self) -> None:
        """Close the descriptors that were not taken, and remove them from the store: their flows have ended.
        Descriptors whose names chronetix did not make stay in the store: they belong to another program or to another
        release. Idempotent."""
        strange = {name for name in self._left if not _MADE.fullmatch(name)}
        for name, descriptors in self._left.items():
            close_memory(*descriptors)
            if name not in strange:
                self._store.forget(name)
                self._store.take_over(1 - len(descriptors))
        _tell(
            "the service manager stores descriptors whose names this release cannot read; they stay in its store, and "
            "take room until the service is stopped",
            strange,
        )
        _tell("the service manager had descriptors of flows that have ended; they are closed", {*self._left} - strange)
        self._left.clear()


def _tell(what: str, names: set[str]) -> None:
    if names:
        structlog.get_logger("chronetixd").warning(what, count=len(names), names=sorted(names)[:SHOWN])


_MADE = re.compile(rf"[^/]+/[^/]+/[^/]*/[{''.join(_KINDS)}](/(0|[1-9][0-9]{{0,18}})){{3}}", re.ASCII)
"""Matches every name that :func:`name_of` makes."""


def _parsed(name: str, nodes: Mapping[str, str], routes: Mapping[str, str]) -> Key | None:
    """Return the key that ``name`` stands for; None if :func:`name_of` did not make it for one of these nodes and
    routes."""
    if not _MADE.fullmatch(name):
        return None
    _, node, route, kind, *told = name.split("/")
    if node not in nodes or route not in routes:
        return None
    incarnation, number, resume = map(int, told)
    key = Key(nodes[node], _KINDS[kind], incarnation, routes[route], number, resume)
    return key if max(incarnation, number, resume) <= HIGHEST else None


class KeptDescriptors:
    """The descriptors of ``flow`` in the store. ``found`` are those that an earlier daemon stored."""

    def __init__(self, store: DescriptorStore, flow: str, found: Mapping[Key, int] | None = None) -> None:
        self._store = store
        self._flow = flow
        self._unsure = {key: _identity(fd) for key, fd in (found or {}).items()}
        """Descriptors that an earlier daemon stored, until they are compared with those that the flow has."""
        self._kept: set[Key] = set()

    def packed(self) -> list[Key]:
        """Return the keys of the stored descriptors, for a snapshot."""
        return sorted(self._kept)

    def unpack(self, packed: Iterable[Key]) -> None:
        """Take over the keys of a snapshot."""
        self._kept = set(packed)
        self._store.take_over(len(self._kept))

    def follow(self, wanted: Mapping[Key, int]) -> bool:
        """Make the store have exactly the descriptors ``wanted``, which stay the caller's. Return False when the store
        has no room for all of them; it has none of this flow then."""
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
        """Remove all descriptors of the flow from the store. Idempotent."""
        self.follow({})


def _identity(fd: int) -> tuple[int, int]:
    """Return device and inode, which are the same for two descriptors of one memory or process."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
