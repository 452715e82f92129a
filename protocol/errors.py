"""The error catalogue as exceptions: each error has a code, a name, what happened and what to do next.

``errors.json`` is the one source: documents, ``chronetixctl errors`` and these exceptions come from it. Codes: 1xxx
protocol, 2xxx flow contract and compile, 3xxx lifecycle, 4xxx permission, 5xxx data plane, 6xxx daemon. The class shows
which side caused the error: :class:`LocalError` (this side misused something or failed), :class:`ProtocolError` (the
peer broke the protocol or its memory), :class:`RemoteError` (the other side reported it), plain :class:`ChronetixError`
(the call cannot be fulfilled). A code or a name is never given another meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from chronetix.protocol.messages import Failure


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of error. ``message`` and ``hint`` are templates whose ``{fields}`` are the error's details; a part in
    brackets is left out if a detail in it is None."""

    code: int
    name: str
    fault: Literal["peer", "local", "asker"]
    message: str
    hint: str


def _read_catalogue() -> dict[str, Entry]:
    text = Path(__file__).with_name("errors.json").read_bytes()
    return {entry.name: entry for entry in msgspec.json.decode(text, type=list[Entry])}


CATALOGUE: Final[Mapping[str, Entry]] = _read_catalogue()
"""Every entry by its name, in the order of the codes."""


class ChronetixError(Exception):
    """A call cannot be fulfilled. Made by :func:`error`."""

    def __init__(self, code: int, name: str, message: str, hint: str, details: dict[str, Any]) -> None:
        super().__init__(code, name, message, hint, details)
        self.code = code
        self.name = name
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} [{self.name}, {self.code}]"

    def failure(self, id: int | None = None) -> Failure:
        """Return the message that reports this error to the peer; with ``id`` the message ends that call."""
        return Failure(
            code=self.code, name=self.name, message=self.message, hint=self.hint, id=id, details=self.details
        )


class LocalError(ChronetixError):
    """This side misused the protocol, or failed by itself. The peer did nothing wrong."""


class RemoteError(ChronetixError):
    """The other side reported this error, or caused it."""


class ProtocolError(RemoteError):
    """The peer broke the protocol, by a message or in shared memory. The connection or route cannot be used any
    more."""


_CLASSES: Final[Mapping[str, type[ChronetixError]]] = {
    "peer": ProtocolError,
    "local": LocalError,
    "asker": ChronetixError,
}


class _Details(dict[str, Any]):
    """The details of an error. One that the caller left out shows as ``<name?>``, so that making an error never
    fails."""

    def __missing__(self, key: str) -> str:
        return f"<{key}?>"


_OPTIONAL: Final = re.compile(r"\[([^\]]*\{(\w+)\}[^\]]*)\]")


def _kept(details: Mapping[str, Any], part: re.Match[str]) -> str:
    """Return an optional part of a template; empty if its detail is None."""
    return "" if details.get(part[2]) is None else part[1]


def error(name: str, /, **details: Any) -> ChronetixError:
    """Return the catalogue's error ``name`` with its templates filled in. ``details`` are sent along and must be
    encodable as CBOR.

    Raises LookupError for a name that the catalogue does not have.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        raise LookupError(f"no error {name!r} in protocol/errors.json")
    values = _Details((key, _readable(value)) for key, value in details.items())
    message, hint = (_OPTIONAL.sub(partial(_kept, details), text) for text in (entry.message, entry.hint))
    return _CLASSES[entry.fault](entry.code, name, message.format_map(values), hint.format_map(values), details)


def from_failure(failure: Failure) -> RemoteError:
    """Return an error that the peer reported as an exception; also for a name that this side's catalogue lacks."""
    return RemoteError(failure.code, failure.name, failure.message, failure.hint, failure.details)


_MAX_DETAIL: Final = 4000
"""How many characters of one detail are shown."""


def _readable(value: Any) -> str:
    """Return a detail as text, cut and without control characters, because it may come from a peer and is shown on
    terminals and in logs."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value)) or "none"
    text = "none" if value is None else str(value)
    text = text if len(text) <= _MAX_DETAIL else text[: _MAX_DETAIL - 1] + "…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
