"""``application/x-npy``: one array, as a NumPy file of version 1, 2 or 3, and perhaps a few plain fields beside it.

Layout (PROTOCOL.md says it for other languages): the file's header, padded so that the data begins at a multiple of 64;
the data; then either nothing, or ``[name, {…}]`` in CBOR: the value is a map, the array is its entry ``name`` and the
rest its other entries.

Rules: a header is believed when it is one of these and its data is there as a whole; object types are refused in both
directions, nothing is ever unpickled. Only arrays themselves need numpy; what a header says is read without it. Headers
are remembered, for a stream has the same one again and again.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from chronetix.protocol.content import arrays, cbor
from chronetix.protocol.content.natural import Unfit, is_scalar

MAGIC: Final = b"\x93NUMPY"
LINE: Final = 64
"""Data begins at a multiple of it, and so does every frame in shared memory."""

MAX_HEADER: Final = 10_000
"""Bytes of a header that are read; numpy's own limit. That of an ordinary array has 118."""

MAX_DIMENSIONS: Final = 64
REMEMBERED: Final = 256
"""Headers."""

_PLAIN: Final = re.compile(r"[<>|=]?(?:(b)(1)|([iu])([1248])|(f)(2|4|8|12|16)|(c)(8|16|24|32)|(S|U|V)([1-9][0-9]{0,8})"
                           r"|([mM])(8)(?:\[[0-9]{0,6}[a-zA-Z]{1,2}(?:/[0-9]{1,6})?\])?)", re.ASCII)  # fmt: skip

NO_NUMPY: Final = "numpy is not installed: pip install 'chronetix[numpy]'"


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its array: ``descr`` is the item type as numpy writes it, ``start`` where the data begins."""

    descr: Any
    shape: tuple[int, ...]
    by_columns: bool
    start: int

    @property
    def items(self) -> int:
        """How many."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Known:
    """A header, and what numpy makes of it."""

    dtype: Any
    header: Header
    end: int


_headers: dict[bytes, _Known] = {}
_written: dict[tuple[Any, tuple[int, ...], bool], bytes] = {}


def read_header(data: memoryview) -> Header:
    """The header at the beginning of ``data``, whose items may be anything but objects. Raises ValueError."""
    return _parsed(_header_bytes(data))


def load(data: Any) -> Any:
    """The value in ``data``, anything with a buffer: an array in place, read-only, which keeps that buffer alive; or a
    map with such an array in it. Raises ValueError, TypeError without numpy."""
    with memoryview(data) as view:
        known = _known(view)
        tail = view[known.end :].tobytes()
    array = _in_place(data, known)
    if not tail:
        return array
    name, fields = _fields_of(tail)
    return {**fields, name: array}


def load_array(data: Any) -> Any:
    """The array in ``data`` alone."""
    with memoryview(data) as view:
        known = _known(view)
    return _in_place(data, known)


def check(data: Any) -> None:
    """Raise ValueError unless ``data`` can be loaded."""
    load(data)


