"""The codes in sdk/rust are the catalogue. With CHRONETIX_DRAW=1 they are drawn anew instead (`make reference`)."""

from __future__ import annotations

import os

from chronetix.protocol.errors import CATALOGUE
from tests.sdk.rust.build import SDK

SOURCE = SDK / "src" / "codes.rs"
TEXT = """\
//! The error catalogue, from protocol/errors.json: `make reference` draws it anew.

/// A code of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u32)]
pub enum Code {{
{entries}
}}

const ALL: [(Code, &str); {count}] = [
{names}
];

impl Code {{
    /// Its name in the catalogue.
    pub fn name(self) -> &'static str {{
        ALL.iter().find(|entry| entry.0 == self).map_or("", |entry| entry.1)
    }}

    /// The code of that number.
    pub fn of(number: u64) -> Option<Self> {{
        ALL.iter().map(|entry| entry.0).find(|code| *code as u64 == number)
    }}
}}
"""


def test_the_codes_are_those_of_the_catalogue() -> None:
    entries = sorted((entry.code, name) for name, entry in CATALOGUE.items())
    named = [(code, name, "".join(part.capitalize() for part in name.split("-"))) for code, name in entries]
    drawn = TEXT.format(
        entries="\n".join(f"    /// `{name}`\n    {variant} = {code}," for code, name, variant in named),
        count=len(named),
        names="\n".join(f'    (Code::{variant}, "{name}"),' for _, name, variant in named),
    )
    if os.environ.get("CHRONETIX_DRAW"):
        SOURCE.write_text(drawn)
    assert SOURCE.read_text() == drawn, "make reference"
