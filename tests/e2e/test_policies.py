"""Policies and taps in a real daemon: who is slow loses its own frames, counted by reason, and nobody else's."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chronetix import shm
from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from chronetixctl.tap import Tap


def routes_of(client: Any, flow: str) -> dict[str, Any]:
    return {route["to"]: route for route in client.call("describe", flow=flow)["routes"]}


def result_of(client: Any, flow: str, node: str) -> Any:
    return next(entry["result"] for entry in client.call("describe", flow=flow)["nodes"] if entry["node"] == node)


def until(client: Any, flow: str, target: str, reached: Callable[[Any], bool]) -> Any:
    """The route's description once ``reached`` says so."""
    while True:
        route = routes_of(client, flow)[target]
        if reached(route):
            return route


@contextmanager
def listening(daemon: Any, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A chronetixctl that listens, and has shown its first frame."""
    command = [sys.executable, "-m", "chronetixctl", "topic", "echo", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=daemon.environment, bufsize=0, **pipes)
    assert process.stdout is not None
    try:
        assert process.stdout.readline(), process.stderr and process.stderr.read()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


class TestPolicies:
    def test_a_slow_reader_of_the_latest_frames_loses_the_others_and_they_are_counted(self, submit: Any, client: Any):
        nodes = [
            submit.node("numbers", "pipeline:numbers", params={"count": 5_000}),
            submit.node("check", "pipeline:Check"),
            submit.node("newest", "pipeline:Newest"),
        ]
        routes = [submit.edge("numbers", "check"), submit.edge("numbers", "newest", policy="latest", buffer=4)]
        submit(nodes, routes, name="latest")
        assert result_of(client, "latest", "check") == {"seen": 5_000, "faults": []}
        newest = result_of(client, "latest", "newest")
        assert newest["last"] == 4_999
        counts = routes_of(client, "latest")["newest"]["stats"]
        assert counts["taken"] == newest["seen"]
        assert counts["drops"] == {
            "no_credit": 0,
            "no_room": 0,
            "given_up": 0,
            "overwritten": 5_000 - newest["seen"],
            "unread": 0,
        }

    @pytest.mark.parametrize("policy", ["block", "latest", "drop_newest"])
    def test_what_is_under_way_when_a_flow_is_stopped_at_once_counts_as_lost(
        self, policy: str, submit: Any, client: Any
    ):
        nodes = [
            submit.node("numbers", "pipeline:numbers", params={"count": 10**9}),
            submit.node("sink", "pipeline:Check"),
        ]
        submit(nodes, [submit.edge("numbers", "sink", policy=policy)], name="now", wait="running")
        client.call("stop", flow="now", mode="now")
        counts = routes_of(client, "now")["sink"]["stats"]
        assert counts["committed"] == counts["taken"] + counts["drops"]["overwritten"] + counts["drops"]["unread"]
        assert counts["dropped"] == sum(counts["drops"].values())

    def test_a_consumer_past_its_limit_is_given_up_and_the_flow_goes_on(self, submit: Any, client: Any):
        nodes = [
            submit.node("numbers", "pipeline:numbers", params={"count": 2_000}),
            submit.node("check", "pipeline:Check"),
            submit.node("keeps", "pipeline:Keeps"),
        ]
        routes = [submit.edge("numbers", "check"), submit.edge("numbers", "keeps", limit_ms=50, buffer=8)]
        submit(nodes, routes, name="limit")
        assert result_of(client, "limit", "check") == {"seen": 2_000, "faults": []}
        assert result_of(client, "limit", "keeps") == {"seen": 8}
        described = routes_of(client, "limit")["keeps"]
        assert described["limit_ms"] == 50
        assert described["stats"]["drops"]["given_up"] == 1_992
        assert described["stats"]["gave_up_after_ns"] >= 50_000_000
        events = list(client.stream("events", flow="limit"))
        (event,) = [event for event in events if event["kind"] == "route-given-up"]
        assert event["node"] == "numbers"
        assert event["data"]["route"] == described["id"]

    def test_frames_that_find_no_credit_are_dropped_where_the_route_says_so(self, submit: Any, client: Any):
        nodes = [
            submit.node("numbers", "pipeline:numbers", params={"count": 2_000}),
            submit.node("keeps", "pipeline:Keeps"),
        ]
        submit(nodes, [submit.edge("numbers", "keeps", policy="drop_newest", buffer=8)], name="drop")
        seen = result_of(client, "drop", "keeps")["seen"]
        counts = routes_of(client, "drop")["keeps"]["stats"]
        assert counts["taken"] == seen == 8
        assert counts["drops"]["no_credit"] == counts["dropped"] == 1_992


class TestHeldFrames:
    @pytest.mark.settings(held_warning=0.2)
    def test_a_frame_that_its_consumer_keeps_is_told_of(self, submit: Any, client: Any, daemon: Any):
        nodes = [submit.node("endless", "pipeline:endless"), submit.node("keeps", "pipeline:Keeps")]
        submit(nodes, [submit.edge("endless", "keeps", buffer=8)], name="held", wait="running")
        with Client.connect(daemon.socket) as mine:
            events = mine.stream("events", flow="held", follow=True)
            event = next(event for event in events if event["kind"] == "frame-held")
            events.close()
        assert event["node"] == "keeps"
        assert (event["data"]["route"], event["data"]["seq"]) == ("endless-keeps", 0)
        assert event["data"]["age_ns"] >= 200_000_000
        held = routes_of(client, "held")["keeps"]["held"]
        assert (held["node"], held["count"], held["seq"]) == ("keeps", 8, 0)
        assert "keeps 8 frames, the oldest, 0, since" in daemon.ctl("describe", "held").stdout

    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        path = tmp_path / "chronetixd.toml"
        path.write_text("held_warning = 3600\n")
        return path

    @pytest.mark.settings(config="chronetixd.toml")
    def test_after_a_reload_flows_are_warned_of_as_it_says(self, config: Path, submit: Any, daemon: Any):
        config.write_text("held_warning = 0.2\n")
        with Client.connect(daemon.socket) as mine:
            events = mine.stream("events", follow=True)
            daemon.process.send_signal(signal.SIGHUP)
            reloaded = next(event for event in events if event["kind"] == "reloaded")
            assert reloaded["data"]["changed"] == ["held_warning"]
            nodes = [submit.node("endless", "pipeline:endless"), submit.node("keeps", "pipeline:Keeps")]
            submit(nodes, [submit.edge("endless", "keeps", buffer=8)], name="held", wait="running")
            assert next(event for event in events if event["kind"] == "frame-held")["flow"] == "held"
            events.close()

    def test_a_frame_that_is_kept_costs_one_credit_over_many_laps(self, submit: Any, client: Any):
        nodes = [
            submit.node("numbers", "pipeline:numbers", params={"count": 3_000}),
            submit.node("first", "pipeline:KeepsTheFirst"),
        ]
        submit(nodes, [submit.edge("numbers", "first", buffer=4)], name="one")
        assert result_of(client, "one", "first") == {"seen": 3_000, "first": 0}
        counts = routes_of(client, "one")["first"]["stats"]
        assert counts["committed"] == 3_000
        assert counts["skipped"] >= 300, "the ring has passed over the slot that was held, lap by lap"


class TestTaps:
    def test_a_tap_sees_what_flows_by_and_the_flow_does_not_notice(self, submit: Any, client: Any, daemon: Any):
        nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
        submit(nodes, [submit.edge("endless", "check")], name="tapped", wait="running")
        with Client.connect(daemon.socket) as mine, Tap(mine, "tapped", "endless:check") as tap:
            assert tap.about["route"] == "endless-check"
            seen = []
            for frame in tap:
                seen.append(int.from_bytes(bytes(frame)[:8], "little"))
                if len(seen) == 200:
                    break
            assert seen == sorted(set(seen))
            taps = routes_of(client, "tapped")["check"]["taps"]
            assert [each["pid"] for each in taps] == [os.getpid()]
            assert taps[0]["taken"] == 200
        assert client.call("stop", flow="tapped")["state"] == "stopped"
        assert result_of(client, "tapped", "check")["faults"] == []

    def test_a_tap_ends_with_the_stream_and_then_the_flow_has_none(self, submit: Any, client: Any, daemon: Any):
        nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
        submit(nodes, [submit.edge("endless", "check")], name="ends", wait="running")
        with Client.connect(daemon.socket) as mine, Tap(mine, "ends", "endless/check") as tap:
            frames = iter(tap)
            next(frames)
            assert client.call("stop", flow="ends")["state"] == "stopped"
            received = 1 + sum(1 for _ in frames)
            assert received + tap.lost > 1
        assert routes_of(client, "ends")["check"]["taps"] == []

    def test_a_listener_that_is_stopped_slows_nobody_and_its_losses_are_counted(
        self, submit: Any, client: Any, daemon: Any
    ):
        nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
        submit(nodes, [submit.edge("endless", "check")], name="stopped", wait="running")
        with listening(daemon, "stopped", "endless:check", "--buffer", "8", "-o", "json") as reader:
            os.kill(reader.pid, signal.SIGSTOP)
            _, status = os.waitpid(reader.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            before = routes_of(client, "stopped")["check"]
            goal = before["stats"]["taken"] + 20_000
            after = until(client, "stopped", "check", lambda route: route["stats"]["taken"] >= goal)
            (tap,) = after["taps"]
            assert after["stats"]["dropped"] == 0
            assert tap["drops"]["overwritten"] >= 20_000 - 8 - 1_000
            os.kill(reader.pid, signal.SIGCONT)
            client.call("stop", flow="stopped")
            shown, said = reader.communicate()
            assert reader.returncode == 0, said
            lost = int(said.decode().split(" frames were lost")[0].splitlines()[-1])
            seqs = [json.loads(line)["seq"] for line in shown.splitlines()]
            assert seqs[-1] + 1 == 1 + len(seqs) + lost, "the first one was read before"
        assert result_of(client, "stopped", "check")["faults"] == []

    def test_a_listener_that_is_stopped_does_not_hold_up_the_growth_of_the_arena(
        self, submit: Any, client: Any, daemon: Any, tmp_path: Path
    ):
        go = tmp_path / "go"
        nodes = [submit.node("grows", "pipeline:grows", params={"go": str(go)}), submit.node("check", "pipeline:Check")]
        submit(nodes, [submit.edge("grows", "check", buffer=16)], name="growth", wait="running")
        with listening(daemon, "growth", "grows:check") as reader:
            os.kill(reader.pid, signal.SIGSTOP)
            os.waitpid(reader.pid, os.WUNTRACED)
            go.touch()
            ended = until(client, "growth", "check", lambda route: route["stats"]["closed"])
            assert ended["stats"]["bytes"] > 60_000_000
            os.kill(reader.pid, signal.SIGCONT)
        assert result_of(client, "growth", "check")["faults"] == []

    def test_a_listener_that_is_killed_leaves_nothing_behind(self, submit: Any, client: Any, daemon: Any):
        nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
        submit(nodes, [submit.edge("endless", "check")], name="killed", wait="running")
        for _ in range(3):
            with listening(daemon, "killed", "endless:check"):
                pass
        until(client, "killed", "check", lambda route: route["taps"] == [])
        goal = routes_of(client, "killed")["check"]["stats"]["taken"] + 1_000
        until(client, "killed", "check", lambda route: route["stats"]["taken"] >= goal)

    @pytest.mark.parametrize(
        ("route", "says"),
        [("nothing", "has no data route nothing, but endless-check"), ("check:endless", "has no data route")],
    )
    def test_a_route_that_is_not_there_is_refused(self, submit: Any, client: Any, daemon: Any, route: str, says: str):
        nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
        submit(nodes, [submit.edge("endless", "check")], name="wrong", wait="running")
        with Client.connect(daemon.socket) as mine, pytest.raises(ChronetixError, match=says):
            Tap(mine, "wrong", route)

    def test_a_listener_that_does_what_it_can_to_its_line_keeps_nobody_waiting(
        self, submit: Any, client: Any, daemon: Any
    ):
        """It cannot ring, makes its end block, and takes nothing."""
        nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
        submit(nodes, [submit.edge("endless", "check")], name="wicked", wait="running")
        consumer = shm.Consumer("tap", credits=4)
        with Client.connect(daemon.socket) as mine:
            arguments = {"flow": "wicked", "route": "endless:check", "credits": 4}
            first = next(mine.stream("tap", descriptors=[consumer.fd], **arguments))
            ring, line, *segments = first.descriptors
            with socket.socket(fileno=line) as end:
                end.setblocking(True)
                with pytest.raises(BrokenPipeError):
                    end.send(b"x")
                goal = routes_of(client, "wicked")["check"]["stats"]["taken"] + 2_000
                until(client, "wicked", "check", lambda route: route["stats"]["taken"] >= goal)
                assert client.call("stop", flow="wicked", mode="drain", timeout=60)["state"] == "stopped"
            for fd in (ring, *segments):
                os.close(fd)
        del consumer

    def test_descriptors_that_are_not_what_they_should_be_are_refused(self, submit: Any, client: Any, daemon: Any):
        nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
        submit(nodes, [submit.edge("endless", "check")], name="hostile", wait="running")
        arguments = {"flow": "hostile", "route": "endless:check", "credits": 4}
        memory = os.memfd_create("nothing")
        with open(memory, "rb") as nothing, Client.connect(daemon.socket) as mine:
            for count, name in ((0, "bad-argument"), (1, "descriptor-refused")):
                with pytest.raises(ChronetixError) as refused:
                    next(mine.stream("tap", descriptors=[nothing.fileno()] * count, **arguments))
                assert refused.value.name == name
            with pytest.raises(ChronetixError) as refused:
                next(mine.stream("list", descriptors=[nothing.fileno()]))
            assert refused.value.name == "bad-argument"
        assert client.call("stop", flow="hostile")["state"] == "stopped"


class TestEcho:
    @pytest.mark.parametrize("content_type", ["application/json", "application/cbor"])
    def test_values_are_shown_decoded(self, submit: Any, client: Any, daemon: Any, content_type: str):
        nodes = [submit.node("words", "pipeline:words"), submit.node("keeps", "pipeline:forward")]
        submit(nodes, [submit.edge("words", "keeps", content_type=content_type)], name="words", wait="running")
        told = daemon.ctl("topic", "echo", "words", "words:keeps", "--count", "3", "-o", "json")
        assert told.returncode == 0, told.stderr
        lines = [json.loads(line) for line in told.stdout.splitlines()]
        assert [line["value"]["word"] for line in lines] == ["grün"] * 3
        shown = daemon.ctl("route", "tap", "words", "words:keeps", "--count", "1")
        assert '"word": "grün"' in shown.stdout

    def test_bytes_are_shown_as_hex_and_written_raw(self, submit: Any, client: Any, daemon: Any):
        nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
        submit(nodes, [submit.edge("endless", "check")], name="bytes", wait="running")
        shown = daemon.ctl("topic", "echo", "bytes", "endless:check", "--count", "2")
        assert "000000  " in shown.stdout
        command = [sys.executable, "-m", "chronetixctl", "topic", "echo", "bytes", "endless:check", "--raw"]
        raw = subprocess.run([*command, "--count", "1"], env=daemon.environment, capture_output=True, check=True)
        assert len(raw.stdout) == 8, "the payload and nothing else"
        listed = json.loads(daemon.ctl("route", "ls", "-o", "json").stdout)["routes"]
        assert [(each["id"], each["policy"], each["taps"]) for each in listed] == [("endless-check", "block", [])]
        assert "endless-check" in daemon.ctl("route", "ls").stdout

    def test_ctrl_c_ends_it(self, submit: Any, client: Any, daemon: Any):
        nodes = [submit.node("endless", "pipeline:endless"), submit.node("check", "pipeline:Check")]
        submit(nodes, [submit.edge("endless", "check")], name="interrupt", wait="running")
        with listening(daemon, "interrupt", "endless:check", "-o", "json") as reader:
            reader.send_signal(signal.SIGINT)
            reader.communicate()
            assert reader.returncode == 130
        until(client, "interrupt", "check", lambda route: route["taps"] == [])

    def test_it_goes_on_with_the_successor_of_a_producer_that_dies(self, submit: Any, client: Any, daemon: Any):
        restart = {"policy": "transient", "backoff_ms": 1}
        nodes = [
            submit.node("endless", "pipeline:endless"),
            submit.node("forward", "pipeline:forward", restart=restart),
        ]
        nodes.append(submit.node("check", "pipeline:Check"))
        edges = [submit.edge("endless", "forward"), submit.edge("forward", "check")]
        submit(nodes, edges, name="dying", wait="running")
        with listening(daemon, "dying", "forward:check", "-o", "json") as reader:
            described = client.call("describe", flow="dying")["nodes"]
            os.kill(next(node["pid"] for node in described if node["node"] == "forward"), signal.SIGKILL)
            said = b""
            while b"going on" not in said:
                for pipe in select.select([reader.stdout, reader.stderr], [], [])[0]:
                    data = pipe.read(65_536)
                    said += data if pipe is reader.stderr else b""
            assert client.call("stop", flow="dying")["state"] == "stopped"
            _, said = reader.communicate()
            assert reader.returncode == 0, said
