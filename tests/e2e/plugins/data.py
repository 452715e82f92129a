"""Sends values of all sorts and tells what has come of each: tests/e2e/test_data.py has what is right."""

from __future__ import annotations

import datetime
import io
from typing import Any

import numpy as np

from chronetix import Encoded

OCTETS, JSON, CBOR, NPY = (f"application/{kind}" for kind in ("octet-stream", "json", "cbor", "x-npy"))
PICTURE = np.arange(24, dtype="<u2").reshape(4, 6)
STAMP_NS, META = 1_700_000_000_000_000_001, {"camera": np.int64(3), 1: "one", "at": [1.5, b"\0"]}


def file_of(array: Any) -> bytes:
    """As numpy itself writes it."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


VALUES: dict[str, list[Any]] = {
    JSON: [
        np.mean([1, 2]),
        np.uint8(245),
        PICTURE[::2, 0],
        {"n": np.float32(0.5)},
        b'{"a": 1}',
        float("nan"),
        b"\xff",
        [b"x"],
        {1: 1, "1": 2},
        object(),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        datetime.datetime(2026, 1, 1),
    ],
    CBOR: [
        np.mean([1, 2]),
        np.uint8(245),
        PICTURE[::2, 0],
        {1: "a", "1": "b"},
        b"\x05",
        Encoded(b"\x05"),
        Encoded(b"\x05\x05"),
        [0] * ((1 << 20) + 1),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        datetime.datetime(2026, 1, 1),
        object(),
    ],
    NPY: [
        PICTURE,
        PICTURE.T,
        PICTURE[:, ::2],
        np.float64(1.5),
        {"picture": PICTURE, "camera": 3},
        file_of(PICTURE),
        file_of(PICTURE)[:-1],
        np.array([object()]),
        [1, 2],
    ],
    OCTETS: [b"raw", PICTURE[:, 0], np.array([object()]), "text", {"a": 1}],
}


def shown(value: Any) -> str:
    """Short, and the same wherever it was read."""
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape} {value.tolist()} {'' if value.flags.c_contiguous else 'by columns'}"
    if isinstance(value, memoryview):
        return f"memory {bytes(value)!r}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {shown(item)}" for key, item in sorted(value.items(), key=repr)) + "}"
    return f"list of {len(value)}" if isinstance(value, list) and len(value) > 99 else repr(value)


class Sender:
    """Sends all values that its route's type has, each plainly and with notes; what was refused is its result."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def produce(self, ctx: Any) -> Any:
        values = VALUES[ctx.outputs[0].content_type]
        for number, value in enumerate(values):
            for notes in ({}, {"meta": META, "stamp_ns": STAMP_NS}):
                try:
                    ctx.send(value, **notes)
                except Exception as reason:
                    self.refused.append(f"{number} {reason}")
        for topic in ("", "t" * 2000, 5):
            try:
                ctx.publish(topic, 1)
            except ValueError as reason:
                self.refused.append(str(reason)[:60])
        try:
            ctx.publish("large", "x" * (16 << 20))
        except Exception as reason:
            self.refused.append(str(reason)[:60])
        yield from ()

    def on_stop(self) -> list[str]:
        return self.refused


class AsyncSender:
    """The same, awaited."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    async def produce(self, ctx: Any) -> Any:
        for number, value in enumerate(VALUES[ctx.outputs[0].content_type]):
            for notes in ({}, {"meta": META, "stamp_ns": STAMP_NS}):
                try:
                    await ctx.send(value, **notes)
                except Exception as reason:
                    self.refused.append(f"{number} {reason}")
        for nothing in ():
            yield nothing

    async def on_stop(self) -> list[str]:
        return self.refused


def relay(frame: Any) -> Any:
    """Sends a frame on as it is."""
    return frame


class Receiver:
    """What every frame was, as value and, of arrays, as an array that is kept until the end."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.kept: list[Any] = []

    def on_frame(self, frame: Any, ctx: Any) -> None:
        told = [shown(frame.value()), shown(frame.meta), str(frame.stamp_ns)]
        if frame.content_type == NPY:
            array = frame.numpy()
            whole = np.frombuffer(frame, "u1")
            told += [shown(array), str(array.flags.writeable), str(np.shares_memory(array, whole) or array.size == 0)]
            told.append(str(array.ctypes.data % 64))
            if len(self.kept) < 3:
                self.kept.append((array, array.tobytes()))
        self.seen.append(" | ".join(told))

    def on_stop(self) -> dict[str, Any]:
        return {"seen": self.seen, "kept": all(array.tobytes() == before for array, before in self.kept)}
