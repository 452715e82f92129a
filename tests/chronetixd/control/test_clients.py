"""Clients of a real daemon, well-behaved and not: each gets an answer that helps, and none disturbs another."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from chronetix.protocol import cbor
from chronetix.protocol import messages as wire
from chronetix.protocol.framing import encode
from chronetixd.core.quota import ADMIN_RESERVE
from tests.chronetixd.conftest import Peer, RunningDaemon, spawn_daemon
from tests.warm import Warm


@pytest.fixture(scope="module")
def one_daemon(tmp_path_factory: pytest.TempPathFactory, warm_programs: Warm) -> Iterator[RunningDaemon]:
    """A daemon for all tests that leave it as it was: no flow has run, and it ends well."""
    running = spawn_daemon(tmp_path_factory.mktemp("one"), warm=warm_programs)
    yield running
    with running.connect() as peer:
        assert peer.call("list") == {"flows": []}
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture
def one_peer(one_daemon: RunningDaemon) -> Iterator[Peer]:
    with one_daemon.connect() as connected:
        yield connected


def test_version_tells_who_answers(peer: Any, daemon: Any) -> None:
    told = peer.call("version")
    assert told["pid"] == daemon.process.pid
    assert told["protocol"] == [1]
    assert told["state_dir"] == str(daemon.state)


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "frame-too-large"),
        (struct.pack(">I", 4) + b"\xff\xff\xff\xff", "malformed-cbor"),
        (encode(wire.Call(id=1, verb="list")), "unexpected-message"),
        (encode(wire.Hello(protocol=[99], role="client")), "version-unsupported"),
        (encode(wire.Hello(protocol=[1], role="worker")), "role-not-accepted"),
        (encode(wire.Hello(protocol=[1], role="client")) * 2, "unexpected-message"),
        (encode(wire.Ready()), "malformed-message"),
    ],
)
def test_a_client_that_breaks_the_protocol_is_told_why_and_cut_off(sent: bytes, name: str, one_daemon: Any) -> None:
    with one_daemon.connect() as bystander, type(bystander)(one_daemon.socket) as bad:
        bad.sock.sendall(sent)
        said = []
        while (message := bad.receive()) is not None:
            said.append(message)
        assert isinstance(said[-1], wire.Failure)
        assert said[-1].name == name
        assert bystander.call("list") == {"flows": []}


def test_a_refused_version_names_those_that_would_do(one_daemon: Any) -> None:
    with one_daemon.connect() as other, type(other)(one_daemon.socket) as bad:
        bad.send(wire.Hello(protocol=[7, 8], role="client"))
        assert bad.receive().details["supported"] == [1]


def test_a_client_that_says_nothing_is_closed_after_the_deadline(start: Any) -> None:
    daemon = start(CHRONETIX_HELLO_TIMEOUT="0.1")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(daemon.socket))
        with daemon.connect() as other, type(other)(daemon.socket) as quiet:
            assert quiet.receive().name == "handshake-timeout"
            assert quiet.receive() is None
    assert daemon.stop() == 0


def test_descriptors_from_a_client_are_closed_and_refused(daemon: Any) -> None:
    read, write = os.pipe()
    with daemon.connect() as client:
        socket.send_fds(client.sock, [encode(wire.Call(id=1, verb="list"))], [write])
        os.close(write)
        while (message := client.receive()) is not None:
            last = message
        assert last.name == "unexpected-descriptors"
    assert os.read(read, 1) == b""
    os.close(read)


def test_an_unknown_verb_gets_the_nearest_name(one_peer: Any) -> None:
    failure = one_peer.refused("sumbit")
    assert failure.name == "unknown-verb"
    assert "submit" in failure.hint


@pytest.mark.parametrize(
    ("verb", "args", "argument", "words"),
    [
        ("stop", {}, "flow", "flow"),
        ("stop", {"flow": 7}, "flow", "str"),
        ("stop", {"flow": "f", "mod": "now"}, "mod", "did you mean mode"),
        ("stop", {"flow": "f", "mode": "gently"}, "mode", "gently"),
        ("logs", {"tail": "many"}, "tail", "int"),
        ("logs", {"tail": -1}, "tail", ">= 0"),
        ("events", {"tail": 1 << 63}, "tail", "<="),
        ("stop", {"flow": "f", "timeout_ns": -1}, "timeout_ns", ">= 0"),
        ("submit", {"flow": []}, "flow", "object"),
        ("list", {"every": True}, "every", "no such argument"),
    ],
)
def test_a_wrong_argument_is_named(verb: str, args: dict[str, Any], argument: str, words: str, one_peer: Any) -> None:
    failure = one_peer.refused(verb, **args)
    assert failure.name == "bad-argument"
    assert failure.details["argument"] == argument
    assert words in failure.message


@pytest.mark.parametrize("verb", ["describe", "stop", "logs", "events", "stats"])
def test_a_flow_that_is_not_there_is_named(verb: str, one_peer: Any) -> None:
    assert one_peer.refused(verb, flow="nobody").name == "flow-not-found"


def test_calls_of_one_client_run_side_by_side(one_peer: Any) -> None:
    following = one_peer.begin("events", follow=True)
    assert one_peer.call("list") == {"flows": []}
    one_peer.send(wire.Cancel(id=following))
    assert one_peer.end(following).name == "cancelled"


def test_a_call_that_is_cancelled_before_it_begins_ends_all_the_same(one_peer: Any) -> None:
    for id in range(1, 2 * 64):
        one_peer.sock.sendall(
            encode(wire.Call(id=id, verb="events", args={"follow": True})) + encode(wire.Cancel(id=id))
        )
        assert one_peer.end(id).name == "cancelled"


def test_descriptors_of_a_call_that_never_begins_are_closed(daemon: Any) -> None:
    """Whoever sends a call, and nonsense behind it, is cut off before the call's first step."""
    first, second = os.pipe()
    sent = os.readlink(f"/proc/self/fd/{first}")
    with daemon.connect() as client:
        call = encode(wire.Call(id=1, verb="tap", args={"flow": "f", "route": "r", "credits": 1}, descriptors=2))
        socket.send_fds(client.sock, [call + b"\0\0\0\2\xff\xff"], [first, second])
        while client.receive() is not None:
            pass
    with daemon.connect():
        assert sent not in held_by(daemon.process.pid)
    os.close(first)
    os.close(second)


