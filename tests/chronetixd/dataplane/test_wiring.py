"""What the daemon keeps and passes on of the workers' shared memory, with real memory of one process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from chronetix import shm
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.messages import (
    Configure,
    Detach,
    Link,
    Offer,
    Port,
    Segment,
    SegmentDropped,
    SegmentMapped,
    Start,
)
from chronetixd.core.counters import (
    DROPS_OF_CONSUMER,
    DROPS_OF_PRODUCER,
    GREATEST,
    OF_CONSUMER,
    OF_PRODUCER,
    Counters,
)
from chronetixd.core.wiring.route_table import RouteTable
from chronetixd.core.wiring.stages import MAX_SEGMENTS, Handle, Stage
from chronetixd.core.wiring.states import ConsumerEnd
from chronetixd.dataplane import wiring as module
from chronetixd.dataplane.wiring import DataRoute, FlowWiring, ToNode, Views, most_of_flow
from chronetixd.flows.run import FlowRun

ROUTES = (DataRoute("r1", "source", "left"), DataRoute("r2", "source", "right"))
NODES = ("source", "left", "right")


class Node:
    """What a worker makes: arena, its ends of the routes, what it sleeps on."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.bell = shm.Doorbell()
        self.arena = shm.Arena(1 << 22, first=1 << 16, on_grow=lambda *_: None)
        self.producers = {r.id: shm.Producer(self.arena, r.id) for r in ROUTES if r.source == node}
        self.consumers = {r.id: shm.Consumer(r.id) for r in ROUTES if r.target == node}

    def offer(self) -> tuple[Offer, list[int]]:
        """The message, and duplicates of its descriptors as they would have arrived."""
        segments = self.arena.segments if self.producers else ()
        message = Offer(
            rings=list(self.producers), credits=list(self.consumers), segments=[index for index, _, _ in segments]
        )
        fds = [*(p.fd for p in self.producers.values()), *(c.fd for c in self.consumers.values())]
        return message, [os.dup(fd) for fd in (*fds, *(fd for _, fd, _ in segments))]

    def segment(self) -> list[int]:
        """A descriptor of a segment, as if it were a new one."""
        return [os.dup(self.arena.segments[0][1])]

    def close(self) -> None:
        for end in (*self.producers.values(), *self.consumers.values()):
            end.close()
        self.arena.close()
        self.bell.close()
        del self.producers, self.consumers, self.arena  # rings stay mapped as long as somebody has them


@pytest.fixture
def nodes() -> Iterator[dict[str, Node]]:
    made = {name: Node(name) for name in NODES}
    yield made
    for node in made.values():
        node.close()


def configure(node: str) -> Configure:
    return Configure(
        flow="f",
        node=node,
        plugin_id=node,
        version="1",
        kind="Python",
        uri="python://m:o",
        inputs=[Port(route=route.id, peer=route.source) for route in ROUTES if route.target == node],
        outputs=[Port(route=route.id, peer=route.target) for route in ROUTES if route.source == node],
    )


@pytest.fixture
def wiring() -> Iterator[FlowWiring]:
    made = FlowWiring(NODES, ROUTES)
    for node in NODES:
        made.configure(node, configure(node))
    yield made
    made.close()


@pytest.fixture
def linked(wiring: FlowWiring, nodes: dict[str, Node]) -> dict[str, ToNode]:
    """Everyone has offered: the links by node."""
    found: dict[str, ToNode] = {}
    for name, node in nodes.items():
        wiring.offer(name, *node.offer())
        found |= {link.node: link for link in wiring.due(name)}
    return found


@pytest.fixture
def offered(wiring: FlowWiring, linked: dict[str, ToNode]) -> FlowWiring:
    assert set(linked) == set(NODES)
    return wiring


def close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def sent(messages: list[ToNode]) -> list[tuple[str, Any]]:
    return [(message.node, message.message) for message in messages]


