"""``schemas`` of a CompileOutput: the union of what the file lists, the nodes' io and the data routes name.

Rules: there is one entry for each content type, version and reference, in the order of first mention. Every entry has a
reference: one that names none is left out if the same type and version has one, else its reference is derived.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def union_of_schemas(
    given: Sequence[dict[str, Any]], manifests: Sequence[Mapping[str, Any]], routes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return descriptors ``{content_type, schema_ver, schema_ref}`` without duplicates."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    data_routes = [route for route in routes if route["plane"] == "data"]
    for entry in [*given, *_ports(manifests), *data_routes]:
        key = tuple(str(entry.get(name) or "") for name in ("content_type", "schema_ver", "schema_ref"))
        if len(key) == 3 and key[0]:
            found.setdefault(key, dict(entry) if entry in given else _descriptor(*key))
    referenced = {key[:2] for key in found if key[2]}
    return [
        entry if key[2] else {**entry, "schema_ref": _derived(*key[:2])}
        for key, entry in found.items()
        if key[2] or key[:2] not in referenced
    ]


def _derived(content_type: str, schema_ver: str) -> str:
    return f"registry://schemas/{content_type.rpartition('/')[2]}@{schema_ver or 'v1'}"


def _ports(manifests: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for manifest in manifests:
        io = manifest.get("io", {})
        yield from io.get("outputs", ())
        yield from io.get("inputs", ())


def _descriptor(content_type: str, schema_ver: str, schema_ref: str) -> dict[str, str]:
    entry = {"content_type": content_type, "schema_ver": schema_ver, "schema_ref": schema_ref}
    return {key: value for key, value in entry.items() if value}