def held_by(pid: int) -> set[str]:
    """What the descriptors of a process refer to."""
    folder = f"/proc/{pid}/fd"
    return {os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}


def test_an_id_in_use_ends_the_connection(daemon: Any) -> None:
    with daemon.connect() as client:
        client.begin("events", follow=True)
        client.send(wire.Call(id=1, verb="list"))
        while (message := client.receive()) is not None:
            last = message
        assert last.name == "malformed-message"


def test_a_client_has_a_quota_of_open_calls(one_peer: Any) -> None:
    for _ in range(64):
        one_peer.begin("events", follow=True)
    assert one_peer.refused("list").name == "quota-exceeded"


def test_a_client_that_goes_away_while_it_follows_leaves_nothing(daemon: Any, peer: Any) -> None:
    before = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
    for _ in range(20):
        with daemon.connect() as client:
            client.begin("logs", follow=True)
    while len(os.listdir(f"/proc/{daemon.process.pid}/fd")) > before:
        peer.call("list")


def test_more_clients_than_allowed_are_refused(start: Any) -> None:
    daemon = start(CHRONETIX_MAX_CLIENTS="1")
    with ExitStack() as connected:
        first, *_ = [connected.enter_context(daemon.connect()) for _ in range(1 + ADMIN_RESERVE)]
        with type(first)(daemon.socket) as second:
            assert second.receive().name == "quota-exceeded"
        assert first.call("list") == {"flows": []}
    assert daemon.stop() == 0


