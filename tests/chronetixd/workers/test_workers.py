"""Workers of a real daemon that do well or badly: the flow ends as it should, says why, and leaves nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from chronetixd.records.log_record import CUT

Flow = Callable[..., dict[str, Any]]


def gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def described(peer: Any, flow: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flow, and its nodes by name."""
    told = peer.call("describe", flow=flow)
    return told, {node["node"]: node for node in told["nodes"]}


def test_a_program_of_its_own_gets_its_socket_and_its_names_and_drains(scripted: Flow, peer: Any) -> None:
    peer.call("submit", flow=scripted("good"), name="f", wait="running")
    assert peer.call("stop", flow="f") == {"flow": "f", "state": "stopped"}
    _, nodes = described(peer, "f")
    assert nodes["n0"]["result"] == {"node": "n0", "flow": "f", "env": "n0"}
    assert nodes["n0"]["exit"]["code"] == 0


def test_a_flow_whose_nodes_finish_by_themselves_has_stopped(scripted: Flow, peer: Any) -> None:
    answer = peer.call("submit", flow=scripted("at_once", "at_once"), wait="stopped")
    assert answer["state"] == "stopped"


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("exits_with_3", ["exited with code 3", "about to leave"]),
        ("exits_0_early", ["exited with code 0 before it had finished"]),
        ("faults", ["'frame'", "ValueError: no such thing", "exited with code 1"]),
        ("faults_and_lingers", ["'frame'", "ValueError: no such thing", "SIGTERM"]),
        ("speaks_99", ["protocol", "99"]),
        ("comes_as_a_client", ["protocol", "client"]),
        ("garbage", ["broke the protocol", "CBOR"]),
        ("oversized", ["broke the protocol", "4294967295 bytes"]),
        ("half_a_frame", ["broke the protocol", "middle of a frame"]),
        ("finishes_too_early", ["broke the protocol", "HasFinished", "offering"]),
        ("offers_twice", ["broke the protocol", "offer", "without having been asked"]),
        ("offers_a_pipe", ["broke the protocol", "descriptors"]),
        ("offers_what_it_has_not", ["broke the protocol", "rings"]),
        ("sends_descriptors_too_many", ["broke the protocol", "descriptors"]),
        ("publishes_nonsense", ["broke the protocol", "envelope"]),
        ("closes_its_socket", ["broke the protocol", "closed its control socket"]),
    ],
)
def test_a_bad_worker_fails_its_flow_with_the_reason_and_no_other(
    behaviour: str, words: list[str], scripted: Flow, peer: Any
) -> None:
    peer.call("submit", flow=scripted("good"), name="neighbour", wait="running")
    answer = peer.call("submit", flow=scripted("good", behaviour), name="f", wait="stopped")
    assert answer["state"] == "failed"
    assert [word for word in ["'n1'", *words] if word not in answer["reason"]] == []
    told, nodes = described(peer, "f")
    assert told["reason"] == answer["reason"]
    assert all(gone(node["pid"]) for node in nodes.values())
    states = {flow["name"]: flow["state"] for flow in peer.call("list")["flows"]}
    assert states["neighbour"] == "running"


@pytest.mark.parametrize(("behaviour", "phase"), [("never_says_hello", "hello"), ("never_offers", "load")])
def test_a_worker_that_never_becomes_ready_fails_the_flow_at_the_deadline(
    behaviour: str, phase: str, start: Any, scripted: Flow
) -> None:
    daemon = start(CHRONETIX_START_TIMEOUT="1.5")
    with daemon.connect() as peer:
        failure = peer.refused("submit", flow=scripted("good", behaviour), wait="running")
        assert failure.name == "flow-failed"
        assert f"'n1' was not ready within 1.5 s; it is still in phase '{phase}'" in failure.message
    assert daemon.stop() == 0


def test_a_worker_killed_from_outside_is_reported_by_its_signal(scripted: Flow, peer: Any) -> None:
    peer.call("submit", flow=scripted("good", "good"), name="f", wait="running")
    _, nodes = described(peer, "f")
    os.kill(nodes["n1"]["pid"], signal.SIGKILL)
    following = peer.begin("events", flow="f", follow=True)
    while peer.receive().value["kind"] != "flow-failed":
        pass
    told, nodes = described(peer, "f")
    assert "'n1' was killed by SIGKILL" in told["reason"]
    assert nodes["n1"]["exit"]["signal"] == "SIGKILL"
    assert all(gone(node["pid"]) for node in nodes.values())
    assert following


