"""Reads one route. Its ``source`` and ``target`` are the endpoints as written; ``endpoints`` finds their nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from chronetix.protocol.contract.reading import Fields
from chronetix.protocol.contract.types import DEFAULT_BUFFER, MAX_BUFFER, PLANES, POLICIES, Route, SchemaDescriptor
from chronetix.protocol.contract.wording import read_content_type

MAX_LIMIT_MS: Final = 86_400_000
"""The longest limit of a route in ms: a day."""


def read_route(fields: Fields) -> Route:
    """Return the route, with defaults for fields that are missing or wrong. The watermark is three quarters of the
    buffer unless it is given."""
    buffer = fields.integer("buffer", 1, MAX_BUFFER)
    credits = DEFAULT_BUFFER if buffer is None else buffer
    route = Route(
        id="",
        source=fields.name("from", required=True),
        target=fields.name("to", required=True),
        plane=fields.choice("plane", PLANES),
        topic=fields.text("topic"),
        port=fields.name("port"),
        content_type=read_content_type(fields),
        schema_ver=fields.text("schema_ver", "v1"),
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


def _watermark(fields: Fields, credits: int) -> int:
    default = max(1, credits * 3 // 4)
    watermark = fields.integer("watermark", 1, MAX_BUFFER)
    if watermark is None:
        return default
    if watermark > credits:
        hint = f"at most {credits}; {default} is usual"
        fields.notes.problem(fields.at("watermark"), f"{watermark} is above the buffer, {credits}", hint)
        return default
    return watermark


def read_schema(fields: Fields) -> SchemaDescriptor:
    """Return one entry of ``schemas``."""
    schema = SchemaDescriptor(
        content_type=read_content_type(fields),
        schema_ver=fields.text("schema_ver", "v1"),
        schema_ref=fields.text("schema_ref"),
    )
    fields.done()
    return schema
