"""Where a file can be changed so that it does something else, and what then stands there instead.

A mutant is one replacement in the text, so that what is shown is the line as its author wrote it. Not changed:
annotations, docstrings, what only type checkers read, assertions (and zip's strict), and modules' lists of names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARED: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
CALCULATED: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "//"),
    ast.FloorDiv: ("//", "*"),
    ast.Div: ("/", "*"),
    ast.Mod: ("%", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
}
IN_C = (
    (r"(?<![<>=!+\-*/&|])<(?![<=])(?= )", "<="),
    (r"<=(?= )", "<"),
    (r"(?<![>\-=])>(?![>=])(?= )", ">="),
    (r">=(?= )", ">"),
    (r"==", "!="),
    (r"!=", "=="),
    (r"&&", "||"),
    (r"\|\|", "&&"),
    (r"(?<= )\+(?= )", "-"),
    (r"(?<= )-(?= )", "+"),
    (r"\+\+", "--"),
    (r"(?<=[\s(\[])\d+u?(?=[;,)\] ])", "{}"),
)
"""A pattern in C, and what stands there instead; ``{}`` is the number after it."""


@dataclass(frozen=True, slots=True, order=True)
class Mutant:
    """One change: ``text`` instead of what is between two offsets of the file."""

    path: Path
    line: int
    start: int
    end: int
    text: str

    def applied(self, source: str) -> str:
        """The file with the change."""
        return source[: self.start] + self.text + source[self.end :]

    def shown(self, source: str) -> str:
        """The lines that it changes, before and after, as a diff has them."""
        first = source.rfind("\n", 0, self.start) + 1
        last = source.find("\n", self.end)
        before = source[first:last]
        after = source[first : self.start] + self.text + source[self.end : last]
        return "\n".join([f"-{line}" for line in before.split("\n")] + [f"+{line}" for line in after.split("\n")])


def mutants(root: Path, path: Path) -> list[Mutant]:
    """Every mutant of a file of Python or C, in the order of the text."""
    source = (root / path).read_text()
    found = _in_c(source) if path.suffix == ".c" else _Finder(source).all()
    lines = source.count
    return sorted(Mutant(path, lines("\n", 0, start) + 1, start, end, text) for start, end, text in set(found))


Change = tuple[int, int, str]


def _in_c(source: str) -> Iterator[Change]:
    code = re.sub(
        r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|^\s*#[^\n]*', _blanks, source, flags=re.DOTALL | re.MULTILINE
    )
    for pattern, instead in IN_C:
        for match in re.finditer(pattern, code):
            number = match[0].rstrip("u")
            text = instead.format(int(number, 0) + 1) if instead == "{}" else instead
            yield match.start(), match.end(), text


def _blanks(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


class _Finder:
    """Goes through the tree of a module and says what can be changed in its text."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._starts = [0]
        for line in source.encode().splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._bytes = source.encode()

    def all(self) -> Iterator[Change]:
        yield from self._body(ast.parse(self._source).body)

    def _body(self, statements: list[ast.stmt]) -> Iterator[Change]:
        for statement in statements:
            yield from self._statement(statement)

    def _statement(self, node: ast.stmt) -> Iterator[Change]:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal() | ast.Pass() | ast.Assert():
                return
            case ast.Expr(value=ast.Constant()):  # a docstring
                return
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                return
            case ast.Expr(value=ast.Call()):
                yield *self._span(node), "pass"
            case ast.AugAssign(op=op) if type(op) in CALCULATED:
                sign, instead = CALCULATED[type(op)]
                yield self._between(node.target, node.value, f"{sign}=", f"{instead}=")
            case ast.Break():
                yield *self._span(node), "continue"
            case ast.Continue():
                yield *self._span(node), "break"
            case ast.Return(value=ast.Call() | ast.Name() | ast.Attribute() as value):
                yield *self._span(value), "None"
            case ast.If(test=test) | ast.While(test=test) if not isinstance(test, ast.Compare | ast.Constant):
                yield *self._span(test), f"not ({self._text(test)})"
            case _:
                pass
        yield from self._children(node)

    def _children(self, node: ast.AST) -> Iterator[Change]:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_params", "decorator_list", "bases"):
                continue
            if isinstance(node, ast.ClassDef) and name == "keywords":  # a struct may be written to, and nobody does
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.keyword) and child.arg == "strict":  # of zip: an assertion
                    continue
                if isinstance(child, ast.stmt):
                    yield from self._statement(child)
                elif isinstance(child, ast.AST):
                    yield from self._expression(child)

    def _expression(self, node: ast.AST) -> Iterator[Change]:
        match node:
            case ast.JoinedStr():
                yield from self._in_text(node)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARED:
                yield self._between(left, right, *COMPARED[type(op)])
            case ast.BoolOp(op=op, values=values):
                words = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                yield self._between(values[0], values[1], *words)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in CALCULATED and not self._words(left):
                yield self._between(left, right, *CALCULATED[type(op)])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield *self._span(node), self._text(operand)
            case ast.IfExp(test=test):
                yield *self._span(test), f"not ({self._text(test)})"
            case ast.Constant(value=bool() as value):
                yield *self._span(node), str(not value)
            case ast.Constant(value=int() as value):
                yield *self._span(node), str(value + 1)
            case ast.Constant(value=str() as value) if " " in value:
                yield from self._in_text(node)
            case _:
                pass
        if not isinstance(node, ast.JoinedStr):  # Python 3.11 does not say where in an f-string something stands
            yield from self._children(node)

    def _in_text(self, node: ast.expr) -> Iterator[Change]:
        """A sign at the beginning of what somebody reads. (A part of an f-string has no quotes of its own.)"""
        if opened := re.match(r"[rRfFuU]*(?:\"{3}|'{3}|\"|')", self._text(node)):
            start = self._span(node)[0] + opened.end()
            yield start, start, "~"

    def _words(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Constant | ast.JoinedStr) and not isinstance(getattr(node, "value", None), int)

    def _offset(self, line: int, column: int) -> int:
        return len(self._bytes[: self._starts[line - 1] + column].decode())

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno, node.end_col_offset)

    def _text(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self._source[start:end]

    def _between(self, left: ast.expr, right: ast.expr, sign: str, instead: str) -> Change:
        """The operator between two expressions, which stands after the first's parentheses, before the second's."""
        start, end = self._span(left)[1], self._span(right)[0]
        at = self._source.index(sign, start, end)
        return at, at + len(sign), instead
