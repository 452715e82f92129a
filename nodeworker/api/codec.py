"""Content types: Python values to bytes and back, for frames and for messages.

Rules: what is sent is looked at where it is sent, so that whoever gets it can read it; failures are
``payload-unencodable`` there and ``payload-undecodable`` here, and name the route. JSON and CBOR carry values, Arrow
tables, ``application/x-npy`` arrays, the formats of ``chronetix.protocol.content``; octet-stream and every type that is
not known carry bytes, anything with a C-contiguous buffer as its memory lies. What is encoded already says so:
:class:`Encoded`, a frame of a route of the same type, or bytes where the type has no bytes of its own (JSON, Arrow,
x-npy). ``application/arrow+ipc`` is ``application/arrow-ipc``. Decoding copies nothing where the format allows it
(octet-stream, Arrow, x-npy).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from chronetix.nodeworker.api.errors import named, said
from chronetix.protocol import cbor
from chronetix.protocol.content import arrays, json, npy, octets
from chronetix.protocol.content import cbor as data_cbor
from chronetix.protocol.content.natural import Unfit, awaited
from chronetix.protocol.content.plain import plain
from chronetix.protocol.errors import error
from chronetix.protocol.messages import MAX_FRAME
from chronetix.shm import Frame

if TYPE_CHECKING:
    from typing_extensions import Buffer

JSON: Final = "application/json"
CBOR: Final = "application/cbor"
ARROW: Final = "application/arrow-ipc"
NPY: Final = "application/x-npy"
OCTETS: Final = "application/octet-stream"

MAX_RESULT: Final = MAX_FRAME - 1024
"""Bytes of a result: the message around it takes some too."""

_ALIASES: Final = {"application/arrow+ipc": ARROW, "": JSON}
_BYTES: Final = (bytes, bytearray, memoryview)


def canonical(content_type: str) -> str:
    """The one spelling of ``content_type``: lower case, no parameters, aliases resolved."""
    plain = content_type.partition(";")[0].strip().lower()
    return _ALIASES.get(plain, plain)


class Encoded:
    """Marks bytes as encoded already: ``ctx.send(chronetix.Encoded(data))`` sends ``data`` (bytes-like) as it is.
    Whether it is of the route's content type is checked when it is sent."""

    __slots__ = ("data",)

    def __init__(self, data: Buffer) -> None:
        self.data = data
        """The bytes."""

    def __repr__(self) -> str:
        return f"<Encoded, {memoryview(self.data).nbytes} bytes>"


class NoArray(Exception):
    """There is no array in a frame; its text says what there is and how to get at it."""


