"""The code of a plugin: which files belong to it, and what its digests tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.contract import Flow, parse_flow
from chronetixd.flows import code
from chronetixd.flows.code import changed_files, code_of, imports, is_installed, needed_modules


def flow(*uris: str, kind: str = "Python") -> Flow:
    manifests = [
        {"node_id": f"n{at}", "plugin_id": "p", "version": "1", "artifact": {"kind": kind, "uri": uri}}
        for at, uri in enumerate(uris)
    ]
    checked = parse_flow({"manifests": manifests, "routes": [], "schemas": []})
    assert checked.flow is not None, checked.problems
    return checked.flow


def write(folder: Path, **files: str) -> None:
    """Write files; ``__`` in a name stands for a folder's slash, and every name ends with .py."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def package(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text("")


def found(folder: Path, uri: str = "python://plugin.py:run", kind: str = "Python") -> set[str]:
    (files,) = code_of(flow(uri, kind=kind), str(folder)).values()
    return {os.path.relpath(path, folder) for path in files}


@pytest.mark.parametrize(
    "statement",
    [
        "import helper",
        "import os, helper as h",
        "from helper import f",
        "from .helper import f",
        "from . import helper",
        "from . import (\n    helper,  # the one\n)",
        "def run():\n    import helper",
        "try:\n    import helper\nexcept ImportError: pass",
        "from os import path; import sys\nimport \\\n  helper",
    ],
)
def test_a_module_beside_that_is_imported_belongs_to_the_code(statement: str, tmp_path: Path) -> None:
    write(tmp_path, plugin=statement, helper="", other="")
    assert found(tmp_path) == {"plugin.py", "helper.py"}


def test_what_an_imported_module_imports_belongs_to_it_also_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, plugin="import a", a="import b", b="import plugin, json", c="")
    assert found(tmp_path) == {"plugin.py", "a.py", "b.py"}


def test_modules_of_the_flows_folder_are_found_from_a_plugin_in_another(tmp_path: Path) -> None:
    write(tmp_path, sub__plugin="import shared", shared="")
    assert found(tmp_path, "python://sub/plugin.py:run") == {"sub/plugin.py", "shared.py"}


@pytest.mark.parametrize("statement", ["import pack", "from pack import b", "import pack.a"])
def test_a_package_belongs_to_it_as_a_whole_without_its_caches(statement: str, tmp_path: Path) -> None:
    package(tmp_path / "pack")
    write(tmp_path, plugin=statement, pack__a="", pack__deep__b="")
    (tmp_path / "pack" / "__pycache__").mkdir()
    (tmp_path / "pack" / "__pycache__" / "c.py").write_text("")
    assert found(tmp_path) == {"plugin.py", "pack/__init__.py", "pack/a.py", "pack/deep/b.py"}


@pytest.mark.parametrize("uri", ["python://pack/plugin.py:run", "python://pack.plugin:run"])
def test_a_plugin_in_a_package_has_the_whole_package(uri: str, tmp_path: Path) -> None:
    package(tmp_path / "pack")
    write(tmp_path, pack__plugin="", pack__other="")
    assert found(tmp_path, uri) == {"pack/__init__.py", "pack/plugin.py", "pack/other.py"}


@pytest.mark.parametrize("statement", ["import space.a", "from space import a", "from space.a import f"])
def test_a_folder_without_init_gives_only_the_module_that_is_named(statement: str, tmp_path: Path) -> None:
    write(tmp_path, plugin=statement, space__a="", space__b="")
    assert found(tmp_path) == {"plugin.py", "space/a.py"}


def test_installed_modules_do_not_belong_to_it(tmp_path: Path) -> None:
    write(tmp_path, plugin="import json, msgspec\nfrom msgspec import Struct")
    assert found(tmp_path) == {"plugin.py"}


def test_an_installed_package_that_the_artifact_names_belongs_to_it(tmp_path: Path) -> None:
    (files,) = code_of(flow("python://click.core:Command"), str(tmp_path)).values()
    assert any(path.endswith("click/core.py") for path in files)
    assert all("/click/" in path for path in files)


def test_a_program_is_its_executable_and_a_python_script_what_it_imports_besides(tmp_path: Path) -> None:
    write(tmp_path, helper="")
    (tmp_path / "tool").write_text("#!/bin/sh\nimport helper\n")
    assert found(tmp_path, "file://tool", "Process") == {"tool"}
    (tmp_path / "tool").write_text("#!/usr/bin/env python3\nimport helper\n")
    assert found(tmp_path, "file://tool", "Process") == {"tool", "helper.py"}


