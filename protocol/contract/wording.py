"""Words of the contract that can be written in more than one way: content types, versions, priorities, schemes.

A content type that the contract does not name is valid if it has the form of a media type: its payload is passed on as
bytes.
"""

from __future__ import annotations

import re
from typing import Final

from chronetix.protocol.contract.reading import Fields, quote
from chronetix.protocol.contract.types import (
    CONTENT_TYPE_ALIASES,
    CONTENT_TYPES,
    MAX_PRIORITY,
    MAX_WRITTEN_PRIORITY,
)

_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}", re.ASCII)


def normalised(content_type: str) -> str:
    """Return the contract's spelling of ``content_type``; ``content_type`` itself if the contract does not name it.
    Parameters (``;charset=utf-8``) are left out: JSON is UTF-8, and nothing else has any."""
    bare = content_type.partition(";")[0].strip()
    folded = CONTENT_TYPE_ALIASES.get(bare.lower(), bare.lower())
    return folded if folded in CONTENT_TYPES else bare


def read_content_type(fields: Fields, name: str = "content_type") -> str:
    """Return the field ``name`` as a normalised content type, application/json by default."""
    given = fields.text(name) or CONTENT_TYPES[0]
    content_type = normalised(given)
    if content_type in CONTENT_TYPES:
        return content_type
    if not _MEDIA_TYPE.fullmatch(content_type):
        message = f"{quote(given)} is no content type"
        fields.notes.problem(fields.at(name), message, "one of: " + ", ".join(CONTENT_TYPES))
        return CONTENT_TYPES[0]
    meant = fields.notes.nearest(content_type, CONTENT_TYPES, 0.85)
    if meant is not None:
        message = f"{quote(given)} is none of the known content types; its payload will be passed on as bytes"
        fields.notes.warn(fields.at(name), message, f'did you mean "{meant}"?')
    return content_type


def in_topic(node: str) -> str:
    """Return a node's id as a part of a topic, of a port or of a route's id, which have no blanks."""
    return node.replace(" ", "%20")


def read_version(fields: Fields) -> str:
    """Return the field ``schema_ver``, v1 by default; the number 3 means "v3", as in the WIT, with a warning."""
    given = fields.get("schema_ver")
    if type(given) is not int or given < 0:
        return fields.text("schema_ver", "v1")
    fields.notes.warn(fields.at("schema_ver"), f'is a number, and is taken for "v{given}"', f'write "v{given}"')
    return f"v{given}"


def read_priority(fields: Fields) -> int | None:
    """Return the field ``priority``, None if it is absent or wrong; one above MAX_PRIORITY counts as that, with a
    warning."""
    given = fields.integer("priority", 0, MAX_WRITTEN_PRIORITY)
    if given is None or given <= MAX_PRIORITY:
        return given
    message = f"{given} is above the highest priority, and is taken for {MAX_PRIORITY}"
    fields.notes.warn(fields.at("priority"), message, f"0 to {MAX_PRIORITY}")
    return MAX_PRIORITY


def cure_of_scheme(scheme: str, rest: str) -> str | None:
    """Return how to bring here what a uri of a known scheme names that nothing is fetched from; None for others."""
    cure = _FETCHED_BY_HAND.get(scheme)
    return None if cure is None else cure.format(rest=rest, name=rest.rpartition("/")[2] or "name")


_FETCHED_BY_HAND: Final = {
    "wasm": "copy the component into a folder beside the flow and write file://plugins/{name}.wasm",
    "oci": "pull the artifact to a file (`oras pull {rest}`) and write file://PATH",
    "https": "download it (`curl -O https://{rest}`) and write file://{name}",
    "http": "download it (`curl -O http://{rest}`) and write file://{name}",
}
