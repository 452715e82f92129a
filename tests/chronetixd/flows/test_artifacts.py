"""Artifacts are looked for when a flow is submitted; nothing is imported for it."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path
from typing import Any

import pytest

from chronetix.nodeworker.builtins import BUILTINS as OFFERED
from chronetix.protocol.contract import Flow, parse_flow
from chronetix.protocol.errors import ChronetixError
from chronetixd.core.access import Asker, Right
from chronetixd.flows.artifacts import BUILTINS, artifact_problems, check_users
from chronetixd.flows.plan import make_plan
from chronetixd.flows.validation import unsupported


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "plugin.py").write_text("raise RuntimeError('must not be imported')\ndef thing(): ...\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (tmp_path / "package" / "inner.py").write_text("thing = 1\n")
    (tmp_path / "data.txt").write_text("")
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return tmp_path


def flow(kind: str, uri: str, **more: Any) -> Flow:
    manifest = {"plugin_id": "p", "version": "1", "artifact": {"kind": kind, "uri": uri}, **more}
    parsed = parse_flow({"manifests": [manifest], "routes": [], "schemas": []}).flow
    assert parsed is not None
    return parsed


def test_the_daemon_and_the_worker_know_the_same_builtins() -> None:
    assert set(BUILTINS) == set(OFFERED)


@pytest.mark.parametrize(
    ("kind", "uri"),
    [
        ("Python", "python://plugin.py:thing"),
        ("Python", "python://plugin:thing"),
        ("Python", "python://package.inner:thing"),
        ("Python", "python://json:loads"),
        ("Python", "python://os.path:join"),
        ("Python", "python://sys:exit"),
        ("Python", "python://collections.abc:Iterable"),
        ("Python", "python://chronetixd.main:main"),
        ("Process", "file://program"),
        ("Process", f"file://{sys.executable}"),
        ("WasmComponent", "builtin://chronetix/system/timer"),
    ],
)
def test_what_is_there_is_found(kind: str, uri: str, base: Path) -> None:
    assert artifact_problems(flow(kind, uri), str(base)) == []


@pytest.mark.parametrize(
    ("kind", "uri", "words"),
    [
        ("Python", "python://plugn.py:thing", "plugin.py"),
        ("Python", "python://plugn:thing", "plugin"),
        ("Python", "python://plugin.py", "module:object"),
        ("Python", "python://plugin.py:thin", 'has no thin (node p) (did you mean "thing"?)'),
        ("Python", "python://plugin:thingy.on_frame", 'has no thingy (node p) (did you mean "thing"?)'),
        ("Python", "python://package.innr:thing", "no module package.innr"),
        ("Python", "python://package.innr:thing", 'did you mean "package.inner"?'),
        ("Python", "python://json.encodr:thing", 'did you mean "json.encoder"?'),
        ("Python", "python://plugin.deeper:thing", "no module plugin.deeper"),
        ("Python", "python://no/such/folder/x.py:thing", "folder"),
        ("Process", "file://programm", "program"),
        ("Process", "file://data.txt", "chmod +x"),
        ("Process", "file://package", "no file"),
        ("Process", "python://plugin:thing", "no program"),
        ("WasmComponent", "builtin://chronetix/system/timr", "system/timer"),
        ("WasmComponent", "file://plugin.wasm", "Python, Process and Dylib"),
        ("Dylib", "file://plugn.py", "plugin.py"),
        ("Dylib", "file://data.txt", "is no shared library"),
        ("Dylib", "python://plugin:thing", "no library"),
    ],
)
def test_what_is_not_there_is_named_with_what_to_do(kind: str, uri: str, words: str, base: Path) -> None:
    (problem,) = artifact_problems(flow(kind, uri), str(base))
    assert problem.path.startswith("manifests[0].artifact.")
    assert words in str(problem)


@pytest.mark.parametrize(
    "text",
    [
        "from elsewhere import *",
        "globals()['thing'] = 1",
        "def __getattr__(name): ...",
        "import other as thing",
        "from other import (\n    one,\n    thing,\n)",
        "if True:\n    async def thing(): ...",
        "one, thing = 1, 2",
        "#" * (1 << 20),
    ],
)
def test_an_object_that_a_module_may_have_is_not_missed(text: str, base: Path) -> None:
    (base / "plugin.py").write_text(text + "\n")
    assert artifact_problems(flow("Python", "python://plugin.py:thing"), str(base)) == []


@pytest.mark.parametrize("line", ["#!/no/such/python -u", "#! /no/such/python"])
def test_an_interpreter_that_is_not_there_is_called_that(line: str, base: Path) -> None:
    (base / "program").write_text(f"{line}\n")
    (problem,) = artifact_problems(flow("Process", "file://program"), str(base))
    assert f"the interpreter /no/such/python, which the first line of {base}/program names, is not there" in str(
        problem
    )


@pytest.mark.parametrize("line", ["#!/bin/sh", "#!/usr/bin/env no-such-program", "#!", "", "#!relative/python"])
def test_other_first_lines_are_left_to_the_kernel(line: str, base: Path) -> None:
    (base / "program").write_text(f"{line}\n")
    assert artifact_problems(flow("Process", "file://program"), str(base)) == []


@pytest.mark.parametrize("text", ["x.thing", "def thing2(): ...", "things = 1", ""])
def test_a_name_that_is_only_part_of_another_is_no_object(text: str, base: Path) -> None:
    (base / "plugin.py").write_text(text + "\n")
    (problem,) = artifact_problems(flow("Python", "python://plugin.py:thing"), str(base))
    assert "has no thing" in str(problem)


@pytest.mark.parametrize(("kind", "uri"), [("Python", "python://plugin.py:thing"), ("Process", "file://program")])
def test_a_relative_path_needs_something_to_be_relative_to(kind: str, uri: str) -> None:
    (problem,) = artifact_problems(flow(kind, uri), "")
    assert "base_dir" in str(problem)


def test_a_program_gets_its_arguments(base: Path) -> None:
    plan = make_plan("f", flow("Process", "file://program", params={"args": ["-v", "3"]}), str(base))
    assert plan.nodes["p"].argv == (str(base / "program"), "-v", "3")


@pytest.mark.parametrize("args", ["-v", [1], {"a": 1}, ["a\0b"]])
def test_arguments_that_are_no_list_of_texts_are_refused(args: Any) -> None:
    (problem,), _ = unsupported(flow("Process", "file:///bin/true", params={"args": args}))
    assert problem.path == "manifests[0].params.args"


def test_what_has_no_effect_is_a_warning() -> None:
    timers = [{"id": "t", "schedule": {"interval_ms": 5, "align_to": "second"}}]
    problems, warnings = unsupported(flow("Python", "python://json:loads", timers=timers))
    assert problems == []
    assert [warning.path for warning in warnings] == ["manifests[0].timers[0].schedule.align_to"]


@pytest.mark.parametrize("uri", ["python://" + "x" * 300 + ".py:thing", "file://" + "x" * 300])
def test_a_path_that_cannot_even_be_looked_at_is_a_problem_of_the_flow(uri: str, base: Path) -> None:
    (problem,) = artifact_problems(flow("Python" if "python" in uri else "Process", uri), str(base))
    assert problem.path == "manifests[0].artifact.uri"
    assert "too long" in problem.message


NOBODY = pwd.getpwnam("nobody").pw_uid


def as_user(user: str) -> Any:
    manifest: dict[str, Any] = {"node_id": "n", "plugin_id": "n", "version": "1", "user": user}
    manifest["artifact"] = {"kind": "Process", "uri": "file:///bin/true"}
    return parse_flow({"manifests": [manifest], "routes": [], "schemas": []}).flow


def test_a_user_that_is_not_there_is_a_problem() -> None:
    (problem,) = artifact_problems(as_user("no-such-user"), "")
    assert (problem.path, problem.message) == ("manifests[0].user", "this machine has no user no-such-user (node n)")
    assert artifact_problems(as_user("nobody"), "") == artifact_problems(as_user(str(NOBODY)), "") == []


@pytest.mark.parametrize("user", ["nobody", str(NOBODY), "root"])
def test_only_an_admin_has_nodes_of_other_users(user: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for right in (Right.NONE, Right.READ, Right.OPERATE):
        with pytest.raises(ChronetixError, match=f"user 1234 may not run node n as user {user}") as refused:
            check_users(as_user(user), Asker(1234, right))
        assert refused.value.name == "not-allowed"
    check_users(as_user(user), Asker(1234, Right.ADMIN))


def test_everybody_may_have_nodes_of_their_own_user_and_of_the_daemons(monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_users(as_user("nobody"), Asker(NOBODY, Right.OPERATE))
    check_users(as_user(""), Asker(1234, Right.OPERATE))


def test_a_daemon_that_is_not_roots_has_nodes_of_its_own_user_only(monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    check_users(as_user("nobody"), Asker(0, Right.ADMIN))
    with pytest.raises(ChronetixError, match=f"the daemon itself runs as user {NOBODY}") as refused:
        check_users(as_user("root"), Asker(0, Right.ADMIN))
    assert refused.value.name == "user-not-possible"