def prepare(value: Any) -> Prepared:
    """What there is to write for ``value``: an array, or a map with one array among its entries. Raises Unfit."""
    name, fields = None, None
    if isinstance(value, Mapping):
        name, value, fields = _apart(value)
    array = _array(value)
    by_columns = array.flags.f_contiguous and not array.flags.c_contiguous
    key = (array.dtype, array.shape, by_columns)
    head = _written.get(key)
    if head is None:
        head = _write_header(*key)
        _remember(_written, key, head)
    tail = b"" if name is None else cbor.dumps([name, fields])
    return Prepared(array, head, by_columns, tail)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A value on its way into a buffer of ``size`` bytes."""

    array: Any
    head: bytes
    by_columns: bool
    tail: bytes

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.head) + int(self.array.nbytes) + len(self.tail)

    def write(self, target: memoryview) -> None:
        """Fill ``target``."""
        numpy, array, start = _numpy(), self.array, len(self.head)
        target[:start] = self.head
        if array.nbytes:
            order = "F" if self.by_columns else "C"
            numpy.copyto(numpy.ndarray(array.shape, array.dtype, target, start, None, order), array)
        if self.tail:
            target[start + array.nbytes :] = self.tail


def dumps(value: Any) -> bytearray:
    """``value`` as bytes. Raises Unfit."""
    ready = prepare(value)
    made = bytearray(ready.size)
    ready.write(memoryview(made))
    return made


# -- reading --------------------------------------------------------------------------------------------------


def _header_bytes(data: memoryview) -> bytes:
    head = data[:12].tobytes()
    if head[:6] != MAGIC:
        raise ValueError("this does not begin as a NumPy file does")
    if len(head) < 12 or head[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise ValueError("this NumPy file is cut off, or of a version other than 1.0, 2.0 and 3.0")
    prefix = 10 if head[6] == 1 else 12
    length = int.from_bytes(head[8:prefix], "little")
    if length > MAX_HEADER:
        raise ValueError(f"the header has {length} bytes; at most {MAX_HEADER} are read")
    whole = data[: prefix + length].tobytes()
    if len(whole) < prefix + length:
        raise ValueError("the header is cut off")
    return whole


def _parsed(whole: bytes) -> Header:
    try:
        text = whole[10 if whole[6] == 1 else 12 :].decode("utf-8" if whole[6] == 3 else "latin-1")
        told = ast.literal_eval(text.strip(" \n"))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as reason:
        raise ValueError(f"the header is no Python dict: {type(reason).__name__}") from None
    if type(told) is not dict or set(told) != {"descr", "fortran_order", "shape"}:
        raise ValueError("the header does not have exactly descr, fortran_order and shape")
    shape, by_columns = told["shape"], told["fortran_order"]
    if type(by_columns) is not bool:
        raise ValueError("fortran_order is neither True nor False")
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"the shape is no tuple of at most {MAX_DIMENSIONS} sizes")
    if not _possible(told["descr"]):
        raise ValueError("the item type is none that travels: of numbers, booleans, text, times, or records of these")
    return Header(told["descr"], shape, by_columns, len(whole))


def _possible(descr: Any, left: int = 8) -> bool:
    """It names an item type without objects: ``'<f4'``, or fields ``[(name, type, shape?), …]``."""
    if type(descr) is str:
        return _PLAIN.fullmatch(descr) is not None
    if type(descr) is not list or not descr or left == 0:
        return False
    return all(_possible_field(field, left) for field in descr)


def _possible_field(field: Any, left: int) -> bool:
    if type(field) is not tuple or len(field) not in (2, 3):
        return False
    name, shape = field[0], field[2] if len(field) == 3 else ()
    titled = type(name) is tuple and len(name) == 2 and all(type(each) is str for each in name)
    sizes = type(shape) is tuple and len(shape) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
    return (type(name) is str or titled) and sizes and _possible(field[1], left - 1)


def _known(view: memoryview) -> _Known:
    """Of a whole file in ``view``. Raises ValueError for one that is not whole."""
    whole = _header_bytes(view)
    known = _headers.get(whole)
    if known is None:
        header = _parsed(whole)
        dtype = _dtype_of(header.descr)
        known = _Known(dtype, header, header.start + header.items * dtype.itemsize)
        _remember(_headers, whole, known)
    if known.end > view.nbytes:
        of = f"shape {known.header.shape} of {known.dtype}"
        raise ValueError(f"an array of {of} ends at byte {known.end}, but there are {view.nbytes}")
    return known


def _dtype_of(descr: Any) -> Any:
    numpy = _numpy()
    try:
        dtype = numpy.lib.format.descr_to_dtype(descr)
    except (ValueError, TypeError, SyntaxError, KeyError, OverflowError) as reason:
        raise ValueError(f"numpy knows no item type {str(descr)[:60]}: {reason}") from None
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"items of {dtype} do not travel")
    return dtype


def _in_place(data: Any, known: _Known) -> Any:
    numpy, header, dtype = _numpy(), known.header, known.dtype
    order = "F" if header.by_columns else "C"
    try:
        if header.items:
            array = numpy.frombuffer(data, dtype, header.items, header.start).reshape(header.shape, order=order)
        else:
            array = numpy.empty(header.shape, dtype, order)
    except (OverflowError, MemoryError) as reason:
        raise ValueError(f"numpy makes no array of shape {header.shape}: {reason}") from None
    array.flags.writeable = False
    return array


def _fields_of(tail: bytes) -> tuple[str, dict[str, Any]]:
    """What stands behind the data. Raises ValueError, or what cbor.loads raises."""
    told = cbor.loads(tail)
    if type(told) is list and len(told) == 2:
        name, fields = told
        if type(name) is str and type(fields) is dict and name not in fields:
            return name, fields
    raise ValueError("behind the data there is something else than [name, {…}]")


# -- writing --------------------------------------------------------------------------------------------------


def _apart(value: Mapping[Any, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Of a map its one array, under what name, and the rest."""
    names = [key for key, item in value.items() if _is_array(item)]
    if len(names) != 1:
        has = f"{len(names)} arrays ({', '.join(map(str, names))})" if names else "no array"
        raise Unfit(
            f"the map has {has}; with one array beside plain values it can be sent, several on routes of their own"
        )
    name = names[0]
    fields = {key: item for key, item in value.items() if key != name}
    if any(not isinstance(key, str) for key in value):
        raise Unfit("a map with an array has text for keys")
    return str(name), value[name], {str(key): item for key, item in fields.items()}


