"""What the frames hold that the kit sends, and that a source has to send."""

from __future__ import annotations

from typing import Final

from chronetixctl.conformance.forms import Failed

BYTES_SHOWN: Final = 16


def known(number: int, size: int) -> bytes:
    """Return the bytes of a frame by its number, from 1: the number as u64 little-endian, again and again."""
    return (number.to_bytes(8, "little") * (size // 8 + 1))[:size]


def same(expected: bytes, came: bytes, which: str) -> None:
    """Raises Failed if two payloads differ."""
    if expected == came:
        return
    at = next((at for at, (one, other) in enumerate(zip(expected, came, strict=False)) if one != other), -1)
    where = f", which differ at {at}: {came[at : at + BYTES_SHOWN].hex()}" if at >= 0 else ""
    raise Failed(f"{which}: the {len(expected)} bytes that were sent", f"{len(came)} bytes{where}")
