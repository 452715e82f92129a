"""What source files say of their classes and functions, read without importing them: signatures and docstrings.

An attribute's docstring is the text that follows it, in a class body or in ``__init__``.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Member:
    """An attribute, property or method. ``shown`` is its name, of a method with its arguments."""

    name: str
    shown: str
    kind: str
    doc: str


@dataclass(frozen=True)
class Described:
    """A class or function with its docstring and, of a class, its public members in the order of the source."""

    name: str
    shown: str
    doc: str
    members: tuple[Member, ...] = ()

    def docs(self) -> dict[str, str]:
        """The docstrings of the members by their names."""
        return {member.name: member.doc for member in self.members}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def described(path: Path, name: str) -> Described:
    """The class or function ``name`` of a file."""
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Described(name, name, _doc(node), tuple(_members(node)))
        if isinstance(node, Function) and node.name == name:
            return Described(name, _signature(node, skip_first=False), _doc(node))
    raise LookupError(f"{path} has no {name}")


def _doc(node: ast.ClassDef | Function) -> str:
    return ast.get_docstring(node) or ""


def _members(owner: ast.ClassDef) -> Iterator[Member]:
    yield from _attributes(owner.body)
    for node in owner.body:
        if not isinstance(node, Function):
            continue
        if node.name == "__init__":
            yield from _attributes(node.body)
        elif not node.name.startswith("_"):
            decorators = {ast.unparse(each) for each in node.decorator_list}
            if decorators & {"property"}:
                yield Member(node.name, node.name, "property", _doc(node))
            elif not any(each.endswith(".setter") for each in decorators):
                shown = _signature(node, skip_first="staticmethod" not in decorators)
                yield Member(node.name, shown, "method", _doc(node))


def _attributes(body: Sequence[ast.stmt]) -> Iterator[Member]:
    for at, node in enumerate(body):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name)):
                pass
            case ast.Assign(targets=[ast.Attribute(attr=name)]):
                pass
            case ast.Assign(targets=[ast.Name(id=name)]) if at + 1 < len(body) and _text(body[at + 1]):
                pass
            case _:
                continue
        if not name.startswith("_"):
            yield Member(name, name, "attribute", _text(body[at + 1]) if at + 1 < len(body) else "")


def _text(node: ast.stmt) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return inspect.cleandoc(text)
    return ""


def _signature(node: Function, *, skip_first: bool) -> str:
    """Name and arguments, without annotations: names and defaults are what a caller writes."""
    arguments = node.args
    plain = ast.arguments(
        posonlyargs=[ast.arg(each.arg) for each in arguments.posonlyargs],
        args=[ast.arg(each.arg) for each in arguments.args],
        vararg=arguments.vararg and ast.arg(arguments.vararg.arg),
        kwonlyargs=[ast.arg(each.arg) for each in arguments.kwonlyargs],
        kw_defaults=arguments.kw_defaults,
        kwarg=arguments.kwarg and ast.arg(arguments.kwarg.arg),
        defaults=arguments.defaults,
    )
    if skip_first:
        (plain.posonlyargs or plain.args).pop(0)
    return f"{node.name}({ast.unparse(plain)})"