def test_a_frame_that_is_not_completed_in_time_ends_the_connection(start: Any) -> None:
    daemon = start(CHRONETIX_FRAME_TIMEOUT="0.1")
    with daemon.connect() as slow, daemon.connect() as other:
        slow.sock.sendall(struct.pack(">I", 1000) + b"just a bit")
        failure = slow.receive()
        assert (failure.name, failure.details["count"]) == ("frame-timeout", 14)
        assert slow.receive() is None
        assert other.call("list") == {"flows": []}
    assert daemon.stop() == 0


def test_a_daemon_that_was_stopped_for_a_while_blames_no_client_for_it(start: Any) -> None:
    """What has arrived meanwhile counts: the deadlines have passed when it goes on, and it reads before it judges."""
    daemon = start(CHRONETIX_FRAME_TIMEOUT="0.05", CHRONETIX_HELLO_TIMEOUT="0.05")
    frame = encode(wire.Call(id=1, verb="list"))
    with daemon.connect() as begun, daemon.connect() as other, type(other)(daemon.socket) as late:
        begun.sock.sendall(frame[:-1])
        other.call("list")
        daemon.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.process.pid, os.WSTOPPED)
        begun.sock.sendall(frame[-1:])
        late.send(wire.Hello(protocol=[1], role="client"))
        select.select([], [], [], 0.1)
        daemon.process.send_signal(signal.SIGCONT)
        assert begun.end(1).value == {"flows": []}
        assert isinstance(late.receive(), wire.Welcome)
    assert daemon.stop() == 0


def test_a_publication_without_subscribers_reaches_nobody(one_peer: Any) -> None:
    assert one_peer.call("publish", topic="/t", payload=b"x") == {"subscribers": 0}


def test_validate_names_every_problem_and_starts_nothing(one_peer: Any) -> None:
    wasm = {"kind": "WasmComponent", "uri": "file://x.wasm"}
    builtin = {"kind": "WasmComponent", "uri": "builtin://chronetix/system/tmer"}
    python = {"kind": "Python", "uri": "python://no_such_module_anywhere:thing"}
    relative = {"kind": "Process", "uri": "file://rel/prog"}
    cron = [{"id": "t", "schedule": {"cron": "* * * * *"}}]
    nodes = [
        {"plugin_id": f"p{at}", "node_id": f"p{at}", "version": "1", "artifact": artifact}
        for at, artifact in enumerate((wasm, builtin, python, relative))
    ]
    nodes[0] |= {"timers": cron, "bus_subscriptions": [{"pattern": "a/*", "delivery": "at_least_once"}]}
    told = one_peer.call("validate", flow={"manifests": nodes, "routes": [], "schemas": []})
    assert told["valid"] is False
    found = {problem["path"]: problem["message"] + " " + problem["suggestion"] for problem in told["problems"]}
    wanted = {
        "manifests[0].artifact.kind": "Python, Process and Dylib",
        "manifests[1].artifact.uri": "builtin://chronetix/system/timer",
        "manifests[2].artifact.uri": "no_such_module_anywhere",
        "manifests[3].artifact.uri": "base_dir",
        "manifests[0].timers[0].schedule.cron": "interval_ms",
        "manifests[0].bus_subscriptions[0].pattern": "wildcards",
        "manifests[0].bus_subscriptions[0].delivery": "at_most_once",
    }
    assert {path: words for path, words in wanted.items() if words not in found.get(path, "")} == {}
    assert one_peer.call("list") == {"flows": []}


def test_logs_of_a_node_that_no_flow_has_are_refused_unless_one_may_come(peer: Any, scripted: Any) -> None:
    peer.call("submit", flow=scripted("at_once"), name="f", wait="stopped")
    known = peer.call("describe", flow="f")["nodes"][0]["node"]
    peer.call("logs", node=known)
    failure = peer.end(peer.begin("logs", node=f"{known}x"))
    assert (failure.name, failure.message) == ("node-not-found", f"there is no node {known}x")
    assert failure.hint == f"Nearest name: {known}. `chronetixctl ls` lists the flows."
    following = peer.begin("logs", node=f"{known}x", follow=True)
    peer.send(type(peer).cancel(following))
    assert peer.end(following).name == "cancelled"


