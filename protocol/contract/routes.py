"""Reads one route. Its ``source`` and ``target`` are the endpoints as written; ``endpoints`` finds their nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from chronetix.protocol.contract.reading import Fields
from chronetix.protocol.contract.types import DEFAULT_BUFFER, MAX_BUFFER, PLANES, POLICIES, Route, SchemaDescriptor
from chronetix.protocol.contract.wording import read_content_type, read_version

MAX_USUAL_WATERMARK: Final = 48

MAX_LIMIT_MS: Final = 86_400_000
"""The longest limit of a route in ms: a day."""


def read_route(fields: Fields) -> Route:
    """Return the route, with defaults for fields that are missing or wrong."""
    buffer = fields.integer("buffer", 1, MAX_BUFFER)
    credits = DEFAULT_BUFFER if buffer is None else buffer
    route = Route(
        id="",
        source=fields.name("from", required=True, blanks=True),
        target=fields.name("to", required=True, blanks=True),
        plane=fields.choice("plane", PLANES),
        topic=fields.text("topic"),
        port=fields.name("port"),
        content_type=read_content_type(fields),
        schema_ver=read_version(fields),
        buffer=credits,
        watermark=_watermark(fields, credits),
        policy=fields.choice("policy", POLICIES, "block"),
        limit_ms=fields.number("limit_ms", 0, MAX_LIMIT_MS),
        raw=fields.raw,
    )
    if route.plane == "control" and fields.get("plane") == "control" and not route.topic:
        hint = f'for example "control/{route.source}/{route.target}"' if route.source and route.target else ""
        fields.notes.problem(fields.at("topic"), "a control route needs a topic", hint)
    if route.limit_ms is not None and route.policy != "block":
        message = f"{route.policy} never waits, so there is nothing to limit"
        fields.notes.problem(fields.at("limit_ms"), message, "leave it out, or use policy block")
    fields.done()
    return route


def settle_policy(route: Route, qos: str) -> Route:
    """Return the route with its final policy: ``drop_newest`` if the class ``qos`` of its source is best-effort and the
    route names neither policy nor limit, because frames of a best-effort node need not arrive."""
    said = route.raw.get("policy") is not None or route.limit_ms is not None
    return replace(route, policy="drop_newest") if qos == "best-effort" and not said else route


def usual_watermark(buffer: int) -> int:
    """Return the watermark of a route that names none: three quarters of the buffer, at most MAX_USUAL_WATERMARK."""
    return max(1, min(MAX_USUAL_WATERMARK, buffer * 3 // 4))


def _watermark(fields: Fields, buffer: int) -> int:
    watermark = fields.integer("watermark", 1, MAX_BUFFER)
    if watermark is None:
        return usual_watermark(buffer)
    if watermark > buffer and fields.get("plane") != "control":
        message = f"{watermark} is above the buffer, and is taken for {buffer}"
        fields.notes.warn(fields.at("watermark"), message, f"at most {buffer}; {usual_watermark(buffer)} is usual")
    return min(watermark, buffer)


def read_schema(fields: Fields) -> SchemaDescriptor:
    """Return one entry of ``schemas``."""
    schema = SchemaDescriptor(
        content_type=read_content_type(fields),
        schema_ver=read_version(fields),
        schema_ref=fields.text("schema_ref"),
    )
    fields.done()
    return schema
