"""What a client may ask a tap for, and that nothing of it is kept when it is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from chronetix import shm
from chronetix.protocol.contract import Route, parse_flow
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.messages import Extend, Retract, WireMessage
from chronetixd.dataplane.taps import MAX_CREDITS, MAX_TAPS, Taps, find_route

ROUTE = Route(
    id="r",
    source="a",
    target="b",
    plane="data",
    topic="t",
    port="",
    content_type="text/plain",
    schema_ver="v1",
    buffer=64,
    watermark=48,
    policy="block",
    limit_ms=None,
    raw={},
)


class Flow:
    """A flow's taps, what was sent to its producer, and CREDITs that clients bring."""

    def __init__(self) -> None:
        self.sent: list[WireMessage] = []
        self.runs = True
        self.taps = Taps(self._send, lambda _: {} if self.runs else None)
        self.consumer = shm.Consumer("tap", credits=4)

    def _send(self, node: str, message: WireMessage, descriptors: Sequence[int]) -> None:
        assert (node, list(descriptors)) == ("a", [])
        self.sent.append(message)

    def open(self, credits: int = 4, fds: int = 1) -> Any:
        """A tap; what is refused stays its client's."""
        descriptors = [os.dup(self.consumer.fd) for _ in range(fds)]
        try:
            return self.taps.open(ROUTE, credits, 1, descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)


@pytest.fixture
def flow() -> Iterator[Flow]:
    made = Flow()
    yield made
    for tap in made.taps:
        made.taps.close(tap)
    del made.consumer  # pytest still holds the flow when it looks for leaks


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"credits": 0}, "must be from 1 to 1024"),
        ({"credits": MAX_CREDITS + 1}, "must be from 1 to 1024"),
        ({"fds": 0}, "a CREDIT must come along, not 0 descriptors"),
        ({"fds": 2}, "a CREDIT must come along, not 2 descriptors"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_and_the_producer_hears_nothing(
    flow: Flow, asked: dict[str, int], why: str
) -> None:
    with pytest.raises(ChronetixError, match=why):
        flow.open(**asked)
    assert flow.sent == []
    assert list(flow.taps) == []


@pytest.mark.parametrize(("credits", "watermark", "low"), [(1, 1, 0), (4, 3, 2), (MAX_CREDITS, 768, 512)])
def test_the_producer_is_asked_for_a_ring_of_that_size(flow: Flow, credits: int, watermark: int, low: int) -> None:
    flow.open(credits)
    (sent,) = flow.sent
    assert isinstance(sent, Extend)
    (port,) = sent.outputs
    assert (port.route, port.tap_of, port.policy) == ("tap/1", "r", "latest")
    assert (port.credits, port.watermark, port.credit_low) == (credits, watermark, low)


def test_as_many_as_the_limit_listen_at_once_and_who_leaves_makes_room(flow: Flow) -> None:
    taps = [flow.open() for _ in range(MAX_TAPS)]
    with pytest.raises(ChronetixError, match="another tap on this flow"):
        flow.open()
    flow.taps.close(taps[0])
    assert flow.sent[-1] == Retract(route="tap/1")
    assert flow.open().id == f"tap/{MAX_TAPS + 1}"


def test_a_route_whose_source_does_not_run_has_no_taps(flow: Flow) -> None:
    flow.runs = False
    with pytest.raises(ChronetixError, match="node 'a' does not run"):
        flow.open()


@pytest.mark.parametrize("name", ["news", "a:b", "/clock"])
def test_a_topic_of_the_event_bus_is_told_from_a_name_that_nothing_has(name: str) -> None:
    manifests = [
        {"node_id": node, "plugin_id": node, "version": "1", "artifact": {"kind": "Python", "uri": "python://m:f"}}
        for node in "ab"
    ]
    routes = [{"from": "a", "to": "b", "plane": "control", "topic": "news"}]
    flow = parse_flow({"manifests": manifests, "routes": routes, "schemas": []}).flow
    assert flow is not None
    with pytest.raises(ChronetixError, match="is a topic of the event bus, and only data routes can be listened to"):
        find_route("f", flow.routes, name, {"/clock"})
    with pytest.raises(ChronetixError, match="has no data route other, but none"):
        find_route("f", flow.routes, "other", {"/clock"})
