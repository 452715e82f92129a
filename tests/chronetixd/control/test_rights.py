"""docs/operations.md names each verb beside the right that the daemon asks for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chronetixd.control.verbs import VERBS

TABLE = Path(__file__).parents[3] / "docs" / "operations.md"
COMMANDS = {
    "attach_token": ("attach-token",),
    "config": ("config show",),
    "list": ("ls", "route ls"),
    "remove": ("rm",),
    "rollouts": ("rollout status", "rollout history"),
    "stats": ("top",),
    "tap": ("topic echo",),
    "undo": ("rollout undo",),
}
"""Commands of verbs whose command has another name."""


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_table_of_rights_has_every_verb(verb: str) -> None:
    row = re.search(rf"^\| {VERBS[verb].right} \| (.*?) \|", TABLE.read_text(), re.MULTILINE)
    assert row is not None
    assert [name for name in COMMANDS.get(verb, (verb,)) if f"`{name}`" not in row[1]] == []
