"""The header of error codes is the catalogue. With CHRONETIX_DRAW=1 it is drawn anew instead (`make reference`)."""

from __future__ import annotations

import os

from chronetix.protocol.errors import CATALOGUE
from tests.sdk.c.build import SDK

HEADER = SDK / "include" / "chronetix_errors.h"
TEXT = """\
/* The error catalogue, from protocol/errors.json: `make reference` draws it anew. Functions return codes negated. */
#ifndef CHRONETIX_ERRORS_H
#define CHRONETIX_ERRORS_H

/* X(what follows CHX_E_, its code, its name) for each error. */
#define CHX_ERROR_LIST(X) \\
{entries}

#define CHX_ERROR_CODE(constant, code, name) CHX_E_##constant = code,
enum chx_code {{ CHX_ERROR_LIST(CHX_ERROR_CODE) }};
#undef CHX_ERROR_CODE

#endif
"""


def test_the_header_has_every_code_of_the_catalogue() -> None:
    entries = sorted((entry.code, name) for name, entry in CATALOGUE.items())
    lines = [f'    X({name.upper().replace("-", "_")}, {code}, "{name}")' for code, name in entries]
    drawn = TEXT.format(entries=" \\\n".join(lines))
    if os.environ.get("CHRONETIX_DRAW"):
        HEADER.write_text(drawn)
    assert HEADER.read_text() == drawn, "make reference"
