"""Numbers, lengths and limits at their edges: the byte before, the byte itself, the byte after, in both directions."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import pytest

from chronetix.protocol import cbor

WIDTHS = [
    (0, ""),
    (23, ""),
    (24, "18"),
    (0xFF, "18"),
    (0x100, "19"),
    (0xFFFF, "19"),
    (0x10000, "1a"),
    (0xFFFFFFFF, "1a"),
    (0x100000000, "1b"),
    ((1 << 63) - 1, "1b"),
    (1 << 63, "1b"),
    (cbor.MAX_INT, "1b"),
]
"""A number and the head that is the shortest for it."""


def head(major: int, number: int) -> bytes:
    """The shortest one."""
    for low, form in ((24, ">B"), (25, ">H"), (26, ">I"), (27, ">Q")):
        if number < 24:
            return bytes([major << 5 | number])
        if number < 1 << 8 * struct.calcsize(form):
            return bytes([major << 5 | low]) + struct.pack(form, number)
    raise AssertionError(number)


@pytest.mark.parametrize(("number", "first"), WIDTHS)
def test_a_number_has_its_shortest_head(number: int, first: str) -> None:
    assert head(0, number)[:1].hex() == (first or f"{number:02x}")
    for written, value in ((head(0, number), number), (head(1, number), -1 - number)):
        assert cbor.dumps(value) == written
        assert cbor.loads(written) == value


@pytest.mark.parametrize("size", [0, 23, 24, 255, 256, 65535, 65536])
@pytest.mark.parametrize(
    ("major", "value"), [(2, lambda n: b"b" * n), (3, lambda n: "t" * n), (4, lambda n: [None] * n)]
)
def test_a_length_has_its_shortest_head(size: int, major: int, value: Callable[[int], Any]) -> None:
    made = value(size)
    written = cbor.dumps(made)
    assert written.startswith(head(major, size))
    assert len(written) == len(head(major, size)) + size
    assert cbor.loads(written) == made


@pytest.mark.parametrize("size", [0, 23, 24, 255, 256, 65535, 65536])
def test_so_has_a_maps(size: int) -> None:
    made = {str(number): None for number in range(size)}
    assert cbor.dumps(made).startswith(head(5, size))
    assert cbor.loads(cbor.dumps(made)) == made


@pytest.mark.parametrize("wide", ["18 05", "19 0005", "1a 00000005", "1b 0000000000000005"])
def test_a_head_that_is_wider_than_need_be_is_read(wide: str) -> None:
    raw = bytes.fromhex(wide)
    assert cbor.loads(raw) == 5
    assert cbor.loads(bytes([raw[0] | 1 << 5]) + raw[1:]) == -6
    assert cbor.loads(bytes([raw[0] | 4 << 5]) + raw[1:] + b"\x00" * 5) == [0] * 5
    for cut in range(1, len(raw)):
        with pytest.raises(cbor.CborError, match="end of stream"):
            cbor.loads(raw[:cut])


READERS: dict[str, Callable[..., Any]] = {
    "at once": cbor.loads,
    "in pieces": lambda data, *limit: cbor.Decoder(data, *limit).step(1 << 62),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
class TestItems:
    @pytest.mark.parametrize("major", [4, 5])
    @pytest.mark.parametrize("wide", [False, True])
    def test_a_container_has_as_many_as_the_limit_and_not_one_more(
        self, read: Callable[..., Any], major: int, wide: bool
    ) -> None:
        """However many bytes its head has. A map of n has 2n items, and the container is one."""
        entries = 4
        start = bytes([major << 5 | 27]) + struct.pack(">Q", entries) if wide else head(major, entries)
        inside = b"\x00" * 4 if major == 4 else b"".join(b"\x61%c\x00" % (97 + each) for each in range(4))
        most = 1 + entries * (major - 3)
        for limit in (most, most + 1):
            assert read(start + inside, limit)
        with pytest.raises(cbor.CborError, match=f"more than {most - 1} items"):
            read(start + inside, most - 1)

    def test_the_whole_limit_is_there_where_none_is_named(self, read: Callable[..., Any]) -> None:
        count = cbor.MAX_ITEMS - 1
        assert read(head(4, count) + b"\xf6" * count)
        with pytest.raises(cbor.CborError, match=f"more than {cbor.MAX_ITEMS} items"):
            read(head(4, count + 1) + b"\xf6" * (count + 1))

    @pytest.mark.parametrize("major", [4, 5])
    @pytest.mark.parametrize("claimed", [1 << 31, 1 << 32, (1 << 62) + 1, 1 << 63, (1 << 64) - 1])
    def test_a_count_that_no_integer_of_ours_holds_is_refused(
        self, read: Callable[..., Any], major: int, claimed: int
    ) -> None:
        with pytest.raises(cbor.CborError, match="end of stream"):
            read(head(major, claimed) + b"\x60" * 64)
        with pytest.raises(cbor.CborError, match="end of stream"):
            read(b"\x82" + head(major, claimed) + b"\x60" * 64)

    def test_a_list_may_claim_each_byte_that_is_left_and_not_one_more(self, read: Callable[..., Any]) -> None:
        assert read(b"\x83\x82\x00\x00\x00\x00")
        with pytest.raises(cbor.CborError, match="end of stream"):
            read(b"\x83\x83\x00\x00\x00\x00")
        assert read(b"\xa1\x60\x82\x00\x00")
        with pytest.raises(cbor.CborError, match="end of stream"):
            read(b"\xa2\x60\x82\x00\x00")


class TestFrames:
    @pytest.mark.parametrize("size", [0, 22, 1019, 1020, 1021, 1022, 1023, 1024, 1025, 2048, 70_000])
    @pytest.mark.parametrize("value", [lambda n: b"b" * n, lambda n: "t" * n, lambda n: [0] * n, lambda n: ("x",) * n])
    def test_a_frame_of_just_its_limit_is_written_and_a_byte_more_is_not(
        self, size: int, value: Callable[[int], Any]
    ) -> None:
        """Below what the writer itself holds (1 KiB), at it, and beyond it."""
        made = value(size)
        plain = cbor.dumps(made)
        for limit in (len(plain), len(plain) + 1):
            for frame in (cbor.frame(made, limit), written(cbor.Encoder(made, limit))):
                assert frame == struct.pack(">I", len(plain)) + plain
        for write in (lambda: cbor.frame(made, len(plain) - 1), lambda: written(cbor.Encoder(made, len(plain) - 1))):
            with pytest.raises(
                cbor.CborError, match=f"it has {len(plain)} bytes or more, at most {len(plain) - 1} fit"
            ):
                write()

    @pytest.mark.parametrize("value", [1.5, math.nan, math.inf, -math.inf, cbor.Encoded(b"\x83\x01\x02\x03")])
    def test_so_is_one_that_is_a_single_item(self, value: Any) -> None:
        size = len(cbor.dumps(value))
        assert len(cbor.frame(value, size)) == 4 + size
        with pytest.raises(cbor.CborError, match="fit"):
            cbor.frame(value, size - 1)

    def test_of_a_size_and_of_work_it_tells_as_it_goes(self) -> None:
        writing = cbor.Encoder([1, "two", {"k": b"x" * 1024}], 1 << 20)
        assert (writing.size, writing.spent) == (4, 0)
        assert not writing.step(1)
        assert (writing.size, writing.spent) == (5, 1)
        assert not writing.step(2)
        assert writing.spent == 3
        with pytest.raises(ValueError, match="not complete"):
            writing.take()
        assert writing.step(100)
        assert writing.size == len(writing.take())
        with pytest.raises(ValueError, match="not complete"):
            writing.take()
        with pytest.raises(ValueError, match="written to its end"):
            writing.step(1)

    @pytest.mark.parametrize("count", [0, 1, 23, 24, 300])
    def test_a_list_of_what_is_cbor_already_is_that_list(self, count: int) -> None:
        items = [cbor.dumps({"n": number}) for number in range(count)]
        joined = cbor.Encoded.list(items)
        assert joined.data == cbor.dumps([{"n": number} for number in range(count)])
        assert cbor.loads(cbor.dumps({"all": joined}))["all"] == [{"n": number} for number in range(count)]


@pytest.mark.parametrize("value", [-1, 1 << 63, 1.5, math.nan, True, None, "t" * 2000, b"b" * 2000, [1.5], {"k": (1,)}])
def test_what_can_be_written_passes_the_check_and_is_read_in_pieces(value: Any) -> None:
    assert cbor.check(value) is None  # type: ignore[func-returns-value]
    reading = cbor.Decoder(cbor.dumps([value, [0] * 20]))
    with pytest.raises(ValueError, match="not complete"):
        reading.take()
    while not reading.step(2):
        pass
    assert repr(reading.take()[0]) == repr(cbor.loads(cbor.dumps(value)))
    with pytest.raises(ValueError, match="not complete"):
        reading.take()


@pytest.mark.parametrize("sign", [0, 0x8000])
@pytest.mark.parametrize("half", [0, 1, 2, 0x3FF, 0x400, 0x401, 0x7BFF, 0x7C00])
def test_halves_at_their_edges_are_read(half: int, sign: int) -> None:
    raw = struct.pack(">H", sign | half)
    assert repr(cbor.loads(b"\xf9" + raw)) == repr(struct.unpack(">e", raw)[0])


def written(writing: Any) -> bytes:
    while not writing.step(7):
        pass
    return bytes(writing.take())


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"k": inner}])
def test_what_is_written_may_be_as_deep_as_the_limit(wrap: Callable[[Any], Any]) -> None:
    deep: Any = 0
    for _ in range(cbor.MAX_DEPTH):
        deep = wrap(deep)
    cbor.check(deep)
    assert cbor.loads(cbor.dumps(deep)) is not None
    for write in (cbor.check, cbor.dumps, lambda value: cbor.frame(value, 1 << 20)):
        with pytest.raises(cbor.CborError, match="more than 64 containers"):
            write(wrap(deep))


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_and_a_tuple_are_written_alike(kind: Callable[[Any], Any]) -> None:
    items = [1, "a", b"b", 1.5, None, True, [2], {"k": 3}]
    assert cbor.dumps(kind(items)) == cbor.dumps(items)
    assert cbor.loads(cbor.dumps({"deep": kind(items)})) == {"deep": items}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (1 << 64, "18446744073709551616 is outside"),
        ((1 << 255) - 1, f"{(1 << 255) - 1} is outside"),
        (1 << 255, "a number of 256 bits is outside"),
        (-(1 << 64) - 1, "-18446744073709551617 is outside"),
    ],
)
def test_a_number_that_is_too_large_is_shown_as_long_as_it_can_be_read(value: int, says: str) -> None:
    for write in (cbor.dumps, cbor.check):
        with pytest.raises(cbor.CborError, match=says):
            write(value)


class TestKeys:
    @pytest.mark.parametrize("size", [0, 1, 31, 32, 33])
    def test_keys_of_any_length_are_read_again_and_again(self, size: int) -> None:
        """Those of up to 32 bytes are remembered."""
        for letter in "abab":
            assert cbor.loads(cbor.dumps({letter * size: 1})) == {letter * size: 1}

    def test_more_keys_than_are_remembered_are_all_read_right(self) -> None:
        document = {f"key {number}": number for number in range(3000)}
        for _ in range(2):
            assert cbor.loads(cbor.dumps(document)) == document

    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_a_key_that_comes_twice_is_refused_wherever_it_comes(self, at: int) -> None:
        keys = ["a", "b", "c", "d"]
        keys[at] = "a"
        data = b"\xa4" + b"".join(cbor.dumps(key) + b"\x00" for key in keys)
        with pytest.raises(cbor.CborError, match="Duplicate map key: 'a'"):
            cbor.loads(data)


class TestTakingApart:
    @pytest.mark.parametrize("value", [[[]] * 5, [[1], [2], [3]], {"a": [1], "b": {"c": [2]}}, [[[[[[]]]]]]])
    def test_a_step_takes_no_more_than_it_may(self, value: Any) -> None:
        document = cbor.Decoder(cbor.dumps(value))
        assert document.step(100)
        pile, steps = [document.take()], 0
        while not cbor.dismantle(pile, 1):
            steps += 1
            assert pile
        assert pile == []
        assert steps >= len(value)

    def test_nothing_is_taken_apart_for_nothing(self) -> None:
        pile: list[Any] = [[1, 2]]
        assert not cbor.dismantle(pile, 0)
        assert pile == [[1, 2]]
        assert cbor.dismantle([], 0)


@pytest.mark.parametrize("size", [1, 32, 33])
def test_a_key_that_is_no_text_is_refused_and_remembered_by_nobody(size: int) -> None:
    for _ in range(2):
        with pytest.raises(cbor.CborError, match="not UTF-8"):
            cbor.loads(b"\xa1\x78" + bytes([size]) + b"\xff" * size + b"\x00")
    assert cbor.loads(cbor.dumps({"k" * size: 1})) == {"k" * size: 1}
