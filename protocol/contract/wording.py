"""Content types: one spelling for each, and a warning for one that looks misspelt.

A type that the contract does not name is valid if it has the form of a media type: its payload is passed on as bytes.
"""

from __future__ import annotations

import re
from typing import Final

from chronetix.protocol.contract.reading import Fields, quote
from chronetix.protocol.contract.types import CONTENT_TYPE_ALIASES, CONTENT_TYPES

_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}", re.ASCII)


def normalised(content_type: str) -> str:
    """Return the contract's spelling of ``content_type``; ``content_type`` itself if the contract does not name it."""
    folded = content_type.strip().lower()
    folded = CONTENT_TYPE_ALIASES.get(folded, folded)
    return folded if folded in CONTENT_TYPES else content_type


def read_content_type(fields: Fields, name: str = "content_type") -> str:
    """Return the field ``name`` as a normalised content type, application/json by default."""
    given = fields.text(name) or CONTENT_TYPES[0]
    content_type = normalised(given)
    if content_type in CONTENT_TYPES:
        return content_type
    if not _MEDIA_TYPE.fullmatch(given):
        message = f"{quote(given)} is no content type"
        fields.notes.problem(fields.at(name), message, "one of: " + ", ".join(CONTENT_TYPES))
        return CONTENT_TYPES[0]
    meant = fields.notes.nearest(given, CONTENT_TYPES, 0.85)
    if meant is not None:
        message = f"{quote(given)} is none of the known content types; its payload will be passed on as bytes"
        fields.notes.warn(fields.at(name), message, f'did you mean "{meant}"?')
    return content_type
