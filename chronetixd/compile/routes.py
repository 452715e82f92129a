"""One edge of the DSL, long or short form → its Route.

Rules: defaults are those of the contract; a route that names no content type takes its producer's, if the producer
declares exactly one; unknown fields go into the route unchanged. Both ends must name existing nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chronetix.protocol.contract.routes import usual_watermark
from chronetix.protocol.contract.wording import in_topic, normalised
from chronetix.protocol.nearest import did_you_mean
from chronetixd.compile import catalogue, form
from chronetixd.compile.fields import (
    choice_of,
    count_of,
    label_of,
    text_of,
    usual_choice_of,
    version_of,
    warn_near_misses,
)
from chronetixd.compile.nodes import Draft
from chronetixd.compile.problems import Findings, Position
from chronetixd.compile.tree import SyntaxNode

DEFAULT_BUFFER = 64

_TOPIC = re.compile(r"[\w\-]+([./][\w\-]+)+")
"""Labels that are topics: words with dots or slashes between them."""


@dataclass(slots=True)
class Edge:
    """A route whose two ends exist."""

    source: SyntaxNode
    start: Draft
    end: Draft
    route: dict[str, Any]

    @property
    def is_data(self) -> bool:
        """Whether it is a data route."""
        return bool(self.route["plane"] == "data")

    @property
    def type(self) -> tuple[str, str]:
        """Content type and schema version of what it carries."""
        return self.route["content_type"], self.route["schema_ver"]

    def __str__(self) -> str:
        return f"{self.start.id} -> {self.end.id}"


def read_route(
    node: SyntaxNode, short: bool, default_type: str, drafts: Mapping[str, Draft], findings: Findings
) -> Edge | None:
    """Return the edge; None, and a problem is noted, if an end is missing or names no node."""
    ends = [_end(node, key, drafts, findings) for key in ("from", "to")]
    owner = "route " + " -> ".join(end.id if end else "?" for end in ends)
    warn_near_misses(node, form.EDGE if short else form.ROUTE, findings, owner)
    start, end = ends
    if start is None or end is None:
        return None
    route: dict[str, Any] = {"from": start.id, "to": end.id}
    _fill_plane(node, short, route, owner, findings)
    content_type = text_of(node, "content_type", findings, owner)
    version = version_of(node, "schema_ver", findings, owner)
    declared = start.outputs[0] if len({shape.type for shape in start.outputs}) == 1 else None
    route["content_type"] = normalised(content_type or (declared.content_type if declared else default_type))
    route["schema_ver"] = version or (declared.schema_ver if declared else "v1")
    if route["plane"] == "data":
        _fill_credits(node, route, owner, findings)
    for key, value in node.fields.items():
        if key not in route and value.value is not None:
            route[key] = value.plain()
    return Edge(node, start, end, route)


def _end(node: SyntaxNode, key: str, drafts: Mapping[str, Draft], findings: Findings) -> Draft | None:
    name = label_of(node, key, findings, "route")
    if name is None:
        if node.get(key) is None:
            findings.problem(node.place, "InvalidGraph", f'route without "{key}"', f"add {key}: <id of a node>")
        return None
    draft = drafts.get(name)
    if draft is None:
        known = tuple(drafts)
        hint = did_you_mean(name, known, f"nodes: {', '.join(known[:12])}" if known else "there are no nodes")
        place: Position = node.fields[key].place
        findings.problem(place, "InvalidGraph", f'route {key} "{name}": there is no such node', hint)
    return draft


def _fill_plane(node: SyntaxNode, short: bool, route: dict[str, Any], owner: str, findings: Findings) -> None:
    start, end = (in_topic(route[key]) for key in ("from", "to"))
    topic = text_of(node, "topic", findings, owner)
    port = text_of(node, "port", findings, owner)
    channel = ""
    if short:
        effect = "the route is a stream"
        channel = usual_choice_of(node, "channel", tuple(catalogue.CHANNELS), findings, owner, effect) or "stream"
        plane = catalogue.CHANNELS.get(channel, "data")
        topic = topic or _labelled(node, plane)
    else:
        plane = choice_of(node, "plane", catalogue.PLANES, findings, owner) or _guessed_plane(node, topic)
    route["plane"] = plane
    if plane == "control":
        route["topic"] = topic or f"control/{start}/{end}"
        return
    route["topic"] = topic or f"flow/edge/{start}-{end}"
    if port or channel != "blob-ref":
        route["port"] = port or f"dataport/{start}-{end}"


def _labelled(node: SyntaxNode, plane: str) -> str | None:
    """Return the topic that an edge's label gives it, if any; on the control plane ``topic_or_label`` always does."""
    older, label = node.get("topic_or_label"), node.get("label")
    if older is not None and older.text and (plane == "control" or _TOPIC.fullmatch(older.text)):
        return older.text
    return label.text if label is not None and label.text and _TOPIC.fullmatch(label.text) else None


def _guessed_plane(node: SyntaxNode, topic: str | None) -> str:
    credits_given = any(node.get(key) is not None for key in ("port", "buffer", "watermark"))
    return "control" if topic and topic.startswith("control/") and not credits_given else "data"


def _fill_credits(node: SyntaxNode, route: dict[str, Any], owner: str, findings: Findings) -> None:
    given = count_of(node, "buffer", findings, owner, least=1)
    buffer = DEFAULT_BUFFER if given is None else given
    watermark = count_of(node, "watermark", findings, owner, least=1)
    if watermark is None:
        watermark = usual_watermark(buffer)
    elif watermark > buffer:
        message = f"{owner}: watermark {watermark} is above buffer {buffer}, and is taken for {buffer}"
        findings.warning(node.fields["watermark"].place, "InvalidField", message, f"at most {buffer}")
        watermark = buffer
    route["buffer"], route["watermark"] = buffer, watermark
