"""Reading maps that came from outside, field by field, noting every problem under its path.

A :class:`Fields` reads one map. Each of its methods gives a value of the promised type whatever the map holds: the
default, when the field is absent, null or wrong, and in the last case a problem is noted. Fields nobody asked for are
unknown; :meth:`Fields.done` warns about those that look like a misspelling of a known one.

What is noted and how much is compared is bounded, since the maps may be hostile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final, TypeVar, cast

from chronetix.protocol import cbor
from chronetix.protocol.contract.types import Problem
from chronetix.protocol.nearest import nearest

MAX_NOTES: Final = 100
"""Problems, and warnings, that are kept one by one; further ones are counted."""

MAX_COMPARISONS: Final = 20_000
"""Pairs of an unknown and a known word that are compared for likeness: about half a second of work."""

MAX_QUOTE: Final = 60
MAX_NAME: Final = 200
"""Characters of a name: of a flow, a node, a route."""

MISSPELT: Final = 0.7
"""How like a known field's name an unknown one must be to be taken for a misspelling."""

Choice = TypeVar("Choice", bound=str)


@dataclass(slots=True)
class Notes:
    """Problems and warnings as they are found."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    beyond: int = 0
    comparisons: int = MAX_COMPARISONS

    def problem(self, path: str, message: str, suggestion: str = "") -> None:
        """The flow cannot be run because of this."""
        if len(self.problems) < MAX_NOTES:
            self.problems.append(Problem(path, message, suggestion))
        else:
            self.beyond += 1

    def warn(self, path: str, message: str, suggestion: str = "") -> None:
        """The flow can be run, but this may not be what was meant."""
        if len(self.warnings) < MAX_NOTES:
            self.warnings.append(Problem(path, message, suggestion))

    def nearest(self, word: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
        """The known word that was probably meant, or None; always None once MAX_COMPARISONS were made."""
        if self.comparisons <= 0:
            return None
        self.comparisons -= len(known)
        return nearest(word, known, cutoff)

    def did_you_mean(self, word: str, known: Collection[str], otherwise: str = "") -> str:
        """``did you mean "…"?``, or ``otherwise`` when no known word is near."""
        meant = self.nearest(word, known)
        return otherwise if meant is None else f'did you mean "{meant}"?'

    def finish(self) -> None:
        """Say how many problems were not kept."""
        if self.beyond:
            self.problems.append(Problem("", f"and {self.beyond} problems more"))
            self.beyond = 0


class Fields:
    """One map being read. ``path`` is where it stands in the flow."""

    __slots__ = ("_known", "_raw", "notes", "path")

    def __init__(self, notes: Notes, path: str, raw: Mapping[str, Any]) -> None:
        self.notes = notes
        self.path = path
        self._raw = raw
        self._known: set[str] = set()

    @property
    def raw(self) -> Mapping[str, Any]:
        """The map as it came."""
        return self._raw

    def at(self, name: str) -> str:
        """The path of field ``name``."""
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Any:
        """The field's value, unchecked; None when it is absent or null."""
        self._known.add(name)
        return self._raw.get(name)

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        value = self.get(name)
        if value is None or type(value) is str:
            return default if value is None else value
        self._wrong(name, "text", value)
        return default

    def required_text(self, name: str) -> str:
        """A text that must be there and not be empty; empty when a problem was noted."""
        value = self.text(name)
        if not value and self._raw.get(name) in (None, ""):
            self.notes.problem(self.at(name), "is required and missing")
        return value

    def name(self, name: str, *, required: bool = False) -> str:
        """A text that names something to people: printable, without blanks, at most MAX_NAME long."""
        value = self.required_text(name) if required else self.text(name)
        reason = unfit_name(value)
        if reason:
            self.notes.problem(self.at(name), f"{quote(value)} is no usable name: it {reason}")
            return ""
        return value

    def choice(self, name: str, choices: Sequence[Choice], default: Choice | None = None) -> Choice:
        """One of ``choices``; without ``default`` the field is required."""
        value = self.get(name)
        if value in choices and type(value) is str:
            return cast(Choice, value)
        if value is None:
            if default is None:
                self.notes.problem(self.at(name), "is required and missing", one_of(choices))
        elif type(value) is not str:
            self._wrong(name, "text", value, one_of(choices))
        else:
            hint = self.notes.did_you_mean(value, choices, one_of(choices))
            self.notes.problem(self.at(name), f"{quote(value)} is not known", hint)
        return choices[0] if default is None else default

    def integer(self, name: str, low: int, high: int) -> int | None:
        """An integer from ``low`` to ``high``."""
        value = self.get(name)
        if value is None:
            return None
        if type(value) is float and value.is_integer() and abs(value) < 1 << 53:
            value = int(value)
        if type(value) is not int:
            self._wrong(name, "an integer", value)
            return None
        if not low <= value <= high:
            self.notes.problem(self.at(name), f"{quote(value)} is out of range, {low} to {high} would do")
            return None
        return value

    def flag(self, name: str) -> bool:
        """True or false; false if it is not there."""
        value = self.get(name)
        if value is not None and type(value) is not bool:
            self._wrong(name, "true or false", value)
        return value is True

    def number(self, name: str, low: float, high: float) -> float | None:
        """A finite number above ``low`` (exclusive) up to ``high``."""
        value = self.get(name)
        if value is None:
            return None
        if type(value) not in (int, float):
            self._wrong(name, "a number", value)
            return None
        if not low < value <= high or (type(value) is float and not isfinite(value)):
            self.notes.problem(self.at(name), f"{quote(value)} is out of range, above {low} up to {high} would do")
            return None
        return float(value)

    def free_map(self, name: str) -> Mapping[str, Any]:
        """A map that is handed on as it is: anything that CBOR can carry."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self._wrong(name, "a map", value)
            return {}
        try:
            cbor.check(value)
        except cbor.CborError as reason:
            self.notes.problem(self.at(name), f"cannot be sent to the plugin: {reason}")
            return {}
        return value

    def child(self, name: str) -> Fields:
        """A map to be read in turn; an empty one when it is absent or wrong."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            self._wrong(name, "a map", value)
        return Fields(self.notes, self.at(name), value if isinstance(value, Mapping) else {})

    def items(self, name: str) -> Iterator[Fields]:
        """The maps of a list, each to be read in turn; elements that are no maps are noted and left out."""
        value = self.get(name)
        if value is None:
            return
        if not isinstance(value, list | tuple):
            self._wrong(name, "a list", value)
            return
        for index, item in enumerate(value):
            path = f"{self.at(name)}[{index}]"
            if isinstance(item, Mapping):
                yield Fields(self.notes, path, item)
            else:
                self.notes.problem(path, f"must be a map, not {kind_of(item)}")

    def done(self) -> None:
        """All known fields have been asked for: warn about unknown ones that look misspelt."""
        for name in self._raw:
            if name in self._known or type(name) is not str:
                continue
            meant = self.notes.nearest(name, self._known, MISSPELT)
            if meant is not None and self._raw.get(meant) is None:
                message = "is not a known field and has no effect"
                self.notes.warn(self.at(quote_key(name)), message, f'did you mean "{meant}"?')

    def _wrong(self, name: str, wanted: str, value: Any, suggestion: str = "") -> None:
        self.notes.problem(self.at(name), f"must be {wanted}, not {kind_of(value)}", suggestion)