def test_a_link_names_the_other_ends_with_a_descriptor_for_each_thing(linked: dict[str, ToNode]) -> None:
    node, link, descriptors = linked["source"]
    assert (node, link) == ("source", Link(outputs=["r1", "r2"]))
    assert isinstance(link, Link)
    assert len(descriptors) == link.descriptors == 4
    _, link, descriptors = linked["left"]
    assert isinstance(link, Link)
    assert link.inputs[0].segments == [0]
    assert len(descriptors) == link.descriptors == 3


def test_a_node_is_linked_once_when_it_and_all_its_peers_have_offered(
    wiring: FlowWiring, nodes: dict[str, Node]
) -> None:
    wiring.offer("left", *nodes["left"].offer())
    assert wiring.due("left") == []
    wiring.offer("source", *nodes["source"].offer())
    assert [link.node for link in wiring.due("source")] == ["left"]
    wiring.offer("right", *nodes["right"].offer())
    assert sorted(link.node for link in wiring.due("right")) == ["right", "source"]
    assert wiring.due("left") == []


def test_linked_ends_carry_frames_and_the_view_counts_them(
    wiring: FlowWiring, linked: dict[str, ToNode], nodes: dict[str, Node]
) -> None:
    source, left = nodes["source"], nodes["left"]
    ring, line, segment = got = wiring.sendable(linked["left"].descriptors)
    left.consumers["r1"].add_segment(0, segment)
    left.consumers["r1"].link(ring, line, left.bell)
    close_all(got)
    credit, line, *_ = got = wiring.sendable(linked["source"].descriptors)
    source.producers["r1"].link(credit, line, source.bell)
    close_all(got)
    assert shm.Inlet([left.consumers["r1"]], left.bell).arm()
    left.bell.clear()
    shm.Outlet([source.producers["r1"]], source.bell).send(b"hello", 0)
    assert left.bell.clear(), "it is rung"
    frame = shm.Inlet([left.consumers["r1"]], left.bell).take(0)
    assert frame is not None
    assert bytes(memoryview(frame)) == b"hello"
    frame.release()
    snapshot = wiring.snapshot(ROUTES[0])
    assert snapshot is not None
    assert (snapshot["committed"], snapshot["returned"]) == (1, 1)
    wiring.close()
    assert wiring.snapshot(ROUTES[0]) == snapshot


def test_routes_that_are_not_the_nodes_own_are_refused(wiring: FlowWiring, nodes: dict[str, Node]) -> None:
    message, descriptors = nodes["left"].offer()
    with pytest.raises(ChronetixError, match="routes of node 'right'"):
        wiring.offer("right", message, descriptors)
    close_all(descriptors)


def test_a_descriptor_that_is_no_ring_is_refused_and_nothing_is_kept(
    wiring: FlowWiring, nodes: dict[str, Node]
) -> None:
    message, descriptors = nodes["source"].offer()
    descriptors[0], descriptors[2] = descriptors[2], descriptors[0]
    with pytest.raises(ChronetixError) as refused:
        wiring.offer("source", message, descriptors)
    assert refused.value.name == "descriptor-refused"
    assert "'r1'" in str(refused.value)
    close_all(descriptors)


def test_an_unsealed_file_is_refused(wiring: FlowWiring, nodes: dict[str, Node]) -> None:
    message, descriptors = nodes["left"].offer()
    os.close(descriptors[0])
    descriptors[0] = os.memfd_create("unsealed")
    os.ftruncate(descriptors[0], 1 << 16)
    with pytest.raises(ChronetixError, match="'r1'"):
        wiring.offer("left", message, descriptors)
    close_all(descriptors)


def test_growth_is_confirmed_when_every_consumer_has_mapped_it(offered: FlowWiring, nodes: dict[str, Node]) -> None:
    forwarded = offered.grow("source", Segment(index=1), nodes["source"].segment())
    assert sent(forwarded) == [("left", Segment(index=1, route="r1")), ("right", Segment(index=1, route="r2"))]
    assert offered.mapped("left", SegmentMapped(index=1, route="r1")) == []
    confirmed = offered.mapped("right", SegmentMapped(index=1, route="r2"))
    assert sent(confirmed) == [("source", SegmentMapped(index=1))]


