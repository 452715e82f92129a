"""Notes behind a payload: a time of the sender's and metadata, which are no part of what the frame's memory is."""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import pytest

from chronetix import shm
from tests.shm.lines import attach

NOTES = struct.Struct("<qII")
META = b"where and how"


def noted(payload: bytes, meta: bytes = META, stamp_ns: int = -5) -> bytes:
    return payload + meta + NOTES.pack(stamp_ns, len(meta), 0)


@pytest.mark.parametrize("policy", ["block", "latest"])
@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256)) * 300])
def test_are_told_beside_the_payload(make_route, policy, payload):
    route = make_route(policies=(policy,))
    route.outlet.send(noted(payload), noted=True)
    route.outlet.send(payload)
    with_notes, without = route.take(), route.take()
    assert bytes(with_notes) == payload
    assert len(with_notes) == len(payload)
    assert with_notes.meta == META
    assert with_notes.stamp_ns == -5
    assert (bytes(without), without.meta, without.stamp_ns) == (payload, {}, 0)


@pytest.mark.parametrize("policy", ["block", "latest"])
def test_of_a_batch_are_those_of_its_frames(make_route, policy):
    route = make_route(policies=(policy,))
    for n in range(4):
        route.outlet.send(noted(bytes([n]) * 64, bytes([n]) * n, n), noted=True)
    batch = route.inlet.take_many(8, 0)
    assert [frame.stamp_ns for frame in batch] == [0, 1, 2, 3]
    assert [frame.meta or b"" for frame in batch] == [bytes([n]) * n for n in range(4)]
    assert not batch.adjacent
    assert batch.numpy().reshape(4, 64)[:, 0].tolist() == [0, 1, 2, 3]


def test_are_not_inherited_by_what_is_made_from_a_frame(make_route):
    route = make_route()
    route.outlet.send(noted(b"first"), noted=True)
    first = route.take()
    route.outlet.send(b"made of it", -1, first)
    made = route.take()
    assert (bytes(made), made.meta, made.stamp_ns) == (b"made of it", {}, 0)
    route.outlet.send(b"one more")
    batch = route.inlet.take_many(8, 0)
    route.outlet.send(b"made of all", -1, batch)
    assert bytes(route.take()) == b"made of all"


def test_come_with_a_loan(make_route):
    route = make_route()
    loan = route.outlet.loan(64 + 16)
    with memoryview(loan) as room:
        room[:] = noted(bytes(64), b"", 7)
    loan.commit(noted=True)
    frame = route.take()
    assert (len(frame), frame.meta, frame.stamp_ns) == (64, {}, 7)


def test_of_a_frame_that_was_released_cannot_be_read(make_route):
    route = make_route()
    route.outlet.send(noted(b"x"), noted=True)
    frame = route.take()
    frame.release()
    for name in ("stamp_ns", "meta"):
        with pytest.raises(ValueError, match="was released"):
            getattr(frame, name)


@pytest.mark.parametrize(
    ("length", "tail", "complaint"),
    [
        (0, b"", "no bytes, but notes among them"),
        (15, b"", "15 bytes, fewer than notes have"),
        (16, NOTES.pack(0, 1, 0), r"notes of 1 bytes \(and 0x0\) behind 0"),
        (64, NOTES.pack(0, 49, 0), "notes of 49 bytes"),
        (64, NOTES.pack(0, 2**32 - 1, 0), "notes of 4294967295 bytes"),
        (64, NOTES.pack(0, 0, 1), r"notes of 0 bytes \(and 0x1\)"),
    ],
)
def test_that_cannot_be_are_a_fault_of_the_route(forge, length, tail, complaint):
    ring, segment = forge.ring(4), forge.memory(1 << 16)
    segment.map[length - len(tail) : length] = tail
    bell, consumer = shm.Doorbell(), shm.Consumer("evil", credits=4)
    attach(consumer.link, ring.fd, bell)
    consumer.add_segment(0, segment.fd)
    inlet = shm.Inlet([consumer], bell)
    ring.describe(0, length=length, flags=2)
    with pytest.raises(shm.PeerFault, match=complaint):
        inlet.take(0)
    assert inlet.ended


class TestEncoding:
    """What has no plain memory is the hook's affair."""

    def test_is_asked_only_for_what_has_no_plain_memory(self, make_route):
        route = make_route()
        asked = []

        def encode(value):
            asked.append(value)
            return b"made"

        route.outlet.encode_with(encode)
        for data in (b"raw", bytearray(b"raw"), memoryview(b"raw"), memoryview(np.zeros(3, [("Zoo", "u1")]))):
            route.outlet.send(data)
            assert bytes(route.take()) == bytes(data)
        assert not asked
        strange = ["text", np.array([object()]), np.arange(4)[::2], memoryview(b"abcd")[::2]]
        for data in strange:
            route.outlet.send(data)
            assert bytes(route.take()) == b"made"
        assert [type(each) for each in asked] == [type(each) for each in strange]
        assert route.outlet.send_many(np.arange(4)[::2], 2) == 2
        assert [bytes(route.take()), bytes(route.take())] == [b"ma", b"de"]

    def test_is_asked_about_each_type_whose_memory_may_not_be_all_of_it_until_that_has_passed(self, make_route):
        route = make_route()
        asked = []

        def encode(value):
            asked.append(type(value))
            if isinstance(value, np.ma.MaskedArray):
                raise ValueError("masked")
            return value

        route.outlet.encode_with(encode)
        whole, masked = np.frombuffer(b"raw", "u1"), np.ma.array([1, 2], "u1")
        for _ in range(3):
            route.outlet.send(whole)
            assert bytes(route.take()) == b"raw"
        for _ in range(2):
            with pytest.raises(ValueError, match="masked"):
                route.outlet.send(masked)
        route.outlet.send(whole)
        assert bytes(route.take()) == b"raw"
        assert asked == [np.ndarray, np.ma.MaskedArray, np.ma.MaskedArray]

    def test_is_asked_about_memory_of_pointers_and_not_about_fields_that_are_called_so(self, make_route):
        class Pointing(ctypes.Structure):
            _fields_ = [("n", ctypes.c_int), ("at", ctypes.c_void_p)]

        route = make_route()
        route.outlet.encode_with(lambda _value: b"made")
        pointing = [
            (ctypes.c_char_p * 1)(b"text"),
            (ctypes.c_wchar_p * 1)("text"),
            (ctypes.c_void_p * 1)(1),
            ctypes.pointer(ctypes.c_int(1)),
            ctypes.CFUNCTYPE(None)(lambda: None),
            Pointing(),
            np.zeros(1, [("n", "i4"), ("o", "O")]),
            np.zeros(1, [("inner", [("o", "O")])]),
        ]
        plain = [np.array([1j]), np.array([1j], "c8"), np.zeros(1, [("Open", "f8"), ("Zone", "u1"), ("X", "c16")])]
        for value in pointing:
            route.outlet.send(memoryview(value))
            assert bytes(route.take()) == b"made"
        for value in plain:
            route.outlet.send(memoryview(value))
            assert bytes(route.take()) == value.tobytes()

    def test_what_it_raises_comes_out_and_nothing_is_sent(self, make_route):
        route = make_route()
        route.outlet.encode_with(lambda _value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            route.outlet.send("text")
        assert route.inlet.take(0) is None

    def test_without_it_pointers_are_refused(self, make_route):
        route = make_route()
        with pytest.raises(ValueError, match="pointers"):
            route.outlet.send(np.array([object()]))
        with pytest.raises(TypeError, match="encode must be callable"):
            route.outlet.encode_with(None)
