"""JSON text → tree with places. Strict RFC 8259, one value, nothing behind it.

Rules: duplicate keys are noted and reading goes on; every other fault raises Unreadable. Recursion is bounded by the
tree's depth limit. The standard library's scanner reports no positions, so only its string scanner is used.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable

from chronetixd.compile import tree
from chronetixd.compile.problems import Position
from chronetixd.compile.tree import SyntaxNode, Unreadable

_SPACE = re.compile(r"[ \t\n\r]*")
_scan_string: Callable[[str, int, bool], tuple[str, int]] = vars(json.decoder)["scanstring"]
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS: tuple[tuple[str, bool | None], ...] = (("true", True), ("false", False), ("null", None))


def read_json(text: str, duplicate: Callable[[Position, str], None]) -> SyntaxNode:
    """Return the one value in ``text``; ``duplicate(place, key)`` is called for each repeated key.

    Raises Unreadable, and nothing else.
    """
    return _Reader(text, duplicate).document()


class _Reader:
    def __init__(self, text: str, duplicate: Callable[[Position, str], None]) -> None:
        self._text = text
        self._duplicate = duplicate
        self._starts = [0, *(match.end() for match in re.finditer("\n", text)), len(text) + 1]
        self._line = 1
        """The line of the place that was asked for last; the next one is mostly on it."""

    def document(self) -> SyntaxNode:
        node, at = self._value(self._skip(0), 1)
        at = self._skip(at)
        if at != len(self._text):
            raise self._fault(at, "something follows the document's end")
        return node

    def _place(self, at: int) -> Position:
        starts = self._starts
        if not starts[self._line - 1] <= at < starts[self._line]:
            self._line = bisect_right(starts, at, 0, len(starts) - 1)
        return Position(self._line, at - starts[self._line - 1] + 1)

    def _fault(self, at: int, what: str) -> Unreadable:
        seen = self._text[at : at + 1]
        found = f"{seen!r}" if seen else "the end of the text"
        return Unreadable(self._place(at), f"not JSON: {what}, found {found}")

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return match.end() if match else at

    def _value(self, at: int, depth: int) -> tuple[SyntaxNode, int]:
        tree.check_depth(self._place(at), depth)
        match self._text[at : at + 1]:
            case "{":
                return self._object(at, depth)
            case "[":
                return self._array(at, depth)
            case '"':
                text, end = self._string(at)
                return tree.scalar(self._place(at), text, ""), end
        for word, value in _WORDS:
            if self._text.startswith(word, at):
                return tree.scalar(self._place(at), value, word), at + len(word)
        return self._number(at)

    def _string(self, at: int) -> tuple[str, int]:
        try:
            text, end = _scan_string(self._text, at + 1, True)
        except json.JSONDecodeError as error:
            raise Unreadable(self._place(error.pos), f"not JSON: {error.msg}") from None
        return text, end

    def _number(self, at: int) -> tuple[SyntaxNode, int]:
        match = _NUMBER.match(self._text, at)
        if match is None:
            raise self._fault(at, "expected a value")
        whole = match.group(1) is None and match.group(2) is None
        if whole and len(match.group()) > 24:
            raise Unreadable(self._place(at), "a whole number that does not fit into 64 bits")
        value = int(match.group()) if whole else float(match.group())
        return tree.scalar(self._place(at), value, match.group()), match.end()

    def _object(self, start: int, depth: int) -> tuple[SyntaxNode, int]:
        fields: dict[str, SyntaxNode] = {}
        keys: dict[str, Position] = {}
        at = self._skip(start + 1)
        if self._text[at : at + 1] == "}":
            return tree.mapping(self._place(start), fields, keys), at + 1
        while True:
            if self._text[at : at + 1] != '"':
                raise self._fault(at, "expected a key in double quotes")
            key, end = self._string(at)
            place = self._place(at)
            tree.check_key(place, key)
            at = self._skip(end)
            if self._text[at : at + 1] != ":":
                raise self._fault(at, f'expected ":" behind key "{key}"')
            node, at = self._value(self._skip(at + 1), depth + 1)
            if key in fields:
                self._duplicate(place, key)
            fields[key], keys[key] = node, place
            at, more = self._separator(self._skip(at), "}")
            if not more:
                return tree.mapping(self._place(start), fields, keys), at

    def _array(self, start: int, depth: int) -> tuple[SyntaxNode, int]:
        items: list[SyntaxNode] = []
        at = self._skip(start + 1)
        if self._text[at : at + 1] == "]":
            return tree.sequence(self._place(start), items), at + 1
        while True:
            node, at = self._value(at, depth + 1)
            items.append(node)
            at, more = self._separator(self._skip(at), "]")
            if not more:
                return tree.sequence(self._place(start), items), at

    def _separator(self, at: int, end: str) -> tuple[int, bool]:
        seen = self._text[at : at + 1]
        if seen == ",":
            return self._skip(at + 1), True
        if seen == end:
            return at + 1, False
        raise self._fault(at, f'expected "," or "{end}"')
