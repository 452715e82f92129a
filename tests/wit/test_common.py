"""The WIT types say what the wire protocol says."""

import re
from pathlib import Path

import msgspec

from chronetix.protocol.messages import Envelope

WIT = (Path(__file__).parents[2] / "wit" / "common.wit").read_text()


def test_the_envelope_record_has_the_fields_of_the_wire_envelope() -> None:
    (record,) = re.findall(r"record envelope \{(.*?)\n    \}", WIT, re.DOTALL)
    fields = re.findall(r"^\s+([a-z-]+):", record, re.MULTILINE)
    assert [field.replace("-", "_") for field in fields] == [field.name for field in msgspec.structs.fields(Envelope)]
