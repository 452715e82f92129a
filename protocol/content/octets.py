"""``application/octet-stream`` and every type that is not known: memory as it lies, row by row, with nothing about it.

Rules: whatever has memory passes that means something elsewhere; pointers, masked arrays, labelled columns and text do
not, for their memory is not all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chronetix.protocol.content.arrays import POINTERS, has_pointers, refuse_labelled, refuse_masked
from chronetix.protocol.content.natural import Unfit

if TYPE_CHECKING:
    from typing_extensions import Buffer


def dumps(value: Any) -> Buffer:
    """What has memory as it is, if that lies row by row; else an array's items in that order. Raises Unfit."""
    if isinstance(value, str):  # numpy's too, which has memory
        raise Unfit("text is no bytes: send text.encode(), or give the route content_type application/json")
    refuse_masked(value)
    if is_memory(value):
        return value  # type: ignore[no-any-return]
    dtype = getattr(value, "dtype", None)
    if dtype is not None and not dtype.hasobject and hasattr(value, "tobytes"):
        return bytes(value.tobytes())
    try:
        view = memoryview(value)
    except (TypeError, ValueError, BufferError):
        refuse_labelled(value)
        cure = (
            "send numpy.asarray(…) of it"
            if hasattr(type(value), "__array__")
            else "values need content_type application/json or application/cbor"
        )
        raise Unfit(f"only bytes-like values (bytes, memoryview, numpy array, Frame) can be; {cure}") from None
    with view:
        if has_pointers(view.format):
            raise Unfit(POINTERS)
        return view.tobytes()


def is_memory(data: object) -> bool:
    """Whether ``data`` passes as its memory lies: anything with a C-contiguous buffer of items that mean something to
    others (bytes, Frame, numpy array …), not pointers."""
    try:
        with memoryview(data) as view:  # type: ignore[arg-type]
            return view.c_contiguous and not has_pointers(view.format)
    except (TypeError, ValueError, BufferError):
        return False


def flat(data: Buffer) -> memoryview:
    """The bytes in the memory of ``data``, row by row; without a copy where they lie so."""
    view = memoryview(data)
    return view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())
