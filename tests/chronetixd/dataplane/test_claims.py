"""What a worker claims of a route is believed only as far as the memory of both ends bears it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from chronetix.protocol.messages import Port
from chronetix.shm import layout
from chronetixctl.conformance.forge import CLOSED, OLDEST, RETURNED, Forge, ForgedMemory
from chronetixd.core.wiring.stages import DataRoute, Handle, Memory, Stage
from chronetixd.core.wiring.states import ConsumerEnd, ProducerEnd
from chronetixd.dataplane.claims import Accused, broken_rule, misfit, unfinished

SEGMENTS = {0: 1 << 16}
Write = Callable[[ForgedMemory, ForgedMemory], None]


@pytest.fixture
def forge() -> Iterator[Forge]:
    made = Forge()
    yield made
    made.close()


def stage(ring: ForgedMemory, credit: ForgedMemory, policy: str = "block") -> Stage:
    """A stage that is linked at both ends."""
    made = Stage(DataRoute("r", "source", "sink", policy), ring=Handle(ring.fd), credit=Handle(credit.fd))
    made.producer, made.consumer = Memory(), Memory()
    made.producer_end, made.consumer_end = ProducerEnd.LINKED, ConsumerEnd.LINKED
    return made


def in_order(ring: ForgedMemory, credit: ForgedMemory) -> None:
    """Three frames were sent, the second one after a skip, two have come back, and the stream has ended."""
    for position in (0, 2, 3):
        ring.describe(position, length=100, offset=64 * position)
    ring.skip(1)
    ring.put(CLOSED, 5)
    credit.give_back(0)
    credit.give_back(2)
    credit.put(RETURNED, 2)


def put(of: str, offset: int, value: int) -> Write:
    return lambda ring, credit: (ring if of == "ring" else credit).put(offset, value)


HUGE = 40 | 4 << 32
"""2^40 slots, for 4 credits."""

LIES: dict[str, tuple[Accused, Write, str]] = {
    "a stamp of another slot": ("producer", lambda r, c: r.describe(4, stamp=6), "stamp of slot 4 is 6"),
    "a stamp that is too high": ("producer", lambda r, c: r.describe(4, stamp=(1 << 62) + 5), "stamp of slot 4"),
    "a skip of another slot": ("producer", lambda r, c: r.skip(4, stamp=6), "skip of slot 4 is 6"),
    "an end before the last frame": ("producer", put("ring", CLOSED, 2), "at position 1, and its last position is 4"),
    "an end behind the last frame": ("producer", put("ring", CLOSED, 78), "at position 77"),
    "an oldest frame out of range": ("producer", put("ring", OLDEST, (1 << 62) + 1), "its oldest frame"),
    "more slots than fit": ("producer", put("ring", layout.SLOTS_LOG2, HUGE), "its header says 2^40 slots"),
    "more stamps than fit": ("consumer", put("credit", layout.SLOTS_LOG2, HUGE), "its header says 2^40 slots"),
    "unknown flags": ("producer", lambda r, c: r.describe(3, length=8, flags=0x100), "flags 0x100"),
    "notes that do not fit": ("producer", lambda r, c: r.describe(3, length=8, flags=2), "it has notes and 8 bytes"),
    "an odd offset": ("producer", lambda r, c: r.describe(3, length=8, offset=8), "no multiple of 64"),
    "a frame beyond its segment": ("producer", lambda r, c: r.describe(3, length=8, offset=1 << 16), "not in segment"),
    "a length that wraps round": ("producer", lambda r, c: r.describe(3, length=(1 << 64) - 8), "not in segment"),
    "a segment that is not there": ("producer", lambda r, c: r.describe(3, length=8, segment=9), "no segment 9"),
    "more returned than sent": ("consumer", put("credit", RETURNED, 1000), "returned 1000 frames"),
    "a return of another slot": ("consumer", lambda r, c: c.give_back(4, stamp=6), "stamp of slot 4 is 6"),
    "a return of what was not sent": ("consumer", lambda r, c: c.give_back(4), "returned frame 4 before it was sent"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_charged_to_the_end_that_wrote_it_and_not_to_the_other(lie: str, forge: Forge) -> None:
    accused, write, words = LIES[lie]
    ring, credit = forge.ring(), forge.credit()
    in_order(ring, credit)
    write(ring, credit)
    other: Accused = "consumer" if accused == "producer" else "producer"
    assert words in broken_rule(stage(ring, credit), accused, SEGMENTS)
    assert broken_rule(stage(ring, credit), other, SEGMENTS) == ""


def test_ends_that_keep_the_rules_are_charged_with_nothing(forge: Forge) -> None:
    ring, credit = forge.ring(), forge.credit()
    assert broken_rule(stage(ring, credit), "producer", SEGMENTS) == ""
    in_order(ring, credit)
    assert broken_rule(stage(ring, credit), "producer", SEGMENTS) == ""
    assert broken_rule(stage(ring, credit), "consumer", SEGMENTS) == ""


def test_a_frame_that_is_back_may_be_half_overwritten(forge: Forge) -> None:
    ring, credit = forge.ring(), forge.credit()
    in_order(ring, credit)
    ring.describe(2, length=8, segment=9)
    assert broken_rule(stage(ring, credit), "producer", SEGMENTS) == ""


def test_with_policy_latest_what_was_revoked_may_be_half_overwritten(forge: Forge) -> None:
    ring, credit = forge.ring(policy=2), forge.credit()
    for position in range(3):
        ring.describe(position, length=8, segment=9)
    assert "no segment 9" in broken_rule(stage(ring, credit, "latest"), "producer", SEGMENTS)
    ring.put(OLDEST, 3)
    assert broken_rule(stage(ring, credit, "latest"), "producer", SEGMENTS) == ""


@pytest.mark.parametrize(
    ("memory", "changes", "words"),
    [
        ("ring", {"epoch": 7}, "its epoch is 7, but the port says 0"),
        ("ring", {"credits": 5}, "its credits is 5, but the port says 4"),
        ("ring", {"policy": 2}, "its policy is latest, but the port says block"),
        ("credit", {"epoch": 7}, "its epoch is 7, but the port says 0"),
        ("credit", {"credits": 5}, "its credits is 5, but the port says 4"),
        ("credit", {"base_seq": 9}, "its base_seq is 9, but the port says 0"),
    ],
)
def test_an_end_that_does_not_fit_its_port_is_found(
    memory: str, changes: dict[str, int], words: str, forge: Forge
) -> None:
    port, route = Port(route="r", peer="p", credits=4), Stage(DataRoute("r", "source", "sink"))
    ring = memory == "ring"
    make = forge.ring if ring else forge.credit
    assert misfit(route, port, make(**changes).fd, with_policy=ring) == words
    assert misfit(route, port, make().fd, with_policy=ring) == ""


class TestFinished:
    def test_with_an_open_output_it_is_a_lie(self, forge: Forge) -> None:
        one = stage(forge.ring(), forge.credit())
        assert one.producer is not None
        assert unfinished(one.producer, [one], []) == "output 'r' is not closed"

    def test_with_a_closed_output_it_is_true(self, forge: Forge) -> None:
        ring = forge.ring()
        one = stage(ring, forge.credit())
        ring.put(CLOSED, 1)
        assert one.producer is not None
        assert unfinished(one.producer, [one], []) == ""

    def test_with_an_input_that_goes_on_it_is_a_lie(self, forge: Forge) -> None:
        one = stage(forge.ring(), forge.credit())
        assert one.consumer is not None
        assert unfinished(one.consumer, [], [(one, None)]).startswith("input 'r' has not ended")

    def test_with_frames_that_were_not_returned_it_is_a_lie(self, forge: Forge) -> None:
        ring, credit = forge.ring(), forge.credit()
        in_order(ring, credit)
        one = stage(ring, credit)
        assert one.consumer is not None
        assert unfinished(one.consumer, [], [(one, None)]) == "1 frames of input 'r' were not returned"
        credit.give_back(3)
        assert unfinished(one.consumer, [], [(one, None)]) == ""

    def test_frames_behind_the_end_are_the_producer_s_lie_and_owed_by_nobody(self, forge: Forge) -> None:
        ring, credit = forge.ring(), forge.credit()
        in_order(ring, credit)
        credit.give_back(3)
        ring.describe(4)
        one = stage(ring, credit)
        assert one.consumer is not None
        assert unfinished(one.consumer, [], [(one, None)]) == ""

    def test_who_has_detached_owes_nothing(self, forge: Forge) -> None:
        ring, credit = forge.ring(), forge.credit()
        ring.describe(0)
        credit.put(CLOSED, 1)
        one = stage(ring, credit)
        assert one.consumer is not None
        assert unfinished(one.consumer, [], [(one, None)]) == ""

    def test_with_a_header_that_was_changed_meanwhile_it_is_a_lie_and_the_peer_s_header_is_not(
        self, forge: Forge
    ) -> None:
        ring, credit = forge.ring(), forge.credit()
        in_order(ring, credit)
        one = stage(ring, credit)
        assert one.consumer is not None
        ring.put(layout.SLOTS_LOG2, HUGE)
        assert unfinished(one.consumer, [], [(one, None)]) == ""
        credit.put(layout.SLOTS_LOG2, HUGE)
        assert "its header says 2^40 slots" in unfinished(one.consumer, [], [(one, None)])