def test_a_consumer_that_is_not_linked_yet_gets_the_segment_with_its_link(
    wiring: FlowWiring, nodes: dict[str, Node]
) -> None:
    for name in ("source", "left"):
        wiring.offer(name, *nodes[name].offer())
    (link,) = wiring.due("left")
    assert link.node == "left"
    forwarded = wiring.grow("source", Segment(index=1), nodes["source"].segment())
    assert [message.node for message in forwarded] == ["left"]
    wiring.offer("right", *nodes["right"].offer())
    told = {each.node: each.message for each in wiring.due("right")}["right"]
    assert isinstance(told, Link)
    assert told.inputs[0].segments == [0, 1]
    assert wiring.ready("left") == []
    assert wiring.mapped("left", SegmentMapped(index=1, route="r1")) == []
    assert sent(wiring.ready("right")) == [("source", SegmentMapped(index=1))]


def test_a_consumer_that_is_gone_is_detached_and_holds_no_growth_up(
    offered: FlowWiring, nodes: dict[str, Node]
) -> None:
    offered.grow("source", Segment(index=1), nodes["source"].segment())
    offered.mapped("left", SegmentMapped(index=1, route="r1"))
    assert sent(offered.gone("right")) == [("source", Detach(route="r2")), ("source", SegmentMapped(index=1))]
    assert sent(offered.grow("source", Segment(index=2), nodes["source"].segment())) == [
        ("left", Segment(index=2, route="r1"))
    ]


def test_a_segment_is_offered_once(offered: FlowWiring, nodes: dict[str, Node]) -> None:
    descriptors = nodes["source"].segment()
    with pytest.raises(ChronetixError, match="already"):
        offered.grow("source", Segment(index=0), descriptors)
    close_all(descriptors)


def test_only_what_was_sent_can_be_mapped(offered: FlowWiring) -> None:
    with pytest.raises(ChronetixError, match="not sent"):
        offered.mapped("left", SegmentMapped(index=9, route="r1"))


def grown(offered: FlowWiring, nodes: dict[str, Node], index: int = 1) -> None:
    offered.grow("source", Segment(index=index), nodes["source"].segment())
    offered.mapped("left", SegmentMapped(index=index, route="r1"))
    offered.mapped("right", SegmentMapped(index=index, route="r2"))


def test_a_segment_that_was_given_back_is_forgotten_when_nobody_maps_it(
    offered: FlowWiring, nodes: dict[str, Node]
) -> None:
    grown(offered, nodes)
    forwarded = offered.drop("source", SegmentDropped(index=1))
    assert sent(forwarded) == [
        ("left", SegmentDropped(index=1, route="r1")),
        ("right", SegmentDropped(index=1, route="r2")),
    ]
    assert offered.dropped("left", SegmentDropped(index=1, route="r1")) == []
    free = offered.dropped("right", SegmentDropped(index=1, route="r2"))
    assert sent(free) == [("source", SegmentDropped(index=1))]
    grown(offered, nodes)


def test_a_consumer_that_is_gone_or_dies_maps_nothing(offered: FlowWiring, nodes: dict[str, Node]) -> None:
    grown(offered, nodes)
    offered.drop("source", SegmentDropped(index=1))
    offered.dropped("left", SegmentDropped(index=1, route="r1"))
    assert ("source", SegmentDropped(index=1)) in sent(offered.gone("right"))
    assert sent(offered.drop("source", SegmentDropped(index=0))) == [("left", SegmentDropped(index=0, route="r1"))]
    assert ("source", SegmentDropped(index=0)) in sent(offered.succeeded("left"))


