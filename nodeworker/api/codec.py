"""Content types: Python values to bytes and back.

Rules: bytes-like data is taken as encoded already, whatever the content type; ``application/arrow+ipc`` is
``application/arrow-ipc``; a content type that is not known carries bytes only. Decoding copies nothing where the format
allows it (octet-stream, Arrow). Failures are ``payload-undecodable`` and ``payload-unencodable`` and name the route.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from chronetix.nodeworker.api.errors import said
from chronetix.protocol import cbor
from chronetix.protocol.errors import error
from chronetix.protocol.messages import MAX_FRAME
from chronetix.shm import Frame

if TYPE_CHECKING:
    from typing_extensions import Buffer

JSON: Final = "application/json"
CBOR: Final = "application/cbor"
ARROW: Final = "application/arrow-ipc"
OCTETS: Final = "application/octet-stream"

MAX_RESULT: Final = MAX_FRAME - 1024
"""Bytes of a result: the message around it takes some too."""

_ALIASES: Final = {"application/arrow+ipc": ARROW, "": JSON}
_BYTES: Final = frozenset({bytes, bytearray, memoryview, Frame})
_VALUES: Final = frozenset({dict, list, tuple, str, int, float, bool, type(None), set, frozenset})


def canonical(content_type: str) -> str:
    """The one spelling of ``content_type``: lower case, no parameters, aliases resolved."""
    plain = content_type.partition(";")[0].strip().lower()
    return _ALIASES.get(plain, plain)


def is_bytes(data: object) -> bool:
    """Whether ``data`` passes as it is: anything with a C-contiguous buffer (bytes, Frame, numpy array …)."""
    kind = type(data)
    if kind in _BYTES:
        return True
    if kind in _VALUES:
        return False
    try:
        view = memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        return False
    return view.c_contiguous


@dataclass(frozen=True, slots=True)
class Codec:
    """How values of one content type become bytes. ``place``, if there is one, writes a value into a writable buffer of
    the size that ``measure`` gives, sparing the copy."""

    content_type: str
    dump: Callable[[Any], Buffer]
    load: Callable[[Any], Any]
    measure: Callable[[Any], int] | None = None
    place: Callable[[Any, memoryview], None] | None = None

    def encode(self, value: Any, where: str = "") -> bytes:
        """``value`` as bytes. ``where`` is the route or topic that the error names. Raises ChronetixError."""
        return bytes(self.pack(value, where))

    def pack(self, value: Any, where: str = "") -> Buffer:
        """``value`` as something with a buffer: itself if it has one."""
        if is_bytes(value):
            return value  # type: ignore[no-any-return]
        try:
            return self.dump(value)
        except Exception as reason:
            raise self.unencodable(value, reason, where) from reason

    def decode(self, data: Any, where: str = "") -> Any:
        """The value in ``data`` (anything with a buffer). Raises ChronetixError ``payload-undecodable``."""
        try:
            return self.load(data)
        except Exception as reason:
            text = f"{type(reason).__name__}: {reason}"
            raise error("payload-undecodable", route=where, content_type=self.content_type, reason=text) from reason

    def unencodable(self, value: Any, reason: BaseException, where: str) -> Exception:
        """The error for a value that this content type has no place for."""
        text = str(reason) or type(reason).__name__
        kind = type(value).__name__
        return error("payload-unencodable", type=kind, content_type=self.content_type, route=where, reason=text)


def plain(value: Any) -> Any:
    """``value`` reduced to null, booleans, numbers, text, bytes, lists and maps: what CBOR messages carry.

    numpy scalars and arrays, dataclasses, structs, sets, paths and dates are turned into the nearest of those. Raises
    TypeError for what has no such form.
    """
    return msgspec.to_builtins(value, builtin_types=(bytes, bytearray), enc_hook=_foreign, str_keys=True)


class Unsendable(Exception):
    """Why a value cannot be sent in a message; its text is one sentence."""


def result(value: Any) -> Any:
    """``value`` as :func:`plain` makes it, if a message can carry it as a whole. Raises Unsendable."""
    try:
        made = plain(value)
        size = len(cbor.dumps(made))
    except Exception as reason:
        raise Unsendable(said(reason) or type(reason).__name__) from reason
    if size > MAX_RESULT:
        raise Unsendable(f"it takes {size} bytes, and a message has room for {MAX_RESULT}")
    return made


def _foreign(value: Any) -> Any:
    """numpy's scalars and arrays as Python's own; anything else that msgspec does not know is refused."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} has no form in it: convert it first")


_json = msgspec.json.Encoder(enc_hook=_foreign)


def _dump_cbor(value: Any) -> bytes:
    return cbor.dumps(plain(value))


def _load_cbor(data: Any) -> Any:
    return cbor.loads(bytes(data))


def _dump_octets(_value: Any) -> Buffer:
    raise TypeError("only bytes-like values (bytes, memoryview, numpy array, Frame) can be")


def _load_octets(data: Any) -> memoryview:
    return memoryview(data).toreadonly()


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as reason:
        raise TypeError("pyarrow is not installed: pip install 'chronetix[arrow]'") from reason
    return pyarrow


def _arrow_batches(value: Any) -> tuple[Any, list[Any]]:
    """Schema and record batches of a Table, RecordBatch or RecordBatchReader-like list of batches."""
    pa = _arrow()
    if isinstance(value, pa.RecordBatch):
        return value.schema, [value]
    if isinstance(value, pa.Table):
        return value.schema, value.to_batches()
    raise TypeError("only a pyarrow.Table, a pyarrow.RecordBatch or an encoded stream can be")


def _write_arrow(value: Any, sink: Any) -> None:
    schema, batches = _arrow_batches(value)
    with _arrow().ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _measure_arrow(value: Any) -> int:
    counter = _arrow().MockOutputStream()
    _write_arrow(value, counter)
    return int(counter.size())


def _place_arrow(value: Any, target: memoryview) -> None:
    pa = _arrow()
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(target))
    try:
        _write_arrow(value, sink)
    finally:
        sink.close()


def _dump_arrow(value: Any) -> bytearray:
    target = bytearray(_measure_arrow(value))
    _place_arrow(value, memoryview(target))
    return target


def _load_arrow(data: Any) -> Any:
    if isinstance(data, Frame):
        return data.arrow()
    pa = _arrow()
    return pa.ipc.open_stream(pa.py_buffer(data)).read_all()


_KNOWN: Final = {
    JSON: Codec(JSON, _json.encode, msgspec.json.decode),
    CBOR: Codec(CBOR, _dump_cbor, _load_cbor),
    ARROW: Codec(ARROW, _dump_arrow, _load_arrow, _measure_arrow, _place_arrow),
    OCTETS: Codec(OCTETS, _dump_octets, _load_octets),
}


def of(content_type: str) -> Codec:
    """The codec of ``content_type``; of an unknown one a codec that passes bytes."""
    kind = canonical(content_type)
    return _KNOWN.get(kind) or Codec(kind, _dump_octets, _load_octets)


def decoder(content_type: str, route: str) -> Callable[[Frame], Any]:
    """What ``Frame.value()`` of ``route`` does."""
    codec = of(content_type)

    def value(frame: Frame) -> Any:
        return codec.decode(frame, route)

    return value