def test_a_program_that_cannot_be_executed_fails_the_flow(scripted: Flow, peer: Any, tmp_path: Any) -> None:
    program = tmp_path / "not-a-program"
    program.write_bytes(b"\x00\x01\x02")
    program.chmod(0o755)
    flow = scripted("good")
    flow["manifests"][0]["artifact"]["uri"] = f"file://{program}"
    answer = peer.call("submit", flow=flow, wait="stopped")
    assert answer["state"] == "failed"
    assert "'n0'" in answer["reason"]
    assert f"{program} is no program for this machine" in answer["reason"]


@pytest.mark.parametrize("mode", ["drain", "now"])
def test_a_worker_that_does_not_want_to_end_is_killed(mode: str, scripted: Flow, peer: Any) -> None:
    peer.call("submit", flow=scripted("stubborn"), name="f", wait="running")
    _, nodes = described(peer, "f")
    answer = peer.call("stop", flow="f", mode=mode, timeout_ns=100_000_000)
    assert answer["state"] == ("failed" if mode == "drain" else "stopped")
    assert gone(nodes["n0"]["pid"])


def test_what_a_worker_has_forked_is_killed_with_it(scripted: Flow, peer: Any) -> None:
    peer.call("submit", flow=scripted("leaves_a_child"), name="f", wait="running")
    peer.call("stop", flow="f")
    _, nodes = described(peer, "f")
    child = nodes["n0"]["result"]
    while not gone(child):  # it is nobody's child now: init reaps it
        with open(f"/proc/{child}/stat") as file:
            if file.read().split()[2] == "Z":
                break


def test_a_stop_while_starting_ends_everything(scripted: Flow, peer: Any) -> None:
    peer.call("submit", flow=scripted("never_offers", "good"), name="f")
    assert peer.call("stop", flow="f")["state"] == "stopped"
    _, nodes = described(peer, "f")
    assert all(gone(node["pid"]) for node in nodes.values())


def test_a_name_in_use_is_refused_and_free_again_afterwards(scripted: Flow, peer: Any) -> None:
    peer.call("submit", flow=scripted("good"), name="f", wait="running")
    assert peer.refused("submit", flow=scripted("good"), name="f").name == "flow-exists"
    peer.call("stop", flow="f")
    assert peer.refused("stop", flow="f").name == "flow-not-running"
    peer.call("submit", flow=scripted("at_once"), name="f", wait="stopped")
    assert len(peer.call("list")["flows"]) == 1


def test_waiting_has_a_limit_and_the_flow_goes_on(scripted: Flow, peer: Any) -> None:
    failure = peer.refused("submit", flow=scripted("good"), name="f", wait="stopped", timeout_ns=1)
    assert failure.name == "timed-out"
    assert peer.call("list")["flows"][0]["name"] == "f"
    peer.call("stop", flow="f")


def test_what_workers_print_is_kept_line_by_line_and_within_bounds(scripted: Flow, peer: Any) -> None:
    peer.call("submit", flow=scripted("chatters"), name="f", wait="stopped")
    call = peer.begin("logs", flow="f")
    lines = []
    while hasattr(message := peer.receive(), "value") and type(message).__name__ == "Item":
        lines.append((message.value["stream"], message.value["line"]))
    assert message.id == call
    assert [line for stream, line in lines if stream == "stdout"][:2000] == [f"line {n}" for n in range(2000)]
    assert max(len(line) for _, line in lines) == 16 * 1024 + len(CUT)
    assert ("stderr", "last words") in lines


def test_flows_leave_no_descriptor_in_the_daemon(scripted: Flow, peer: Any, daemon: Any) -> None:
    """A descriptor that the daemon has for a moment only, as for its journal, may be among those counted at first."""
    peer.call("submit", flow=scripted("at_once"), wait="stopped")
    before = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
    for behaviour in ("at_once", "faults", "garbage", "offers_a_pipe") * 2:
        peer.call(
            "submit",
            flow=scripted("good", behaviour) if behaviour != "at_once" else scripted(behaviour),
            wait="stopped",
        )
    assert len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= before
