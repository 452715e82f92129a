"""The problems that a flow's text can have, with their places.

Rules: a problem names its file, line and column (both from 1), its kind, what is wrong and what to do about it. All
problems of a file are reported at once, in the order of the text. This module reads no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "InvalidSyntax", "InvalidField", "InvalidGraph", "IncompatibleSchema", "MissingArtifact", "CyclicDependency"
]
"""InvalidSyntax and InvalidField are about the text itself, the other four about the graph that it draws."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A position in the text, counted from 1 as editors do."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class SourceProblem:
    """One problem (or, among warnings, a doubtful field) and what to do about it."""

    file: str
    line: int
    column: int
    kind: Kind
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        tail = f"\n  hint: {self.suggestion}" if self.suggestion else ""
        return f"{self.file}:{self.line}:{self.column}: {self.kind}: {self.message}{tail}"


class CompileError(Exception):
    """Raised for a text that is no runnable flow; ``problems`` has at least one entry, in the order of the text."""

    def __init__(self, problems: Sequence[SourceProblem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line, problem.column)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Findings:
    """Collects the problems and warnings of one file while it is compiled."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[SourceProblem] = []
        self.warnings: list[SourceProblem] = []

    def problem(self, place: Position, kind: Kind, message: str, suggestion: str = "") -> None:
        """Note a problem that makes the flow impossible to run."""
        self.problems.append(SourceProblem(self.file, place.line, place.column, kind, message, suggestion))

    def warning(self, place: Position, kind: Kind, message: str, suggestion: str = "") -> None:
        """Note a field that is valid, but probably not as meant."""
        self.warnings.append(SourceProblem(self.file, place.line, place.column, kind, message, suggestion))

    def raise_if_any(self) -> None:
        """Raise CompileError if a problem was noted."""
        if self.problems:
            raise CompileError(self.problems)
