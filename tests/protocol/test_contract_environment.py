"""The surroundings of a node's process: environment variables and folder."""

from __future__ import annotations

from typing import Any

import pytest

from chronetix.protocol.configure import unsupported
from chronetix.protocol.contract import parse_flow
from chronetix.protocol.contract.environment import MAX_ENVIRONMENT

PYTHON = {"kind": "Python", "uri": "python://a:b"}
PROGRAM = {"kind": "Process", "uri": "file:///bin/true"}


def parsed(artifact: Any = PYTHON, **fields: Any) -> Any:
    manifest = {"node_id": "n", "plugin_id": "n", "version": "1", "artifact": artifact, **fields}
    return parse_flow({"manifests": [manifest], "routes": [], "schemas": []})


def test_are_read() -> None:
    checked = parsed(env={"TZ": "UTC", "EMPTY": ""}, cwd="data")
    assert checked.problems == checked.warnings == []
    (manifest,) = checked.flow.manifests
    assert (manifest.env, manifest.cwd) == ({"TZ": "UTC", "EMPTY": ""}, "data")


@pytest.mark.parametrize("nothing", [{}, {"env": None, "cwd": None}, {"env": {}, "cwd": ""}])
def test_are_the_daemons_and_the_flows_by_default(nothing: Any) -> None:
    (manifest,) = parsed(**nothing).flow.manifests
    assert (manifest.env, manifest.cwd) == ({}, "")


@pytest.mark.parametrize(
    ("env", "path", "says"),
    [
        (["A=1"], "env", "map"),
        ({"A": 1}, "env.A", 'must be text, not int (write it as text, "1")'),
        ({"A": True}, "env.A", "must be text, not bool"),
        ({"A": None}, "env.A", "must be text, not NoneType"),
        ({"A": "x\0"}, "env.A", "holds a zero character"),
        ({"A": "\ud800"}, "env.A", "UTF-8 cannot hold"),
        ({"": "x"}, "env.", "is no name of an environment variable"),
        ({"A=B": "x"}, "env.A=B", "is no name of an environment variable"),
        ({"CHRONETIX_FD": "3"}, "env.CHRONETIX_FD", "is set by the daemon"),
        ({"CHRONETIX_NODE": "x"}, "env.CHRONETIX_NODE", "is set by the daemon"),
        ({"A": "x" * MAX_ENVIRONMENT}, "env", "take 65539 bytes together, more than 65536"),
        ({"LD_PRELOAD": "x.so"}, "env.LD_PRELOAD", "takes effect only when a program starts"),
        ({"PYTHONPATH": "/x"}, "env.PYTHONPATH", "takes effect only when a program starts"),
        ({"MALLOC_ARENA_MAX": "1"}, "env.MALLOC_ARENA_MAX", "takes effect only when a program starts"),
        ({"GLIBC_TUNABLES": "x"}, "env.GLIBC_TUNABLES", "takes effect only when a program starts"),
    ],
)
def test_that_cannot_be_are_refused_with_their_place(env: Any, path: str, says: str) -> None:
    (problem,) = parsed(env=env).problems
    assert problem.path == f"manifests[0].{path}"
    assert says in str(problem)


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONPATH", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_of_a_program_of_its_own_may_be_what_programs_read_at_their_start(name: str) -> None:
    assert parsed(PROGRAM, env={name: "x"}).flow.manifests[0].env == {name: "x"}
    assert parsed({**PROGRAM, "uri": "builtin://chronetix/system/timer"}, env={name: "x"}).problems


def test_of_a_forked_worker_may_be_what_python_reads_later() -> None:
    assert parsed(env={"PYTHONBREAKPOINT": "0", "OMP_NUM_THREADS": "2"}).problems == []


def test_a_folder_is_text_without_zero_characters() -> None:
    for cwd in (5, ["x"], "a\0b"):
        (problem,) = parsed(cwd=cwd).problems
        assert problem.path == "manifests[0].cwd"


def test_a_misspelt_field_is_noticed() -> None:
    (warning,) = parsed(envs={"A": "1"}).warnings
    assert "env" in str(warning)


@pytest.mark.parametrize(
    ("given", "user"), [("alice", "alice"), (1000, "1000"), ("1000", "1000"), (None, ""), ("", "")]
)
def test_a_user_is_a_name_or_a_number(given: Any, user: str) -> None:
    assert parsed(user=given).flow.manifests[0].user == user


@pytest.mark.parametrize("given", [-1, True, ["x"], "a:b", "../x", " a", "a\n", "a\0b"])
def test_what_cannot_be_a_user_is_refused(given: Any) -> None:
    (problem,) = parsed(user=given).problems
    assert problem.path == "manifests[0].user"


def test_a_process_of_another_user_does_not_survive_the_daemon() -> None:
    manifest = {"node_id": "n", "plugin_id": "n", "version": "1", "artifact": PYTHON, "user": "alice"}
    flow = parse_flow({"manifests": [manifest], "routes": [], "schemas": [], "on_daemon_loss": "survive"}).flow
    assert flow is not None
    (problem,) = unsupported(flow)[0]
    assert problem.path == "manifests[0].user"
    assert "cannot reattach" in problem.message