def test_logs_of_a_node_that_the_flow_does_not_have_are_refused(peer: Any, scripted: Any) -> None:
    peer.call("submit", flow=scripted("good"), name="f", wait="running")
    failure = peer.refused("logs", flow="f", node="goood")
    assert (failure.name, failure.details["node"]) == ("node-not-found", "goood")


def test_an_empty_flow_is_refused(one_peer: Any) -> None:
    failure = one_peer.refused("submit", flow={"manifests": [], "routes": [], "schemas": []})
    assert failure.name == "flow-invalid"
    assert failure.details["problems"]


def test_diff_names_the_fields_that_differ(peer: Any, scripted: Any) -> None:
    peer.call("submit", flow=scripted("good"), name="f", wait="running")
    assert peer.call("diff", flow=scripted("good"), name="f")["same"]
    other = scripted("good")
    other["manifests"][0]["params"]["more"] = 1
    found = peer.call("diff", flow=other, name="f")
    assert (found["same"], found["routes"]) == (False, [])
    assert found["nodes"] == [
        {"name": "n0", "kind": "changed", "fields": [{"path": "params.more", "old": "-", "new": 1}]}
    ]
    peer.call("stop", flow="f")


def test_diff_refuses_what_it_cannot_compare(one_peer: Any, scripted: Any) -> None:
    assert one_peer.refused("diff", flow=scripted("good"), name="nobody").name == "flow-not-found"
    assert one_peer.refused("diff", flow=scripted("good")).name == "bad-argument"
    assert one_peer.refused("diff", flow={"manifests": []}, name="f").name == "flow-invalid"


@pytest.mark.parametrize("verb", ["submit", "diff", "apply"])
@pytest.mark.parametrize("name", ["", "a b", "a\n", "x" * 201])
def test_a_name_that_no_flow_can_have_is_refused_by_every_verb(
    verb: str, name: str, one_peer: Any, scripted: Any
) -> None:
    assert one_peer.refused(verb, flow=scripted("good"), name=name).name == "bad-argument"
    assert one_peer.call("list")["flows"] == []


def test_who_asks_and_does_not_read_is_answered_once_and_later_all(daemon: Any, peer: Any, scripted: Any) -> None:
    flow = scripted("good")
    flow["manifests"][0]["params"]["blob"] = "x" * 8_000_000
    peer.call("submit", flow=flow, name="f", wait="running")
    before = resident(daemon.process.pid)
    with daemon.connect() as deaf:
        ids = [deaf.begin("describe", flow="f") for _ in range(20)]
        for _ in range(50):
            peer.call("version")
        assert resident(daemon.process.pid) - before < 60 << 20
        assert {deaf.end(id).id for id in ids[:1]} == {ids[0]}
        assert [deaf.end(id).id for id in ids[1:4]] == ids[1:4]
    peer.call("stop", flow="f")


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def crowd(verb: str, argument: str, items: int) -> bytes:
    body = cbor.dumps({"type": "call", "id": 1, "verb": verb, "args": {argument: [[]] * items}})
    return struct.pack(">I", len(body)) + body


def test_a_call_that_carries_no_flow_has_few_items(one_peer: Any) -> None:
    one_peer.sock.sendall(crowd("list", "x", 100_000))
    assert one_peer.end(1).name == "bad-argument"
    assert one_peer.call("list") == {"flows": []}


def test_calls_behind_a_large_one_come_in_order(one_peer: Any) -> None:
    one_peer.sock.sendall(crowd("validate", "flow", 200_000) + encode(wire.Call(id=2, verb="list")))
    said = {one_peer.receive().id, one_peer.receive().id}
    assert said == {1, 2}