def test_builtins_have_no_code(tmp_path: Path) -> None:
    assert code_of(flow("builtin://chronetix/system/timer"), str(tmp_path)) == {}


def test_two_objects_of_one_file_are_one_place(tmp_path: Path) -> None:
    write(tmp_path, plugin="")
    assert list(code_of(flow("python://plugin.py:a", "python://plugin.py:b"), str(tmp_path))) == ["python://plugin.py"]


def test_content_counts_and_the_time_of_a_file_does_not(tmp_path: Path) -> None:
    write(tmp_path, plugin="a = 1")
    subject = flow("python://plugin.py:run")
    before = code_of(subject, str(tmp_path))
    os.utime(tmp_path / "plugin.py", (1, 1))
    assert code_of(subject, str(tmp_path)) == before
    write(tmp_path, plugin="a = 2")
    after = code_of(subject, str(tmp_path))
    assert changed_files(subject, ["n0"], before, after) == [str(tmp_path / "plugin.py")]
    assert changed_files(subject, [], before, after) == []
    assert changed_files(subject, ["n0"], {}, after) == [], "what is not known has not changed"


def test_a_file_that_is_too_large_to_read_is_known_by_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "MAX_READ", 4)
    write(tmp_path, plugin="a = 1")
    ((_, told),) = code_of(flow("python://plugin.py:run"), str(tmp_path))["python://plugin.py"].items()
    assert told == f"5 bytes of {(tmp_path / 'plugin.py').stat().st_mtime_ns}"


def test_no_more_files_and_plugins_are_looked_at_than_the_limits_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "MAX_FILES", 3)
    monkeypatch.setattr(code, "MAX_PLACES", 2)
    write(tmp_path, plugin="import a, b, c, d, e", a="", b="", c="", d="", e="", two="", three="")
    told = code_of(flow("python://plugin.py:run", "python://two.py:run", "python://three.py:run"), str(tmp_path))
    assert [len(files) for files in told.values()] == [3, 1]


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plugin.py")
    assert code_of(flow("python://plugin.py:run"), str(tmp_path)) == {"python://plugin.py": {}}
    assert code_of(flow("python://gone.py:run"), str(tmp_path)) == {"python://gone.py": {}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"import a.b as c, d", [("a.b", 0, True), ("d", 0, True)]),
        (b"if x:\n  import a", [("a", 0, False)]),
        (b"from ..a import b", [("a", 2, True), ("a.b", 2, False)]),
        (b"from a import *", [("a", 0, True)]),
        (b"import 3, \xff, a", [("a", 0, True)]),
    ],
)
def test_imports_are_found_in_the_text(text: bytes, expected: Any) -> None:
    assert list(imports(text)) == expected


def test_needed_modules_are_those_at_the_top_that_are_not_beside(tmp_path: Path) -> None:
    text = "import helper, frobnicate.sub\ntry:\n    import optional\nexcept ImportError: pass\nfrom . import sibling"
    write(tmp_path, plugin=text, helper="import quux")
    needed = needed_modules(flow("python://plugin.py:run"), str(tmp_path))
    assert needed == {
        "frobnicate": ("n0", str(tmp_path / "plugin.py")),
        "quux": ("n0", str(tmp_path / "helper.py")),
    }
    assert not is_installed("frobnicate")
    assert all(map(is_installed, ("msgspec", "json", "sys", "__main__")))


def test_what_a_module_of_a_package_needs_that_is_not_imported_is_not_needed(tmp_path: Path) -> None:
    package(tmp_path / "pack")
    write(
        tmp_path, plugin="import pack.a", pack__a="import quux\nfrom pack.c import d", pack__b="import no", pack__c=""
    )
    needed = needed_modules(flow("python://plugin.py:run"), str(tmp_path))
    assert list(needed) == ["quux"]
    inside = needed_modules(flow("python://pack/a.py:run"), str(tmp_path / "elsewhere" / ".."))
    assert list(inside) == ["quux"], "its own package is found from the folder above it"


def test_a_module_that_the_artifact_names_is_needed(tmp_path: Path) -> None:
    assert needed_modules(flow("python://nowhere.at:all"), str(tmp_path)) == {"nowhere": ("n0", "the flow")}


def test_the_limits_are_those_that_the_documents_tell() -> None:
    page = (Path(__file__).parents[3] / "docs" / "updates.md").read_text()
    assert f"At most {code.MAX_FILES} files count for one plugin, and {code.MAX_PLACES} plugins for one flow" in page
    assert f"more than {code.MAX_READ >> 20} MiB is not read" in page.replace("\n", " ")
