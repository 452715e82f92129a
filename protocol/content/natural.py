"""A Python value in the few shapes that a format has: numpy's scalars are numbers, an enumeration's member is its
value, dataclasses, attrs classes and msgspec structs are maps by their fields, any other mapping is a map, sets and
other collections are lists.

A format says by its :class:`FormatRules` what it makes of the rest. :class:`Unfit` says what has no form, where in the
value it is, and what to write instead; nothing is changed silently.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import os
import sys
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Set, ValuesView
from types import GeneratorType
from typing import Any, Final

import msgspec

MAX_DEPTH: Final = 200
"""Containers inside each other. Bounds what reading takes of the stack, also in a plugin that is deep in calls."""

MAX_PATH: Final = 160
"""Characters of a place in a value that are shown."""

MINUTE: Final = datetime.timedelta(minutes=1)

TIMES: Final = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
"""``datetime`` is a ``date``, so it comes first."""


class Unfit(TypeError):
    """Why a value cannot be sent; ``path`` is where in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def inside(self, step: str) -> Unfit:
        """The same, told by who holds the value."""
        self.path = step + self.path
        return self

    def __str__(self) -> str:
        path = self.path if len(self.path) <= MAX_PATH else f"{self.path[:MAX_PATH]}…"
        return f"at {path}: {self.reason}" if path else self.reason


@dataclasses.dataclass(frozen=True, slots=True)
class FormatRules:
    """What is a format's own. ``plain`` types stay as they are; ``number`` looks at floats, ``leaf`` at whatever is no
    container, ``key`` at map keys, ``bag`` makes something of a set's items; each raises Unfit for what has no form."""

    plain: frozenset[type]
    number: Callable[[float], Any]
    leaf: Callable[[Any], Any]
    key: Callable[[Any], Any]
    bag: Callable[[list[Any]], Any]


def natural(value: Any, rules: FormatRules, left: int = MAX_DEPTH) -> Any:
    """``value`` in the shapes of ``rules``' format. Raises Unfit."""
    kind = type(value)
    if kind in rules.plain:
        return value
    if kind is float:
        return rules.number(value)
    if kind is dict:
        return _map(value, rules, left)
    if kind is list or kind is tuple:
        return _list(value, rules, left)
    return _other(value, rules, left)


def _other(value: Any, rules: FormatRules, left: int) -> Any:
    kind = type(value)
    if isinstance(value, enum.Enum):
        return natural(value.value, rules, left)
    bases: tuple[Any, ...] = (bool, int, str, float, bytes)
    for base in bases:
        if kind is not base and isinstance(value, base):
            return natural(base(value), rules, left)
    if isinstance(value, Mapping):
        return _map(value, rules, left)
    if isinstance(value, Set | ValuesView):
        return rules.bag(_list(value, rules, left))
    if isinstance(value, list | tuple | range | deque):
        return _list(value, rules, left)
    fields = _fields(value)
    if fields is not None:
        return _map(fields, rules, left)
    if is_scalar(value):
        return natural(number_of(value), rules, left)
    return rules.leaf(value)


def _map(value: Mapping[Any, Any], rules: FormatRules, left: int) -> dict[Any, Any]:
    _room(left)
    made: dict[Any, Any] = {}
    for key, item in value.items():
        try:
            name = key if type(key) is str else rules.key(key)
            if name in made:
                raise Unfit(f"two keys of the map would be the same, {name!r}")
            made[name] = natural(item, rules, left - 1)
        except Unfit as reason:
            raise reason.inside(f".{key}"[:64] if type(key) is str else f"[{str(key)[:60]}]") from None
    return made


def _list(value: Any, rules: FormatRules, left: int) -> list[Any]:
    _room(left)
    made: list[Any] = []
    try:
        for item in value:
            made.append(natural(item, rules, left - 1))
    except Unfit as reason:
        raise reason.inside(f"[{len(made)}]") from None
    return made


def _room(left: int) -> None:
    if left <= 0:
        raise Unfit(f"more than {MAX_DEPTH} containers are inside each other; does one contain itself?")


def _fields(value: Any) -> dict[str, Any] | None:
    """Of an instance with declared fields, these; None for any other object."""
    kind = type(value)
    if isinstance(value, msgspec.Struct):
        return _struct_fields(value)
    if dataclasses.is_dataclass(kind):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(kind)}
    if hasattr(kind, "__attrs_attrs__"):
        return {each.name: getattr(value, each.name) for each in kind.__attrs_attrs__}
    return None


