"""What all messages are made of: their common base, and types and limits of their fields."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""An integer that is never negative and fits a signed 64-bit: counts, indices, ids, process ids, times in ns."""

Priority = Annotated[int, msgspec.Meta(ge=0, le=7)]
"""0 lowest … 7 highest, 4 normal."""

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
"""How severe a record is."""

LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
"""The least severe first."""

MAX_FRAME = 16 * 1024 * 1024
"""Largest frame in bytes, length prefix not counted: bounds what a peer can make us allocate."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What every message has in common: nothing but its tag."""