class PreparedValue(Protocol):
    """A value that is written straight into memory of its ``size``."""

    @property
    def size(self) -> int:
        """Bytes."""

    def write(self, target: memoryview, /) -> None:
        """Fill ``target``."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How values of one content type become bytes: ``dump``, and ``check``, which raises for bytes that are not of it
    (None: the type carries any bytes). ``prepare``, if there is one, spares the copy; ``array`` is what
    ``Frame.numpy()`` gives, of a frame of arrays."""

    content_type: str
    dump: Callable[[Any], Buffer]
    load: Callable[[Any], Any]
    check: Callable[[Any], Any] | None = None
    prepare: Callable[[Any], PreparedValue] | None = None
    array: Callable[[Any], Any] | None = None

    def encode(self, value: Any, where: str = "") -> bytes:
        """``value`` as bytes. ``where`` is the route or topic that the error names. Raises ChronetixError."""
        return octets.flat(self.pack(value, where)).tobytes()  # bytes(…) of an array without dimensions would be zeros

    def pack(self, value: Any, where: str = "") -> Buffer:
        """``value`` as something with a C-contiguous buffer: itself if it is encoded already."""
        try:
            ready = self.encoded(value)
            return self.dump(value) if ready is None else ready
        except Exception as reason:
            raise self.unencodable(value, reason, where) from reason

    def ready(self, value: Any, where: str = "") -> PreparedValue:
        """``value`` to be written where there is room for it. Raises ChronetixError."""
        try:
            already = self.encoded(value)
            if already is None and self.prepare is not None:
                return self.prepare(value)
            return _Copied(self.dump(value) if already is None else already)
        except Exception as reason:
            raise self.unencodable(value, reason, where) from reason

    def encoded(self, value: Any) -> Buffer | None:
        """The bytes of ``value`` if it is of this type already, to be sent as they are; None for a value. Raises what
        is wrong with bytes that should be of this type and are not."""
        if type(value) is Frame:
            return self._relayed(value)
        if type(value) is Encoded:
            value = value.data
        elif self.content_type == CBOR or not isinstance(value, _BYTES) or _is_array_view(value):
            return None
        if self.check is not None:
            self.check(value)
        elif not octets.is_memory(value):
            return None
        return value  # type: ignore[no-any-return]

    def decode(self, data: Any, where: str = "") -> Any:
        """The value in ``data`` (anything with a buffer). Raises ChronetixError ``payload-undecodable``."""
        try:
            return self.load(data)
        except Exception as reason:
            raise self._undecodable(reason, where) from reason

    def decode_array(self, data: Any, where: str, dtype: Any = None) -> Any:
        """The array in ``data``. Raises ChronetixError ``payload-undecodable``; ValueError if its type is not
        ``dtype``, TypeError if there is none."""
        assert self.array is not None
        try:
            array = self.array(data)
        except NoArray as reason:
            raise TypeError(f"a frame of route {where} carries {self.content_type}: {reason}") from None
        except Exception as reason:
            raise self._undecodable(reason, where) from reason
        if dtype is not None and array.dtype != dtype:
            raise ValueError(f"the frame has an array of {array.dtype}, not of {dtype}: call numpy() without a dtype")
        return array

    def unencodable(self, value: Any, reason: BaseException, where: str) -> Exception:
        """The error for a value that this content type has no place for."""
        text = awaited(value) or said(reason) or type(reason).__name__
        kind = type(value).__name__
        return error("payload-unencodable", type=kind, content_type=self.content_type, route=where, reason=text)

    def _undecodable(self, reason: Exception, where: str) -> Exception:
        text = named(reason)
        return error("payload-undecodable", route=where, content_type=self.content_type, reason=text)

    def _relayed(self, frame: Frame) -> Buffer | None:
        """A frame that is sent on: as it is where the types are the same, or this one carries bytes; else its value,
        which is encoded anew; of a frame of bytes, these."""
        if frame.content_type == self.content_type or self.check is None:
            return frame
        known = _KNOWN.get(frame.content_type)
        return self.pack(bytes(frame) if known is None or known.check is None else frame.value())


@dataclass(frozen=True, slots=True)
class _Copied:
    """What has its bytes already."""

    data: Any

    @property
    def size(self) -> int:
        return memoryview(self.data).nbytes

    def write(self, target: memoryview) -> None:
        target[:] = octets.flat(self.data)


def _is_array_view(value: bytes | bytearray | memoryview) -> bool:
    """It is the memory of an array, whose items are more than bytes, and so a value like that array."""
    return type(value) is memoryview and arrays.is_array(value)


class Unsendable(Exception):
    """Why a value cannot be sent in a message; its text is one sentence."""


def result(value: Any) -> Any:
    """``value`` as ``protocol.content.plain`` makes it, if a message can carry it as a whole. Raises Unsendable."""
    try:
        made = plain(value)
        size = len(cbor.dumps(made))
    except Exception as reason:
        raise Unsendable(said(reason) or type(reason).__name__) from reason
    if size > MAX_RESULT:
        raise Unsendable(f"it takes {size} bytes, and a message has room for {MAX_RESULT}")
    return made


def _no_array(_data: Any) -> NoReturn:
    raise NoArray(_NO_ARRAY)


_NO_ARRAY: Final = "frame.value() is what was sent, numpy.frombuffer(frame, 'u1') its encoding"


def _load_cbor_array(data: Any) -> Any:
    value, numpy = _load_cbor(data), sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray):
        raise NoArray(f"a {type(value).__name__}, and no array; {_NO_ARRAY}")
    return value


def _check_json(data: Any) -> None:
    try:
        json.loads(data)
    except (ValueError, BufferError) as reason:
        raise Unfit(f"{json.NO_BYTES}; and these are no JSON text: {reason}") from None


def _check_npy(data: Any) -> None:
    try:
        npy.check(data)
    except (ValueError, TypeError) as reason:
        raise Unfit(f"bytes are a NumPy file here, and these are none ({reason}): send an array") from None


