"""Headers and golden bytes: what the memories look like from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chronetix import shm
from tests.shm.lines import attach

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[int, bytes]:
    """Offset to 16 bytes, of every line that is not all zero."""
    lines = (GOLDEN / name).read_text().splitlines()
    return {int(line[:4], 16): bytes.fromhex(line[6:]) for line in lines if not line.startswith("#")}


def dump(memory: bytes) -> dict[int, bytes]:
    lines = {at: memory[at : at + 16] for at in range(0, len(memory), 16)}
    return {at: line for at, line in lines.items() if any(line)}


def test_memory_that_is_not_reserved_is_refused(forge):
    memory = forge.memory(1 << 20, reserve=False)
    with pytest.raises(shm.PeerFault, match="only 0 of 1048576 bytes are reserved"):
        shm.check(memory.fd, "segment")


def test_memory_of_broken_pages_is_refused(forge):
    with pytest.raises(shm.PeerFault, match="5000 bytes is not whole pages"):
        shm.check(forge.memory(5000).fd, "segment")


def test_what_is_no_memory_is_refused():
    with (
        open("/proc/self/cmdline", "rb") as file,  # the temporary folder may be memory
        pytest.raises(shm.PeerFault, match=r"is no memfd|not sealed|is no shared memory"),
    ):
        shm.check(file.fileno(), "segment")
    read, write = os.pipe()
    try:
        with pytest.raises(shm.PeerFault, match=r"is no memfd|is no shared memory"):
            shm.check(read, "ring")
    finally:
        os.close(read)
        os.close(write)
    with pytest.raises(shm.PeerFault, match="Bad file descriptor"):
        shm.check(write, "credit")


def test_an_unknown_kind_is_refused(route):
    with pytest.raises(ValueError, match="kind must be"):
        shm.check(route.producer.fd, "arena")


def test_a_ring_is_no_credit(route):
    with pytest.raises(shm.PeerFault, match="not a credit: wrong magic"):
        shm.check(route.producer.fd, "credit")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"magic": b"CHXRINX\0"}, "wrong magic"),
        ({"crc": 1}, "checksum does not match"),
        ({"abi": 2}, "ABI 2, this side speaks 1"),
        ({"kind": 2}, "kind 2"),
        ({"slots_log2": 4}, r"2\^4 slots for 4 credits"),
        ({"slots_log2": 63}, r"2\^63 slots for 4 credits"),
        ({"watermark": 0}, "watermark 0 of 4"),
        ({"watermark": 5}, "watermark 5 of 4"),
        ({"credit_low": 4}, "credit_low 4 of 4"),
        ({"policy": 9}, "unknown policy 9"),
        ({"extra": 4096}, "has 8192 bytes instead of 4096"),
    ],
)
def test_a_ring_header_is_believed_only_when_all_of_it_fits(forge, changes, complaint):
    ring = forge.ring(4, **changes)
    with pytest.raises(shm.PeerFault, match=complaint):
        shm.check(ring.fd, "ring")


@pytest.mark.parametrize("credits", [0, 65537, 1 << 31, (1 << 32) - 1])
def test_impossible_credits_in_a_header_are_refused(forge, credits):
    ring, credit = forge.ring(4), forge.credit(4)
    from_header = {"credits": credits}
    for memory, kind in ((ring, "ring"), (credit, "credit")):
        memory.map[:64] = forge.header(kind, slots_log2=3, watermark=0, credit_low=0, policy=0, **from_header)
        with pytest.raises(shm.PeerFault, match=f"{credits} credits, allowed are 1 to 65536"):
            shm.check(memory.fd, kind)


def test_the_header_of_a_real_ring_is_the_golden_one(forge):
    producer = shm.Producer(
        shm.Arena(), "r", credits=100, watermark=75, credit_low=50, policy="drop_newest", epoch=3, base_seq=1 << 40
    )
    consumer = shm.Consumer("r", credits=100, epoch=3, base_seq=1 << 40)
    ring, credit = os.pread(producer.fd, 4096, 0), os.pread(consumer.fd, 4096, 0)
    assert dump(ring) == golden("ring-header.hex")
    assert dump(credit) == golden("credit-header.hex")
    assert ring[:64] == forge.header(
        "ring", credits=100, watermark=75, credit_low=50, policy=1, epoch=3, base_seq=1 << 40
    )
    assert os.fstat(producer.fd).st_size == 20_480
    assert os.fstat(consumer.fd).st_size == 8192


def test_a_ring_after_some_traffic_is_the_golden_one(make_route):
    """Everything but the times: descriptors, a skip, stamps, counters."""
    route = make_route(credits=4)
    for i in range(4):
        route.outlet.send(b"x" * (i * 100), schema=i, deadline_ns=i << 40, trace=i << 50, input_seq=i << 60)
    frames = [route.take() for _ in range(4)]
    for frame in frames[1:]:
        frame.release()
    for i in range(6):
        route.outlet.send(b"%d" % i)
        route.take().release()
    route.producer.close()
    ring = bytearray(os.pread(route.producer.fd, 4096, 0))
    for slot in range(8):
        at = 512 + 64 * slot + 32
        assert any(ring[at : at + 8])
        ring[at : at + 8] = bytes(8)
    credit = bytearray(os.pread(route.consumer.fd, 8192, 0))
    credit[288:304] = bytes(16)  # latencies
    credit[512:5376] = bytes(4864)
    assert dump(ring) == golden("ring-traffic.hex")
    assert dump(credit) == golden("credit-traffic.hex")


def test_a_ring_of_policy_latest_after_some_losses_is_the_golden_one(make_route):
    """`oldest`, losses, and a `returned` that is a position."""
    route = make_route(credits=4, policies=("latest",))
    for i in range(3):
        route.outlet.send(b"x" * i * 100)
    route.take()
    for i in range(10):
        route.outlet.send(b"%d" % i)
    route.drain()
    ring = bytearray(os.pread(route.producer.fd, 4096, 0))
    for slot in range(8):
        ring[512 + 64 * slot + 32 : 512 + 64 * slot + 40] = bytes(8)
    credit = bytearray(os.pread(route.consumer.fd, 8192, 0))
    credit[288:304] = bytes(16)  # latencies
    credit[512:5376] = bytes(4864)
    assert dump(ring) == golden("latest-ring.hex")
    assert dump(credit) == golden("latest-credit.hex")


def without_times(memory: bytes, slots: int) -> bytes:
    ring = bytearray(memory)
    for slot in range(slots):
        at = 512 + 64 * slot + 32
        ring[at : at + 8] = bytes(8)
    return bytes(ring)


def test_runs_around_a_held_frame_a_second_segment_a_drop_and_a_detached_end_are_the_golden_ones(make_route):
    route = make_route(credits=4, policies=("drop_newest",), first=1 << 16)
    route.outlet.send(b"held", redelivered=True, schema=0xFFFFFFFF, trace=(1 << 64) - 1)
    held = route.take()
    for _ in range(2):
        route.outlet.send_many(bytes(3 * 70), 70, input_seq=5)
        route.inlet.take_many(3, 0).release()
    assert route.outlet.send_many(b"x" * 140, 70, deadline_ns=6) == 2, "positions 7 and 9: 8 is passed over"
    assert [frame.seq for frame in route.inlet.take_many(2, 0)] == [7, 9]
    route.outlet.send(bytes(100_000))
    route.outlet.send_many(bytes(3), 1)
    assert route.view()["dropped"] == 1
    route.consumer.close()
    with pytest.raises(shm.RouteClosed):
        route.outlet.send(b"too late")
    assert bytes(held) == b"held"
    ring = without_times(os.pread(route.producer.fd, 4096, 0), 8)
    credit = bytearray(os.pread(route.consumer.fd, 8192, 0))
    credit[288:304] = bytes(16)  # latencies
    credit[512:5376] = bytes(4864)
    assert dump(ring) == golden("detached-ring.hex")
    assert dump(credit) == golden("detached-credit.hex")


def test_a_forged_ring_works_like_a_real_one(forge):
    """What this file's reading of SPEC.md writes, the extension takes."""
    ring, segment = forge.ring(4), forge.memory(1 << 16)
    segment.map[128:133] = b"hello"
    bell, consumer = shm.Doorbell(), shm.Consumer("forged", credits=4)
    attach(consumer.link, ring.fd, bell)
    consumer.add_segment(3, segment.fd)
    inlet = shm.Inlet([consumer], bell)
    assert inlet.take(0) is None
    ring.describe(0, offset=128, length=5, segment=3, schema=9)
    ring.skip(1)
    ring.skip(2)
    ring.describe(3)
    ring.put(64, 5)
    frame = inlet.take(0)
    assert frame is not None
    assert (bytes(frame), frame.schema, frame.seq) == (b"hello", 9, 0)
    last = inlet.take(0)
    assert last is not None
    assert (len(last), last.seq) == (0, 3)
    assert inlet.ended
    last.release()
    frame.release()
    credit = os.pread(consumer.fd, 8192, 0)
    assert int.from_bytes(credit[192:200], "little") == 2
    assert int.from_bytes(credit[5376:5384], "little") == 1
    assert int.from_bytes(credit[5376 + 24 : 5376 + 32], "little") == 4
