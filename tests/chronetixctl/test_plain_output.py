"""Every command's plain output to the letter, as one reads it on a terminal: heads, columns, places, signs."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
import pytest

from chronetix.protocol import cbor
from chronetix.protocol.errors import CATALOGUE, error
from chronetixctl import flowfile, topic

DAYS = 86400 * 10**9
AT = 10**18
"""2001-09-09 01:46:40 UTC."""

pytestmark = pytest.mark.usefixtures("utc")


def ago(days: int) -> int:
    return time.time_ns() - days * DAYS


def test_ls(ctl: Any, daemon: Any) -> None:
    one = {"name": "one", "state": "running", "nodes": 3, "routes": 2, "restarts": 11, "changed_unix_ns": ago(2)}
    two = {"name": "twelve", "state": "failed", "nodes": 10, "routes": 0, "changed_unix_ns": ago(3), "reason": "a\nb"}
    daemon.answers["list"] = {"flows": [one, two]}
    assert ctl("ls").out.splitlines() == [
        "FLOW    STATE    NODES  ROUTES  RESTARTS  SINCE  REASON",
        "one     running      3       2        11  2d00h  -",
        "twelve  failed      10       0         0  3d00h  a",
    ]
    assert ctl("ls", "-q").out == "one\ntwelve\n"
    daemon.answers["list"] = {"flows": []}
    assert ctl("ls").err == "no flows; submit one: chronetixctl submit FILE\n"
    assert ctl("ls", "--state", "failed", "--state", "stopped").err == "no flows in state failed, stopped\n"


STATS = {
    "committed": 1234,
    "bytes": 2048,
    "outstanding": 3,
    "credits": 64,
    "would_block": 17,
    "p50_ns": 1500,
    "p99_ns": 2_500_000,
    "dropped": 9,
    "drops": {"no_credit": 4, "no_room": 3, "overwritten": 2, "given_up": 1},
    "gave_up_after_ns": 2 * 10**9,
}


def node(name: str, **about: Any) -> dict[str, Any]:
    return {"node": name, "state": "started", "role": "Map", "uri": "python://m:f", "pid": 7, **about}


def described(*nodes: dict[str, Any], **about: Any) -> dict[str, Any]:
    return {"name": "pair", "state": "running", "reason": "", "nodes": nodes, "routes": [], **about}


class TestDescribe:
    def test_nodes(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["describe"] = described(
            node("a", started_unix_ns=ago(4), incarnation=12, memory_bytes=1 << 21),
            node("longer", pid=None, role=None, uri=None, state="finished", started_unix_ns=ago(4)),
            node("c", started_unix_ns=ago(4), exit={"code": 0}),
            state="failed",
            reason="it broke\nhere",
        )
        assert ctl("describe", "pair").out.splitlines() == [
            "pair  failed",
            "reason: it broke",
            "",
            "NODE    STATE     ROLE  PID     UP  RESTARTS  MEMORY  ARTIFACT",
            "a       started   Map     7  4d00h        12  2.0MiB  python://m:f",
            "longer  finished  -       -      -         0       -  -",
            "c       started   Map     7      -         0       -  python://m:f",
        ]

    def test_routes_and_what_is_unusual_about_them(self, ctl: Any, daemon: Any) -> None:
        ends = {"from": "a", "to": "b", "content_type": "application/json"}
        routes = [
            {
                "id": "r",
                "plane": "data",
                "stats": STATS,
                "held": {"node": "b", "count": 2, "seq": 7, "age_ns": 3 * 10**9},
                "taps": [{"pid": 42, "taken": 5, "dropped": 6}, {"pid": 43}],
                **ends,
            },
            {"id": "s", "plane": "data", "stats": None, "buffer": 64, **ends},
            {
                "id": "t",
                "plane": "data",
                "stats": STATS | {"drops": {"no_room": 0}, "gave_up_after_ns": 0},
                "held": {"node": "b", "count": 1, "seq": 8, "age_ns": 0},
                **ends,
            },
            {"id": "u", "plane": "control", "stats": None, "buffer": 64, **ends},
        ]
        daemon.answers["describe"] = described(node("a"), routes=routes)
        assert ctl("describe", "pair").out.splitlines()[5:] == [
            "ROUTE  FROM  TO  PLANE    CONTENT           FRAMES   BYTES  CREDITS  BLOCKED    P50    P99  DROPPED",
            "r      a     b   data     application/json    1234  2.0KiB     3/64       17  1.5us  2.5ms        9",
            "s      a     b   data     application/json       -       -       64        -      -      -        -",
            "t      a     b   data     application/json    1234  2.0KiB     3/64       17  1.5us  2.5ms        9",
            "u      a     b   control  application/json       -       -        -        -      -      -        -",
            "  r lost 4 for want of a credit, 3 for want of room, 2 to newer ones, 1 after it was given up",
            "  r was given up after 2s without a credit",
            "  r: b keeps 2 frames, the oldest, 7, since 3s ago",
            "  r is listened to by process 42: 5 frames, 6 lost",
            "  r is listened to by process 43: not linked yet",
            "  t: b keeps 1 frame, the oldest, 8, since 0ns ago",
        ]

    def test_timers_subscriptions_ends_and_results(self, ctl: Any, daemon: Any) -> None:
        fault = {"phase": "frame", "error": "ValueError", "message": "bad\nworse", "traceback": "T\n  1"}
        daemon.answers["describe"] = described(
            node("a", exit={"signal": "SIGKILL", "stderr_tail": "last\nwords"}, result_left_out=1 << 20),
            node("b", exit={"code": 3, "fault": fault, "stderr_tail": ["before", "T", "  1"]}),
            node("c", exit={"code": 4, "fault": "it hung", "stderr_tail": None}),
            node("d", exit={"code": 5, "fault": fault, "stderr_tail": "other"}),
            node("e", exit={"code": 0, "stderr_tail": "unseen"}, result={"seen": [3]}),
            timers=[
                {"node": "a", "id": "t", "interval_ns": 5_000_000},
                {"node": "long", "id": "u", "interval_ns": 10**9},
            ],
            subscriptions=[{"node": "a", "topic": "topic\x1b", "delivered": 12, "dropped": 0}],
        )
        assert ctl("describe", "pair").out.split("python://m:f\n")[-1].splitlines() == [
            "",
            "TIMERS",
            "NODE  TIMER  EVERY",
            "a     t        5ms",
            "long  u         1s",
            "",
            "SUBSCRIPTIONS",
            "NODE  TOPIC      DELIVERED  DROPPED",
            r"a     topic\x1b         12        0",
            "",
            "a ended with signal SIGKILL",
            "  | last",
            "  | words",
            "",
            "a result of 1.0MiB is not shown: too large for one answer",
            "",
            "b ended with exit code 3",
            "  in frame: ValueError: bad",
            "  | before",
            "  | T",
            "  |   1",
            "",
            "c ended with exit code 4",
            "  it hung",
            "",
            "d ended with exit code 5",
            "  in frame: ValueError: bad",
            "  | T",
            "  |   1",
            "  | other",
            "",
            "e result",
            "  {",
            '    "seen": [',
            "      3",
            "    ]",
            "  }",
        ]

    def test_the_last_exits_of_each_node_in_the_order_of_time(self, ctl: Any, daemon: Any) -> None:
        def death(second: int, **about: Any) -> dict[str, Any]:
            plain = {"node": "a", "pid": 7, "code": 3, "signal": None, "fault": None, "stderr": [], "held": []}
            plain |= {"killed_with": None, "out_of_memory": "no", "max_rss_bytes": 0, "cpu_ns": 10**9}
            return {**plain, "unix_ns": AT + second * 10**9, "uptime_ns": 2 * 10**9, **about}

        held = [{"route": "r", "count": 2}, {"route": "s", "count": 1}]
        deaths = [
            death(0, pid=1),
            death(1, stderr=["first", "x" * 81]),
            death(4, signal="SIGKILL", killed_with="SIGKILL", stderr=["unread"], fault="hung\nfor long"),
            death(5, killed_with="SIGTERM", held=held),
        ]
        other = death(3, node="b", signal="SIGSEGV", out_of_memory="likely", max_rss_bytes=1 << 20, pid=12)
        daemon.answers["describe"] = described(node("a", deaths=deaths), node("b", deaths=[other]))
        table = ctl("describe", "pair").out.split("LAST EXITS\n")[1].splitlines()
        cells = [[cell for cell in line.split("  ") if cell] for line in table]
        heads = ["WHEN", "NODE", "PID", "HOW", "OUT OF MEMORY", "UP", "CPU", "MAX MEMORY", "HELD", "WHY"]
        assert [[cell.strip() for cell in row] for row in cells] == [
            heads,
            ["2001-09-09 01:46:41+00:00", "a", "7", "exit code 3", "-", "2s", "1s", "-", "-", "x" * 80],
            ["2001-09-09 01:46:43+00:00", "b", "12", "SIGSEGV", "likely", "2s", "1s", "1.0MiB", "-", "-"],
            ["2001-09-09 01:46:44+00:00", "a", "7", "SIGKILL from the daemon", "-", "2s", "1s", "-", "-", "hung"],
            ["2001-09-09 01:46:45+00:00", "a", "7", "exit code 3", "-", "2s", "1s", "-", "r:2, s:1", "-"],
        ]
        for head in ("PID", "UP", "CPU", "MAX MEMORY"):
            end = table[0].index(f" {head} ") + 1 + len(head)
            assert all(line[end - 1] != " " and line[end] == " " for line in table), head
        for head in ("NODE", "HOW", "OUT OF MEMORY", "HELD", "WHY"):
            start = table[0].index(head)
            assert all(line[start] != " " and line[start - 1] == " " for line in table), head


def test_route_ls(ctl: Any, daemon: Any) -> None:
    plain = {"from": "a", "to": "b", "topic": "t", "content_type": "c", "plane": "data", "taps": [], "stats": None}
    routes = [
        plain | {"id": "r", "policy": "block", "limit_ms": 2.5, "stats": {"dropped": 12345678}, "taps": [{}] * 12},
        plain | {"id": "longer", "policy": "latest", "limit_ms": 0, "topic": None},
        plain | {"id": "none", "policy": "block", "limit_ms": 0, "plane": "control"},
    ]
    daemon.answers["list"] = {"flows": [{"name": "one"}, {"name": "two"}]}
    daemon.answers["describe"] = lambda args: {"routes": routes if args["flow"] == "one" else []}
    assert ctl("route", "ls").out.splitlines() == [
        "FLOW  ROUTE   FROM  TO  TOPIC  CONTENT  POLICY           DROPPED  TAPS",
        "one   r       a     b   t      c        block ≤ 2.5 ms  12345678    12",
        "one   longer  a     b   -      c        latest                 -     0",
    ]
    assert ctl("route", "ls", "two").out == ""


def test_top(ctl: Any, daemon: Any) -> None:
    counts = {"credits": 64, "watermark": 48, "would_block": 5, "blocked_ns": 0, "p50_ns": 1000, "p99_ns": 2000}
    counts |= {"committed": 0, "bytes": 0, "outstanding": 0, "dropped": 0}
    full = {"committed": 2000, "bytes": 4_000_000, "outstanding": 48, "dropped": 3}

    def snapshot(second: int, **last: int) -> dict[str, Any]:
        routes = [
            {"id": "r", "from": "a", "to": "b", "closed": False, **counts, **last},
            {"id": "longer", "from": "b", "to": "c", "closed": True, **counts},
            {"id": "spoilt", "from": "b", "to": "d"},
        ]
        memory = {"rss_bytes": 1 << 20, "unique_bytes": 4096} if second == 1 else {"rss_bytes": 3 << 20}
        nodes = [{"node": "a", "pid": 7, "state": "running", "cpu_s": second / 4, **memory}]
        flow = {"flow": "pair", "state": "running", "nodes": nodes, "routes": routes}
        return {"monotonic_ns": second * 10**9, "flows": [flow]}

    snapshots = iter([snapshot(1), snapshot(3, **full)])
    daemon.answers["stats"] = lambda _: next(snapshots)
    assert ctl("top", "--once", "--interval", "1ms").out.splitlines() == [
        "FLOW  ROUTE   FROM  TO  FRAMES/S  MB/S  CREDITS  WOULDBLOCK  P50  P99  DROPPED",
        "pair  r       a     b      1,000   2.0    48/64           5  1us  2us        3  BOTTLENECK",
        "pair  longer  b     c          0   0.0     0/64           5  1us  2us        0  closed",
        "",
        "FLOW  NODE  STATE    PID  CPU     RSS  UNIQUE  MSGS DROPPED",
        "pair  a     running    7  25%  3.0MiB       -             0",
        "",
        "pair: b is what the flow waits for: route r stands at its watermark",
    ]


def test_rollout_history_and_status(ctl: Any, daemon: Any) -> None:
    change = {
        "nodes": [{"name": "a", "kind": "changed", "fields": [{"path": "p", "old": 1, "new": 2}]}],
        "routes": [{"name": "r", "kind": "added", "fields": []}],
        "notes": [],
    }
    revisions = [
        {"number": 1, "unix_ns": AT, "outcome": "submitted", "current": False, "why": "", "change": {}},
        {"number": 10, "unix_ns": AT + 10**9, "outcome": "done", "current": True, "why": "", "change": {}},
        {"number": 11, "unix_ns": AT, "outcome": "rolled-back", "current": False, "why": "late", "change": change},
    ]
    daemon.answers["rollouts"] = {"flow": "pair", "revisions": revisions, "rollout": None}
    assert ctl("rollout", "history", "pair").out.splitlines() == [
        "REVISION  AT                   OUTCOME      CHANGE",
        "1         2001-09-09 01:46:40  submitted    -",
        "10*       2001-09-09 01:46:41  done         nothing that runs",
        "11        2001-09-09 01:46:40  rolled-back  changed node a, added route r",
    ]
    rolled_back = ["pair roll-out 11 rolled-back", "  late", "  ~ node a", "      p: 1 → 2", "  + route r"]
    assert ctl("rollout", "status", "pair").out.splitlines() == rolled_back
    older = {"number": 10, "step": "preparing", "waits_for": ["a"]}
    daemon.answers["rollouts"] = {"flow": "pair", "revisions": revisions, "rollout": older}
    assert ctl("rollout", "status", "pair").out.splitlines() == rolled_back
    revisions[-1] |= {"outcome": "committed", "why": ""}
    now = {"number": 11, "step": "switching", "waits_for": ["a", "b"]}
    daemon.answers["rollouts"] = {"flow": "pair", "revisions": revisions, "rollout": now}
    assert ctl("rollout", "status", "pair").out.splitlines()[:2] == ["pair roll-out 11 switching", "  waits for a, b"]


def test_logs(ctl: Any, daemon: Any) -> None:
    line = {"unix_ns": AT, "flow": "pair", "node": "a", "stream": "stdout", "level": "", "line": "hello"}
    daemon.answers["logs"] = [
        line,
        line | {"stream": "log", "level": "info", "fields": {"n": 3, "m": "x y"}},
        line | {"stream": "log", "level": "error", "unix_ns": AT + 250_000_000},
        line | {"stream": "stderr", "level": "error"},
        line | {"flow": "", "node": "", "stream": "daemon"},
        {"dropped": 3, "unix_ns": AT},
        None,
    ]
    whole = [
        "01:46:40.000 pair/a | hello",
        "01:46:40.000 pair/a | hello  n=3  m=x y",
        "01:46:40.250 pair/a | error: hello",
        "01:46:40.000 pair/a | hello",
        "01:46:40.000 chronetixd | hello",
        "01:46:40.000 (3 lines were missed: read faster)",
    ]
    assert ctl("logs").out.splitlines() == whole
    assert ctl("logs", "pair").out.splitlines() == [each.replace("pair/a", "a") for each in whole]


def test_events(ctl: Any, daemon: Any) -> None:
    event = {"sequence": 17, "unix_ns": AT, "kind": "worker-exited", "flow": "pair", "node": "a", "message": "x\ny"}
    daemon.answers["events"] = [event, event | {"node": "", "message": ""}, {"dropped": 3, "unix_ns": AT}, None]
    assert ctl("events").out.splitlines() == [
        "01:46:40.000 #17 worker-exited pair/a: x",
        "01:46:40.000 #17 worker-exited pair",
        "01:46:40.000 (3 events were missed: read faster)",
    ]


def test_audit(ctl: Any, daemon: Any) -> None:
    item = {"unix_ns": AT, "uid": 0, "gid": 0, "pid": 7, "program": "prog", "verb": "stop", "outcome": "ok"}
    about = {"flow": "f", "mode": "now"}
    daemon.answers["audit"] = [
        item | {"about": about, "took_ns": 12_000_000, "lost": 2, "suppressed": 3},
        item | {"uid": 4_000_000_000, "program": None, "outcome": "refused"},
        {"dropped": 4},
        None,
    ]
    missing = "[2 records before this could not be written, 3 refusals before this left out]"
    assert ctl("audit").out.splitlines() == [
        f"2001-09-09 01:46:40+00:00 root prog[7] stop flow=f mode=now: ok (12ms)  {missing}",
        "2001-09-09 01:46:40+00:00 user 4000000000 ?[7] stop: refused",
        "(4 records were missed: read faster)",
    ]


def test_version_and_errors(ctl: Any, daemon: Any) -> None:
    daemon.answers["version"] = {"daemon": "9.9", "protocol": [1, 2], "pid": 7, "started_unix_ns": AT}
    assert ctl("version").out.splitlines()[-4:] == [
        "daemon  daemon     9.9",
        "daemon  protocol   1, 2",
        "daemon  pid        7",
        "daemon  started    2001-09-09 01:46:40+00:00",
    ]
    assert [line.split()[:2] for line in ctl("version", "--client").out.splitlines()] == [
        ["client", key] for key in ("version", "protocol", "python", "documents", "headers")
    ]
    head, *rows = ctl("errors").out.splitlines()
    first, second, *_ = CATALOGUE.values()
    assert head.split() == ["CODE", "NAME", "WHAT", "HAPPENED"]
    assert rows[0].split(maxsplit=2) == [str(first.code), first.name, first.message]
    assert {row.index(row.split()[1]) for row in rows} == {head.index("NAME")}
    assert ctl("errors", first.name, str(second.code)).out == "\n".join(
        f"{each.code} {each.name}\n  what: {each.message}\n  next: {each.hint}\n" for each in (first, second)
    )


def test_doctor(ctl: Any, daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def finding(status: str, **more: str) -> dict[str, str]:
        return {"status": status, "area": "kernel", "check": "memfd", "detail": "as it\nshould be", **more}

    daemon.answers["version"] = {"daemon": "9.9", "protocol": [1], "pid": 7, "started_unix_ns": AT}
    daemon.answers["doctor"] = {"findings": [finding("PASS"), finding("WARN", cure="do\nthis"), finding("FAIL")]}
    monkeypatch.setattr("chronetixd.doctor.examine", lambda *_: [])
    ended = ctl("doctor")
    lines = [
        r"PASS    kernel  memfd  as it\nshould be",
        r"WARN    kernel  memfd  as it\nshould be",
        r"        → do\nthis",
        r"FAIL    kernel  memfd  as it\nshould be",
    ]
    assert ended.out.splitlines() == ["STATUS  AREA    CHECK  FOUND", *lines]
    assert (ended.code, ended.err) == (1, "3 checks: 1 failed, 1 with a warning\n")
    assert ctl("doctor", "--problems").out.splitlines()[1:] == lines[1:]
    daemon.answers["doctor"] = {"findings": [finding("WARN")]}
    assert ctl("doctor").code == 0


class Shown:
    """A frame that was sent a second ago by the clock of the test."""

    seq, time_ns = 7, 0

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return self._data


@pytest.mark.parametrize(
    ("data", "content_type", "lines"),
    [
        (b'{"a": [1]}', "application/json", ["10B", "  {", '    "a": [', "      1", "    ]", "  }"]),
        (b"{", "application/json", ["1B", "  not application/json: JSONDecodeError: ", "  000000  7b", "{"]),
        (b"", "application/octet-stream", ["0B"]),
        (
            bytes(range(0x1D, 0x2E)) + b"\x7e\x7f",
            "application/octet-stream",
            [
                "19B",
                "  000000  1d 1e 1f 20 21 22 23 24 25 26 27 28 29 2a 2b 2c  ... !\"#$%&'()*+,",
                "  000010  2d 7e 7f" + " " * 41 + "-~.",
            ],
        ),
    ],
)
def test_frames(data: bytes, content_type: str, lines: list[str]) -> None:
    item = topic.described(Shown(data), content_type) | {"unix_ns": AT}  # type: ignore[arg-type]
    head, *shown = map(click.unstyle, topic._lines(item))
    assert head == f"01:46:40.000 #7 {lines[0]}"
    if content_type == "application/json" and len(data) == 1:
        assert shown[0].startswith(lines[1])
        assert (shown[1].startswith(lines[2]), shown[1].endswith(lines[3])) == (True, True)
    else:
        assert shown == lines[1:]


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_of_a_long_frame_the_beginning(more: int) -> None:
    item = topic.described(Shown(bytes(topic.HEX_SHOWN + more)), "x") | {"unix_ns": AT}  # type: ignore[arg-type]
    _, *shown = topic._lines(item)
    assert len(shown) == topic.HEX_SHOWN // 16 + (more > 0)
    assert shown[-1].startswith("  … 1 bytes more" if more > 0 else "  0000f0  ")


class Terminal:
    """A stderr that is one."""

    def __init__(self) -> None:
        self.written = ""

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        """At once."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("command", ["submit", "apply"])
@pytest.mark.parametrize("refused", [False, True])
def test_progress_is_one_line_and_gone_before_anything_else_is_said(
    ctl: Any, daemon: Any, flow_file: Any, monkeypatch: pytest.MonkeyPatch, command: str, refused: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("chronetixctl.progress.sys.stderr", terminal)
    steps = [{"flow": "pair", "state": "starting", "ready": 1, "total": 2, "step": "preparing"}] * 2
    ended = {"flow": "pair", "state": "running", "step": "same", "number": 1, "change": {}, "warnings": []}
    daemon.answers[command] = [*steps, error("flow-failed", flow="pair", reason="it broke") if refused else ended]
    assert ctl(command, str(flow_file)).code == int(refused)
    start, *shown = terminal.written.split("\r\x1b[K")
    assert (start, len(shown)) == ("", 3)
    assert shown[0] == shown[1]
    assert shown[0]
    assert "error" not in shown[0]
    assert click.unstyle(shown[2]).startswith("error: ") is refused


@pytest.mark.parametrize("options", [(), ("--once",), ("--once", "-o", "json")])
def test_top_redraws_itself_on_a_terminal_alone_and_only_as_a_table_that_goes_on(
    ctl: Any, daemon: Any, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    drawn: list[object] = []
    daemon.answers["stats"] = {"monotonic_ns": 1, "flows": []}
    monkeypatch.setattr("chronetixctl.top._live", lambda *what: drawn.append(what))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    ended = ctl("top", *options, "--interval", "1ms")
    assert (ended.code, bool(drawn), bool(ended.out)) == (0, not options, bool(options))


@pytest.mark.parametrize(
    ("flow", "compiled"),
    [
        ({"manifests": [], "nodes": [], "routes": []}, False),
        ({"manifests": []}, False),
        ({"routes": []}, False),
        ({"nodes": [{"id": "a", "plugin": {"artifact": "python://m:a"}}]}, True),
    ],
)
def test_of_cbor_only_what_has_nodes_and_no_manifests_is_compiled(flow: dict[str, Any], compiled: bool) -> None:
    read = flowfile._from_cbor(cbor.dumps(flow), "x", "/")
    assert (read.compiled is not None, read.flow == flow) == (compiled, not compiled)
