"""A class name means one thing: a reader who meets it in an import, a log or a traceback knows which class it is."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("chronetixd", "chronetixctl", "nodeworker", "protocol", "shm")

ONE_IDEA = {"Encoded"}
"""Two classes, one idea: bytes that are in the format already and are sent as they are."""


def test_no_class_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in (
        each for folder in FOLDERS for each in (ROOT / folder).rglob("*.py*") if each.suffix in (".py", ".pyi")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(places) > 400
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in ONE_IDEA} == {}
