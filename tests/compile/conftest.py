"""Fixtures for the compile step: where the real files of the orchestrator are, and short ways to say a flow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from chronetixd.compile import Compiled, CompileError, SourceProblem, compile_text


@pytest.fixture
def data() -> Path:
    """The folder with the orchestrator's own files."""
    return Path(__file__).parent / "data"


@pytest.fixture
def compiled() -> Callable[[str], Compiled]:
    """Compile an indented text as flow.yaml."""
    return lambda text: compile_text(dedent(text), "flow.yaml")


@pytest.fixture
def output(compiled: Callable[[str], Compiled]) -> Callable[[str], dict[str, Any]]:
    """The output of an indented text, known to be writable as JSON."""

    def run(text: str) -> dict[str, Any]:
        result = compiled(text).output
        assert json.loads(json.dumps(result)) == result
        return result

    return run


@pytest.fixture
def problems() -> Callable[[str], tuple[SourceProblem, ...]]:
    """The problems of an indented text that must not compile."""

    def run(text: str) -> tuple[SourceProblem, ...]:
        with pytest.raises(CompileError) as caught:
            compile_text(dedent(text), "flow.yaml")
        return caught.value.problems

    return run