def test_a_number_that_somebody_else_may_remember_is_never_free(offered: FlowWiring, nodes: dict[str, Node]) -> None:
    assert len(offered.drop("source", SegmentDropped(index=0), reuse=False)) == 2
    for node, route in (("left", "r1"), ("right", "r2")):
        assert offered.dropped(node, SegmentDropped(index=0, route=route)) == []


def test_only_a_segment_in_use_can_be_given_back_and_only_once(offered: FlowWiring, nodes: dict[str, Node]) -> None:
    offered.grow("source", Segment(index=1), nodes["source"].segment())
    for index in (1, 7):
        with pytest.raises(ChronetixError, match="not in use"):
            offered.drop("source", SegmentDropped(index=index))
    offered.drop("source", SegmentDropped(index=0))
    with pytest.raises(ChronetixError, match="not in use"):
        offered.drop("source", SegmentDropped(index=0))
    for node, route in (("left", "r2"), ("right", "r1"), ("left", "r9")):
        with pytest.raises(ChronetixError, match="no input of node"):
            offered.dropped(node, SegmentDropped(index=0, route=route))
    assert offered.dropped("left", SegmentDropped(index=9, route="r1")) == []


def test_a_route_that_there_is_no_memory_to_look_at_has_no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(ring: int, credit: int) -> Any:
        raise MemoryError("by the test")

    monkeypatch.setattr("chronetixd.dataplane.wiring.shm.RouteView", refused)
    stage = Stage(DataRoute("r", "a", "b"), ring=Handle(0), credit=Handle(0), consumer_end=ConsumerEnd.LINKED)
    assert stage.snapshot(Views(shm.remains)) is None


class Figures:
    """Reads the same counters from every pair of memories."""

    def __init__(self, **figures: int) -> None:
        self.figures = (
            dict.fromkeys((*OF_PRODUCER, *OF_CONSUMER, *GREATEST, "unseen", "next", "outstanding"), 0) | figures
        )

    def snapshot(self, ring: Any, credit: Any) -> dict[str, Any]:
        unread = self.figures.get("unread", 0)
        drops = dict.fromkeys((*DROPS_OF_PRODUCER, *DROPS_OF_CONSUMER), 0) | {"unread": unread}
        return {**self.figures, "dropped": unread, "drops": drops}


@pytest.mark.parametrize("before", [0, 7], ids=["the producer has ended", "the producer was linked again"])
def test_what_came_back_before_a_consumer_died_is_counted(before: int) -> None:
    route = DataRoute("r", "a", "b")
    table = RouteTable((route,), {}, Figures(committed=10, returned=7, returned_before=0, outstanding=3))
    stage = Stage(route, ring=Handle(0), credit=Handle(1), consumer_end=ConsumerEnd.LINKED)
    table.chains["r"], table.counters["r"] = [stage], Counters()
    table.consumer_died(stage, ran=True)
    stage.credit, stage.consumer_end = Handle(2), ConsumerEnd.LINKED
    after = Figures(committed=10, returned=before + 3, returned_before=before, outstanding=7 - before)
    figures = table.counters["r"].total([stage.snapshot(after)])
    assert figures is not None
    assert (figures["committed"], figures["returned"], figures["outstanding"]) == (10, 10, 0)


@pytest.mark.parametrize("before", [0, 7], ids=["the producer has ended", "the producer was linked again"])
@pytest.mark.parametrize("left", [0, 2])
def test_only_what_a_successor_leaves_is_unread(left: int, before: int) -> None:
    """What came back before its predecessor died is not."""
    stage = Stage(DataRoute("r", "a", "b"), ring=Handle(0), credit=Handle(1), consumer_end=ConsumerEnd.LINKED)
    stage.returned = 7
    seen = Figures(committed=10 + left, returned=before + 3, returned_before=before, unread=7 - before + left)
    figures = stage.snapshot(seen)
    assert figures is not None
    assert (figures["drops"]["unread"], figures["dropped"]) == (left, left)


