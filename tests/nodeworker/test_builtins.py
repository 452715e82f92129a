"""The plugins that come along."""

from __future__ import annotations

import ipaddress

import pytest

from chronetix.nodeworker.api.message import Message
from chronetix.nodeworker.builtins.eventbus import EventBusSink, EventBusSource
from chronetix.nodeworker.builtins.netinfo import KEYS, NetInfo, default_route, describe
from chronetix.nodeworker.builtins.timer import TimerSource
from chronetix.protocol.errors import ChronetixError
from chronetix.testing import run

OCTETS = "application/octet-stream"


class TestTheTimer:
    def test_publishes_each_tick_on_every_control_route(self):
        outcome = run(TimerSource, ticks=2, publications=["a", "b"], sends=False)
        assert [(p.topic, p.value["timer"], p.value["sequence"]) for p in outcome.published] == [
            ("a", "tick", 1),
            ("b", "tick", 1),
            ("a", "tick", 2),
            ("b", "tick", 2),
        ]

    def test_sends_ticks_to_data_routes_too(self):
        outcome = run(TimerSource, ticks=1, publications=["a"])
        assert [value["sequence"] for value in outcome.sent] == [1]
        assert [p.topic for p in outcome.published] == ["a"]


class TestNetInfo:
    def test_publishes_what_it_knows_when_it_starts(self):
        (message,) = run(NetInfo, publications=["net"], sends=False).published
        assert message.topic == "net"
        assert set(message.value) == set(KEYS)
        if message.value["ip"] is not None:
            ipaddress.ip_address(message.value["ip"])

    def test_answers_requests(self):
        outcome = run(NetInfo, publications=["net"], requests=[("ask", None)], params={"ip": "10.0.0.7"}, sends=False)
        assert outcome.replies[0]["ip"] == "10.0.0.7"

    def test_finds_the_default_route_with_the_lowest_metric(self, tmp_path):
        table = tmp_path / "route"
        table.write_text(
            "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
            "eth1 00000000 0101A8C0 0003 0 0 200 00000000 0 0 0\n"
            "eth0 00000000 FE01A8C0 0003 0 0 100 00000000 0 0 0\n"
            "eth0 0001A8C0 00000000 0001 0 0 100 00FFFFFF 0 0 0\n"
        )
        assert default_route(table) == ("eth0", "192.168.1.254")

    def test_knows_what_a_machine_without_network_has(self, tmp_path):
        (tmp_path / "net").mkdir()
        (tmp_path / "net/route").write_text("Iface\n")
        assert describe({}, tmp_path) == {
            "ip": "127.0.0.1",
            "netmask": "255.0.0.0",
            "gateway": None,
            "ports": None,
            "media_location": None,
        }


class TestTheBridges:
    def test_messages_become_frames(self):
        assert run(EventBusSource, messages=[("t", {"a": 1}), ("u", [2])]).sent == [{"a": 1}, [2]]

    def test_messages_become_frames_of_another_type(self):
        assert run(EventBusSource, messages=[("t", {"a": 1})], content_type="application/cbor").sent == [{"a": 1}]

    @pytest.mark.parametrize("output", ["application/json", "application/cbor"])
    @pytest.mark.parametrize("kind", ["application/json", "application/cbor", "application/x-npy"])
    def test_a_message_that_is_garbage_is_told_and_the_next_one_sent(self, kind, output):
        class Source(EventBusSource):
            def on_tick(self, tick, ctx):
                self.on_message(Message({"topic": "t", "src": "n", "content_type": kind}, b"\xff{"), ctx)

        outcome = run(Source, ticks=2, messages=[("t", 1)], content_type=output)
        assert outcome.sent == [1]
        assert [(log.level, log.fields["topic"], log.fields["src"]) for log in outcome.logs] == [
            ("warning", "t", "n")
        ] * 2
        assert kind in outcome.logs[0].fields["reason"]

    def test_an_octet_stream_gets_every_message_as_it_is(self):
        class Source(EventBusSource):
            def on_tick(self, tick, ctx):
                self.on_message(Message({"topic": "t"}, b"\xff{"), ctx)

        assert run(Source, ticks=1, content_type="application/octet-stream").sent == [b"\xff{"]

    def test_frames_become_messages(self):
        outcome = run(EventBusSink, [1, 2], {"topics": ["extra"]}, publications=["t"], sends=False)
        assert [(p.topic, p.value) for p in outcome.published] == [("t", 1), ("extra", 1), ("t", 2), ("extra", 2)]

    @pytest.mark.parametrize("topics", ["out", [1], [""], {"a": 1}, 3])
    @pytest.mark.parametrize("bridge", [EventBusSource, EventBusSink])
    def test_refuse_topics_that_are_none(self, bridge, topics):
        with pytest.raises(ValueError, match=r"params\.topics of node 'plugin' is a list of topics, not"):
            run(bridge, [], {"topics": topics}, publications=["t"])

    @pytest.mark.parametrize(
        ("kind", "garbage"),
        [("application/json", b"\xff{"), ("application/cbor", b"\xff"), ("application/x-npy", b"\x93NUMPY")],
    )
    def test_a_frame_that_is_garbage_is_a_failure_that_names_it_and_is_set_aside_where_frames_are_retried(
        self, kind, garbage
    ):
        class Garbled(EventBusSink):
            """Gets a frame as a producer in another language may send it."""

            def __init__(self, ctx):
                super().__init__(ctx)
                self._types = dict.fromkeys(self._types, kind)

        def publish(**qos):
            return run(Garbled, [b"x", garbage], input_type=OCTETS, publications=["t"], sends=False, qos=qos)

        with pytest.raises(
            ChronetixError, match=f"a frame of route feed is not {kind}: frame 0 of feed, .*undecodable"
        ):
            publish()
        outcome = publish(retry=1, dead_letter="dead")
        assert {each.topic for each in outcome.published} == {"dead"}
        assert [each.envelope["headers"]["error"] for each in outcome.published] == ["ProtocolError"] * 2

    def test_a_frame_that_no_message_can_carry_is_a_failure_that_is_set_aside_too(self):
        outcome = run(
            EventBusSink, [bytes(17 << 20), b"x"], input_type=OCTETS, publications=["t"], sends=False, qos={"retry": 1}
        )
        assert [(each.topic, each.value) for each in outcome.published] == [("t", b"x")]
        assert [each.fields["error"].partition(":")[0] for each in outcome.logs] == ["LocalError"]

    def test_say_what_their_node_lacks(self):
        with pytest.raises(ValueError, match="give it a data route"):
            run(EventBusSource, messages=[("t", 1)], sends=False)
        with pytest.raises(ValueError, match="give it a control route"):
            run(EventBusSink, [1], sends=False)
