"""The common base of all messages, and the types and limits of their fields."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""An integer that is never negative and fits a signed 64-bit: counts, indices, ids, process ids, times in ns."""

Priority = Annotated[int, msgspec.Meta(ge=0, le=7)]
"""0 lowest … 7 highest, 4 normal."""

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
"""The severity of a log record."""

LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
"""All levels, the least severe first."""

MAX_FRAME = 16 * 1024 * 1024
"""Largest frame in bytes, length prefix not counted: bounds the memory that a peer can make this process allocate."""


class WireMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """The base of every message; messages have only their tag ``type`` in common."""
