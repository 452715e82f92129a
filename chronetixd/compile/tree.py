"""A document as a tree in which every value has its place in the text.

Rules: mappings have text keys only; the tree is finite, at most MAX_DEPTH deep and MAX_NODES large (an alias counts
each time it occurs), so that the cost of walking it recursively and of writing it out is bounded for every text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from chronetixd.compile.problems import Position

MAX_DEPTH = 48
"""Deepest nesting of a document, which bounds every recursion over the tree; flows need far less."""

MAX_NODES = 1_000_000
"""Largest number of values in a document after aliases are expanded: refuses alias bombs."""

Scalar: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class SyntaxNode:
    """A value and its place. ``keys`` has the places of a mapping's keys, ``written`` a number as the text has it."""

    value: Scalar | dict[str, SyntaxNode] | list[SyntaxNode]
    place: Position
    keys: dict[str, Position] = field(default_factory=dict)
    size: int = 1
    height: int = 1
    written: str = ""

    @property
    def fields(self) -> dict[str, SyntaxNode]:
        """The mapping's values, empty when this is no mapping."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[SyntaxNode]:
        """The list's values, empty when this is no list."""
        return self.value if isinstance(self.value, list) else []

    @property
    def text(self) -> str | None:
        """The value when it is text, else None."""
        return self.value if isinstance(self.value, str) else None

    def get(self, key: str) -> SyntaxNode | None:
        """The mapping's value for ``key``; None when absent, null, or this is no mapping."""
        found = self.fields.get(key)
        return None if found is None or found.value is None else found

    def place_of(self, key: str) -> Position:
        """Return the place of ``key``, or of this value if it has no such key."""
        return self.keys.get(key, self.place)

    def plain(self) -> Any:
        """The value without places, freshly made: dict, list, str, int, float, bool or None."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class Unreadable(Exception):
    """Raised for a text that is no document: reading cannot go on from ``place``."""

    def __init__(self, place: Position, message: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.place = place
        self.message = message
        self.suggestion = suggestion


def mapping(place: Position, fields: dict[str, SyntaxNode], keys: dict[str, Position]) -> SyntaxNode:
    """A mapping node. Raises Unreadable when it grows over the limits."""
    return _limited(SyntaxNode(fields, place, keys, *_extent(list(fields.values()))))


def sequence(place: Position, items: list[SyntaxNode]) -> SyntaxNode:
    """A list node. Raises Unreadable when it grows over the limits."""
    return _limited(SyntaxNode(items, place, {}, *_extent(items)))


def scalar(place: Position, value: Scalar, written: str) -> SyntaxNode:
    """A scalar node; the text has it as ``written``. Raises Unreadable for what neither JSON nor CBOR can carry."""
    if isinstance(value, str):
        _check_text(place, value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise Unreadable(place, "a whole number that does not fit into 64 bits", "write it as text, in quotes")
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        raise Unreadable(place, "a number that is not finite", "JSON has no infinity and no NaN: leave it out")
    return SyntaxNode(value, place, written="" if isinstance(value, str) else written)


def check_depth(place: Position, depth: int) -> None:
    """Raise Unreadable if ``depth`` is over MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise Unreadable(place, f"nested more than {MAX_DEPTH} levels deep", "flatten the document")


def check_key(place: Position, key: str) -> None:
    """Raise Unreadable if ``key`` cannot be written as UTF-8."""
    _check_text(place, key)


def _check_text(place: Position, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unreadable(
            place, "half of a surrogate pair in a text", r"write the whole character, not \uD8xx"
        ) from None


def _extent(children: list[SyntaxNode]) -> tuple[int, int]:
    size, height = 1, 0
    for child in children:
        size += child.size
        height = max(height, child.height)
    return size, height + 1


def _limited(node: SyntaxNode) -> SyntaxNode:
    check_depth(node.place, node.height)
    if node.size > MAX_NODES:
        raise Unreadable(node.place, f"more than {MAX_NODES} values once aliases are expanded", "use fewer aliases")
    return node
