"""The ports that the kit gives to a program."""

from __future__ import annotations

from typing import Any

from chronetix.protocol.messages import Port
from chronetixctl.conformance.program import Subject


def ports(subject: Subject, name: str, peer: str, count: int, fields: dict[str, Any]) -> list[Port]:
    """Return so many ports, the first of which is called ``name``; ``fields`` are those of all of them."""
    credits = fields.get("credits", 64)
    usual = {
        "content_type": subject.content_type,
        "credits": credits,
        "watermark": max(1, credits * 3 // 4),
        "credit_low": credits // 2,
    }
    return [
        Port(
            **{"route": f"{name}{suffix}", "peer": f"{peer}{suffix}", "topic": f"kit/{name}{suffix}", **usual, **fields}
        )
        for suffix in ("" if not number else str(number + 1) for number in range(count))
    ]