def test_a_node_that_cannot_be_told_of_its_memory_is_killed_and_the_others_are_told() -> None:
    events: list[Any] = []
    workers = {name: Told() for name in "ab"}
    run = SimpleNamespace(workers=workers, dispatch=events.append, machine=None, wiring=FlowWiring((), ()))
    with open(os.devnull, "rb") as there:
        none = 1 << 20
        before = len(os.listdir("/proc/self/fd"))
        messages = [("a", Start(), [there.fileno(), none]), ("b", Start(), [there.fileno()])]
        FlowRun.send_wiring(run, messages)  # type: ignore[arg-type]
        assert len(os.listdir("/proc/self/fd")) == before
    (failed,) = events
    assert (failed.node, failed.event.phase) == ("a", "wiring")
    assert "Bad file descriptor" in failed.event.message
    assert (workers["a"].killed, workers["a"].messages) == (True, [])
    assert (workers["b"].killed, workers["b"].messages) == (False, [Start()])


class Told:
    """A worker that hears."""

    def __init__(self) -> None:
        self.killed = False
        self.messages: list[Any] = []

    def signal(self, *, kill: bool) -> None:
        self.killed = kill

    def send(self, message: Any, descriptors: list[int], *, give: bool) -> None:
        self.messages.append(message)
        for fd in descriptors:
            os.close(fd)


class TestShares:
    """What one node, and one flow, may have the daemon hold."""

    def test_an_arena_of_too_many_segments_is_refused_and_no_other(
        self, offered: FlowWiring, nodes: dict[str, Node]
    ) -> None:
        grown(offered, nodes)
        for index in range(2, MAX_SEGMENTS):
            offered.grow("source", Segment(index=index), nodes["source"].segment())
        descriptors = nodes["source"].segment()
        with pytest.raises(ChronetixError, match=f"another segment of node 'source' .*{MAX_SEGMENTS}") as refused:
            offered.grow("source", Segment(index=MAX_SEGMENTS), descriptors)
        assert refused.value.name == "quota-exceeded"
        close_all(descriptors)
        offered.drop("source", SegmentDropped(index=1))
        offered.grow("source", Segment(index=MAX_SEGMENTS), nodes["source"].segment())

    def test_a_flow_has_its_share(
        self, offered: FlowWiring, nodes: dict[str, Node], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        most = offered.machine.segments.held + 1
        monkeypatch.setattr(module, "most_of_flow", lambda: most)
        offered.grow("source", Segment(index=1), nodes["source"].segment())
        descriptors = nodes["source"].segment()
        with pytest.raises(ChronetixError, match="and of its flow would pass the limit"):
            offered.grow("source", Segment(index=2), descriptors)
        close_all(descriptors)

    def test_the_share_is_one_eighth_of_what_may_be_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (8000, 8000))
        assert most_of_flow() == 1000
        monkeypatch.setattr(resource, "getrlimit", lambda _: (128, 128))
        assert most_of_flow() == MAX_SEGMENTS

    def test_an_offer_of_too_many_keeps_nothing(self, wiring: FlowWiring, nodes: dict[str, Node]) -> None:
        message, descriptors = nodes["source"].offer()
        more = [*message.segments, *range(100, 100 + MAX_SEGMENTS)]
        with pytest.raises(ChronetixError, match="another segment of node 'source'"):
            wiring.offer("source", msgspec.structs.replace(message, segments=more), descriptors)
        close_all(descriptors)
        wiring.offer("source", *nodes["source"].offer())


def test_of_a_consumer_that_nobody_can_look_at_nothing_is_held(wiring: FlowWiring) -> None:
    """Nobody has offered memory yet, or its header is spoilt."""
    for node in NODES:
        assert wiring.held_by(node) == []
    for route in ROUTES:
        assert (wiring.oldest_held(route), wiring.snapshot(route), wiring.has(route)) == (None, None, True)
