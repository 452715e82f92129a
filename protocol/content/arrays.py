"""Arrays without numpy: what the buffer protocol tells of anything that has it (numpy's arrays, ``array.array``,
memoryviews, PyTorch's and others' through numpy).
"""

from __future__ import annotations

import re
import struct
import sys
from typing import Any, Final, NamedTuple

from chronetix.protocol.content.natural import Unfit

_KINDS: Final = {**dict.fromkeys("bhilqn", "i"), **dict.fromkeys("BHILQN", "u"), **dict.fromkeys("efd", "f"), "?": "b"}
"""Of a buffer's item format, as numpy calls it: signed, unsigned, float, boolean."""

_CODES: Final = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_CODES.update({"f2": "e", "f4": "f", "f8": "d"})


POINTERS: Final = (
    "its items are pointers (to objects, or of C), which mean nothing elsewhere: choose a dtype (astype), or send what "
    "they point to"
)

_POINTER: Final = re.compile(r"[OPXz&]|Z(?![fdg])")
"""In a buffer's item format: an object, a pointer of C, a function, a text of C; ``Zd`` is a complex number."""

_FIELD_NAME: Final = re.compile(r":[^:]*:")


_LABELLED: Final = ("__arrow_c_stream__", "__arrow_c_array__", "__dataframe__", "iloc", "coords")
"""What tables and columns of pyarrow, pandas, polars and xarray have, and plain arrays have not."""


class Items(NamedTuple):
    """What one item of an array is: ``kind`` as numpy calls it, its bytes, and whether the high byte comes first."""

    kind: str
    size: int
    big: bool


def has_memory(value: Any) -> bool:
    """It exports its memory."""
    try:
        memoryview(value).release()
    except (TypeError, ValueError, BufferError):
        return False
    return True


def has_pointers(code: str) -> bool:
    """Items of the format ``code`` are pointers, or have some in them."""
    return _POINTER.search(_FIELD_NAME.sub(":", code)) is not None


def refuse_masked(value: Any) -> None:
    """Raise Unfit for a masked array, or an item of one, where a mask has no place."""
    kind = type(value)
    if isinstance(getattr(kind, "mask", None), property) and hasattr(kind, "filled"):
        raise Unfit("a masked array would lose its mask: send .filled(…), or data and mask beside each other")


def refuse_labelled(value: Any) -> None:
    """Raise Unfit for a table or a column, of which an array has only the numbers."""
    kind = type(value)
    if any(hasattr(kind, name) for name in _LABELLED):
        raise Unfit(
            f"a {kind.__name__} would lose its names, labels or nulls: send numpy.asarray(…) of it, or give the route "
            "content_type application/arrow-ipc and send a table"
        )


def is_array(value: Any) -> bool:
    """It is an array: numpy's, or memory whose items are more than bytes. numpy's scalars are none."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return False
    if numpy is not None and isinstance(value, numpy.ndarray):
        return True
    try:
        with memoryview(value) as view:
            return view.ndim != 1 or view.format not in ("B", "b", "c")
    except (TypeError, ValueError, BufferError):
        return False


def items_of(view: memoryview) -> Items:
    """What the items of ``view`` are. Raises Unfit for anything but booleans, integers and floats of 2 to 8 bytes."""
    code = view.format
    order = code[0] if code[:1] in tuple("@=<>!") else "@"
    kind = _KINDS.get(code.lstrip("@=<>!"))
    if code == "O":
        raise Unfit("an array of objects may hold anything: send .tolist() of it, or choose a dtype (astype)")
    if has_pointers(code):
        raise Unfit(POINTERS)
    if kind is None or view.itemsize > 8:
        raise Unfit(
            f"an array of items {code!r} is none of booleans, integers and floats: convert it (astype), or give the "
            "route content_type application/x-npy"
        )
    big = view.itemsize > 1 and (order in ">!" or (order in "@=" and sys.byteorder == "big"))
    return Items(kind, view.itemsize, big)


def listed(value: Any) -> Any:
    """An array's items in lists as deep as it has dimensions; of none, the item. Raises Unfit."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and (dtype.kind in "biuU" or (dtype.kind == "f" and dtype.itemsize <= 8)):
        return value.tolist()
    try:
        view = memoryview(value)
    except (TypeError, ValueError, BufferError):
        raise Unfit(f"an array of {dtype} has no form in it: convert it (astype), or send its fields") from None
    with view:
        items = items_of(view)
        return nested(unpacked(view.tobytes(), items), view.shape or ())


def unpacked(data: bytes, items: Items) -> list[Any]:
    """The items in ``data``."""
    code = "?" if items.kind == "b" else _CODES[f"{items.kind}{items.size}"]
    order = ">" if items.big else "<"
    return list(struct.unpack(f"{order}{len(data) // items.size}{code}", data))


def nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    """``flat`` in lists of ``shape``, row by row."""
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    size = len(flat) // shape[0] if shape[0] else 0
    return [nested(flat[row * size : (row + 1) * size], shape[1:]) for row in range(shape[0])]
