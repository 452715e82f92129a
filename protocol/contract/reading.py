"""Reads maps that came from outside, field by field, and notes every problem under its path.

A :class:`Fields` reads one map. Each of its methods returns a value of the promised type whatever the map holds: the
default if the field is absent, null or wrong, and a problem is noted if it is wrong. Fields that no method has read are
unknown; :meth:`Fields.done` warns about those that look like a misspelling of a known one.

The number of notes and of comparisons is bounded, because the maps may be hostile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final, Self, TypeVar, cast

from chronetix.protocol import cbor
from chronetix.protocol.contract.types import Problem
from chronetix.protocol.nearest import nearest

MAX_NOTES: Final = 100
"""How many problems, and how many warnings, are kept; further problems are counted."""

MAX_COMPARISONS: Final = 20_000
"""How many pairs of an unknown and a known word are compared for likeness: about half a second of work."""

MAX_QUOTE: Final = 60
MAX_NAME: Final = 200
"""The longest name of a flow, node or route, in characters."""

MISSPELT: Final = 0.7
"""The likeness to a known field's name, 0 … 1, from which on an unknown one counts as misspelt."""

Choice = TypeVar("Choice", bound=str)


@dataclass(slots=True)
class ProblemCollector:
    """Collects problems and warnings."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    beyond: int = 0
    comparisons: int = MAX_COMPARISONS

    def problem(self, path: str, message: str, suggestion: str = "") -> None:
        """Note a problem, because of which the flow cannot be run."""
        if len(self.problems) < MAX_NOTES:
            self.problems.append(Problem(path, message, suggestion))
        else:
            self.beyond += 1

    def warn(self, path: str, message: str, suggestion: str = "") -> None:
        """Note a warning: the flow can be run, but perhaps not as it was meant."""
        if len(self.warnings) < MAX_NOTES:
            self.warnings.append(Problem(path, message, suggestion))

    def nearest(self, word: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
        """Return the known word that was probably meant, or None; always None after MAX_COMPARISONS comparisons."""
        if self.comparisons <= 0:
            return None
        self.comparisons -= len(known)
        return nearest(word, known, cutoff)

    def did_you_mean(self, word: str, known: Collection[str], otherwise: str = "") -> str:
        """Return ``did you mean "…"?``, or ``otherwise`` if no known word is near."""
        meant = self.nearest(word, known)
        return otherwise if meant is None else f'did you mean "{meant}"?'

    def finish(self) -> None:
        """Add a problem that says how many problems were not kept."""
        if self.beyond:
            self.problems.append(Problem("", f"and {self.beyond} problems more"))
            self.beyond = 0


class Fields:
    """Reads one map. ``path`` is the map's place in the flow."""

    __slots__ = ("_known", "_raw", "notes", "path")

    def __init__(self, notes: ProblemCollector, path: str, raw: Mapping[str, Any]) -> None:
        self.notes = notes
        self.path = path
        self._raw = raw
        self._known: set[str] = set()

    @property
    def raw(self) -> Mapping[str, Any]:
        """The map as it came."""
        return self._raw

    def at(self, name: str) -> str:
        """Return the path of the field ``name``."""
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Any:
        """Return the field's value, unchecked; None if it is absent or null."""
        self._known.add(name)
        return self._raw.get(name)

    def text(self, name: str, default: str = "") -> str:
        """Return a text."""
        value = self.get(name)
        if value is None or type(value) is str:
            return default if value is None else value
        self._wrong(name, "text", value)
        return default

    def required_text(self, name: str) -> str:
        """Return a text that must exist and must not be empty; empty if a problem was noted."""
        value = self.text(name)
        if not value and self._raw.get(name) in (None, ""):
            self.notes.problem(self.at(name), "is required and missing")
        return value

    def name(self, name: str, *, required: bool = False, blanks: bool = False) -> str:
        """Return a text that serves as a name: printable, at most MAX_NAME long, with ``blanks`` only if they may be in
        it."""
        value = self.required_text(name) if required else self.text(name)
        reason = unfit_name(value.replace(" ", "_") if blanks and value == value.strip() else value)
        if reason:
            self.notes.problem(self.at(name), f"{quote(value)} is no usable name: it {reason}")
            return ""
        return value

    def choice(self, name: str, choices: Sequence[Choice], default: Choice | None = None) -> Choice:
        """Return one of ``choices``; without ``default`` the field is required."""
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

    def usual_choice(self, name: str, choices: Sequence[Choice], default: Choice) -> Choice:
        """Return one of ``choices``; another text counts as the ``default``, with a warning."""
        value = self.get(name)
        if type(value) is not str or value in choices:
            return self.choice(name, choices, default)
        hint = self.notes.did_you_mean(value, choices, f"usual: {', '.join(choices)}")
        self.notes.warn(self.at(name), f"{quote(value)} is not known, and is taken for {quote(default)}", hint)
        return default

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Return an integer from ``low`` to ``high``; None if the field is absent or wrong."""
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
        """Return true or false; false if the field is absent or wrong."""
        value = self.get(name)
        if value is not None and type(value) is not bool:
            self._wrong(name, "true or false", value)
        return value is True

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a finite number above ``low`` (exclusive) up to ``high``; None if the field is absent or wrong."""
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
        """Return a map that is passed on unchanged; its values must be encodable as CBOR."""
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

    def child(self, name: str) -> Self:
        """Return a reader for the map in a field; for an empty map if the field is absent or wrong."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            self._wrong(name, "a map", value)
        return type(self)(self.notes, self.at(name), value if isinstance(value, Mapping) else {})

    def free_child(self, name: str) -> Self:
        """Return a reader for the known entries of a map that is passed on unchanged."""
        return type(self)(self.notes, self.at(name), self.free_map(name))

    def items(self, name: str) -> Iterator[Self]:
        """Yield a reader for each map in a list; a problem is noted for each element that is no map."""
        value = self.get(name)
        if value is None:
            return
        if not isinstance(value, list | tuple):
            self._wrong(name, "a list", value)
            return
        for index, item in enumerate(value):
            path = f"{self.at(name)}[{index}]"
            if isinstance(item, Mapping):
                yield type(self)(self.notes, path, item)
            else:
                self.notes.problem(path, f"must be a map, not {kind_of(item)}")

    def done(self) -> None:
        """Warn about unknown fields that look misspelt. Call this after all known fields have been read."""
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
    """Return why ``value`` is no usable name; empty if it is one. The caller checks for the empty text."""
    if len(value) > MAX_NAME:
        return f"has more than {MAX_NAME} characters"
    if not value.isprintable() or any(char.isspace() for char in value):
        return "has blanks or characters that cannot be printed"
    return ""


def unfit_flow_name(value: str) -> str:
    """Return why ``value`` is no usable name of a flow; empty if it is one. Files, options and calls all use this
    rule."""
    return unfit_name(value) if value else "is empty"


def one_of(choices: Sequence[str]) -> str:
    """Return ``one of: a, b, c``."""
    return "one of: " + ", ".join(choices)


def kind_of(value: Any) -> str:
    """Return the kind of a value in the words of JSON, with as much of the value as fits into a message."""
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
    """Return a text in quotes, or a number, cut to a readable length and without control characters."""
    if isinstance(value, str):
        shown = value[:MAX_QUOTE]
        printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)
        return f'"{printable}…"' if len(value) > MAX_QUOTE else f'"{printable}"'
    if isinstance(value, int) and value.bit_length() > 128:
        return f"of {value.bit_length()} bits"
    return str(value)


def quote_key(name: str) -> str:
    """Return a key as a part of a path."""
    return quote(name)[1:-1]
