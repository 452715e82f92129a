"""A peer that writes nonsense into its own memory: its route ends with a PeerFault that names it, and nothing else is
disturbed.
"""

from __future__ import annotations

import os
import random
import signal
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chronetix import shm
from tests.shm.lines import attach


@pytest.fixture
def receive(forge):
    """A consumer on a forged ring, with 64 KiB of forged payload memory as segment 0."""

    def make(credits: int = 4, **changes: int):
        ring, segment = forge.ring(credits, **changes), forge.memory(1 << 16)
        bell, consumer = shm.Doorbell(), shm.Consumer("evil", credits=credits)
        attach(consumer.link, ring.fd, bell)
        consumer.add_segment(0, segment.fd)
        return ring, consumer, shm.Inlet([consumer], bell)

    return make


@pytest.fixture
def deliver(forge):
    """An outlet to a forged credit."""

    def make(credits: int = 4):
        credit, bell = forge.credit(credits), shm.Doorbell()
        arena = shm.Arena(1 << 20)
        producer = shm.Producer(arena, "evil", credits=credits)
        attach(producer.link, credit.fd, bell)
        return credit, producer, shm.Outlet([producer], bell), arena

    return make


@pytest.mark.parametrize(
    ("descriptor", "complaint"),
    [
        ({"offset": 1, "length": 8}, "8 bytes at offset 1 of segment 0, which has 65536"),
        ({"offset": 0, "length": 65537}, "65537 bytes at offset 0"),
        ({"offset": 65536, "length": 1}, "1 bytes at offset 65536"),
        ({"offset": 1 << 40, "length": 1}, "1 bytes at offset 1099511627776"),
        ({"offset": 64, "length": (1 << 64) - 64}, "18446744073709551552 bytes at offset 64"),
        ({"offset": (1 << 64) - 64, "length": 128}, "128 bytes at offset 18446744073709551552"),
        ({"length": (1 << 63)}, "9223372036854775808 bytes"),
        ({"flags": 4}, "unknown flags 0x4"),
        ({"stamp": 2}, "impossible stamps 2 and 0"),
        ({"stamp": (1 << 64) - 1}, "impossible stamps"),
    ],
)
def test_a_descriptor_that_cannot_be_is_never_followed(receive, descriptor, complaint):
    ring, consumer, inlet = receive()
    ring.describe(0, **descriptor)
    with pytest.raises(shm.PeerFault) as caught:
        inlet.take(0)
    assert complaint in caught.value.args[0]
    assert caught.value.args[0].startswith("route evil: ")
    assert caught.value.args[1] == "evil"
    assert os.pread(consumer.fd, 8, 64) == b"\1" + bytes(7), "the route is detached"
    assert inlet.take(0) is None
    assert inlet.ended


def test_a_fault_is_not_lost_to_a_look(receive):
    ring, consumer, inlet = receive()
    ring.describe(0, flags=9)
    assert not consumer.ended
    assert not inlet.ended
    assert not inlet.arm()
    with pytest.raises(shm.PeerFault):
        inlet.take()
    assert consumer.ended
    assert inlet.ended


def test_an_end_before_or_after_the_last_frame_is_a_fault(receive):
    for closed in (1, 5):
        ring, _, inlet = receive()
        for position in range(2):
            ring.describe(position)
        ring.put(64, closed)
        inlet.take(0)
        inlet.take(0)
        with pytest.raises(shm.PeerFault, match=f"closed at position {closed - 1}, but frames end at 2"):
            inlet.take(0)


def test_endless_skips_end(receive):
    ring, _, inlet = receive()
    for position in range(ring.slots):
        ring.skip(position)
    assert inlet.take(0) is None
    ring.describe(8)
    assert inlet.take(0).seq == 8


def test_a_segment_that_never_comes_stalls_its_route_only(receive):
    ring, _, inlet = receive()
    for segment in (1, 65535):
        ring.describe(0, length=1, segment=segment)
        assert inlet.take(0) is None
        assert not inlet.ended


def test_the_other_routes_go_on_after_a_fault(receive, route):
    ring, evil, _ = receive()
    inlet = shm.Inlet([evil, route.consumer], route.far_bell)
    route.outlet.send(b"good")
    ring.describe(0, flags=4)
    with pytest.raises(shm.PeerFault):
        inlet.take()
    assert bytes(inlet.take()) == b"good"
    route.producer.close()
    assert inlet.take() is None
    assert inlet.ended