def _is_array(value: Any) -> bool:
    if is_scalar(value) or isinstance(value, bytes | bytearray | str):
        return False
    kind = type(value)
    return hasattr(kind, "__array__") or hasattr(value, "__array_interface__") or arrays.is_array(value)


def _array(value: Any) -> Any:
    """``value`` as an array that travels. Raises Unfit."""
    numpy = _numpy()
    arrays.refuse_masked(value)
    if not isinstance(value, numpy.ndarray):
        arrays.refuse_labelled(value)
        if not (_is_array(value) or is_scalar(value)):
            raise Unfit("it is no array: send numpy.asarray(…) of it, with a dtype that you have chosen")
        try:
            value = numpy.asarray(value)
        except (TypeError, ValueError) as reason:
            has_pointers = arrays.has_memory(value) and arrays.has_pointers(memoryview(value).format)
            raise Unfit(arrays.POINTERS if has_pointers else f"numpy makes no array of it: {reason}") from None
    dtype = value.dtype
    if dtype.hasobject:
        raise Unfit("an array of objects does not travel, for it would have to be pickled: choose a dtype (astype)")
    if dtype.itemsize == 0 or not _possible(numpy.lib.format.dtype_to_descr(dtype)):
        raise Unfit(f"an array of {dtype} does not travel: choose another dtype (astype)")
    return value


def _write_header(dtype: Any, shape: tuple[int, ...], by_columns: bool) -> bytes:
    descr = _numpy().lib.format.dtype_to_descr(dtype)
    sizes = "".join(f"{int(n)}, " for n in shape).rstrip() if len(shape) == 1 else ", ".join(str(int(n)) for n in shape)
    text = f"{{'descr': {descr!r}, 'fortran_order': {by_columns}, 'shape': ({sizes}), }}"
    small = text.isascii() or _latin(text)
    encoded = text.encode("latin-1" if small else "utf-8")
    prefix = 10 if small and len(encoded) + 10 + LINE < 1 << 16 else 12
    length = -(-(prefix + len(encoded) + 1) // LINE) * LINE - prefix
    if length > MAX_HEADER:
        raise Unfit(f"the description of its dtype takes {length} bytes; at most {MAX_HEADER} are read")
    version = bytes([1 if prefix == 10 else 2 if small else 3, 0])
    return MAGIC + version + length.to_bytes(prefix - 8, "little") + encoded.ljust(length - 1) + b"\n"


def _latin(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= REMEMBERED:
        known.clear()
    known[key] = value


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as reason:
        raise TypeError(NO_NUMPY) from reason
    return numpy
