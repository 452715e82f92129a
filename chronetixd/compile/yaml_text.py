"""YAML text → tree with places, from PyYAML's event stream: libyaml's, where PyYAML was built with it.

Rules: scalars follow YAML 1.2's core schema (``no`` and ``on`` are text, ``2026-01-01`` is text); one
document; anchors, aliases and ``<<`` work within the tree's limits; tags other than the core ones, keys that are not
text and aliases of unfinished anchors are refused. PyYAML's own composer is not used, because it recurses without
bound. Every text gives a tree or raises Unreadable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import yaml

from chronetixd.compile import tree
from chronetixd.compile.problems import Position
from chronetixd.compile.tree import Scalar, SyntaxNode, Unreadable

Noter: TypeAlias = Callable[[Position, str], None]

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TAG = "tag:yaml.org,2002:"
_SCALAR_TYPES: dict[str, tuple[type, ...]] = {
    f"{_TAG}null": (type(None),),
    f"{_TAG}bool": (bool,),
    f"{_TAG}int": (int,),
    f"{_TAG}float": (float, int),
}


def read_yaml(text: str, duplicate: Noter, not_text: Noter) -> SyntaxNode:
    """Return the one document in ``text``; ``duplicate`` and ``not_text`` are called for bad keys, and reading goes on.

    An empty text is a null node. Raises Unreadable, and nothing else.
    """
    try:
        noted: list[tuple[Noter, Position, str]] = []
        return _Composer(
            _events_of_libyaml(text),
            lambda place, key: noted.append((duplicate, place, key)),
            lambda place, key: noted.append((not_text, place, key)),
        ).document()
    except _Refused:
        noted.clear()
        return _Composer(_events(text), duplicate, not_text).document()
    finally:
        for note, place, key in noted:
            note(place, key)


class _Refused(Exception):
    """Raised for a text that libyaml does not read. PyYAML's own parser, which is twelve times slower, reads it or
    tells why not."""


def _events_of_libyaml(text: str) -> Iterator[yaml.Event]:
    if not yaml.__with_libyaml__ or "\ufeff" in text:  # in the middle of a text it is skipped by one parser only
        raise _Refused
    try:
        yield from yaml.parse(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError):
        raise _Refused from None


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        raise Unreadable(
            _at_offset(text, error.position), f"not YAML: character {error.character!r} is not allowed"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Position(1, 1) if mark is None else Position(mark.line + 1, mark.column + 1)
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise Unreadable(place, f"not YAML: {what}", _syntax_suggestion(what)) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets a few Python errors through, e.g. chr() of "\UFFFFFFFF".
        raise Unreadable(Position(1, 1), f"not YAML: {error}") from None


def _syntax_suggestion(what: str) -> str:
    if r"'\t'" in what:
        return "indent with spaces: YAML allows no tabs there"
    if "mapping values are not allowed" in what:
        return 'put text that contains ": " in quotes'
    return ""


def _at_offset(text: str, offset: int) -> Position:
    before = text[:offset]
    return Position(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _place(event: yaml.Event) -> Position:
    mark = event.start_mark
    return Position(1, 1) if mark is None else Position(mark.line + 1, mark.column + 1)


class _Composer:
    def __init__(self, events: Iterator[yaml.Event], duplicate: Noter, not_text: Noter) -> None:
        self._events = events
        self._duplicate = duplicate
        self._not_text = not_text
        self._anchors: dict[str, SyntaxNode] = {}
        self._open: set[str] = set()

    def document(self) -> SyntaxNode:
        root = SyntaxNode(None, Position(1, 1))
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise Unreadable(_place(event), "a second document starts here", "one flow a file: split it")
                root = self._node(next(self._events), 1)
        return root

    def _node(self, event: yaml.Event, depth: int) -> SyntaxNode:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        place = _place(event)
        tree.check_depth(place, depth)
        anchor: str | None = getattr(event, "anchor", None)
        if anchor is not None:
            self._open.add(anchor)
        if isinstance(event, yaml.ScalarEvent):
            node = tree.scalar(place, _scalar(event, place), str(event.value))
        elif isinstance(event, yaml.SequenceStartEvent):
            _check_tag(event.tag, place, "seq")
            node = self._sequence(place, depth)
        elif isinstance(event, yaml.MappingStartEvent):
            _check_tag(event.tag, place, "map")
            node = self._mapping(place, depth)
        else:
            raise Unreadable(place, "not YAML: expected a value")
        if anchor is not None:
            self._anchors[anchor] = node
            self._open.discard(anchor)
        return node

    def _alias(self, event: yaml.AliasEvent) -> SyntaxNode:
        name = str(event.anchor)
        if name in self._open:
            raise Unreadable(
                _place(event), f'alias "*{name}" stands inside its own anchor', "a flow is finite: write it out"
            )
        if name not in self._anchors:
            raise Unreadable(_place(event), f'alias "*{name}" has no anchor "&{name}" before it')
        return self._anchors[name]

    def _sequence(self, place: Position, depth: int) -> SyntaxNode:
        items: list[SyntaxNode] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return tree.sequence(place, items)

    def _mapping(self, place: Position, depth: int) -> SyntaxNode:
        fields: dict[str, SyntaxNode] = {}
        keys: dict[str, Position] = {}
        merged: list[SyntaxNode] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            is_merge = isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            where = _place(event)
            if is_merge:
                merged += value.items or [value]
            elif not isinstance(key.value, str):
                self._not_text(where, _shown(key))
            else:
                if key.value in fields:
                    self._duplicate(where, key.value)
                fields[key.value], keys[key.value] = value, where
        for source in merged:
            if not isinstance(source.value, dict):
                raise Unreadable(source.place, 'only mappings can be merged with "<<"')
            for name, node in source.value.items():
                fields.setdefault(name, node)
                keys.setdefault(name, source.place_of(name))
        return tree.mapping(place, fields, keys)


def _shown(key: SyntaxNode) -> str:
    if isinstance(key.value, dict):
        return "a mapping"
    if isinstance(key.value, list):
        return "a list"
    return json.dumps(key.value)


def _check_tag(tag: str | None, place: Position, expected: str) -> None:
    if tag not in (None, "!", f"{_TAG}{expected}"):
        raise Unreadable(place, f'tag "{_short(tag)}" is not allowed', "a flow is plain data: leave the tag out")


def _short(tag: Any) -> str:
    return str(tag).replace(_TAG, "!!")


def _scalar(event: yaml.ScalarEvent, place: Position) -> Scalar:
    text = str(event.value)
    tag = event.tag
    if tag is None:
        return _resolve(text, place) if event.implicit[0] else text
    if tag in ("!", f"{_TAG}str"):
        return text
    if tag not in _SCALAR_TYPES:
        raise Unreadable(place, f'tag "{_short(tag)}" is not allowed', "a flow is plain data: leave the tag out")
    value = _resolve(text, place)
    if type(value) not in _SCALAR_TYPES[tag]:
        raise Unreadable(place, f'"{text[:40]}" is no {_short(tag)}')
    return float(value) if tag == f"{_TAG}float" and isinstance(value, int) else value


def _resolve(text: str, place: Position) -> Scalar:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        if len(text) > 64:
            raise Unreadable(place, "a whole number that does not fit into 64 bits", "write it as text, in quotes")
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text