def _load_cbor(data: Any) -> Any:
    return data_cbor.loads(bytes(data))


def _load_octets(data: Any) -> memoryview:
    return memoryview(data).toreadonly()


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as reason:
        raise TypeError("pyarrow is not installed: pip install 'chronetix[arrow]'") from reason
    return pyarrow


_ONLY_TABLES: Final = "only a pyarrow.Table, a pyarrow.RecordBatch or an encoded stream can be"


class _Stream:
    """A table or a record batch, to be written as a stream."""

    __slots__ = ("_batches", "_schema", "size")

    def __init__(self, value: Any) -> None:
        pa = _arrow()
        if isinstance(value, pa.RecordBatch):
            self._schema, self._batches = value.schema, [value]
        elif isinstance(value, pa.Table):
            self._schema, self._batches = value.schema, value.to_batches()
        else:
            raise Unfit(_ONLY_TABLES)
        counter = pa.MockOutputStream()
        self._write_to(counter)
        self.size = int(counter.size())

    def write(self, target: memoryview) -> None:
        pa = _arrow()
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(target))
        try:
            self._write_to(sink)
        finally:
            sink.close()

    def _write_to(self, sink: Any) -> None:
        with _arrow().ipc.new_stream(sink, self._schema) as writer:
            for batch in self._batches:
                writer.write_batch(batch)


def _prepare_arrow(value: Any) -> PreparedValue:
    if octets.is_memory(value):  # pyarrow's own buffers too
        _check_arrow(value)
        return _Copied(value)
    return _Stream(value)


def _dump_arrow(value: Any) -> Buffer:
    ready = _prepare_arrow(value)
    target = bytearray(ready.size)
    ready.write(memoryview(target))
    return target


def _check_arrow(data: Any) -> None:
    pa = _arrow()
    try:
        _load_arrow(data)
    except (pa.ArrowException, OSError):
        raise Unfit(f"{_ONLY_TABLES}, and these bytes are no such stream") from None


def _load_arrow(data: Any) -> Any:
    if isinstance(data, Frame):
        return data.arrow()
    pa = _arrow()
    return pa.ipc.open_stream(pa.py_buffer(data)).read_all()


_KNOWN: Final = {
    JSON: Codec(JSON, json.dumps, json.loads, _check_json, array=_no_array),
    CBOR: Codec(CBOR, data_cbor.dumps, _load_cbor, _load_cbor, array=_load_cbor_array),
    ARROW: Codec(ARROW, _dump_arrow, _load_arrow, _check_arrow, _prepare_arrow, _no_array),
    NPY: Codec(NPY, npy.dumps, npy.load, _check_npy, npy.prepare, npy.load_array),
    OCTETS: Codec(OCTETS, octets.dumps, _load_octets),
}


def of(content_type: str) -> Codec:
    """The codec of ``content_type``; of an unknown one a codec that passes bytes."""
    kind = canonical(content_type)
    return _KNOWN.get(kind) or Codec(kind, octets.dumps, _load_octets)


@dataclass(frozen=True, slots=True)
class Reading:
    """What ``Frame.value()``, ``numpy()`` and ``meta`` of ``route`` do; ``array`` is None where a frame's memory is the
    array."""

    content_type: str
    value: Callable[[Frame], Any]
    array: Callable[[Frame, Any], Any] | None


def reading(content_type: str, route: str) -> Reading:
    """Of a route."""
    codec = of(content_type)

    def value(frame: Frame) -> Any:
        return codec.decode(frame, route)

    def array(frame: Frame, dtype: Any = None) -> Any:
        return codec.decode_array(frame, route, dtype)

    return Reading(codec.content_type, value, None if codec.array is None else array)


def pack_meta(meta: Any, where: str) -> bytes:
    """Metadata of a frame, a map. Raises ChronetixError ``payload-unencodable``."""
    if not isinstance(meta, dict):
        reason = Unfit(f"metadata are a dict, not a {type(meta).__name__}")
        raise _METADATA.unencodable(meta, reason, where)
    return _METADATA.encode(meta, where)


def load_meta(data: bytes) -> Any:
    """The metadata that a frame came with. Raises ChronetixError ``payload-undecodable``."""
    return _METADATA.decode(data)


_METADATA: Final = Codec("metadata (CBOR)", data_cbor.dumps, _load_cbor)
