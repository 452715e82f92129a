"""The byte vectors hold for this implementation, as they must for every other."""

from __future__ import annotations

import json
import math
from importlib import resources
from typing import Any

import msgspec
import pytest

from chronetix.protocol import messages
from chronetix.protocol.descriptors import expected
from chronetix.protocol.errors import CATALOGUE, ProtocolError
from chronetix.protocol.framing import MessageDecoder, encode, message_types

VECTORS: dict[str, Any] = json.loads(resources.files("protocol").joinpath("vectors.json").read_bytes())


def plain(value: Any) -> Any:
    """A message's content as the vectors write it."""
    match value:
        case bytes():
            return {"$bytes": value.hex()}
        case float() if not math.isfinite(value):
            return {"$float": repr(value)}
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case _:
            return value


def decode(union: str, pieces: list[bytes]) -> tuple[list[Any], str | None]:
    """The messages, and the name of the error that ended them."""
    decoder: MessageDecoder[Any] = MessageDecoder(getattr(messages, union))
    got: list[Any] = []
    try:
        for piece in pieces:
            for message in decoder.feed(piece):
                got.append(message)
    except ProtocolError as reason:
        return got, reason.name
    return got, None if decoder.at_boundary else "unfinished"


def as_written(got: list[Any]) -> list[Any]:
    return [plain(msgspec.to_builtins(message, builtin_types=(bytes,))) for message in got]


def cases(kind: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in VECTORS[kind]]


@pytest.mark.parametrize("vector", cases("good") + cases("accepted"))
def test_bytes_decode_to_the_messages(vector: dict[str, Any]) -> None:
    got, error = decode(vector["union"], [bytes.fromhex(vector["hex"])])
    assert error is None
    assert as_written(got) == vector["messages"]
    assert [expected(message) for message in got] == vector["descriptors"]


@pytest.mark.parametrize("vector", cases("good"))
def test_the_messages_encode_to_the_same_bytes(vector: dict[str, Any]) -> None:
    got, _ = decode(vector["union"], [bytes.fromhex(vector["hex"])])
    assert b"".join(map(encode, got)).hex() == vector["hex"]


@pytest.mark.parametrize("vector", cases("refused"))
def test_bytes_are_refused_after_the_messages_before_the_offence(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        got, error = decode(vector["union"], pieces)
        assert as_written(got) == vector["messages"]
        assert error == vector["error"]
    assert vector["error"] in CATALOGUE


def test_every_message_type_has_a_good_vector() -> None:
    shown = {message["type"] for vector in VECTORS["good"] for message in vector["messages"]}
    unions = {vector["union"] for vector in VECTORS["good"]}
    assert shown == {tag for union in unions for tag in message_types(getattr(messages, union))}