def test_a_frame_in_the_slot_of_one_that_is_held_is_a_fault(receive, forge):
    """Else what is read of the held one would be forgotten, and its segment could be taken away under its reader."""
    ring, consumer, inlet = receive()
    consumer.add_segment(1, forge.memory(4096).fd)
    ring.describe(0, length=64, segment=1)
    held = inlet.take(0)
    for position in range(1, 8):
        ring.describe(position, length=64)
        inlet.take(0).release()
    ring.describe(8, length=64)
    with pytest.raises(shm.PeerFault, match="frame at 8: its slot has a frame that is still held"):
        inlet.take(0)
    with pytest.raises(shm.PeerFault, match="segment 1 was dropped while a frame of it is held"):
        consumer.drop_segment(1)
    assert bytes(held) == bytes(64)


@pytest.mark.parametrize(("first", "second"), [(64, 0), (0, 64)], ids=["hidden-by-an-empty-one", "behind-an-empty-one"])
def test_a_frame_without_bytes_holds_its_slot_like_any_other(receive, forge, first, second):
    """Whichever of two in one slot is empty: giving it back is not taken for giving back the other one, whose segment
    would be taken away under its reader."""
    ring, consumer, inlet = receive()
    consumer.add_segment(1, forge.memory(4096).fd)
    ring.describe(0, length=first, segment=1)
    held = inlet.take(0)
    for position in range(1, 8):
        ring.describe(position, length=64)
        inlet.take(0).release()
    ring.describe(8, length=second, segment=1)
    with pytest.raises(shm.PeerFault, match="frame at 8: its slot has a frame that is still held"):
        inlet.take(0)
    assert bytes(held) == bytes(first)


@pytest.mark.parametrize("policy", [0, 2], ids=["block", "latest"])
def test_one_call_hands_out_no_more_bytes_than_the_producer_has_memory(receive, policy):
    """Each of its frames is all of its memory: to copy one costs it a descriptor, and its reader 64 KiB."""
    ring, _, inlet = receive(512, policy=policy)
    for position in range(512):
        ring.describe(position, length=1 << 16)
    frames = 0
    while (batch := inlet.take_many(512, 0)) is not None:
        assert batch.nbytes <= 1 << 16
        frames += len(batch)
        batch.numpy()
    assert frames == 512, "all of them come, in as many calls"


@pytest.mark.parametrize("policy", [0, 2], ids=["block", "latest"])
def test_a_batch_of_honest_frames_is_as_long_as_it_was(receive, policy):
    """Frames that do not overlap fill the memory, and come with one call: 64 at first, more as it is found worth it."""
    ring, _, inlet = receive(512, policy=policy)
    for position in range(512):
        ring.describe(position, length=128, offset=128 * position)
    assert len(inlet.take_many(512, 0)) == 512


@pytest.mark.parametrize(("claimed", "complaint"), [(3, "3 frames returned of 2 sent"), ((1 << 64) - 1, "of 2 sent")])
def test_more_returned_than_sent_is_a_fault(deliver, claimed, complaint):
    credit, _producer, outlet, arena = deliver(credits=2)
    outlet.send(b"x" * 5000)
    outlet.send(b"x" * 5000)
    credit.put(192, claimed)
    with pytest.raises(shm.PeerFault, match=complaint) as caught:
        outlet.send(b"x", 0)
    assert caught.value.args[1] == "evil"
    assert arena.used == 0, "what the liar held is free again"
    with pytest.raises(shm.PeerFault):
        outlet.send(b"x")


def test_a_fault_found_while_committing_frees_that_frame_too(deliver):
    """The ring has come round to a slot that is still held, so the books are looked at once more."""
    credit, producer, outlet, arena = deliver(credits=2)
    outlet.send(b"held")
    for position in range(1, 8):
        outlet.send(b"x")
        credit.give_back(position)
        credit.put(192, position)
    assert arena.used == 64
    assert producer.credits == 1
    credit.put(192, 99)
    outlet.send(b"y")
    with pytest.raises(shm.PeerFault, match="claims 99 frames returned"):
        outlet.send(b"z")
    assert arena.used == 0


