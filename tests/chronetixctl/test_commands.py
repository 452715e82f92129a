"""Every command against a daemon that answers from a script: what it asks, prints, and ends with."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from chronetix.protocol import cbor
from chronetix.protocol.errors import CATALOGUE, error
from chronetixctl.app import SECTIONS
from chronetixctl.describe import _how

COMMANDS = [name for section in SECTIONS.values() for name in section]
SUBMITTED = {"flow": "pair", "state": "running", "warnings": []}


def route(**counts: Any) -> dict[str, Any]:
    zeros = dict.fromkeys(
        ("committed", "bytes", "outstanding", "would_block", "blocked_ns", "dropped", "p50_ns", "p99_ns"), 0
    )
    return {"id": "r", "from": "a", "to": "b", "credits": 64, "watermark": 48, "closed": False, **zeros, **counts}


def stats(at: int, *routes: dict[str, Any]) -> dict[str, Any]:
    node = {"node": "a", "pid": 7, "state": "running", "cpu_s": at / 4, "rss_bytes": 1 << 20, "unique_bytes": 4096}
    return {
        "monotonic_ns": at * 1_000_000_000,
        "flows": [{"flow": "pair", "state": "running", "nodes": [node], "routes": list(routes)}],
    }


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_every_command_explains_itself_with_examples(self, ctl: Any, command: str, flag: str) -> None:
        ended = ctl(command, flag)

        assert ended.code == 0
        assert f"Usage: chronetixctl {command}" in ended.out
        assert f"chronetixctl {command}" in ended.out.partition("Examples:")[2]
        assert ended.err == ""

    def test_the_program_lists_its_commands_and_exit_codes(self, ctl: Any) -> None:
        ended = ctl("--help")

        assert all(f"  {name} " in ended.out for name in COMMANDS)
        assert "124  timed out" in ended.out

    def test_the_version_needs_no_daemon(self, ctl: Any) -> None:
        assert ctl("--version").out.startswith("chronetixctl ")


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["lss"], 'did you mean "ls"'),
            (["describ", "x"], 'did you mean "describe"'),
            (["ls", "--sate", "x"], "--state"),
            (["describe"], "FLOW"),
            (["submit", "no-such-file"], "no-such-file"),
            (["submit", ".", "--wait", "running"], "directory"),
            (["stop", "x", "--timeout", "soon"], "no duration"),
            (["stop", "x", "--timeout", "0"], "no duration"),
            (["stop", "x", "--timeout", "9" * 400], "too long"),
            (["submit", os.devnull, "--timeout", "900000h"], "too long"),
            (["top", "--interval", "900000h"], "too long"),
            (["rollout", "undo", "x", "--to", "99999999999999999999"], "not in the range"),
            (["rollout", "undo", "x", "--to", "0"], "not in the range"),
            (["logs", "--tail", "99999999999999999999"], "not in the range"),
            (["topic", "echo", "x", "a:b", "--count", "99999999999999999999"], "not in the range"),
            (["audit", "--user", "99999999999999999999"], "no user's number"),
            (["audit", "--user", "4294967295"], "no user's number"),
            (["logs", "--since", "9999-12-31T23:59"], "too far away"),
            (["logs", "--since", "2500-01-01"], "too far away"),
            (["submit", os.devnull, "--name", ""], '"" is no usable name: it is empty'),
            (["apply", os.devnull, "--name", "a b"], '"a b" is no usable name: it has blanks'),
            (["diff", os.devnull, "--name", "x" * 201], "more than 200 characters"),
            (["logs", "--tail", "-1"], "tail"),
            (["logs", "a", "--flow", "b"], "two flows"),
            (["-o", "xml", "ls"], "json"),
            (["completion", "csh"], "bash"),
        ],
    )
    def test_wrong_usage_ends_with_2_and_says_what_would_do(self, ctl: Any, arguments: list[str], says: str) -> None:
        ended = ctl(*arguments)

        assert ended.code == 2
        assert says in ended.err
        assert ended.out == ""

    @pytest.mark.parametrize("binding", ["x", "=y", "x=", "a=b a=c"])
    @pytest.mark.parametrize("option", ["--bind", "--artifact"])
    def test_a_binding_reads_endpoint_equals_node_and_an_artifact_node_equals_uri(
        self, ctl: Any, flow_file: Path, option: str, binding: str
    ) -> None:
        options = [part for pair in binding.split() for part in (option, pair)]

        assert ctl("submit", str(flow_file), *options).code == 2


class TestErrors:
    @pytest.mark.parametrize(
        ("reason", "code"),
        [
            (error("flow-failed", flow="x", reason="it broke"), 1),
            (error("flow-not-found", flow="x", nearest="y"), 3),
            (error("flow-not-running", flow="x", state="stopped"), 3),
            (error("not-allowed", uid=7, what="stop x"), 4),
            (error("quota-exceeded", what="it", limit=3), 4),
            (error("daemon-stopping"), 5),
            (error("timed-out", what="the stop of x", seconds=3), 124),
        ],
    )
    def test_each_error_has_its_exit_code_its_message_and_its_hint(
        self, ctl: Any, daemon: Any, reason: Any, code: int
    ) -> None:
        daemon.answers["stop"] = reason

        ended = ctl("stop", "x")

        assert ended.code == code
        assert ended.err == f"error: {reason.message} [{reason.name}]\nhint: {reason.hint}\n"
        assert ended.out == ""

    def test_no_daemon_ends_with_5_and_says_how_to_start_one(self, ctl: Any, tmp_path: Path) -> None:
        ended = ctl("ls")

        assert ended.code == 5
        assert str(tmp_path / "control.sock") in ended.err
        assert "hint: Start it with `chronetixd`" in ended.err

    def test_the_socket_option_wins_before_and_behind_the_command(self, ctl: Any) -> None:
        assert "/nowhere/a" in ctl("--socket", "/nowhere/a", "ls").err
        assert "/nowhere/b" in ctl("ls", "--socket", "/nowhere/b").err

    def test_every_problem_of_an_invalid_flow_is_listed_at_its_place(
        self, ctl: Any, daemon: Any, flow_file: Path
    ) -> None:
        problems = [
            {"path": "manifests[1].artifact.uri", "message": "there is no module m", "suggestion": "did you mean n?"},
            {"path": "", "message": "too much", "suggestion": ""},
        ]
        daemon.answers["submit"] = error("flow-invalid", flow="pair", count=2, first="x", problems=problems)

        ended = ctl("submit", str(flow_file))

        assert ended.code == 1
        assert f"  {flow_file}:5:32: manifests[1].artifact.uri: there is no module m (did you mean n?)\n" in ended.err
        assert "too much" in ended.err

    def test_control_characters_do_not_reach_the_terminal(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["stop"] = error("flow-failed", flow="x", reason="\x1b[2Jgone\x07\nhint: lies")

        err = ctl("stop", "x").err

        assert "\x1b" not in err
        assert "\x07" not in err
        assert "\n  | hint: lies\n" in err


class TestDiff:
    FOUND = {
        "flow": "pair",
        "state": "running",
        "same": False,
        "nodes": [
            {"name": "a", "kind": "changed", "fields": [{"path": "params.count", "old": 3, "new": 4}]},
            {"name": "c", "kind": "added", "fields": []},
        ],
        "routes": [{"name": "r", "kind": "removed", "fields": []}],
        "notes": [{"path": "b.x-owner", "old": "-", "new": "me"}],
    }

    def test_shows_what_differs(self, ctl: Any, daemon: Any, flow_file: Path) -> None:
        daemon.answers["diff"] = self.FOUND

        ended = ctl("diff", str(flow_file), "--name", "pair")

        assert (ended.code, ended.err) == (0, "")
        assert ended.out.splitlines() == [
            "~ node a",
            "    params.count: 3 → 4",
            "+ node c",
            "- route r",
            '  note: b.x-owner: "-" → "me"',
        ]
        ((_, args),) = daemon.calls
        assert args["name"] == "pair"

    def test_can_tell_by_its_exit_code(self, ctl: Any, daemon: Any, flow_file: Path) -> None:
        daemon.answers["diff"] = self.FOUND
        assert ctl("diff", str(flow_file), "--exit-code").code == 1
        daemon.answers["diff"] = {**self.FOUND, "same": True, "nodes": [], "routes": [], "notes": []}
        same = ctl("diff", str(flow_file), "--exit-code")
        assert (same.code, same.out) == (0, "")
        assert "nothing that runs differs in pair" in same.err


ROLLED_OUT = {
    "flow": "pair",
    "number": 2,
    "step": "done",
    "why": "",
    "cut_ns": 12_400_000,
    "change": TestDiff.FOUND,
    "warnings": [],
}


class TestApply:
    def test_shows_what_was_changed_and_how_long_that_took(self, ctl: Any, daemon: Any, flow_file: Path) -> None:
        step = {"flow": "pair", "number": 2, "step": "preparing", "waits_for": ["a"], "why": ""}
        daemon.answers["apply"] = [step, ROLLED_OUT]
        ended = ctl("apply", str(flow_file), "--name", "pair", "--replace", "b", "--ready-timeout", "3s")
        assert ended.code == 0
        assert ended.out.splitlines()[0] == "~ node a"
        assert ended.out.splitlines()[-1] == "pair roll-out 2 done, 12 ms from the first worker that left"
        ((_, args),) = daemon.calls
        assert (args["name"], args["replace"], args["ready_ns"], args["wait"]) == ("pair", ["b"], 3_000_000_000, True)

    def test_says_that_nothing_differs(self, ctl: Any, daemon: Any, flow_file: Path) -> None:
        daemon.answers["apply"] = {**ROLLED_OUT, "number": None, "step": "same"}
        ended = ctl("apply", str(flow_file))
        assert (ended.code, ended.out) == (0, "pair is that already: nothing differs\n")

    def test_one_that_was_rolled_back_ends_with_1_and_says_why(self, ctl: Any, daemon: Any, flow_file: Path) -> None:
        daemon.answers["apply"] = error("rolled-back", flow="pair", number=2, reason="node a was late")
        ended = ctl("apply", str(flow_file))
        assert ended.code == 1
        assert "nothing was touched: node a was late" in ended.err
        assert ended.out == ""


class TestRollout:
    REVISIONS = (
        {"number": 1, "unix_ns": 1, "outcome": "submitted", "current": True, "why": "", "change": {}},
        {
            "number": 2,
            "unix_ns": 2,
            "outcome": "preparing",
            "current": False,
            "why": "",
            "change": TestDiff.FOUND,
        },
    )
    NOW: ClassVar = {"flow": "pair", "number": 2, "step": "preparing", "waits_for": ["a"], "why": ""}

    def test_status_tells_how_far_it_is_and_what_it_changes(self, ctl: Any, daemon: Any) -> None:
        found = {"flow": "pair", "state": "running", "current": 1, "revisions": [*self.REVISIONS], "rollout": self.NOW}
        daemon.answers["rollouts"] = found
        ended = ctl("rollout", "status", "pair")
        assert ended.out.splitlines()[:3] == ["pair roll-out 2 preparing", "  waits for a", "  ~ node a"]

    def test_status_of_a_flow_that_was_never_changed(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["rollouts"] = {
            "flow": "pair",
            "state": "running",
            "current": 1,
            "revisions": [],
            "rollout": None,
        }
        assert ctl("rollout", "status", "pair").out == "pair is as it was submitted\n"

    def test_history_lists_every_revision_and_marks_the_present_one(self, ctl: Any, daemon: Any) -> None:
        found = {"flow": "pair", "state": "running", "current": 1, "revisions": [*self.REVISIONS], "rollout": self.NOW}
        daemon.answers["rollouts"] = found
        rows = [line.split() for line in ctl("rollout", "history", "pair").out.splitlines()]
        assert rows[1][0] == "1*"
        assert rows[1][-2:] == ["submitted", "-"]
        assert " ".join(rows[2][3:]) == "preparing changed node a, added node c, removed route r"

    def test_undo_goes_back_as_far_as_it_is_told(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["undo"] = ROLLED_OUT
        assert ctl("rollout", "undo", "pair", "--to", "1", "--no-wait").code == 0
        ((_, args),) = daemon.calls
        assert (args["flow"], args["to"], args["wait"]) == ("pair", 1, False)

    def test_undo_says_when_there_is_nothing_to_go_back_to(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["undo"] = error("revision-not-found", flow="pair", number=7)
        ended = ctl("rollout", "undo", "pair")
        assert ended.code == 1
        assert "no revision 7" in ended.err


class TestSubmit:
    def test_compiles_the_flow_and_waits_until_it_runs(self, ctl: Any, daemon: Any, flow_file: Path) -> None:
        daemon.answers["submit"] = [{"state": "starting", "ready": 1, "total": 2}, SUBMITTED]

        ended = ctl("submit", str(flow_file), "--name", "n", "--bind", "x=a", "--timeout", "1500ms")

        assert (ended.code, ended.out, ended.err) == (0, "pair running\n", "")
        ((verb, args),) = daemon.calls
        assert verb == "submit"
        assert [manifest["node_id"] for manifest in args.pop("flow")["manifests"]] == ["a", "b"]
        assert args == {
            "name": "n",
            "bindings": {"x": "a"},
            "base_dir": str(flow_file.parent),
            "wait": "running",
            "timeout_ns": 1_500_000_000,
        }

    @pytest.mark.parametrize("form", ["json", "cbor", "yaml", "cbor-dsl"])
    def test_takes_a_flow_in_any_form(self, ctl: Any, daemon: Any, flow_file: Path, tmp_path: Path, form: str) -> None:
        daemon.answers["submit"] = SUBMITTED
        flow = json.loads(ctl("compile", str(flow_file)).out)
        path = tmp_path / "any"
        path.write_bytes(
            {
                "json": json.dumps(flow).encode(),
                "cbor": cbor.dumps(flow),
                "yaml": yaml.safe_dump(flow).encode(),
                "cbor-dsl": cbor.dumps(yaml.safe_load(flow_file.read_text())),
            }[form]
        )

        assert ctl("submit", str(path)).code == 0
        assert daemon.calls[0][1]["flow"] == flow

    def test_takes_a_flow_from_stdin(self, spawn: Any, daemon: Any, flow_file: Path, tmp_path: Path) -> None:
        daemon.answers["submit"] = SUBMITTED

        out, err = spawn("submit", "-").communicate(flow_file.read_text())

        assert (out, err) == ("pair running\n", "")
        assert daemon.calls[0][1]["base_dir"] == str(tmp_path)

    def test_of_a_flow_that_failed_ends_with_1_and_the_reason(self, ctl: Any, daemon: Any, flow_file: Path) -> None:
        daemon.answers["submit"] = SUBMITTED | {"state": "failed", "reason": "node a exited with code 3"}

        ended = ctl("submit", str(flow_file), "--wait", "stopped")

        assert ended.code == 1
        assert "node a exited with code 3" in ended.err

    def test_prints_the_daemons_warnings_on_stderr(self, ctl: Any, daemon: Any, flow_file: Path) -> None:
        warning = {"path": "routes[0].from", "message": "taken for a", "suggestion": "name it"}
        daemon.answers["submit"] = SUBMITTED | {"warnings": [warning]}

        told = f"{flow_file}:6:17: warning: InvalidField: routes[0].from: taken for a\n  hint: name it\n"
        assert ctl("submit", str(flow_file)).err == told

    def test_of_an_invalid_file_does_not_even_ask_the_daemon(self, ctl: Any, daemon: Any, flow_file: Path) -> None:
        flow_file.write_text("nodes: [{id: a}]")

        ended = ctl("submit", str(flow_file))

        assert ended.code == 1
        assert daemon.calls == []
        assert f"{flow_file}:1:9: error: MissingArtifact" in ended.err

    @pytest.mark.parametrize("data", [b"\xff\xfe{}", b"\xa1\x01\x02", b"\xbf\xff", b"a: \xff"])
    def test_of_what_is_no_flow_at_all_says_so(self, ctl: Any, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "x"
        path.write_bytes(data)

        ended = ctl("submit", str(path))

        assert ended.code == 1
        assert f"{path} holds no flow" in ended.err


class TestValidateAndCompile:
    def test_a_valid_flow_needs_no_daemon(self, ctl: Any, flow_file: Path) -> None:
        (flow_file.parent / "m.py").write_text("a = b = print\n")
        ended = ctl("validate", str(flow_file))

        assert (ended.code, ended.out) == (0, f"{flow_file}: valid, 2 nodes, 1 routes\n")

    def test_problems_come_as_data_too(self, ctl: Any, flow_file: Path) -> None:
        flow_file.write_text("nodes: [{id: a}]\nroutes: [{from: a, to: b}]")

        ended = ctl("validate", str(flow_file), "-o", "json")

        verdict = json.loads(ended.out)
        assert ended.code == 1
        assert verdict["valid"] is False
        assert [(problem["line"], problem["kind"]) for problem in verdict["problems"]] == [
            (1, "MissingArtifact"),
            (2, "InvalidGraph"),
        ]

    def test_a_compiled_flow_is_held_against_the_contract(self, ctl: Any, tmp_path: Path) -> None:
        path = tmp_path / "flow.json"
        path.write_text('{"manifests": [\n  {"plugin_id": 7}\n], "routes": [], "schemas": []}')

        ended = ctl("validate", str(path))

        assert ended.code == 1
        assert f"{path}:2:17: error:" in ended.err

    def test_the_daemon_is_asked_too_when_wanted(self, ctl: Any, daemon: Any, flow_file: Path) -> None:
        problem = {"path": "manifests[0].artifact.uri", "message": "is not there", "suggestion": ""}
        daemon.answers["validate"] = {"valid": False, "problems": [problem], "warnings": []}

        ended = ctl("validate", str(flow_file), "--remote")

        assert ended.code == 1
        assert f"{flow_file}:4:32: error: InvalidField: manifests[0].artifact.uri: is not there" in ended.err

    def two_timers(self, tmp_path: Path) -> Path:
        builtin = {"kind": "WasmComponent", "uri": "builtin://chronetix/system/timer"}
        timer = {"plugin_id": "timer-source", "role": "Timer", "artifact": builtin}
        sink = {"plugin_id": "x", "artifact": {"kind": "Python", "uri": "python://m.py:f"}}
        routes = [{"from": end, "to": "x", "plane": "control", "topic": end} for end in ("slow", "fast")]
        path = tmp_path / "two.json"
        path.write_text(json.dumps({"manifests": [timer, timer, sink], "routes": routes, "schemas": []}))
        return path

    def test_compile_writes_the_nodes_that_bindings_settle(self, ctl: Any, tmp_path: Path) -> None:
        path = self.two_timers(tmp_path)
        bound = ctl("compile", str(path), "--bind", "slow=#2", "--bind", "fast=#1")
        assert [manifest["node_id"] for manifest in json.loads(bound.out)["manifests"]] == ["fast", "slow", "x"]
        path.write_text(bound.out)
        assert ctl("compile", str(path)).out == bound.out

    def test_an_artifact_is_given_by_place_and_by_an_endpoint_that_is_bound(self, ctl: Any, tmp_path: Path) -> None:
        path = self.two_timers(tmp_path)
        options = ["--bind", "slow=#2", "--bind", "fast=#1", "--artifact", "slow=python://a.py:f"]
        compiled = json.loads(ctl("compile", str(path), *options, "--artifact", "#1=python://b.py:f").out)
        uris = [manifest["artifact"]["uri"] for manifest in compiled["manifests"]]
        assert uris == ["python://b.py:f", "python://a.py:f", "python://m.py:f"]

    @pytest.mark.parametrize(
        ("artifact", "says"),
        [
            ("timer-source=m:f", 'two.json have the name "timer-source"; name its place: #1 or #2'),
            ("y=m:f", 'two.json has no node "y"; nodes: timer-source, timer-source, x'),
            ("#4=m:f", 'two.json has no node "#4"'),
        ],
    )
    def test_an_artifact_for_no_one_node_is_wrong_usage(
        self, ctl: Any, tmp_path: Path, artifact: str, says: str
    ) -> None:
        ended = ctl("validate", str(self.two_timers(tmp_path)), "--artifact", artifact)
        assert (ended.code, ended.out) == (2, "")
        assert says in " ".join(ended.err.split())

    def test_compile_prints_json_or_yaml(self, ctl: Any, flow_file: Path) -> None:
        plain, as_yaml = ctl("compile", str(flow_file)), ctl("compile", str(flow_file), "-o", "yaml")

        assert json.loads(plain.out) == yaml.safe_load(as_yaml.out)


class TestLists:
    FLOWS = {
        "flows": [
            {"name": "one", "state": "running", "nodes": 3, "routes": 2, "submitted_unix_ns": 1, "changed_unix_ns": 1},
            {
                "name": "zwölf",
                "state": "failed",
                "nodes": 1,
                "routes": 0,
                "submitted_unix_ns": 1,
                "changed_unix_ns": 1,
                "reason": "a\nb",
            },
        ]
    }

    def test_ls_is_a_table(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["list"] = self.FLOWS

        head, *rows = ctl("ls").out.splitlines()

        assert head.split() == ["FLOW", "STATE", "NODES", "ROUTES", "RESTARTS", "SINCE", "REASON"]
        assert rows[0].split()[:4] == ["one", "running", "3", "2"]
        assert rows[1].endswith("a")

    @pytest.mark.parametrize(("count", "says"), [(1, "1 worker not back yet"), (2, "2 workers not back yet"), (0, "")])
    def test_workers_that_are_not_back_from_the_death_of_a_daemon_are_told(
        self, ctl: Any, daemon: Any, count: int, says: str
    ) -> None:
        node = {"plugin_id": "p", "node": "a", "role": "Sink", "kind": "Python", "uri": "python://m:f", "pid": 7}
        daemon.answers["list"] = {"flows": [self.FLOWS["flows"][0] | {"reason": "", "returning": count}]}
        daemon.answers["describe"] = {
            "name": "one",
            "state": "running",
            "reason": "",
            "returning": count,
            "nodes": [node | {"state": "returning" if count else "started"}],
            "routes": [],
        }
        for shown in (ctl("ls").out, ctl("describe", "one").out):
            assert says in shown
            assert ("not back yet" in shown) is bool(count)
        assert ("returning" in ctl("describe", "one").out) is bool(count)

    @pytest.mark.parametrize(("fmt", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
    def test_the_same_data_comes_in_every_format(self, ctl: Any, daemon: Any, fmt: str, load: Any) -> None:
        daemon.answers["list"] = self.FLOWS

        assert load(ctl("-o", fmt, "ls").out) == self.FLOWS
        assert load(ctl("ls", "-o", fmt).out) == self.FLOWS

    def test_names_alone_can_be_asked_for(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["list"] = self.FLOWS

        assert ctl("ls", "-q", "--state", "failed").out == "zwölf\n"

    def test_no_flows_is_no_error(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["list"] = {"flows": []}

        ended = ctl("ls")

        assert ended.code == 0
        assert "chronetixctl submit" in ended.err

    def test_describe_shows_nodes_routes_exits_and_results(self, ctl: Any, daemon: Any) -> None:
        gone = {"code": None, "signal": "SIGKILL", "stderr_tail": "last\nwords", "fault": None}
        fault = {"phase": "frame", "error": "ValueError", "message": "bad", "traceback": "Traceback\n  line 1"}
        node = {"plugin_id": "p", "role": "Sink", "kind": "Python", "uri": "python://m:f", "state": "finished"}
        daemon.answers["describe"] = {
            "name": "pair",
            "state": "failed",
            "reason": "it broke",
            "nodes": [
                node | {"node": "a", "pid": 7, "started_unix_ns": 1, "exit": gone, "memory_bytes": 1 << 21},
                node | {"node": "b", "pid": 8, "started_unix_ns": 1, "exit": {"code": 1, "fault": fault}},
                node | {"node": "c", "pid": 9, "started_unix_ns": 1, "exit": {"code": 0}, "result": {"seen": 3}},
            ],
            "routes": [
                route(plane="data", content_type="application/json") | {"stats": route(committed=5, bytes=2048)},
                {
                    "id": "x",
                    "from": "a",
                    "to": "c",
                    "plane": "control",
                    "content_type": "application/cbor",
                    "stats": None,
                },
            ],
            "timers": [{"node": "a", "id": "t", "interval_ns": 5}],
            "subscriptions": [],
            "flow": {},
        }

        out = ctl("describe", "pair").out

        for words in ("reason: it broke", "2.0MiB", "0/64", "2.0KiB", "a ended with signal SIGKILL", "  | words"):
            assert words in out
        assert "in frame: ValueError: bad" in out
        assert '"seen": 3' in out

    def test_describe_tells_of_restarts_and_of_frames_that_were_set_aside(self, ctl: Any, daemon: Any) -> None:
        node = {"plugin_id": "p", "role": "Sink", "kind": "Python", "uri": "python://m:f", "state": "started", "pid": 7}
        calm = {"last_reason": "", "next_restart_unix_ns": 0}
        back = {"last_reason": "was killed by SIGKILL", "next_restart_unix_ns": 0}
        due = {"last_reason": "hung in on_frame for 5 s", "next_restart_unix_ns": time.time_ns() + 3600 * 10**9}
        failed = {"retries": 8, "passed": 1, "dead_letters": 3, "dropped": 0}
        daemon.answers["describe"] = {
            "name": "pair",
            "state": "running",
            "nodes": [
                node | {"node": "a", "incarnation": 0, "restart": calm, "failed_frames": dict.fromkeys(failed, 0)},
                node | {"node": "b", "incarnation": 4, "restart": back, "failed_frames": failed},
                node | {"node": "c", "incarnation": 2, "restart": due, "state": "restarting"},
            ],
            "routes": [],
        }

        out = ctl("describe", "pair").out

        rows = {line.split()[0]: line.split() for line in out.splitlines()[2:6]}
        assert rows["NODE"].index("RESTARTS") == 5
        assert [rows[name][-3] for name in "abc"] == ["0", "4", "2"]
        assert "b was restarted: it was killed by SIGKILL" in out
        assert "c restarts in " in out
        assert ": it hung in on_frame for 5 s" in out
        assert "b frames that made it raise: retries=8  passed=1  dead_letters=3  dropped=0" in out
        assert "a was restarted" not in out


class TestStreams:
    LOG = {
        "unix_ns": 10**18,
        "flow": "pair",
        "node": "a",
        "stream": "log",
        "level": "warning",
        "line": "hot",
        "fields": {"n": 3},
    }
    EVENT = {"sequence": 17, "unix_ns": 10**18, "kind": "worker-exited", "flow": "pair", "node": "a", "message": "gone"}

    def test_logs_are_lines(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["logs"] = [self.LOG, {"dropped": 3, "unix_ns": 10**18}, None]

        first, second = ctl("logs", "--tail", "5").out.splitlines()

        assert first.endswith(" pair/a | warning: hot  n=3")
        assert "3 lines were missed" in second
        assert daemon.calls == [("logs", {"tail": 5})]

    def test_logs_of_one_flow_leave_its_name_out(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["logs"] = [self.LOG, None]

        assert " a | " in ctl("logs", "pair", "--node", "a", "-f").out
        assert daemon.calls == [("logs", {"flow": "pair", "node": "a", "follow": True})]

    def test_a_plugins_colours_stay_and_its_cursor_moves_do_not(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["logs"] = [self.LOG | {"line": "\x1b[31mred\x1b[0m \x1b[2J \rover"}, None]

        out = ctl("logs").out

        assert r"\x1b[2J" in out
        assert r"\rover" in out

    @pytest.mark.parametrize("verb", ["logs", "events"])
    def test_streams_are_one_json_object_a_line(self, ctl: Any, daemon: Any, verb: str) -> None:
        daemon.answers[verb] = [self.EVENT, self.EVENT, None]

        lines = ctl(verb, "-o", "json").out.splitlines()

        assert [json.loads(line) for line in lines] == [self.EVENT, self.EVENT]

    def test_streams_are_yaml_documents(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["events"] = [self.EVENT, self.EVENT, None]

        assert list(yaml.safe_load_all(ctl("events", "-o", "yaml").out)) == [self.EVENT, self.EVENT]

    def test_events_are_lines(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["events"] = [self.EVENT, None]

        assert ctl("events", "pair").out.endswith(" #17 worker-exited pair/a: gone\n")


class TestTop:
    def test_shows_rates_between_two_snapshots_and_the_bottleneck(self, ctl: Any, daemon: Any) -> None:
        snapshots = iter([stats(1, route()), stats(3, route(committed=2000, bytes=4_000_000, outstanding=64))])
        daemon.answers["stats"] = lambda _: next(snapshots)

        out = ctl("top", "--once", "--interval", "1ms").out

        assert "1,000" in out
        assert "2.0" in out
        assert "64/64" in out
        assert "BOTTLENECK" in out
        assert "b is what the flow waits for" in out

    def test_gives_the_same_as_data(self, ctl: Any, daemon: Any) -> None:
        snapshots = iter([stats(1, route()), stats(2, route(committed=10, outstanding=48))])
        daemon.answers["stats"] = lambda _: next(snapshots)

        value = json.loads(ctl("top", "pair", "--once", "--interval", "1ms", "-o", "json").out)

        (flow,) = value["flows"]
        (found,) = flow["routes"]
        assert (found["frames_per_s"], found["bottleneck"], found["to"], found["credits"]) == (10, True, "b", 64)
        assert flow["nodes"][0]["cpu"] == 0.25
        assert daemon.calls == [("stats", {"flow": "pair"})] * 2

    def test_without_flows_says_so(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["stats"] = {"monotonic_ns": 1, "flows": []}

        assert ctl("top", "--once", "--interval", "1ms").out == "no data routes\n"


class TestAbout:
    def test_version_shows_both_sides(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["version"] = {"daemon": "9.9", "abi": 1, "pid": 7, "started_unix_ns": 10**18}

        out = ctl("version").out

        assert "daemon  daemon     9.9" in out
        assert "started    2001-09-0" in out

    def test_version_without_a_daemon_shows_ours_and_ends_with_5(self, ctl: Any) -> None:
        ended = ctl("version", "-o", "json")

        assert ended.code == 5
        assert json.loads(ended.out)["client"]["protocol"] == [1]
        assert (Path(json.loads(ended.out)["client"]["documents"]) / "docs" / "install.md").is_file()
        assert (Path(json.loads(ended.out)["client"]["headers"]) / "chronetix" / "chronetix.h").is_file()
        assert ctl("version", "--client").code == 0

    @pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
    def test_every_error_can_be_looked_up_by_code_and_by_name(self, ctl: Any, entry: Any) -> None:
        by_code = ctl("errors", str(entry.code), "-o", "json").out

        assert json.loads(by_code)["hint"] == entry.hint
        assert ctl("errors", "lookup", entry.name, "-o", "json").out == by_code

    def test_an_unknown_error_gets_the_nearest(self, ctl: Any) -> None:
        ended = ctl("errors", "flow-notfound")

        assert ended.code == 1
        assert 'did you mean "flow-not-found"' in ended.err

    def test_all_errors_are_listed(self, ctl: Any) -> None:
        assert len(ctl("errors").out.splitlines()) == len(CATALOGUE) + 1

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion_prints_a_script(self, ctl: Any, shell: str) -> None:
        assert "_CHRONETIXCTL_COMPLETE" in ctl("completion", shell).out


@pytest.mark.parametrize(
    ("ended", "how"),
    [
        ({"code": None, "signal": None}, "not observed"),
        ({"code": 0, "signal": None}, "exit code 0"),
        ({"code": None, "signal": "SIGKILL"}, "signal SIGKILL"),
        ({}, "not observed"),
    ],
)
def test_an_exit_that_nobody_has_observed_is_not_called_a_code(ended: dict[str, Any], how: str) -> None:
    assert _how(ended, "signal ") == how
