"""JSON and CBOR of data: what a value becomes, what is refused and how, what other encoders' CBOR means."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import math
import subprocess
import sys
import types
import uuid
import zoneinfo
from pathlib import Path

import cbor2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from chronetix.protocol.content import cbor, json
from chronetix.protocol.content.natural import MAX_DEPTH, Unfit

UTC = dt.UTC
NOON = dt.datetime(2026, 3, 4, 12, 0, 0, 250_000, UTC)


@dataclasses.dataclass
class Point:
    x: object
    y: int = 0


class Named(msgspec.Struct, rename="upper", tag="named"):
    name: str


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


SAME_IN_BOTH = [
    (np.uint8(245), 245),
    (np.mean(np.arange(4)), 1.5),
    (np.float32(0.5), 0.5),
    (np.float16(0.5), 0.5),
    (np.bool_(True), True),
    (np.str_("text"), "text"),
    ({"mean": np.float64(2.5), "n": np.int64(-3)}, {"mean": 2.5, "n": -3}),
    (Point(np.int8(1)), {"x": 1, "y": 0}),
    ([Point(Point(None))], [{"x": {"x": None, "y": 0}, "y": 0}]),
    (Named("n"), {"type": "named", "NAME": "n"}),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    ({Colour.RED: Level.HIGH}, {"red": 3}),
    (collections.OrderedDict(a=1), {"a": 1}),
    (types.MappingProxyType({"a": [1]}), {"a": [1]}),
    (collections.namedtuple("Pair", "a b")(1, 2), [1, 2]),
    (range(3), [0, 1, 2]),
    (collections.deque([1, 2]), [1, 2]),
    ({"p": Path("/tmp")}, {"p": "/tmp"}),
    ((1, (2,)), [1, [2]]),
    ({"a": 1}.values(), [1]),
    (1 << 70, 1 << 70),
    (-(1 << 70), -(1 << 70)),
    (dt.time(1, 2), "01:02:00"),
    (dt.timedelta(days=1), "P1D"),
]


@pytest.mark.parametrize(("value", "becomes"), SAME_IN_BOTH, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("kind", [json, cbor], ids=["json", "cbor"])
def test_a_value_becomes_what_its_author_means(kind, value, becomes):
    read = kind.loads(kind.dumps(value))
    assert read == becomes or (read, becomes) == ({1}, [1])
    assert type(read) in (type(becomes), set)


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (NOON, "2026-03-04T12:00:00.250000Z"),
        (NOON.astimezone(dt.timezone(dt.timedelta(hours=-2, minutes=30))), "2026-03-04T10:30:00.250000-01:30"),
        (np.ma.array([1, 2], mask=[False, True]), [1, None]),
        (NOON.date(), "2026-03-04"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.50"), "1.50"),
        (fractions.Fraction(1, 3), "1/3"),
        (ipaddress.ip_address("::1"), "::1"),
        ({1: "a", np.int8(2): "b"}, {"1": "a", "2": "b"}),
        ({1}, [1]),
        (np.arange(6, dtype=">i2").reshape(2, 3)[:, ::2], [[0, 2], [3, 5]]),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([True, False]), [True, False]),
        (np.float32([[0.5]]), [[0.5]]),
        (array.array("d", [1.5]), [1.5]),
        (memoryview(np.array([[1, 2]], np.uint16)), [[1, 2]]),
        (np.zeros((2, 0)), [[], []]),
    ],
)
def test_json_has_text_and_lists_for_what_it_has_no_form_for(value, becomes):
    assert json.loads(json.dumps(value)) == becomes
    assert json.loads(json.dumps({"in": [value]})) == {"in": [becomes]}


@pytest.mark.parametrize(
    "value",
    [
        NOON,
        NOON.astimezone(dt.timezone(dt.timedelta(hours=2))),
        NOON.date(),
        uuid.UUID(int=7),
        decimal.Decimal("-1.50"),
        fractions.Fraction(1, 3),
        ipaddress.ip_network("10.0.0.0/8"),
        {1, 2},
        {("a", 1), ("b", 2)},
        {1: "number", "1": "text", b"1": "bytes", (1, 2): "pair", None: 0, 1.5: 1},
        {uuid.UUID(int=1): NOON},
        b"\x00\xff",
        [b"inside"],
        1 + 2j,
        math.inf,
        cbor2.CBORTag(4711, 1),
        cbor2.CBORTag(4711, [1, [{"a": [2]}], {3}]),
        [cbor2.CBORTag(4711, {"a": cbor2.CBORTag(4712, [1])})],
        {cbor2.CBORTag(4711, (1, 2)): [3]},
    ],
    ids=lambda value: type(value).__name__,  # the order of a set is another one in each process
)
def test_cbor_gives_back_what_it_was_given(value):
    read = cbor.loads(cbor.dumps(value))
    assert read == value
    assert type(read) is type(value)


def test_keys_that_look_alike_stay_apart_on_cbor_and_are_refused_on_json():
    value = {1: "number", "1": "text"}
    assert cbor.loads(cbor.dumps(value)) == value
    with pytest.raises(Unfit, match="two keys of the map would be the same, '1'"):
        json.dumps(value)


@pytest.mark.parametrize("dtype", ["?", "i1", ">i2", "<i4", ">i8", "u1", "<u2", ">u4", "u8", "<f2", ">f4", "f8"])
@pytest.mark.parametrize("view", [lambda a: a, lambda a: a[:, ::2], lambda a: a.T, lambda a: a[1], lambda a: a[1:1]])
def test_an_array_is_a_typed_array_in_cbor_whatever_its_layout(dtype, view):
    value = view((np.arange(24) % 2 if dtype == "?" else np.arange(24)).astype(dtype).reshape(4, 6))
    read = cbor.loads(cbor.dumps({"a": value}))["a"]
    assert read.dtype == value.dtype
    assert read.shape == value.shape
    assert np.array_equal(read, value)


def test_a_typed_array_is_read_as_lists_where_there_is_no_numpy():
    data = cbor.dumps([np.float16([[1, 2], [3, 4]]), np.array([True]), array.array("h", [-1])])
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from chronetix.protocol.content import cbor, json\n"
        "import array\n"
        f"print(cbor.loads({data!r}), json.dumps(array.array('d', [1])), cbor.loads(cbor.dumps(array.array('B', [7]))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[[[1.0, 2.0], [3.0, 4.0]], [True], [-1]] b'[1.0]' b'\\x07'\n", done.stderr


class NoOffset(dt.tzinfo):
    """A zone that does not know its offset: a datetime with it is naive, as Python has it."""

    def utcoffset(self, _: object) -> None: ...

    def dst(self, _: object) -> None: ...

    def tzname(self, _: object) -> str:
        return "none"


REFUSED = [
    (object(), "a builtins.object has no form in it"),
    ({"rows": [1, {"x": object()}]}, r"at \.rows\[1\]\.x: a builtins.object"),
    (np.datetime64("2026-03-04"), "send str\\(value\\) or a datetime"),
    (np.array([object()]), "an array of"),
    (np.array(["2026"], "M8[D]"), "an array of datetime64"),
    (np.zeros(1, "i4,f8")[0], "send its fields"),
    ("\ud800", "surrogates not allowed|UTF-8 cannot hold"),
    (lambda: 1, "function has no form"),
    (NOON.replace(tzinfo=None), r"without a time zone: say which one, datetime.now\(timezone.utc\)"),
    (NOON.replace(tzinfo=NoOffset()), r"without a time zone: say which one, datetime.now\(timezone.utc\)"),
    ({"at": [NOON.replace(tzinfo=NoOffset())]}, r"at \.at\[0\]: a time without a time zone"),
    (type("Stamp", (dt.datetime,), {})(2026, 3, 4, tzinfo=NoOffset()), "without a time zone"),
    (dt.time(1, 2, tzinfo=NoOffset()), "a time of day in a zone whose offset depends on the date: send a datetime"),
    (dt.time(1, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")), "whose offset depends on the date"),
    ([NOON.astimezone(dt.timezone(dt.timedelta(seconds=30)))], r"at \[0\]: a time 0:00:30 off UTC.*astimezone"),
    (NOON.astimezone(dt.timezone(-dt.timedelta(hours=1, microseconds=1))), "off UTC, and RFC 3339 has hours"),
    (dt.time(1, 2, tzinfo=dt.timezone(dt.timedelta(seconds=1))), "off UTC"),
    (type("Stamp", (dt.datetime,), {"nanosecond": 7})(2026, 3, 4, tzinfo=UTC), "with nanoseconds"),
    (decimal.Decimal("NaN"), "a Decimal that is NaN has no form"),
    ({"a": decimal.Decimal("-Infinity")}, r"at \.a: a Decimal that is -Infinity"),
    (decimal.Decimal("sNaN"), "a Decimal that is sNaN"),
]


@pytest.mark.parametrize(("value", "says"), REFUSED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("kind", [json, cbor], ids=["json", "cbor"])
def test_what_has_no_form_is_refused_with_its_place_and_a_cure(kind, value, says):
    with pytest.raises((TypeError, ValueError), match=says):
        kind.dumps(value)


def test_a_map_key_without_a_time_zone_is_refused_too():
    with pytest.raises(Unfit, match="a time without a time zone"):
        cbor.dumps({NOON.replace(tzinfo=NoOffset()): 1})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, "no NaN and no infinities: send None"),
        ({"a": [-math.inf]}, r"at \.a\[0\]: JSON has no NaN"),
        (np.float64("nan"), "no NaN"),
        (np.array([1.0, math.nan]), "no NaN"),
        ({"data": b"x"}, r"at \.data: JSON has no bytes: give the route content_type application/cbor"),
        (bytearray(b"x"), "no bytes"),
        (np.bytes_(b"x"), "no bytes"),
        (1j, "complex has no form"),
        ({None: 1}, "a map key is a NoneType, and JSON has text"),
        ({True: 1}, "a map key is a bool"),
    ],
)
def test_json_changes_nothing_silently(value, says):
    with pytest.raises(Unfit, match=says):
        json.dumps(value)


def nested(depth, kind=list):
    value = 0
    for _ in range(depth):
        value = [value] if kind is list else {"d": value} if kind is dict else Point(value)
    return value


@pytest.mark.parametrize("kind", [list, dict, Point])
@pytest.mark.parametrize("form", [json, cbor], ids=["json", "cbor"])
def test_nesting_is_bounded_where_it_is_sent(form, kind):
    form.loads(form.dumps(nested(MAX_DEPTH, kind)))
    with pytest.raises(Unfit, match=f"more than {MAX_DEPTH} containers are inside each other"):
        form.dumps(nested(MAX_DEPTH + 1, kind))
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(Unfit, match="does one contain itself"):
        form.dumps(circle)


def test_a_frame_may_have_more_items_than_a_message_of_the_control_plane():
    many = [0] * (1 << 20) + [1]
    assert cbor.loads(cbor.dumps(many)) == many
    assert json.loads(json.dumps(many)) == many


numbers = st.integers(-(1 << 200), 1 << 200) | st.floats(allow_nan=False)
times = st.datetimes(timezones=st.timezones()) | st.dates()
leaves = (
    st.none()
    | st.booleans()
    | numbers
    | st.text()
    | st.binary()
    | st.binary().map(memoryview)
    | times
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.decimals()
    | st.fractions()
    | st.ip_addresses()
    | st.complex_numbers()
    | st.floats()
    | arrays.from_dtype(np.dtype("f4"))
    | arrays.from_dtype(np.dtype("u8"))
    | arrays.arrays(arrays.array_dtypes() | arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, max_side=3))
    | st.just(object())
    | st.characters(categories=["Cs"])
)
keys = st.text() | st.integers() | st.booleans() | st.none() | st.binary() | st.uuids() | st.dates()
keys = keys | st.floats(allow_nan=False)
keys = keys | st.tuples(keys, keys) | st.frozensets(st.integers())
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(keys, max_size=3)
        | st.builds(Point, inner)
    ),
    max_leaves=12,
)


@given(anything)
@pytest.mark.parametrize("kind", [json, cbor], ids=["json", "cbor"])
def test_what_the_sender_accepts_the_receiver_reads(kind, value):
    try:
        data = kind.dumps(value)
    except (TypeError, ValueError, UnicodeEncodeError):
        return
    kind.loads(data)


def trees(leaf, key):
    """Lists and maps of ``leaf``."""
    several = {"max_size": 4}
    return st.recursive(leaf, lambda inner: st.lists(inner, **several) | st.dictionaries(key, inner, **several))


@given(trees(st.none() | numbers | st.text() | st.binary(), keys))
def test_plain_values_come_back_over_cbor(value):
    assert cbor.loads(cbor.dumps(value)) == value


finite = st.integers(-(1 << 200), 1 << 200) | st.floats(allow_nan=False, allow_infinity=False)


@given(trees(st.none() | finite | st.text(), st.text()))
def test_plain_values_come_back_over_json(value):
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("hex", "value"),
    [
        ("bf01020304ff", {1: 2, 3: 4}),
        ("9f01820203ff", [1, [2, 3]]),
        ("7f61616162ff", "ab"),
        ("5f41014102ff", b"\x01\x02"),
        ("c074323032362d30332d30345431323a30303a30305a", dt.datetime(2026, 3, 4, 12, tzinfo=UTC)),
        ("c11a69a820c0", dt.datetime(2026, 3, 4, 12, 8, 32, tzinfo=UTC)),
        ("c249010000000000000000", 1 << 64),
        ("c349010000000000000000", -(1 << 64) - 1),
        ("c48221196ab3", decimal.Decimal("273.15")),
        ("d82550" + "00" * 15 + "01", uuid.UUID(int=1)),
        ("d9d9f7a10102", {1: 2}),
        ("d90102820102", {1, 2}),
        ("a201613161316131", {1: "1", "1": "1"}),
    ],
)
def test_what_usual_encoders_write_is_read(hex, value):
    assert cbor.loads(bytes.fromhex(hex)) == value


@pytest.mark.parametrize(
    ("hex", "array"),
    [
        ("d84043010203", np.array([1, 2, 3], "u1")),
        ("d84443010203", np.array([1, 2, 3], "u1")),
        ("d8414400010002", np.array([1, 2], ">u2")),
        ("d8454401000200", np.array([1, 2], "<u2")),
        ("d84842ff01", np.array([-1, 1], "i1")),
        ("d84d44ffff0100", np.array([-1, 1], "<i2")),
        ("d850443c004000", np.array([1, 2], ">f2")),
        ("d85644" + "0000", None),
        ("d82882820203d84046010203040506", np.array([[1, 2, 3], [4, 5, 6]], "u1")),
        ("d9041082820203d84046010402050306", np.array([[1, 2, 3], [4, 5, 6]], "u1")),
        ("d82882820201820102", [[1], [2]]),
        ("d82882820203d8404101", None),
        ("d8288220d8404101", None),
        ("d8288282206101d8404101", None),
        ("d84001", None),
        ("d8454101", None),
    ],
)
def test_typed_arrays_of_other_encoders_are_read_or_refused(hex, array):
    if array is None:
        with pytest.raises((ValueError, cbor2.CBORDecodeError)):
            cbor.loads(bytes.fromhex(hex))
        return
    read = cbor.loads(bytes.fromhex(hex))
    assert np.array_equal(read, array)
    assert isinstance(read, list) or read.dtype == array.dtype


@pytest.mark.parametrize(
    "hex",
    [
        "",
        "0102",
        "d90102",
        "a201020103",
        "a201010102",
        "1f",
        "ff",
        "9f01",
        "c1",
        "61ff",
        "81" * 5000 + "01",
        "d9d9f70102",
    ],
)
def test_what_is_no_document_is_refused(hex):
    with pytest.raises((ValueError, cbor2.CBORDecodeError)):
        cbor.loads(bytes.fromhex(hex))


@given(st.binary())
def test_any_bytes_are_read_or_refused_with_an_exception(data):
    for kind in (json, cbor):
        try:
            kind.loads(data)
        except (ValueError, cbor2.CBORDecodeError):
            continue


@pytest.mark.parametrize("value", [np.ma.array([1, 2], mask=[False, True]), np.ma.array([1.5]), np.ma.masked])
def test_a_masked_array_is_refused_on_cbor_which_would_lose_its_mask(value):
    with pytest.raises(Unfit, match=r"lose its mask: send \.filled"):
        cbor.dumps({"a": value})


@pytest.mark.parametrize(
    "tag", [cbor2.CBORTag(0, "noon"), cbor2.CBORTag(29, 0), cbor2.CBORTag(35, "[a"), cbor2.CBORTag(69, b"odd")]
)
def test_a_tag_that_its_receiver_could_not_read_is_refused(tag):
    for value in (tag, [tag], {"a": {tag: 1}}):
        with pytest.raises(Unfit, match=f"a CBORTag {tag.tag} that cannot be read again"):
            cbor.dumps(value)


def test_what_a_tag_holds_is_checked_like_any_other_value():
    assert cbor.loads(cbor.dumps(cbor2.CBORTag(4711, np.uint8(7)))) == cbor2.CBORTag(4711, 7)
    with pytest.raises(Unfit, match="has no form in it"):
        cbor.dumps(cbor2.CBORTag(4711, object()))
