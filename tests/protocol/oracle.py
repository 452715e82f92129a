"""What strict CBOR is, said a second time: cbor2, and the rules that it does not know checked in Python."""

from __future__ import annotations

from io import BytesIO
from typing import Any, NoReturn

import cbor2

from chronetix.protocol.cbor import MAX_DEPTH

SCALARS = frozenset({int, str, bytes, float, bool, type(None)})


class Refused(ValueError):
    """By one of the rules."""


class _NoTags(dict[int, Any]):
    def __missing__(self, tag: int) -> NoReturn:
        raise Refused(f"tag {tag}")


def loads(data: bytes) -> Any:
    """As chronetix.protocol.cbor.loads, for documents below its limit of items. Raises Refused."""
    stream = BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            stream,
            semantic_decoders=_NoTags(),
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        ).decode()
    except cbor2.CBORError as reason:
        raise Refused(str(reason)) from None
    if stream.tell() != len(data):
        raise Refused("bytes after the end")
    _check(value)
    return value


def _check(value: Any) -> None:
    if type(value) is dict:
        if any(type(key) is not str for key in value):
            raise Refused("a key that is not text")
        value = list(value.values())
    if type(value) is list:
        for item in value:
            _check(item)
    elif type(value) not in SCALARS:
        raise Refused(repr(value))