def test_returned_without_stamps_is_a_fault(deliver):
    credit, _, outlet, _ = deliver(credits=2)
    outlet.send(b"a")
    outlet.send(b"b")
    credit.give_back(1)
    credit.put(192, 2)
    with pytest.raises(shm.PeerFault, match="claims 2 frames returned, but the stamps show 1"):
        outlet.send(b"c", 0)


def test_stamps_without_returned_are_nothing(deliver):
    credit, producer, outlet, _ = deliver(credits=2)
    outlet.send(b"a")
    outlet.send(b"b")
    credit.give_back(0)
    assert producer.credits == 0
    with pytest.raises(shm.WouldBlock):
        outlet.send(b"c", 0)
    credit.put(192, 1)
    assert producer.credits == 1
    outlet.send(b"c", 0)


def test_a_liar_costs_its_own_route_only(deliver, forge):
    arena, bell = shm.Arena(1 << 20), shm.Doorbell()
    credits = [forge.credit(2), forge.credit(2)]
    producers = [shm.Producer(arena, name, credits=2) for name in ("liar", "honest")]
    for producer, credit in zip(producers, credits, strict=True):
        attach(producer.link, credit.fd, bell)
    outlet = shm.Outlet(producers, bell)
    outlet.send(b"x" * 5000)
    outlet.send(b"x" * 5000)
    credits[0].put(192, 7)
    with pytest.raises(shm.PeerFault, match="route liar"):
        outlet.send(b"y", 0)
    assert arena.used == 2 * 8192, "the honest one still reads both"
    with pytest.raises(shm.WouldBlock):
        outlet.send(b"y", 0)
    credits[1].give_back(0)
    credits[1].put(192, 1)
    assert outlet.send(b"y", 0) == -1
    assert producers[1].position == 3


def test_ends_that_do_not_match_are_not_linked(forge):
    bell = shm.Doorbell()
    for changes, complaint in (
        ({"credits": 5}, "this end was made for 4 credits, the other for 5"),
        ({"epoch": 1}, "this end is of epoch 0, the other of 1"),
        ({"base_seq": 9}, "this end starts at frame 0, the other at 9"),
    ):
        consumer, producer = shm.Consumer("c", credits=4), shm.Producer(shm.Arena(), "p", credits=4)
        with pytest.raises(shm.PeerFault, match=complaint):
            attach(consumer.link, forge.ring(**changes).fd, bell)
        with pytest.raises(shm.PeerFault, match=complaint):
            attach(producer.link, forge.credit(**changes).fd, bell)
        assert not consumer.linked
        assert not producer.linked


def test_what_is_no_line_is_not_linked(forge):
    read, write = os.pipe()
    bell, own = os.eventfd(0, os.EFD_NONBLOCK), shm.Doorbell()
    datagrams, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ring = forge.ring(4)
    try:
        for fd in (read, bell, 99_999, ring.fd, datagrams.fileno()):
            consumer = shm.Consumer("c", credits=4)
            with pytest.raises(shm.PeerFault, match=f"descriptor {fd} is no end of a line: no Unix stream socket"):
                consumer.link(ring.fd, fd, own)
            assert not consumer.linked
    finally:
        for fd in (read, write, bell):
            os.close(fd)
        datagrams.close()
        other.close()


def test_segments_that_lie_are_not_mapped(forge):
    consumer = shm.Consumer("c")
    with pytest.raises(shm.PeerFault, match="route c: only 0 of 4096 bytes are reserved"):
        consumer.add_segment(0, forge.memory(4096, reserve=False).fd)
    good = forge.memory(4096)
    consumer.add_segment(0, good.fd)
    with pytest.raises(shm.PeerFault, match="segment 0 is mapped already"):
        consumer.add_segment(0, good.fd)
    with pytest.raises(shm.PeerFault, match="segment 65535: at most 65535"):
        consumer.add_segment(65535, good.fd)


def test_linking_twice_is_refused(route):
    with pytest.raises(ValueError, match="linked or closed already"):
        attach(route.producer.link, route.consumer.fd, route.bell)
    with pytest.raises(ValueError, match="linked or closed already"):
        attach(route.consumer.link, route.producer.fd, route.bell)


WORDS = st.one_of(
    st.integers(0, 20), st.integers(0, (1 << 64) - 1), st.integers(0, 64).map(lambda n: (1 << n) % (1 << 64))
)


