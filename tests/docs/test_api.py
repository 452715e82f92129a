"""Pages below docs/reference/ about what plugin authors call are the signatures and docstrings of the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import chronetix
import chronetix.client
import chronetix.testing
from chronetix.nodeworker.api.plugin import CALLBACKS
from tests.docs.pages import REFERENCE, ROOT, prose, shows, table
from tests.docs.sources import Described, Member, described

API = ROOT / "nodeworker" / "api"
NATIVE = ROOT / "shm" / "_native.pyi"

INTERNAL = {"woken_by", "told", "connected", "adopt"}
"""Methods of a context that the worker calls, not the plugin."""

OF_THE_RUNTIME = {
    "Port": {"epoch", "base_seq", "resume", "tap_of"},
    "Frame": {"port"},
    "Batch": {"port"},
}
"""Attributes that serve the runtime and tell a plugin nothing."""

PLUGIN_API = {
    "ctx": (API / "context.py", "Context"),
    "ctx.log": (API / "context.py", "Logger"),
    "ctx of an asynchronous plugin": (ROOT / "nodeworker" / "engine" / "async_context.py", "AsyncContext"),
    "Frame": (NATIVE, "Frame"),
    "Batch": (NATIVE, "Batch"),
    "Loan": (NATIVE, "Loan"),
    "Message": (API / "message.py", "Message"),
    "Tick": (ROOT / "protocol" / "messages" / "bus.py", "Tick"),
    "Port": (ROOT / "protocol" / "messages" / "memory.py", "Port"),
    "Encoded": (API / "codec.py", "Encoded"),
    "WouldBlock": (NATIVE, "WouldBlock"),
    "RouteClosed": (NATIVE, "RouteClosed"),
    "FrameTooLarge": (NATIVE, "FrameTooLarge"),
    "RequestFailed": (API / "errors.py", "RequestFailed"),
    "serve": (ROOT / "nodeworker" / "process" / "worker.py", "serve"),
    "attach": (ROOT / "nodeworker" / "process" / "attach.py", "attach"),
}
"""What the page shows, by its headings, and where it is defined."""

ABOUT = {
    "Tick": "A tick of one of the node's timers, which `on_tick` gets.",
    "Port": "One end of a data route: an entry of `ctx.inputs` or `ctx.outputs`.",
}
"""What a plugin needs to know of classes whose docstrings speak of the wire."""


def members_of(thing: Described) -> list[Member]:
    left_out = INTERNAL | OF_THE_RUNTIME.get(thing.name, set())
    return [member for member in thing.members if member.name not in left_out]


def entry(heading: str, path: Path, name: str, level: int = 2) -> str:
    """A class with its attributes in a table and its methods one after another, or a function."""
    thing = described(path, name)
    members = members_of(thing)
    parts = [f"{'#' * level} {heading}", ""]
    if thing.shown != name:
        parts += [f"`{thing.shown}`", ""]
    parts += [prose(ABOUT.get(heading, thing.doc)), ""]
    values = [member for member in members if member.kind != "method"]
    if values:
        parts += [table(("attribute", "meaning"), [(f"`{each.name}`", prose(each.doc)) for each in values]), ""]
    for member in members:
        if member.kind == "method":
            parts += [f"{'#' * (level + 1)} {heading.split()[0]}.{member.name}", "", f"`{member.shown}`", ""]
            parts += [prose(member.doc), ""]
    return "\n".join(parts)


def callbacks() -> str:
    docs = described(API / "plugin.py", "Plugin").docs()
    names = (*CALLBACKS, "ordered")
    return table(("method", "meaning"), [(f"`{name}`", prose(docs[name])) for name in names])


def test_plugin_api() -> None:
    entries = "\n".join(entry(heading, *place) for heading, place in PLUGIN_API.items())
    shows(REFERENCE / "plugin-api.md", {"callbacks": callbacks(), "api": entries})


def test_testing_api() -> None:
    path = ROOT / "nodeworker" / "inprocess" / "testing.py"
    entries = "\n".join(entry(name, path, name) for name in ("run", "Run", "Published", "Logged"))
    shows(REFERENCE / "testing-api.md", {"api": entries})


def test_client_api() -> None:
    shows(REFERENCE / "client-api.md", {"api": entry("Client", ROOT / "chronetixctl" / "client.py", "Client")})


def test_all_that_authors_may_import_is_shown() -> None:
    assert set(chronetix.__all__) - {"Context"} <= set(PLUGIN_API)
    assert set(chronetix.testing.__all__) == {"run", "Run", "Published", "Logged"}
    assert chronetix.client.__all__ == ["Client"]


def undocumented() -> Iterator[str]:
    for path, name in PLUGIN_API.values():
        thing = described(path, name)
        if not thing.doc:
            yield name
        yield from (f"{name}.{each.name}" for each in members_of(thing) if not each.doc)


def test_everything_in_it_has_a_docstring() -> None:
    assert list(undocumented()) == []


@pytest.mark.parametrize("name", ["Context", "Message"])
def test_what_is_shown_is_what_a_plugin_finds(name: str) -> None:
    kind = getattr(chronetix, name)
    path, _ = next(place for place in PLUGIN_API.values() if place[1] == name)
    shown = {each.name for each in described(path, name).members}
    slots = set(getattr(kind, "__slots__", ()))
    found = {each for each in {*dir(kind), *slots} if not each.startswith("_")}
    assert found == shown