def _struct_fields(value: msgspec.Struct) -> dict[str, Any]:
    """By the names, and with the tag, that msgspec itself would write."""
    config = value.__struct_config__
    tagged = {config.tag_field: config.tag} if config.tag_field is not None else {}
    names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
    return {**tagged, **{written: getattr(value, name) for written, name in names}}


def is_scalar(value: Any) -> bool:
    """It is one of numpy's scalars; without numpy nothing is."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def number_of(value: Any) -> Any:
    """A numpy scalar as Python's own. Raises Unfit for what Python has no exact number for."""
    kind = value.dtype.kind
    if kind in "mM":
        raise Unfit(f"a {type(value).__name__} has no time zone and its own unit: send str(value) or a datetime")
    if kind in "VO":
        raise Unfit("a record of a structured array is no plain value: send its fields, as a dict")
    made = value.item()
    if is_scalar(made):  # long doubles are no Python numbers
        raise Unfit(f"a {type(value).__name__} has more digits than a Python number: send float(value)")
    return made


def time_of(value: Any) -> Any:
    """An instance of one of TIMES, or of a class made of it (pandas' Timestamp), as one of them. Raises Unfit."""
    if value != value:
        raise Unfit("it is not a time (NaT): send None")
    if getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0):  # pandas has them
        raise Unfit("a time with nanoseconds, of which Python's keep microseconds: send its value in ns, or round it")
    offset = value.utcoffset() if isinstance(value, datetime.datetime | datetime.time) else None
    if offset is not None and offset % MINUTE:
        raise Unfit(
            f"a time {offset} off UTC, and RFC 3339 has hours and minutes there: send value.astimezone(timezone.utc)"
        )
    for base in TIMES:
        if type(value) is base:
            return value
    if isinstance(value, datetime.datetime):
        return datetime.datetime.combine(value.date(), value.timetz())
    if isinstance(value, datetime.date):
        return datetime.date(value.year, value.month, value.day)
    if isinstance(value, datetime.timedelta):
        return datetime.timedelta(value.days, value.seconds, value.microseconds)
    return datetime.time(value.hour, value.minute, value.second, value.microsecond, value.tzinfo, fold=value.fold)


def aware(value: Any) -> Any:
    """``value``, if its offset from UTC is known or nobody has asked for one: a datetime has to have one, a time of
    day may be without a zone. Raises Unfit."""
    if isinstance(value, datetime.datetime) and value.utcoffset() is None:
        raise Unfit("a time without a time zone: say which one, datetime.now(timezone.utc), or send value.isoformat()")
    if isinstance(value, datetime.time) and value.tzinfo is not None and value.utcoffset() is None:
        raise Unfit("a time of day in a zone whose offset depends on the date: send a datetime, or without tzinfo")
    return value


def identifier(value: Any) -> Any:
    """An instance of one of IDENTIFIERS. Raises Unfit for a decimal number that is none."""
    if isinstance(value, decimal.Decimal) and not value.is_finite():
        raise Unfit(f"a Decimal that is {value} has no form in it: send None, or float(value) on CBOR")
    return value


def is_text(value: Any) -> bool:
    """It goes as text everywhere: a path."""
    return isinstance(value, os.PathLike)


def unknown(value: Any, *, hint: str = "") -> Unfit:
    """Nobody knows what this should be."""
    kind = type(value)
    if isinstance(value, GeneratorType):
        hint = hint or "write the callback itself with yield, or send list(…) of it"
    hint = hint or awaited(value)
    as_array = "send numpy.asarray(…) of it" if hasattr(kind, "__array__") else ""
    cure = hint or as_array or "send a dict or a list of what is wanted of it"
    return Unfit(f"a {kind.__module__}.{kind.__qualname__} has no form in it: {cure}")


def awaited(value: Any) -> str:
    """What to do about a ``value`` that has to be awaited, as a coroutine; empty for any other."""
    kind = type(value)
    if hasattr(kind, "__await__"):
        return (
            "it has to be awaited: make the callback itself an `async def`, also one that wraps another, and await it"
        )
    if hasattr(kind, "__anext__"):
        return "its items have to be awaited: make the callback itself an `async def` with yield"
    return ""


IDENTIFIERS: Final = (
    uuid.UUID,
    decimal.Decimal,
    fractions.Fraction,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
)
"""Values with a customary text, for which CBOR has tags."""