@given(st.lists(st.tuples(st.integers(8, 511), WORDS), max_size=30), st.integers(0, 40))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_words_in_a_ring_never_harm_its_consumer(receive, writes, good):
    ring, consumer, inlet = receive()
    held, position = [], 0
    for word, value in writes:
        ring.put(8 * word, value)
        if word % 3 == 0 and position < good:
            ring.describe(position, length=64)
            position += 1
        try:
            frame = inlet.take(0)
        except shm.PeerFault:
            assert inlet.ended
            break
        if frame is not None:
            held.append(bytes(frame))
            if len(held) % 2:
                held.append(frame)
    assert consumer.held <= len(held)


@given(st.lists(st.tuples(st.integers(8, 1023), WORDS), max_size=30))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_words_in_a_credit_never_harm_its_producer(deliver, writes):
    credit, producer, outlet, arena = deliver()
    for n, (word, value) in enumerate(writes):
        credit.put(8 * word, value)
        try:
            outlet.send(b"z" * (n * 300), 0)
        except shm.WouldBlock:
            continue
        except (shm.PeerFault, shm.RouteClosed):
            break
    assert producer.credits <= 4
    assert arena.used <= 5 * 16_384


@given(st.lists(st.tuples(st.integers(0, 1023), WORDS), max_size=20))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_words_never_harm_an_observer(forge, writes):
    ring, credit = forge.ring(4), forge.credit(4)
    view = shm.RouteView(ring.fd, credit.fd)
    for n, (word, value) in enumerate(writes):
        memory = (ring, credit)[n % 2]
        memory.put(8 * word % (len(memory.map) - 8), value)
        assert view.snapshot()["outstanding"] >= 0
        assert view.held()[0] <= 1 << 20
    view.close()


@pytest.fixture
def scribble():
    """Start a process that writes into these memories, from that offset on, until the test ends."""
    pids: list[int] = []

    def start(memories, first: int) -> None:
        pid = os.fork()
        if pid:
            pids.append(pid)
            return
        numbers = random.Random(7)
        while True:
            memory = numbers.choice(memories)
            word, position = numbers.randrange(first // 8, len(memory.map) // 8), numbers.randrange(40)
            value = numbers.choice((0, 1, position, 1 << numbers.randrange(64), numbers.getrandbits(64)))
            memory.put(8 * word, value)
            if memory.slots and numbers.random() < 0.9:
                memory.describe(position, length=numbers.choice((0, 64, 65536)), offset=64 * numbers.choice((0, 1023)))

    yield start
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_consumer_lives_beside_a_producer_that_never_stops_writing(forge, scribble):
    ring, segment, frames = forge.ring(4), forge.memory(1 << 16), 0
    faults: list[str] = []
    scribble([ring, segment], 64)
    while len(faults) < 20 or frames < 20:
        bell, consumer = shm.Doorbell(), shm.Consumer("mad", credits=4)
        attach(consumer.link, ring.fd, bell)
        consumer.add_segment(0, segment.fd)
        inlet, held = shm.Inlet([consumer], bell), []
        for step in range(50):
            try:
                got = inlet.take_many(3, 0) if step % 2 else inlet.take(0)
            except shm.PeerFault as fault:
                faults.append(fault.args[1])
                break
            if got is not None:
                frames += 1
                held = [*held[-2:], got]
                assert sum(len(bytes(frame)) for frame in (got if step % 2 else [got])) <= 3 << 16
    assert set(faults) == {"mad"}


def test_a_producer_lives_beside_a_consumer_that_never_stops_writing(forge, scribble):
    credit, sent = forge.credit(4), 0
    faults: list[str] = []
    scribble([forge.made[0]], 128)  # closed stands before: it would end the route too soon
    while len(faults) < 20 or sent < 20:
        bell, arena = shm.Doorbell(), shm.Arena(1 << 20)
        producer = shm.Producer(arena, "mad", credits=4)
        attach(producer.link, credit.fd, bell)
        outlet = shm.Outlet([producer], bell)
        for step in range(50):
            try:
                outlet.send_many(bytes(3000), 1000, 0) if step % 2 else outlet.send(bytes(step * 100), 0)
                sent += 1
            except shm.WouldBlock:
                continue
            except shm.PeerFault as fault:
                faults.append(fault.args[1])
                break
        assert producer.credits <= 4
    assert set(faults) == {"mad"}