def unfit_name(value: str) -> str:
    """Why ``value`` cannot name something, or nothing. The empty text is somebody else's problem."""
    if len(value) > MAX_NAME:
        return f"has more than {MAX_NAME} characters"
    if not value.isprintable() or any(char.isspace() for char in value):
        return "has blanks or characters that cannot be printed"
    return ""


def unfit_flow_name(value: str) -> str:
    """Why no flow can be called ``value``, or nothing: the one rule for what a file, an option or a call gives as the
    name of a flow."""
    return unfit_name(value) if value else "is empty"


def one_of(choices: Sequence[str]) -> str:
    """``one of: a, b, c``."""
    return "one of: " + ", ".join(choices)


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON, with as much of it as can be quoted."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {quote(value)}"
        case int() | float():
            return f"the number {quote(value)}"
        case bytes() | bytearray():
            return "bytes"
        case Mapping():
            return "a map"
        case list() | tuple():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def quote(value: str | float) -> str:
    """A text in quotes, or a number, cut to what can be read; nothing in it can disturb a terminal."""
    if isinstance(value, str):
        shown = value[:MAX_QUOTE]
        printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)
        return f'"{printable}…"' if len(value) > MAX_QUOTE else f'"{printable}"'
    if isinstance(value, int) and value.bit_length() > 128:
        return f"of {value.bit_length()} bits"
    return str(value)


def quote_key(name: str) -> str:
    """A key as part of a path."""
    return quote(name)[1:-1]
