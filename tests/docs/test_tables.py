"""Pages below docs/reference/ that are made from tables and types of the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import msgspec
import pytest

from chronetix.nodeworker.builtins import BUILTINS
from chronetix.nodeworker.engine import retry
from chronetix.nodeworker.inprocess import runner
from chronetix.protocol.errors import CATALOGUE
from chronetixctl import exits
from chronetixd.compile.catalogue import BUILTINS as MANIFESTS
from chronetixd.compile.catalogue import NOT_DECLARED, PLATFORM
from chronetixd.daemon import command
from chronetixd.settings import FIXED, LISTS, Settings
from tests.docs.pages import REFERENCE, ROOT, number, prose, shows, table
from tests.docs.sources import described


def meanings(file: str, name: str) -> dict[str, str]:
    """The docstrings of a class's attributes."""
    return {member.name: member.doc for member in described(ROOT / file, name).members if member.kind == "attribute"}


def rows_of(file: str, *names: str) -> str:
    found = {attribute: text for name in names for attribute, text in meanings(file, name).items()}
    assert all(text.endswith(".") for text in found.values()), found
    return table(("name", "meaning"), [(f"`{name}`", prose(text)) for name, text in found.items()])


def kind_of(hint: Any) -> str:
    """The type of a setting, in words."""
    base, *extra = getattr(hint, "__origin__", hint), *getattr(hint, "__metadata__", ())
    if base is bool:
        return "true or false"
    if base is str:
        return "text"
    if base in (int, float):
        (meta,) = extra
        kind = "integer" if base is int else "number"
        return (
            f"{kind}, {number(meta.ge)} to {number(meta.le)}"
            if meta.gt is None
            else f"{kind} above 0, up to {number(meta.le)}"
        )
    if base is tuple:
        return "list of texts"
    choices = getattr(hint, "__args__", ())
    return "one of " + ", ".join(f"`{each}`" for each in choices)


def default_of(value: Any) -> str:
    match value:
        case "" | None | ():
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float():
            return f"{value:g}" if value < 1e6 else number(value)
    return f"`{value}`"


PATHS = {
    "socket": "see [operations](../operations.md#install)",
    "state_dir": "see [operations](../operations.md#install)",
}


def settings() -> str:
    hints = get_type_hints(Settings, include_extras=True)
    docs = meanings("chronetixd/settings.py", "Settings")
    rows = []
    for field in msgspec.structs.fields(Settings):
        kind = "list of texts" if field.name in LISTS else kind_of(hints[field.name])
        usual = PATHS.get(field.name) or default_of(field.default)
        change = "restart" if field.name in FIXED else "reload"
        rows.append((f"`{field.name}`", kind, usual, change, prose(docs[field.name])))
    return table(("setting", "type and limits", "default", "new value takes", "meaning"), rows)


def test_settings() -> None:
    shows(REFERENCE / "settings.md", {"settings": settings()})


OF_OURS = {"CHRONETIX_UPGRADE", "CHRONETIX_NAME"}
"""Variables that the daemon sets for its own next image; a placeholder in a docstring."""


def test_every_environment_variable_that_the_code_reads_is_a_setting_or_is_listed() -> None:
    page = (REFERENCE / "settings.md").read_text()
    listed = set(re.findall(r"CHRONETIX_[A-Z_]+\b", page.partition("## Other")[2]))
    folders = ("chronetix", "chronetixctl", "chronetixd", "nodeworker", "protocol", "shm")
    read = {
        name
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"\bCHRONETIX_[A-Z]+(?:_[A-Z]+)*\b", path.read_text())
    }
    names = {f"CHRONETIX_{field.name.upper()}" for field in msgspec.structs.fields(Settings)}
    assert read - names - OF_OURS == listed - {"CHRONETIX_SOCKET"}


KINDS = {1: "Protocol", 2: "Flow contract and compile", 3: "Lifecycle", 4: "Permission", 5: "Data plane", 6: "Daemon"}
FAULTS = {"peer": "the other side", "local": "this side", "asker": "the caller"}


def template(text: str) -> str:
    """A message's template: what is filled in stands out, and brackets around a part say that it may be absent."""
    return re.sub(r"\{(\w+)\}", r"*\1*", re.sub(r"\[([^\]]*\{\w+\}[^\]]*)\]", r"(\1)", text)).replace("<", "\\<")


def errors() -> str:
    parts = []
    for thousand, heading in KINDS.items():
        entries = [entry for entry in CATALOGUE.values() if entry.code // 1000 == thousand]
        rows = [
            (str(entry.code), f"`{entry.name}`", FAULTS[entry.fault], template(entry.message), template(entry.hint))
            for entry in entries
        ]
        parts += [f"## {heading}", "", table(("code", "name", "caused by", "message", "what to do"), rows), ""]
    return "\n".join(parts)


def test_errors() -> None:
    assert {entry.code // 1000 for entry in CATALOGUE.values()} <= set(KINDS)
    shows(REFERENCE / "errors.md", {"errors": errors()})


def test_statistics() -> None:
    native = "shm/_native.pyi"
    route = meanings(native, "RouteSnapshot")
    left_out = {"next", "unseen", "returned_before"}
    assert all(text.endswith(".") for text in route.values())
    rows = [(f"`{name}`", prose(text)) for name, text in route.items() if name not in left_out]
    shows(
        REFERENCE / "statistics.md",
        {
            "route": table(("name", "meaning"), rows),
            "drops": rows_of(native, "Drops"),
            "node": rows_of("chronetixd/control/views.py", "NodeStats", "ProcessFigures"),
            "failed-frames": rows_of("chronetixd/flows/frame_failures.py", "FrameFailures"),
            "messages": rows_of("chronetixd/core/deliveries.py", "Count"),
        },
    )


def params_read(module: ModuleType) -> set[str]:
    """The params that a builtin's source names: ``params.get("…")``, and KEYS that are looked up in params."""
    source = inspect.getsource(module)
    found = set(re.findall(r"params\.get\(\"(\w+)\"", source))
    return found | set(getattr(module, "KEYS", ())) if "params.get(key" in source else found


def builtin_modules() -> dict[str, ModuleType]:
    return {uri: importlib.import_module(place.partition(":")[0]) for uri, place in BUILTINS.items()}


@pytest.mark.parametrize("module", builtin_modules().values(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_builtin_names_the_params_that_it_reads(module: ModuleType) -> None:
    assert set(module.PARAMS) == params_read(module)


def declared(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}: {default_of(value).strip('`')}`" for name, value in values.items()) or "none"


def builtins() -> str:
    parts = []
    kinds = {platform.uri: name for name, platform in PLATFORM.items()}
    for uri, module in builtin_modules().items():
        name = BUILTINS[uri].partition(":")[2]
        about = described(Path(inspect.getsourcefile(module) or ""), name)
        manifest = MANIFESTS.get(uri, NOT_DECLARED)
        short = f"`kind: {kinds[uri]}`" if uri in kinds else "none"
        facts = [
            ("in the short form", short),
            ("qos", declared(manifest.qos)),
            ("features", declared(manifest.features)),
        ]
        parts += [f"## `{uri}`", "", " ".join(prose(about.doc).split()), ""]
        parts += [table(("in its manifest", "value"), facts), ""]
        rows = [(f"`{param}`", meaning) for param, meaning in module.PARAMS.items()]
        parts += [table(("param", "meaning"), rows) if rows else "It has no params.", ""]
    return "\n".join(parts)


def test_builtins() -> None:
    shows(REFERENCE / "builtins.md", {"builtins": builtins()})


def test_dead_letters() -> None:
    rows = [(f"`{name}`", meaning) for name, meaning in retry.HEADERS.items()]
    shows(REFERENCE / "dead-letters.md", {"headers": table(("header", "meaning"), rows)})


def test_a_dead_letter_has_the_headers_that_are_listed() -> None:
    tree = ast.parse(inspect.getsource(retry))
    written = {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "headers"
        for each in ast.walk(node.value)
        if isinstance(each, ast.Dict)
        for key in each.keys
        if isinstance(key, ast.Constant)
    }
    assert written == set(retry.HEADERS)


def codes(found: Mapping[int, str]) -> str:
    return table(("code", "meaning"), [(str(code), text) for code, text in found.items()])


def errors_of(code: int) -> str:
    names = [entry.name for entry in CATALOGUE.values() if exits.exit_code(entry.code, entry.name) == code]
    return ", ".join(f"`{name}`" for name in names) if code != exits.FAILED else "all others"


def test_exit_codes() -> None:
    rows = [(str(code), text, errors_of(code)) for code, text in exits.MEANINGS.items()]
    shows(
        REFERENCE / "exit-codes.md",
        {
            "chronetixctl": table(("code", "meaning", "errors"), rows),
            "run-inproc": codes(runner.EXITS),
            "chronetixd": codes(command.EXITS),
        },
    )
